//! What a session may use, what is said of it in the log, and how it ends when nobody uses it.

use std::time::Duration;

use anyhow::{Context, Result};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Options, PATIENCE, call, connect, open, reason, until},
    servers,
};
use mcp_mqtt_transport::client::SessionEnd;
use serde_json::{Value, json};
use tokio::time::timeout;

#[tokio::test]
async fn an_idle_session_is_ended_but_not_one_whose_client_waits() -> Result<()> {
    const IDLE: Duration = Duration::from_secs(2);
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--idle-timeout=2s").start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let long = u64::try_from((IDLE * 2).as_millis())?;
    assert_eq!(
        call(&session, "sleep", json!({"ms": long})).await?,
        "slept",
        "a client in a long call is not idle"
    );
    assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected, "it is told");
    gateway.wait_metric(r#"sessions_ended_total{reason="idle"}"#, 1).await?;
    let again = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "back");
    Ok(())
}

#[tokio::test]
async fn a_request_beyond_those_in_flight_is_refused_and_counted() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--max-in-flight=2").start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let session = session.clone();
            tokio::spawn(async move { call(&session, "silence", json!({})).await })
        })
        .collect();
    gateway.wait_for("two in flight", |status| status.in_flight == 2).await?;
    let refused = call(&session, "echo", json!({"message": "x"})).await.expect_err("two are all");
    assert_eq!(reason(&refused), Some("too-many-in-flight"), "{refused}");
    assert_eq!(gateway.metric(r#"requests_refused_total{reason="too-many-in-flight"}"#).await?, 1);
    for call in waiting {
        call.abort(); // which cancels it
    }
    gateway.wait_for("none in flight", |status| status.in_flight == 0).await?;
    Ok(())
}

/// The server is made with the official SDK.
#[tokio::test]
async fn a_call_that_is_cancelled_stops_in_a_real_server() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let dir = tempfile::tempdir()?;
    let journal = dir.path().join("journal");
    let gateway =
        Options::new(&broker.url()).alone(&servers::cancellable_command(&journal).await?).start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let waiting = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "wait", json!({})).await }
    });
    let said = |text: &str| std::fs::read_to_string(&journal).unwrap_or_default().contains(text);
    until("the tool has begun", || said("started")).await?;
    assert!(!said("stopped"));
    waiting.abort();
    until("the tool has stopped", || said("stopped: the caller does not wait any more")).await?;
    session.request::<Value>("ping", None, PATIENCE).await?;
    gateway.wait_for("nothing in flight", |status| status.in_flight == 0).await?;
    Ok(())
}

#[tokio::test]
async fn a_session_has_two_lines_in_the_log_and_a_thousand_calls_have_none() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--log=info").start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "talkative").await?;
    let session = open(&client, &gateway.instance()).await?;
    until("the line of its begin", || gateway.log().contains("session began")).await?;
    let before = gateway.log().lines().count();
    for n in 0..1000 {
        call(&session, "echo", json!({"message": n.to_string()})).await?;
    }
    call(&session, "no-such-tool", json!({})).await.expect_err("there is none");
    assert_eq!(gateway.log().lines().count(), before, "{}", gateway.log());
    session.close();
    until("the line of its end", || gateway.log().contains("session ended")).await?;
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("session ended")).context("just seen")?;
    for part in [
        "client=talkative",
        "reason=\"client-left\"",
        "seconds=",
        "requests=1002",
        "errors=1 ",
        "sent_bytes=",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    Ok(())
}
