//! One round: so many clients in closed loops against one peer, for so long.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::Message,
    mqtt::{ConnectOptions, Connection, Event, Filter, Publication, Qos},
    topic::{self, ClientId, ServerId, ServerName},
    user_property::{self, Component},
};
use url::Url;

/// Length of a request's `message` that makes the whole request about 256 bytes.
const PADDING: usize = 150;

/// A reply later than this ends the bench: something hangs.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// Whom the clients talk to.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// The plain echo.
    Echo,
    /// The gateway.
    Gateway { server_id: ServerId, server_name: ServerName },
}

/// What one round measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) per_second: f64,
}

/// Runs one round.
pub(crate) async fn run(url: &Url, peer: &Peer, clients: usize, length: Duration) -> Result<Measured> {
    let mut loops = Vec::with_capacity(clients);
    for _ in 0..clients {
        loops.push(Client::connect(url, peer).await?);
    }
    let start = Instant::now();
    let until = start + length;
    let tasks: Vec<_> = loops.into_iter().map(|client| tokio::spawn(client.call_until(until))).collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let elapsed = start.elapsed();
    latencies.sort_unstable();
    let at = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = (latencies.len() as f64 * share) as usize;
        latencies[index.min(latencies.len() - 1)]
    };
    #[expect(clippy::cast_precision_loss)]
    let per_second = latencies.len() as f64 / elapsed.as_secs_f64();
    Ok(Measured { p50: at(0.5), p99: at(0.99), per_second })
}

/// One client with its own connection: a request is sent when the answer to the one before is there.
struct Client {
    connection: Connection,
    /// Where requests go.
    request_topic: String,
    user_properties: Vec<(String, String)>,
    next_id: u64,
    says_goodbye: bool,
}

impl Client {
    async fn connect(url: &Url, peer: &Peer) -> Result<Self> {
        let client_id = ClientId::new(&format!("bench-{:x}", fastrand::u64(..)))?;
        let connection = Connection::open(&options(url, client_id.as_str())).await?;
        let user_properties = user_property::of_publish(Component::Client, client_id.as_str());
        let (request_topic, reply_topic) = match peer {
            Peer::Echo => (format!("bench/echo/{client_id}"), format!("bench/reply/{client_id}")),
            Peer::Gateway { server_id, server_name } => {
                let rpc = topic::rpc(&client_id, server_id, server_name);
                (rpc.clone(), rpc)
            }
        };
        let reasons = connection.publisher.subscribe(vec![filter(reply_topic)], REPLY_TIMEOUT).await?;
        anyhow::ensure!(
            !reasons[0].is_error(),
            "the broker refused the bench's subscription: {}",
            reasons[0]
        );
        let says_goodbye = matches!(peer, Peer::Gateway { .. });
        let mut client = Self { connection, request_topic, user_properties, next_id: 0, says_goodbye };
        if let Peer::Gateway { server_id, server_name } = peer {
            client.initialize(topic::control(server_id, server_name)).await?;
        }
        Ok(client)
    }

    async fn initialize(&mut self, control: String) -> Result<()> {
        let initialize = br#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"0"}}}"#;
        self.publish(control, Bytes::from_static(initialize))?;
        let answer = self.receive().await?;
        anyhow::ensure!(
            answer.windows(8).any(|w| w == b"\"result\""),
            "initialize: {}",
            String::from_utf8_lossy(&answer)
        );
        let initialized = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        self.publish(self.request_topic.clone(), Bytes::from_static(initialized))
    }

    async fn call_until(mut self, until: Instant) -> Result<Vec<Duration>> {
        let mut latencies = Vec::with_capacity(1 << 16);
        while Instant::now() < until {
            let request = self.next_request();
            let start = Instant::now();
            self.publish(self.request_topic.clone(), request)?;
            self.receive().await?;
            latencies.push(start.elapsed());
        }
        if self.says_goodbye {
            // Or its session would stay, and count against the gateway's limit.
            self.publish(self.request_topic.clone(), Message::disconnected().into_raw())?;
        }
        self.connection.publisher.disconnect(REPLY_TIMEOUT).await?;
        Ok(latencies)
    }

    fn next_request(&mut self) -> Bytes {
        self.next_id += 1;
        let id = self.next_id;
        let padding = "x".repeat(PADDING);
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo","arguments":{{"message":"{padding}"}}}}}}"#).into()
    }

    fn publish(&self, topic: String, payload: Bytes) -> Result<()> {
        let user_properties = self.user_properties.clone();
        Ok(self.connection.publisher.try_publish(Publication {
            topic,
            payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            user_properties,
        })?)
    }

    async fn receive(&mut self) -> Result<Bytes> {
        let event =
            tokio::time::timeout(REPLY_TIMEOUT, self.connection.events.recv()).await.context("no reply")?;
        match event {
            Some(Event::Received(received)) => Ok(received.payload),
            Some(Event::Closed(reason)) => bail!("the connection is over: {reason}"),
            Some(Event::Refused(_)) | None => bail!("the connection is over"),
        }
    }
}

/// Connection options of the bench's clients and of the echo.
pub(crate) fn options(url: &Url, client_id: &str) -> ConnectOptions {
    ConnectOptions { max_packet_size: 2 << 20, ..ConnectOptions::new(url.clone(), client_id) }
}

/// A QoS 1 subscription that does not hear its own publishes.
pub(crate) fn filter(filter: String) -> Filter {
    Filter { filter, qos: Qos::AtLeastOnce, no_local: true }
}
