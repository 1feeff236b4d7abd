//! Values: which are refused, and where the others arrive.

use anyhow::{Context, Result};
use mcp_mqtt_tests::helm::{chart, find, helm, helm_ok, template, template_as, values_files};
use serde_json::{Value, json};

const OPERATOR: &str = "mcp-mqtt-operator";

async fn with(file: &str) -> Result<Vec<Value>> {
    template(&["--values", &values(file)]).await
}

fn values(file: &str) -> String {
    chart().join("ci").join(format!("{file}-values.yaml")).to_string_lossy().into_owned()
}

/// Every pod that the chart makes, by its owner's name: of Deployments, and the test.
fn pods(objects: &[Value]) -> Vec<(&str, &Value)> {
    objects.iter().filter_map(pod).collect()
}

fn pod(object: &Value) -> Option<(&str, &Value)> {
    let spec = match object["kind"].as_str()? {
        "Deployment" => &object["spec"]["template"]["spec"],
        "Pod" => &object["spec"],
        _ => return None,
    };
    Some((object["metadata"]["name"].as_str()?, spec))
}

#[tokio::test]
async fn helm_lint_finds_nothing_with_any_values_file() -> Result<()> {
    let directory = chart().to_string_lossy().into_owned();
    helm_ok(&["lint", "--strict", &directory]).await?;
    for file in values_files()? {
        helm_ok(&["lint", "--strict", &directory, "--values", &file.to_string_lossy()]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_object_has_its_name_its_namespace_and_its_labels_in_every_rendering() -> Result<()> {
    let cluster_wide = ["APIService", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"];
    for file in values_files()? {
        let objects = template(&["--values", &file.to_string_lossy()]).await?;
        let mut seen = std::collections::BTreeSet::new();
        for object in &objects {
            let (kind, metadata) = (object["kind"].as_str().context("kind")?, &object["metadata"]);
            let name = metadata["name"].as_str().context("name")?;
            let what = format!("{} {kind} {name}", file.display());
            assert!(name.len() <= 63, "{what}");
            assert_eq!(metadata["namespace"].is_string(), !cluster_wide.contains(&kind), "{what}: namespace");
            assert!(
                seen.insert((kind.to_owned(), metadata["namespace"].clone().to_string(), name.to_owned())),
                "{what}: twice"
            );
            let labels = &metadata["labels"];
            assert_eq!(labels["app.kubernetes.io/part-of"], "mcp-mqtt", "{what}");
            assert_eq!(labels["app.kubernetes.io/instance"], "mcp-mqtt", "{what}");
            assert_eq!(labels["app.kubernetes.io/managed-by"], "Helm", "{what}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn common_labels_reach_every_object_and_do_not_displace_the_charts_own() -> Result<()> {
    for object in with("overrides").await? {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["example.com/cost-centre"], "42", "{object}");
        assert_eq!(labels["app.kubernetes.io/part-of"], "mcp-mqtt", "{object}");
    }
    Ok(())
}

#[tokio::test]
async fn names_and_namespace_can_be_overridden() -> Result<()> {
    let objects = with("overrides").await?;
    let deployment = find(&objects, "Deployment", "the-bridge")?;
    assert_eq!(deployment["metadata"]["namespace"], "elsewhere");
    assert_eq!(deployment["metadata"]["labels"]["app.kubernetes.io/name"], "bridge");
    let broker = find(&objects, "Service", "the-bridge-mosquitto")?;
    assert_eq!(broker["spec"]["ports"][0]["port"], 11883);
    assert_eq!(
        operator_env(&objects, "the-bridge")?["MCP_MQTT_DEFAULT_BROKER_URL"],
        "mqtt://the-bridge-mosquitto.elsewhere.svc:11883"
    );
    Ok(())
}

#[tokio::test]
async fn the_name_says_nothing_twice_and_fits() -> Result<()> {
    let long = "a".repeat(53);
    for (release, name) in [
        ("mcp-mqtt", OPERATOR),
        ("mcp-mqtt-operator", OPERATOR),
        ("tools", "tools-mcp-mqtt-operator"),
        (long.as_str(), &long[..52]),
    ] {
        let objects =
            template_as(release, &chart(), &["--set", "mosquitto.enabled=true,replicaCount=2"]).await?;
        find(&objects, "Deployment", name)?;
        assert!(
            objects
                .iter()
                .all(|object| object["metadata"]["name"].as_str().is_some_and(|name| name.len() <= 63))
        );
    }
    Ok(())
}

#[tokio::test]
async fn values_that_mean_nothing_are_refused_by_name() -> Result<()> {
    for (set, message) in [
        ("replicacount=2", "'replicacount' not allowed"),
        ("broker.uri=mqtt://a", "'uri' not allowed"),
        ("mosquitto.service.prot=1", "'prot' not allowed"),
        ("resources.limit.memory=1Mi", "'limit' not allowed"),
        ("broker.url=http://a", "at '/broker/url'"),
        ("broker.url=broker:1883", "at '/broker/url'"),
        ("clusterName=Prod/1", "at '/clusterName'"),
        ("clusterName=", "at '/clusterName'"),
        ("log.format=xml", "at '/log/format': value must be one of 'json', 'text'"),
        ("replicaCount=two", "at '/replicaCount': got string, want integer"),
        ("replicaCount=-1", "at '/replicaCount'"),
        ("crds.enabled=maybe", "at '/crds/enabled': got string, want boolean"),
        ("image.digest=sha256:abc", "at '/image/digest'"),
        ("image.pullPolicy=Sometimes", "at '/image/pullPolicy'"),
        ("watchNamespaces=tools", "at '/watchNamespaces': got string, want array"),
        ("watchNamespaces={a,a}", "at '/watchNamespaces'"),
        ("concurrency=0", "at '/concurrency'"),
        ("statusInterval=soon", "at '/statusInterval'"),
        (
            "broker.serviceAccountToken.expirationSeconds=1",
            "at '/broker/serviceAccountToken/expirationSeconds'",
        ),
    ] {
        refused(&["--set", set], message).await?;
    }
    Ok(())
}

#[tokio::test]
async fn values_that_contradict_each_other_are_refused_with_what_to_do() -> Result<()> {
    for (set, message) in [
        ("mosquitto.enabled=true,broker.url=mqtt://a", "unset one of them"),
        ("mosquitto.enabled=true,broker.secret=a", "unset broker.secret"),
        ("broker.secret=a", "credentials for broker.url: set that too"),
        ("broker.serviceAccountToken.audience=a", "credentials for broker.url: set that too"),
        (
            "broker.url=mqtt://a,broker.serviceAccountToken.username=a",
            "set broker.serviceAccountToken.audience too",
        ),
        ("broker.url=mqtt://me:hunter2@a", "put them into a Secret and name that in broker.secret"),
        ("replicaCount=2,leaderElection.enabled=false", "leave leader election on, or run one"),
        (
            "podDisruptionBudget.minAvailable=1,podDisruptionBudget.maxUnavailable=1",
            "exclude each other: set one",
        ),
        ("serviceAccount.create=false", "serviceAccount.name is needed"),
        ("rbac.create=false", "give serviceAccount.name"),
        (r"podLabels.app\.kubernetes\.io/name=x", "the Deployment selects its pods by them"),
    ] {
        let stderr = refused(&["--set", set], message).await?;
        assert!(!stderr.contains("hunter2"), "a password is quoted: {stderr}");
    }
    Ok(())
}

async fn refused(arguments: &[&str], message: &str) -> Result<String> {
    let directory = chart().to_string_lossy().into_owned();
    let mut all = vec!["template", "mcp-mqtt", &directory];
    all.extend(arguments);
    let answer = helm(&all).await?;
    assert!(!answer.success, "{arguments:?} was taken");
    assert!(answer.stderr.contains(message), "{arguments:?}: {}", answer.stderr);
    Ok(answer.stderr)
}

#[tokio::test]
async fn the_operator_understands_every_variable_and_argument_that_the_chart_gives_it() -> Result<()> {
    use clap::{CommandFactory, Parser};
    use mcp_mqtt_operator::cli::{Cli, Command};

    let command = Cli::command();
    for file in values_files()? {
        let objects = template(&["--values", &file.to_string_lossy()]).await?;
        for (pod, spec) in pods(&objects).into_iter().filter(|(pod, _)| !pod.contains("mosquitto")) {
            let container = &spec["containers"][0];
            let mut line = vec![OPERATOR.to_owned()];
            line.extend(strings(&container["args"]));
            let subcommand =
                command.find_subcommand(&line[1]).with_context(|| format!("no subcommand {}", line[1]))?;
            for variable in container["env"].as_array().into_iter().flatten() {
                let name = variable["name"].as_str().context("env name")?;
                if name == "RUST_BACKTRACE" {
                    continue;
                }
                let known = subcommand
                    .get_arguments()
                    .find(|argument| argument.get_env().is_some_and(|env| env == name));
                let flag = known
                    .and_then(clap::Arg::get_long)
                    .with_context(|| format!("{pod} in {}: no {name}", file.display()))?;
                // An argument given twice is an error here; in a pod, the argument wins over the variable.
                if line.iter().any(|argument| argument.starts_with(&format!("--{flag}="))) {
                    continue;
                }
                let from_the_pod = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    Some("status.podIP") => "192.0.2.7",
                    _ => "from-the-pod",
                };
                line.push(format!("--{flag}={}", variable["value"].as_str().unwrap_or(from_the_pod)));
            }
            let cli = Cli::try_parse_from(&line)
                .with_context(|| format!("{pod} in {}: {line:?}", file.display()))?;
            assert_eq!(matches!(cli.command, Command::Run(_)), spec["restartPolicy"].is_null(), "{line:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_value_says_reaches_the_operator() -> Result<()> {
    let production = with("production").await?;
    let env = operator_env(&production, OPERATOR)?;
    for (name, value) in [
        ("MCP_MQTT_CLUSTER_NAME", "prod-1"),
        ("MCP_MQTT_DEFAULT_BROKER_URL", "mqtts://broker.example.com:8883"),
        ("MCP_MQTT_DEFAULT_BROKER_SECRET", "broker-credentials"),
        ("MCP_MQTT_SIDECAR_IMAGE", "registry.example.com/mcp/sidecar:1.2"),
        ("MCP_MQTT_SIDECAR_IMAGE_PULL_POLICY", "Always"),
        ("MCP_MQTT_IMAGE_PULL_SECRETS", "registry,mirror"),
        ("MCP_MQTT_LEADER_ELECTION", "true"),
        ("MCP_MQTT_LEASE_NAME", OPERATOR),
        ("MCP_MQTT_CONCURRENCY", "16"),
        ("MCP_MQTT_LOG", "info,mcp_mqtt_operator=debug"),
        ("MCP_MQTT_LOG_FORMAT", "text"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    let namespaced = with("namespaced").await?;
    let env = operator_env(&namespaced, OPERATOR)?;
    assert_eq!(env["MCP_MQTT_WATCH_NAMESPACES"], "tools,agents");
    assert_eq!(env["MCP_MQTT_DEFAULT_BROKER_TOKEN_AUDIENCE"], "mqtt");
    assert_eq!(env["MCP_MQTT_DEFAULT_BROKER_TOKEN_EXPIRATION_SECONDS"], "900");
    let minimal = with("minimal").await?;
    let env = operator_env(&minimal, OPERATOR)?;
    assert_eq!(env["MCP_MQTT_LEADER_ELECTION"], "false");
    assert!(env.get("MCP_MQTT_DEFAULT_BROKER_URL").is_none(), "no broker is no variable");
    assert_eq!(find(&minimal, "Deployment", OPERATOR)?["spec"]["strategy"]["type"], "Recreate");
    Ok(())
}

fn operator_env(objects: &[Value], name: &str) -> Result<Value> {
    let deployment = find(objects, "Deployment", name)?;
    let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().context("env")?;
    Ok(env
        .iter()
        .filter_map(|variable| Some((variable["name"].as_str()?.to_owned(), variable["value"].clone())))
        .collect())
}

#[tokio::test]
async fn every_pod_meets_the_restricted_pod_security_standard() -> Result<()> {
    for file in values_files()? {
        let objects = template(&["--values", &file.to_string_lossy()]).await?;
        for (pod, spec) in pods(&objects) {
            let what = format!("{pod} in {}", file.display());
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{what}");
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{what}");
            assert!(spec["hostNetwork"].is_null() && spec["hostPID"].is_null(), "{what}");
            for container in spec["containers"].as_array().context("containers")? {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false, "{what}");
                assert_eq!(security["readOnlyRootFilesystem"], true, "{what}");
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{what}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn scheduling_and_metadata_reach_the_pods() -> Result<()> {
    let objects = with("production").await?;
    let deployment = find(&objects, "Deployment", OPERATOR)?;
    let template = &deployment["spec"]["template"];
    let spec = &template["spec"];
    assert_eq!(deployment["metadata"]["annotations"]["example.com/owner"], "platform");
    assert_eq!(template["metadata"]["annotations"]["example.com/scrape"], "true");
    assert_eq!(template["metadata"]["labels"]["example.com/tier"], "control");
    assert_eq!(template["metadata"]["labels"]["team"], "agents");
    assert!(deployment["spec"]["selector"]["matchLabels"]["team"].is_null(), "a selector never changes");
    assert_eq!(spec["priorityClassName"], "system-cluster-critical");
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(spec["tolerations"][0]["operator"], "Exists");
    assert!(spec["affinity"]["podAntiAffinity"].is_object());
    let spread = &spec["topologySpreadConstraints"];
    for (own, key) in [(0, "topology.kubernetes.io/zone"), (1, "kubernetes.io/hostname")] {
        assert_eq!(spread[own]["topologyKey"], key);
        assert_eq!(spread[own]["labelSelector"]["matchLabels"]["app.kubernetes.io/component"], "operator");
    }
    assert_eq!(spread[2]["labelSelector"]["matchLabels"], json!({"example.com/tier": "control"}));
    let container = &spec["containers"][0];
    assert_eq!(container["image"].as_str().map(|image| image.contains("@sha256:0123")), Some(true));
    assert_eq!(container["resources"]["limits"]["cpu"], 1);
    assert_eq!(container["volumeMounts"][0]["name"], spec["volumes"][0]["name"]);
    let account = find(&objects, "ServiceAccount", OPERATOR)?;
    assert_eq!(account["metadata"]["annotations"]["example.com/identity"], "operator");
    assert_eq!(
        find(&objects, "PodMonitor", "mcp-mqtt-operator-gateways")?["metadata"]["namespace"],
        "monitoring"
    );
    let monitor = find(&objects, "PodMonitor", "mcp-mqtt-operator-gateways")?;
    let labels = mcp_mqtt_operator::names::labels("any");
    for (name, value) in monitor["spec"]["selector"]["matchLabels"].as_object().context("selector")? {
        assert_eq!(
            labels.get(name).map(String::as_str),
            value.as_str(),
            "the gateways' pods have no such {name}"
        );
    }
    assert_eq!(find(&objects, "ServiceMonitor", OPERATOR)?["metadata"]["labels"]["prometheus"], "main");
    Ok(())
}

#[tokio::test]
async fn a_disruption_budget_comes_with_the_second_replica() -> Result<()> {
    let budget =
        |objects: Vec<Value>| objects.into_iter().find(|object| object["kind"] == "PodDisruptionBudget");
    assert!(budget(template::<&str>(&[]).await?).is_none());
    let two = budget(template(&["--set", "replicaCount=2"]).await?).context("none with two")?;
    assert_eq!(two["spec"]["maxUnavailable"], 1);
    let production = budget(with("production").await?).context("none with three")?;
    assert_eq!(production["spec"]["minAvailable"], "50%");
    assert!(
        budget(template(&["--set", "replicaCount=2,podDisruptionBudget.enabled=false"]).await?).is_none()
    );
    Ok(())
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
