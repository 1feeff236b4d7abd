//! SIGTERM and SIGKILL at every point: nobody waits for ever, no presence and no process stays, and it can be started
//! again under the same name.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use mcp_mqtt_tests::{
    baseline::childless,
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open, open_with, reason},
};
use mcp_mqtt_transport::{
    client::{Client, HandlerFuture, OpenError, RequestError, Session, SessionEnd, SessionHandler},
    jsonrpc::{Message, RpcError},
};
use serde_json::{json, value::RawValue};
use tokio::{task::JoinHandle, time::timeout};

#[tokio::test]
async fn a_gateway_that_is_killed_leaves_no_presence_and_no_process() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let waiting = tokio::spawn(async move { call(&session, "silence", json!({})).await });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    gateway.kill()?;
    let error = timeout(PATIENCE, waiting).await??.expect_err("nobody is left to answer");
    assert_eq!(error, RequestError::Ended(SessionEnd::Offline), "the will ends the wait");
    childless(gateway.server_pid().context("the shim runs")?).await
}

/// Where a session stands when the gateway ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// `initialize` waits for its server.
    Opening,
    /// Nothing is in flight.
    Idle,
    /// A call that will be answered in a moment.
    ShortCall,
    /// A call that will never be answered.
    LongCall,
    /// The server waits for its client.
    Asking,
    /// The server talks without end.
    Flooding,
    /// A client initializes again and again.
    Reinitializing,
}

const POINTS: [Point; 7] = [
    Point::Opening,
    Point::Idle,
    Point::ShortCall,
    Point::LongCall,
    Point::Asking,
    Point::Flooding,
    Point::Reinitializing,
];

/// Never answers.
#[derive(Debug)]
struct Silent;

impl SessionHandler for Silent {
    fn request<'a>(&'a self, _request: &'a Message) -> HandlerFuture<'a, Result<Box<RawValue>, RpcError>> {
        Box::pin(std::future::pending())
    }

    fn notification(&self, _notification: &Message) {}
}

/// What the client waits for at that point; it ends with what it was told.
async fn bring_to(point: Point, client: &Client, gateway: &Gateway) -> Result<JoinHandle<Result<String>>> {
    let instance = gateway.instance();
    if point == Point::Opening {
        let client = client.clone();
        let waiting = tokio::spawn(async move { Ok(ended(open(&client, &instance).await)) });
        gateway.wait_for("initialize in flight", |status| status.in_flight == 1).await?;
        return Ok(waiting);
    }
    if point == Point::Reinitializing {
        let client = client.clone();
        let waiting = tokio::spawn(async move {
            let mut replaced = Vec::new(); // a session that is dropped says goodbye
            loop {
                match open(&client, &instance).await {
                    Ok(session) => replaced.push(session),
                    Err(error) => return Ok(ended(Err(error))),
                }
            }
        });
        gateway.wait_metric_above(r#"sessions_ended_total{reason="replaced"}"#, 2).await?;
        return Ok(waiting);
    }
    let session = open_with(client, &instance, Arc::new(Silent)).await?;
    let (tool, arguments) = match point {
        Point::Idle => return Ok(tokio::spawn(async move { Ok(session.wait_ended().await.to_string()) })),
        Point::ShortCall => ("sleep", json!({"ms": 3000})),
        Point::Asking => ("ask", json!({"method": "sampling/createMessage", "params": {}})),
        Point::Flooding => ("flood", json!({"count": 1_000_000, "bytes": 300})),
        _ => ("silence", json!({})),
    };
    let waiting = tokio::spawn(async move { Ok(told(&session, tool, arguments).await) });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    Ok(waiting)
}

/// What became of a call, in a word.
async fn told(session: &Session, tool: &str, arguments: serde_json::Value) -> String {
    match call(session, tool, arguments).await {
        Ok(text) => text,
        Err(RequestError::Ended(end)) => end.to_string(),
        Err(error) => reason(&error).unwrap_or("no reason").to_owned(),
    }
}

/// What became of `initialize`, in a word.
fn ended(opened: Result<Session>) -> String {
    match opened {
        Ok(_) => "opened".to_owned(),
        Err(error) => match error.downcast_ref::<OpenError>() {
            Some(OpenError::Initialize(RequestError::Ended(end))) => end.to_string(),
            Some(OpenError::Initialize(error)) => reason(error).unwrap_or("no reason").to_owned(),
            _ => format!("{error:#}"),
        },
    }
}

async fn stage(point: Point) -> Result<(Mosquitto, Gateway, Client)> {
    let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
    // A short call is over within it, and nothing else.
    let drain = if point == Point::ShortCall { "--drain-timeout=15s" } else { "--drain-timeout=800ms" };
    let mut options = Options::new(&broker.url()).arg(drain);
    if point == Point::Opening {
        options = options.server_arg("--slow").server_arg("2000");
    }
    let gateway = options.start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    Ok((broker, gateway, client))
}

/// Neither presence nor process is left; started again, it serves the same client.
async fn nothing_is_left(point: Point, client: &Client, mut gateway: Gateway) -> Result<()> {
    let mut watch = client.watch(SERVER_NAME).await?;
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await.context("the presence stays")?;
    let shim = gateway.server_pid().context("the shim runs")?;
    childless(shim).await.with_context(|| format!("{point:?}"))?;
    gateway.start_again()?;
    gateway.wait_ready().await?;
    let session = open(client, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "again"})).await?, "again");
    Ok(())
}

