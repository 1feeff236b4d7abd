//! The gateway's whole configuration: the contract between the operator, which writes it, and the gateway,
//! which parses it. One type; [`GatewayConfig::to_args`] and clap's parser are held together by a test.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use url::Url;

mod arguments;
mod check;
mod identity;

pub(crate) use arguments::REQUIRED;
pub use check::{ConfigError, Identity};

/// Where the binary is in its own image.
pub const IMAGE_BINARY: &str = "/mcp-mqtt-sidecar";
/// Where the shared binary and the sockets live in a pod; the operator mounts it, the shim and the gateway use it.
pub const BIN_DIR: &str = "/mcp-mqtt/bin";
/// Directory of the Unix sockets (an emptyDir shared by the gateway and the server container).
pub const RUN_DIR: &str = "/mcp-mqtt/run";
/// File name of the binary that `install` copies into [`BIN_DIR`].
pub const BINARY: &str = "mcp-mqtt-sidecar";
/// Socket on which the shim hands out MCP server processes.
pub const SHIM_SOCKET: &str = "/mcp-mqtt/run/shim.sock";
/// Socket on which the gateway takes the drain command.
pub const GATEWAY_SOCKET: &str = "/mcp-mqtt/run/gateway.sock";
/// Port of the gateway's `/healthz`, `/readyz`, `/status` and `/metrics`.
pub const ADMIN_PORT: u16 = 8079;

/// Everything the gateway needs to know.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct GatewayConfig {
    /// MCP server name: hierarchical (`a/b`), the same for all instances of one service.
    #[arg(long, env = "MCP_MQTT_SERVER_NAME", value_name = "NAME")]
    pub server_name: String,

    /// MQTT client id of this instance, unique on the broker; by default the host's name and something random.
    #[arg(long, env = "MCP_MQTT_SERVER_ID", value_name = "ID", default_value_t = identity::default_server_id(), hide_default_value = true)]
    pub server_id: String,

    /// Server id of the service as a whole, held in the registry while it has no instance: where its presence says so,
    /// this instance takes that identity over. Not set: the service never sleeps.
    #[arg(long, env = "MCP_MQTT_STANDBY_ID", value_name = "ID")]
    pub standby_id: Option<String>,

    /// Owner mark of the presence: the operator of this mark looks after it, and no other one clears it as stale.
    #[arg(long, env = "MCP_MQTT_OWNER_MARK", value_name = "MARK")]
    pub owner_mark: Option<String>,

    /// What the server is for, in a sentence; goes into the presence message.
    #[arg(long, env = "MCP_MQTT_DESCRIPTION", default_value = "", value_name = "TEXT")]
    pub description: String,

    /// `meta.rbac` of the presence message, as JSON (`{"roles": [...]}`).
    #[arg(long, env = "MCP_MQTT_RBAC", value_name = "JSON")]
    pub rbac: Option<String>,

    /// The backend: how the MCP server is reached.
    #[command(flatten)]
    pub backend: BackendConfig,

    /// What else there is to say of the backend, by transport.
    #[command(flatten)]
    pub backend_options: BackendOptions,

    /// The broker.
    #[command(flatten)]
    pub broker: BrokerConfig,

    /// Limits.
    #[command(flatten)]
    pub limits: Limits,

    /// Timeouts.
    #[command(flatten)]
    pub timeouts: Timeouts,

    /// How long a drain waits for requests in flight.
    #[arg(long, env = "MCP_MQTT_DRAIN_TIMEOUT", default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub drain_timeout: Duration,

    /// Unix socket on which the drain command is taken; none: only SIGTERM drains.
    #[arg(long, env = "MCP_MQTT_DRAIN_SOCKET", value_name = "PATH")]
    pub drain_socket: Option<PathBuf>,

    /// Address of `/healthz`, `/readyz`, `/status` and `/metrics`, such as `127.0.0.1:8079`; none: they are off.
    #[arg(long, env = "MCP_MQTT_ADMIN_ADDRESS", value_name = "ADDRESS")]
    pub admin_address: Option<SocketAddr>,

    /// OTLP endpoint (`http://collector:4318`) to which a span for each client request goes; none: no traces.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<Url>,

    /// Log format.
    #[arg(long, env = "MCP_MQTT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,

    /// Log filter: a level (`info`) or directives (`info,mcp_mqtt_sidecar::bridge=debug`).
    #[arg(long, env = "MCP_MQTT_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// How the MCP server is reached: exactly one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[group(required = true, multiple = false)]
pub struct BackendConfig {
    /// stdio: the shim's Unix socket; one process per MCP session.
    #[arg(long, env = "MCP_MQTT_STDIO_SOCKET", value_name = "PATH")]
    pub stdio_socket: Option<PathBuf>,

    /// Streamable HTTP: the server's MCP endpoint, `http://` or `https://`.
    #[arg(long, visible_alias = "url", env = "MCP_MQTT_HTTP_URL", value_name = "URL")]
    pub http_url: Option<Url>,

    /// HTTP+SSE (2024-11-05): the server's event stream.
    #[arg(long, env = "MCP_MQTT_SSE_URL", value_name = "URL")]
    pub sse_url: Option<Url>,

    /// stdio without a shim: the MCP server's command and its arguments, started once per MCP session.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// What else there is to say of a backend that is not a shim.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BackendOptions {
    /// PEM file of the certificates to trust where the URL is `https://`; without it the public roots.
    #[arg(long, visible_alias = "url-ca-file", env = "MCP_MQTT_HTTP_CA_FILE", value_name = "PATH")]
    pub http_ca_file: Option<PathBuf>,

