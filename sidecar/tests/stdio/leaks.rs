//! After any number of sessions, however they ended, nothing is left.

use crate::rig::{Shim, eventually, marked, ping};

/// A server with a child in its process group, one in a session of its own (as a headless browser is started),
/// and one of each kind whose parent is gone already.
const FAMILY: &str = "sleep 1001 & setsid sleep 1002 & (sleep 1003 &) ; (setsid sleep 1004 &) ; exec cat";

/// Six short-lived orphans, which only an init would reap.
const ORPHANS: &str = "for n in 1 2 3 4 5 6; do (sleep 0.1 &) ; done; exec cat";

async fn talk(shim: &Shim) -> crate::rig::Client {
    let mut client = shim.open();
    client.send(&ping(1)).await;
    assert_eq!(client.raw().await, ping(1));
    client
}

#[tokio::test]
async fn closed_sessions_leave_no_process_and_no_file_open() {
    let shim = Shim::script(&[], FAMILY);
    talk(&shim).await.close().await;
    shim.until_alone().await;
    let before = shim.open_files();
    for _ in 0..5 {
        let sessions = [talk(&shim).await, talk(&shim).await, talk(&shim).await, talk(&shim).await];
        assert!(shim.descendants().len() >= 4 * 5, "the family is there: {:?}", shim.descendants());
        // The shim lets go of stdin once it has handed it over, which an answer may overtake.
        let two_each = before + 2 * sessions.len();
        shim.until("a connection each, and what is left of stdout", || shim.open_files() <= two_each).await;
        for client in sessions {
            client.close().await;
        }
    }
    shim.until_alone().await;
    shim.until("files are closed", || shim.open_files() <= before).await;
}

#[test]
fn a_gateway_that_dies_leaves_no_process() {
    let shim = Shim::script(&["--prewarm", "1"], FAMILY);
    let gateway = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = gateway.block_on(async { [talk(&shim).await, talk(&shim).await, talk(&shim).await] });
    drop(gateway); // its tasks stop where they stand, its descriptors close: what a killed container does
    drop(sessions);
    // Subshells come and go while a family starts.
    let only_idle = || shim.descendants().len() == 5 && marked(shim.pid()).len() == 5;
    assert!(eventually(only_idle), "only the idle family is to be left: {:?}", marked(shim.pid()));
    shim.signal(rustix::process::Signal::TERM);
    let pid = shim.pid();
    let (status, _) = shim.wait();
    assert!(status.success(), "{status}");
    let left = std::process::Command::new("pgrep")
        .args(["-f", &format!("MCP_MQTT_PROCESS={pid}")])
        .output()
        .unwrap();
    assert!(left.stdout.is_empty());
}

#[tokio::test]
async fn the_family_of_a_server_that_crashed_is_ended_too() {
    let shim = Shim::script(&[], &FAMILY.replace("exec cat", "read line; exit 1"));
    let mut client = shim.open();
    shim.until("the family is there", || shim.descendants().len() >= 5).await;
    client.send(&ping(1)).await;
    assert!(client.end().await.to_string().contains("exit code 1"));
    shim.until_alone().await;
}

#[tokio::test]
async fn a_server_that_ignores_every_request_to_go_is_killed() {
    let shim = Shim::script(
        &[],
        r#"trap '' TERM INT HUP; echo '{"jsonrpc":"2.0","method":"here"}'; while :; do sleep 1; done"#,
    );
    let mut client = shim.open();
    client.raw().await;
    client.close().await;
    shim.until_alone().await;
}

#[tokio::test]
async fn orphans_are_reaped() {
    let shim = Shim::script(&[], ORPHANS);
    let _client = talk(&shim).await;
    shim.until("only the server is left, and no zombie", || shim.descendants().len() == 1).await;
}

#[tokio::test]
async fn sessions_dropped_at_any_moment_leave_no_process() {
    let shim = Shim::script(&["--prewarm", "1"], "exec cat");
    for round in 0..40_u64 {
        let client = shim.open();
        let _ = client.session.say(crate::rig::message(&ping(1)));
        tokio::time::sleep(std::time::Duration::from_micros(round * 50)).await;
        drop(client);
    }
    shim.until("only the idle one is left", || shim.descendants().len() == 1).await;
}
