//! How a connection ends, and what its end leaves behind.

use std::time::Duration;

use mcp_mqtt_transport::mqtt::{CloseReason, Connection, Event, Filter, Publication, PublishError, Qos};
use tokio::time::{Instant, sleep, timeout};

use crate::fake_broker::{
    FakeBroker, LONG, disconnect, packet, puback, publish, receive_maximum, server_keep_alive,
};

fn publication(payload: impl Into<bytes::Bytes>) -> Publication {
    Publication::new("t", payload, Qos::AtLeastOnce)
}

/// More than the sockets of both sides hold; at QoS 0, so that no acknowledgement is missing.
fn flood(connection: &Connection) {
    for _ in 0..15 {
        let large = Publication::new("t", vec![0; 1 << 20], Qos::AtMostOnce);
        connection.publisher.try_publish(large).expect("room");
    }
}

/// What this thread, on which both sides run, has used of its processor.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = stat.split(' ').next().and_then(|first| first.parse().ok()).expect("its first figure");
    Duration::from_nanos(nanoseconds)
}

async fn closed(connection: &mut Connection) -> CloseReason {
    loop {
        match timeout(LONG, connection.events.recv()).await.expect("in time") {
            Some(Event::Received(_) | Event::Refused(_) | Event::Unusable(_)) => {}
            Some(Event::Closed(reason)) => return reason,
            None => panic!("no close reason"),
        }
    }
}

#[tokio::test]
async fn whoever_waits_when_the_link_drops_learns_it_and_nothing_survives_into_the_next_connection() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&receive_maximum(2)).await;
    let replies: Vec<_> = (0..5)
        .map(|n| connection.publisher.publish_start(publication(format!("old {n}"))).expect("room"))
        .collect();
    let subscribed =
        connection.publisher.subscribe_start(vec![Filter::new("a", Qos::AtLeastOnce)]).expect("room");
    assert_eq!((peer.publish().await.id, peer.publish().await.id), (1, 2));
    // Out of order: the next id is still in use.
    peer.send(&puback(2, 0)).await;
    sleep(Duration::from_millis(50)).await;
    drop(peer);
    assert_eq!(closed(&mut connection).await, CloseReason::ClosedByBroker);
    for (n, reply) in replies.into_iter().enumerate() {
        let answer = timeout(LONG, reply).await.expect("in time");
        assert_eq!(answer.is_ok(), n == 1, "publish {n}: {answer:?}");
    }
    assert_eq!(timeout(LONG, subscribed).await.expect("in time"), Err(PublishError::Closed));
    assert_eq!(connection.publisher.try_publish(publication("late")), Err(PublishError::Closed));
    timeout(LONG, connection.publisher.ready(1)).await.expect("nobody waits for room on a closed connection");

    // A smaller window than before, too.
    let (connection, mut peer) = broker.connected(&receive_maximum(1)).await;
    for n in 0..3 {
        connection.publisher.try_publish(publication(format!("new {n}"))).expect("room");
    }
    for n in 0..3 {
        let sent = peer.publish().await;
        assert_eq!((sent.id, String::from_utf8(sent.payload).expect("UTF-8")), (1, format!("new {n}")));
        peer.send(&puback(1, 0)).await;
    }
}

#[tokio::test]
async fn what_the_broker_did_not_acknowledge_is_left_in_order_when_the_link_drops() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&receive_maximum(3)).await;
    for n in 0..40 {
        connection.publisher.try_publish(publication(format!("{n}"))).expect("room");
    }
    assert_eq!((peer.publish().await.id, peer.publish().await.id), (1, 2));
    peer.send(&puback(1, 0)).await;
    assert_eq!((peer.publish().await.id, peer.publish().await.id), (3, 1));
    assert!(connection.publisher.take_undelivered().is_empty(), "nothing is lost while it stands");
    drop(peer);
    closed(&mut connection).await;
    let left: Vec<_> = connection.publisher.take_undelivered().into_iter().map(|left| left.payload).collect();
    let expected: Vec<_> = (1..40).map(|n| bytes::Bytes::from(n.to_string())).collect();
    assert_eq!(left, expected);
}

