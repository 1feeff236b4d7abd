//! One connection after the other, thousands of them: each is whole in itself and leaves nothing behind. In a process
//! of its own, since its memory is measured.

#[path = "../mqtt/fake_broker.rs"]
#[expect(dead_code, reason = "the scripts of the other suite use the rest")]
mod fake_broker;

use std::{fs, time::Duration};

use fake_broker::{FakeBroker, LONG};
use mcp_mqtt_transport::mqtt::{CloseReason, Event, Filter, Publication, PublishError, Qos};
use tokio::time::{Instant, sleep, timeout};

const CONNECTIONS: usize = 10_000;
/// After so many the allocator has what it needs.
const WARM: usize = 1_000;
/// In bytes. A connection holds some 30 KiB: a leak of one in a hundred would show.
const GROWTH: u64 = 3 << 20;

fn held() -> (u64, usize) {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let kib: u64 = line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number");
    (kib * 1024, fs::read_dir("/proc/self/fd").expect("readable").count())
}

/// A lost connection, with a publish and a subscribe that are never answered, and one that is never even sent.
async fn lose(broker: &FakeBroker) {
    let (mut connection, peer) = broker.connected(&[]).await;
    let publisher = connection.publisher.clone();
    let reply = publisher.publish_start(Publication::new("t", "x", Qos::AtLeastOnce)).expect("room");
    let subscribed = publisher.subscribe_start(vec![Filter::new("a", Qos::AtLeastOnce)]).expect("room");
    publisher.try_publish_noted(Publication::new("t", "y", Qos::AtLeastOnce), 1).expect("room");
    drop(peer);
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    assert!(
        matches!(event, Some(Event::Closed(CloseReason::ClosedByBroker | CloseReason::Lost(_)))),
        "{event:?}"
    );
    assert_eq!(reply.await, Err(PublishError::Closed));
    assert_eq!(subscribed.await, Err(PublishError::Closed));
}

#[tokio::test]
async fn ten_thousand_connections_in_a_row_leave_memory_and_descriptors_as_they_were() {
    let broker = FakeBroker::start().await;
    for _ in 0..WARM {
        lose(&broker).await;
    }
    let (memory, fds) = held();
    for _ in WARM..CONNECTIONS {
        lose(&broker).await;
    }
    // The tasks of the last ones may be about to end.
    let deadline = Instant::now() + LONG;
    loop {
        let (memory_now, fds_now) = held();
        if memory_now <= memory + GROWTH && fds_now <= fds + 2 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{memory} bytes and {fds} descriptors before, {memory_now} and {fds_now} now"
        );
        sleep(Duration::from_millis(100)).await;
    }
}
