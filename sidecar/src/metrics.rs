//! What the gateway counts, in the form that Prometheus scrapes.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{
        MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
        info::Info,
    },
    registry::{Metric, Registry, Unit},
};

use crate::{
    bridge::{
        refusal::Refusal,
        request::{Asker, Method, Outcome},
    },
    process,
    sliding_window::SlidingWindow,
};

/// Prefix of every metric but the build's and the process's: `<project>_<component>`.
const PREFIX: &str = "mcp_mqtt_gateway";

/// Upper bounds of the latency histogram, in seconds: 100 µs to 60 s.
const LATENCY_BUCKETS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

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
    /// MCP sessions that may be open at one time.
    pub sessions_limit: Gauge,
    /// Requests of clients that wait for an answer now.
    pub in_flight: Gauge,
    /// 1 while the MCP server answers.
    pub backend_up: Gauge,
    /// 1 while the presence stands in the broker.
    pub registered: Gauge,
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
    /// Spans that the collector of traces took.
    pub spans_exported: Counter,
    /// Spans that it did not take, or that found no room.
    pub spans_dropped: Counter,
    /// Worker connections that were opened after the first of each.
    pub worker_reconnects: Counter,
    /// Sessions refused of late because all were taken.
    pub refused_sessions: SlidingWindow,
    connections: Family<RoleLabel, Gauge>,
    worker_sessions: Family<WorkerLabel, Gauge>,
    sessions_ended: Family<ReasonLabel, Counter>,
    connect_failures: Family<ReasonLabel, Counter>,
    requests: Family<RequestLabels, Counter>,
    refused: Family<ReasonLabel, Counter>,
    durations: Family<MethodLabel, Histogram>,
    dropped: Family<ReasonLabel, Counter>,
    registry: std::sync::Arc<Registry>,
}

/// What one metric is, for the documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// As Prometheus knows it, but for what it appends to a histogram's.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

/// Registers metrics, and keeps what they are.
#[derive(Debug)]
struct Catalogue {
    registry: Registry,
    descriptions: Vec<Description>,
}

