//! Clients as they are in the field: what each is known to do, and that it is served all the same.

use std::time::Duration;

use anyhow::{Result, ensure};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, call, connect, open},
    raw::{self, Raw, echo, initialize, initialize_at},
};
use mcp_mqtt_transport::{jsonrpc::Message, mqtt::Qos, topic};
use serde_json::{Value, json};
use tokio::time::timeout;

/// TypeScript publishes `initialize` before the broker has its subscription to the answer.
#[tokio::test]
async fn a_client_that_subscribes_only_after_its_initialize_gets_the_answer() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--max-sessions=1").start()?;
    gateway.wait_ready().await?;
    for n in 0..10 {
        let mut hasty = Raw::connect_deaf(&broker.url(), &format!("hasty-{n}"), &gateway).await?;
        let publication = hasty.publication(&hasty.control, Some(&hasty.id), initialize(1));
        hasty.connection.publisher.try_publish(publication)?;
        hasty.subscribe(&hasty.rpc, Qos::AtLeastOnce).await?;
        let answer = hasty.answer().await?;
        ensure!(answer["id"] == 1 && answer.get("result").is_some(), "{n}: {answer}");
        // Also a refusal, which takes the gateway no SUBACK, comes late enough.
        let mut second = Raw::connect_deaf(&broker.url(), &format!("second-{n}"), &gateway).await?;
        let publication = second.publication(&second.control, Some(&second.id), initialize(1));
        second.connection.publisher.try_publish(publication)?;
        second.subscribe(&second.rpc, Qos::AtLeastOnce).await?;
        let refused = second.answer().await?;
        ensure!(refused["error"]["data"]["reason"] == "max-sessions", "{n}: {refused}");
        hasty.rpc(Message::disconnected().into_raw()).await?;
        gateway.wait_for("room", |status| status.sessions == 0).await?;
    }
    Ok(())
}

/// Python uses one client id for all servers.
#[tokio::test]
async fn one_client_id_at_two_servers_is_two_sessions_that_do_not_mix() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (one, two) = (Gateway::ready_at(&broker.url()).await?, Gateway::ready_at(&broker.url()).await?);
    let client = connect(&broker.url(), "shared").await?;
    let (a, b) = (open(&client, &one.instance()).await?, open(&client, &two.instance()).await?);
    let pid = |text: String| serde_json::from_str::<Value>(&text).map(|state| state["pid"].clone());
    assert_ne!(pid(call(&a, "state", json!({})).await?)?, pid(call(&b, "state", json!({})).await?)?);
    // On RPC it leaves one; by its presence it leaves both.
    a.close();
    one.wait_for("the end there", |status| status.sessions == 0).await?;
    assert_eq!(call(&b, "echo", json!({"message": "here"})).await?, "here");
    let again = open(&client, &one.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "there"})).await?, "there");
    let presence = topic::client_presence(client.client_id());
    let raw = Raw::connect(&broker.url(), "other", &one).await?;
    raw.send(&presence, Some("shared"), "").await?;
    one.wait_for("the end there", |status| status.sessions == 0).await?;
    two.wait_for("the end here", |status| status.sessions == 0).await?;
    Ok(())
}

/// Three of the five real clients answer no ping.
#[tokio::test]
async fn a_client_that_answers_no_ping_stays() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--timeout-ping=200ms").start()?;
    gateway.wait_ready().await?;
    let mut raw = Raw::connect(&broker.url(), "mute", &gateway).await?;
    raw.open(0).await?;
    for id in 1..=3 {
        raw.rpc(raw::call(&json!(id), "ask", &json!({"method": "ping", "params": {}}))).await?;
        let ping = raw.answer().await?;
        ensure!(ping["method"] == "ping", "{ping}");
        let cancelled = raw.answer().await?;
        ensure!(cancelled["method"] == "notifications/cancelled", "{cancelled}");
        let answer = raw.answer().await?;
        let told = answer["result"]["content"][0]["text"].as_str().unwrap_or_default();
        ensure!(answer["id"] == id && told.contains("timed-out"), "{answer}");
    }
    raw.echo(9).await?;
    assert_eq!(gateway.status().await?.sessions, 1);
    Ok(())
}

