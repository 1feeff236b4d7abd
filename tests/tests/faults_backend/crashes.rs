//! Processes of a stdio server that crash, hang, do not start, or never stop talking.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Result;
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open, reason},
};
use mcp_mqtt_transport::client::{Client, RequestError, SessionEnd};
use serde_json::json;
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn a_server_that_crashes_answers_what_is_in_flight_with_an_error_and_ends_one_session_only()
-> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let (one, two) = (connect(&broker.url(), "one").await?, connect(&broker.url(), "two").await?);
    let (a, b) = (open(&one, &gateway.instance()).await?, open(&two, &gateway.instance()).await?);
    let before = Baseline::of(&gateway);
    let waiting = call(&a, "silence", json!({}));
    let crash = async {
        sleep(Duration::from_millis(100)).await;
        call(&a, "crash", json!({"code": 3})).await
    };
    let (waiting, crash) = tokio::join!(waiting, crash);
    for answer in [waiting, crash] {
        let error = answer.expect_err("its process is gone");
        assert_eq!(reason(&error), Some("backend-ended"), "{error}");
    }
    assert_eq!(timeout(PATIENCE, a.wait_ended()).await?, SessionEnd::Disconnected);
    assert_eq!(call(&b, "echo", json!({"message": "unharmed"})).await?, "unharmed");
    assert!(gateway.status().await?.ready(), "one session's process is not the backend");
    let again = open(&one, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "back");
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="backend-ended"}"#).await?, 1);
    let failed = r#"requests_total{asker="client",method="tools/call",outcome="failed"}"#;
    assert_eq!(gateway.metric(failed).await?, 2);
    before.regained(&gateway).await
}

#[tokio::test]
async fn while_the_servers_container_is_gone_nobody_finds_it_and_nobody_waits() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let mut watch = client.watch(SERVER_NAME).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    let session = open(&client, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    let waiting = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "silence", json!({})).await }
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    gateway.kill_server()?;
    let error = timeout(PATIENCE, waiting).await??.expect_err("its server is gone");
    assert_eq!(reason(&error), Some("backend-ended"), "an error, before the presence is cleared: {error}");
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
    let status = gateway.wait_for("readiness off", |status| !status.ready()).await?;
    assert!(!status.backend.ok, "{status:?}");
    assert_eq!((status.broker.reason.as_str(), status.sessions), ("WaitingForBackend", 0));
    gateway.start_server()?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    gateway.wait_ready().await?;
    let again = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "back");
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0, "the broker has nothing to do with it");
    before.regained(&gateway).await
}

/// A gateway whose server is well until the test says otherwise.
async fn troubled(broker: &Mosquitto, args: &[&str]) -> Result<(Gateway, PathBuf)> {
    let switch = std::env::temp_dir().join(format!("trouble-{:016x}", fastrand::u64(..)));
    let mut options = Options::new(&broker.url())
        .server_arg("--trouble")
        .server_arg(switch.to_str().expect("a path of ours"));
    for arg in args {
        options = options.arg(arg);
    }
    let gateway = options.start()?;
    gateway.wait_ready().await?;
    Ok((gateway, switch))
}

/// Makes every process that is started from now on break, tries to open a session, and lets the next ones be well.
async fn open_in_trouble(client: &Client, gateway: &Gateway, switch: &PathBuf, kind: &str) -> Result<String> {
    fs::write(switch, kind)?;
    let refused = timeout(PATIENCE, open(client, &gateway.instance())).await?;
    fs::remove_file(switch)?;
    Ok(format!("{:#}", refused.expect_err("its server is broken")))
}

#[tokio::test]
async fn a_server_that_exits_at_start_is_an_error_with_its_exit_code_and_nothing_is_left_of_it() -> Result<()>
{
    let broker = Mosquitto::start().await?;
    let (gateway, switch) = troubled(&broker, &[]).await?;
    let client = connect(&broker.url(), "c").await?;
    let before = Baseline::of(&gateway);
    for n in 1..=2 {
        let error = open_in_trouble(&client, &gateway, &switch, "exit").await?;
        assert!(error.contains('7'), "the exit code is in it: {error}");
        gateway.wait_metric(r#"sessions_ended_total{reason="backend-ended"}"#, n).await?;
    }
    let failed = r#"requests_total{asker="client",method="initialize",outcome="failed"}"#;
    assert_eq!(gateway.metric(failed).await?, 2);
    before.regained(&gateway).await?;
    let session = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "well"})).await?, "well");
    Ok(())
}

