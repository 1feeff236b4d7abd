//! What can go wrong in a client.

use std::time::Duration;

use crate::{
    jsonrpc::RpcError,
    mqtt::{CloseReason, PublishError, ReasonCode},
};

/// Why presences cannot be watched, or a server was not found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DiscoverError {
    /// The subscription could not be sent or was not answered.
    #[error("cannot subscribe to {filter:?}: {error}")]
    Subscribe {
        /// The topic filter.
        filter: String,
        /// Why.
        error: PublishError,
    },
    /// The broker does not grant it.
    #[error("the broker refused the subscription to {filter:?}: {reason}")]
    Refused {
        /// The topic filter.
        filter: String,
        /// Its reason.
        reason: ReasonCode,
    },
    /// Nobody with that name registered in time.
    #[error("no instance of {server_name:?} was online within {within:?}")]
    NotFound {
        /// The server name.
        server_name: String,
        /// How long was waited.
        within: Duration,
    },
}

/// Why a session was not opened.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// The subscriptions could not be made.
    #[error("cannot subscribe to the server's topics: {0}")]
    Subscribe(#[from] DiscoverError),
    /// `initialize` was not answered with a result.
    #[error("initialize: {0}")]
    Initialize(#[from] RequestError),
    /// The result is not an `initialize` result.
    #[error("the server's initialize result is malformed: {0}")]
    Malformed(String),
}

/// Why a request has no result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// The server (or the gateway) answered an error.
    #[error("{0}")]
    Rpc(RpcError),
    /// No answer in time; the request was cancelled.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The session ended before the answer.
    #[error("the session ended: {0}")]
    Ended(SessionEnd),
    /// It could not be sent.
    #[error("cannot send: {0}")]
    Publish(#[from] PublishError),
    /// The params or the result do not fit their type.
    #[error("{0}")]
    Json(String),
}

impl RequestError {
    /// The error object, when the other side answered one.
    pub fn rpc(&self) -> Option<&RpcError> {
        match self {
            Self::Rpc(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// [`Session::close`](super::Session::close) or its drop.
    #[error("closed by the client")]
    Closed,
    /// Another session with the same instance took its place.
    #[error("replaced by another session with the same instance")]
    Replaced,
    /// The server said `notifications/disconnected`.
    #[error("ended by the server")]
    Disconnected,
    /// The server's presence was cleared.
    #[error("the server went offline")]
    Offline,
    /// The MQTT connection is over.
    #[error("the connection is over: {0}")]
    Connection(CloseReason),
}
