//! Probes that fail: the kubelet runs a container's preStop before it restarts it, and so drains the gateway of a pod
//! that stays.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use mcp_mqtt_tests::{
    cluster::eventually,
    node,
    platform::{PATIENCE, Platform, call, everything_over_http, everything_over_stdio, text, with},
};
use serde_json::{Value, json};

use crate::faults::container_status;

/// While this file exists the server is unwell. It does not outlive its container.
const UNWELL: &str = "/tmp/unwell";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_over_stdio_is_registered_again_after_its_liveness_probe_has_failed() -> Result<()> {
    fails_once("livenessstdio", everything_over_stdio()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_over_http_is_registered_again_after_its_liveness_probe_has_failed() -> Result<()> {
    fails_once("livenesshttp", everything_over_http()).await
}

async fn fails_once(name: &str, spec: Value) -> Result<()> {
    let platform = Platform::get().await?;
    let probe = json!({
        "exec": { "command": ["/bin/sh", "-c", format!("test ! -e {UNWELL}")] },
        "periodSeconds": 1,
        "failureThreshold": 1,
        "timeoutSeconds": 10,
    });
    let service = platform.deploy(name, with(spec, json!({ "server": { "livenessProbe": probe } }))).await?;
    let pod = service.live_pods().await?.into_iter().next().context("no pod")?;
    // On a busy machine the probe may have failed by itself.
    let running = async || container_status(&service, &pod, "server").await.ok().filter(|now| now.ready);
    let before = eventually(PATIENCE, running).await.context("the server does not run")?;
    let process = node::first_process(before.container_id.as_deref().context("the container has no id")?)?;
    let root = PathBuf::from(format!("/proc/{}/root", process.as_raw_nonzero()));
    fs::write(root.join(UNWELL.trim_start_matches('/')), "")?;
    let restarted = async {
        while container_status(&service, &pod, "server").await?.restart_count == before.restart_count {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, restarted).await.context("the server was not restarted")??;
    service.registered(1).await?;
    assert_eq!(service.live_pods().await?, std::slice::from_ref(&pod), "the pod stays");
    assert_eq!(
        container_status(&service, &pod, "gateway").await?.restart_count,
        0,
        "and so does its gateway"
    );
    let client = platform.client().await?;
    let session = service.plain_session(&client).await?;
    assert_eq!(text(&call(&session, "echo", json!({ "message": "back" })).await?)?, "Echo: back");
    client.close(PATIENCE).await?;
    service.remove().await
}
