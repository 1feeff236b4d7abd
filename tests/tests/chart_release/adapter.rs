//! A cluster in which another adapter serves custom.metrics.k8s.io, before the chart comes.

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::apps::v1::Deployment,
    kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use mcp_mqtt_tests::{
    cluster,
    helm::{chart, helm},
};
use serde_json::{Value, json};

use crate::{
    ONE_AT_A_TIME,
    site::{DEV_IMAGES, namespace, uninstall_all, upgrade},
};

const RELEASE: &str = "mcp-mqtt";
const NAMESPACE: &str = "mcp-mqtt";
/// As prometheus-adapter's chart makes it.
const COMMON: &str = "v1beta1.custom.metrics.k8s.io";
/// In the version that we serve.
const OURS: &str = "v1beta2.custom.metrics.k8s.io";
/// Where the operator is told of its Service in front of that API.
const TOLD: &str = "MCP_MQTT_SESSION_METRICS_SERVICE";

/// Another one's.
fn foreign(name: &str) -> Result<APIService> {
    let (version, group) = name.split_once('.').context("a version and a group")?;
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": {
            "meta.helm.sh/release-name": "adapter", "meta.helm.sh/release-namespace": "monitoring",
        }},
        "spec": {
            "group": group, "version": version,
            "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": true,
            "service": {"name": "adapter", "namespace": "monitoring"},
        },
    }))?)
}

async fn spec(apis: &Api<APIService>, name: &str) -> Result<Option<APIServiceSpec>> {
    Ok(apis.get_opt(name).await?.and_then(|api| api.spec))
}

/// Whether the operator is to serve it.
async fn serves(client: &Client) -> Result<bool> {
    let operator = Api::<Deployment>::namespaced(client.clone(), NAMESPACE).get("mcp-mqtt-operator").await?;
    let operator: Value = serde_json::to_value(operator.spec)?;
    let env = operator["template"]["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
    Ok(env.iter().any(|variable| variable["name"] == TOLD))
}

#[tokio::test]
async fn where_another_adapter_serves_the_metrics_the_chart_leaves_it_alone_and_says_what_to_do() -> Result<()>
{
    let _guard = ONE_AT_A_TIME.lock().await;
    let client = cluster::client().await?;
    uninstall_all().await?;
    namespace(&client, NAMESPACE).await?;
    let apis: Api<APIService> = Api::all(client.clone());
    let theirs = apis.create(&PostParams::default(), &foreign(COMMON)?).await?.spec;

    let notes = upgrade(RELEASE, NAMESPACE, &["mosquitto.enabled=true"]).await?;
    for said in [
        "another adapter of this cluster serves custom.metrics.k8s.io",
        "kubectl get apiservices | grep custom.metrics.k8s.io",
        "autoscaled by CPU and memory (spec.autoscaling.resources)",
        "--reset-then-reuse-values \\\n  --set autoscaling.metrics=keda",
    ] {
        ensure!(notes.contains(said), "no {said:?} in the notes:\n{notes}");
    }
    ensure!(!serves(&client).await?, "the operator serves it, too");
    ensure!(spec(&apis, COMMON).await? == theirs, "the adapter's APIService is not as it was");
    ensure!(spec(&apis, OURS).await?.is_none(), "the autoscaler would ask us for the adapter's metrics");

    // Who insists is refused before anything changes, with the same advice.
    apis.delete(COMMON, &DeleteParams::default()).await?;
    let theirs = apis.create(&PostParams::default(), &foreign(OURS)?).await?.spec;
    let (directory, asked) =
        (chart().to_string_lossy().into_owned(), "autoscaling.sessionMetrics.enabled=true");
    let values = ["--set", DEV_IMAGES, "--set", "mosquitto.enabled=true", "--set", asked];
    let insists = ["upgrade", "--install", RELEASE, &directory, "--namespace", NAMESPACE];
    let answer = helm(&[&insists[..], &values[..]].concat()).await?;
    let said = &answer.stderr;
    ensure!(!answer.success && said.contains("a cluster has one"), "{said}");
    ensure!(
        said.contains("set autoscaling.metrics=keda") && said.contains("uninstall the other adapter"),
        "{said}"
    );
    ensure!(spec(&apis, OURS).await? == theirs, "the adapter's APIService is not as it was");

    // With the adapter gone, the next upgrade takes its place; and what is the release's own is no other adapter's.
    apis.delete(OURS, &DeleteParams::default()).await?;
    for _ in 0..2 {
        let notes = upgrade(RELEASE, NAMESPACE, &["mosquitto.enabled=true"]).await?;
        ensure!(!notes.contains("another adapter"), "{notes}");
        ensure!(serves(&client).await?, "the operator does not serve it");
    }
    let ours = spec(&apis, OURS).await?.and_then(|spec| spec.service).and_then(|service| service.namespace);
    ensure!(ours.as_deref() == Some(NAMESPACE), "{ours:?}");
    uninstall_all().await
}
