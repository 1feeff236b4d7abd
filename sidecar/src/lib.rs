//! The part of a pod that is ours: the gateway beside an MCP server, the shim inside its container, and the
//! installer that brings the one binary into both.
//!
//! - [`cli`]: one binary, three faces
//! - [`config`], [`status`]: the contract with the operator: what it writes, what it reads back
//! - [`app`]: the gateway, wired
//! - [`registrar`]: connects to the broker, tests it, and is found there
//! - [`bridge`]: between the broker's clients and the backends: the sessions
//! - [`backend`]: the pod's own MCP server, over stdio, Streamable HTTP or HTTP+SSE; [`health`]: whether it answers
//! - [`drain`]: ending so that no client hangs
//! - [`readiness`], [`metrics`], [`telemetry`], [`traces`], [`admin`]: how it does, and who can see it
//! - [`process`]: and how its process does; [`serving`]: how connections are taken, [`pulse`]: whether the work goes on;
//!   the operator's, too
//! - [`shim`], [`install`]: the other two faces

pub mod admin;
pub mod app;
pub mod backend;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod drain;
pub mod health;
mod https;
pub mod install;
pub mod metrics;
pub mod process;
pub mod pulse;
pub mod readiness;
pub mod registrar;
pub mod serving;
pub mod shim;
mod sliding_window;
pub mod status;
pub mod telemetry;
pub mod traces;