#[tokio::test]
async fn disconnect_goes_out_behind_everything_and_the_socket_is_read_to_its_end() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&receive_maximum(4)).await;
    for n in 0..20 {
        connection.publisher.try_publish(publication(n.to_string())).expect("room");
    }
    let publisher = connection.publisher.clone();
    let disconnecting = tokio::spawn(async move { publisher.disconnect(LONG).await });
    for n in 0..20 {
        let sent = peer.publish().await;
        assert_eq!(sent.payload, n.to_string().as_bytes());
        peer.send(&puback(sent.id, 0)).await;
    }
    // Bytes on their way when the other side closes reset the connection; so it must go on reading for now.
    for _ in 0..30 {
        peer.send(&publish("late", None, &[], &[0; 10_000])).await;
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(peer.packet().await, crate::fake_broker::Packet { head: 0xE0, body: vec![] });
    peer.send(&publish("late", None, &[], &[0; 10_000])).await;
    drop(peer);
    assert_eq!(disconnecting.await.expect("no panic"), Ok(()));
}

#[tokio::test]
async fn a_broker_that_does_not_close_after_disconnect_is_left_after_a_second() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    let start = Instant::now();
    assert_eq!(connection.publisher.disconnect(LONG).await, Ok(()));
    let took = start.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert_eq!(closed(&mut connection).await, CloseReason::Wanted);
    assert_eq!(peer.packet().await.head, 0xE0);
    assert!(peer.try_packet().await.expect("not reset").is_none());
}

#[tokio::test]
async fn the_deadline_of_a_disconnect_is_for_it_to_go_out_not_for_the_broker_to_close() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    assert_eq!(connection.publisher.disconnect(Duration::from_millis(200)).await, Ok(()));
    assert_eq!(closed(&mut connection).await, CloseReason::Wanted);
    assert_eq!(peer.packet().await.head, 0xE0);
}

#[tokio::test]
async fn a_ping_that_falls_due_after_disconnect_is_neither_sent_nor_spun_on() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&server_keep_alive(1)).await;
    sleep(Duration::from_millis(500)).await;
    let before = cpu_time();
    assert_eq!(connection.publisher.disconnect(LONG).await, Ok(()));
    let used = cpu_time().saturating_sub(before);
    assert!(used < Duration::from_millis(100), "{used:?} to wait for a second");
    assert_eq!(peer.packet().await.head, 0xE0);
    assert_eq!(peer.try_packet().await.expect("not reset"), None);
}

#[tokio::test]
async fn a_disconnect_that_cannot_be_done_is_cut_at_its_deadline() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&receive_maximum(1)).await;
    for n in 0..3 {
        connection.publisher.try_publish(publication(n.to_string())).expect("room");
    }
    let deadline = Duration::from_millis(300);
    assert_eq!(connection.publisher.disconnect(deadline).await, Err(PublishError::Timeout(deadline)));
    assert_eq!(closed(&mut connection).await, CloseReason::DisconnectTimedOut);
    assert_eq!(peer.publish().await.payload, b"0");
    assert!(!matches!(peer.try_packet().await, Ok(Some(_))), "no DISCONNECT: the will has to be published");
}

#[tokio::test]
async fn a_disconnect_does_not_wait_for_events_to_be_taken() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&[]).await;
    let flood: Vec<u8> = (0..5000).flat_map(|_| publish("t", None, &[], b"x")).collect();
    peer.send(&flood).await;
    sleep(Duration::from_millis(200)).await;
    let publisher = connection.publisher.clone();
    let disconnecting = tokio::spawn(async move { publisher.disconnect(LONG).await });
    assert_eq!(peer.packet().await.head, 0xE0);
    drop(peer);
    assert_eq!(timeout(LONG, disconnecting).await.expect("in time").expect("no panic"), Ok(()));
}

