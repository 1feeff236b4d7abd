//! The errors that the gateway itself answers, each with a stable word in `data.reason`.

use mcp_mqtt_transport::jsonrpc::{Message, ParseErrorKind, RequestId, code};

/// Why the gateway answers a request itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The instance is being drained: the request went nowhere, and may be repeated elsewhere.
    Draining,
    /// The drain's deadline came before the answer: the request may have had its effect.
    Drained,
    /// The MCP server takes no session at present; why, for a person.
    BackendDown(String),
    /// As many sessions are open as may be.
    MaxSessions(u32),
    /// The broker refused a subscription without which the session is deaf; the filter and why.
    Subscription(String),
    /// The client has no session here.
    NoSession,
    /// The session's `initialize` has not been answered yet.
    NotInitialized,
    /// A request other than `initialize` on the control topic.
    NotInitialize,
    /// `initialize` on the RPC topic.
    InitializeOnRpc,
    /// The client id in the user property is not the topic's.
    ClientIdMismatch,
    /// No JSON-RPC message.
    Malformed(ParseErrorKind),
    /// A batch of more messages than this.
    BatchTooLong(usize),
    /// The id is that of a request in flight.
    DuplicateId,
    /// As many requests are in flight as may be.
    TooManyInFlight(usize),
    /// A message over the limit; its size and the limit.
    TooLarge(usize, usize),
    /// The server does not take messages fast enough.
    BackendBusy,
    /// The message did not reach the other side: the broker refused it; why.
    Undelivered(String),
    /// Nobody answered in time.
    TimedOut,
    /// The connection that carried the session was lost.
    ConnectionLost,
    /// The session ended before the answer; why, for a person.
    SessionEnded(String),
    /// The backend could not get an answer: a stable word, and why, for a person.
    Backend(&'static str, String),
}

impl Refusal {
    /// [`Self::reason`] of a session for which there is no room.
    pub const MAX_SESSIONS: &str = "max-sessions";

    /// The stable word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::BackendDown(_) => "backend-down",
            Self::MaxSessions(_) => Self::MAX_SESSIONS,
            Self::Subscription(_) => "subscription-refused",
            Self::NoSession => "no-session",
            Self::NotInitialized => "not-initialized",
            Self::NotInitialize => "not-initialize",
            Self::InitializeOnRpc => "initialize-on-rpc",
            Self::ClientIdMismatch => "client-id-mismatch",
            Self::Malformed(kind) => kind.reason(),
            Self::BatchTooLong(_) => "batch-too-long",
            Self::DuplicateId => "duplicate-id",
            Self::TooManyInFlight(_) => "too-many-in-flight",
            Self::TooLarge(..) => "message-too-large",
            Self::BackendBusy => "backend-busy",
            Self::Undelivered(_) => "undelivered",
            Self::TimedOut => "timed-out",
            Self::ConnectionLost => "connection-lost",
            Self::SessionEnded(_) => "session-ended",
            Self::Backend(reason, _) => reason,
        }
    }

    /// The sentence for a person.
    pub fn message(&self) -> String {
        match self {
            Self::Draining => "this instance is shutting down: initialize at another one".to_owned(),
            Self::Drained => {
                "this instance shut down before the answer came; the request may have had its effect"
                    .to_owned()
            }
            Self::BackendDown(why) => {
                format!(
                    "the MCP server behind this gateway takes no session at present, try again later: {why}"
                )
            }
            Self::MaxSessions(limit) => {
                format!("this instance serves {limit} sessions, all it may: initialize at another one")
            }
            Self::Subscription(detail) => {
                format!("the broker does not let the gateway hear this client: {detail}")
            }
            Self::NoSession => "no session of this client: initialize first".to_owned(),
            Self::NotInitialized => "the answer to initialize comes first".to_owned(),
            Self::NotInitialize => "only initialize is taken on the control topic".to_owned(),
            Self::InitializeOnRpc => "initialize is taken on the control topic only".to_owned(),
            Self::ClientIdMismatch => "MCP-MQTT-CLIENT-ID is not the client id of the topic".to_owned(),
            Self::Malformed(kind) => kind.to_string(),
            Self::BatchTooLong(limit) => format!("the batch has more than {limit} messages, all it may have"),
            Self::DuplicateId => "a request with this id is in flight".to_owned(),
            Self::TooManyInFlight(limit) => format!("{limit} requests are in flight, all that may be"),
            Self::TooLarge(size, limit) => format!("the message has {size} bytes; the limit is {limit}"),
            Self::BackendBusy => "the MCP server does not take messages fast enough".to_owned(),
            Self::Undelivered(why) => format!("the message could not be delivered: {why}"),
            Self::TimedOut => "no answer in time".to_owned(),
            Self::ConnectionLost => {
                "the connection to the broker that carried this session was lost: initialize again".to_owned()
            }
            Self::SessionEnded(why) => format!("the session ended: {why}"),
            Self::Backend(_, detail) => detail.clone(),
        }
    }

    /// [`code::INVALID_REQUEST`] where the asker is wrong, [`code::INTERNAL`] for the rest.
    pub fn code(&self) -> i64 {
        match self {
            Self::NotInitialize
            | Self::InitializeOnRpc
            | Self::ClientIdMismatch
            | Self::BatchTooLong(_)
            | Self::DuplicateId => code::INVALID_REQUEST,
            Self::Malformed(kind) => kind.code(),
            _ => code::INTERNAL,
        }
    }

    /// The error that answers a request.
    pub fn answer(&self, id: &RequestId) -> Message {
        Message::error_response(id, self.code(), &self.message(), self.reason())
    }
}
