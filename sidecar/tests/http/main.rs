//! The HTTP backends, Streamable and SSE, against a scripted server, for what a real one does not show on demand: which
//! headers went where, streams that break, sessions that are lost, replies that are none.
//! (`tests/tests/backend_everything.rs` has the real one.)
#![allow(clippy::unwrap_used, reason = "how a test fails")]

mod answers;
#[path = "../shared/client.rs"]
mod client;
mod ends;
mod fake;
mod order;
mod slow;
mod sse;
mod stateless;
mod streams;
