//! The pool of worker connections: sessions spread, a lost worker ends its own sessions and comes back, and the
//! drain's order holds across connections.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use anyhow::{Context, Result};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open, reason},
    proxy::{Manner, Proxy},
};
use mcp_mqtt_transport::{
    client::{Client, Instance, RequestError, Session, SessionEnd},
    mqtt::{ConnectOptions, Connection, Event, Filter, Qos, Received},
    topic,
    user_property::{self, MQTT_CLIENT_ID},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use url::Url;

type Call = JoinHandle<Result<String, RequestError>>;

/// A gateway whose workers all stand.
async fn start(broker: &Url, workers: usize, more: &[&str]) -> Result<Gateway> {
    let mut options = Options::new(broker).arg(&format!("--workers={workers}"));
    for arg in more {
        options = options.arg(arg);
    }
    let gateway = options.start()?;
    gateway.wait_ready().await?;
    gateway.wait_metric(r#"broker_connections{role="worker"}"#, workers as u64).await?;
    Ok(gateway)
}

/// A client with a session of its own.
async fn client(broker: &Mosquitto, gateway: &Gateway, id: &str) -> Result<(Client, Session)> {
    let client = connect(&broker.url(), id).await?;
    let session = open(&client, &gateway.instance()).await?;
    Ok((client, session))
}

fn calling(session: &Session, tool: &'static str, arguments: Value) -> Call {
    let session = session.clone();
    tokio::spawn(async move { call(&session, tool, arguments).await })
}

async fn sessions_of(gateway: &Gateway, worker: usize) -> Result<u64> {
    gateway.metric(&format!(r#"worker_sessions{{worker="{worker}"}}"#)).await
}

/// A plain MQTT connection; one with another's client id takes its place at the broker.
async fn raw(broker: &Url, client_id: &str) -> Result<Connection> {
    let options =
        ConnectOptions { connect_timeout: PATIENCE, ..ConnectOptions::new(broker.clone(), client_id) };
    Ok(Connection::open(&options).await?)
}

/// Hears all that goes to these clients, and the presence, in the order in which the broker got it.
async fn observe(broker: &Url, instance: &Instance, clients: &[&str]) -> Result<Connection> {
    let connection = raw(broker, "observer").await?;
    let mut filters = vec![topic::server_presence(&instance.server_id, &instance.server_name)];
    for client in clients {
        filters.push(topic::rpc(&client.parse()?, &instance.server_id, &instance.server_name));
    }
    let filters = filters.into_iter().map(|filter| Filter::new(filter, Qos::AtLeastOnce)).collect();
    connection.publisher.subscribe(filters, PATIENCE).await?;
    Ok(connection)
}

/// What is heard of the server until the presence is empty: the client's id and `error` or `goodbye`.
async fn heard_until_offline(mut connection: Connection, instance: &Instance) -> Result<Vec<String>> {
    let mut heard = Vec::new();
    loop {
        let event = timeout(PATIENCE, connection.events.recv()).await?;
        let Some(Event::Received(Received { topic, payload, user_properties, .. })) = event else {
            anyhow::bail!("{event:?} after {heard:?}")
        };
        if payload.is_empty() {
            heard.sort();
            return Ok(heard);
        }
        let from = user_property::find(&user_properties, MQTT_CLIENT_ID).context("no sender")?;
        if from != instance.server_id.as_str() {
            continue; // a client's own
        }
        let message: Value = serde_json::from_slice(&payload)?;
        let client = topic.split('/').nth(1).unwrap_or_default();
        if message.get("error").is_some() {
            heard.push(format!("{client} error"));
        } else if message["method"] == "notifications/disconnected" {
            heard.push(format!("{client} goodbye"));
        }
    }
}

/// Before the broker; cuts the first connection on which our side says this, and swallows it.
async fn cutter(broker: u16, text: &'static str) -> Result<Url> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = Url::parse(&format!("mqtt://127.0.0.1:{}", listener.local_addr()?.port()))?;
    let armed = Arc::new(AtomicBool::new(true));
    tokio::spawn(async move {
        while let Ok((ours, _)) = listener.accept().await {
            let armed = armed.clone();
            tokio::spawn(async move {
                let theirs = TcpStream::connect(("127.0.0.1", broker)).await?;
                let ((mut from_us, mut to_us), (mut from_broker, mut to_broker)) =
                    (ours.into_split(), theirs.into_split());
                let up = async {
                    let mut bytes = vec![0; 64 * 1024];
                    loop {
                        let count = from_us.read(&mut bytes).await?;
                        let says = bytes[..count].windows(text.len()).any(|window| window == text.as_bytes());
                        if count == 0 || says && armed.swap(false, SeqCst) {
                            return anyhow::Ok(());
                        }
                        to_broker.write_all(&bytes[..count]).await?;
                    }
                };
                tokio::select! {
                    ended = up => ended,
                    ended = tokio::io::copy(&mut from_broker, &mut to_us) => {
                        ended?;
                        Ok(())
                    }
                }
            });
        }
    });
    Ok(url)
}

#[tokio::test]
async fn an_answer_that_a_lost_worker_may_not_have_delivered_is_delivered_by_another() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let url = cutter(broker.port(), "an answer on its way").await?;
    let gateway = start(&url, 1, &[]).await?;
    let (_client, session) = client(&broker, &gateway, "c").await?;
    let message = "an answer on its way";
    assert_eq!(call(&session, "echo", json!({"message": message})).await?, message);
    assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected);
    gateway.wait_metric("broker_worker_reconnects_total", 1).await?;
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    Ok(())
}

#[tokio::test]
async fn sessions_spread_over_the_workers_and_all_speak_as_one_server() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = start(&broker.url(), 2, &[]).await?;
    let instance = gateway.instance();
    let mut observer = observe(&broker.url(), &instance, &["a", "b", "c", "d"]).await?;
    let mut clients = Vec::new();
    for id in ["a", "b", "c", "d"] {
        clients.push(client(&broker, &gateway, id).await?);
    }
    for (_, session) in &clients {
        assert_eq!(call(session, "echo", json!({"message": "x"})).await?, "x");
    }
    assert_eq!((sessions_of(&gateway, 1).await?, sessions_of(&gateway, 2).await?), (2, 2));
    let mut answers = 0;
    while answers < 8 {
        let event = timeout(PATIENCE, observer.events.recv()).await?;
        let Some(Event::Received(received)) = event else { anyhow::bail!("{event:?}") };
        let sender = user_property::find(&received.user_properties, MQTT_CLIENT_ID);
        if received.topic.starts_with("$mcp-rpc/") && received.payload.windows(8).any(|w| w == b"\"result\"")
        {
            assert_eq!(sender, Some(instance.server_id.as_str()), "not the worker's own id");
            answers += 1;
        }
    }
    for (_, session) in &clients {
        session.close();
    }
    gateway.wait_metric(r#"worker_sessions{worker="1"}"#, 0).await?;
    gateway.wait_metric(r#"worker_sessions{worker="2"}"#, 0).await?;
    assert_eq!(gateway.metric("broker_worker_reconnects_total").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_lost_worker_ends_its_own_sessions_with_errors_and_comes_back() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = start(&broker.url(), 2, &[]).await?;
    let (one, a) = client(&broker, &gateway, "a").await?;
    let (_two, b) = client(&broker, &gateway, "b").await?;
    let (lost, kept) = (calling(&a, "silence", json!({})), calling(&b, "sleep", json!({"ms": 5000})));
    gateway.wait_for("two requests in flight", |status| status.in_flight == 2).await?;
    let thief = raw(&broker.url(), &format!("{}_w1", gateway.server_id())).await?;
    let error = timeout(PATIENCE, lost).await??.expect_err("its connection is gone");
    assert_eq!(reason(&error), Some("connection-lost"), "{error}");
    assert_eq!(timeout(PATIENCE, a.wait_ended()).await?, SessionEnd::Disconnected);
    assert_eq!(call(&b, "echo", json!({"message": "unharmed"})).await?, "unharmed");
    assert_eq!(timeout(PATIENCE, kept).await???, "slept");
    gateway.wait_metric("broker_worker_reconnects_total", 1).await?;
    drop(thief);
    assert!(gateway.status().await?.ready(), "the registration has nothing to do with it");
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="connection-lost"}"#).await?, 1);
    let again = open(&one, &gateway.instance()).await?;
    assert_eq!(sessions_of(&gateway, 1).await?, 1, "it is the least loaded one");
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "back");
    Ok(())
}

/// Nothing comes and nothing goes on the one connection, and no socket says so.
#[tokio::test]
async fn a_worker_that_stands_still_ends_its_own_sessions_with_errors_and_comes_back_by_itself() -> Result<()>
{
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let gateway = start(&proxy.url(), 2, &["--keep-alive=5s"]).await?;
    let (one, a) = client(&broker, &gateway, "a").await?;
    let (_two, b) = client(&broker, &gateway, "b").await?;
    assert_eq!((sessions_of(&gateway, 1).await?, sessions_of(&gateway, 2).await?), (1, 1));
    let kept = calling(&b, "silence", json!({}));
    let mut lost = calling(&a, "silence", json!({}));
    gateway.wait_for("two requests in flight", |status| status.in_flight == 2).await?;
    proxy.freeze_only("_w1"); // its CONNECT has the worker's own client id
    let unheard = calling(&a, "echo", json!({"message": "is there anybody"}));

    // Others are answered all the while.
    let error = timeout(PATIENCE, async {
        loop {
            tokio::select! {
                ended = &mut lost => return anyhow::Ok(ended?.expect_err("its connection stands still")),
                answer = call(&b, "echo", json!({"message": "unharmed"})) => assert_eq!(answer?, "unharmed"),
            }
        }
    });
    let error = error.await??;
    assert_eq!(reason(&error), Some("connection-lost"), "{error}: said on another connection");
    // What the gateway never saw is answered by the end of the session.
    assert_eq!(timeout(PATIENCE, unheard).await??, Err(RequestError::Ended(SessionEnd::Disconnected)));
    assert_eq!(timeout(PATIENCE, a.wait_ended()).await?, SessionEnd::Disconnected);
    assert!(!kept.is_finished() && b.ended().is_none(), "it is on the other worker");
    let status = gateway.status().await?;
    assert!(status.ready() && status.sessions == 1, "{status:?}");
    assert!(!status.workers[0].part.ok && status.workers[1].part.ok, "{status:?}");

    // As long as it cannot come back, the others serve.
    let elsewhere = open(&one, &gateway.instance()).await?;
    assert_eq!(sessions_of(&gateway, 2).await?, 2);
    assert_eq!(call(&elsewhere, "echo", json!({"message": "served"})).await?, "served");
    proxy.thaw();
    gateway.wait_metric("broker_worker_reconnects_total", 1).await?;
    gateway.wait_metric(r#"broker_connections{role="worker"}"#, 2).await?;
    let (_three, c) = client(&broker, &gateway, "c").await?;
    assert_eq!(sessions_of(&gateway, 1).await?, 1, "it is the least loaded one");
    assert_eq!(call(&c, "echo", json!({"message": "back"})).await?, "back");
    assert_eq!(call(&b, "echo", json!({"message": "unharmed"})).await?, "unharmed");
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="connection-lost"}"#).await?, 1);
    Ok(())
}

/// `initialize` is heard on the registering connection, the goodbye before it on the worker's: the later one first.
#[tokio::test]
async fn a_goodbye_that_comes_after_the_next_initialize_ends_the_session_before_and_not_the_new_one()
-> Result<()> {
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let gateway = start(&proxy.url(), 1, &[]).await?;
    let (one, mut session) = client(&broker, &gateway, "a").await?;
    let instance = gateway.instance();
    for round in 1..=5 {
        proxy.freeze_only("_w1");
        session.close();
        let replaced = async {
            gateway.wait_metric(r#"sessions_ended_total{reason="replaced"}"#, round).await?;
            proxy.thaw();
            anyhow::Ok(())
        };
        let (opened, replaced) = tokio::join!(open(&one, &instance), replaced);
        replaced?;
        session = opened?;
        assert_eq!(call(&session, "echo", json!({"message": "heard"})).await?, "heard");
    }
    Ok(())
}

/// An ACL by client id, as some brokers have it, that does not know of workers.
#[tokio::test]
async fn without_workers_the_registering_connection_serves_and_the_status_names_the_cause() -> Result<()> {
    let acl = "pattern readwrite $mcp-server/%c/#\npattern readwrite $mcp-server/presence/%c/#\n\
               pattern readwrite $mcp-server/capability/%c/#\npattern readwrite $mcp-client/#\n\
               pattern readwrite $mcp-rpc/+/%c/#\npattern readwrite $mcp-rpc/%c/#\n\
               topic write $mcp-server/+/tests/stub\ntopic read $mcp-server/#\n";
    let broker = Mosquitto::options().acl(acl).start().await?;
    let gateway = Options::new(&broker.url()).arg("--workers=2").start()?;
    gateway.wait_ready().await?;
    let status = gateway
        .wait_for("the cause", |status| {
            status.broker.message.contains("BrokerNotAuthorized") || status.workers.iter().all(|w| w.part.ok)
        })
        .await?;
    assert!(status.ready() && status.broker.message.contains("2 of 2 worker"), "{status:?}");
    assert!(status.workers[0].client_id.ends_with("_w1"), "{status:?}");
    let (code, body) = gateway.get("/readyz").await?;
    assert!(code == 200 && body.contains("_w1: BrokerNotAuthorized"), "{body}");
    let (_client, session) = client(&broker, &gateway, "c").await?;
    assert_eq!(call(&session, "echo", json!({"message": "served"})).await?, "served");
    assert_eq!(gateway.metric(r#"broker_connections{role="registering"}"#).await?, 1);
    assert_eq!(gateway.metric(r#"broker_connections{role="worker"}"#).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_drain_says_all_on_the_workers_before_the_presence_goes() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = start(&broker.url(), 2, &["--drain-timeout=700ms"]).await?;
    let instance = gateway.instance();
    let clients = ["a", "b", "c"];
    let observer = observe(&broker.url(), &instance, &clients).await?;
    let mut sessions = Vec::new();
    for id in clients {
        let (client, session) = client(&broker, &gateway, id).await?;
        let waiting = calling(&session, "silence", json!({}));
        sessions.push((client, session, waiting));
    }
    gateway.wait_for("three requests in flight", |status| status.in_flight == 3).await?;
    gateway.terminate()?;
    let heard = heard_until_offline(observer, &instance).await?;
    assert_eq!(heard, ["a error", "a goodbye", "b error", "b goodbye", "c error", "c goodbye"]);
    for (_client, session, waiting) in sessions {
        let error = timeout(PATIENCE, waiting).await??.expect_err("drained");
        assert_eq!(reason(&error), Some("drained"), "{error}");
        assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected);
    }
    assert!(gateway.wait_ended().await?.success());
    Ok(())
}

#[tokio::test]
async fn when_the_server_dies_the_workers_clients_hear_of_it_before_the_presence_goes() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = start(&broker.url(), 2, &[]).await?;
    let instance = gateway.instance();
    let observer = observe(&broker.url(), &instance, &["a", "b"]).await?;
    let (_one, a) = client(&broker, &gateway, "a").await?;
    let (_two, b) = client(&broker, &gateway, "b").await?;
    let calls = [calling(&a, "silence", json!({})), calling(&b, "silence", json!({}))];
    gateway.wait_for("two requests in flight", |status| status.in_flight == 2).await?;
    gateway.kill_server()?;
    let heard = heard_until_offline(observer, &instance).await?;
    assert_eq!(heard, ["a error", "a goodbye", "b error", "b goodbye"]);
    for call in calls {
        let error = timeout(PATIENCE, call).await??.expect_err("its server is gone");
        assert_eq!(reason(&error), Some("backend-ended"), "{error}");
    }
    gateway.start_server()?;
    gateway.wait_ready().await
}

#[tokio::test]
async fn when_the_registering_connection_is_lost_all_sessions_end_with_errors_and_it_registers_again()
-> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = start(&broker.url(), 2, &[]).await?;
    let (one, a) = client(&broker, &gateway, "a").await?;
    let mut watch = one.watch(SERVER_NAME).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    let waiting = calling(&a, "silence", json!({}));
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    let thief = raw(&broker.url(), gateway.server_id().as_str()).await?;
    timeout(PATIENCE, waiting).await??.expect_err("the will or the worker ends the wait");
    timeout(PATIENCE, a.wait_ended()).await?;
    gateway.wait_metric("broker_reconnects_total", 1).await?;
    drop(thief);
    gateway.wait_ready().await?;
    gateway.wait_metric(r#"broker_connections{role="worker"}"#, 2).await?;
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="connection-lost"}"#).await?, 1);
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    let again = open(&one, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "back");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_restarts_takes_all_connections_and_all_come_back() -> Result<()> {
    let mut broker = Mosquitto::start().await?;
    let gateway = start(&broker.url(), 3, &[]).await?;
    let (_client, session) = client(&broker, &gateway, "c").await?;
    broker.kill()?;
    gateway.wait_for("the cause", |status| status.broker.reason == "BrokerUnreachable").await?;
    gateway.wait_for("the end of the session", |status| status.sessions == 0).await?;
    assert_eq!(gateway.metric(r#"broker_connections{role="worker"}"#).await?, 0);
    drop(session);
    broker.restart().await?;
    gateway.wait_ready().await?;
    gateway.wait_metric(r#"broker_connections{role="worker"}"#, 3).await?;
    let (_client, session) = client(&broker, &gateway, "c").await?;
    assert_eq!(call(&session, "echo", json!({"message": "back"})).await?, "back");
    Ok(())
}
