//! What breaks, and what clients see of it: the server's process, its container, the broker.

use std::time::Duration;

use anyhow::Result;
use mcp_mqtt_sidecar::status::GatewayStatus;
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, children, connect, open, reason, until},
};
use mcp_mqtt_transport::{
    client::{RequestError, SessionEnd},
    topic::ServerName,
};
use serde_json::json;
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn a_server_that_crashes_answers_what_is_in_flight_with_an_error_and_ends_one_session_only()
-> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let (one, two) = (connect(&broker.url(), "one").await?, connect(&broker.url(), "two").await?);
    let (a, b) = (open(&one, &gateway.instance()).await?, open(&two, &gateway.instance()).await?);
    let waiting = call(&a, "silence", json!({}));
    let crash = async {
        sleep(Duration::from_millis(100)).await;
        call(&a, "crash", json!({"code": 3})).await
    };
    let (waiting, crash) = tokio::join!(waiting, crash);
    for answer in [waiting, crash] {
        let error = answer.expect_err("its process is gone");
        assert_eq!(reason(&error), Some("backend-ended"), "{error}");
    }
    assert_eq!(timeout(PATIENCE, a.wait_ended()).await?, SessionEnd::Disconnected);
    assert_eq!(call(&b, "echo", json!({"message": "unharmed"})).await?, "unharmed");
    assert!(gateway.status().await?.ready(), "one session's process is not the backend");
    let again = open(&one, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "back");
    Ok(())
}

#[tokio::test]
async fn while_the_servers_container_is_gone_nobody_finds_it_and_nobody_waits() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let mut watch = client.watch(SERVER_NAME).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    let session = open(&client, &gateway.instance()).await?;
    let waiting = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "silence", json!({})).await }
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    gateway.kill_server()?;
    let error = timeout(PATIENCE, waiting).await??.expect_err("its server is gone");
    assert_eq!(reason(&error), Some("backend-ended"), "an error, before the presence is cleared: {error}");
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
    let status = gateway.wait_for("readiness off", |status| !status.ready()).await?;
    assert!(!status.backend.ok, "{status:?}");
    assert_eq!((status.broker.reason.as_str(), status.sessions), ("WaitingForBackend", 0));
    gateway.start_server()?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    gateway.wait_ready().await?;
    let again = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "back");
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0, "the broker has nothing to do with it");
    Ok(())
}

#[tokio::test]
async fn after_a_lost_broker_all_sessions_are_over_with_their_processes_and_it_registers_again() -> Result<()>
{
    let mut broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    call(&session, "echo", json!({"message": "x"})).await?;
    let shim = gateway.server_pid().expect("the shim runs");
    assert_eq!(children(shim).len(), 1, "a process for the session");
    broker.kill()?;
    let status = gateway.wait_for("readiness off", |status| !status.broker.ok).await?;
    assert!(status.backend.ok);
    gateway.wait_for("the end of the session", |status| status.sessions == 0).await?;
    until("the process has ended with its session", || children(shim).is_empty()).await?;
    gateway.wait_for("the cause", |status| status.broker.reason == "BrokerUnreachable").await?;
    broker.restart().await?;
    gateway.wait_ready().await?;
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 1);
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="broker-lost"}"#).await?, 1);
    let client = connect(&broker.url(), "c").await?;
    let instance = client.find(&ServerName::new(SERVER_NAME)?, PATIENCE).await?;
    let session = open(&client, &instance).await?;
    assert_eq!(call(&session, "echo", json!({"message": "back"})).await?, "back");
    Ok(())
}

/// A broker that stands still: the link is dead though the socket is open.
#[tokio::test]
async fn a_broker_that_stands_still_is_noticed_by_its_keep_alive() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--keep-alive=5s").start()?;
    gateway.wait_ready().await?;
    broker.pause()?;
    let status = gateway.wait_for("readiness off", |status| !status.broker.ok).await?;
    assert!(status.broker.message.contains("does not"), "{}", status.broker.message);
    broker.resume()?;
    gateway.wait_ready().await
}

#[tokio::test]
async fn two_gateways_with_one_client_id_say_so() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let one = Options::new(&broker.url()).server_id("twin").start()?;
    let two = Options::new(&broker.url()).server_id("twin").start()?;
    let taken = |status: &GatewayStatus| {
        status.broker.reason == "BrokerSessionTakenOver" && status.broker.message.contains("twin")
    };
    let (a, b) = tokio::join!(one.wait_for("the cause", taken), two.wait_for("the cause", taken));
    assert!(a.is_ok() || b.is_ok(), "{a:?}\n{b:?}");
    drop(one);
    two.wait_ready().await
}

#[tokio::test]
async fn a_gateway_that_is_killed_leaves_no_presence_and_no_process() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let waiting = tokio::spawn(async move { call(&session, "silence", json!({})).await });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(gateway.pid())?).expect("not 0");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let error = timeout(PATIENCE, waiting).await??.expect_err("nobody is left to answer");
    assert_eq!(error, RequestError::Ended(SessionEnd::Offline), "the will ends the wait");
    let shim = gateway.server_pid().expect("the shim runs");
    until("the session's process ends", || children(shim).is_empty()).await
}
