//! From the chart's previous version to this one, with clients at work: the pods get another image of the gateway, and
//! no request is lost. The images of both charts are of this checkout (tests/charts/README.md).

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use mcp_mqtt_operator::crd::McpService;
use mcp_mqtt_tests::{
    binaries::workspace,
    cluster,
    helm::helm_ok,
    load::Load,
    platform::{self, PATIENCE, call, everything_over_stdio, text, with},
};
use mcp_mqtt_transport::{client::Unhandled, topic::ServerName};
use serde_json::{json, value::RawValue};
use tokio::time::sleep;
use url::Url;

use crate::{
    ONE_AT_A_TIME,
    site::{
        DEV_IMAGES, apply, delete, drop_namespace, namespace, operator_log, pods, ready, service, tested,
        uninstall_all, until, upgrade,
    },
};

const RELEASE: &str = "mcp-mqtt";
const NAMESPACE: &str = "mcp-mqtt";
const TOOLS: &str = "chart-previous";
/// The broker is of another release: it is not what is upgraded.
const BROKER: &str = "chart-broker";
const CLIENTS: usize = 8;
/// How long the clients work before and after.
const AROUND: Duration = Duration::from_secs(3);

fn previous() -> Result<PathBuf> {
    let directory = workspace().join("tests/charts");
    let mut packages = std::fs::read_dir(&directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "tgz"));
    let package = packages.next().with_context(|| format!("no chart in {}", directory.display()))?;
    ensure!(packages.next().is_none(), "more than one chart in {}", directory.display());
    Ok(package)
}

async fn broker(client: &Client) -> Result<(String, Url)> {
    upgrade(
        "broker",
        BROKER,
        &[
            "mosquitto.enabled=true,replicaCount=0,crds.enabled=false,autoscaling.sessionMetrics.enabled=false",
            "rbac.create=false,rbac.aggregateClusterRoles=false,serviceAccount.name=none",
        ],
    )
    .await?;
    let name = "broker-mcp-mqtt-mosquitto";
    let service = Api::<Service>::namespaced(client.clone(), BROKER).get(name).await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("the broker's address")?;
    Ok((format!("mqtt://{name}.{BROKER}.svc:1883"), Url::parse(&format!("mqtt://{address}:1883"))?))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_the_previous_chart_drains_sessions_and_loses_nothing() -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().await;
    let client = cluster::client().await?;
    uninstall_all().await?;
    for name in [NAMESPACE, TOOLS, BROKER] {
        namespace(&client, name).await?;
    }
    let (inside, outside) = broker(&client).await?;
    let broker = format!("broker.url={inside}");

    // The same image under its long name: another one to the operator, and to the pods.
    let package = previous()?.to_string_lossy().into_owned();
    let old =
        ["upgrade", "--install", RELEASE, &package, "--namespace", NAMESPACE, "--wait", "--timeout", "3m"];
    let sets = [DEV_IMAGES, "sidecar.image.repository=docker.io/library/mcp-mqtt-sidecar", &broker];
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    helm_ok(&old.into_iter().chain(sets).collect::<Vec<_>>()).await?;
    let mut everything = service(TOOLS, "everything");
    everything["spec"] = with(everything["spec"].clone(), everything_over_stdio());
    everything["spec"]["replicas"] = json!(2);
    // What is under way can finish, however slowly the new pods come.
    everything["spec"]["drain"] = json!({ "timeoutSeconds": 60 });
    apply(&client, &everything).await?;
    let before = ready(&client, TOOLS, "everything", 2).await?;

    // At work throughout: eight clients, and one that has a session and is silent until a long call.
    let name = ServerName::new(&format!("{TOOLS}/everything"))?;
    let load = Load::start(&outside, &name, CLIENTS);
    let quiet = platform::connect(&outside).await?;
    let instance = quiet.find(&name, PATIENCE).await?;
    let none = RawValue::from_string("{}".to_owned())?;
    let session = quiet.open_session(&instance, &none, std::sync::Arc::new(Unhandled), PATIENCE).await?;
    load.all_answered().await?;
    sleep(AROUND).await;
    let slow_call = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "trigger-long-running-operation", json!({"duration": 6, "steps": 2})).await }
    });

    upgrade(RELEASE, NAMESPACE, &[&broker]).await?;
    until("all instances are new", Duration::from_mins(2), || async {
        let now = pods(&client, TOOLS, "everything").await?;
        let old = now.values().filter(|uid| before.values().any(|old| old == *uid)).count();
        Ok(if old == 0 && now.len() == 2 { Ok(()) } else { Err(now) })
    })
    .await?;
    ready(&client, TOOLS, "everything", 2).await?;
    let answer = slow_call.await?.context("a call that was under way when its instance had to go")?;
    ensure!(text(&answer)?.contains("completed"), "{answer}");
    session.wait_ended().await;
    load.all_answered().await?;
    sleep(AROUND).await;
    let account = load.finish().await?;
    ensure!(account.sessions > CLIENTS as u64, "no client changed instances: {account:?}");
    ensure!(account.cut == 0, "{} calls were cut off: {:?}", account.cut, account.reasons);
    quiet.close(PATIENCE).await?;

    // It is this version that works: it takes what the previous one did not know.
    tested(RELEASE, NAMESPACE, "all namespaces").await?;
    everything["spec"]["autoscaling"] =
        json!({"maxReplicas": 2, "sessions": {"targetPerReplica": 50, "includeRefused": true}});
    apply(&client, &everything).await?;
    let api: Api<McpService> = Api::namespaced(client.clone(), TOOLS);
    until("the new field is accepted", Duration::from_secs(30), || async {
        let found = api.get("everything").await?;
        let status = found.status.clone().unwrap_or_default();
        Ok(if status.observed_generation == found.metadata.generation { Ok(()) } else { Err(status) })
    })
    .await?;
    let log = operator_log(&client, NAMESPACE).await?;
    ensure!(!log.contains("forbidden"), "the operator lacks a permission:\n{log}");

    delete(&client, TOOLS, "everything").await?;
    uninstall_all().await?;
    for name in [TOOLS, BROKER] {
        drop_namespace(&client, name).await?;
    }
    Ok(())
}
