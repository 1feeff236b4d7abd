//! What the suite puts on the cluster around the releases, and what it looks for there.

use std::{collections::BTreeMap, fmt::Debug, future::Future, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PropagationPolicy},
};
use mcp_mqtt_operator::{crd::McpService, names};
use mcp_mqtt_tests::helm::{chart, helm, helm_ok};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Between two looks.
const POLL: Duration = Duration::from_millis(250);

/// The images that `cargo xtask images` puts on the cluster.
pub(crate) const DEV_IMAGES: &str = "image.tag=dev,image.pullPolicy=Never,sidecar.image.tag=dev,sidecar.image.pullPolicy=Never,\
    mosquitto.image.repository=mcp-mqtt-mosquitto,mosquitto.image.tag=dev,mosquitto.image.pullPolicy=Never";

/// The namespace, with the `restricted` Pod Security Standard enforced: whatever does not meet it gets no pod. One that
/// is about to go, from a run before, goes first.
pub(crate) async fn namespace(client: &Client, name: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    });
    let api: Api<Namespace> = Api::all(client.clone());
    until("the namespace is not terminating", Duration::from_mins(1), || async {
        let leaving = api.get_opt(name).await?.is_some_and(|one| one.metadata.deletion_timestamp.is_some());
        Ok(if leaving { Err("it is") } else { Ok(()) })
    })
    .await?;
    api.patch(name, &PatchParams::apply("chart-suite").force(), &Patch::Apply(&object)).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    until("the namespace has its default ServiceAccount", Duration::from_secs(30), || async {
        Ok(accounts.get_opt("default").await?.map(drop).ok_or("none"))
    })
    .await
}

/// Asks for the namespace's end; nothing waits for it.
pub(crate) async fn drop_namespace(client: &Client, name: &str) -> Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Uninstalls every release of the chart, and leaves its CRD.
pub(crate) async fn uninstall_all() -> Result<()> {
    let list: Value =
        serde_json::from_str(&helm_ok(&["list", "--all-namespaces", "--output", "json"]).await?)?;
    for release in list.as_array().into_iter().flatten() {
        let (name, namespace) = (release["name"].as_str(), release["namespace"].as_str());
        let (Some(name), Some(namespace)) = (name, namespace) else { bail!("helm list: {release}") };
        if release["chart"].as_str().is_some_and(|chart| chart.starts_with("mcp-mqtt-operator-")) {
            helm_ok(&["uninstall", name, "--namespace", namespace, "--wait"]).await?;
        }
    }
    Ok(())
}

/// `helm upgrade --install`, waiting until all of it is ready.
pub(crate) async fn upgrade(release: &str, namespace: &str, sets: &[&str]) -> Result<String> {
    let directory = chart().to_string_lossy().into_owned();
    let mut arguments = vec![
        "upgrade",
        "--install",
        release,
        &directory,
        "--namespace",
        namespace,
        "--wait",
        "--timeout",
        "3m",
    ];
    for set in [DEV_IMAGES].iter().chain(sets) {
        arguments.extend(["--set", set]);
    }
    helm_ok(&arguments).await
}

/// `helm test`, whose pod says where it could read `McpServices`.
pub(crate) async fn tested(release: &str, namespace: &str, scope: &str) -> Result<()> {
    let answer = helm(&["test", release, "--namespace", namespace, "--timeout", "2m"]).await?;
    // The pod's log comes on stderr.
    let said = format!("{}{}", answer.stdout, answer.stderr);
    ensure!(answer.success && said.contains(&format!("ok: McpServices in {scope} can be read")), "{said}");
    Ok(())
}

/// A real MCP server, in a manifest that meets the `restricted` standard and names no broker.
pub(crate) fn service(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "mcp-mqtt.io/v1alpha1", "kind": "McpService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "transport": {"stdio": {"command": ["mcp-server-time", "--local-timezone", "UTC"]}},
            "server": {
                "image": "mcp-servers:dev",
                "imagePullPolicy": "Never",
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            },
            "drain": {"timeoutSeconds": 1},
        },
    })
}

