//! The drain: nobody hangs, what can finish finishes, and the presence goes last.

use std::{
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open, reason},
    proxy::{
        Manner, Proxy,
        kind::{DISCONNECT, PUBLISH},
    },
    raw::{Raw, initialize},
    servers,
};
use mcp_mqtt_transport::{
    client::{Client, RequestError, Session, SessionEnd},
    mqtt::{ConnectOptions, Connection, Event, Filter, Qos},
    topic,
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

/// The kubelet takes longer from the end of a container to its next start.
const RESTART: Duration = Duration::from_millis(300);

async fn ended(mut child: Child) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        ensure!(Instant::now() < deadline, "the drain does not end");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A client with a call in flight that takes so long.
async fn busy(broker: &Mosquitto, gateway: &Gateway, ms: u64) -> Result<(Client, Session, Call)> {
    let client = connect(&broker.url(), "busy").await?;
    let session = open(&client, &gateway.instance()).await?;
    let slow = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "sleep", json!({"ms": ms})).await }
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    Ok((client, session, slow))
}

type Call = tokio::task::JoinHandle<Result<String, RequestError>>;

#[tokio::test]
async fn a_drain_by_the_socket_lets_a_call_finish_and_refuses_what_comes_meanwhile() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = Gateway::ready_at(&broker.url()).await?;
    let idle_client = connect(&broker.url(), "idle").await?;
    let idle = open(&idle_client, &gateway.instance()).await?;
    let (client, session, slow) = busy(&broker, &gateway, 6000).await?;
    let mut watch = client.watch(SERVER_NAME).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    let drain = gateway.drain()?;
    gateway.wait_for("the drain", |status| status.draining).await?;
    // The idle session ends at once, the busy one takes nothing new, and there are no new ones.
    assert_eq!(timeout(PATIENCE, idle.wait_ended()).await?, SessionEnd::Disconnected);
    let refused = call(&session, "echo", json!({"message": "x"})).await.expect_err("draining");
    assert_eq!(reason(&refused), Some("draining"), "{refused}");
    let refused = open(&idle_client, &gateway.instance()).await.expect_err("draining");
    assert!(format!("{refused:#}").contains("draining"), "{refused:#}");
    assert_eq!(watch.instances().len(), 1, "the presence goes last");
    assert_eq!(gateway.get("/readyz").await?, (503, "draining\n".to_owned()));
    assert_eq!(timeout(PATIENCE, slow).await???, "slept");
    assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected);
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
    assert!(ended(drain).await?);
    let status = gateway.status().await?;
    assert_eq!((status.broker.reason.as_str(), status.sessions), ("Drained", 0));
    assert!(ended(gateway.drain()?).await?, "asking again is answered at once");
    gateway.terminate()?;
    assert!(gateway.wait_ended().await?.success());
    Ok(())
}

#[tokio::test]
async fn sigterm_drains_and_a_call_beyond_the_deadline_gets_its_error_before_the_presence_goes() -> Result<()>
{
    let broker = Mosquitto::start().await?;
    let mut gateway = Options::new(&broker.url()).arg("--drain-timeout=700ms").start()?;
    gateway.wait_ready().await?;
    let mut order = Order::watch(&broker, &gateway).await?;
    let (_client, session, slow) = busy(&broker, &gateway, 60_000).await?;
    let begun = Instant::now();
    gateway.terminate()?;
    let error = timeout(PATIENCE, slow).await??.expect_err("it takes too long");
    assert_eq!(reason(&error), Some("drained"), "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(700), "not before the deadline");
    assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected);
    assert!(gateway.wait_ended().await?.success());
    order.expect(&["error", "disconnected", "offline"]).await
}

#[tokio::test]
async fn an_idle_gateway_is_drained_at_once_and_so_is_one_without_a_broker_or_a_server() -> Result<()> {
    let mut broker = Mosquitto::start().await?;
    let mut idle = Gateway::ready_at(&broker.url()).await?;
    let serverless = Options::new(&broker.url()).start_without_server()?;
    serverless.wait_for("connection", |status| status.broker.reason == "WaitingForBackend").await?;
    let begun = Instant::now();
    idle.terminate()?;
    assert!(idle.wait_ended().await?.success());
    assert!(ended(serverless.drain()?).await?);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    broker.kill()?;
    let mut lonely = Options::new(&broker.url()).start()?;
    lonely.wait_for("the cause", |status| status.broker.reason == "BrokerUnreachable").await?;
    lonely.terminate()?;
    assert!(lonely.wait_ended().await?.success());
    Ok(())
}

