//! The stdio backend against the real shim: sessions, the processes behind them, and what goes wrong.
//! Shell tools stand in for MCP servers; `cat` answers every message with itself.
#![allow(clippy::unwrap_used, reason = "how a test fails")]

#[path = "../shared/client.rs"]
mod client;
mod faults;
mod leaks;
mod prewarm;
mod rig;
mod sessions;
mod stops;
