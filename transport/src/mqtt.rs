//! One MQTT 5 connection, from CONNECT to its end. A new [`Connection`] is made for every connect.

mod accepted;
mod ack;
mod dial;
mod driver;
mod error;
mod events;
mod incoming;
mod outbox;
mod packet;
mod publisher;
mod reason;
mod reconnect;
mod socket;
pub mod tls;
mod wire;

use std::{fmt, ops::RangeInclusive, time::Duration};

use bytes::Bytes;

use crate::redact;

pub use self::{
    accepted::Accepted,
    ack::Ack,
    error::{CloseReason, ConnectError, PublishError},
    events::{Event, Events, Refused},
    incoming::{MAX_PROPERTY_BYTES, Unusable},
    publisher::{FilterReply, PublishReply, Publisher},
    reason::ReasonCode,
    reconnect::Reconnect,
};

/// The parser of what strangers write into a PUBLISH, for the fuzz targets; no part of the interface.
#[doc(hidden)]
pub mod parsers {
    pub use super::incoming::Envelope;
}

/// The keep alive that a connection may have: a shorter one would be pings without a use, and MQTT says it in 16 bits of
/// seconds.
pub const KEEP_ALIVE: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(65_535);

/// What to connect to and as whom.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://`, host and port.
    pub url: url::Url,
    /// MQTT client id (for a server: its server id).
    pub client_id: String,
    /// User name, if any.
    pub username: Option<String>,
    /// Password, if any; never logged.
    pub password: Option<Bytes>,
    /// PEM files for TLS; read anew at every connect so that rotated files are picked up.
    pub tls: TlsFiles,
    /// MQTT keep alive; one outside of [`KEEP_ALIVE`] is taken as its nearest end.
    pub keep_alive: Duration,
    /// Deadline from TCP connect to CONNACK.
    pub connect_timeout: Duration,
    /// User properties of CONNECT.
    pub user_properties: Vec<(String, String)>,
    /// The will: published by the broker when the connection is lost.
    pub will: Option<Publication>,
    /// The largest packet that we take, in bytes; told to the broker.
    pub max_packet_size: u32,
    /// How long the broker keeps our subscriptions, and what they catch, after the connection; whole seconds. None: not
    /// at all, and what it kept is given up.
    pub session_expiry: Option<Duration>,
    /// Whether messages of QoS 1 are acknowledged by [`Received::ack`] and not on arrival.
    pub manual_acks: bool,
}

impl ConnectOptions {
    /// Options with defaults: no credentials, no will; the rest is set field by field.
    pub fn new(url: url::Url, client_id: &str) -> Self {
        Self {
            url,
            client_id: client_id.to_owned(),
            username: None,
            password: None,
            tls: TlsFiles::default(),
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            user_properties: Vec::new(),
            will: None,
            max_packet_size: 1 << 20,
            session_expiry: None,
            manual_acks: false,
        }
    }
}

/// PEM files of the TLS side; each optional. Without `ca` the public roots are trusted.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Certificates to trust.
    pub ca: Option<std::path::PathBuf>,
    /// Client certificate chain.
    pub cert: Option<std::path::PathBuf>,
    /// Client private key.
    pub key: Option<std::path::PathBuf>,
}

/// MQTT quality of service, 0 or 1 (2 buys nothing here).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// At most once.
    AtMostOnce,
    /// At least once.
    AtLeastOnce,
}

/// A PUBLISH to send.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: Qos,
    /// Retain flag.
    pub retain: bool,
    /// User properties.
    pub user_properties: Vec<(String, String)>,
}

/// A subscription to ask for.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Topic filter.
    pub filter: String,
    /// Quality of service.
    pub qos: Qos,
    /// No Local: do not send us our own messages.
    pub no_local: bool,
}

/// A PUBLISH received.
#[derive(Debug)]
pub struct Received {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Retain flag: a stored message, not a live one.
    pub retain: bool,
    /// User properties.
    pub user_properties: Vec<(String, String)>,
    /// To be sent when it is taken care of; none where that is done on arrival, and at QoS 0.
    pub ack: Option<Ack>,
}

/// An open connection. `events` ends with exactly one [`Event::Closed`]. Dropping `events` ends the connection at
/// once and without DISCONNECT, so that the will is published; [`Publisher::disconnect`] is the orderly way.
#[derive(Debug)]
pub struct Connection {
    /// To send with; cheap to clone.
    pub publisher: Publisher,
    /// What arrives.
    pub events: Events,
    /// What the broker said in CONNACK.
    pub accepted: Accepted,
}

impl Connection {
    /// Connects, up to CONNACK. The TLS files are read here, anew each time.
    ///
    /// # Errors
    /// [`ConnectError`], within [`ConnectOptions::connect_timeout`].
    pub async fn open(options: &ConnectOptions) -> Result<Self, ConnectError> {
        let dialled = dial::dial(options).await?;
        let accepted = dialled.accepted.clone();
        let (publisher, events) = driver::start(dialled, options.manual_acks);
        Ok(Self { publisher, events, accepted })
    }
}

impl Received {
    /// Bytes that it holds in memory, nearly.
    pub fn weight(&self) -> usize {
        let properties = &self.user_properties;
        let text: usize = properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        let pairs = properties.capacity() * size_of::<(String, String)>();
        self.payload.len() + self.topic.len() + pairs + text
    }
}

impl Publication {
    /// A publication that is not retained and has no user properties.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>, qos: Qos) -> Self {
        Self { topic: topic.into(), payload: payload.into(), qos, retain: false, user_properties: Vec::new() }
    }
}

impl Filter {
    /// A filter that also gets our own messages.
    pub fn new(filter: impl Into<String>, qos: Qos) -> Self {
        Self { filter: filter.into(), qos, no_local: false }
    }

    /// A filter with No Local.
    pub fn no_local(filter: impl Into<String>, qos: Qos) -> Self {
        Self { filter: filter.into(), qos, no_local: true }
    }
}

/// Never shows the password, the URL's secrets or the payload of the will.
impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("url", &redact::url(self.url.as_str()))
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}