/// Applies an `McpService`.
pub(crate) async fn apply(client: &Client, service: &Value) -> Result<()> {
    let (namespace, name) = (&service["metadata"]["namespace"], &service["metadata"]["name"]);
    let (Some(namespace), Some(name)) = (namespace.as_str(), name.as_str()) else { bail!("{service}") };
    let api: Api<McpService> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply("chart-suite").force().validation_strict();
    api.patch(name, &params, &Patch::Apply(service)).await?;
    Ok(())
}

/// Deletes it and waits until nothing of it is left.
pub(crate) async fn delete(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let api: Api<McpService> = Api::namespaced(client.clone(), namespace);
    api.delete(
        name,
        &DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..Default::default() },
    )
    .await?;
    until("the McpService and its pods are gone", Duration::from_mins(1), || async {
        let gone = api.get_opt(name).await?.is_none() && pods(client, namespace, name).await?.is_empty();
        Ok(if gone { Ok(()) } else { Err("still there".to_owned()) })
    })
    .await
}

/// Waits until this many instances are ready, and gives the pods' UIDs by name.
pub(crate) async fn ready(
    client: &Client,
    namespace: &str,
    name: &str,
    replicas: i32,
) -> Result<BTreeMap<String, String>> {
    let api: Api<McpService> = Api::namespaced(client.clone(), namespace);
    until(&format!("McpService {namespace}/{name} is ready"), Duration::from_secs(90), || async {
        let service = api.get(name).await?;
        let status = service.status.clone().unwrap_or_default();
        let settled = status.observed_generation == service.metadata.generation;
        let ready = status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        Ok(if settled && ready && status.ready_replicas == replicas {
            Ok(())
        } else {
            Err(say(&status.conditions))
        })
    })
    .await?;
    pods(client, namespace, name).await
}

fn say(conditions: &[Condition]) -> String {
    let said =
        conditions.iter().map(|one| format!("{}={} {}: {}", one.type_, one.status, one.reason, one.message));
    said.collect::<Vec<_>>().join("; ")
}

/// The UIDs of the service's pods, by name.
pub(crate) async fn pods(client: &Client, namespace: &str, name: &str) -> Result<BTreeMap<String, String>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selector = format!("{}={}", names::SERVICE_LABEL, names::child(name));
    let list = api.list(&ListParams::default().labels(&selector)).await?;
    list.into_iter()
        .map(|pod| Ok((pod.metadata.name.context("name")?, pod.metadata.uid.context("uid")?)))
        .collect()
}

/// The generation of the service's Deployment: it counts the changes of its spec.
pub(crate) async fn generation(client: &Client, namespace: &str, name: &str) -> Result<i64> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    api.get(&names::child(name)).await?.metadata.generation.context("generation")
}

/// What the operator's pods have logged. A release that was just upgraded still has the pods of before: what is leaving
/// may be gone when it is its turn, and has no log then.
pub(crate) async fn operator_log(client: &Client, namespace: &str) -> Result<String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut text = String::new();
    for pod in api.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await? {
        let (leaving, name) = (pod.metadata.deletion_timestamp.is_some(), pod.metadata.name.context("name")?);
        match api.logs(&name, &LogParams::default()).await {
            Ok(log) => text += &log,
            Err(_) if leaving => {}
            Err(error) => return Err(error).with_context(|| format!("the log of {namespace}/{name}")),
        }
    }
    Ok(text)
}

/// Looks again and again until it is so; the inner error is what it still is, for the message.
pub(crate) async fn until<T, W, F, G>(what: &str, limit: Duration, look: F) -> Result<T>
where
    W: Debug,
    F: Fn() -> G,
    G: Future<Output = Result<std::result::Result<T, W>>>,
{
    let begin = Instant::now();
    loop {
        match look().await? {
            Ok(found) => return Ok(found),
            Err(last) if begin.elapsed() > limit => {
                bail!("not within {limit:?}: {what}; the last look: {last:?}")
            }
            Err(_) => sleep(POLL).await,
        }
    }
}
