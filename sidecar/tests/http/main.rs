//! The Streamable HTTP backend against a scripted server, for what a real one does not show on demand: which
//! headers went where, streams that break, sessions that are lost, replies that are none.
//! (`tests/tests/backend_everything.rs` has the real one.)
#![allow(clippy::unwrap_used, reason = "how a test fails")]

mod answers;
mod ends;
mod fake;
mod order;
mod stateless;
mod streams;