#[tokio::test]
async fn sigterm_at_every_point_of_a_session_leaves_nobody_waiting_and_nothing_behind() -> Result<()> {
    for point in POINTS {
        let (_broker, mut gateway, client) = stage(point).await?;
        let waiting = bring_to(point, &client, &gateway).await?;
        gateway.terminate()?;
        let told = timeout(PATIENCE, waiting).await.with_context(|| format!("{point:?} hangs"))???;
        let expected: &[&str] = match point {
            // By its server, and then the session is over at once; or at the deadline.
            Point::Opening => &["opened", "ended by the server", "drained"],
            Point::ShortCall => &["slept"],
            Point::LongCall | Point::Asking | Point::Flooding => &["drained"],
            Point::Idle => &["ended by the server"],
            Point::Reinitializing => &["drained", "draining", "session-ended", "ended by the server"],
        };
        assert!(expected.contains(&told.as_str()), "{point:?}: {told}");
        assert!(gateway.wait_ended().await?.success(), "{point:?}");
        // Its metrics are gone with it: the log has the last word.
        assert!(gateway.log().contains("session ended: "), "{point:?}: {}", gateway.log());
        nothing_is_left(point, &client, gateway).await?;
    }
    Ok(())
}

#[tokio::test]
async fn sigkill_at_every_point_of_a_session_leaves_nobody_waiting_and_nothing_behind() -> Result<()> {
    for point in POINTS {
        let (_broker, mut gateway, client) = stage(point).await?;
        let waiting = bring_to(point, &client, &gateway).await?;
        gateway.kill()?;
        // Who initializes again and again does not look at the presence; and nobody is there to answer.
        if point == Point::Reinitializing {
            waiting.abort();
        } else {
            let told = timeout(PATIENCE, waiting).await.with_context(|| format!("{point:?} hangs"))???;
            assert_eq!(told, "the server went offline", "{point:?}: the will says it");
        }
        nothing_is_left(point, &client, gateway).await?;
    }
    Ok(())
}

/// Before there is any session: while it looks for its broker, for its server, or is being stopped already.
#[tokio::test]
async fn sigterm_before_it_is_registered_ends_it_in_order() -> Result<()> {
    let mut broker = Mosquitto::start().await?;
    let mut no_server = Options::new(&broker.url()).start_without_server()?;
    no_server.wait_for("connection", |status| status.broker.reason == "WaitingForBackend").await?;
    no_server.terminate()?;
    assert!(no_server.wait_ended().await?.success());
    broker.kill()?;
    let mut no_broker = Options::new(&broker.url()).start()?;
    no_broker.wait_for("the cause", |status| status.broker.reason == "BrokerUnreachable").await?;
    no_broker.terminate()?;
    assert!(no_broker.wait_ended().await?.success());
    Ok(())
}

/// Whoever is in a hurry says it twice: no drain, and the will clears the presence.
#[tokio::test]
async fn a_second_sigterm_ends_it_at_once_and_the_will_does_the_rest() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = Options::new(&broker.url()).arg("--drain-timeout=60s").start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let waiting = bring_to(Point::LongCall, &client, &gateway).await?;
    gateway.terminate()?;
    gateway.wait_for("the drain", |status| status.draining).await?;
    gateway.terminate()?;
    let status = gateway.wait_ended().await?;
    if status.success() {
        bail!("it was not drained, and must not say so");
    }
    assert_eq!(timeout(PATIENCE, waiting).await???, SessionEnd::Offline.to_string());
    nothing_is_left(Point::LongCall, &client, gateway).await
}
