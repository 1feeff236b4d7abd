//! `spec.rbac`: who may use what, as the registry tells it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema;

/// Who may use what.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RbacSpec {
    /// The roles.
    #[schemars(length(max = 64))]
    pub roles: Vec<RoleSpec>,
}

/// One role.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RoleSpec {
    /// Its name.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// What it is for.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub description: String,
    /// MCP methods that it may call: `all`, or a list such as `[tools/list, tools/call]`.
    #[schemars(schema_with = "schema::all_or_list")]
    pub allowed_methods: Value,
    /// Tools that it may call: `all`, or a list of their names.
    #[schemars(schema_with = "schema::all_or_list")]
    pub allowed_tools: Value,
    /// Resources that it may read: `all`, or a list of their URIs.
    #[schemars(schema_with = "schema::all_or_list")]
    pub allowed_resources: Value,
}
