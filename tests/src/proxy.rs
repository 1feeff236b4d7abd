//! Between a client of MQTT and Mosquitto, to make of it a broker that Mosquitto is not, and of the network one that
//! loses packets.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, sleep},
};
use url::Url;

use crate::lock;

/// How long a packet may take to come by.
const PATIENCE: Duration = Duration::from_secs(20);
/// Packets that may wait for one side: more than any test sends at once.
const QUEUE: usize = 16 * 1024;

/// Packet types, as they stand in the upper half of the first byte.
pub mod kind {
    /// CONNECT
    pub const CONNECT: u8 = 0x10;
    /// PUBLISH
    pub const PUBLISH: u8 = 0x30;
    /// SUBSCRIBE
    pub const SUBSCRIBE: u8 = 0x80;
    /// SUBACK
    pub const SUBACK: u8 = 0x90;
    /// UNSUBSCRIBE
    pub const UNSUBSCRIBE: u8 = 0xA0;
    /// DISCONNECT
    pub const DISCONNECT: u8 = 0xE0;
}

/// How it differs from the broker behind it. A text is looked for in the whole packet: a topic, or part of a payload.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// Closes the connection on a packet of this type that names this text, as some brokers do with what they do not
    /// allow.
    pub closes_on: Option<(u8, &'static str)>,
    /// Closes it in the middle of the packet of the broker that names this text.
    pub cuts_in: Option<&'static str>,
    /// Puts a byte that is no UTF-8 in the place of the first one of this text, in whatever the broker sends: some brokers
    /// forward what Mosquitto refuses.
    pub garbles: Option<&'static str>,
    /// Adds this user property to CONNACK.
    pub server_name: Option<&'static str>,
    /// Adds this Maximum Packet Size to CONNACK.
    pub max_packet: Option<u32>,
    /// Refuses connections with this reason code.
    pub refuses: Option<u8>,
    /// Refuses the subscription to a filter with this text, with this reason code for each filter in the packet.
    pub refuses_subscription: Option<(&'static str, u8)>,
    /// Refuses a publish with this text, with this reason code.
    pub refuses_publish: Option<(&'static str, u8)>,
    /// Swallows a publish with this text and acknowledges nothing.
    pub swallows: Option<&'static str>,
}

/// Dropping it ends it with its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    manner: Mutex<Manner>,
    connections: AtomicUsize,
    /// What clients have sent, in order: whole packets.
    sent: Mutex<Vec<Vec<u8>>>,
    /// Whose packets neither pass nor are read.
    frozen: watch::Sender<Frozen>,
    /// Counts the cuts: a connection ends when it moves.
    cuts: watch::Sender<u64>,
}

/// Which connections stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frozen {
    None,
    All,
    /// Those whose CONNECT names this text.
    Of(&'static str),
}

/// What the client of one connection said first, once it has.
type Connect = OnceLock<Vec<u8>>;

impl Proxy {
    /// Listens on a port of its own, for the broker on that one.
    ///
    /// # Errors
    /// No port.
    pub async fn start(broker: u16, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            manner: Mutex::new(manner),
            connections: AtomicUsize::new(0),
            sent: Mutex::default(),
            frozen: watch::Sender::new(Frozen::None),
            cuts: watch::Sender::new(0),
        });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(client, broker, serving.clone()));
            }
        });
        Ok(Self { port, shared, task: task.abort_handle() })
    }

    /// Where to connect to in place of the broker.
    pub fn url(&self) -> Url {
        Url::parse(&format!("mqtt://127.0.0.1:{}", self.port)).expect("it is a URL")
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Other manners from now on.
    pub fn behave(&self, manner: Manner) {
        *lock(&self.shared.manner) = manner;
    }

    /// Stops forwarding, and reading: the sockets stay open, as when a firewall begins to drop packets.
    pub fn freeze(&self) {
        self.shared.frozen.send_replace(Frozen::All);
    }

    /// The same for those connections alone whose CONNECT names this text (a client id, most often), now and later.
    pub fn freeze_only(&self, text: &'static str) {
        self.shared.frozen.send_replace(Frozen::Of(text));
    }

    /// Lets packets through again, those first that were under way.
    pub fn thaw(&self) {
        self.shared.frozen.send_replace(Frozen::None);
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// What clients have sent so far: whole packets, in order.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        lock(&self.shared.sent).clone()
    }

    /// Waits until a client has sent a packet of this type that names this text; its place in [`sent`](Self::sent).
    ///
    /// # Errors
    /// None came.
    pub async fn wait_sent(&self, kind: u8, text: &str) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = lock(&self.shared.sent).iter().position(|packet| is(packet, kind, text)) {
                return Ok(at);
            }
            ensure!(Instant::now() < deadline, "no packet of type {kind:#x} with {text:?} was sent");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

/// Whether a packet is of this type and names this text.
pub fn is(packet: &[u8], kind: u8, text: &str) -> bool {
    packet[0] & 0xF0 == kind && names(packet, text)
}

fn names(packet: &[u8], text: &str) -> bool {
    text.is_empty() || packet.windows(text.len()).any(|window| window == text.as_bytes())
}

/// One connection; whatever ends it is seen by both sides.
async fn serve(client: TcpStream, broker: u16, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let forwarded = async {
        let broker = TcpStream::connect(("127.0.0.1", broker)).await?;
        client.set_nodelay(true)?;
        broker.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_broker, to_broker) = broker.into_split();
        // What the client gets comes from the broker, and from us when we speak in its place.
        let (downward, packets) = mpsc::channel(QUEUE);
        let connect = Connect::new();
        tokio::select! {
            done = up((from_client, &connect), to_broker, &downward, &shared) => done,
            done = down((from_broker, &connect), &downward, &shared) => done,
            done = deliver(packets, (to_client, &connect), &shared) => done,
        }
    };
    tokio::select! {
        // Most often one of the two has closed its connection.
        _ended = forwarded => {}
        _cut = cuts.changed() => {}
    }
}

