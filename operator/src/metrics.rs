//! The operator's own counters, at `/metrics`.

use mcp_mqtt_sidecar::process;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

/// How a reconcile ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// The service stands as it asks to.
    Accepted,
    /// The service cannot be as it is.
    Refused,
    /// Something failed; it is tried again.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    verb: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Answer {
    Answered,
    Silent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabel {
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Wake {
    PassedOn,
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WakeLabel {
    outcome: Wake,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectLabels {
    kind: &'static str,
    watched: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    watched: String,
    ready: String,
    reason: String,
}

/// What is told of a service by its name, while it holds: a few at a time of thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Trouble {
    /// It asks for instances, and the broker's registry has none.
    Unregistered,
    /// It has no instance and may be woken, and nothing would do that.
    CannotWake,
    /// It is ready, and a new spec is on its way to its pods.
    RollingOut,
}

// Not `namespace`: that is the operator's own in what Prometheus makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TroubleLabels {
    mcp_namespace: String,
    mcp_service: String,
    trouble: Trouble,
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<OutcomeLabel, Counter>,
    durations: Family<OutcomeLabel, Histogram>,
    writes: Family<WriteLabels, Counter>,
    gateways: Family<AnswerLabel, Counter>,
    objects: Family<ObjectLabels, Gauge>,
    services: Family<ServiceLabels, Gauge>,
    troubles: Family<TroubleLabels, Gauge>,
    watch_failures: Counter,
    events_left_out: Counter,
    leader: Gauge,
    asleep: Gauge,
    held: Gauge,
    brokers: Gauge,
    woken: Family<WakeLabel, Counter>,
    cleared: Counter,
}

impl Metrics {
    /// Registers all counters.
    pub fn new() -> Self {
        let mut all = Registry::default();
        process::register(&mut all);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("component", "operator")]);
        all.sub_registry_with_prefix("mcp_mqtt").register("build", "1; what runs here", build);
        let registry = all.sub_registry_with_prefix("mcp_mqtt_operator");
        let reconciles = Family::default();
        registry.register("reconciles", "Reconciles by how they ended", reconciles.clone());
        // From a look at the stores alone (a tenth of a millisecond) to an API server that takes its time.
        let durations = Family::<OutcomeLabel, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0001, 4.0, 10))
        });
        registry.register(
            "reconcile_duration_seconds",
            "Time of a reconcile by how it ended",
            durations.clone(),
        );
        let writes = Family::default();
        registry.register("writes", "Writes to the API server by kind and verb", writes.clone());
        let gateways = Family::default();
        registry.register(
            "gateway_questions",
            "Questions to gateways for their status, by whether they answered",
            gateways.clone(),
        );
        let objects = Family::default();
        let help =
            "Objects that the operator knows, by kind and by the namespace that is watched (* for all)";
        registry.register("objects", help, objects.clone());
        let services = Family::default();
        let help = "McpServices by the status and the reason of their condition Ready";
        registry.register("services", help, services.clone());
        let troubles = Family::default();
        let help = "1 for each McpService without a registered instance, though it asks for some, for each that has none \
                    and cannot be woken, and for each whose rollout goes on; none for all others";
        registry.register("service_trouble", help, troubles.clone());
        let watch_failures = Counter::default();
        registry.register(
            "watch_failures",
            "Watches that failed and were opened anew",
            watch_failures.clone(),
        );
        let events_left_out = Counter::default();
        registry.register(
            "events_left_out",
            "Events that were not written, as the API server took them slower than they came",
            events_left_out.clone(),
        );
        let leader = Gauge::default();
        registry.register("leader", "1 where this operator is the one that works", leader.clone());
        let asleep = Gauge::default();
        registry.register("services_asleep", "McpServices that sleep now, and can be woken", asleep.clone());
        let waiting = Gauge::default();
        registry.register(
            "held_messages",
            "Clients' initialize that wait for a service to wake",
            waiting.clone(),
        );
        let woken = Family::default();
        let help = "Clients' initialize for a sleeping service, by what became of them";
        registry.register("held_messages_ended", help, woken.clone());
        let brokers = Gauge::default();
        registry.register("brokers", "Brokers whose registry is known now", brokers.clone());
        let cleared = Counter::default();
        let help = "Presences that nobody stood behind any more, and that were cleared";
        registry.register("presences_cleared", help, cleared.clone());
        Self {
            registry: all,
            reconciles,
            durations,
            writes,
            gateways,
            objects,
            services,
            troubles,
            watch_failures,
            events_left_out,
            leader,
            asleep,
            held: waiting,
            brokers,
            woken,
            cleared,
        }
    }

    /// A reconcile ended.
    pub fn reconciled(&self, outcome: Outcome, seconds: f64) {
        self.reconciles.get_or_create(&OutcomeLabel { outcome }).inc();
        self.durations.get_or_create(&OutcomeLabel { outcome }).observe(seconds);
    }

    /// A write to the API server.
    pub fn wrote(&self, kind: &'static str, verb: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind, verb }).inc();
    }

    /// A gateway was asked.
    pub fn asked_gateway(&self, answered: bool) {
        let answer = if answered { Answer::Answered } else { Answer::Silent };
        self.gateways.get_or_create(&AnswerLabel { answer }).inc();
    }

    /// How many objects a store has.
    pub fn knows(&self, kind: &'static str, watched: &str, number: usize) {
        let labels = ObjectLabels { kind, watched: watched.to_owned() };
        self.objects.get_or_create(&labels).set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// How many services are ready, or not, for this reason.
    pub fn counted(&self, watched: &str, ready: &str, reason: &str, number: usize) {
        let labels =
            ServiceLabels { watched: watched.to_owned(), ready: ready.to_owned(), reason: reason.to_owned() };
        self.services.get_or_create(&labels).set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// Whether this holds of a service now. What does not hold has no sample.
    pub fn troubled(&self, namespace: &str, service: &str, trouble: Trouble, holds: bool) {
        let labels =
            TroubleLabels { mcp_namespace: namespace.to_owned(), mcp_service: service.to_owned(), trouble };
        if holds {
            self.troubles.get_or_create(&labels).set(1);
        } else {
            self.troubles.remove(&labels);
        }
    }

    /// There was no room for an Event.
    pub fn left_out_event(&self) {
        self.events_left_out.inc();
    }

    /// A watch failed.
    pub fn watch_failed(&self) {
        self.watch_failures.inc();
    }

    /// How many services sleep, how many clients wait for one, and how many brokers are known.
    pub fn keeps(&self, asleep: usize, held: usize, brokers: usize) {
        for (gauge, number) in [(&self.asleep, asleep), (&self.held, held), (&self.brokers, brokers)] {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    /// A client's `initialize` that was held was passed on, or refused.
    pub fn woke(&self, passed_on: bool) {
        let outcome = if passed_on { Wake::PassedOn } else { Wake::Refused };
        self.woken.get_or_create(&WakeLabel { outcome }).inc();
    }

    /// A presence was cleared.
    pub fn cleared(&self) {
        self.cleared.inc();
    }

    /// Whether this operator is the one that works.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The text that Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_can_be_read() {
        let metrics = Metrics::new();
        metrics.reconciled(Outcome::Accepted, 0.01);
        metrics.wrote("Deployment", "apply");
        metrics.asked_gateway(false);
        metrics.knows("Pod", "*", 3);
        metrics.leads(true);
        let text = metrics.encode();
        for line in [
            r#"mcp_mqtt_operator_reconciles_total{outcome="Accepted"} 1"#,
            r#"mcp_mqtt_operator_writes_total{kind="Deployment",verb="apply"} 1"#,
            r#"mcp_mqtt_operator_gateway_questions_total{answer="Silent"} 1"#,
            r#"mcp_mqtt_operator_objects{kind="Pod",watched="*"} 3"#,
            "mcp_mqtt_operator_leader 1",
            "\nprocess_resident_memory_bytes ",
            "\nprocess_open_fds ",
            "\nmcp_mqtt_build_info{",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
