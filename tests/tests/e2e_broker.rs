//! The broker in the cluster: its restart under load. Alone in its binary, because it is everybody's broker.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use mcp_mqtt_tests::{
    cluster::eventually,
    load::Load,
    platform::{NAMESPACE, PATIENCE, Platform, call, everything_over_http, text, with},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_broker_every_instance_registers_again() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("restart", with(everything_over_http(), json!({ "replicas": 2 }))).await?;
    let pods_before = service.live_pods().await?;
    let load = Load::start(&platform.broker, &service.server_name(), 8);
    load.all_answered().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sessions = load.sessions();

    let pods = Api::<Pod>::namespaced(platform.kube.clone(), NAMESPACE);
    let brokers = pods.list(&ListParams::default().labels("app.kubernetes.io/component=mosquitto")).await?;
    let broker = brokers.items.first().and_then(|pod| pod.metadata.name.clone()).context("no broker pod")?;
    pods.delete(&broker, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;

    // The old one goes on for a moment after it was deleted. But sessions end only with it: one more than before is one
    // on the new broker, which knows nothing, so that what stands in its registry then came after the restart.
    eventually(PATIENCE, async || (load.sessions() > sessions).then_some(()))
        .await
        .context("no client opens a session again")?;
    eventually(PATIENCE, async || service.registered(2).await.ok())
        .await
        .context("the instances do not come back")?;
    load.all_answered().await?;
    load.finish().await?;
    assert_eq!(service.live_pods().await?, pods_before, "a broker's restart is no reason to restart pods");
    service.status(|status| status["registered"] == 2 && status["ready"] == "2/2").await?;

    let client = platform.client().await?;
    let session = service.plain_session(&client).await?;
    assert_eq!(text(&call(&session, "echo", json!({ "message": "back" })).await?)?, "Echo: back");
    service.remove().await
}
