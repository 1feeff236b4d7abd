//! What the state machines ask the driver to do.

use std::{fmt, sync::Arc, time::Duration};

use mcp_mqtt_transport::{
    jsonrpc::{Message, RequestId},
    topic::ClientId,
};

use super::{
    placement::LinkId,
    refusal::Refusal,
    request::{Asker, Method, Outcome},
};
use crate::{
    backend::{BackendEnd, SessionId},
    traces::Span,
};

/// One thing to do, in the order in which they were asked for.
#[derive(Debug)]
pub enum Action {
    /// Subscribe the client's RPC, presence and capability topics; report to this session.
    Subscribe {
        /// On which connection.
        via: LinkId,
        /// Who wants it.
        session: SessionId,
        /// Whose topics.
        client: ClientId,
    },
    /// Give these three up.
    Unsubscribe {
        /// On which connection.
        via: LinkId,
        /// Whose topics.
        client: ClientId,
    },
    /// Publish on the client's RPC topic.
    ToClient {
        /// By the connection that subscribes this topic, so that its No Local holds; by another that stands when this
        /// one is lost.
        via: LinkId,
        /// Whose topic.
        client: ClientId,
        /// What.
        message: Message,
        /// A session's own word to its client. What is not, is about something that was not taken: whoever sends much
        /// of that does not displace the sessions' words when the broker does not keep up.
        owed: bool,
    },
    /// Tell all clients, on the capability topic.
    Broadcast {
        /// What.
        message: Message,
    },
    /// Give to the session's backend; report when its queue is full.
    ToBackend {
        /// Whose backend.
        session: SessionId,
        /// What.
        message: Message,
    },
    /// The session is open: its client has the `initialize` result.
    Opened {
        /// Which.
        session: SessionId,
        /// Whose.
        client: ClientId,
    },
    /// The session is over: end its backend session.
    Ended {
        /// Which.
        session: SessionId,
        /// Whose.
        client: ClientId,
        /// Why.
        reason: EndReason,
        /// What it was.
        summary: Summary,
    },
    /// A request ended; for the metrics and the traces.
    Resolved {
        /// Who asked.
        asker: Asker,
        /// What.
        method: Method,
        /// How it ended.
        outcome: Outcome,
        /// After how long.
        elapsed: Duration,
        /// Its span, if it has one.
        span: Option<Arc<Span>>,
    },
    /// A request was answered with an error of ours and not taken; for the metrics.
    Refused {
        /// A stable word.
        reason: &'static str,
    },
    /// A message went nowhere; for the metrics.
    Dropped {
        /// A stable word.
        reason: &'static str,
    },
}

/// What a session was, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// From `initialize` to its end.
    pub lasted: Duration,
    /// Requests of the client, `initialize` and the refused ones included.
    pub requests: u64,
    /// Errors that the client was answered, the server's and ours.
    pub errors: u64,
    /// Bytes of the client's messages.
    pub received_bytes: u64,
    /// Bytes of the messages to the client, without what is told to all.
    pub sent_bytes: u64,
}

impl Summary {
    /// The line of a session's end.
    pub fn log(&self, session: SessionId, client: &ClientId, reason: &EndReason) {
        let Self { lasted, requests, errors, received_bytes, sent_bytes } = *self;
        let (session, word) = (session.0, reason.as_str());
        let seconds = (lasted.as_secs_f64() * 1000.0).round() / 1000.0;
        if reason.is_trouble() {
            tracing::warn!(
                session, %client, reason = word, seconds, requests, errors, received_bytes, sent_bytes,
                "session ended: {reason}"
            );
        } else {
            tracing::info!(
                session, %client, reason = word, seconds, requests, errors, received_bytes, sent_bytes,
                "session ended: {reason}"
            );
        }
    }
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// The client said `notifications/disconnected`, or its will did.
    ClientLeft,
    /// The client sent another `initialize`; its id.
    Replaced(RequestId),
    /// `initialize` was answered with an error.
    InitializeFailed,
    /// The broker refused the subscriptions.
    SubscriptionRefused,
    /// Nothing can be delivered to its client, not even an error; why.
    Undeliverable(String),
    /// The backend session ended.
    Backend(BackendEnd),
    /// The client never said that it has the answer to its `initialize`, nor anything else.
    NeverInitialized,
    /// Nothing was said for as long as the configuration allows.
    Idle,
    /// The instance is being drained.
    Drained,
    /// The connection that carried it is gone, and another one can still tell the client.
    ConnectionLost,
    /// All connections to the broker are gone, and with them the way to the client.
    BrokerLost,
}

