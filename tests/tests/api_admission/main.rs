//! What the API server itself says of an `McpService`: every rule of the schema, with the words a person reads.
#![allow(clippy::unwrap_used, reason = "what the tests themselves write is as they write it")]

mod refused;

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use kube::{ResourceExt, api::ScaleSpec};
use mcp_mqtt_operator::crd::McpService;
use mcp_mqtt_tests::cluster::{Space, refusal};
use serde_json::{Value, json};
use tokio::process::Command;

use self::refused::refused;

/// The smallest spec that is taken.
fn minimal() -> Value {
    json!({"transport": {"stdio": {"command": ["node", "server.js"]}}, "server": {"image": "registry.example/weather:3"}})
}

/// The smallest spec with this merged into it; null takes away.
fn with(patch: &Value) -> Value {
    fn merge(into: &mut Value, patch: &Value) {
        let (Value::Object(into), Value::Object(patch)) = (&mut *into, patch) else {
            *into = patch.clone();
            return;
        };
        for (name, value) in patch {
            if value.is_null() {
                into.remove(name);
            } else {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
    }
    let mut spec = minimal();
    merge(&mut spec, patch);
    spec
}

fn http(transport: &Value) -> Value {
    with(&json!({"transport": {"stdio": null, "streamableHttp": transport}}))
}

fn sse(transport: &Value) -> Value {
    with(&json!({"transport": {"stdio": null, "sse": transport}}))
}

fn broker(broker: &Value) -> Value {
    with(&json!({"broker": broker}))
}

fn role(more: &Value) -> Value {
    let mut role =
        json!({"name": "reader", "allowedMethods": "all", "allowedTools": "all", "allowedResources": "all"});
    role.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    with(&json!({"rbac": {"roles": [role]}}))
}

#[tokio::test]
async fn each_rule_refuses_with_words_that_name_the_field() -> Result<()> {
    let space = Space::new("rules").await?;
    let mut wrong = Vec::new();
    for (spec, words) in refused() {
        match space.refused("weather", &spec).await {
            Ok(said) if said.contains(words) && said.contains("spec") => {}
            Ok(said) => wrong.push(format!("{spec}\n  wanted: {words}\n  said:   {said}")),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    space.remove().await
}

/// Each message of the schema's rules, wherever it stands.
fn messages(node: &Value, found: &mut Vec<String>) {
    match node {
        Value::Object(fields) => {
            let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array);
            let told = rules.into_iter().flatten().filter_map(|rule| rule["message"].as_str());
            found.extend(told.map(str::to_owned));
            fields.values().for_each(|field| messages(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| messages(item, found)),
        _ => {}
    }
}

#[test]
fn each_rule_of_the_schema_has_a_row_here() {
    let mut rules = Vec::new();
    messages(&serde_json::to_value(mcp_mqtt_operator::crd::crd()).unwrap(), &mut rules);
    assert!(rules.len() > 20, "{rules:?}");
    let rows = refused();
    // Of a change, and not of a spec: `the_server_name_never_changes`.
    let elsewhere = |message: &str| message.starts_with("serverName is immutable");
    let unseen: Vec<_> = rules
        .iter()
        .filter(|message| !elsewhere(message))
        .filter(|message| {
            !rows.iter().any(|(_, words)| words.contains(message.as_str()) || message.contains(words))
        })
        .collect();
    assert!(unseen.is_empty(), "{unseen:#?}");
}

#[tokio::test]
async fn what_people_write_is_taken() -> Result<()> {
    let space = Space::new("taken").await?;
    let specs = [
        minimal(),
        http(&json!({"port": 3001})),
        sse(&json!({"port": 3001})),
        sse(&json!({"port": 3001, "path": "/app/sse?x=y"})),
        with(&json!({"serverName": "tools/über/everything"})),
        with(&json!({"server": {"image": format!("registry.example:5000/a/b@sha256:{}", "0".repeat(64))}})),
        with(
            &json!({"server": {"resources": {"limits": {"cpu": 0.5, "memory": "1Gi"}, "requests": {"cpu": 1}}}}),
        ),
        with(
            &json!({"server": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}}),
        ),
        with(
            &json!({"server": {"livenessProbe": {"httpGet": {"path": "/", "port": "web"}}, "readinessProbe": {"tcpSocket": {"port": 80}}}}),
        ),
        with(&json!({"gateway": {"timeouts": {"call": "1m30s", "max": "18h"}, "keepAlive": "5s"}})),
        with(&json!({"gateway": {"otlpEndpoint": "https://[fd00::1]:4318/otlp/", "env": [
            {"name": "OTEL_EXPORTER_OTLP_HEADERS", "valueFrom": {"secretKeyRef": {"name": "collector", "key": "headers"}}},
            {"name": "OTEL_TRACES_SAMPLER", "value": "always_off"},
        ]}})),
        with(&json!({"gateway": null, "drain": null, "podTemplate": {"anything": {"goes": 1}}})),
        broker(
            &json!({"url": "mqtts://[fd00::1]:8883", "tls": {"ca": {"configMapKeyRef": {"name": "roots"}}, "clientCertificateSecret": "badge"}}),
        ),
        broker(
            &json!({"url": "wss://broker.example/mqtt", "auth": {"serviceAccountToken": {"audience": "broker"}}}),
        ),
        broker(&json!({"url": "mqtt://broker.example:65535"})),
        broker(&json!({"url": "mqtts://10.0.0.1:10000"})),
        broker(&json!({"url": "ws://broker.example:8080", "auth": {"passwordSecret": "creds"}})),
        role(&json!({"allowedTools": ["a", "b"], "description": "may look"})),
        with(&json!({"broker": null, "transport": {"streamableHttp": null}})),
    ];
    for (index, spec) in specs.iter().enumerate() {
        let created =
            space.create(&format!("weather-{index}"), spec).await.with_context(|| spec.to_string())?;
        // And what is taken can be read.
        serde_json::from_value::<McpService>(serde_json::to_value(created)?)
            .with_context(|| spec.to_string())?;
    }
    let longest = "a".repeat(253);
    space.create(&longest, &minimal()).await?;
    space.remove().await
}

#[tokio::test]
async fn a_null_is_a_field_that_is_not_there() -> Result<()> {
    let space = Space::new("null").await?;
    let spec = json!({
        "serverName": null,
        "transport": {"stdio": {"command": ["x"]}, "streamableHttp": null, "sse": null},
        "server": {"image": "i"},
        "broker": null,
    });
    let created = space.create("weather", &spec).await?;
    ensure!(created.data["spec"]["transport"].get("streamableHttp").is_none(), "{}", created.data);
    ensure!(created.data["spec"]["transport"].get("sse").is_none(), "{}", created.data);
    ensure!(created.data["spec"].get("broker").is_none(), "{}", created.data);
    space.remove().await
}

#[tokio::test]
async fn defaults_stand_in_the_object() -> Result<()> {
    let space = Space::new("defaults").await?;
    let created = space.create("weather", &minimal()).await?;
    let expected = json!({
        "description": "",
        "replicas": 1,
        "transport": {"stdio": {"command": ["node", "server.js"], "prewarm": 0}},
        "server": {"image": "registry.example/weather:3"},
        "gateway": {
            "maxSessions": 100, "maxMessageBytes": 1_048_576, "maxInFlight": 64, "workers": 0, "qos": 1, "keepAlive": "15s",
            "timeouts": {"ping": "10s", "call": "60s", "default": "30s", "max": "10m"},
            "log": {"level": "info", "format": "json"},
        },
        "drain": {"timeoutSeconds": 60},
    });
    ensure!(created.data["spec"] == expected, "{:#}", created.data["spec"]);
    let listens = space.create("listens", &sse(&json!({"port": 3001}))).await?;
    ensure!(
        listens.data["spec"]["transport"] == json!({"sse": {"port": 3001, "path": "/sse"}}),
        "{}",
        listens.data
    );
    let partly = space.create("partly", &with(&json!({"gateway": {"timeouts": {"call": "5s"}}}))).await?;
    ensure!(
        partly.data["spec"]["gateway"]["timeouts"]
            == json!({"ping": "10s", "call": "5s", "default": "30s", "max": "10m"}),
        "{}",
        partly.data
    );
    space.remove().await
}

#[tokio::test]
async fn the_server_name_never_changes() -> Result<()> {
    let space = Space::new("immutable").await?;
    space.create("named", &with(&json!({"serverName": "sky/report"}))).await?;
    space.create("unnamed", &minimal()).await?;
    let words = "serverName is immutable: delete the McpService and create it with the new name";
    for (name, patch) in [
        ("named", json!({"spec": {"serverName": "sky/other"}})),
        ("named", json!({"spec": {"serverName": null}})),
        ("unnamed", json!({"spec": {"serverName": "sky/other"}})),
    ] {
        let said = refusal(space.patch(name, patch.clone()).await)?;
        ensure!(said.contains("spec.serverName: Invalid value") && said.contains(words), "{patch}: {said}");
    }
    space.patch("named", json!({"spec": {"description": "may change"}})).await?;
    space.remove().await
}

#[tokio::test]
async fn an_unknown_field_is_refused_by_a_strict_client() -> Result<()> {
    let space = Space::new("unknown").await?;
    // What kubectl asks for.
    let request = kube::core::Request::new(format!(
        "/apis/mcp-mqtt.io/v1alpha1/namespaces/{}/mcpservices",
        space.namespace
    ));
    let object = json!({
        "apiVersion": "mcp-mqtt.io/v1alpha1", "kind": "McpService", "metadata": {"name": "weather"},
        "spec": with(&json!({"transprt": {}})),
    });
    let mut request = request.create(&kube::api::PostParams::default(), serde_json::to_vec(&object)?)?;
    let strict = format!("{}&fieldValidation=Strict", request.uri());
    *request.uri_mut() = strict.parse()?;
    let said = match space.kube.request::<Value>(request).await {
        Err(kube::Error::Api(answer)) => answer.message.clone(),
        other => anyhow::bail!("{other:?}"),
    };
    ensure!(said.contains("unknown field \"spec.transprt\""), "{said}");
    space.remove().await
}

#[tokio::test]
async fn the_scale_subresource_sets_replicas() -> Result<()> {
    let space = Space::new("scale").await?;
    space.create("weather", &minimal()).await?;
    let api = space.api::<McpService>();
    let scale = api.get_scale("weather").await?;
    ensure!(scale.spec.as_ref().and_then(|spec| spec.replicas) == Some(1), "{scale:?}");
    let wanted = json!({"spec": ScaleSpec { replicas: Some(3) }});
    api.patch_scale("weather", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(wanted)).await?;
    ensure!(api.get("weather").await?.spec.replicas == 3, "not scaled");
    ensure!(api.get("weather").await?.name_any() == "weather", "odd name");
    space.remove().await
}

#[tokio::test]
async fn kubectl_explains_each_part_of_the_manifest() -> Result<()> {
    let space = Space::new("explain").await?;
    let kubectl = mcp_mqtt_tests::binaries::workspace().join("target/cluster/bin/kubectl");
    let explain = async |path: &str| -> Result<String> {
        let mut command = Command::new(&kubectl);
        command.args(["explain", path]).stdin(Stdio::null()).kill_on_drop(true);
        let said = tokio::time::timeout(std::time::Duration::from_secs(30), command.output()).await??;
        ensure!(said.status.success(), "{path}: {}", String::from_utf8_lossy(&said.stderr));
        Ok(String::from_utf8(said.stdout)?)
    };
    for (path, says) in [
        ("mcps", "DESCRIPTION"),
        ("mcps.spec", "serverName"),
        ("mcps.spec.transport.stdio", "prewarm"),
        ("mcps.spec.autoscaling", "minReplicas"),
        ("mcps.spec.drain.timeoutSeconds", "DESCRIPTION"),
    ] {
        let said = explain(path).await?;
        ensure!(said.contains(says) && !said.contains("<empty>"), "{path}: {said}");
    }
    space.remove().await
}
