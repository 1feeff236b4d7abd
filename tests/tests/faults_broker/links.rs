//! Links that end, that end in the middle of something, and that only seem to stand.

use anyhow::Result;
use mcp_mqtt_sidecar::status::GatewayStatus;
use mcp_mqtt_tests::{
    baseline::{Baseline, childless, descendants},
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open},
    proxy::{Manner, Proxy},
};
use mcp_mqtt_transport::{
    client::{Client, RequestError, SessionEnd},
    topic::ServerName,
};
use serde_json::json;
use tokio::{task::JoinHandle, time::timeout};

#[tokio::test]
async fn after_a_lost_broker_all_sessions_are_over_with_their_processes_and_it_registers_again() -> Result<()>
{
    let mut broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let shim = gateway.server_pid().expect("the shim runs");
    childless(shim).await?;
    let client = connect(&broker.url(), "c").await?;
    let before = Baseline::of(&gateway);
    let session = open(&client, &gateway.instance()).await?;
    call(&session, "echo", json!({"message": "x"})).await?;
    assert_eq!(descendants(shim).len(), 1, "a process for the session");
    broker.kill()?;
    let status = gateway.wait_for("readiness off", |status| !status.broker.ok).await?;
    assert!(status.backend.ok);
    gateway.wait_for("the end of the session", |status| status.sessions == 0).await?;
    childless(shim).await?;
    gateway.wait_for("the cause", |status| status.broker.reason == "BrokerUnreachable").await?;
    broker.restart().await?;
    gateway.wait_ready().await?;
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 1);
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="broker-lost"}"#).await?, 1);
    before.regained(&gateway).await?;
    let client = connect(&broker.url(), "c").await?;
    let instance = client.find(&ServerName::new(SERVER_NAME)?, PATIENCE).await?;
    let session = open(&client, &instance).await?;
    assert_eq!(call(&session, "echo", json!({"message": "back"})).await?, "back");
    Ok(())
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
    two.wait_ready().await?;
    assert!(two.metric("broker_reconnects_total").await? > 0, "each took the other's place");
    let fresh = Gateway::ready_at(&broker.url()).await?;
    Baseline::of(&fresh).regained(&two).await
}

/// A gateway behind a proxy, and a client that is not, with a call in flight that is never answered.
struct Stage {
    broker: Mosquitto,
    proxy: Proxy,
    gateway: Gateway,
    client: Client,
    waiting: JoinHandle<Result<String, RequestError>>,
    before: Baseline,
}

async fn stage(args: &[&str]) -> Result<Stage> {
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let mut options = Options::new(&proxy.url());
    for arg in args {
        options = options.arg(arg);
    }
    let gateway = options.start()?;
    gateway.wait_ready().await?;
    let before = Baseline::of(&gateway);
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let waiting = tokio::spawn(async move { call(&session, "silence", json!({})).await });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    Ok(Stage { broker, proxy, gateway, client, waiting, before })
}

/// The will has told the client; the gateway is back, and a new session works.
async fn recovered(stage: Stage) -> Result<()> {
    let Stage { gateway, client, waiting, before, broker: _broker, proxy: _proxy } = stage;
    let error = timeout(PATIENCE, waiting).await??.expect_err("its session is over");
    assert_eq!(error, RequestError::Ended(SessionEnd::Offline), "the will ends the wait");
    gateway.wait_metric("broker_reconnects_total", 1).await?;
    gateway.wait_ready().await?;
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="broker-lost"}"#).await?, 1);
    before.regained(&gateway).await?;
    let session = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "back"})).await?, "back");
    assert_eq!(gateway.status().await?.sessions, 1);
    Ok(())
}

#[tokio::test]
async fn a_connection_cut_in_the_middle_of_a_packet_ends_the_sessions_and_is_made_again() -> Result<()> {
    let stage = stage(&[]).await?;
    stage.proxy.behave(Manner { cuts_in: Some("cut here"), ..Manner::default() });
    let other = connect(&stage.broker.url(), "other").await?;
    let session = open(&other, &stage.gateway.instance()).await?;
    let long = "cut here ".repeat(1000);
    let error = call(&session, "echo", json!({"message": long})).await.expect_err("only half of it came");
    assert_eq!(error, RequestError::Ended(SessionEnd::Offline));
    stage.proxy.behave(Manner::default());
    let status = stage.gateway.status().await?;
    assert_ne!(status.broker.reason, "BrokerSettingsInvalid", "{status:?}");
    let Stage { gateway, client: _client, waiting, before, broker: _broker, proxy: _proxy } = stage;
    let error = timeout(PATIENCE, waiting).await??.expect_err("its session is over");
    assert_eq!(error, RequestError::Ended(SessionEnd::Offline));
    gateway.wait_metric("broker_reconnects_total", 1).await?;
    gateway.wait_ready().await?;
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="broker-lost"}"#).await?, 2);
    before.regained(&gateway).await
}

/// Nothing comes and nothing goes, and no socket says so. The gateway has to find out by its keep-alive.
#[tokio::test]
async fn a_half_open_connection_is_noticed_by_the_keep_alive_and_made_again() -> Result<()> {
    let stage = stage(&["--keep-alive=5s"]).await?;
    stage.proxy.freeze();
    let status = stage.gateway.wait_for("readiness off", |status| !status.broker.ok).await?;
    assert!(!status.broker.message.is_empty(), "{status:?}");
    stage.gateway.wait_for("the end of the session", |status| status.sessions == 0).await?;
    stage.proxy.thaw();
    recovered(stage).await
}

/// The presence that the broker took back when it stood still stands again afterwards, and so do the sessions.
#[tokio::test]
async fn after_a_broker_stood_still_for_longer_than_the_keep_alive_clients_are_told_and_come_back()
-> Result<()> {
    let stage = stage(&["--keep-alive=5s"]).await?;
    stage.broker.pause()?;
    let status = stage.gateway.wait_for("readiness off", |status| !status.broker.ok).await?;
    assert!(status.broker.message.contains("does not"), "{}", status.broker.message);
    stage.gateway.wait_for("the end of the session", |status| status.sessions == 0).await?;
    stage.broker.resume()?;
    recovered(stage).await
}

/// Any MQTT client that uses the gateway's id takes its connection, once: the gateway takes it back.
#[tokio::test]
async fn a_foreign_client_that_takes_the_id_over_costs_the_sessions_and_no_more() -> Result<()> {
    let stage = stage(&[]).await?;
    let id = stage.gateway.server_id();
    let thief = connect(&stage.broker.url(), id.as_str()).await?;
    timeout(PATIENCE, thief.closed()).await?; // it is taken back
    recovered(stage).await
}
