//! mcp-mqtt-operator: `McpService` to Deployment.
//!
//! - [`check`]: whether an installed operator works
//! - [`cli`]: the command line
//! - [`crd`]: the API, its rules and its documentation

pub mod check;
pub mod cli;
pub mod crd;
