//! The API: `McpService`, its CEL rules, its documentation. What stands here becomes `crds/` and `kubectl explain`.
#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns repeat their fields' names, and their types"
)]
#![allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]

pub mod autoscaling;
pub mod broker;
pub mod duration;
pub mod gateway;
pub mod rbac;
mod schema;
pub mod server;
pub mod status;
pub mod transport;

#[cfg(test)]
mod tests;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use self::{
    autoscaling::AutoscalingSpec, broker::BrokerSpec, gateway::GatewaySpec, rbac::RbacSpec,
    server::ServerSpec, status::McpServiceStatus, transport::TransportSpec,
};

/// Group of the API.
pub const GROUP: &str = "mcp-mqtt.io";
/// Its version.
pub const VERSION: &str = "v1alpha1";

/// What an `McpService` asks for.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "mcp-mqtt.io",
    version = "v1alpha1",
    kind = "McpService",
    plural = "mcpservices",
    singular = "mcpservice",
    shortname = "mcps",
    category = "mcp",
    namespaced,
    status = "McpServiceStatus",
    derive = "PartialEq",
    doc = "McpService runs an MCP server and registers each of its instances with an MQTT broker, where clients find and call it by its server name.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.ready",
        description = "Instances that speak MCP and are registered, of those wanted."
    ),
    printcolumn(
        name = "Registered",
        type_ = "integer",
        json_path = ".status.registered",
        description = "Instances that stand in the broker's registry."
    ),
    printcolumn(
        name = "Sessions",
        type_ = "integer",
        json_path = ".status.sessions",
        description = "MCP sessions open now."
    ),
    printcolumn(
        name = "Server Name",
        type_ = "string",
        json_path = ".status.serverName",
        description = "The name by which clients find it."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready, or is not.",
        priority = 1
    ),
    printcolumn(
        name = "Server",
        type_ = "string",
        json_path = ".status.server.name",
        description = "What the MCP server calls itself.",
        priority = 1
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.server.version",
        description = "The MCP server's own version.",
        priority = 1
    ),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.server.image", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.serverName) == has(oldSelf.serverName) && (!has(self.serverName) || self.serverName == oldSelf.serverName)")
        .message("serverName is immutable: delete the McpService and create it with the new name")
        .field_path(".serverName"),
    validation = Rule::new("!has(self.transport.stdio) || !has(self.server.command)")
        .message("server.command must not be set with transport.stdio: transport.stdio.command is the command, and server.args follow it")
        .field_path(".server")
)]
pub struct McpServiceSpec {
    /// The MCP server name: hierarchical, the same for all instances, unique on the broker. Immutable.
    /// By default `<namespace>/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.contains('/')").message("serverName must contain at least one '/', as in <namespace>/<name>"),
        validation = Rule::new("!self.startsWith('/')").message("serverName must not start with '/'"),
        validation = Rule::new("!self.contains('+') && !self.contains('#')").message("serverName must not contain '+' or '#'"),
        validation = Rule::new(r"self.matches('^[^\\x00-\\x20\\x7f]*$')").message("serverName must not contain spaces or control characters")
    )]
    pub server_name: Option<String>,

    /// What the server is for, in a sentence; clients read it in the registry.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub description: String,

    /// Who may use what: goes into the registry as `meta.rbac`, for clients and brokers to act on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rbac: Option<Box<RbacSpec>>,

    /// How many instances run. With `autoscaling` it is the autoscaler that writes it.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: i32,

    /// Lets Kubernetes' `HorizontalPodAutoscaler` write `replicas`. Of `sessions`, `inFlight` and `resources`, the one that
    /// asks for the most instances wins; without any of them it goes by sessions, at 80 % of `gateway.maxSessions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Box<AutoscalingSpec>>,

    /// How the MCP server is spoken to inside its pod: exactly one of the fields.
    pub transport: TransportSpec,

    /// The container that runs the MCP server.
    pub server: ServerSpec,

    /// A fragment of a `PodTemplateSpec`, merged last into what the operator builds, by Kubernetes' own
    /// strategic merge (containers, volumes and env by their names): nodeSelector, tolerations, volumes,
    /// annotations, further containers … It is parsed strictly: an unknown field is an error in the
    /// condition `Accepted`. (`kubectl explain deployment.spec.template` has its fields.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::any_object")]
    pub pod_template: Option<serde_json::Map<String, serde_json::Value>>,

    /// The gateway: the sidecar between the MCP server and the broker.
    #[serde(default)]
    pub gateway: GatewaySpec,

    /// How an instance goes down.
    #[serde(default)]
    pub drain: DrainSpec,

    /// The broker. By default the operator's own default broker; set here, it replaces that as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<Box<BrokerSpec>>,
}

/// How an instance goes down.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DrainSpec {
    /// How long, in seconds, requests in flight may take to finish before they are answered with an error.
    /// The pod's termination grace period is this and a margin.
    #[serde(default = "sixty")]
    #[schemars(range(min = 0, max = 3600))]
    pub timeout_seconds: i32,
}

impl Default for DrainSpec {
    fn default() -> Self {
        Self { timeout_seconds: sixty() }
    }
}

fn one() -> i32 {
    1
}

fn sixty() -> i32 {
    60
}

/// The `CustomResourceDefinition` as it is installed.
pub fn crd() -> CustomResourceDefinition {
    schema::mend(<McpService as kube::CustomResourceExt>::crd())
}

/// [`crd`] as YAML, with a line on where it comes from.
pub fn crd_yaml() -> String {
    let value = serde_json::to_value(crd()).expect("a CRD is plain data");
    let yaml = serde_yaml::to_string(&value).expect("plain data has a YAML form");
    format!("# Generated from operator/src/crd by `cargo xtask crds`: edit there.\n{yaml}")
}
