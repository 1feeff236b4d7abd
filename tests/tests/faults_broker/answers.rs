//! Brokers that say no: in CONNACK, SUBACK, PUBACK, for ever or for a while. A proxy says it in Mosquitto's place, who
//! never would.

use std::sync::Arc;

use anyhow::Result;
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, call, connect, open, open_with, reason},
    proxy::{Manner, Proxy, kind::PUBLISH},
};
use mcp_mqtt_transport::client::{RequestError, SessionEnd, Unhandled};
use serde_json::{Value, json};
use tokio::time::timeout;

const QUOTA: u8 = 0x97;
const NOT_AUTHORIZED: u8 = 0x87;

async fn stage(manner: Manner) -> Result<(Mosquitto, Proxy, Gateway)> {
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), manner).await?;
    let gateway = Options::new(&proxy.url()).start()?;
    Ok((broker, proxy, gateway))
}

/// What the broker is asked when a gateway starts is asked again after a lost connection: a refusal is named each time,
/// tried again, and costs nothing that stays.
async fn refused_at_the_start_and_later(refusal: Manner, reason: &str, named: &str) -> Result<()> {
    let (_broker, proxy, gateway) = stage(refusal.clone()).await?;
    let failures = format!("broker_connect_failures_total{{reason=\"{reason}\"}}");
    let status = gateway.wait_for(reason, |status| status.broker.reason == reason).await?;
    assert!(status.broker.message.contains(named), "{status:?}");
    assert!(gateway.metric(&failures).await? > 0);
    proxy.behave(Manner::default());
    gateway.wait_ready().await?;
    let (before, failed) = (Baseline::of(&gateway), gateway.metric(&failures).await?);
    proxy.behave(refusal);
    proxy.cut();
    gateway.wait_metric_above(&failures, failed).await?;
    assert_eq!(gateway.get("/readyz").await?.0, 503);
    proxy.behave(Manner::default());
    gateway.wait_ready().await?;
    before.regained(&gateway).await
}

