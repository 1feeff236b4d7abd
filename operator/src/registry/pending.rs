//! What is held for a service that wakes, and what its client hears where it cannot be passed on.

use std::{
    iter::Sum,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::{Message, RequestId, code},
    topic::ClientId,
};

use super::scale_to_zero::Action;

/// Messages held for one service: a hundred clients that come at once, and then some.
pub const PER_SERVICE: usize = 256;
/// Messages held in all. At one broker there are never more than are left for the others, so half of it at most.
pub const IN_ALL: usize = 8192;
/// Bytes held in all; the same holds for them.
pub const BYTES_IN_ALL: usize = 16 << 20;
/// One of them: an `initialize` has some hundred bytes.
pub const MAX_BYTES: usize = 64 << 10;

/// An `initialize` that waits for an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingInitialize {
    /// Who asks.
    pub client: ClientId,
    /// The request's id.
    pub id: RequestId,
    /// The request, as it came.
    pub payload: Bytes,
    /// When it came.
    pub since: Instant,
}

/// Why it is answered with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WakeError {
    /// No instance can start; why, in the words of whoever knows.
    Failed(String),
    /// No instance came in time.
    TimedOut(Duration),
    /// As many wait as may.
    TooMany,
    /// It is too large to be held.
    TooLarge(usize),
    /// The client asks anew.
    Replaced,
    /// There are instances, which have places of their own in the registry.
    Elsewhere,
    /// The service was deleted.
    Gone,
    /// The service is looked after by another connection now, or under another name.
    Moved,
    /// Something else than `initialize`.
    NotInitialize,
    /// It is for a service that the operator has not come to know, or not in time.
    Unknown,
}

impl WakeError {
    /// `data.reason` of the error: a stable word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Failed(_) => "wake-failed",
            Self::TimedOut(_) => "wake-timed-out",
            Self::TooMany => "wake-too-many",
            Self::TooLarge(_) => "message-too-large",
            Self::Replaced => "replaced",
            Self::Elsewhere => "not-asleep",
            Self::Gone => "gone",
            Self::Moved => "moved",
            Self::NotInitialize => "not-initialize",
            Self::Unknown => "not-served",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Failed(why) => format!("the service slept, and no instance of it can start: {why}"),
            Self::TimedOut(timeout) => {
                format!("the service slept, and no instance of it was ready within {timeout:?}: try again")
            }
            Self::TooMany => "the service is waking, and too many clients wait for it: try again".to_owned(),
            Self::TooLarge(size) => {
                format!(
                    "the service sleeps, and the message is too large to wait: it has {size} bytes, at most {MAX_BYTES} are held"
                )
            }
            Self::Replaced => "the same client asked anew".to_owned(),
            Self::Elsewhere => {
                "the service does not sleep: initialize at one of its instances in the registry".to_owned()
            }
            Self::Gone => "the service was deleted".to_owned(),
            Self::Moved => "the service's name or broker settings changed: try again".to_owned(),
            Self::NotInitialize => "the service sleeps: the first request to it is initialize".to_owned(),
            Self::Unknown => {
                "the operator does not serve this service now: `kubectl describe mcpservice` may tell why"
                    .to_owned()
            }
        }
    }

    /// The error that answers the request.
    pub fn answer(&self, id: &RequestId) -> Message {
        Message::error_response(id, code::INTERNAL, &self.message(), self.reason())
    }
}

/// Messages that are held, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// How many.
    pub messages: usize,
    /// Bytes of all.
    pub bytes: usize,
}

impl Held {
    /// Whether one more of so many bytes may be held where `self` is, and `all` everywhere: there is never more at one
    /// broker than is left for the others. Whoever makes services may point them at brokers of his own, which send
    /// what they like; of those that are greedy each gets as much as the next that comes.
    pub fn has_room(self, all: Self, bytes: usize) -> bool {
        self.messages + all.messages < IN_ALL && self.bytes + all.bytes + bytes <= BYTES_IN_ALL
    }
}

impl Sum for Held {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, held| Self {
            messages: sum.messages + held.messages,
            bytes: sum.bytes + held.bytes,
        })
    }
}

/// What one service has waiting: at most one message of a client, in the order in which they came.
#[derive(Debug, Default)]
pub struct PendingQueue {
    held: Vec<PendingInitialize>,
    bytes: usize,
}

impl PendingQueue {
    /// How many.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether a message of this client is among them.
    pub fn holds(&self, client: &str) -> bool {
        self.held.iter().any(|held| held.client.as_str() == client)
    }

    /// How many, and their bytes.
    pub fn held(&self) -> Held {
        Held { messages: self.held.len(), bytes: self.bytes }
    }

    /// Holds one more, or refuses it.
    pub(super) fn hold(&mut self, held: PendingInitialize, room: bool, out: &mut Vec<Action>) {
        let known = self.held.iter().find(|known| known.client == held.client && known.id == held.id);
        if let Some(known) = known {
            // The broker delivers at least once; and what was written down of it may have been lost on the way.
            return out.push(Action::Keep(known.clone()));
        }
        if held.payload.len() > MAX_BYTES {
            let size = held.payload.len();
            return out.push(Action::Refuse(held, WakeError::TooLarge(size)));
        }
        if let Some(old) = self.remove(held.client.as_str()) {
            out.push(Action::Refuse(old, WakeError::Replaced));
        }
        if !room || self.held.len() >= PER_SERVICE {
            return out.push(Action::Refuse(held, WakeError::TooMany));
        }
        self.bytes += held.payload.len();
        self.held.push(held.clone());
        out.push(Action::Keep(held));
    }

    pub(super) fn remove(&mut self, client: &str) -> Option<PendingInitialize> {
        let index = self.held.iter().position(|held| held.client.as_str() == client)?;
        let held = self.held.remove(index);
        self.bytes -= held.payload.len();
        Some(held)
    }

    pub(super) fn take(&mut self) -> std::vec::IntoIter<PendingInitialize> {
        self.bytes = 0;
        std::mem::take(&mut self.held).into_iter()
    }

    pub(super) fn take_if(
        &mut self,
        condition: impl FnMut(&mut PendingInitialize) -> bool,
    ) -> std::vec::IntoIter<PendingInitialize> {
        let taken: Vec<PendingInitialize> = self.held.extract_if(.., condition).collect();
        self.bytes -= taken.iter().map(|held| held.payload.len()).sum::<usize>();
        taken.into_iter()
    }
}
