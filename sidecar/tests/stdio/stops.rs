//! The end of the shim and of its container.

use std::time::{Duration, Instant};

use mcp_mqtt_sidecar::backend::{BackendEnd, Lost};
use rustix::process::Signal;
use tokio::time::timeout;

use crate::rig::{GRACE, PATIENCE, Shim, marked, ping};

const STUBBORN: &str =
    r#"trap '' TERM INT HUP; echo '{"jsonrpc":"2.0","method":"here"}'; while :; do sleep 1; done"#;

#[tokio::test]
async fn sigterm_ends_all_processes_within_the_graces_and_tells_the_gateway() {
    let shim = Shim::script(&["--prewarm", "1"], STUBBORN);
    let mut client = shim.open();
    client.raw().await;
    let backend = shim.backend();
    let lost = tokio::spawn(async move { backend.lost().await });
    shim.until("session and idle one run", || shim.descendants().len() >= 2).await;
    tokio::time::sleep(Duration::from_millis(100)).await; // the monitor's connection
    let pid = shim.pid();
    let asked = Instant::now();
    shim.signal(Signal::TERM);
    let (status, directory) = shim.wait();
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < 2 * GRACE + Duration::from_secs(3), "{:?}", asked.elapsed());
    let lost = timeout(PATIENCE, lost).await.unwrap().unwrap();
    assert!(matches!(&lost, Lost::Gone(why) if why.contains("server container stopped")), "{lost:?}");
    assert!(matches!(client.end().await, BackendEnd::BackendLost(_)));
    assert!(!directory.path().join("shim.sock").exists(), "the socket is removed");
    assert_eq!(marked(pid), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_said_while_the_shim_stops_is_the_gateways() {
    let script = r#"
        trap 'for n in $(seq 300); do echo "{\"jsonrpc\":\"2.0\",\"method\":\"m$n\"}"; done; exit 0' TERM
        echo '{"jsonrpc":"2.0","method":"here"}'
        while :; do sleep 0.05; done"#;
    let shim = Shim::script(&[], script);
    let mut client = shim.open();
    client.raw().await;
    shim.signal(Signal::TERM);
    // Blocks this thread, and the gateway's reader with it: what the shim reads itself cannot be read after it.
    let (status, _) = shim.wait();
    assert!(status.success(), "{status}");
    for n in 1..=300 {
        assert_eq!(client.raw().await, format!(r#"{{"jsonrpc":"2.0","method":"m{n}"}}"#));
    }
}

#[tokio::test]
async fn the_socket_of_a_killed_shim_is_replaced() {
    let killed = Shim::command(&[], &["cat"]);
    let mut client = killed.open();
    client.send(&ping(1)).await;
    client.raw().await;
    killed.signal(Signal::KILL);
    assert!(matches!(client.end().await, BackendEnd::BackendLost(_)));
    let (_, directory) = killed.wait();
    assert!(directory.path().join("shim.sock").exists(), "what a killed container leaves");

    let shim = Shim::start_in(directory, &[], &["cat"]);
    let mut client = shim.open();
    client.send(&ping(1)).await;
    assert_eq!(client.raw().await, ping(1));
}
