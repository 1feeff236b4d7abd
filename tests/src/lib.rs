//! The harness of the suites: a real broker, real MCP servers and clients, a real cluster.
//!
//! - [`binaries`]: the project's own binaries, as cargo built them

pub mod binaries;
