//! mcp-mqtt-operator: `McpService` to Deployment.
//!
//! - [`cli`]: the command line
//! - [`crd`]: the API, its rules and its documentation

pub mod cli;
pub mod crd;