    /// Where a command is given: idle processes kept ready for the next sessions.
    #[arg(long, env = "MCP_MQTT_PREWARM", default_value_t = 0, value_name = "N")]
    pub prewarm: u16,

    /// Where a command is given: how long a process may take to leave after its stdin closed, and again after SIGTERM,
    /// before it is killed.
    #[arg(long, env = "MCP_MQTT_STOP_GRACE", default_value = "2s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub stop_grace: Duration,
}

impl Default for BackendOptions {
    fn default() -> Self {
        Self { http_ca_file: None, prewarm: 0, stop_grace: Duration::from_secs(2) }
    }
}

/// The broker and the gateway's credentials there. Files are read anew at each connect.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BrokerConfig {
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://` URL of an MQTT 5 broker.
    #[arg(long, visible_alias = "broker", env = "MCP_MQTT_BROKER_URL", value_name = "URL")]
    pub broker_url: Url,

    /// File with the user name.
    #[arg(long, env = "MCP_MQTT_BROKER_USERNAME_FILE", value_name = "PATH")]
    pub broker_username_file: Option<PathBuf>,

    /// File with the password or token.
    #[arg(long, env = "MCP_MQTT_BROKER_PASSWORD_FILE", value_name = "PATH")]
    pub broker_password_file: Option<PathBuf>,

    /// PEM file of the certificates to trust; without it the public roots.
    #[arg(long, env = "MCP_MQTT_BROKER_CA_FILE", value_name = "PATH")]
    pub broker_ca_file: Option<PathBuf>,

    /// PEM file of the client certificate chain.
    #[arg(long, env = "MCP_MQTT_BROKER_CERT_FILE", value_name = "PATH", requires = "broker_key_file")]
    pub broker_cert_file: Option<PathBuf>,

    /// PEM file of the client private key.
    #[arg(long, env = "MCP_MQTT_BROKER_KEY_FILE", value_name = "PATH", requires = "broker_cert_file")]
    pub broker_key_file: Option<PathBuf>,

    /// MQTT keep alive, at least 5s.
    #[arg(long, env = "MCP_MQTT_KEEP_ALIVE", default_value = "15s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub keep_alive: Duration,

    /// Quality of service of publishes and subscriptions: 0 or 1.
    #[arg(long, env = "MCP_MQTT_QOS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1), value_name = "QOS")]
    pub qos: u8,

    /// Connections beside the registering one that carry the sessions, at most 16; 0: that one carries all. Their
    /// client ids are the server id with _w1, _w2 … at its end.
    #[arg(long, env = "MCP_MQTT_WORKERS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=16), value_name = "N")]
    pub workers: u8,
}

/// Bounds on what clients may use.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Limits {
    /// Sessions at one time; an `initialize` beyond it is refused.
    #[arg(long, env = "MCP_MQTT_MAX_SESSIONS", default_value_t = 100, value_name = "N")]
    pub max_sessions: u32,

    /// Largest message either way, in bytes. The broker drops what is over four times as large, so that gets no
    /// answer.
    #[arg(long, env = "MCP_MQTT_MAX_MESSAGE_BYTES", default_value_t = 1_048_576, value_name = "BYTES")]
    pub max_message_bytes: u32,

    /// Requests in flight per session; one more is refused.
    #[arg(long, env = "MCP_MQTT_MAX_IN_FLIGHT", default_value_t = 64, value_name = "N")]
    pub max_in_flight: u32,

    /// A session in which nothing was said for so long is ended, unless its client waits for an answer; none: never.
    #[arg(long, env = "MCP_MQTT_IDLE_TIMEOUT", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub idle_timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_sessions: 100, max_message_bytes: 1_048_576, max_in_flight: 64, idle_timeout: None }
    }
}

/// How long a request may take, by method. Progress may extend it, up to `timeout_max`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Timeouts {
    /// `ping`.
    #[arg(long, env = "MCP_MQTT_TIMEOUT_PING", default_value = "10s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout_ping: Duration,

    /// `tools/call`, `sampling/createMessage`, `completion/complete`.
    #[arg(long, env = "MCP_MQTT_TIMEOUT_CALL", default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout_call: Duration,

    /// Every other request.
    #[arg(long, env = "MCP_MQTT_TIMEOUT_DEFAULT", default_value = "30s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout_default: Duration,

    /// The most that progress can extend a request to.
    #[arg(long, env = "MCP_MQTT_TIMEOUT_MAX", default_value = "600s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout_max: Duration,
}

impl Timeouts {
    /// How long a request of this method may take.
    pub fn of(&self, method: &str) -> Duration {
        match method {
            "ping" => self.timeout_ping,
            "tools/call" | "sampling/createMessage" | "completion/complete" => self.timeout_call,
            _ => self.timeout_default,
        }
    }
}

/// Log format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text where stderr is a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl BackendConfig {
    /// stdio, by this shim.
    pub fn stdio(socket: impl Into<PathBuf>) -> Self {
        Self { stdio_socket: Some(socket.into()), ..Self::default() }
    }

    /// Streamable HTTP at this endpoint.
    pub fn http(url: Url) -> Self {
        Self { http_url: Some(url), ..Self::default() }
    }

    /// HTTP+SSE with this event stream.
    pub fn sse(url: Url) -> Self {
        Self { sse_url: Some(url), ..Self::default() }
    }
}

impl GatewayConfig {
    /// Quality of service of publishes and subscriptions.
    pub fn qos(&self) -> mcp_mqtt_transport::mqtt::Qos {
        match self.broker.qos {
            0 => mcp_mqtt_transport::mqtt::Qos::AtMostOnce,
            _ => mcp_mqtt_transport::mqtt::Qos::AtLeastOnce,
        }
    }
}
