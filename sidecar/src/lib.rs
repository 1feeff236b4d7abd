//! The part of a pod that is ours: the gateway beside an MCP server, the shim inside its container, and the
//! installer that brings the one binary into both.
//!
//! - [`cli`]: one binary, three faces
//! - [`config`], [`status`]: the contract with the operator: what it writes, what it reads back
//! - [`backend`]: the pod's own MCP server, over stdio or HTTP
//! - [`shim`], [`install`]: the other two faces

pub mod backend;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod install;
pub mod metrics;
pub mod shim;
pub mod status;
