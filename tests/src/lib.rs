//! The harness of the suites: a real broker, real MCP servers and clients, a real cluster.
//!
//! - [`api_link`]: between an operator and the API server, for faults
//! - [`audit`]: the API server's audit log
//! - [`autoscalers`]: metrics-server and KEDA, as processes on the cluster's node
//! - [`baseline`]: what a gateway holds of the machine
//! - [`binaries`]: the project's own binaries, as cargo built them
//! - [`broker`]: Mosquitto on a loopback port
//! - [`broker_pod`]: a Mosquitto of a test's own in the cluster, with passwords and TLS
//! - [`certificates`]: X.509 for brokers and their clients
//! - [`cluster`]: a cluster's API server, and a namespace of a test's own
//! - [`operator`]: the operator as a process, against a cluster's real API server
//! - [`clients`]: MCP clients that are not ours
//! - [`load`]: closed-loop clients that keep account
//! - [`node`]: the processes of the cluster on this machine
//! - [`platform`]: the product, installed and used as a user would
//! - [`gateway`]: a gateway beside its stdio server, as in a pod
//! - [`ports`]: loopback ports for processes that must be told theirs
//! - [`presences`]: what stands in a broker's registry, message by message
//! - [`proxy`]: between MQTT clients and the broker, for what Mosquitto will not do
//! - [`raw`]: an MQTT client for what no proper MCP client does
//! - [`servers`]: MCP servers that are not ours
//! - [`helm`]: helm, on the chart of this checkout
//! - [`monitoring`]: what Prometheus is asked by the chart's alerts and its dashboard

pub mod api_link;
pub mod audit;
pub mod autoscalers;
pub mod baseline;
pub mod binaries;
pub mod broker;
pub mod broker_pod;
pub mod certificates;
pub mod clients;
pub mod cluster;
pub mod gateway;
pub mod helm;
pub mod load;
pub mod monitoring;
pub mod node;
pub mod operator;
pub mod platform;
pub mod ports;
pub mod presences;
pub mod proxy;
pub mod raw;
pub mod servers;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whose holder panicked holds plain data all the same.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