/// Python and Erlang subscribe to the exact capability topic, TypeScript to one with wildcards; most at QoS 0.
#[tokio::test]
async fn a_change_reaches_exact_and_wildcard_subscriptions_of_either_qos_once() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let exact = gateway.instance();
    let exact = topic::server_capability(&exact.server_id, &exact.server_name);
    let wildcard = format!("$mcp-server/capability/{}/#", gateway.server_id());
    let everything = "$mcp-server/capability/+/tests/+".to_owned();
    let mut listeners = Vec::new();
    for (n, (filter, qos)) in [
        (exact.clone(), Qos::AtMostOnce),
        (exact, Qos::AtLeastOnce),
        (wildcard, Qos::AtMostOnce),
        (everything, Qos::AtLeastOnce),
    ]
    .into_iter()
    .enumerate()
    {
        let listener = Raw::connect_deaf(&broker.url(), &format!("listener-{n}"), &gateway).await?;
        listener.subscribe(&filter, qos).await?;
        listeners.push(listener);
    }
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    for kind in ["tools", "prompts", "resources"] {
        call(&session, "change", json!({"kind": kind})).await?;
        for listener in &mut listeners {
            let told = listener.answer().await?;
            ensure!(told["method"] == format!("notifications/{kind}/list_changed"), "{told}");
        }
    }
    for listener in &mut listeners {
        let more = timeout(Duration::from_millis(100), listener.receive()).await;
        ensure!(more.is_err(), "once is enough: {more:?}");
    }
    Ok(())
}

/// Python, Erlang, C and ESP32 subscribe and publish at QoS 0.
#[tokio::test]
async fn a_client_at_qos_0_is_served() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let mut raw = Raw::connect_deaf(&broker.url(), "zero", &gateway).await?;
    raw.qos = Qos::AtMostOnce;
    raw.subscribe(&raw.rpc, Qos::AtMostOnce).await?;
    raw.open(0).await?;
    for id in 1..=50 {
        raw.echo(id).await?;
    }
    raw.rpc(Message::disconnected().into_raw()).await?;
    gateway.wait_for("its end", |status| status.sessions == 0).await?;
    Ok(())
}

/// A gateway set to QoS 0 serves a client at QoS 1.
#[tokio::test]
async fn a_gateway_at_qos_0_serves() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--qos=0").start()?;
    gateway.wait_ready().await?;
    let mut raw = Raw::connect(&broker.url(), "one", &gateway).await?;
    raw.open(0).await?;
    for id in 1..=50 {
        raw.echo(id).await?;
    }
    Ok(())
}

/// Revisions that clients in the field ask for: TypeScript and the plugin the oldest, Python the newest.
#[tokio::test]
async fn each_revision_is_agreed_on_between_client_and_server() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    for revision in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let mut raw = Raw::connect(&broker.url(), revision, &gateway).await?;
        raw.control(initialize_at(0, revision)).await?;
        let answer = raw.answer().await?;
        ensure!(answer["result"]["protocolVersion"] == revision, "{answer}");
        raw.echo(1).await?;
    }
    Ok(())
}

/// MCP 2025-03-26, and only it, has batches, and whoever speaks it must take them. Any other is -32600 for each
/// request in it.
#[tokio::test]
async fn a_batch_is_taken_apart_where_the_revision_has_batches_and_refused_elsewhere() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let changed = r#"{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}"#;
    let batch = format!("[{},{changed},{}]", echo(&json!(1), "first"), echo(&json!("b"), "second"));
    for (revision, taken) in
        [("2024-11-05", false), ("2025-03-26", true), ("2025-06-18", false), ("2025-11-25", false)]
    {
        let mut raw = Raw::connect(&broker.url(), revision, &gateway).await?;
        raw.control(initialize_at(0, revision)).await?;
        ensure!(raw.answer().await?.get("result").is_some());
        raw.rpc(batch.clone()).await?;
        for (id, text) in [(json!(1), "first"), (json!("b"), "second")] {
            let answer = timeout(PATIENCE, raw.answer()).await??;
            if taken {
                ensure!(answer["result"]["content"][0]["text"] == text, "{revision}: {answer}");
            } else {
                ensure!(answer["error"]["code"] == -32600, "{revision}: {answer}");
            }
            ensure!(answer["id"] == id, "{revision}: {answer}");
        }
        raw.rpc("[]").await?; // no batch in any revision
        raw.echo(2).await?;
    }
    Ok(())
}
