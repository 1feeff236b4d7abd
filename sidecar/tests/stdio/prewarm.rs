//! Idle processes.

use std::{fs, time::Duration};

use mcp_mqtt_sidecar::backend::BackendEnd;

use crate::rig::{Shim, ping};

#[tokio::test]
async fn idle_processes_are_handed_out_and_replaced() {
    let shim =
        Shim::script(&["--prewarm", "2"], r#"echo "{\"jsonrpc\":\"2.0\",\"method\":\"pid-$$\"}"; exec cat"#);
    shim.until("two wait", || shim.descendants().len() == 2).await;
    let waiting = shim.descendants();
    let mut client = shim.open();
    let hello = client.raw().await;
    let pid = hello.split("pid-").nth(1).unwrap().trim_end_matches("\"}");
    assert!(
        waiting.iter().any(|process| process.starts_with(&format!("{pid} "))),
        "{pid} was not waiting: {waiting:?}"
    );
    shim.until("the taken one is replaced", || shim.descendants().len() == 3).await;
    client.send(&ping(1)).await;
    assert_eq!(client.raw().await, ping(1));
    client.close().await;
    shim.until("two wait again", || shim.descendants().len() == 2).await;
}

#[tokio::test]
async fn an_idle_process_that_dies_is_not_handed_out() {
    let shim = Shim::command(&["--prewarm", "1"], &["cat"]);
    shim.until("one waits", || shim.descendants().len() == 1).await;
    let waiting: i32 = shim.descendants()[0].split(' ').next().unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(waiting).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    shim.until("it is gone", || {
        !shim.descendants().iter().any(|process| process.starts_with(&waiting.to_string()))
    })
    .await;
    let mut client = shim.open();
    client.send(&ping(1)).await;
    assert_eq!(client.raw().await, ping(1));
}

#[tokio::test]
async fn a_server_that_cannot_start_is_not_started_in_a_tight_loop() {
    let shim = Shim::script(&["--prewarm", "2"], r#"echo x >> "$DIRECTORY/starts"; exit 1"#);
    let starts =
        || fs::read_to_string(shim.directory.path().join("starts")).map_or(0, |text| text.lines().count());
    tokio::time::sleep(Duration::from_millis(4500)).await;
    // Two at once, two more after 2 s (noticed after 1 s, and a pause of 1 s), then not before 5 s.
    assert!((2..=4).contains(&starts()), "{}", starts());
    assert_eq!(
        shim.open().end().await,
        BackendEnd::Exited("exit code 1".to_owned()),
        "a session tries all the same"
    );
}