/// The server container's preStop runs also when a probe has failed: then the container is started again, beside the
/// same gateway.
#[tokio::test]
async fn a_server_over_stdio_that_is_started_anew_after_a_drain_is_registered_again_and_serves() -> Result<()>
{
    let broker = Mosquitto::start().await?;
    let mut gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let mut watch = client.watch(SERVER_NAME).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    for round in 0..2 {
        let session = open(&client, &gateway.instance()).await?;
        assert!(ended(gateway.drain()?).await?, "drain {round}");
        assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected);
        timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
        let (code, pending) = gateway.get("/readyz").await?;
        assert!(code == 503 && pending.ends_with("draining\n"), "{pending}");
        gateway.kill_server()?;
        gateway
            .wait_for("the server's end", |status| {
                !status.draining && status.broker.reason == "WaitingForBackend"
            })
            .await?;
        gateway.start_server()?;
        timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
        gateway.wait_ready().await?;
        let again = open(&client, &gateway.instance()).await?;
        assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "back");
    }
    gateway.terminate()?;
    assert!(gateway.wait_ended().await?.success());
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_over_http_that_is_started_anew_after_a_drain_is_registered_again_and_serves() -> Result<()>
{
    let (broker, mut server) = (Mosquitto::start().await?, servers::everything_http().await?);
    let gateway = Options::new(&broker.url()).backend(server.transport()).start_without_server()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let mut watch = client.watch(SERVER_NAME).await?;
    assert!(ended(gateway.drain()?).await?);
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
    server.kill()?;
    sleep(RESTART).await;
    let _again = servers::everything_http_at(&server.port().expect("it listens")).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    gateway.wait_ready().await?;
    let session = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "back"})).await?, "Echo: back");
    Ok(())
}

/// As in a pod that is being deleted, with a server that does not heed its SIGTERM.
#[tokio::test]
async fn a_server_that_goes_on_answering_after_a_drain_is_not_registered_again() -> Result<()> {
    let (broker, server) = (Mosquitto::start().await?, servers::everything_http().await?);
    let mut stdio = Gateway::ready_at(&broker.url()).await?;
    let mut http = Options::new(&broker.url())
        .backend(server.transport())
        .server_name("tests/http")
        .start_without_server()?;
    http.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    for gateway in [&stdio, &http] {
        assert!(ended(gateway.drain()?).await?);
    }
    let mut watch = client.watch("tests/#").await?;
    let seen = timeout(Duration::from_secs(4), watch.until(|instances| !instances.is_empty())).await;
    assert!(seen.is_err(), "{seen:?}");
    for gateway in [&mut stdio, &mut http] {
        let status = gateway.status().await?;
        assert!(status.backend.ok && status.draining, "{status:?}");
        assert_eq!(status.broker.reason, "Drained");
        gateway.terminate()?;
        assert!(gateway.wait_ended().await?.success());
    }
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_a_gateway_that_waits_for_its_server_after_a_drain() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = Gateway::ready_at(&broker.url()).await?;
    assert!(ended(gateway.drain()?).await?);
    gateway.kill_server()?;
    gateway.wait_for("the server's end", |status| !status.draining).await?;
    assert!(ended(gateway.drain()?).await?, "there is nothing to wait for");
    gateway.terminate()?;
    assert!(gateway.wait_ended().await?.success());
    Ok(())
}

