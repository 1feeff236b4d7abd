//! mcp-mqtt-operator: `McpService` to Deployment.
//!
//! - [`cli`], [`settings`]: the command line, and what it means
//! - [`app`], [`leader`]: start and end, and which of several operators works
//! - [`api_client`]: the way to the API server
//! - [`crd`]: the API, its rules and its documentation
//! - [`watched`]: the namespaces that are watched, and what is known of each
//! - [`live`]: what is kept of each object
//! - [`controller`]: from an `McpService` to its objects, and back to its status
//! - [`observe`], [`http_get`]: what the gateways say of themselves
//! - [`session_metrics`], [`keda`]: what the autoscaler is told of them; [`serving`]: what its servers have in common
//! - [`registry`]: the broker's side: services that sleep, and a registry that is true
//! - [`admin`], [`metrics`], [`telemetry`]: what the operator says of itself
//! - [`names`], [`reasons`], [`salt`]: what it calls things, and how it hashes them
//! - [`check`]: whether an installed operator works

pub mod admin;
pub mod api_client;
pub mod app;
pub mod check;
pub mod cli;
pub mod controller;
pub mod crd;
pub mod http_get;
pub mod keda;
pub mod leader;
pub mod live;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod reasons;
pub mod registry;
pub mod salt;
pub mod service_counts;
pub mod serving;
pub mod session_metrics;
pub mod settings;
pub mod telemetry;
pub mod watched;
