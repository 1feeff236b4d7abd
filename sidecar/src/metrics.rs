//! What the gateway counts, in the form that Prometheus scrapes.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::config::Timeouts;

/// Prefix of every metric: `<project>_<component>`.
const PREFIX: &str = "mcp_mqtt_gateway";

/// Upper bounds of the latency histogram, in seconds: 100 µs to 60 s.
const LATENCY_BUCKETS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0, 60.0];

/// The methods of MCP, as a label of bounded cardinality: what a client invents is [`Method::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method(&'static str);

/// Methods that get a label of their own.
const METHODS: [&str; 20] = [
    "initialize",
    "ping",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "prompts/list",
    "prompts/get",
    "completion/complete",
    "logging/setLevel",
    "sampling/createMessage",
    "elicitation/create",
    "roots/list",
    "tasks/get",
    "tasks/result",
    "tasks/list",
    "tasks/cancel",
];

impl Method {
    /// Any method that is not MCP's.
    pub const OTHER: Self = Self("other");

    /// The label of a method.
    pub fn of(method: &str) -> Self {
        METHODS.iter().find(|known| **known == method).map_or(Self::OTHER, |known| Self(known))
    }

    /// How long a request of this method may take.
    pub fn timeout(self, timeouts: &Timeouts) -> Duration {
        match self.0 {
            "ping" => timeouts.timeout_ping,
            "tools/call" | "sampling/createMessage" | "completion/complete" => timeouts.timeout_call,
            _ => timeouts.timeout_default,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// With a result.
    Ok,
    /// With an error of the other side.
    Error,
    /// With an error of the gateway: nobody answered in time.
    TimedOut,
    /// With an error of the gateway: refused, or its session ended.
    Failed,
    /// The asker cancelled it, or left.
    Abandoned,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asker {
    /// The MCP client: `tools/call` and so on.
    Client,
    /// The MCP server: sampling, elicitation, roots, ping.
    Server,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    asker: Asker,
    method: Method,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: Method,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: u32,
}

/// The metrics; cheap to clone, every clone counts into the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// MCP sessions open now.
    pub sessions: Gauge,
    /// Requests of clients that wait for an answer now.
    pub in_flight: Gauge,
    /// Sessions ever begun.
    pub sessions_started: Counter,
    /// Bytes of MQTT payload that came.
    pub received_bytes: Counter,
    /// Bytes of MQTT payload that went.
    pub sent_bytes: Counter,
    /// Broadcasts published.
    pub broadcasts: Counter,
    /// Broadcasts that were spared because another said the same.
    pub broadcasts_merged: Counter,
    /// Registering connections to the broker that were opened after the first.
    pub reconnects: Counter,
    /// Worker connections that were opened after the first of each.
    pub worker_reconnects: Counter,
    connections: Family<RoleLabel, Gauge>,
    worker_sessions: Family<WorkerLabel, Gauge>,
    sessions_ended: Family<ReasonLabel, Counter>,
    connect_failures: Family<ReasonLabel, Counter>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<MethodLabel, Histogram>,
    drops: Family<ReasonLabel, Counter>,
    registry: std::sync::Arc<Registry>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let sessions = Gauge::default();
        let in_flight = Gauge::default();
        let sessions_started = Counter::default();
        let received_bytes = Counter::default();
        let sent_bytes = Counter::default();
        let broadcasts = Counter::default();
        let broadcasts_merged = Counter::default();
        let reconnects = Counter::default();
        let worker_reconnects = Counter::default();
        let connections = Family::default();
        let worker_sessions = Family::default();
        let sessions_ended = Family::default();
        let connect_failures = Family::default();
        let requests = Family::default();
        let durations =
            Family::new_with_constructor((|| Histogram::new(LATENCY_BUCKETS)) as fn() -> Histogram);
        let drops = Family::default();
        let r = &mut registry;
        r.register("sessions", "MCP sessions open now", sessions.clone());
        r.register("requests_in_flight", "Client requests that wait for an answer now", in_flight.clone());
        r.register("sessions_started", "MCP sessions begun", sessions_started.clone());
        r.register("sessions_ended", "MCP sessions ended, by reason", sessions_ended.clone());
        r.register("requests", "Requests that ended, by asker, method and outcome", requests.clone());
        r.register_with_unit(
            "request_duration",
            "From a client's request to its answer, by method",
            Unit::Seconds,
            durations.clone(),
        );
        r.register_with_unit("received", "MQTT payload that came", Unit::Bytes, received_bytes.clone());
        r.register_with_unit("sent", "MQTT payload that went", Unit::Bytes, sent_bytes.clone());
        r.register("broadcasts", "Notifications published to all clients", broadcasts.clone());
        r.register(
            "broadcasts_merged",
            "Notifications to all clients that another one stood for",
            broadcasts_merged.clone(),
        );
        r.register("drops", "Messages that went nowhere, by reason", drops.clone());
        r.register("reconnects", "Connections to the broker after the first", reconnects.clone());
        r.register(
            "worker_reconnects",
            "Worker connections to the broker after the first of each",
            worker_reconnects.clone(),
        );
        r.register("connections", "Connections to the broker that stand now, by role", connections.clone());
        r.register("worker_sessions", "MCP sessions on a worker connection now", worker_sessions.clone());
        r.register(
            "connect_failures",
            "Connections and registrations that failed, by reason",
            connect_failures.clone(),
        );
        Self {
            sessions,
            in_flight,
            sessions_started,
            received_bytes,
            sent_bytes,
            broadcasts,
            broadcasts_merged,
            reconnects,
            worker_reconnects,
            connections,
            worker_sessions,
            sessions_ended,
            connect_failures,
            requests,
            durations,
            drops,
            registry: std::sync::Arc::new(registry),
        }
    }

    /// A request ended; the duration is kept for clients' requests.
    pub fn request(&self, asker: Asker, method: Method, outcome: Outcome, elapsed: Duration) {
        self.requests.get_or_create(&RequestLabels { asker, method, outcome }).inc();
        if asker == Asker::Client {
            self.durations.get_or_create(&MethodLabel { method }).observe(elapsed.as_secs_f64());
        }
    }

    /// A message went nowhere.
    pub fn dropped(&self, reason: &'static str) {
        self.drops.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A session ended.
    pub fn session_ended(&self, reason: &'static str) {
        self.sessions_ended.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Connections that stand now: the registering one, and the others.
    pub fn set_connections(&self, registering: usize, workers: usize) {
        for (role, count) in [("registering", registering), ("worker", workers)] {
            self.connections.get_or_create(&RoleLabel { role }).set(gauge(count));
        }
    }

    /// Sessions on this worker now, the first being 1.
    pub fn set_worker_sessions(&self, worker: usize, sessions: usize) {
        let worker = u32::try_from(worker).unwrap_or(u32::MAX);
        self.worker_sessions.get_or_create(&WorkerLabel { worker }).set(gauge(sessions));
    }

    /// The broker could not be reached or would not have us.
    pub fn connect_failed(&self, reason: &'static str) {
        self.connect_failures.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The text that Prometheus scrapes (`OpenMetrics` 1.0).
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string");
        text
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl EncodeLabelValue for Method {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.0)
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.as_str())
    }
}

impl EncodeLabelValue for Asker {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_the_prefix_and_its_unit() {
        let metrics = Metrics::new();
        metrics.request(Asker::Client, Method::of("tools/call"), Outcome::Ok, Duration::from_micros(300));
        metrics.request(Asker::Client, Method::of("a client's own"), Outcome::Failed, Duration::ZERO);
        metrics.dropped("no-session");
        metrics.sent_bytes.inc_by(12);
        let text = metrics.render();
        for line in [
            "mcp_mqtt_gateway_requests_total{asker=\"client\",method=\"tools/call\",outcome=\"ok\"} 1",
            "mcp_mqtt_gateway_requests_total{asker=\"client\",method=\"other\",outcome=\"failed\"} 1",
            "mcp_mqtt_gateway_request_duration_seconds_bucket{le=\"0.0005\",method=\"tools/call\"} 1",
            "mcp_mqtt_gateway_request_duration_seconds_bucket{le=\"0.00025\",method=\"tools/call\"} 0",
            "mcp_mqtt_gateway_drops_total{reason=\"no-session\"} 1",
            "mcp_mqtt_gateway_sent_bytes_total 12",
            "mcp_mqtt_gateway_sessions 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.lines().filter(|l| !l.starts_with('#')).all(|l| l.starts_with("mcp_mqtt_gateway_")));
    }
}
