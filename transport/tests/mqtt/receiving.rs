//! What arrives: its size, its flood, its odd shapes.

use std::{io, time::Duration};

use mcp_mqtt_transport::mqtt::{
    CloseReason, ConnectOptions, Connection, Event, MAX_PROPERTY_BYTES, Publication, Qos, Received, Unusable,
};
use tokio::time::{Instant, timeout};

use crate::fake_broker::{
    FakeBroker, LONG, Packet, disconnect, packet, puback, publish, receive_maximum, server_keep_alive,
};

async fn received(events: &mut mcp_mqtt_transport::mqtt::Events) -> Received {
    match timeout(LONG, events.recv()).await.expect("in time") {
        Some(Event::Received(received)) => received,
        other => panic!("no message: {other:?}"),
    }
}

async fn unusable(events: &mut mcp_mqtt_transport::mqtt::Events) -> Unusable {
    match timeout(LONG, events.recv()).await.expect("in time") {
        Some(Event::Unusable(why)) => why,
        other => panic!("not passed over: {other:?}"),
    }
}

#[tokio::test]
async fn a_packet_up_to_the_size_that_we_told_is_taken_and_a_larger_one_ends_the_connection() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    // Type, three bytes of length, topic "t" with its length, no properties.
    let overhead = 1 + 3 + 3 + 1;
    let payload = vec![b'x'; (1 << 20) - overhead];
    peer.send(&publish("t", None, &[], &payload)).await;
    assert_eq!(received(&mut connection.events).await.payload, payload);

    peer.send(&publish("t", None, &[], &vec![b'x'; 1 << 21])).await;
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    assert!(
        matches!(&event, Some(Event::Closed(CloseReason::Protocol(what))) if what.contains("bytes")),
        "{event:?}"
    );
}

#[tokio::test]
async fn a_topic_alias_that_we_never_allowed_ends_the_connection() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    peer.send(&publish("t", None, &[0x23, 0, 1], b"1")).await;
    peer.send(&publish("", None, &[0x23, 0, 1], b"2")).await;
    assert_eq!(received(&mut connection.events).await.topic, "t");
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    assert!(
        matches!(&event, Some(Event::Closed(CloseReason::Protocol(what))) if what.contains("alias")),
        "{event:?}"
    );
}

/// Some brokers forward what is not UTF-8: no client is to end the connections of others with it.
#[tokio::test]
async fn a_string_that_is_not_utf_8_costs_its_message_and_neither_the_connection_nor_the_next_one() {
    // A user property, a content type, a response topic.
    let strings: [&[u8]; 3] = [b"\x26\0\x01a\0\x02\xC3\x28", b"\x03\0\x01\xFF", b"\x08\0\x01\xFF"];
    let broker = FakeBroker::start().await;
    for manual_acks in [false, true] {
        let options = ConnectOptions { manual_acks, ..broker.options() };
        let (connection, (mut peer, _)) = tokio::join!(Connection::open(&options), broker.accept_with(&[]));
        let mut connection = connection.expect("accepted");
        for properties in strings {
            let at_least_once = publish("t", Some(7), properties, b"x");
            peer.send(&[publish("t", None, properties, b"x"), at_least_once].concat()).await;
            for _ in 0..2 {
                assert_eq!(unusable(&mut connection.events).await, Unusable::Malformed);
            }
            assert_eq!(peer.packet().await, Packet { head: 0x40, body: vec![0, 7] });
        }
        // In the topic itself; and retained, as it would come again on each connection.
        for packet in [packet(0x31, &[0, 1, 0xFF, 0, b'x']), packet(0x32, &[0, 1, 0xFF, 0, 8, 0, b'x'])] {
            peer.send(&packet).await;
            assert_eq!(unusable(&mut connection.events).await, Unusable::Malformed);
        }
        assert_eq!(peer.packet().await, Packet { head: 0x40, body: vec![0, 8] });
        peer.send(&publish("t", None, &[], b"next")).await;
        assert_eq!(received(&mut connection.events).await.payload, b"next"[..]);
    }
}

