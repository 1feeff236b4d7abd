//! Clients that speak in another's name, or where they have nothing to say.

use anyhow::Result;
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, PATIENCE, call, connect, open, reason},
    raw::{Raw, echo, initialize},
};
use mcp_mqtt_transport::{jsonrpc::Message, topic};
use serde_json::json;
use tokio::time::timeout;

/// MQTT does not tell a subscriber who published, so `MCP-MQTT-CLIENT-ID` is all there is, and item 21 of tests/PROTOCOL.md lets an
/// `initialize` replace the session of the client that it names. Who forges one can therefore end a session (the
/// broker's ACL on the control topic is what keeps strangers out); but the victim is told, what was in flight is
/// answered, and the forger hears nothing: the answer goes to the victim's own topic.
#[tokio::test]
async fn a_forged_initialize_tells_the_forger_nothing_and_the_victims_call_is_answered() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let victim = connect(&broker.url(), "victim").await?;
    let session = open(&victim, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    let waiting = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "silence", json!({})).await }
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    let mut mallory = Raw::connect(&broker.url(), "mallory", &gateway).await?;
    mallory.send(&mallory.control, Some("victim"), initialize(77)).await?;
    let error = timeout(PATIENCE, waiting).await??.expect_err("its session was replaced");
    assert_eq!(reason(&error), Some("session-ended"), "{error}");
    // The first thing that mallory hears is the answer to a request of its own.
    mallory.open(1).await?;
    mallory.echo(2).await?;
    let again = open(&victim, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "mine"})).await?, "mine");
    assert_eq!(gateway.status().await?.sessions, 2);
    // By the forger, and by the victim when it came back.
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="replaced"}"#).await?, 2);
    mallory.rpc(Message::disconnected().into_raw()).await?;
    before.regained(&gateway).await
}

#[tokio::test]
async fn what_is_sent_in_anothers_name_on_its_topics_changes_nothing() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let victim = connect(&broker.url(), "victim").await?;
    let session = open(&victim, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    let mallory = Raw::connect(&broker.url(), "mallory", &gateway).await?;
    let instance = gateway.instance();
    let rpc = topic::rpc(victim.client_id(), &instance.server_id, &instance.server_name);
    let (presence, capability) =
        (topic::client_presence(victim.client_id()), topic::client_capability(victim.client_id()));
    let changed = Message::notification::<()>("notifications/roots/list_changed", None)?;
    let table = [
        (&rpc, Message::notification::<()>("notifications/initialized", None)?.into_raw()),
        (&rpc, "{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{}}".into()),
        (&presence, Message::disconnected().into_raw()),
        (&presence, "".into()),
        (&capability, changed.into_raw()),
    ];
    for (n, (topic, payload)) in (1..).zip(table) {
        mallory.send(topic, Some("mallory"), payload).await?;
        gateway.wait_metric(r#"messages_dropped_total{reason="client-id-mismatch"}"#, n).await?;
    }
    // A request has an answer: on the topic where it was asked, which is the victim's.
    mallory.send(&rpc, Some("mallory"), echo(&json!("evil"), "x")).await?;
    assert_eq!(call(&session, "echo", json!({"message": "mine"})).await?, "mine");
    let state = call(&session, "state", json!({})).await?;
    assert!(state.contains("\"calls\":2"), "only the victim's own reached its server: {state}");
    assert_eq!(gateway.status().await?.sessions, 1);
    assert_eq!(gateway.metric(r#"requests_refused_total{reason="client-id-mismatch"}"#).await?, 1);
    before.regained(&gateway).await
}

/// Topics of other servers, of no session, and of no meaning: most are not even heard, and none is answered twice.
#[tokio::test]
async fn what_is_sent_to_wrong_topics_is_not_heard_or_refused() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let before = Baseline::of(&gateway);
    let mut raw = Raw::connect(&broker.url(), "lost", &gateway).await?;
    let (id, name) = (gateway.server_id(), "tests/stub");
    for topic in [
        "$mcp-server/another/tests/stub".to_owned(),
        format!("$mcp-server/{id}/tests/other"),
        format!("$mcp-server/{id}"),
        format!("$mcp-rpc/lost/{id}/tests/other"),
        format!("$mcp-rpc/lost/another/{name}"),
        format!("$mcp-rpc/lost/{id}"),
        format!("$mcp-server/capability/{id}/{name}"),
    ] {
        raw.send(&topic, Some("lost"), initialize(1)).await?;
        raw.send(&topic, Some("lost"), echo(&json!(1), "x")).await?;
    }
    // No session: its RPC topic is not heard either.
    raw.rpc(echo(&json!(2), "x")).await?;
    assert_eq!(gateway.status().await?.sessions, 0);
    // `initialize` where it does not belong, once there is a session.
    raw.open(3).await?;
    raw.rpc(initialize(4)).await?;
    let answer = raw.answer().await?;
    assert_eq!((&answer["id"], &answer["error"]["data"]["reason"]), (&json!(4), &json!("initialize-on-rpc")));
    raw.control(echo(&json!(5), "x")).await?;
    let answer = raw.answer().await?;
    assert_eq!((&answer["id"], &answer["error"]["data"]["reason"]), (&json!(5), &json!("not-initialize")));
    raw.echo(6).await?;
    assert_eq!(gateway.metric("sessions_started_total").await?, 1);
    for reason in ["initialize-on-rpc", "not-initialize"] {
        let refused = gateway.metric(&format!("requests_refused_total{{reason=\"{reason}\"}}")).await?;
        assert_eq!(refused, 1, "{reason}");
    }
    raw.rpc(Message::disconnected().into_raw()).await?;
    before.regained(&gateway).await
}