#[tokio::test]
async fn closed_loop_clients_see_each_call_answered_refused_or_ended_and_none_hangs() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = Gateway::ready_at(&broker.url()).await?;
    let mut loops = Vec::new();
    let (first, mut firsts) = mpsc::channel(10);
    for n in 0..10 {
        let client = connect(&broker.url(), &format!("loop-{n}")).await?;
        let session = open(&client, &gateway.instance()).await?;
        let mut first = Some(first.clone());
        loops.push(tokio::spawn(async move {
            let _client = client;
            loop {
                match call(&session, "sleep", json!({"ms": 5})).await {
                    Ok(_) => {
                        if let Some(first) = first.take() {
                            let _ = first.send(()).await; // or nobody waits any more
                        }
                    }
                    Err(error) if reason(&error) == Some("draining") => return Ok(()),
                    Err(RequestError::Ended(SessionEnd::Disconnected)) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        }));
    }
    for _ in 0..loops.len() {
        timeout(PATIENCE, firsts.recv()).await.context("all are at work")?;
    }
    gateway.terminate()?;
    for client in loops {
        timeout(PATIENCE, client).await???;
    }
    assert!(gateway.wait_ended().await?.success());
    Ok(())
}

/// A gateway behind a proxy, and a client that asks for a session when it is about to go.
async fn late_client() -> Result<(Mosquitto, Proxy, Gateway, Raw)> {
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let gateway = Options::new(&proxy.url()).start()?;
    gateway.wait_ready().await?;
    let late = Raw::connect(&broker.url(), "late", &gateway).await?;
    Ok((broker, proxy, gateway, late))
}

#[tokio::test]
async fn initialize_that_comes_right_before_the_end_is_refused_before_disconnect() -> Result<()> {
    let (_broker, proxy, mut gateway, mut late) = late_client().await?;
    // Right behind it comes the acknowledgement of the empty presence.
    proxy.freeze();
    late.control(initialize(1)).await?;
    gateway.terminate()?;
    gateway.wait_for("the drain", |status| status.draining).await?;
    proxy.thaw();
    let refused = late.answer().await?;
    assert!(refused["id"] == 1 && refused["error"]["data"]["reason"] == "draining", "{refused}");
    assert!(gateway.wait_ended().await?.success());
    assert!(proxy.wait_sent(PUBLISH, "draining").await? < proxy.wait_sent(DISCONNECT, "").await?);
    Ok(())
}

#[tokio::test]
async fn initialize_is_refused_while_the_broker_does_not_acknowledge_the_empty_presence() -> Result<()> {
    let (_broker, proxy, mut gateway, mut late) = late_client().await?;
    proxy.behave(Manner { swallows: Some("$mcp-server/presence/"), ..Manner::default() });
    gateway.terminate()?;
    gateway.wait_for("the drain", |status| status.draining).await?;
    late.control(initialize(1)).await?;
    let refused = late.answer().await?;
    assert!(refused["id"] == 1 && refused["error"]["data"]["reason"] == "draining", "{refused}");
    gateway.wait_ended().await?;
    Ok(())
}

#[tokio::test]
async fn a_broker_that_stands_still_does_not_hold_up_the_end_for_ever() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = Options::new(&broker.url()).arg("--drain-timeout=200ms").start()?;
    gateway.wait_ready().await?;
    broker.pause()?;
    gateway.terminate()?;
    gateway.wait_ended().await?; // in PATIENCE, and that is all
    Ok(())
}

/// Hears what one client and everybody hears, in the order in which the broker got it.
struct Order {
    connection: Connection,
}

impl Order {
    async fn watch(broker: &Mosquitto, gateway: &Gateway) -> Result<Self> {
        let options =
            ConnectOptions { connect_timeout: PATIENCE, ..ConnectOptions::new(broker.url(), "order") };
        let connection = Connection::open(&options).await?;
        let instance = gateway.instance();
        let filters = [
            topic::rpc(&"busy".parse()?, &instance.server_id, &instance.server_name),
            topic::server_presence(&instance.server_id, &instance.server_name),
        ];
        let filters = filters.map(|filter| Filter { filter, qos: Qos::AtLeastOnce, no_local: false });
        connection.publisher.subscribe(filters.into(), PATIENCE).await?;
        Ok(Self { connection })
    }

    async fn expect(&mut self, expected: &[&str]) -> Result<()> {
        let mut heard = Vec::new();
        while heard.len() < expected.len() {
            let event = timeout(PATIENCE, self.connection.events.recv()).await?;
            let Some(Event::Received(received)) = event else { anyhow::bail!("{event:?} after {heard:?}") };
            if received.payload.is_empty() {
                heard.push("offline");
                continue;
            }
            let message: Value = serde_json::from_slice(&received.payload)?;
            if message.get("error").is_some() {
                heard.push("error");
            } else if message["method"] == "notifications/disconnected" {
                heard.push("disconnected");
            }
        }
        assert_eq!(heard, expected);
        Ok(())
    }
}
