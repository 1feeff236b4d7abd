//! The backend: the pod's own MCP server, over stdio or HTTP. One MQTT client session is one backend session.

use std::fmt;

use mcp_mqtt_transport::jsonrpc::{Message, RequestId};
use tokio::sync::mpsc;

/// Names one session of this gateway for as long as the process lives; never used twice, so that a late event
/// of an ended session finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Messages to one backend session that may wait there; a full queue is an error to the caller.
/// Two per request in flight (the request and its cancellation) at the default of 64.
pub const TO_BACKEND_CAPACITY: usize = 128;

/// The bridge's end of one backend session. Dropping it ends the session: the process is ended, HTTP gets its DELETE.
#[derive(Debug)]
pub struct BackendSession {
    /// Client → server messages, in order.
    pub to_backend: mpsc::Sender<Message>,
}

/// What a backend session reports. [`FromBackend::Ended`] comes exactly once, and last.
#[derive(Debug)]
pub enum FromBackend {
    /// A message of the server to its client: a response, a request or a notification.
    Message(Message),
    /// This request of the client will get no answer from the server.
    RequestFailed {
        /// The request's id.
        id: RequestId,
        /// Why: a stable word for `error.data.reason`.
        reason: &'static str,
        /// Why, for a person.
        detail: String,
    },
    /// The server sent something that is no JSON-RPC message (or one too large); it was dropped.
    Malformed {
        /// What was wrong.
        detail: String,
    },
    /// The session is over.
    Ended(BackendEnd),
}

/// Why a backend session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendEnd {
    /// We ended it.
    Closed,
    /// It could not be opened.
    OpenFailed(String),
    /// The process exited or its pipe closed.
    Exited(String),
    /// The server no longer knows the session (HTTP 404).
    SessionLost(String),
    /// The whole backend is gone (its container restarts).
    BackendLost(String),
}

/// Where all backend sessions report to. Bounded: a flooding server waits, the others' order holds.
pub type BackendEvents = mpsc::Sender<(SessionId, FromBackend)>;

impl fmt::Display for BackendEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the gateway"),
            Self::OpenFailed(why) => write!(f, "could not be opened: {why}"),
            Self::Exited(why) => write!(f, "the server's process ended: {why}"),
            Self::SessionLost(why) => write!(f, "the server lost the session: {why}"),
            Self::BackendLost(why) => write!(f, "the server is gone: {why}"),
        }
    }
}