#[tokio::test]
async fn a_message_with_too_many_properties_is_passed_over_and_acknowledged_and_the_rest_is_counted() {
    /// A user property without a name and a value.
    const EMPTY: [u8; 5] = [0x26, 0, 0, 0, 0];
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    let allowed = EMPTY.repeat(MAX_PROPERTY_BYTES / EMPTY.len());
    let too_many = EMPTY.repeat(MAX_PROPERTY_BYTES / EMPTY.len() + 1);
    peer.send(&publish("t", Some(7), &too_many, b"x")).await;
    assert_eq!(unusable(&mut connection.events).await, Unusable::Properties);
    assert_eq!(peer.packet().await, Packet { head: 0x40, body: vec![0, 7] });
    peer.send(&publish("t", Some(8), &allowed, b"x")).await;
    assert_eq!(received(&mut connection.events).await.user_properties.len(), allowed.len() / EMPTY.len());
    assert_eq!(peer.packet().await, Packet { head: 0x40, body: vec![0, 8] });

    // Of those that are allowed only some megabytes wait, by what they take in memory: then reading stops.
    let count = 30_u16;
    let flood: Vec<u8> = (1..=count).flat_map(|id| publish("t", Some(id), &allowed, b"")).collect();
    peer.send(&flood).await;
    let mut seen = Flood { acknowledged: 0, pings: 0 };
    seen.read(&mut peer, Duration::from_secs(1), usize::MAX).await.expect("the connection stays");
    let acknowledged = seen.acknowledged;
    assert!((8..20).contains(&acknowledged), "{acknowledged} were read, though nobody took them");
    for _ in 0..count {
        received(&mut connection.events).await;
    }
}

#[tokio::test]
async fn a_publish_that_is_broken_by_the_broker_itself_ends_the_connection() {
    let broker = FakeBroker::start().await;
    // The topic goes beyond the packet; the packet id is 0; there is no QoS 3.
    for (head, body) in [(0x30, &b"\0\x09t\0"[..]), (0x32, b"\0\x01t\0\0\0"), (0x36, b"\0\x01t\0\x01\0")] {
        let (mut connection, mut peer) = broker.connected(&[]).await;
        peer.send(&packet(head, body)).await;
        let event = timeout(LONG, connection.events.recv()).await.expect("in time");
        assert!(matches!(&event, Some(Event::Closed(CloseReason::Protocol(_)))), "{head:#x}: {event:?}");
    }
}

#[tokio::test]
async fn what_came_with_the_end_is_delivered_before_it() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    let publication = Publication::new("t", "x", Qos::AtLeastOnce);
    let reply = connection.publisher.publish_start(publication).expect("room");
    assert_eq!(peer.publish().await.id, 1);
    let last_words =
        [puback(1, 0), publish("a", None, &[], b"1"), publish("b", None, &[], b"2"), disconnect(0x8B)]
            .concat();
    peer.send(&last_words).await;
    assert_eq!(received(&mut connection.events).await.topic, "a");
    assert_eq!(received(&mut connection.events).await.topic, "b");
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    assert!(
        matches!(event, Some(Event::Closed(CloseReason::Disconnected { reason, .. })) if reason.0 == 0x8B)
    );
    assert!(reply.await.is_ok(), "the acknowledgement counts");
    assert!(connection.events.recv().await.is_none(), "closed is the last");
}

/// Sends `count` publishes at QoS 1, and counts acknowledgements and pings meanwhile.
struct Flood {
    acknowledged: usize,
    pings: usize,
}

impl Flood {
    /// Reads for `period`, or until `enough` is acknowledged; answers pings.
    async fn read(
        &mut self,
        peer: &mut crate::fake_broker::Peer,
        period: Duration,
        enough: usize,
    ) -> io::Result<()> {
        let end = Instant::now() + period;
        while self.acknowledged < enough {
            let Ok(packet) = tokio::time::timeout_at(end, peer.try_packet()).await else { break };
            match packet?.map(|packet| packet.head) {
                Some(0x40) => self.acknowledged += 1,
                Some(0xC0) => {
                    self.pings += 1;
                    peer.send(&packet_of_pingresp()).await;
                }
                Some(other) => panic!("unexpected packet {other:#x}"),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(())
    }
}

fn packet_of_pingresp() -> Vec<u8> {
    packet(0xD0, &[])
}

#[tokio::test]
async fn when_nobody_takes_what_arrives_reading_stops_but_keep_alives_go_on() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&server_keep_alive(1)).await;
    let count = 3000_u16;
    let flood: Vec<u8> = (1..=count).flat_map(|id| publish("t", Some(id), &[], &id.to_be_bytes())).collect();
    peer.send(&flood).await;

    let mut seen = Flood { acknowledged: 0, pings: 0 };
    seen.read(&mut peer, Duration::from_millis(3500), usize::MAX).await.expect("the connection stays");
    assert!(seen.pings >= 3, "{} pings in three and a half seconds of keep alive 1 s", seen.pings);
    let acknowledged = seen.acknowledged;
    assert!((1024..2000).contains(&acknowledged), "{acknowledged} were read, though nobody took them");

