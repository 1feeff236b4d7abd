//! A service at rest: Ready, its gateway asked again and again, a client with a session that says nothing. Nothing is
//! written.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use mcp_mqtt_tests::{
    audit::{Audit, Request},
    platform::{PATIENCE, Platform, call, everything_over_http, text},
};
use serde_json::json;
use tokio::time::sleep;

use crate::OPERATOR;

/// How the operator calls itself towards the API server.
const USER_AGENT: &str = "mcp-mqtt-operator/";
/// Far above what the last word on a service that has become Ready waits for.
const SETTLES: Duration = Duration::from_secs(10);
const AT_REST: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn of_a_ready_service_with_an_idle_session_nothing_is_written_for_a_minute() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("quiet", everything_over_http()).await?;
    let client = platform.client().await?;
    let session = service.plain_session(&client).await?;
    // One that starts has something to find out.
    let _lives = OPERATOR.read().await;
    service.status(|status| status["sessions"] == 1 && status["ready"] == "1/1").await?;
    sleep(SETTLES).await;

    let before = service.api().get(&service.name).await?.resource_version();
    let mut audit = Audit::from_now()?;
    sleep(AT_REST).await;
    let ours = |request: &Request| {
        request.is_write()
            && request.namespace == service.namespace
            && request.user_agent.starts_with(USER_AGENT)
    };
    let written: Vec<Request> = audit.read(&service.namespace)?.into_iter().filter(ours).collect();
    ensure!(written.is_empty(), "written at rest: {written:#?}");
    let after = service.api().get(&service.name).await?.resource_version();
    ensure!(before == after, "somebody wrote the McpService: {before:?} and {after:?}");

    // It was at rest, and not gone.
    let answer = call(&session, "echo", json!({ "message": "still here" })).await?;
    ensure!(text(&answer)? == "Echo: still here", "{answer}");
    service.status(|status| status["sessions"] == 1).await.context("the session was counted throughout")?;
    client.close(PATIENCE).await?;
    service.remove().await
}
