//! Between the gateway and Mosquitto, to make of it a broker that Mosquitto is not.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use url::Url;

/// Packet types, as they stand in the first byte.
pub(crate) const PUBLISH: u8 = 0x30;
pub(crate) const SUBSCRIBE: u8 = 0x80;

/// How it differs from the broker behind it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manner {
    /// Closes the connection on a packet of this type that names this topic, as some brokers do with what they do
    /// not allow.
    pub(crate) closes_on: Option<(u8, &'static str)>,
    /// Adds this user property to CONNACK.
    pub(crate) server_name: Option<&'static str>,
    /// Swallows a publish to this topic and acknowledges nothing.
    pub(crate) swallows: Option<&'static str>,
}

/// Dropping it ends it with its connections.
pub(crate) struct Proxy {
    port: u16,
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Proxy {
    pub(crate) async fn start(broker: u16, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(client, broker, manner.clone()));
            }
        });
        Ok(Self { port, connections, task: task.abort_handle() })
    }

    pub(crate) fn url(&self) -> Url {
        Url::parse(&format!("mqtt://127.0.0.1:{}", self.port)).expect("it is a URL")
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, broker: u16, manner: Manner) -> Result<()> {
    let broker = TcpStream::connect(("127.0.0.1", broker)).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    let down = async {
        let mut connack = packet(&mut from_broker).await?;
        if let Some(name) = manner.server_name {
            add_user_property(&mut connack, "MCP-SERVER-NAME", name);
        }
        to_client.write_all(&connack).await?;
        loop {
            to_client.write_all(&packet(&mut from_broker).await?).await?;
        }
    };
    let up = async {
        loop {
            let packet = packet(&mut from_client).await?;
            let names = |topic: &str| packet.windows(topic.len()).any(|window| window == topic.as_bytes());
            if manner.closes_on.is_some_and(|(kind, topic)| packet[0] & 0xF0 == kind && names(topic)) {
                return anyhow::Ok(());
            }
            if manner.swallows.is_some_and(|topic| packet[0] & 0xF0 == PUBLISH && names(topic)) {
                continue;
            }
            to_broker.write_all(&packet).await?;
        }
    };
    tokio::select! {
        result = down => result,
        result = up => result,
    }
}

/// One whole packet.
async fn packet(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<Vec<u8>> {
    let mut packet = vec![stream.read_u8().await?];
    let mut length = 0_usize;
    for shift in [0, 7, 14, 21] {
        let byte = stream.read_u8().await?;
        packet.push(byte);
        length |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let header = packet.len();
    packet.resize(header + length, 0);
    stream.read_exact(&mut packet[header..]).await?;
    Ok(packet)
}

/// For a CONNACK so short that its lengths take a byte each.
fn add_user_property(connack: &mut Vec<u8>, name: &str, value: &str) {
    let mut property = vec![0x26];
    for text in [name, value] {
        property.extend(u16::try_from(text.len()).expect("a short text").to_be_bytes());
        property.extend(text.as_bytes());
    }
    let added = u8::try_from(property.len()).expect("a short property");
    assert!(connack[1] + added < 0x80, "a short CONNACK");
    connack[1] += added; // remaining length
    connack[4] += added; // length of the properties
    connack.extend(property);
}
