//! The bench's client: one MQTT connection, and one request at a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use mcp_mqtt_transport::{
    client::Instance,
    jsonrpc::Message,
    mqtt::{ConnectOptions, Connection, Event, Filter, Publication, Qos},
    topic::{self, ClientId},
    user_property::{self, Component},
};
use url::Url;

use crate::echo::Echo;

/// Length of a request without its `message`.
const ENVELOPE: usize = 106;

/// A reply later than this ends the bench: something hangs.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// Whom the clients talk to.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// An echo.
    Echo(Echo),
    /// A gateway.
    Gateway(Instance),
}

/// See the module.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    /// Where requests go, and `initialize`, if there is to be one.
    request_topic: String,
    control: Option<String>,
    qos: Qos,
    user_properties: Vec<(String, String)>,
    next_id: u64,
}

impl Client {
    /// Connects and subscribes to the answers.
    pub(crate) async fn attach(broker: &Url, peer: &Peer, qos: Qos) -> Result<Self> {
        let client_id = ClientId::new(&format!("bench-{:x}", fastrand::u64(..)))?;
        let connection = Connection::open(&options(broker, client_id.as_str())).await?;
        let user_properties = user_property::of_publish(Component::Client, client_id.as_str());
        let ((request_topic, reply_topic), control) = match peer {
            Peer::Echo(echo) => (echo.topics(qos, client_id.as_str()), None),
            Peer::Gateway(Instance { server_id, server_name, .. }) => {
                let rpc = topic::rpc(&client_id, server_id, server_name);
                ((rpc.clone(), rpc), Some(topic::control(server_id, server_name)))
            }
        };
        let filter = Filter::no_local(reply_topic, qos);
        let reasons = connection.publisher.subscribe(vec![filter], REPLY_TIMEOUT).await?;
        ensure!(!reasons[0].is_error(), "the broker refused the bench's subscription: {}", reasons[0]);
        Ok(Self { connection, request_topic, control, qos, user_properties, next_id: 0 })
    }

    /// And opens a session, where there is one to be opened.
    pub(crate) async fn connect(broker: &Url, peer: &Peer, qos: Qos) -> Result<Self> {
        let mut client = Self::attach(broker, peer, qos).await?;
        client.initialize().await?;
        Ok(client)
    }

    /// Opens a session; how long it took to be answered.
    pub(crate) async fn initialize(&mut self) -> Result<Duration> {
        let Some(control) = self.control.clone() else { return Ok(Duration::ZERO) };
        let initialize = br#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"0"}}}"#;
        let start = Instant::now();
        self.publish(control, Bytes::from_static(initialize))?;
        let answer = self.receive().await?;
        let took = start.elapsed();
        ensure!(
            answer.windows(8).any(|w| w == b"\"result\""),
            "initialize: {}",
            String::from_utf8_lossy(&answer)
        );
        self.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#)?;
        Ok(took)
    }

    /// Calls `echo` with a request of so many bytes; how long its answer took.
    pub(crate) async fn call(&mut self, bytes: usize) -> Result<Duration> {
        let padding = "x".repeat(bytes.saturating_sub(ENVELOPE));
        let request = self.request("echo", &format!(r#"{{"message":"{padding}"}}"#));
        let start = Instant::now();
        self.say(request)?;
        self.receive().await?;
        Ok(start.elapsed())
    }

    /// The next `tools/call`.
    pub(crate) fn request(&mut self, tool: &str, arguments: &str) -> String {
        self.next_id += 1;
        let id = self.next_id;
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
        )
    }

    /// Publishes where requests go, and waits for nothing.
    pub(crate) fn say(&self, payload: impl Into<Bytes>) -> Result<()> {
        self.publish(self.request_topic.clone(), payload.into())
    }

    fn publish(&self, topic: String, payload: Bytes) -> Result<()> {
        let user_properties = self.user_properties.clone();
        let publication = Publication { topic, payload, qos: self.qos, retain: false, user_properties };
        Ok(self.connection.publisher.try_publish(publication)?)
    }

    pub(crate) async fn receive(&mut self) -> Result<Bytes> {
        let event = tokio::time::timeout(REPLY_TIMEOUT, self.connection.events.recv()).await;
        match event.context("no reply")? {
            Some(Event::Received(received)) => Ok(received.payload),
            Some(Event::Closed(reason)) => bail!("the connection is over: {reason}"),
            Some(Event::Refused(_) | Event::Unusable(_)) | None => bail!("the connection is over"),
        }
    }

    /// Leaves, its session first.
    pub(crate) async fn leave(self) -> Result<()> {
        if self.control.is_some() {
            // Or its session would stay, and count against the gateway's limit.
            self.say(Message::disconnected().into_raw())?;
        }
        Ok(self.connection.publisher.disconnect(REPLY_TIMEOUT).await?)
    }
}

/// Connection options of the bench's clients and of the echo.
pub(crate) fn options(url: &Url, client_id: &str) -> ConnectOptions {
    ConnectOptions { max_packet_size: 2 << 20, ..ConnectOptions::new(url.clone(), client_id) }
}