    let script = async {
        seen.read(&mut peer, LONG, usize::from(count)).await.expect("the connection stays");
        seen.acknowledged
    };
    let reader = async {
        for id in 1..=count {
            assert_eq!(received(&mut connection.events).await.payload, id.to_be_bytes()[..]);
        }
    };
    let (acknowledged, ()) = tokio::join!(script, reader);
    assert_eq!(acknowledged, usize::from(count));
}

#[tokio::test]
async fn acknowledgements_come_in_order_before_our_next_message_and_wait_for_none() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    peer.send(&publish("t", Some(1), &[], b"alone")).await;
    received(&mut connection.events).await;
    assert_eq!(peer.packet().await, crate::fake_broker::Packet { head: 0x40, body: vec![0, 1] });

    peer.send(&publish("t", Some(2), &[], b"answered")).await;
    received(&mut connection.events).await;
    connection.publisher.try_publish(Publication::new("t", "answer", Qos::AtLeastOnce)).expect("room");
    assert_eq!(peer.packet().await, crate::fake_broker::Packet { head: 0x40, body: vec![0, 2] });
    assert_eq!(peer.publish().await.payload, b"answer");

    // More than a broker lets be in flight do not wait for each other.
    let burst: Vec<u8> = (3..=40).flat_map(|id| publish("t", Some(id), &[], b"burst")).collect();
    peer.send(&burst).await;
    for id in 3..=40 {
        assert_eq!(peer.packet().await, crate::fake_broker::Packet { head: 0x40, body: vec![0, id] });
    }
}

#[tokio::test]
async fn a_disconnect_in_its_shortest_form_is_one() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    peer.send(&[0xE0, 0]).await;
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    assert!(
        matches!(&event, Some(Event::Closed(CloseReason::Disconnected { reason, .. })) if reason.0 == 0),
        "{event:?}"
    );
}

#[tokio::test]
async fn a_message_at_qos_2_which_nobody_asked_for_ends_the_connection() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    peer.send(&packet(0x34, &[0, 1, b't', 0, 1, 0, b'x'])).await;
    let event = timeout(LONG, connection.events.recv()).await.expect("in time");
    assert!(
        matches!(&event, Some(Event::Closed(CloseReason::Protocol(what))) if what.contains("QoS 2")),
        "{event:?}"
    );
}

#[tokio::test]
async fn by_hand_a_message_is_acknowledged_behind_what_was_said_of_it_and_not_before() {
    let broker = FakeBroker::start().await;
    let options = ConnectOptions { manual_acks: true, ..broker.options() };
    let properties = receive_maximum(1);
    let (connection, (mut peer, _)) =
        tokio::join!(Connection::open(&options), broker.accept_with(&properties));
    let mut connection = connection.expect("accepted");
    peer.send(&[publish("a", Some(7), &[], b"1"), publish("b", Some(8), &[], b"2")].concat()).await;
    let (first, second) = (received(&mut connection.events).await, received(&mut connection.events).await);
    peer.silent().await;

    // The broker takes one at a time: the second publish waits for the first, and so does what is behind it.
    for topic in ["journal/1", "journal/2"] {
        connection.publisher.try_publish(Publication::new(topic, "x", Qos::AtLeastOnce)).expect("room");
    }
    second.ack.expect("at QoS 1").send();
    assert_eq!(peer.publish().await.topic, "journal/1");
    peer.silent().await;
    peer.send(&puback(1, 0)).await;
    assert_eq!(peer.publish().await.topic, "journal/2");
    assert_eq!(peer.packet().await, Packet { head: 0x40, body: vec![0, 8] });
    first.ack.expect("at QoS 1").send();
    assert_eq!(peer.packet().await, Packet { head: 0x40, body: vec![0, 7] });

    peer.send(&publish("c", None, &[], b"3")).await;
    assert!(received(&mut connection.events).await.ack.is_none(), "at QoS 0 there is nothing to send");
}

#[tokio::test]
async fn without_a_hand_a_message_is_acknowledged_on_arrival() {
    let broker = FakeBroker::start().await;
    let (mut connection, mut peer) = broker.connected(&[]).await;
    peer.send(&publish("a", Some(7), &[], b"1")).await;
    assert!(received(&mut connection.events).await.ack.is_none());
    assert_eq!(peer.packet().await, Packet { head: 0x40, body: vec![0, 7] });
}
