//! Real servers over HTTP behind the gateway: what MQTT clients see when the server loses a session, or itself.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use mcp_mqtt_sidecar::status::GatewayStatus;
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open, open_with, reason, until},
    servers::{self, Server},
};
use mcp_mqtt_transport::{
    client::{RequestError, Session, SessionEnd, SessionHandler},
    jsonrpc::Message,
    topic::ServerName,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::time::timeout;

async fn gateway(broker: &Mosquitto, server: &Server) -> Result<Gateway> {
    let gateway = Options::new(&broker.url()).backend(server.transport()).start_without_server()?;
    gateway.wait_ready().await?;
    Ok(gateway)
}

async fn echo(session: &Session, text: &str) -> Result<()> {
    assert_eq!(call(session, "echo", json!({"message": text})).await?, format!("Echo: {text}"));
    Ok(())
}

#[tokio::test]
async fn a_session_that_the_server_lost_is_ended_alone_and_its_client_opens_another() -> Result<()> {
    let (broker, server) = (Mosquitto::start().await?, servers::everything_http().await?);
    let gateway = gateway(&broker, &server).await?;
    let (one, two) = (connect(&broker.url(), "one").await?, connect(&broker.url(), "two").await?);
    let lost = open(&one, &gateway.instance()).await?;
    echo(&lost, "before").await?;
    let id = server.session_ids().pop().expect("the session has just begun");
    let other = open(&two, &gateway.instance()).await?;
    echo(&other, "before").await?;

    // A call is in flight when the server forgets the session.
    let waiting = tokio::spawn({
        let lost = lost.clone();
        async move { call(&lost, "trigger-long-running-operation", json!({"duration": 60, "steps": 2})).await }
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    server.delete_session(&id).await?;
    let error = timeout(PATIENCE, waiting).await??.expect_err("its session is gone");
    assert_eq!(reason(&error), Some("backend-ended"), "{error}");
    assert!(error.to_string().contains("the server lost the session"), "{error}");
    assert_eq!(timeout(PATIENCE, lost.wait_ended()).await?, SessionEnd::Disconnected);
    gateway.wait_metric(r#"sessions_ended_total{reason="backend-ended"}"#, 1).await?;

    echo(&other, "unharmed").await?;
    let again = open(&one, &gateway.instance()).await?;
    echo(&again, "back").await?;
    let status = gateway.status().await?;
    assert!(status.ready() && status.sessions == 2 && status.in_flight == 0, "{status:?}");
    Ok(())
}

#[tokio::test]
async fn a_session_lost_between_calls_is_ended_too() -> Result<()> {
    let (broker, server) = (Mosquitto::start().await?, servers::everything_http().await?);
    let gateway = gateway(&broker, &server).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    echo(&session, "before").await?;
    server.delete_session(&server.session_ids().pop().expect("the session has just begun")).await?;
    // By the end of the server's own stream, without any message of the client.
    assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected);
    let again = open(&client, &gateway.instance()).await?;
    echo(&again, "back").await
}

#[tokio::test]
async fn a_server_over_http_sse_serves_mqtt_clients_and_comes_back_after_a_restart() -> Result<()> {
    let (broker, mut server) = (Mosquitto::start().await?, servers::everything_sse().await?);
    let gateway = gateway(&broker, &server).await?;
    let (one, two) = (connect(&broker.url(), "one").await?, connect(&broker.url(), "two").await?);
    let mut watch = one.watch(SERVER_NAME).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    let instance = one.find(&ServerName::new(SERVER_NAME)?, PATIENCE).await?;
    let (a, b) = (open(&one, &instance).await?, open(&two, &instance).await?);
    for n in 0..10 {
        let (first, second) = (format!("a{n}"), format!("b{n}"));
        let (first, second) = tokio::join!(echo(&a, &first), echo(&b, &second));
        first.and(second)?;
    }
    let waiting = tokio::spawn({
        let a = a.clone();
        async move { call(&a, "trigger-long-running-operation", json!({"duration": 60, "steps": 2})).await }
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    echo(&a, "after it").await?; // the server has taken the call, and not only the gateway

    server.kill()?;
    let error = timeout(PATIENCE, waiting).await??.expect_err("its server is gone");
    assert_eq!(reason(&error), Some("backend-ended"), "{error}");
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
    gateway
        .wait_for("readiness off", |status: &GatewayStatus| !status.ready() && status.sessions == 0)
        .await?;

    let _again = servers::everything_sse_at(&server.port().expect("it listens")).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    gateway.wait_ready().await?;
    let again = open(&one, &instance).await?;
    echo(&again, "back").await?;
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0, "the broker has nothing to do with it");
    Ok(())
}

/// Hosted servers have their key in the query of the URL.
#[tokio::test]
async fn a_key_in_the_servers_url_is_told_to_nobody() -> Result<()> {
    let (broker, mut server) = (Mosquitto::start().await?, servers::everything_http().await?);
    let url = server.transport().http_url.clone().expect("it has one");
    let mut with_key = url.clone();
    with_key.set_query(Some("key=SECRET"));
    let gateway = Options::new(&broker.url()).http(&with_key).start_without_server()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let waiting = tokio::spawn(async move {
        call(&session, "trigger-long-running-operation", json!({"duration": 60, "steps": 2})).await
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    server.kill()?;
    let error = timeout(PATIENCE, waiting).await??.expect_err("its server is gone").to_string();
    let status = gateway.wait_for("the cause", |status| !status.backend.ok).await?.backend.message;
    let (_, pending) = gateway.get("/readyz").await?;
    assert!(status.contains(&format!("nobody listens at {url}")), "{status}");
    for told in [error, status, pending, gateway.log()] {
        assert!(told.contains(url.as_str()) && !told.contains("SECRET"), "{told}");
    }
    Ok(())
}

/// The gateway counts it when the grace for a late answer is over, while the session lives on.
#[tokio::test]
async fn a_call_that_its_client_gives_up_is_cancelled_and_counted_over_each_transport() -> Result<()> {
    const ABANDONED: &str = r#"requests_total{asker="client",method="tools/call",outcome="abandoned"}"#;
    let broker = Mosquitto::start().await?;
    let servers = [
        servers::everything_http().await?,
        servers::everything_sse().await?,
        servers::everything_stdio(&[]).await?,
    ];
    let given_up = servers.iter().enumerate().map(async |(number, server)| {
        let gateway = gateway(&broker, server).await?;
        let client = connect(&broker.url(), &format!("c{number}")).await?;
        let session = open(&client, &gateway.instance()).await?;
        let arguments = json!({"duration": 60, "steps": 60});
        let params = json!({"name": "trigger-long-running-operation", "arguments": arguments});
        let call = session.request("tools/call", Some(&params), Duration::from_millis(300)).await;
        ensure!(matches!(call, Err(RequestError::Timeout(_))), "{call:?}");
        gateway.wait_metric(ABANDONED, 1).await?;
        echo(&session, "still here").await
    });
    try_join_all(given_up).await?;
    Ok(())
}

/// Keeps what it is told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl SessionHandler for Told {
    fn notification(&self, notification: &Message) {
        let method = notification.method().unwrap_or_default().to_owned();
        self.0.lock().expect("no test panics with it").push(method);
    }
}

#[tokio::test]
async fn a_list_of_tools_that_changes_in_a_session_is_told_to_the_clients() -> Result<()> {
    let (broker, server) = (Mosquitto::start().await?, servers::growing_http().await?);
    let gateway = gateway(&broker, &server).await?;
    let (one, two) = (connect(&broker.url(), "one").await?, connect(&broker.url(), "two").await?);
    let (told, other) = (Arc::new(Told::default()), Arc::new(Told::default()));
    let session = open_with(&one, &gateway.instance(), told.clone()).await?;
    let beside = open_with(&two, &gateway.instance(), other.clone()).await?;
    let tools = async |session: &Session| session.request::<()>("tools/list", None, PATIENCE).await;
    ensure!(!tools(&session).await?.get().contains("\"grown\""));

    assert_eq!(call(&session, "grow", json!({})).await?, "done");
    let heard = || told.0.lock().expect("no test panics with it").clone();
    until("the client hears of it", || !heard().is_empty()).await?;
    assert_eq!(heard(), ["notifications/tools/list_changed"]);
    ensure!(tools(&session).await?.get().contains("\"grown\""));
    assert_eq!(call(&session, "grown", json!({})).await?, "grown");

    // It is told to all, as the capability topic is everybody's; what has changed there is this session's list alone.
    until("the other client hears of it", || !other.0.lock().expect("as above").is_empty()).await?;
    ensure!(!tools(&beside).await?.get().contains("\"grown\""));
    Ok(())
}

/// A request over HTTP has a connection of its own: by habit a process may open 1,024 files and no more.
#[tokio::test]
async fn a_gateway_before_a_server_over_http_opens_as_many_files_as_it_may() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let soft = limit.maximum.map_or(1000, |hard| hard.min(1000));
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), ..limit })?; // what it inherits from us
    let (broker, server) = (Mosquitto::start().await?, servers::everything_http().await?);
    let gateway = gateway(&broker, &server).await?;
    let (_, metrics) = gateway.get("/metrics").await?;
    let open = metrics.lines().find_map(|line| line.strip_prefix("process_max_fds ")).unwrap_or_default();
    let expected = limit.maximum.and_then(|hard| i64::try_from(hard).ok()).unwrap_or(i64::MAX);
    assert_eq!(open.parse::<i64>()?, expected, "{limit:?}");
    Ok(())
}