/// As with a full disk, or a token that was revoked: what runs goes on, and nothing new starts.
#[tokio::test]
async fn a_server_that_starts_no_more_is_not_ready_and_keeps_the_sessions_that_it_has() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (gateway, switch) = troubled(&broker, &[]).await?;
    let (client, keeper) = (connect(&broker.url(), "c").await?, connect(&broker.url(), "keeper").await?);
    let mut watch = client.watch(SERVER_NAME).await?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    let kept = open(&keeper, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    let fail = async || {
        fs::write(&switch, "exit")?;
        for _ in 0..3 {
            open(&client, &gateway.instance()).await.expect_err("its process exits");
        }
        let status = gateway.wait_for("readiness off", |status| !status.ready()).await?;
        assert!(status.backend.message.contains("exit code 7"), "{status:?}");
        let refused = open(&client, &gateway.instance()).await.expect_err("nothing new starts");
        let refused = format!("{refused:#}");
        assert!(
            refused.contains("takes no session at present") && refused.contains("exit code 7"),
            "{refused}"
        );
        anyhow::Ok(())
    };
    let is_kept = async || call(&kept, "echo", json!({"message": "kept"})).await;

    fail().await?;
    assert_eq!(is_kept().await?, "kept");
    let status = gateway.status().await?;
    assert_eq!(
        (status.broker.ok, status.sessions),
        (true, 1),
        "its client would take an empty presence for its end"
    );
    fs::remove_file(&switch)?;
    gateway.wait_ready().await?;
    open(&client, &gateway.instance()).await?.close();
    assert_eq!(is_kept().await?, "kept");
    gateway.wait_for("the end of the other one", |status| status.sessions == 1).await?;
    before.regained(&gateway).await?;

    fail().await?;
    assert_eq!(is_kept().await?, "kept");
    kept.close();
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
    gateway.wait_for("no presence", |status| status.broker.reason == "WaitingForBackend").await?;
    fs::remove_file(&switch)?;
    timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
    gateway.wait_ready().await?;
    let again = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "well"})).await?, "well");
    Ok(())
}

#[tokio::test]
async fn a_server_that_refuses_initialize_is_heard_in_its_own_words_and_its_process_ended() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (gateway, switch) = troubled(&broker, &[]).await?;
    let client = connect(&broker.url(), "c").await?;
    let before = Baseline::of(&gateway);
    let error = open_in_trouble(&client, &gateway, &switch, "refuse").await?;
    assert!(error.contains("not today") && error.contains("-32000"), "{error}");
    gateway.wait_metric(r#"sessions_ended_total{reason="initialize-failed"}"#, 1).await?;
    let refused = r#"requests_total{asker="client",method="initialize",outcome="error"}"#;
    assert_eq!(gateway.metric(refused).await?, 1);
    before.regained(&gateway).await?;
    let session = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "well"})).await?, "well");
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_at_start_is_given_up_in_time_and_its_process_ended() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (gateway, switch) = troubled(&broker, &["--timeout-default=2s"]).await?;
    let client = connect(&broker.url(), "c").await?;
    let before = Baseline::of(&gateway);
    let error = open_in_trouble(&client, &gateway, &switch, "hang").await?;
    assert!(error.contains("timed-out") || error.contains("in time"), "{error}");
    let late = r#"requests_total{asker="client",method="initialize",outcome="timed_out"}"#;
    assert_eq!(gateway.metric(late).await?, 1);
    before.regained(&gateway).await?;
    open(&client, &gateway.instance()).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_only_talks_from_its_start_is_given_up_and_holds_up_nobody() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (gateway, switch) = troubled(&broker, &["--timeout-default=3s"]).await?;
    let (client, other) = (connect(&broker.url(), "c").await?, connect(&broker.url(), "other").await?);
    let session = open(&other, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    let work = async {
        for n in 0..50 {
            let message = n.to_string();
            assert_eq!(call(&session, "echo", json!({"message": message})).await?, message);
        }
        Ok::<_, RequestError>(())
    };
    let (error, worked) = tokio::join!(open_in_trouble(&client, &gateway, &switch, "flood"), work);
    worked?;
    let error = error?;
    assert!(error.contains("in time"), "{error}");
    let late = r#"requests_total{asker="client",method="initialize",outcome="timed_out"}"#;
    assert_eq!(gateway.metric(late).await?, 1);
    before.regained(&gateway).await
}

/// What the server says after its client has left goes nowhere, and its process does not wait for a reader for ever.
#[tokio::test]
async fn a_flood_whose_client_leaves_ends_with_its_session() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let other = connect(&broker.url(), "other").await?;
    let session = open(&other, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    for n in 0..3 {
        let client = connect(&broker.url(), &format!("c{n}")).await?;
        let flooded = open(&client, &gateway.instance()).await?;
        let flood = tokio::spawn({
            let flooded = flooded.clone();
            async move { call(&flooded, "flood", json!({"count": 1_000_000, "bytes": 500})).await }
        });
        gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
        assert_eq!(call(&session, "echo", json!({"message": "unharmed"})).await?, "unharmed");
        flooded.close();
        assert_eq!(timeout(PATIENCE, flood).await??, Err(RequestError::Ended(SessionEnd::Closed)));
        gateway.wait_for("the end of the session", |status| status.sessions == 1).await?;
    }
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="client-left"}"#).await?, 3);
    before.regained(&gateway).await
}

#[tokio::test]
async fn crashes_in_many_sessions_at_once_leave_no_process_and_no_descriptor() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let before = Baseline::of(&gateway);
    let crashed = (0..12).map(|n| {
        let (broker, gateway) = (&broker, &gateway);
        async move {
            let client = connect(&broker.url(), &format!("c{n}")).await?;
            let session = open(&client, &gateway.instance()).await?;
            let crash = call(&session, "crash", json!({"code": n})).await.expect_err("its process is gone");
            anyhow::ensure!(reason(&crash) == Some("backend-ended"), "{crash}");
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(crashed).await?;
    gateway.wait_for("the end of all", |status| status.sessions == 0).await?;
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="backend-ended"}"#).await?, 12);
    before.regained(&gateway).await
}
