//! `status`: what is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an `McpService` has come to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct McpServiceStatus {
    /// The generation of the spec that this status tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The name by which clients find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,

    /// Instances that speak MCP and are registered, of those wanted: `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,

    /// Instances that run.
    #[serde(default)]
    pub replicas: i32,

    /// Instances that are ready.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Instances that stand in the broker's registry.
    #[serde(default)]
    pub registered: i32,

    /// The pods of instances that stand in the broker's registry: the first ten by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub instances: Vec<String>,

    /// MCP sessions open now, over all instances; brought up to date every few seconds.
    #[serde(default)]
    pub sessions: i32,

    /// Label selector of the pods, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// What the MCP server says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerStatus>,

    /// `Accepted`: the spec and what it refers to are usable. `Ready`: enough instances speak MCP and are
    /// registered. `Registered`: the broker's registry agrees with the instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What the MCP server says of itself in its `initialize` result.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The revision of MCP that it speaks.
    pub protocol_version: String,
}
