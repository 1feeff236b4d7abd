//! More than can be taken.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, PATIENCE, call, connect, open},
    raw::{Raw, echo, initialize},
};
use mcp_mqtt_transport::client::Session;
use serde_json::{Value, json};
use tokio::time::Instant;

async fn stage() -> Result<(Mosquitto, Gateway)> {
    // Mosquitto drops beyond 1,000 waiting messages by default, and what the broker drops nobody can answer.
    let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    Ok((broker, gateway))
}

/// Calls that go on meanwhile, and the longest of them.
async fn work(session: &Session, calls: usize) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for n in 0..calls {
        let start = Instant::now();
        let message = n.to_string();
        ensure!(call(session, "echo", json!({"message": message})).await? == message);
        longest = longest.max(start.elapsed());
    }
    Ok(longest)
}

#[tokio::test]
async fn each_request_of_a_flood_is_answered_or_refused_once_and_others_go_on() -> Result<()> {
    const REQUESTS: u64 = 3000;
    let (broker, gateway) = stage().await?;
    let other = connect(&broker.url(), "other").await?;
    let session = open(&other, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    let mut raw = Raw::connect(&broker.url(), "flood", &gateway).await?;
    raw.open(0).await?;
    let flood = async {
        let mut answered: HashMap<u64, Value> = HashMap::new();
        let requests =
            (1..=REQUESTS).map(|id| raw.publication(&raw.rpc, Some("flood"), echo(&json!(id), "x")));
        let poured = raw.pour(requests.collect());
        while answered.len() < usize::try_from(REQUESTS)? {
            let answer = raw.answer().await.with_context(|| format!("{} are answered", answered.len()))?;
            let id = answer["id"].as_u64().context("an id")?;
            let known = answer.get("result").is_some()
                || ["too-many-in-flight", "backend-busy"]
                    .contains(&answer["error"]["data"]["reason"].as_str().unwrap_or_default());
            ensure!(known, "{answer}");
            ensure!(answered.insert(id, answer).is_none(), "{id} was answered twice");
        }
        poured.await??;
        anyhow::Ok(answered.values().filter(|answer| answer.get("result").is_some()).count())
    };
    let (flooded, longest) = tokio::try_join!(flood, work(&session, 50))?;
    assert!(flooded > 0, "some are answered with a result");
    assert!(longest < PATIENCE / 2, "another session was held up for {longest:?}");
    raw.rpc(mcp_mqtt_transport::jsonrpc::Message::disconnected().into_raw()).await?;
    gateway.wait_for("the end of the session", |status| status.sessions == 1).await?;
    assert_eq!(gateway.metric(r#"messages_dropped_total{reason="outbox-full"}"#).await?, 0);
    before.regained(&gateway).await
}

#[tokio::test]
async fn a_flood_of_garbage_is_counted_to_the_last_and_others_go_on() -> Result<()> {
    const MESSAGES: u64 = 3000;
    let (broker, gateway) = stage().await?;
    let other = connect(&broker.url(), "other").await?;
    let session = open(&other, &gateway.instance()).await?;
    let mut raw = Raw::connect(&broker.url(), "flood", &gateway).await?;
    raw.open(0).await?;
    let before = Baseline::of(&gateway);
    let garbage = (0..MESSAGES).map(|n| {
        let topic = if n % 2 == 0 { &raw.rpc } else { &raw.control };
        raw.publication(topic, Some("flood"), format!("garbage {n} {}", "x".repeat(1000)))
    });
    let poured = raw.pour(garbage.collect());
    work(&session, 50).await?;
    poured.await??;
    gateway.wait_metric(r#"messages_dropped_total{reason="not-json"}"#, MESSAGES).await?;
    raw.echo(1).await?;
    before.regained(&gateway).await
}

/// A client that initializes again and again, without waiting: each request is answered once, the last one has the
/// session, and there is one process for it.
#[tokio::test]
async fn a_storm_of_initialize_leaves_one_session_and_one_process() -> Result<()> {
    const STORM: u64 = 150;
    let (broker, gateway) = stage().await?;
    let before = Baseline::of(&gateway);
    let mut raw = Raw::connect(&broker.url(), "storm", &gateway).await?;
    let storm = (1..=STORM).map(|id| raw.publication(&raw.control, Some("storm"), initialize(id)));
    let poured = raw.pour(storm.collect());
    let mut answered = HashMap::new();
    while answered.len() < usize::try_from(STORM)? {
        let answer = raw.answer().await.with_context(|| format!("{} are answered", answered.len()))?;
        let id = answer["id"].as_u64().context("an id")?;
        ensure!(answered.insert(id, answer).is_none(), "{id} was answered twice");
    }
    poured.await??;
    assert!(answered[&STORM].get("result").is_some(), "{}", answered[&STORM]);
    for (id, answer) in answered.iter().filter(|(_, answer)| answer.get("error").is_some()) {
        assert_eq!(answer["error"]["data"]["reason"], "session-ended", "{id}: {answer}");
    }
    raw.echo(STORM + 1).await?;
    assert_eq!(gateway.status().await?.sessions, 1);
    gateway.wait_metric(r#"sessions_ended_total{reason="replaced"}"#, STORM - 1).await?;
    Baseline { processes: before.processes + 1, fds: before.fds + 4, ..before }.regained(&gateway).await
}
