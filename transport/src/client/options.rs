//! What a client connects with.

use std::time::Duration;

use bytes::Bytes;
use url::Url;

use crate::{
    mqtt::{Qos, TlsFiles},
    topic::ClientId,
};

/// What a client connects with. [`ClientOptions::new`] has defaults for all but two; the rest is set field by field.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://` URL.
    pub url: Url,
    /// MQTT client id, which is the MCP client id.
    pub client_id: ClientId,
    /// User name, if any.
    pub username: Option<String>,
    /// Password, if any; never logged.
    pub password: Option<Bytes>,
    /// PEM files for TLS.
    pub tls: TlsFiles,
    /// MQTT keep alive.
    pub keep_alive: Duration,
    /// Deadline from TCP connect to CONNACK.
    pub connect_timeout: Duration,
    /// Quality of service of publishes and subscriptions.
    pub qos: Qos,
    /// The largest message that is taken, in bytes.
    pub max_message_bytes: u32,
    /// `clientInfo.name` of `initialize`.
    pub name: String,
    /// `clientInfo.version` of `initialize`.
    pub version: String,
    /// `protocolVersion` to ask for.
    pub protocol_version: String,
}

/// The revision that is asked for by default.
pub const DEFAULT_PROTOCOL_VERSION: &str = "2025-11-25";

impl ClientOptions {
    /// Options with defaults.
    pub fn new(url: Url, client_id: ClientId) -> Self {
        Self {
            url,
            client_id,
            username: None,
            password: None,
            tls: TlsFiles::default(),
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            qos: Qos::AtLeastOnce,
            max_message_bytes: 4 << 20,
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_version: DEFAULT_PROTOCOL_VERSION.to_owned(),
        }
    }
}