#[tokio::test]
async fn dropping_the_events_cuts_the_connection_without_a_disconnect() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&[]).await;
    let publisher = connection.publisher;
    drop(connection.events);
    assert!(
        peer.try_packet().await.expect("readable").is_none(),
        "no DISCONNECT: the will has to be published"
    );
    assert_eq!(timeout(LONG, publisher.closed()).await.expect("in time"), CloseReason::Abandoned);
}

#[tokio::test]
async fn the_brokers_disconnect_says_why() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    peer.send(&disconnect(0x8E)).await;
    assert_eq!(closed(&mut connection).await, CloseReason::SessionTakenOver);

    let (mut connection, mut peer) = broker.connected(&[]).await;
    let mut body = vec![0x98, 8, 0x1F, 0, 5];
    body.extend(b"bye !");
    peer.send(&packet(0xE0, &body)).await;
    let reason = closed(&mut connection).await;
    assert_eq!(reason.to_string(), "the broker disconnected: administrative action (0x98) (bye !)");
}

#[tokio::test]
async fn a_broker_that_answers_no_ping_ends_the_connection() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&server_keep_alive(1)).await;
    let start = Instant::now();
    let reason = closed(&mut connection).await;
    assert!(matches!(reason, CloseReason::KeepAlive(_)), "{reason}");
    let took = start.elapsed();
    assert!((Duration::from_millis(1400)..Duration::from_secs(4)).contains(&took), "{took:?}");
    assert_eq!(peer.packet().await.head, 0xC0);
}

#[tokio::test]
async fn a_broker_that_answers_pings_and_forgets_an_acknowledgement_ends_the_connection() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&server_keep_alive(1)).await;
    let start = Instant::now();
    let publisher = connection.publisher.clone();
    publisher.try_publish(publication("forgotten")).expect("room");
    let forgotten = peer.publish().await;
    let serve = async {
        let mut served = 0;
        // What comes later is acknowledged, each time.
        loop {
            let packet = peer.packet().await;
            if let Some(publish) = packet.publish() {
                assert_ne!(publish.id, forgotten.id);
                peer.send(&puback(publish.id, 0)).await;
            } else {
                peer.send(&[0xD0, 0]).await; // PINGRESP
            }
            served += 1;
            if served < 50 {
                publisher.try_publish(publication("later")).expect("room");
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let reason = tokio::select! {
        reason = closed(&mut connection) => reason,
        () = serve => unreachable!("it serves to the end"),
    };
    assert_eq!(reason, CloseReason::Unacknowledged(Duration::from_secs(2)));
    let took = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&took), "{took:?}");
    assert_eq!(publisher.take_undelivered()[0].payload, "forgotten");
}

#[tokio::test]
async fn a_link_that_takes_no_bytes_ends_the_connection_though_no_ping_can_be_sent() {
    let broker = FakeBroker::start().await;
    let (mut connection, peer) = broker.connected(&server_keep_alive(1)).await;
    let start = Instant::now();
    flood(&connection);
    let reason = closed(&mut connection).await;
    assert!(matches!(reason, CloseReason::KeepAlive(_)), "{reason}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop(peer);
}

#[tokio::test]
async fn an_acknowledgement_that_a_blocked_link_does_not_take_is_not_spun_on() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    flood(&connection);
    sleep(Duration::from_millis(200)).await;
    peer.send(&publish("in", Some(1), &[], b"x")).await;
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    assert!(matches!(event, Some(Event::Received(_))), "{event:?}");
    let before = cpu_time();
    sleep(Duration::from_millis(500)).await;
    let used = cpu_time().saturating_sub(before);
    assert!(used < Duration::from_millis(50), "{used:?} to wait for half a second");
}
