//! CONNECT, CONNACK, and what comes of them.

use std::{fs, time::Duration};

use mcp_mqtt_transport::mqtt::{
    ConnectError, ConnectOptions, Connection, Publication, PublishError, Qos, ReasonCode,
};
use tokio::time::Instant;

use crate::fake_broker::{FakeBroker, LONG, connack, packet, string};

#[tokio::test]
async fn connect_carries_all_that_was_asked_for_and_no_topic_alias() {
    let broker = FakeBroker::start().await;
    let options = ConnectOptions {
        user_properties: vec![
            ("MCP-COMPONENT-TYPE".to_owned(), "mcp-server".to_owned()),
            ("MCP-META".to_owned(), "{}".to_owned()),
        ],
        username: Some("user".to_owned()),
        password: Some("pass".into()),
        will: Some(Publication {
            retain: true,
            user_properties: vec![("k".to_owned(), "v".to_owned())],
            ..Publication::new("will/topic", "", Qos::AtLeastOnce)
        }),
        ..broker.options()
    };
    let (connection, (_peer, connect)) = tokio::join!(Connection::open(&options), broker.accept_with(&[]));
    connection.expect("accepted");

    let (protocol, rest) = string(&connect.body);
    assert_eq!((protocol.as_str(), rest[0]), ("MQTT", 5));
    // User name, password, will retain, will QoS 1, will, clean start.
    assert_eq!(rest[1], 0b1110_1110);
    assert_eq!(rest[2..4], [0, 60], "keep alive");
    let (properties, rest) = rest[5..].split_at(usize::from(rest[4]));
    let mut expected = vec![0x27, 0, 0x10, 0, 0]; // Maximum Packet Size: 1 MiB
    for text in [("MCP-COMPONENT-TYPE", "mcp-server"), ("MCP-META", "{}")] {
        expected.push(0x26);
        for part in [text.0, text.1] {
            expected.extend([0, u8::try_from(part.len()).expect("short")]);
            expected.extend(part.as_bytes());
        }
    }
    // And that is all: Session Expiry Interval (0x11) and Topic Alias Maximum (0x22) stay at their default of 0.
    assert_eq!(properties, expected);
    let (client_id, rest) = string(rest);
    assert_eq!(client_id, "client");
    let (will_properties, rest) = rest[1..].split_at(usize::from(rest[0]));
    assert_eq!(will_properties, [0x26, 0, 1, b'k', 0, 1, b'v']);
    let (will_topic, rest) = string(rest);
    let (will_payload, rest) = string(rest);
    let (user, rest) = string(rest);
    let (password, rest) = string(rest);
    assert_eq!([will_topic, will_payload, user, password], ["will/topic", "", "user", "pass"]);
    assert!(rest.is_empty());
}

#[tokio::test]
async fn connack_properties_are_told() {
    let broker = FakeBroker::start().await;
    let mut properties = vec![0x27, 0, 0, 0x10, 0, 0x21, 0, 7, 0x25, 0, 0x28, 0, 0x24, 1, 0x13, 0, 33];
    properties.extend([0x12, 0, 2, b'i', b'd']);
    properties.extend([0x26, 0, 15]);
    properties.extend(b"MCP-SERVER-NAME");
    properties.extend([0, 3]);
    properties.extend(b"a/b");
    let (connection, _peer) = broker.connected(&properties).await;
    let accepted = &connection.accepted;
    assert_eq!(accepted.maximum_packet_size, Some(4096));
    assert_eq!((accepted.receive_maximum, accepted.maximum_qos), (7, 1));
    assert!(!accepted.retain_available && !accepted.wildcard_subscription_available);
    assert_eq!(accepted.keep_alive, Duration::from_secs(33));
    assert_eq!(accepted.assigned_client_id.as_deref(), Some("id"));
    assert_eq!(accepted.server_name(), Some("a/b"));

    let retained = Publication { retain: true, ..Publication::new("a", "b", Qos::AtLeastOnce) };
    let refused = connection.publisher.try_publish(retained);
    assert_eq!(refused, Err(PublishError::Refused(ReasonCode::RETAIN_NOT_SUPPORTED)));
}

#[tokio::test]
async fn without_connack_properties_mqtts_defaults_hold() {
    let broker = FakeBroker::start().await;
    let (connection, _peer) = broker.connected(&[]).await;
    let accepted = &connection.accepted;
    assert_eq!((accepted.maximum_packet_size, accepted.receive_maximum), (None, 65_535));
    assert!(accepted.retain_available && accepted.wildcard_subscription_available);
    assert_eq!((accepted.keep_alive, accepted.server_name()), (Duration::from_mins(1), None));
    assert!(!accepted.session_present);
}

