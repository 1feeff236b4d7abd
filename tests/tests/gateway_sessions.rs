//! Sessions through a real gateway, a real shim, a real broker: opened, used, ended in every way.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::eventually,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open, open_with, reason},
};
use mcp_mqtt_transport::{
    client::{Instance, RequestError, SessionEnd, SessionHandler},
    jsonrpc::{Message, RpcError},
    mqtt::{Publication, Qos},
    topic::{self, ServerName},
    user_property::{self, Component},
};
use serde_json::{Value, json, value::RawValue};
use tokio::{sync::Notify, time::timeout};

/// Answers sampling, and keeps what it is told.
#[derive(Debug, Default)]
struct Listener {
    told: Mutex<Vec<String>>,
    news: Notify,
}

type Answer<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Box<RawValue>, RpcError>> + Send + 'a>>;

impl SessionHandler for Listener {
    fn request<'a>(&'a self, request: &'a Message) -> Answer<'a> {
        Box::pin(async move {
            let answer = json!({"asked": request.method(), "with": request.params()});
            Ok(RawValue::from_string(answer.to_string()).expect("it is JSON"))
        })
    }

    fn notification(&self, notification: &Message) {
        self.told.lock().expect("no panic").push(notification.method().unwrap_or_default().to_owned());
        self.news.notify_one();
    }
}

impl Listener {
    async fn hears(&self, method: &str, times: usize) -> Result<()> {
        let heard = async {
            while self.count(method) < times {
                self.news.notified().await;
            }
        };
        timeout(PATIENCE, heard).await.with_context(|| format!("{method}: {:?}", self.told))
    }

    fn count(&self, method: &str) -> usize {
        self.told.lock().expect("no panic").iter().filter(|told| *told == method).count()
    }
}

#[tokio::test]
async fn a_client_finds_the_server_and_calls_its_tools() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--description=a stub").start()?;
    let client = connect(&broker.url(), "c1").await?;
    let instance = client.find(&ServerName::new(SERVER_NAME)?, PATIENCE).await?;
    assert_eq!(instance.server_id, gateway.server_id());
    assert_eq!(instance.online.description, "a stub");
    let session = open(&client, &instance).await?;
    assert_eq!(session.server().server_info.name, "stub");
    assert_eq!(call(&session, "echo", json!({"message": "hällo\n\"x\""})).await?, "hällo\n\"x\"");
    let tools = session.request::<()>("tools/list", None, PATIENCE).await?;
    assert!(tools.get().contains("\"echo\""), "{tools}");
    let error = session.request::<()>("no/such", None, PATIENCE).await.expect_err("not a method");
    assert_eq!(error.rpc().map(|error| error.code), Some(-32601), "the server's own error passes");
    gateway.wait_ready().await?;
    let status = gateway.wait_for("a session", |status| status.sessions == 1).await?;
    assert_eq!(status.server.context("server info")?.name, "stub");
    assert_eq!(
        gateway.metric(r#"requests_total{asker="client",method="tools/call",outcome="ok"}"#).await?,
        1
    );
    session.close();
    gateway.wait_for("end of the session", |status| status.sessions == 0).await?;
    gateway.wait_metric(r#"sessions_ended_total{reason="client-left"}"#, 1).await
}

#[tokio::test]
async fn two_clients_work_side_by_side_each_with_a_process_of_its_own() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let (one, two) = (connect(&broker.url(), "one").await?, connect(&broker.url(), "two").await?);
    let (a, b) = (open(&one, &gateway.instance()).await?, open(&two, &gateway.instance()).await?);
    let work = |session: mcp_mqtt_transport::client::Session, name: &'static str| async move {
        for n in 0..200 {
            let message = format!("{name} {n}");
            ensure!(call(&session, "echo", json!({"message": message})).await? == message);
        }
        let state: Value = serde_json::from_str(&call(&session, "state", json!({})).await?)?;
        ensure!(state["calls"] == 201, "calls of another session: {state}");
        Ok(state["pid"].as_u64())
    };
    let (pid_a, pid_b) = tokio::try_join!(work(a.clone(), "a"), work(b.clone(), "b"))?;
    assert_ne!(pid_a, pid_b);
    Ok(())
}

