//! Servers that misbehave, and sessions that cannot be opened.

use std::time::{Duration, Instant};

use mcp_mqtt_sidecar::backend::{BackendEnd, Lost, ProbeError, Suspicion};

use crate::rig::{Client, PATIENCE, Shim, backend, message, ping};

async fn refusal(shim: &Shim) -> String {
    match shim.open().end().await {
        BackendEnd::OpenFailed(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_started_is_explained_to_a_person() {
    let missing = Shim::command(&[], &["no-such-server", "--stdio"]);
    let why = refusal(&missing).await;
    assert!(why.contains("command not found: `no-such-server`"), "{why}");
    let probed = missing.backend().probe().await;
    assert!(
        matches!(&probed, Err(ProbeError::Ended(BackendEnd::OpenFailed(same))) if *same == why),
        "{probed:?}"
    );

    let why = refusal(&Shim::command(&[], &["/etc/passwd"])).await;
    assert!(why.contains("may not be executed"), "{why}");

    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let why = refusal(&Shim::command(&[], &[script.to_str().unwrap()])).await;
    assert!(why.contains("interpreter"), "{why}");
}

#[tokio::test]
async fn without_a_shim_sessions_and_the_monitor_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let backend = backend(&directory.path().join("shim.sock"));
    match Client::open(&backend).end().await {
        BackendEnd::NobodyListens(why) => assert!(why.contains("server container does not run"), "{why}"),
        other => panic!("{other:?}"),
    }
    let lost = tokio::time::timeout(PATIENCE, backend.lost()).await.unwrap();
    assert!(matches!(&lost, Lost::Gone(why) if why.contains("server container does not run")), "{lost:?}");
}

#[tokio::test]
async fn a_crash_at_start_ends_the_session_with_the_exit_code() {
    let shim = Shim::script(&[], "exit 42");
    assert_eq!(shim.open().end().await, BackendEnd::Exited("exit code 42".to_owned()));
    let backend = shim.backend();
    let probed = backend.probe().await.unwrap_err().to_string();
    assert!(probed.contains("exit code 42"), "{probed}");
    // Processes that run do not end with it.
    backend.suspect(Suspicion::NoSession);
    let lost = tokio::time::timeout(PATIENCE, backend.lost()).await.unwrap();
    assert!(matches!(&lost, Lost::Failing(why) if why.contains("exit code 42")), "{lost:?}");
}

#[tokio::test]
async fn sessions_beyond_the_limit_are_refused_and_room_is_given_back() {
    let shim = Shim::command(&["--max-processes", "2"], &["cat"]);
    let mut sessions = [shim.open(), shim.open()];
    for client in &mut sessions {
        client.send(&ping(1)).await;
        client.raw().await;
    }
    let why = refusal(&shim).await;
    assert!(why.contains("--max-processes"), "{why}");
    let [one, _other] = sessions;
    one.close().await;
    shim.until("one process is left", || shim.descendants().len() == 1).await;
    let mut client = shim.open();
    client.send(&ping(2)).await;
    assert_eq!(client.raw().await, ping(2));
}

#[tokio::test]
async fn a_server_that_does_not_read_fills_its_own_queue_and_nobody_elses() {
    let shim = Shim::script(
        &[],
        r#"if mkdir "$DIRECTORY/first" 2>/dev/null; then exec sleep 1000; else exec cat; fi"#,
    );
    let deaf = shim.open();
    shim.until("the deaf one runs", || shim.descendants().iter().any(|process| process.contains("sleep")))
        .await;
    let large = format!(r#"{{"jsonrpc":"2.0","method":"m","params":["{}"]}}"#, "x".repeat(100_000));
    let deadline = Instant::now() + PATIENCE;
    while deaf.session.say(message(&large)).is_ok() {
        assert!(Instant::now() < deadline, "the queue never fills");
        tokio::task::yield_now().await;
    }
    let mut other = shim.open();
    other.send(&ping(1)).await;
    assert_eq!(other.raw().await, ping(1));

    deaf.close().await;
    shim.until("only the other is left", || shim.descendants().len() == 1).await;
}

#[tokio::test]
async fn a_flood_of_one_server_does_not_hold_up_another() {
    let shim = Shim::script(
        &[],
        r#"if mkdir "$DIRECTORY/first" 2>/dev/null; then exec yes '{"jsonrpc":"2.0","method":"flood"}'; else exec cat; fi"#,
    );
    let mut flooding = shim.open();
    for _ in 0..1000 {
        assert!(flooding.raw().await.contains("flood"));
    }
    let mut other = shim.open();
    let started = Instant::now();
    let drain = async {
        loop {
            flooding.raw().await;
        }
    };
    let talk = async {
        for n in 0..50 {
            other.send(&ping(n)).await;
            assert_eq!(other.raw().await, ping(n));
        }
    };
    tokio::select! {
        () = talk => {}
        () = drain => unreachable!("a flood has no end"),
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}
