//! Sending: packet ids, windows, queues, limits.

use mcp_mqtt_transport::mqtt::{Event, Filter, Publication, PublishError, Publisher, Qos, ReasonCode};
use tokio::time::timeout;

use crate::fake_broker::{FakeBroker, LONG, QUIET, puback, publish, receive_maximum, suback, unsuback};

fn publication(payload: impl Into<bytes::Bytes>) -> Publication {
    Publication::new("t", payload, Qos::AtLeastOnce)
}

/// Bytes of the unacknowledged publish that may be in flight.
const MEBIBYTE: usize = 1 << 20;

#[tokio::test]
async fn acknowledgements_out_of_order_make_no_packet_id_collide() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&receive_maximum(2)).await;
    for payload in ["1", "2", "3", "4"] {
        connection.publisher.try_publish(publication(payload)).expect("room");
    }
    assert_eq!((peer.publish().await.id, peer.publish().await.id), (1, 2));
    // The next id is 1, and that one is still in use.
    peer.send(&puback(2, 0)).await;
    peer.silent().await;
    peer.send(&puback(1, 0)).await;
    let third = peer.publish().await;
    assert_eq!((third.id, &third.payload[..]), (1, &b"3"[..]));
    assert_eq!(peer.publish().await.id, 2);
}

#[tokio::test]
async fn refusals_out_of_order_stall_nothing_and_reach_who_asked() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&receive_maximum(2)).await;
    let replies: Vec<_> = (0..6)
        .map(|n| connection.publisher.publish_start(publication(n.to_string())).expect("room"))
        .collect();
    for _ in 0..3 {
        assert_eq!((peer.publish().await.id, peer.publish().await.id), (1, 2));
        peer.send(&puback(2, 0x87)).await;
        peer.send(&puback(1, 0x97)).await;
    }
    for (n, reply) in replies.into_iter().enumerate() {
        let expected = if n % 2 == 0 { ReasonCode::QUOTA_EXCEEDED } else { ReasonCode::NOT_AUTHORIZED };
        assert_eq!(timeout(LONG, reply).await.expect("in time"), Ok(expected), "publish {n}");
    }
}

#[tokio::test]
async fn a_refusal_of_what_has_a_note_is_told_and_nothing_else_is() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    let publisher = connection.publisher.clone();
    publisher.try_publish(publication("without")).expect("room");
    for note in [7, 8, 9] {
        publisher.try_publish_noted(publication(note.to_string()), note).expect("room");
    }
    for id in 1..=4 {
        assert_eq!(peer.publish().await.id, id);
    }
    // Success, and that nobody is subscribed, are no refusals.
    for (id, reason) in [(1, 0x87), (3, 0x10), (2, 0x00), (4, 0x97)] {
        peer.send(&puback(id, reason)).await;
    }
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    let Some(Event::Refused(refused)) = event else { panic!("not a refusal: {event:?}") };
    assert_eq!(
        (refused.note, &refused.payload[..], refused.reason),
        (9, &b"9"[..], ReasonCode::QUOTA_EXCEEDED)
    );
    assert!(timeout(QUIET, connection.events.recv()).await.is_err(), "one is all");
}

#[tokio::test]
async fn a_subscribe_takes_no_packet_id_that_is_in_use() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&receive_maximum(2)).await;
    let publisher = &connection.publisher;
    publisher.try_publish(publication("1")).expect("room");
    let one = publisher.subscribe_start(vec![Filter::new("a", Qos::AtLeastOnce)]).expect("room");
    let two = publisher
        .subscribe_start(vec![Filter::no_local("b", Qos::AtMostOnce), Filter::new("c/#", Qos::AtLeastOnce)])
        .expect("room");
    assert_eq!(peer.publish().await.id, 1);
    let subscribe = peer.packet().await;
    assert_eq!((subscribe.head, subscribe.id()), (0x82, 2));
    peer.send(&suback(2, &[1])).await;
    assert_eq!(one.await, Ok(vec![ReasonCode::GRANTED_QOS_1]));
    peer.silent().await;
    peer.send(&puback(1, 0)).await;
    let subscribe = peer.packet().await;
    assert_eq!((subscribe.head, subscribe.id()), (0x82, 1));
    // No Local is bit 2 of a filter's options.
    assert_eq!(subscribe.body[2..], [0, 0, 1, b'b', 0b100, 0, 3, b'c', b'/', b'#', 0b001]);
    peer.send(&suback(1, &[0x87, 0x8F])).await;
    let refused = two.await.expect("answered");
    assert!(refused.iter().all(|reason| reason.is_error()), "{refused:?}");

    let gone = publisher.unsubscribe(vec!["a".to_owned(), "b".to_owned()]).expect("room");
    let unsubscribe = peer.packet().await;
    assert_eq!((unsubscribe.head, &unsubscribe.body[2..]), (0xA2, &[0, 0, 1, b'a', 0, 1, b'b'][..]));
    peer.send(&unsuback(unsubscribe.id(), &[0, 0x11])).await;
    assert_eq!(gone.await, Ok(vec![ReasonCode::SUCCESS, ReasonCode::NO_SUBSCRIPTION_EXISTED]));
}