#[tokio::test]
async fn a_slow_call_does_not_hold_up_another_one_of_the_same_client() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let slow = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "silence", json!({})).await }
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    for n in 0..20 {
        call(&session, "echo", json!({"message": n.to_string()})).await?;
    }
    assert!(!slow.is_finished());
    Ok(())
}

#[tokio::test]
async fn the_server_asks_the_client_and_tells_it_its_progress() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let listener = Arc::new(Listener::default());
    let session = open_with(&client, &gateway.instance(), listener.clone()).await?;
    let answer =
        call(&session, "ask", json!({"method": "sampling/createMessage", "params": {"q": 1}})).await?;
    let answer: Value = serde_json::from_str(&answer)?;
    assert_eq!(answer["result"]["asked"], "sampling/createMessage");
    let mut reports = Vec::new();
    let params = json!({"name": "progress", "arguments": {"steps": 3, "ms": 10}});
    session
        .request_with_progress("tools/call", Some(&params), PATIENCE, |p| {
            reports.push(format!("{}", p.progress));
        })
        .await?;
    assert_eq!(reports, ["1", "2", "3"]);
    call(&session, "flood", json!({"count": 500, "bytes": 100})).await?;
    listener.hears("notifications/message", 500).await?;
    assert_eq!(call(&session, "garbage", json!({})).await?, "said");
    assert_eq!(gateway.metric(r#"messages_dropped_total{reason="malformed-from-server"}"#).await?, 1);
    assert_eq!(call(&session, "twice", json!({})).await?, "first");
    gateway.wait_metric(r#"messages_dropped_total{reason="unknown-answer-of-server"}"#, 1).await
}

#[tokio::test]
async fn what_many_sessions_say_at_once_reaches_every_client_once() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).server_arg("--list-changed-first").start()?;
    gateway.wait_ready().await?;
    let mut clients = Vec::new();
    for n in 0..5 {
        let client = connect(&broker.url(), &format!("c{n}")).await?;
        let listener = Arc::new(Listener::default());
        let session = open_with(&client, &gateway.instance(), listener.clone()).await?;
        clients.push((client, session, listener));
    }
    assert_eq!(
        gateway.metric("broadcasts_total").await?,
        0,
        "before its initialize result a server says nothing"
    );
    let calls = clients.iter().map(|(_, session, _)| call(session, "change", json!({"kind": "tools"})));
    for answer in futures::future::join_all(calls).await {
        answer?;
    }
    for (_, _, listener) in &clients {
        listener.hears("notifications/tools/list_changed", 1).await?;
    }
    // Five processes on a busy machine may not all speak within one window; but not each gets its own broadcast.
    let broadcasts = eventually(PATIENCE, async || {
        let broadcasts = gateway.metric("broadcasts_total").await.ok()?;
        let merged = gateway.metric("broadcasts_merged_total").await.ok()?;
        (broadcasts + merged == 5).then_some(broadcasts)
    });
    let broadcasts = broadcasts.await.context("each is sent or merged, and none twice")?;
    assert!(broadcasts < 5, "{broadcasts} broadcasts");
    call(&clients[0].1, "change", json!({"kind": "prompts"})).await?;
    for (_, _, listener) in &clients {
        listener.hears("notifications/prompts/list_changed", 1).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_initializes_again_gets_a_new_session() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let first = open(&client, &gateway.instance()).await?;
    call(&first, "echo", json!({"message": "first"})).await?;
    // Another connection with the same client id: the broker closes the first, whose will says goodbye.
    let again = connect(&broker.url(), "c").await?;
    let second = open(&again, &gateway.instance()).await?;
    let state: Value = serde_json::from_str(&call(&second, "state", json!({})).await?)?;
    assert_eq!(state["calls"], 1, "a new process");
    gateway.wait_for("one session", |status| status.sessions == 1).await?;
    let third = open(&again, &gateway.instance()).await?;
    let state: Value = serde_json::from_str(&call(&third, "state", json!({})).await?)?;
    assert_eq!(state["calls"], 1, "a new process");
    gateway.wait_metric(r#"sessions_ended_total{reason="replaced"}"#, 1).await?;
    // Its subscriptions have survived the end of the session that it replaced.
    for n in 0..50 {
        call(&third, "echo", json!({"message": n.to_string()})).await?;
    }
    assert_eq!(gateway.status().await?.sessions, 1);
    Ok(())
}

#[tokio::test]
async fn a_session_ends_with_the_clients_goodbye_its_will_or_an_empty_presence() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    // On RPC.
    let client = connect(&broker.url(), "rpc").await?;
    open(&client, &gateway.instance()).await?.close();
    gateway.wait_metric(r#"sessions_ended_total{reason="client-left"}"#, 1).await?;
    // The will, when the connection is dropped.
    let client = connect(&broker.url(), "will").await?;
    let session = open(&client, &gateway.instance()).await?;
    let other = connect(&broker.url(), "will").await?; // takes the connection over
    gateway.wait_metric(r#"sessions_ended_total{reason="client-left"}"#, 2).await?;
    assert!(matches!(session.wait_ended().await, SessionEnd::Connection(_)));
    drop(other);
    // Empty presence, and `notifications/disconnected` there.
    for (n, payload) in [(3, ""), (4, r#"{"jsonrpc":"2.0","method":"notifications/disconnected"}"#)] {
        let client = connect(&broker.url(), "presence").await?;
        let _session = open(&client, &gateway.instance()).await?;
        let presence = Publication {
            topic: topic::client_presence(client.client_id()),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            user_properties: user_property::of_publish(Component::Client, "presence"),
        };
        client.publisher().publish_confirmed(presence, PATIENCE).await?;
        gateway.wait_metric(r#"sessions_ended_total{reason="client-left"}"#, n).await?;
    }
    gateway.wait_for("no session", |status| status.sessions == 0).await?;
    Ok(())
}

#[tokio::test]
async fn no_more_sessions_than_allowed_and_one_that_ends_makes_room() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--max-sessions=1").start()?;
    gateway.wait_ready().await?;
    let (one, two) = (connect(&broker.url(), "one").await?, connect(&broker.url(), "two").await?);
    let first = open(&one, &gateway.instance()).await?;
    let refused = open(&two, &gateway.instance()).await.expect_err("one is all");
    let told = format!("{refused:#}");
    assert!(told.contains("-32603") && told.contains("max-sessions"), "{told}");
    assert_eq!(gateway.metric(r#"requests_refused_total{reason="max-sessions"}"#).await?, 1);
    assert_eq!(gateway.metric("sessions_limit").await?, 1);
    let again = open(&one, &gateway.instance()).await?; // replaces its own
    assert_eq!(call(&again, "echo", json!({"message": "in"})).await?, "in");
    again.close();
    drop(first);
    gateway.wait_for("room", |status| status.sessions == 0).await?;
    open(&two, &gateway.instance()).await?;
    Ok(())
}

#[tokio::test]
async fn a_message_too_large_is_an_error_to_whoever_waits_either_way() -> Result<()> {
    let broker = Mosquitto::options().max_packet_size(60_000).start().await?;
    let gateway = Options::new(&broker.url()).arg("--max-message-bytes=50000").start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let large =
        call(&session, "echo", json!({"message": "x".repeat(55_000)})).await.expect_err("over our limit");
    assert_eq!(reason(&large), Some("message-too-large"), "{large}");
    let large = call(&session, "big", json!({"bytes": 55_000})).await.expect_err("over our limit");
    assert!(matches!(reason(&large), Some("message-too-large" | "answer-too-large")), "{large}");
    assert_eq!(call(&session, "big", json!({"bytes": 49_000})).await?.len(), 49_000);
    // Under our limit, over the broker's.
    let small = Options::new(&broker.url()).arg("--max-message-bytes=1000000").start()?;
    small.wait_ready().await?;
    let session = open(&client, &small.instance()).await?;
    let large = call(&session, "big", json!({"bytes": 60_000})).await.expect_err("over the broker's limit");
    assert_eq!(reason(&large), Some("message-too-large"), "{large}");
    assert_eq!(call(&session, "echo", json!({"message": "still here"})).await?, "still here");
    assert_eq!(small.metric("broker_reconnects_total").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_and_cancelled_in_the_server() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url())
        .arg("--timeout-call=2s")
        .arg("--timeout-default=8s")
        .arg("--timeout-max=8s")
        .arg("--timeout-ping=8s")
        .start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let late = call(&session, "silence", json!({})).await.expect_err("no answer");
    assert_eq!(reason(&late), Some("timed-out"), "{late}");
    let state: Value = serde_json::from_str(&call(&session, "state", json!({})).await?)?;
    assert_eq!(state["cancelled"].as_array().map(Vec::len), Some(1), "{state}");
    let mut reports = 0;
    let params = json!({"name": "progress", "arguments": {"steps": 8, "ms": 400}});
    session.request_with_progress("tools/call", Some(&params), PATIENCE, |_| reports += 1).await?;
    assert_eq!(reports, 8, "progress keeps a call alive");
    let params = json!({"name": "progress", "arguments": {"steps": 40, "ms": 400}});
    let endless = session.request_with_progress("tools/call", Some(&params), PATIENCE, |_| ()).await;
    assert_eq!(reason(&endless.expect_err("not for ever")), Some("timed-out"));
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_read_is_an_error_to_its_caller_and_nobody_else() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--max-in-flight=1000").start()?;
    gateway.wait_ready().await?;
    let (stuck, free) = (connect(&broker.url(), "stuck").await?, connect(&broker.url(), "free").await?);
    let (stuck_session, free_session) =
        (open(&stuck, &gateway.instance()).await?, open(&free, &gateway.instance()).await?);
    let padding = "x".repeat(10_000);
    let stall = call(&stuck_session, "stall", json!({"ms": 8000}));
    let flood = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let calls = (0..400).map(|_| call(&stuck_session, "echo", json!({"message": padding})));
        futures::future::join_all(calls).await
    };
    let others = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for n in 0..20 {
            call(&free_session, "echo", json!({"message": n.to_string()})).await?;
        }
        Ok::<_, RequestError>(Instant::now())
    };
    let stall = async { (stall.await, Instant::now()) };
    let ((stalled, it_reads_again), flooded, others) = tokio::join!(stall, flood, others);
    assert_eq!(stalled?, "stalled");
    let busy = flooded
        .iter()
        .filter(|answer| answer.as_ref().is_err_and(|e| reason(e) == Some("backend-busy")))
        .count();
    let answered = flooded.iter().filter(|answer| answer.is_ok()).count();
    assert!(busy > 0 && busy + answered == 400, "{busy} busy, {answered} answered");
    assert!(others? < it_reads_again, "another session was held up");
    Ok(())
}

#[tokio::test]
async fn an_initialize_for_another_server_name_is_not_answered_and_opens_nothing() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let elsewhere = Instance { server_name: ServerName::new("tests/other")?, ..gateway.instance() };
    let nobody = client
        .open_session(
            &elsewhere,
            &RawValue::from_string("{}".to_owned())?,
            Arc::new(Listener::default()),
            Duration::from_millis(300),
        )
        .await;
    assert!(nobody.is_err(), "another server name is not ours to answer");
    assert_eq!(gateway.status().await?.sessions, 0);
    Ok(())
}

#[tokio::test]
async fn a_broker_that_pauses_makes_a_flooding_server_wait_and_nothing_is_lost() -> Result<()> {
    let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let listener = Arc::new(Listener::default());
    let session = open_with(&client, &gateway.instance(), listener.clone()).await?;
    let flood = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "flood", json!({"count": 5000, "bytes": 2000})).await }
    });
    listener.hears("notifications/message", 1).await?;
    broker.pause()?;
    // What cannot go stays in the server: once the connection's buffers are full, nothing moves.
    let standstill = async {
        loop {
            let sent = gateway.metric("sent_bytes_total").await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            if gateway.metric("sent_bytes_total").await? == sent {
                return anyhow::Ok(sent);
            }
        }
    };
    let sent = timeout(PATIENCE, standstill).await??;
    assert!(sent < 5000 * 2000, "{sent} bytes have gone: the pause came too late to prove anything");
    broker.resume()?;
    assert_eq!(timeout(PATIENCE, flood).await???, "flooded");
    assert_eq!(
        listener.count("notifications/message"),
        5000,
        "all, and before the answer that came after them"
    );
    assert_eq!(gateway.metric(r#"messages_dropped_total{reason="outbox-full"}"#).await?, 0);
    Ok(())
}
