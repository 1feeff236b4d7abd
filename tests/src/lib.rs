//! The harness of the suites: a real broker, real MCP servers and clients, a real cluster.
//!
//! - [`binaries`]: the project's own binaries, as cargo built them
//! - [`broker`]: Mosquitto on a loopback port
//! - [`helm`]: helm, on the chart of this checkout

pub mod binaries;
pub mod broker;
pub mod helm;
