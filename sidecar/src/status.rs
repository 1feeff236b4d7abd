//! What a gateway says of itself at `/status`: the contract with the operator, which reads it into the
//! `McpService`.

use serde::{Deserialize, Serialize};

/// Body of `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// MQTT client id of this instance.
    pub server_id: String,
    /// Server name in use (the broker may have replaced the configured one).
    pub server_name: String,
    /// Whether the backend answers `initialize`.
    pub backend: Part,
    /// Whether the broker took the registration.
    pub broker: Part,
    /// Whether a drain has begun.
    pub draining: bool,
    /// MCP sessions open now.
    pub sessions: u32,
    /// Client requests waiting for an answer now.
    pub in_flight: u32,
    /// For how long there has been no session, in seconds; none while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// `initialize` requests of the last minute that were refused, as all sessions were taken that there may be. A
    /// gateway of an older version says nothing of it.
    #[serde(default)]
    pub refused_sessions: u32,
    /// What the MCP server said of itself in its `initialize` result.
    pub server: Option<ServerInfo>,
    /// The connections that carry sessions beside the registering one. Readiness does not wait for them: without them
    /// that one carries the sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<WorkerStatus>,
}

impl GatewayStatus {
    /// Ready ⇔ the backend answers ∧ the broker accepted the registration ∧ not draining.
    pub fn ready(&self) -> bool {
        self.backend.ok && self.broker.ok && !self.draining
    }
}

/// One half of readiness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Whether it is as it should be.
    pub ok: bool,
    /// A `PascalCase` word, one of [`reason`]: becomes a condition's reason.
    pub reason: String,
    /// A sentence that names the cause and the next step.
    pub message: String,
}

/// A worker connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// Its MQTT client id.
    pub client_id: String,
    /// How it does.
    #[serde(flatten)]
    pub part: Part,
}

/// What an MCP server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    /// `serverInfo.name`.
    pub name: String,
    /// `serverInfo.version`.
    pub version: String,
    /// `protocolVersion` that it chose.
    pub protocol_version: String,
}

/// The reasons that [`Part`] can carry.
pub mod reason {
    /// The backend answered `initialize`.
    pub const BACKEND_READY: &str = "BackendReady";
    /// The backend has not been asked yet.
    pub const BACKEND_STARTING: &str = "BackendStarting";
    /// The backend does not answer `initialize`, or answered an error.
    pub const BACKEND_NOT_ANSWERING: &str = "BackendNotAnswering";
    /// The presence stands in the broker.
    pub const REGISTERED: &str = "Registered";
    /// The presence waits for the backend.
    pub const WAITING_FOR_BACKEND: &str = "WaitingForBackend";
    /// The service is put to sleep: this instance has given its place in the registry up, and is about to end.
    pub const RELIEVED: &str = "Relieved";
    /// A worker connection stands.
    pub const CONNECTED: &str = "Connected";
    /// No connection yet.
    pub const CONNECTING: &str = "Connecting";
    /// TCP, DNS or time-out: the broker cannot be reached.
    pub const BROKER_UNREACHABLE: &str = "BrokerUnreachable";
    /// The TLS handshake failed.
    pub const BROKER_TLS_FAILED: &str = "BrokerTlsFailed";
    /// CONNACK: bad user name, password or client id, or not authorized.
    pub const BROKER_REFUSED_CREDENTIALS: &str = "BrokerRefusedCredentials";
    /// CONNACK with another refusal.
    pub const BROKER_REFUSED_CONNECTION: &str = "BrokerRefusedConnection";
    /// The gateway's own settings or credential files cannot be used.
    pub const BROKER_SETTINGS_INVALID: &str = "BrokerSettingsInvalid";
    /// The broker lacks something that MCP over MQTT needs (retained messages, QoS 1).
    pub const BROKER_LACKS_FEATURE: &str = "BrokerLacksFeature";
    /// The broker will not have `$mcp-*` topics.
    pub const BROKER_REFUSED_TOPICS: &str = "BrokerRefusedTopics";
    /// An ACL forbids a topic that the gateway needs.
    pub const BROKER_NOT_AUTHORIZED: &str = "BrokerNotAuthorized";
    /// The connection was lost; reconnecting.
    pub const BROKER_CONNECTION_LOST: &str = "BrokerConnectionLost";
    /// Another client took the client id over.
    pub const BROKER_SESSION_TAKEN_OVER: &str = "BrokerSessionTakenOver";
    /// A drain has ended and the presence is cleared.
    pub const DRAINED: &str = "Drained";
}
