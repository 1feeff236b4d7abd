//! What no proper client sends, through the real gateway: each gets its defined answer, none a crash, none another
//! client's session.

use std::time::Duration;

use anyhow::{Result, ensure};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open},
    raw::{Raw, echo, initialize},
};
use mcp_mqtt_transport::{
    jsonrpc::Message,
    mqtt::{Filter, Qos},
    topic, user_property,
};
use serde_json::{Value, json};
use tokio::time::timeout;

async fn stage() -> Result<(Mosquitto, Gateway)> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    Ok((broker, gateway))
}

#[tokio::test]
async fn ids_come_back_as_they_were_and_every_publish_carries_the_two_properties() -> Result<()> {
    let (broker, gateway) = stage().await?;
    let mut raw = Raw::connect(&broker.url(), "raw", &gateway).await?;
    raw.open(7).await?;
    for id in [json!(1), json!("a"), json!("ü\"\\"), json!(9_007_199_254_740_993_u64), json!(-1), json!("")]
    {
        raw.rpc(echo(&id, "x")).await?;
        let received = raw.receive().await?;
        let properties = &received.user_properties;
        assert_eq!(user_property::find(properties, "MCP-COMPONENT-TYPE"), Some("mcp-server"));
        assert_eq!(user_property::find(properties, "MCP-MQTT-CLIENT-ID"), Some(gateway.server_id().as_str()));
        let answer: Value = serde_json::from_slice(&received.payload)?;
        assert_eq!((&answer["id"], &answer["result"]["content"][0]["text"]), (&id, &json!("x")));
    }
    Ok(())
}

#[tokio::test]
async fn garbage_is_answered_where_it_has_an_id_counted_otherwise_and_hurts_nobody() -> Result<()> {
    let (broker, gateway) = stage().await?;
    let mut raw = Raw::connect(&broker.url(), "raw", &gateway).await?;
    raw.open(1).await?;
    raw.rpc("{not json").await?;
    raw.rpc(&b"\xff\xfe\x00"[..]).await?;
    raw.rpc("").await?;
    raw.rpc("[]").await?;
    raw.rpc(r#"[{"jsonrpc":"2.0","id":"batched","method":"ping"}]"#).await?;
    let answer = raw.answer().await?;
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("batched"), &json!(-32600)));
    raw.rpc(r#"{"id":5,"method":"ping"}"#).await?;
    let answer = raw.answer().await?;
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(5), &json!(-32600)));
    raw.send(&raw.control, Some("raw"), echo(&json!(6), "x")).await?;
    let answer = raw.answer().await?;
    assert_eq!(answer["error"]["data"]["reason"], "not-initialize", "{answer}");
    raw.send(&raw.control, None, initialize(8)).await?;
    raw.send(&raw.control, Some("#"), initialize(8)).await?;
    raw.rpc(echo(&json!(9), "still here")).await?;
    assert_eq!(raw.answer().await?["result"]["content"][0]["text"], "still here");
    for (reason, count) in
        [("not-json", 2), ("not-utf8", 1), ("batch", 2), ("no-client-id", 1), ("bad-client-id", 1)]
    {
        gateway.wait_metric(&format!("messages_dropped_total{{reason=\"{reason}\"}}"), count).await?;
    }
    assert_eq!(gateway.status().await?.sessions, 1);
    Ok(())
}