impl EndReason {
    /// A stable word, for metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ClientLeft => "client-left",
            Self::Replaced(_) => "replaced",
            Self::InitializeFailed => "initialize-failed",
            Self::SubscriptionRefused => "subscription-refused",
            Self::Undeliverable(_) => "undeliverable",
            Self::Backend(_) => "backend-ended",
            Self::NeverInitialized => "never-initialized",
            Self::Idle => "idle",
            Self::Drained => "drained",
            Self::ConnectionLost => "connection-lost",
            Self::BrokerLost => "broker-lost",
        }
    }

    /// Whether a person may want to look into it.
    pub fn is_trouble(&self) -> bool {
        matches!(
            self,
            Self::Backend(_) | Self::SubscriptionRefused | Self::InitializeFailed | Self::Undeliverable(_)
        )
    }

    /// The error for each request in flight; nothing where nobody would hear it.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::ClientLeft | Self::BrokerLost => None,
            Self::Drained => Some(Refusal::Drained),
            Self::ConnectionLost => Some(Refusal::ConnectionLost),
            Self::Backend(end) => Some(Refusal::Backend(self.as_str(), end.to_string())),
            Self::Replaced(_)
            | Self::InitializeFailed
            | Self::SubscriptionRefused
            | Self::NeverInitialized
            | Self::Idle
            | Self::Undeliverable(_) => Some(Refusal::SessionEnded(self.to_string())),
        }
    }

    /// Whether an error for this id would hit another request of the client.
    pub fn spares(&self, id: &RequestId) -> bool {
        matches!(self, Self::Replaced(by) if by == id)
    }

    /// Whether the client is told by `notifications/disconnected`: where we end the session. After a new `initialize` that
    /// would end the new session.
    pub fn tells_client(&self) -> bool {
        match self {
            // What the broker refused may have been too large for it, and a goodbye is small.
            Self::Backend(_)
            | Self::NeverInitialized
            | Self::Idle
            | Self::Drained
            | Self::ConnectionLost
            | Self::Undeliverable(_) => true,
            Self::ClientLeft
            | Self::Replaced(_)
            | Self::InitializeFailed
            | Self::SubscriptionRefused
            | Self::BrokerLost => false,
        }
    }

    /// Whether the subscriptions are to be given up. After a new `initialize` they are the new session's; with the
    /// connection they have ended.
    pub fn unsubscribes(&self) -> bool {
        !matches!(self, Self::Replaced(_) | Self::ConnectionLost | Self::BrokerLost)
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientLeft => f.write_str("the client left"),
            Self::Replaced(_) => f.write_str("the client initialized again"),
            Self::InitializeFailed => f.write_str("initialize was answered with an error"),
            Self::SubscriptionRefused => f.write_str("the broker refused the subscriptions"),
            Self::Undeliverable(why) => {
                write!(f, "nothing can be delivered to its client: {why}")
            }
            Self::Backend(end) => end.fmt(f),
            Self::NeverInitialized => {
                f.write_str("its client was not heard again after its initialize; it has left, most likely")
            }
            Self::Idle => f.write_str("nothing was said for longer than --idle-timeout"),
            Self::Drained => f.write_str("the instance is shutting down"),
            Self::ConnectionLost => f.write_str("the connection that carried it was lost"),
            Self::BrokerLost => f.write_str("the connection to the broker was lost"),
        }
    }
}
