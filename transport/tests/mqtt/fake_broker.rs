//! A broker of raw MQTT 5 packets: each test is the script.

use std::time::Duration;

use mcp_mqtt_transport::mqtt::{ConnectError, ConnectOptions, Connection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// More than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(10);
/// To be sure that nothing comes.
pub(crate) const QUIET: Duration = Duration::from_millis(200);

pub(crate) struct FakeBroker {
    listener: TcpListener,
    port: u16,
}

/// The broker's end of one connection.
pub(crate) struct Peer {
    stream: TcpStream,
}

/// A control packet: its first byte, and what follows the length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) head: u8,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) id: u16,
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
}

impl FakeBroker {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        Self { listener, port }
    }

    pub(crate) fn options(&self) -> ConnectOptions {
        let url = format!("mqtt://127.0.0.1:{}", self.port).parse().expect("a URL");
        ConnectOptions {
            keep_alive: Duration::from_mins(1),
            connect_timeout: LONG,
            ..ConnectOptions::new(url, "client")
        }
    }

    pub(crate) async fn accept(&self) -> Peer {
        let (stream, _) = timeout(LONG, self.listener.accept()).await.expect("in time").expect("accepted");
        Peer { stream }
    }

    /// Accepts one connection with CONNACK and these properties.
    pub(crate) async fn accept_with(&self, connack_properties: &[u8]) -> (Peer, Packet) {
        let mut peer = self.accept().await;
        let connect = peer.packet().await;
        assert_eq!(connect.head, 0x10, "CONNECT comes first");
        peer.send(&connack(0, connack_properties)).await;
        (peer, connect)
    }

    /// A connection of ours and the broker's end of it.
    pub(crate) async fn connected(&self, connack_properties: &[u8]) -> (Connection, Peer) {
        let options = self.options();
        let (connection, (peer, _)) =
            tokio::join!(Connection::open(&options), self.accept_with(connack_properties));
        (connection.expect("accepted"), peer)
    }

    /// What comes of a connect that gets these bytes for an answer, and then the end of the connection.
    pub(crate) async fn answered(&self, answer: &[u8]) -> Result<Connection, ConnectError> {
        let options = self.options();
        let script = async {
            let mut peer = self.accept().await;
            peer.packet().await;
            peer.send(answer).await;
        };
        tokio::join!(Connection::open(&options), script).0
    }
}

impl Peer {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        timeout(LONG, self.stream.write_all(bytes)).await.expect("in time").expect("sent");
    }

    /// The next packet; none at the end of the connection.
    pub(crate) async fn try_packet(&mut self) -> std::io::Result<Option<Packet>> {
        let mut head = [0];
        if self.stream.read(&mut head).await? == 0 {
            return Ok(None);
        }
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = self.stream.read_u8().await?;
            length |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok(Some(Packet { head: head[0], body }))
    }

    pub(crate) async fn packet(&mut self) -> Packet {
        timeout(LONG, self.try_packet()).await.expect("in time").expect("readable").expect("not closed")
    }

    pub(crate) async fn publish(&mut self) -> Publish {
        let packet = self.packet().await;
        packet.publish().unwrap_or_else(|| panic!("not a PUBLISH: {packet:?}"))
    }

    /// Nothing comes for a while.
    pub(crate) async fn silent(&mut self) {
        if let Ok(packet) = timeout(QUIET, self.try_packet()).await {
            panic!("not silent: {packet:?}");
        }
    }
}

impl Packet {
    pub(crate) fn publish(&self) -> Option<Publish> {
        if self.head & 0xF0 != 0x30 {
            return None;
        }
        let qos = (self.head >> 1) & 3;
        let (topic, mut rest) = string(&self.body);
        let mut id = 0;
        if qos > 0 {
            id = u16::from_be_bytes([rest[0], rest[1]]);
            rest = &rest[2..];
        }
        // In these scripts properties are shorter than 128 bytes.
        let payload = rest[1 + usize::from(rest[0])..].to_vec();
        Some(Publish { qos, retain: self.head & 1 == 1, id, topic, payload })
    }

    /// Packet id of a SUBSCRIBE, UNSUBSCRIBE or PUBACK.
    pub(crate) fn id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }
}

/// A length-prefixed string and what follows it.
pub(crate) fn string(bytes: &[u8]) -> (String, &[u8]) {
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    (String::from_utf8(bytes[2..2 + length].to_vec()).expect("UTF-8"), &bytes[2 + length..])
}

pub(crate) fn packet(head: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![head];
    bytes.extend(variable(body.len()));
    bytes.extend_from_slice(body);
    bytes
}

fn variable(mut length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(length % 128).expect("below 128");
        length /= 128;
        if length == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

pub(crate) fn connack(reason: u8, properties: &[u8]) -> Vec<u8> {
    let mut body = vec![0, reason];
    body.extend(variable(properties.len()));
    body.extend_from_slice(properties);
    packet(0x20, &body)
}

pub(crate) fn puback(id: u16, reason: u8) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    packet(0x40, &[high, low, reason, 0])
}

pub(crate) fn suback(id: u16, reasons: &[u8]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    packet(0x90, &[&[high, low, 0], reasons].concat())
}

pub(crate) fn unsuback(id: u16, reasons: &[u8]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    packet(0xB0, &[&[high, low, 0], reasons].concat())
}

pub(crate) fn disconnect(reason: u8) -> Vec<u8> {
    packet(0xE0, &[reason, 0])
}

/// A PUBLISH; at QoS 0 without an id.
pub(crate) fn publish(topic: &str, id: Option<u16>, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = u16::try_from(topic.len()).expect("short").to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    body.extend(id.map(u16::to_be_bytes).into_iter().flatten());
    body.extend(variable(properties.len()));
    body.extend_from_slice(properties);
    body.extend_from_slice(payload);
    packet(if id.is_some() { 0x32 } else { 0x30 }, &body)
}

/// CONNACK property: Receive Maximum.
pub(crate) fn receive_maximum(n: u16) -> Vec<u8> {
    let [high, low] = n.to_be_bytes();
    vec![0x21, high, low]
}

/// CONNACK property: Server Keep Alive, in seconds.
pub(crate) fn server_keep_alive(seconds: u16) -> Vec<u8> {
    let [high, low] = seconds.to_be_bytes();
    vec![0x13, high, low]
}