#[tokio::test]
async fn at_most_64_publishes_are_in_flight_whatever_the_broker_allows() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&[]).await;
    for n in 0..100_u8 {
        connection.publisher.try_publish(publication(vec![n])).expect("room");
    }
    for n in 0..64 {
        assert_eq!(peer.publish().await.payload, [n]);
    }
    peer.silent().await;
    for id in 1..=64 {
        peer.send(&puback(id, 0)).await;
    }
    for n in 64..100 {
        assert_eq!(peer.publish().await.payload, [n]);
    }
}

#[tokio::test]
async fn at_most_four_mebibytes_are_in_flight() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&[]).await;
    for _ in 0..5 {
        connection.publisher.try_publish(publication(vec![0; MEBIBYTE])).expect("room");
    }
    for id in 1..=3 {
        assert_eq!(peer.publish().await.id, id);
    }
    peer.silent().await;
    peer.send(&puback(1, 0)).await;
    assert_eq!(peer.publish().await.id, 4);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_reading_goes_on_and_room_is_told() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    let publisher = connection.publisher.clone();
    let mut taken = 0;
    while publisher.try_publish(publication("x")).is_ok() {
        taken += 1;
        assert!(taken < 10_000, "the queue has no bound");
    }
    assert_eq!(publisher.try_publish(publication("x")), Err(PublishError::Full));
    assert!(taken >= 1024, "{taken}");
    assert_eq!(publisher.capacity(), 0);

    peer.send(&publish("in", None, &[], b"still read")).await;
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    assert!(matches!(event, Some(Event::Received(received)) if received.payload == "still read"));

    for _ in 0..64 {
        peer.publish().await;
    }
    // What was sent in the meantime made some room; use it up.
    while publisher.try_publish(publication("x")).is_ok() {}
    assert!(timeout(QUIET, publisher.ready(1)).await.is_err(), "there is no room yet");
    for id in 1..=64 {
        peer.send(&puback(id, 0)).await;
    }
    timeout(LONG, publisher.ready(1)).await.expect("the acknowledgements made room");
    publisher.try_publish(publication("x")).expect("room");
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes_too() {
    let broker = FakeBroker::start().await;
    let (connection, _peer) = broker.connected(&receive_maximum(1)).await;
    let mut taken = 0;
    while connection.publisher.try_publish(publication(vec![0; MEBIBYTE])).is_ok() {
        taken += 1;
        assert!(taken < 100, "the queue has no bound");
    }
    assert!((15..=18).contains(&taken), "{taken} mebibytes");
    // A little one has room, a large one has to wait: whoever asks for it in a loop is not to spin.
    let publisher = &connection.publisher;
    while timeout(QUIET, publisher.ready(MEBIBYTE)).await.is_ok() {
        publisher.try_publish(publication(vec![0; MEBIBYTE])).expect("what is in flight has left room");
    }
    timeout(LONG, publisher.ready(100)).await.expect("room for a little one");
}

#[tokio::test]
async fn the_whole_packet_is_measured_against_the_brokers_limit_before_it_is_sent() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&[0x27, 0, 0, 0, 100]).await;
    // Type, length, topic "t" with its length, packet id, no properties.
    let overhead = 1 + 1 + 3 + 2 + 1;
    let publisher = &connection.publisher;
    let refused = publisher.try_publish(publication(vec![b'x'; 101 - overhead]));
    assert_eq!(refused, Err(PublishError::TooLarge { limit: 100, size: 101 }));
    let too_long = Filter::new("f".repeat(100), Qos::AtLeastOnce);
    assert!(matches!(
        publisher.subscribe_start(vec![too_long]),
        Err(PublishError::TooLarge { limit: 100, .. })
    ));
    let too_long = publisher.unsubscribe(vec!["f".repeat(100)]);
    assert!(matches!(too_long, Err(PublishError::TooLarge { limit: 100, .. })));

    let fitting = publication(vec![b'x'; 100 - overhead]);
    assert_eq!(Publisher::packet_size(&fitting), 100);
    publisher.try_publish(fitting).expect("it fits");
    assert_eq!(peer.publish().await.payload.len(), 100 - overhead, "and nothing came before it");
}

#[tokio::test]
async fn a_broker_without_qos_1_gets_qos_0_and_confirms_by_taking() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&[0x24, 0]).await;
    connection.publisher.publish_confirmed(publication("x"), LONG).await.expect("written");
    let sent = peer.publish().await;
    assert_eq!((sent.qos, &sent.payload[..]), (0, &b"x"[..]));
}

#[tokio::test]
async fn waits_for_the_broker_end_by_their_timeouts() {
    let broker = FakeBroker::start().await;
    let (connection, mut peer) = broker.connected(&[]).await;
    let publisher = &connection.publisher;
    let filters = vec![Filter::new("a", Qos::AtLeastOnce)];
    assert_eq!(publisher.publish_confirmed(publication("x"), QUIET).await, Err(PublishError::Timeout(QUIET)));
    assert_eq!(publisher.subscribe(filters, QUIET).await, Err(PublishError::Timeout(QUIET)));
    // The late answers find nobody, and harm nobody.
    peer.send(&puback(1, 0)).await;
    peer.send(&suback(2, &[1])).await;
    let reply = publisher.publish_start(publication("y")).expect("room");
    assert_eq!((peer.publish().await.id, peer.packet().await.id(), peer.publish().await.id), (1, 2, 3));
    peer.send(&puback(3, 0x10)).await;
    assert_eq!(reply.await, Ok(ReasonCode::NO_MATCHING_SUBSCRIBERS));
}
