//! What the broker said in CONNACK.

use std::time::Duration;

use crate::user_property;

/// What the broker said in CONNACK; what it left out is filled in with MQTT's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Whether the broker goes on with an earlier connection's session: its subscriptions, and what came for them.
    pub session_present: bool,
    /// The largest packet that the broker takes, in bytes; none: no limit of its own.
    pub maximum_packet_size: Option<u32>,
    /// Unacknowledged QoS 1 publishes that the broker takes.
    pub receive_maximum: u16,
    /// Highest quality of service that the broker takes, 0 to 2.
    pub maximum_qos: u8,
    /// Whether the broker keeps retained messages.
    pub retain_available: bool,
    /// Whether filters may have wildcards.
    pub wildcard_subscription_available: bool,
    /// The client id that the broker chose.
    pub assigned_client_id: Option<String>,
    /// Keep alive in use: the broker's, when it has one, else ours.
    pub keep_alive: Duration,
    /// User properties.
    pub user_properties: Vec<(String, String)>,
}

impl Accepted {
    /// The `MCP-SERVER-NAME` property: the server name that the broker wants a server to use.
    pub fn server_name(&self) -> Option<&str> {
        user_property::find(&self.user_properties, user_property::SERVER_NAME)
    }
}
