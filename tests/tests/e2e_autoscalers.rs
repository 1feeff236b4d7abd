//! Scaling by what others measure: CPU by metrics-server, sessions through KEDA. One after the other, as each changes
//! what the whole cluster has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{Api, ResourceExt, api::ListParams};
use mcp_mqtt_operator::keda::scaled_object::ScaledObject;
use mcp_mqtt_tests::{
    autoscalers::Served,
    cluster,
    platform::{Deployed, PATIENCE, Platform, call, everything_over_stdio, text, with},
};
use mcp_mqtt_transport::client::{Client, Session};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// KEDA looks at what it scales every 30 s, unless it is told otherwise.
const KEDA_LOOKS: Duration = Duration::from_secs(32);

static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn until_instances(service: &Deployed, count: usize, said: impl Fn() -> String) -> Result<()> {
    let begun = Instant::now();
    loop {
        let pods = service.live_pods().await?;
        if pods.len() == count {
            return Ok(());
        }
        let more = || async { anyhow::Ok(format!("{:#}\n{}", autoscaler(service).await?, said())) };
        ensure!(begun.elapsed() < PATIENCE * 2, "not {count} instances, but {pods:?}; {}", more().await?);
        sleep(Duration::from_millis(500)).await;
    }
}

async fn autoscaler(service: &Deployed) -> Result<Value> {
    let autoscalers = Api::<HorizontalPodAutoscaler>::namespaced(service.kube(), &service.namespace);
    let all = autoscalers.list(&ListParams::default()).await?.items;
    ensure!(all.len() == 1, "one autoscaler was wanted: {all:?}");
    Ok(serde_json::to_value(&all[0])?)
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_own_autoscaler_goes_by_the_cpu_that_metrics_server_measures() -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().await;
    let platform = Platform::get().await?;
    let metrics_server = Served::metrics_server(&platform.kube).await?;
    let spec = json!({
        "server": { "resources": { "requests": { "cpu": "20m" } } },
        "autoscaling": {
            "maxReplicas": 2,
            "resources": [{ "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 200 } }],
        },
    });
    let service = platform.deploy("busy", with(everything_over_stdio(), spec)).await?;
    let client = platform.client().await?;
    let session = service.plain_session(&client).await?;
    let work = tokio::spawn({
        let session = session.clone();
        async move {
            // Calls one after the other: more than the sixty thousandths of a processor that are two times its requests.
            while call(&session, "echo", json!({ "message": "work" })).await.is_ok() {}
        }
    });
    until_instances(&service, 2, || metrics_server.log()).await?;
    let seen = autoscaler(&service).await?;
    ensure!(seen["spec"]["scaleTargetRef"]["kind"] == "McpService", "{seen:#}");
    ensure!(seen["status"]["currentMetrics"][0]["resource"]["name"] == "cpu", "{seen:#}");
    ensure!(!work.is_finished(), "the calls went on while it grew");
    work.abort();
    client.close(PATIENCE).await?;
    service.remove().await?;
    metrics_server.stop().await
}

async fn sessions(platform: &Platform, service: &Deployed, count: usize) -> Result<Vec<(Client, Session)>> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        let client = platform.client().await?;
        let session = service.plain_session(&client).await?;
        sessions.push((client, session));
    }
    Ok(sessions)
}

#[tokio::test(flavor = "multi_thread")]
async fn keda_scales_by_the_sessions_that_the_operator_tells_it() -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().await;
    let kube = cluster::client().await?;
    let keda = Served::keda(&kube).await?;
    let platform = Platform::with(&["autoscaling.metrics=keda"]).await?;
    let spec = json!({
        "autoscaling": {
            "maxReplicas": 3,
            "sessions": { "targetPerReplica": 2 },
            "behavior": { "scaleDown": { "stabilizationWindowSeconds": 0 } },
        },
    });
    let service = platform.deploy("elastic", with(everything_over_stdio(), spec)).await?;
    let mut open = sessions(&platform, &service, 5).await?;
    until_instances(&service, 3, || keda.log()).await?;
    service.registered(3).await?;

    let objects = Api::<ScaledObject>::namespaced(kube.clone(), &service.namespace);
    let object = objects.get(&service.name).await?;
    ensure!(object.owner_references()[0].kind == "McpService", "{object:?}");
    let seen = autoscaler(&service).await?;
    let name = seen["metadata"]["name"].as_str().context("a name")?;
    ensure!(name == format!("keda-hpa-{}", service.name), "it is KEDA's own: {name}");
    ensure!(seen["status"]["currentMetrics"][0]["external"]["current"].is_object(), "{seen:#}");

    // All but one leave, and that one's session goes on.
    let (last, alone) = open.pop().context("a session")?;
    for (client, session) in open {
        session.close();
        client.close(PATIENCE).await?;
    }
    until_instances(&service, 1, || keda.log()).await?;
    let answer = call(&alone, "echo", json!({ "message": "alone" })).await?;
    ensure!(text(&answer)? == "Echo: alone", "{answer}");
    last.close(PATIENCE).await?;

    // Whether there is any instance at all is the operator's to say: KEDA wakes none.
    let sleepy = json!({ "minReplicas": 0, "idleSeconds": 3, "wakeTimeoutSeconds": 110 });
    service.patch(json!({ "spec": { "autoscaling": sleepy } })).await?;
    service.asleep().await.with_context(|| keda.log())?;
    sleep(KEDA_LOOKS).await;
    service.asleep().await.with_context(|| keda.log())?;
    let client = platform.client().await?;
    let session = service.plain_session(&client).await?;
    let answer = call(&session, "echo", json!({ "message": "awake" })).await?;
    ensure!(text(&answer)? == "Echo: awake", "{answer}");
    client.close(PATIENCE).await?;
    service.asleep().await.with_context(|| keda.log())?;

    // Without spec.autoscaling KEDA has nothing to say any more.
    service.patch(json!({ "spec": { "autoscaling": null } })).await?;
    let begun = Instant::now();
    while objects.get_opt(&service.name).await?.is_some() {
        ensure!(begun.elapsed() < PATIENCE, "the ScaledObject stays");
        sleep(Duration::from_millis(200)).await;
    }
    service.remove().await?;
    keda.stop().await?;
    Platform::get().await.map(drop) // as the other suites want it
}