#[tokio::test]
async fn a_connack_that_refuses_is_named_and_tried_again() -> Result<()> {
    for (code, reason, named) in [
        (QUOTA, "BrokerRefusedConnection", "quota exceeded"),
        (NOT_AUTHORIZED, "BrokerRefusedCredentials", "not authorized"),
        (0x89, "BrokerRefusedConnection", "server busy"),
    ] {
        let refusal = Manner { refuses: Some(code), ..Manner::default() };
        refused_at_the_start_and_later(refusal, reason, named).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_suback_that_refuses_the_control_topic_is_named_and_tried_again() -> Result<()> {
    for (code, reason) in [(QUOTA, "BrokerRefusedTopics"), (NOT_AUTHORIZED, "BrokerNotAuthorized")] {
        let refusal = Manner { refuses_subscription: Some(("$mcp-server/", code)), ..Manner::default() };
        refused_at_the_start_and_later(refusal, reason, "$mcp-server/").await?;
    }
    Ok(())
}

// tests/PROTOCOL.md, item 9: a reason code from 0x80 on answers -32603.
#[tokio::test]
async fn a_suback_that_refuses_a_sessions_topics_is_the_clients_error_and_leaves_nothing_behind() -> Result<()>
{
    let (broker, proxy, gateway) = stage(Manner::default()).await?;
    gateway.wait_ready().await?;
    let (client, other) = (connect(&broker.url(), "c").await?, connect(&broker.url(), "other").await?);
    let session = open(&other, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    for (n, code) in (1..).zip([QUOTA, NOT_AUTHORIZED, 0x80, 0x8F]) {
        let refusal = ("$mcp-client/presence/c", code);
        proxy.behave(Manner { refuses_subscription: Some(refusal), ..Manner::default() });
        let refused = open(&client, &gateway.instance()).await.expect_err("the session would be deaf");
        let refused = format!("{refused:#}");
        assert!(refused.contains("-32603") && refused.contains("subscription-refused"), "{refused}");
        gateway.wait_metric(r#"sessions_ended_total{reason="subscription-refused"}"#, n).await?;
        assert_eq!(call(&session, "echo", json!({"message": "unharmed"})).await?, "unharmed");
    }
    before.regained(&gateway).await?;
    proxy.behave(Manner::default());
    open(&client, &gateway.instance()).await?;
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    Ok(())
}

/// The answer is gone, but whoever waits for it does not wait: an error comes in its place.
#[tokio::test]
async fn an_answer_that_the_broker_refuses_is_an_error_to_who_asked_and_counted() -> Result<()> {
    let (broker, proxy, gateway) = stage(Manner::default()).await?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    for (n, code) in (1..).zip([QUOTA, NOT_AUTHORIZED, 0x99]) {
        proxy.behave(Manner { refuses_publish: Some(("unwanted", code)), ..Manner::default() });
        let error = call(&session, "echo", json!({"message": "unwanted"})).await.expect_err("refused");
        assert_eq!(reason(&error), Some("undelivered"), "{error}");
        gateway.wait_metric(r#"messages_dropped_total{reason="broker-refused"}"#, n).await?;
        assert_eq!(call(&session, "echo", json!({"message": "wanted"})).await?, "wanted");
    }
    assert_eq!(gateway.status().await?.sessions, 1, "the session goes on");
    before.regained(&gateway).await
}

#[tokio::test]
async fn a_request_of_the_server_that_the_broker_refuses_is_an_error_to_the_server() -> Result<()> {
    let (broker, proxy, gateway) = stage(Manner::default()).await?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open_with(&client, &gateway.instance(), Arc::new(Unhandled)).await?;
    let before = Baseline::of(&gateway);
    proxy.behave(Manner { refuses_publish: Some(("roots/list", QUOTA)), ..Manner::default() });
    let answer = call(&session, "ask", json!({"method": "roots/list", "params": {}})).await?;
    let answer: Value = serde_json::from_str(&answer)?;
    assert_eq!(answer["error"]["data"]["reason"], "undelivered", "{answer}");
    let failed = r#"requests_total{asker="server",method="roots/list",outcome="failed"}"#;
    assert_eq!(gateway.metric(failed).await?, 1);
    before.regained(&gateway).await
}

/// Not even an error gets through: the client cannot be told, so nothing may be kept for it. Its own time-out has to
/// end its wait; that its session is gone, it learns from its next request to the gateway.
#[tokio::test]
async fn a_client_to_which_nothing_can_be_delivered_has_no_session_any_more() -> Result<()> {
    let (broker, proxy, gateway) = stage(Manner::default()).await?;
    gateway.wait_ready().await?;
    let before = Baseline::of(&gateway);
    let client = connect(&broker.url(), "deaf").await?;
    let session = open(&client, &gateway.instance()).await?;
    proxy.behave(Manner { refuses_publish: Some(("$mcp-rpc/deaf/", NOT_AUTHORIZED)), ..Manner::default() });
    let waiting = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "echo", json!({"message": "x"})).await }
    });
    gateway.wait_metric(r#"sessions_ended_total{reason="undeliverable"}"#, 1).await?;
    // The answer, the error in its place, the goodbye.
    gateway.wait_metric(r#"messages_dropped_total{reason="broker-refused"}"#, 3).await?;
    before.regained(&gateway).await?;
    proxy.behave(Manner::default());
    open(&client, &gateway.instance()).await?;
    let ended = timeout(PATIENCE, waiting).await??.expect_err("it was never answered");
    assert_eq!(ended, RequestError::Ended(SessionEnd::Replaced));
    Ok(())
}

#[tokio::test]
async fn a_presence_that_the_broker_refuses_is_tried_again_until_it_stands() -> Result<()> {
    let refusal =
        Manner { refuses_publish: Some(("notifications/server/online", QUOTA)), ..Manner::default() };
    let (broker, proxy, gateway) = stage(Manner::default()).await?;
    gateway.wait_ready().await?;
    let before = Baseline::of(&gateway);
    proxy.behave(refusal);
    proxy.cut();
    let named = |status: &mcp_mqtt_sidecar::status::GatewayStatus| {
        status.broker.message.contains("presence") && status.broker.message.contains("quota")
    };
    let status = gateway.wait_for("the cause", named).await?;
    assert!(!status.ready(), "{status:?}");
    assert_eq!(gateway.get("/readyz").await?.0, 503);
    assert_eq!(gateway.metric("registered").await?, 0);
    proxy.behave(Manner::default());
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let instances = client.discover("#", PATIENCE).await?;
    assert_eq!(instances.len(), 1);
    assert_eq!(gateway.metric("registered").await?, 1);
    before.regained(&gateway).await
}

/// What fitted before the reconnect does not fit after it: an error, and not the end of this connection, too.
#[tokio::test]
async fn a_smaller_maximum_packet_size_after_a_reconnect_is_kept_to() -> Result<()> {
    let (broker, proxy, gateway) = stage(Manner::default()).await?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    assert_eq!(call(&session, "big", json!({"bytes": 50_000})).await?.len(), 50_000);
    proxy.behave(Manner { max_packet: Some(20_000), ..Manner::default() });
    proxy.cut();
    assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Offline);
    gateway.wait_metric("broker_reconnects_total", 1).await?;
    gateway.wait_ready().await?;
    let session = open(&client, &gateway.instance()).await?;
    let error = call(&session, "big", json!({"bytes": 50_000})).await.expect_err("it does not fit");
    assert_eq!(reason(&error), Some("message-too-large"), "{error}");
    call(&session, "flood", json!({"count": 3, "bytes": 50_000})).await?;
    gateway.wait_metric(r#"messages_dropped_total{reason="message-too-large"}"#, 3).await?;
    assert_eq!(call(&session, "big", json!({"bytes": 19_000})).await?.len(), 19_000);
    let largest = proxy.sent().iter().filter(|packet| packet[0] & 0xF0 == PUBLISH).map(Vec::len).max();
    assert!(largest > Some(50_000), "before the cut");
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 1);
    before.regained(&gateway).await
}
