//! Messages at the limit, over it, and nested without end.

use std::time::Duration;

use anyhow::Result;
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, call, connect, open, reason},
    proxy::{Manner, Proxy},
    raw::{Raw, echo},
};
use serde_json::json;
use tokio::time::timeout;

const LIMIT: usize = 100_000;

async fn stage() -> Result<(Mosquitto, Gateway, Raw)> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg(&format!("--max-message-bytes={LIMIT}")).start()?;
    gateway.wait_ready().await?;
    let mut raw = Raw::connect(&broker.url(), "c", &gateway).await?;
    raw.open(0).await?;
    Ok((broker, gateway, raw))
}

/// A call of exactly so many bytes.
fn of_size(id: u64, size: usize) -> String {
    let empty = echo(&json!(id), "").len();
    echo(&json!(id), &"x".repeat(size - empty))
}

#[tokio::test]
async fn a_request_at_the_limit_passes_and_one_byte_more_is_an_error() -> Result<()> {
    let (_broker, gateway, mut raw) = stage().await?;
    let before = Baseline::of(&gateway);
    // Its answer is no larger than itself.
    raw.rpc(of_size(1, LIMIT)).await?;
    let answer = raw.answer().await?;
    assert!(answer["result"]["content"][0]["text"].as_str().is_some_and(|text| text.len() > LIMIT / 2));
    for (id, size) in [(2, LIMIT + 1), (3, 2 * LIMIT), (4, 4 * LIMIT)] {
        raw.rpc(of_size(id, size)).await?;
        let answer = raw.answer().await?;
        assert_eq!(
            (&answer["id"], &answer["error"]["data"]["reason"]),
            (&json!(id), &json!("message-too-large"))
        );
        assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains(&size.to_string())));
    }
    raw.echo(5).await?;
    assert_eq!(gateway.status().await?.sessions, 1);
    assert_eq!(gateway.metric(r#"requests_refused_total{reason="message-too-large"}"#).await?, 3);
    before.regained(&gateway).await
}

/// MQTT 5, 3.1.2.11.4: a broker must not send a packet over the receiver's Maximum Packet Size; it drops it and goes
/// on as if it had been delivered. The gateway announces four times its message limit, so that what is a little too
/// large is answered; what is larger still it never sees, since somewhere its memory has to be bounded. The client's
/// own time-out ends the wait (the transport's text asks for one), and nothing else is harmed.
#[tokio::test]
async fn a_request_over_what_the_gateway_announces_is_dropped_by_the_broker_and_harms_nobody() -> Result<()> {
    let (broker, gateway, mut raw) = stage().await?;
    let before = Baseline::of(&gateway);
    for id in 1..=5 {
        raw.rpc(of_size(id, 8 * LIMIT)).await?;
    }
    raw.echo(6).await?;
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    let client = connect(&broker.url(), "other").await?;
    let session = open(&client, &gateway.instance()).await?;
    let error = timeout(Duration::from_secs(20), call(&session, "big", json!({"bytes": 2 * LIMIT}))).await?;
    let error = error.expect_err("the way back has the same limit");
    assert!(matches!(reason(&error), Some("answer-too-large" | "message-too-large")), "{error}");
    session.close();
    gateway.wait_for("one session", |status| status.sessions == 1).await?;
    before.regained(&gateway).await
}

#[tokio::test]
async fn json_nested_without_end_is_an_error_to_who_asked_and_costs_no_stack() -> Result<()> {
    let (_broker, gateway, mut raw) = stage().await?;
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let request = |id: u64, depth: usize| {
        let params =
            format!(r#"{{"name":"echo","arguments":{{"message":"deep","more":{}}}}}"#, nested(depth));
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{params}}}"#)
    };
    let before = Baseline::of(&gateway);
    // The stub reads with serde_json, which takes 128 levels.
    raw.rpc(request(1, 120)).await?;
    assert_eq!(raw.answer().await?["result"]["content"][0]["text"], "deep");
    for (id, depth) in [(2, 200), (3, 20_000), (4, 49_000), (5, 150_000)] {
        raw.rpc(request(id, depth)).await?;
        let answer = raw.answer().await?;
        assert_eq!(
            (&answer["id"], &answer["error"]["data"]["reason"]),
            (&json!(id), &json!("nested-too-deep"))
        );
    }
    raw.rpc(nested(190_000)).await?; // a batch of one, of one, of one …
    gateway.wait_metric(r#"messages_dropped_total{reason="batch"}"#, 1).await?;
    raw.rpc(format!("{}1{}", r#"{"a":"#.repeat(30_000), "}".repeat(30_000))).await?;
    gateway.wait_metric(r#"messages_dropped_total{reason="nested-too-deep"}"#, 5).await?;
    raw.echo(6).await?;
    assert_eq!(gateway.metric(r#"requests_refused_total{reason="nested-too-deep"}"#).await?, 4);
    before.regained(&gateway).await
}

/// Behind a broker that forwards strings as they are. A retained message comes again on every connection.
#[tokio::test]
async fn a_user_property_that_is_not_utf_8_costs_its_own_message_and_no_session() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner { garbles: Some("garbled"), ..Manner::default() }).await?;
    let gateway = Gateway::ready_at(&proxy.url()).await?;
    let other = connect(&broker.url(), "other").await?;
    let session = open(&other, &gateway.instance()).await?;
    let mut raw = Raw::connect(&broker.url(), "raw", &gateway).await?;
    raw.open(1).await?;
    let publisher = &raw.connection.publisher;
    let counted = r#"messages_dropped_total{reason="malformed-packet"}"#;
    for (n, topic) in (1..).zip([&raw.rpc, &raw.control, &raw.control]) {
        let mut publication = raw.publication(topic, Some("raw"), echo(&json!(2), "x"));
        publication.user_properties.push(("garbled".to_owned(), String::new()));
        publication.retain = n == 3;
        publisher.publish_confirmed(publication, PATIENCE).await?;
        gateway.wait_metric(counted, n).await?;
    }
    raw.echo(3).await?;
    assert_eq!(call(&session, "echo", json!({"message": "x"})).await?, "x");
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);

    proxy.cut();
    gateway.wait_metric("broker_reconnects_total", 1).await?;
    gateway.wait_ready().await?;
    let session = open(&other, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "x"})).await?, "x");
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 1);
    Ok(())
}