#[tokio::test]
async fn a_session_that_the_broker_has_kept_is_told() {
    let broker = FakeBroker::start().await;
    let connection = broker.answered(&packet(0x20, &[1, 0, 0])).await;
    assert!(connection.expect("accepted").accepted.session_present);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let broker = FakeBroker::start().await;
    for (code, credentials) in
        [(0x86, true), (0x87, true), (0x85, true), (0x89, false), (0x9A, false), (0x84, false)]
    {
        let error = broker.answered(&connack(code, &[])).await.expect_err("refused");
        let reason = match &error {
            ConnectError::RefusedCredentials { reason, .. } if credentials => reason,
            ConnectError::Refused { reason, .. } if !credentials => reason,
            _ => panic!("{code:#x}: {error}"),
        };
        assert_eq!(*reason, ReasonCode(code));
        assert!(error.to_string().contains(reason.name()), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_mqtt_5_broker_is_said_to_be_none() {
    let broker = FakeBroker::start().await;
    for answer in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        packet(0xD0, &[]),
        connack(0, &[0x21, 0, 0]),
        connack(0x42, &[]),
        vec![],
    ] {
        let error = broker.answered(&answer).await.expect_err("no CONNACK");
        assert!(matches!(error, ConnectError::Protocol { .. }), "{answer:?}: {error:?}");
    }
}

#[tokio::test]
async fn no_connack_ends_by_the_deadline_and_names_the_broker() {
    let broker = FakeBroker::start().await;
    let options = ConnectOptions { connect_timeout: Duration::from_millis(200), ..broker.options() };
    let start = Instant::now();
    let (connection, _peer) = tokio::join!(Connection::open(&options), broker.accept());
    let error = connection.expect_err("nobody answers");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(
        matches!(&error, ConnectError::Timeout { address, .. } if address.starts_with("127.0.0.1:")),
        "{error}"
    );
}

#[tokio::test]
async fn what_connect_cannot_carry_is_refused_by_name() {
    let broker = FakeBroker::start().await;
    let long = "x".repeat(65_536);
    let publication = |topic: &str| Publication::new(topic, long.clone(), Qos::AtLeastOnce);
    for (options, what) in [
        (ConnectOptions { client_id: long.clone(), ..broker.options() }, "client id"),
        (ConnectOptions { username: Some(long.clone()), ..broker.options() }, "user name"),
        (ConnectOptions { password: Some(long.clone().into()), ..broker.options() }, "password"),
        (ConnectOptions { password: Some(vec![0xFF].into()), ..broker.options() }, "password"),
        (
            ConnectOptions { user_properties: vec![("a".into(), long.clone())], ..broker.options() },
            "property",
        ),
        (ConnectOptions { will: Some(publication("t")), ..broker.options() }, "will"),
        (ConnectOptions { will: Some(publication("t/#")), ..broker.options() }, "will"),
    ] {
        let error = Connection::open(&options).await.expect_err(what);
        assert!(matches!(error, ConnectError::Options(_)) && error.to_string().contains(what), "{error}");
    }
}

#[tokio::test]
async fn a_keep_alive_that_is_too_short_is_raised_and_a_broker_that_wants_none_gets_ours() {
    let broker = FakeBroker::start().await;
    let options = ConnectOptions { keep_alive: Duration::from_secs(1), ..broker.options() };
    // Server Keep Alive 0: none.
    let (connection, (mut peer, connect)) =
        tokio::join!(Connection::open(&options), broker.accept_with(&[0x13, 0, 0]));
    let connection = connection.expect("accepted");
    assert_eq!(connect.body[8..10], [0, 5]);
    assert_eq!(connection.accepted.keep_alive, Duration::from_secs(5));
    peer.silent().await;
    assert_eq!(peer.packet().await.head, 0xC0, "a ping in its time");
}

#[tokio::test]
async fn a_connection_takes_kilobytes_not_megabytes() {
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident size");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB")
    };
    let broker = FakeBroker::start().await;
    let before = resident();
    let mut connections = Vec::new();
    for _ in 0..100 {
        connections.push(broker.connected(&[]).await);
    }
    let each = (resident().saturating_sub(before)) / 100;
    assert!(each < 500, "{each} KiB a connection");
}

#[tokio::test]
async fn an_ipv6_broker_is_reached() {
    let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
        return; // This machine has no IPv6.
    };
    let port = listener.local_addr().expect("bound").port();
    let broker = FakeBroker::start().await;
    let options = ConnectOptions {
        url: format!("mqtt://[::1]:{port}").parse().expect("a URL"),
        connect_timeout: Duration::from_millis(300),
        ..broker.options()
    };
    let (connection, accepted) =
        tokio::join!(Connection::open(&options), tokio::time::timeout(LONG, listener.accept()));
    accepted.expect("in time").expect("accepted");
    assert!(matches!(connection, Err(ConnectError::Timeout { .. })));
}