impl Catalogue {
    fn add<M: Metric + TypedMetric + Clone>(
        &mut self,
        name: &str,
        labels: &'static [&'static str],
        help: &'static str,
        metric: &M,
    ) {
        let (kind, suffix) = match M::TYPE {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Gauge => ("gauge", ""),
            MetricType::Histogram => ("histogram", ""),
            _ => ("unknown", ""),
        };
        let gateway = self.registry.sub_registry_with_prefix(PREFIX);
        // The unit is the name's last word: Prometheus wants it there, and says it once more.
        match name.rsplit_once('_') {
            Some((stem, "bytes")) => gateway.register_with_unit(stem, help, Unit::Bytes, metric.clone()),
            Some((stem, "seconds")) => gateway.register_with_unit(stem, help, Unit::Seconds, metric.clone()),
            _ => gateway.register(name, help, metric.clone()),
        }
        let name = format!("{PREFIX}_{name}{suffix}");
        self.descriptions.push(Description { name, kind, labels, help });
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        Self::catalogued().0
    }

    /// What there is to be had.
    pub fn catalogue() -> Vec<Description> {
        Self::catalogued().1
    }

    fn catalogued() -> (Self, Vec<Description>) {
        let mut c = Catalogue { registry: Registry::default(), descriptions: Vec::new() };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("component", "gateway")]);
        let help = "1; what runs here";
        c.registry.sub_registry_with_prefix("mcp_mqtt").register("build", help, build);
        c.descriptions.push(Description {
            name: "mcp_mqtt_build_info".to_owned(),
            kind: "gauge",
            labels: &["version", "component"],
            help,
        });
        let durations =
            Family::new_with_constructor((|| Histogram::new(LATENCY_BUCKETS)) as fn() -> Histogram);
        let mut metrics = Self {
            sessions: Gauge::default(),
            sessions_limit: Gauge::default(),
            in_flight: Gauge::default(),
            backend_up: Gauge::default(),
            registered: Gauge::default(),
            sessions_started: Counter::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            broadcasts: Counter::default(),
            broadcasts_merged: Counter::default(),
            reconnects: Counter::default(),
            worker_reconnects: Counter::default(),
            connections: Family::default(),
            worker_sessions: Family::default(),
            refused_sessions: SlidingWindow::new(),
            spans_exported: Counter::default(),
            spans_dropped: Counter::default(),
            sessions_ended: Family::default(),
            connect_failures: Family::default(),
            requests: Family::default(),
            refused: Family::default(),
            durations,
            dropped: Family::default(),
            registry: std::sync::Arc::default(),
        };
        let m = &metrics;
        c.add("backend_up", &[], "1 while the MCP server answers", &m.backend_up);
        c.add("registered", &[], "1 while the presence stands in the broker's registry", &m.registered);
        c.add("sessions", &[], "MCP sessions open now", &m.sessions);
        c.add("sessions_limit", &[], "MCP sessions that may be open at one time", &m.sessions_limit);
        c.add("sessions_started", &[], "MCP sessions begun", &m.sessions_started);
        c.add("sessions_ended", &["reason"], "MCP sessions ended, by reason", &m.sessions_ended);
        c.add("requests_in_flight", &[], "Client requests that wait for an answer now", &m.in_flight);
        let labels = &["asker", "method", "outcome"];
        c.add("requests", labels, "Requests that ended, by asker, method and outcome", &m.requests);
        let help = "Requests that were not taken and got an error of the gateway, by its data.reason";
        c.add("requests_refused", &["reason"], help, &m.refused);
        let help = "From a client's request to its answer, by method";
        c.add("request_duration_seconds", &["method"], help, &m.durations);
        c.add("received_bytes", &[], "MQTT payload that came", &m.received_bytes);
        c.add("sent_bytes", &[], "MQTT payload that went", &m.sent_bytes);
        c.add("messages_dropped", &["reason"], "Messages that went nowhere, by reason", &m.dropped);
        c.add("broadcasts", &[], "Notifications published to all clients", &m.broadcasts);
        let help = "Notifications to all clients that another one stood for";
        c.add("broadcasts_merged", &[], help, &m.broadcasts_merged);
        let help = "Connections to the broker that stand now, by role";
        c.add("broker_connections", &["role"], help, &m.connections);
        let help = "Registering connections to the broker after the first";
        c.add("broker_reconnects", &[], help, &m.reconnects);
        let help = "Worker connections to the broker after the first of each";
        c.add("broker_worker_reconnects", &[], help, &m.worker_reconnects);
        let help = "MCP sessions on a worker connection now";
        c.add("worker_sessions", &["worker"], help, &m.worker_sessions);
        let help = "Connections and registrations that failed, by reason";
        c.add("broker_connect_failures", &["reason"], help, &m.connect_failures);
        c.add("trace_spans_exported", &[], "Spans that the collector of traces took", &m.spans_exported);
        let help = "Spans that the collector did not take, or that found no room";
        c.add("trace_spans_dropped", &[], help, &m.spans_dropped);
        process::register(&mut c.registry);
        c.descriptions.extend(process::catalogue());
        metrics.registry = std::sync::Arc::new(c.registry);
        (metrics, c.descriptions)
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
        self.dropped.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A request was not taken.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
        if reason == Refusal::MAX_SESSIONS {
            self.refused_sessions.note();
        }
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
        encoder.write_str(self.as_str())
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
            "mcp_mqtt_gateway_messages_dropped_total{reason=\"no-session\"} 1",
            "mcp_mqtt_gateway_sent_bytes_total 12",
            "mcp_mqtt_gateway_sessions 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let build = concat!(
            "mcp_mqtt_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\",component=\"gateway\"} 1"
        );
        assert!(text.lines().any(|line| line == build), "{text}");
        assert!(
            text.lines()
                .filter(|line| !line.starts_with('#') && *line != build)
                .all(|line| line.starts_with("mcp_mqtt_gateway_") || line.starts_with("process_"))
        );
    }

    /// <https://prometheus.io/docs/practices/naming/>
    #[test]
    fn names_are_as_prometheus_wants_them_and_the_catalogue_is_what_is_scraped() {
        let metrics = Metrics::new();
        metrics.request(Asker::Client, Method::OTHER, Outcome::Ok, Duration::ZERO);
        metrics.dropped("x");
        metrics.refused("x");
        metrics.session_ended("x");
        metrics.connect_failed("x");
        metrics.set_connections(1, 1);
        metrics.set_worker_sessions(0, 1);
        let text = metrics.render();
        let mut scraped: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' '))
            .collect();
        scraped.sort_unstable();
        let catalogue = Metrics::catalogue();
        let mut described: Vec<(&str, &str)> = catalogue
            .iter()
            .map(|one| match one.name.as_str() {
                // `# TYPE` has the name without what the samples get.
                "mcp_mqtt_build_info" => ("mcp_mqtt_build", "info"),
                name => (name.strip_suffix("_total").unwrap_or(name), one.kind),
            })
            .collect();
        described.sort_unstable();
        assert_eq!(described, scraped);
        for Description { name, kind, labels, help } in &catalogue {
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
            assert!(*kind != "histogram" || name.ends_with("_seconds"), "{name}: a base unit");
            assert!(!name.contains("milli") && !name.ends_with("_ms") && name.is_ascii(), "{name}");
            assert!(!help.is_empty() && !help.ends_with('.'), "{name}: {help}: the dot is added");
            assert!(labels.iter().all(|label| text.contains(&format!("{label}=\""))), "{name} {labels:?}");
        }
    }

    #[test]
    fn what_a_client_invents_makes_no_new_series() {
        let metrics = Metrics::new();
        for n in 0..1000 {
            let method = Method::of(&format!("invented/{n}"));
            metrics.request(Asker::Client, method, Outcome::Error, Duration::ZERO);
        }
        assert!(metrics.render().lines().count() < 150, "{}", metrics.render());
    }
}