/// A packet for the client, and whether the connection ends in its middle.
type Downward = (Vec<u8>, bool);

async fn up(
    (mut client, connect): (OwnedReadHalf, &Connect),
    mut broker: OwnedWriteHalf,
    downward: &mpsc::Sender<Downward>,
    shared: &Shared,
) -> Result<()> {
    loop {
        let packet = packet(&mut client).await?;
        connect.get_or_init(|| packet.clone());
        shared.thawed(connect).await?;
        lock(&shared.sent).push(packet.clone());
        let manner = lock(&shared.manner).clone();
        if manner.closes_on.is_some_and(|(kind, text)| is(&packet, kind, text)) {
            return Ok(());
        }
        if let Some(reason) = manner.refuses
            && packet[0] == kind::CONNECT
        {
            downward.send((vec![0x20, 3, 0, reason, 0], false)).await?;
            sleep(Duration::from_millis(100)).await; // for it to be read
            return Ok(());
        }
        if manner.swallows.is_some_and(|text| is(&packet, kind::PUBLISH, text)) {
            continue;
        }
        if let Some((text, reason)) = manner.refuses_publish
            && is(&packet, kind::PUBLISH, text)
            && let Some([high, low]) = publish_id(&packet)
        {
            downward.send((vec![0x40, 4, high, low, reason, 0], false)).await?;
            continue;
        }
        if let Some((text, reason)) = manner.refuses_subscription
            && is(&packet, kind::SUBSCRIBE, text)
        {
            downward.send((refuse_subscription(&packet, reason)?, false)).await?;
            continue;
        }
        broker.write_all(&packet).await?;
    }
}

async fn down(
    (mut broker, connect): (OwnedReadHalf, &Connect),
    downward: &mpsc::Sender<Downward>,
    shared: &Shared,
) -> Result<()> {
    let mut connack = packet(&mut broker).await?;
    let manner = lock(&shared.manner).clone();
    if let Some(name) = manner.server_name {
        let mut property = vec![0x26];
        for text in ["MCP-SERVER-NAME", name] {
            property.extend(u16::try_from(text.len())?.to_be_bytes());
            property.extend(text.as_bytes());
        }
        add_property(&mut connack, &property)?;
    }
    if let Some(bytes) = manner.max_packet {
        add_property(&mut connack, &[&[0x27], &bytes.to_be_bytes()[..]].concat())?;
    }
    downward.send((connack, false)).await?;
    loop {
        let mut packet = packet(&mut broker).await?;
        shared.thawed(connect).await?;
        let manner = lock(&shared.manner).clone();
        if let Some(text) = manner.garbles
            && let Some(at) = packet.windows(text.len()).position(|window| window == text.as_bytes())
        {
            packet[at] = 0xFF;
        }
        let cut = manner.cuts_in.is_some_and(|text| names(&packet, text));
        downward.send((packet, cut)).await?;
    }
}

async fn deliver(
    mut packets: mpsc::Receiver<Downward>,
    (mut client, connect): (OwnedWriteHalf, &Connect),
    shared: &Shared,
) -> Result<()> {
    while let Some((packet, cut)) = packets.recv().await {
        shared.thawed(connect).await?;
        if cut {
            client.write_all(&packet[..packet.len() / 2]).await?;
            return Ok(());
        }
        client.write_all(&packet).await?;
    }
    Ok(())
}

impl Shared {
    async fn thawed(&self, connect: &Connect) -> Result<()> {
        let passes = |frozen: &Frozen| match frozen {
            Frozen::None => true,
            Frozen::All => false,
            Frozen::Of(text) => !connect.get().is_some_and(|connect| names(connect, text)),
        };
        self.frozen.subscribe().wait_for(passes).await?;
        Ok(())
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

/// What follows the packet's length.
pub fn body(packet: &[u8]) -> &[u8] {
    let length = packet[1..].iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    &packet[1 + length..]
}

/// The packet id of a PUBLISH at QoS 1.
fn publish_id(packet: &[u8]) -> Option<[u8; 2]> {
    if packet[0] & 0b110 == 0 {
        return None;
    }
    let body = body(packet);
    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
    Some([body[2 + topic], body[3 + topic]])
}

/// The filters of a SUBSCRIBE without properties, each with its options.
///
/// # Errors
/// It is cut off.
pub fn filters(subscribe: &[u8]) -> Result<Vec<(String, u8)>> {
    let mut rest = body(subscribe).get(3..).context("no filters")?;
    let mut filters = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        let filter = String::from_utf8(rest[2..2 + length].to_vec())?;
        filters.push((filter, rest[2 + length]));
        rest = &rest[3 + length..];
    }
    Ok(filters)
}

fn refuse_subscription(subscribe: &[u8], reason: u8) -> Result<Vec<u8>> {
    let count = filters(subscribe)?.len();
    let id = &body(subscribe)[..2];
    let mut suback = vec![kind::SUBACK, u8::try_from(3 + count)?, id[0], id[1], 0];
    suback.extend(std::iter::repeat_n(reason, count));
    Ok(suback)
}

/// For a CONNACK so short that its lengths take a byte each.
fn add_property(connack: &mut Vec<u8>, property: &[u8]) -> Result<()> {
    let added = u8::try_from(property.len())?;
    ensure!(connack[1] + added < 0x80, "a short CONNACK");
    connack[1] += added; // remaining length
    connack[4] += added; // length of the properties
    connack.extend(property);
    Ok(())
}