#[tokio::test]
async fn who_has_no_session_or_speaks_for_another_gets_no_further() -> Result<()> {
    let (broker, gateway) = stage().await?;
    let victim = connect(&broker.url(), "victim").await?;
    let session = open(&victim, &gateway.instance()).await?;
    let instance = gateway.instance();
    let victims_rpc = topic::rpc(victim.client_id(), &instance.server_id, &instance.server_name);
    let mut mallory = Raw::connect(&broker.url(), "mallory", &gateway).await?;

    // The gateway hears the topics of its sessions only; the victim's is one.
    mallory.send(&victims_rpc, Some("mallory"), echo(&json!("evil"), "x")).await?;
    let presence = topic::client_presence(victim.client_id());
    mallory.send(&presence, Some("mallory"), Message::disconnected().into_raw()).await?;
    mallory.send(&presence, Some("mallory"), "").await?;
    gateway.wait_metric(r#"messages_dropped_total{reason="client-id-mismatch"}"#, 2).await?;
    let state = call(&session, "state", json!({})).await?;
    assert!(state.contains("\"calls\":1"), "nothing reached its server: {state}");
    assert_eq!(gateway.status().await?.sessions, 1);

    // After its end a session's topic is no longer heard, once the broker knows: what is sent there is refused until
    // then, and goes nowhere after it, without harm.
    mallory.open(1).await?;
    mallory.rpc(Message::disconnected().into_raw()).await?;
    gateway.wait_for("the end of the session", |status| status.sessions == 1).await?;
    mallory.rpc(echo(&json!(2), "x")).await?;
    mallory.control(initialize(3)).await?;
    let mut answer = mallory.answer().await?;
    if answer["id"] == 2 {
        ensure!(answer["error"]["data"]["reason"] == "no-session", "{answer}");
        answer = mallory.answer().await?;
    }
    ensure!(answer["id"] == 3 && answer["result"]["serverInfo"]["name"] == "stub", "a new session: {answer}");
    Ok(())
}

#[tokio::test]
async fn initialize_beside_a_drain_or_without_a_server_is_refused_at_once() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).start_without_server()?;
    gateway.wait_for("connection", |status| status.broker.reason == "WaitingForBackend").await?;
    let mut raw = Raw::connect(&broker.url(), "raw", &gateway).await?;
    raw.send(&raw.control, Some("raw"), initialize(1)).await?;
    let answer = raw.answer().await?;
    assert_eq!(answer["error"]["data"]["reason"], "backend-down", "{answer}");
    assert_eq!(answer["error"]["code"], -32603);
    assert_eq!(gateway.get("/readyz").await?.0, 503);
    Ok(())
}

#[tokio::test]
async fn an_id_in_flight_cannot_be_used_twice() -> Result<()> {
    let (broker, gateway) = stage().await?;
    let mut raw = Raw::connect(&broker.url(), "raw", &gateway).await?;
    raw.open(1).await?;
    let sleep = json!({"name": "sleep", "arguments": {"ms": 3000}});
    raw.rpc(json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": sleep}).to_string()).await?;
    raw.rpc(echo(&json!(2), "x")).await?;
    assert_eq!(raw.answer().await?["error"]["data"]["reason"], "duplicate-id");
    assert_eq!(raw.answer().await?["result"]["content"][0]["text"], "slept");
    raw.rpc(echo(&json!(2), "again")).await?;
    assert_eq!(raw.answer().await?["result"]["content"][0]["text"], "again");
    Ok(())
}

#[tokio::test]
async fn the_presence_is_retained_complete_and_published_once() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let rbac = r#"{"roles":[{"name":"all","description":"d","allowed_methods":"all","allowed_tools":"all","allowed_resources":"all"}]}"#;
    let mut gateway = Options::new(&broker.url())
        .arg(&format!("--rbac={rbac}"))
        .arg("--description=for tests")
        .start_without_server()?;
    let mut raw = Raw::connect(&broker.url(), "watcher", &gateway).await?;
    let instance = gateway.instance();
    let presence = topic::server_presence(&instance.server_id, &instance.server_name);
    let filter = Filter { filter: presence.clone(), qos: Qos::AtLeastOnce, no_local: false };
    gateway.wait_for("connection", |status| status.broker.reason == "WaitingForBackend").await?;
    raw.connection.publisher.subscribe(vec![filter], PATIENCE).await?;
    gateway.start_server()?;
    gateway.wait_ready().await?;
    let online = raw.receive().await?;
    let payload: Value = serde_json::from_slice(&online.payload)?;
    assert_eq!(
        payload,
        json!({"jsonrpc": "2.0", "method": "notifications/server/online", "params": {
            "server_name": SERVER_NAME, "description": "for tests",
            "meta": {"rbac": serde_json::from_str::<Value>(rbac)?},
        }})
    );
    let nothing = timeout(Duration::from_millis(300), raw.connection.events.recv()).await;
    assert!(nothing.is_err(), "one presence is enough: {nothing:?}");
    // The will: nobody says goodbye, and the presence goes all the same.
    drop(gateway);
    let offline = raw.receive().await?;
    assert!(offline.payload.is_empty());
    assert_eq!(user_property::find(&offline.user_properties, "MCP-COMPONENT-TYPE"), Some("mcp-server"));
    Ok(())
}
