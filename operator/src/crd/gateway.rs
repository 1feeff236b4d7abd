//! `spec.gateway`: limits, timeouts and resources of the sidecar.

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements};
use kube::{
    KubeSchema,
    core::{Rule, validate},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::duration::{self, DurationText};

/// Which environment variables the gateway takes: what OpenTelemetry's own names set. All else of it has a field.
pub const ENV_PREFIX: &str = "OTEL_";

/// The gateway of each instance.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// MCP sessions of one instance at one time; an `initialize` beyond it is refused.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_sessions: i32,

    /// The largest message either way, in bytes. The broker's own limit, where it is lower, holds. A larger one is an
    /// error to its sender, up to four times as large: beyond that the broker keeps it from the gateway, and no answer
    /// comes.
    #[schemars(range(min = 1024, max = 67_108_864))]
    pub max_message_bytes: i32,

    /// Requests in flight of one session; one more is refused.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_in_flight: i32,

    /// A session in which nothing was said for so long is ended, unless its client waits for an answer. The client
    /// hears `notifications/disconnected` and may initialize again. By default no session is: a client that is merely
    /// quiet cannot be told from one that is gone without a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<DurationText>,
    /// Connections to the broker beside the registering one, over which the sessions of an instance are spread; 0: one
    /// connection for everything. The loss of a worker ends only its own sessions. Their client ids are the instance's
    /// with `_w1`, `_w2` … at its end: a broker's ACL that goes by client id has to allow those the instance's RPC
    /// topics and `$mcp-client/#`.
    #[schemars(range(min = 0, max = 16))]
    pub workers: i32,

    /// How long requests may take.
    pub timeouts: TimeoutsSpec,

    /// CPU and memory of the gateway's container. By default it requests 10m CPU and 16Mi memory, and is limited
    /// to 128Mi memory; raise that with `maxSessions` and `maxMessageBytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// MQTT quality of service of publishes and subscriptions.
    #[schemars(range(min = 0, max = 1))]
    pub qos: i32,

    /// MQTT keep alive, at least 5s: how soon the broker notices a dead instance (at 1.5 times this).
    #[schemars(schema_with = "keep_alive")]
    pub keep_alive: DurationText,

    /// OTLP endpoint (HTTP, such as `http://collector.observability:4318`) to which a span for each client request
    /// goes. By default there are no traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "otlp_endpoint")]
    pub otlp_endpoint: Option<String>,

    /// Environment variables of the gateway's container: OpenTelemetry's own, such as `OTEL_EXPORTER_OTLP_HEADERS` (from
    /// a Secret, by `valueFrom`), `OTEL_TRACES_SAMPLER` and `OTEL_RESOURCE_ATTRIBUTES`. Their names begin with `OTEL_`;
    /// all else of the gateway has a field of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "env")]
    pub env: Option<Vec<EnvVar>>,

    /// The gateway's log.
    pub log: LogSpec,
}

impl Default for GatewaySpec {
    fn default() -> Self {
        Self {
            max_sessions: 100,
            max_message_bytes: 1_048_576,
            max_in_flight: 64,
            idle_timeout: None,
            workers: 0,
            timeouts: TimeoutsSpec::default(),
            resources: None,
            qos: 1,
            keep_alive: DurationText::new("15s"),
            otlp_endpoint: None,
            env: None,
            log: LogSpec::default(),
        }
    }
}

fn keep_alive(generator: &mut SchemaGenerator) -> Schema {
    duration::at_least(generator, "5s", "keepAlive must be at least 5s")
}

fn otlp_endpoint(_: &mut SchemaGenerator) -> Schema {
    let mut schema = json_schema!({"type": "string", "minLength": 1, "maxLength": 2048});
    let rule = Rule::new(
        r"self.matches('^https?://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?(/[^\\s@]*)?$')",
    );
    let message = "gateway.otlpEndpoint must be a URL such as http://collector.observability:4318, without credentials: \
                   they belong in gateway.env as OTEL_EXPORTER_OTLP_HEADERS";
    validate(&mut schema, rule.message(message)).expect("a rule is plain data");
    schema
}

fn env(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Vec::<EnvVar>::json_schema(generator);
    schema.insert("maxItems".to_owned(), 64.into());
    let rule = Rule::new(format!("self.all(variable, variable.name.startsWith('{ENV_PREFIX}'))"));
    let message = "gateway.env takes OpenTelemetry's variables only, whose names begin with OTEL_";
    validate(&mut schema, rule.message(message)).expect("a rule is plain data");
    schema
}

/// How long requests may take, by method; progress prolongs a request, up to `max`.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!([self.ping, self.call, self.default, self.max].all(t, t.matches('^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?([0-9]{1,5}ms)?$'))) || [self.ping, self.call, self.default].all(t, duration(t) <= duration(self.max))")
        .message("timeouts.max must not be less than timeouts.ping, timeouts.call or timeouts.default")
)]
pub struct TimeoutsSpec {
    /// `ping`.
    #[serde(default = "ten_seconds")]
    pub ping: DurationText,
    /// `tools/call`, `sampling/createMessage`, `completion/complete`.
    #[serde(default = "a_minute")]
    pub call: DurationText,
    /// Every other request.
    #[serde(default = "half_a_minute")]
    pub default: DurationText,
    /// The most that progress can prolong a request to.
    #[serde(default = "ten_minutes")]
    pub max: DurationText,
}

impl Default for TimeoutsSpec {
    fn default() -> Self {
        Self { ping: ten_seconds(), call: a_minute(), default: half_a_minute(), max: ten_minutes() }
    }
}

fn ten_seconds() -> DurationText {
    DurationText::new("10s")
}

fn half_a_minute() -> DurationText {
    DurationText::new("30s")
}

fn a_minute() -> DurationText {
    DurationText::new("60s")
}

fn ten_minutes() -> DurationText {
    DurationText::new("10m")
}

/// The gateway's log.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct LogSpec {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as `info,mcp_mqtt_sidecar::bridge=debug`.
    #[schemars(length(min = 1, max = 512))]
    pub level: String,
    /// JSON lines, or text for people.
    pub format: LogFormat,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Json }
    }
}

/// Log format.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
