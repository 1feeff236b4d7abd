//! What an MQTT client sees of an HTTP server that breaks. (The HTTP backend by itself: `sidecar/tests/http`.)

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open, reason, until},
    servers,
};
use mcp_mqtt_transport::client::{Client, Session, SessionEnd};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::timeout;

use crate::http::Broken;

/// How long a server may take to answer a probe.
const PROBE: Duration = Duration::from_secs(30);

struct Stage {
    gateway: Gateway,
    _client: Client,
    session: Session,
    before: Baseline,
    _broker: Mosquitto,
    _server: Broken,
}

async fn stage(args: &[&str]) -> Result<Stage> {
    let broker = Mosquitto::start().await?;
    let server = Broken::start().await?;
    let mut options = Options::new(&broker.url()).http(&server.url);
    for arg in args {
        options = options.arg(arg);
    }
    let gateway = options.start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    Ok(Stage { gateway, _client: client, session, before, _broker: broker, _server: server })
}

#[tokio::test]
async fn a_5xx_is_an_error_to_its_caller_and_the_session_goes_on() -> Result<()> {
    let Stage { gateway, session, before, .. } = &stage(&[]).await?;
    for status in ["500", "502"] {
        let error = call(session, status, json!({})).await.expect_err("no answer");
        assert_eq!(reason(&error), Some("http-status"), "{error}");
        assert!(error.to_string().contains(status), "{error}");
        assert_eq!(call(session, "echo", json!({"message": "next"})).await?, "next");
    }
    let failed = r#"requests_total{asker="client",method="tools/call",outcome="failed"}"#;
    assert_eq!(gateway.metric(failed).await?, 2);
    assert!(gateway.status().await?.ready(), "one request is not the backend");
    before.regained(gateway).await
}

/// Headers that never end, a body that never ends, a stream that never ends and never answers, with and without
/// messages in it: each is an error in the call's own time, and the connection is given back.
#[tokio::test]
async fn what_never_ends_is_an_error_in_time_and_holds_up_no_other_call() -> Result<()> {
    let Stage { gateway, session, before, .. } = &stage(&["--timeout-call=5s"]).await?;
    let kinds = ["slow-head", "slow-body", "endless", "chatter"];
    let stuck = futures::future::join_all(kinds.map(|kind| call(session, kind, json!({}))));
    let others = async {
        let start = Instant::now();
        for n in 0..20 {
            assert_eq!(call(session, "echo", json!({"message": n.to_string()})).await?, n.to_string());
        }
        anyhow::Ok(start.elapsed())
    };
    let (stuck, others) = timeout(PATIENCE, async { tokio::join!(stuck, others) }).await?;
    for (kind, answer) in kinds.iter().zip(stuck) {
        let error = answer.expect_err("it never ends");
        assert_eq!(reason(&error), Some("timed-out"), "{kind}: {error}");
    }
    others?;
    let late = r#"requests_total{asker="client",method="tools/call",outcome="timed_out"}"#;
    assert_eq!(gateway.metric(late).await?, 4);
    assert_eq!(gateway.status().await?.in_flight, 0);
    before.regained(gateway).await
}

/// The server's place for requests of one session is bounded; those that never end must not use it up.
#[tokio::test]
async fn calls_that_never_end_do_not_use_the_session_up() -> Result<()> {
    let Stage { gateway, session, before, .. } = &stage(&["--timeout-call=3s", "--max-in-flight=8"]).await?;
    for _ in 0..3 {
        let stuck = (0..8).map(|_| call(session, "endless", json!({})));
        for answer in futures::future::join_all(stuck).await {
            let error = answer.expect_err("it never ends");
            assert_eq!(reason(&error), Some("timed-out"), "{error}");
        }
    }
    assert_eq!(call(session, "echo", json!({"message": "room"})).await?, "room");
    before.regained(gateway).await
}

/// A server that hangs still listens, as the kernel takes connections for it.
#[tokio::test]
async fn a_server_that_hangs_is_taken_out_of_the_registry_and_comes_back_when_it_answers() -> Result<()> {
    let (broker, server) = (Mosquitto::start().await?, servers::everything_http().await?);
    let options = Options::new(&broker.url()).backend(server.transport()).arg("--timeout-call=1s");
    let gateway = options.start_without_server()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let mut watch = client.watch(SERVER_NAME).await?;
    let session = open(&client, &gateway.instance()).await?;
    let process = i32::try_from(server.pid()).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(process, Signal::STOP)?;
    for _ in 0..3 {
        let error = call(&session, "echo", json!({"message": "x"})).await.expect_err("it hangs");
        assert_eq!(reason(&error), Some("timed-out"), "{error}");
    }
    assert!(gateway.status().await?.ready(), "a few late answers are not the end");
    timeout(PROBE + PATIENCE, watch.until(<[_]>::is_empty)).await?;
    assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected);
    let status = gateway.status().await?;
    assert!(!status.ready() && status.backend.reason == "BackendNotAnswering", "{status:?}");

    kill_process(process, Signal::CONT)?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    gateway.wait_ready().await?;
    let again = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "Echo: back");
    Ok(())
}

#[tokio::test]
async fn a_server_whose_calls_are_late_and_that_answers_initialize_stays_registered() -> Result<()> {
    let Stage { gateway, session, .. } = &stage(&["--timeout-call=300ms"]).await?;
    for _ in 0..4 {
        let error = call(session, "slow-body", json!({})).await.expect_err("it never ends");
        assert_eq!(reason(&error), Some("timed-out"), "{error}");
    }
    until("the server was asked", || gateway.log().contains("requests in a row were not answered")).await?;
    tokio::time::sleep(Duration::from_secs(1)).await; // it answers at once
    assert_eq!(call(session, "echo", json!({"message": "here"})).await?, "here");
    assert!(gateway.status().await?.ready());
    Ok(())
}
