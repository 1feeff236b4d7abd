//! mcp-mqtt-operator: `McpService` to Deployment.
//!
//! - [`check`]: whether an installed operator works
//! - [`cli`], [`settings`]: the command line, and what it means
//! - [`crd`]: the API, its rules and its documentation
//! - [`controller`]: from an `McpService` to its objects, and back to its status
//! - [`names`], [`reasons`], [`salt`]: what they call things, and how they hash them

pub mod check;
pub mod cli;
pub mod controller;
pub mod crd;
pub mod names;
pub mod reasons;
pub mod salt;
pub mod settings;
