//! Messages on their way to the server, and the room that they may take up: counted in bytes, since one client can send
//! large ones faster than a server reads them. A session has its share, so that one with a server that stands still
//! leaves room for the others.

use std::{convert::Infallible, sync::Arc};

use mcp_mqtt_transport::jsonrpc::{Kind, Message};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{self, error::TrySendError},
    oneshot,
};

/// Messages to one backend session that may wait there; a full queue is an error to the caller.
/// Two per request in flight (the request and its cancellation) at the default of 64.
const QUEUE: usize = 128;
/// So long may an answer or notification be that needs no room.
const SHORT: usize = 4 << 10;
/// Bytes of one session that may wait, or two of the largest messages.
const SESSION_BYTES: usize = 8 << 20;
/// Bytes of all sessions, or eight of the largest messages. A quarter of the memory that a gateway has by default.
const GATEWAY_BYTES: usize = 32 << 20;

/// The bytes that the messages of all sessions may take up.
#[derive(Debug, Clone)]
pub struct SendQuota {
    everybody: Arc<Semaphore>,
    each: usize,
}

/// The bridge's end of one backend session. Dropping it ends the session: the process is ended, HTTP gets its DELETE.
#[derive(Debug)]
pub struct BackendSession {
    // Boxed, since the channel makes room for 32 of them at once, and that stays with a session that says nothing.
    queue: mpsc::Sender<Box<Outbound>>,
    own: Arc<Semaphore>,
    everybody: Arc<Semaphore>,
    /// Tells the session to end even when its queue is full of messages that nobody reads.
    _alive: oneshot::Sender<Infallible>,
}

/// The backend's end of one session.
#[derive(Debug)]
pub struct FromBridge {
    /// Client → server messages, in order; ends when the bridge has dropped its end and all were taken.
    pub messages: mpsc::Receiver<Box<Outbound>>,
    /// Resolves (with an error) when the bridge has dropped its end.
    pub dropped: oneshot::Receiver<Infallible>,
}

/// A message of the client. Dropping it gives its room back, so it is to be kept until the server has it.
#[derive(Debug)]
pub struct Outbound {
    /// What is said.
    pub message: Message,
    /// What is reserved for it; of a message that was made of another one, what that one did.
    pub reserved: Option<Reserved>,
}

/// What is reserved for a message, in the session's share and of all.
#[derive(Debug)]
pub enum Reserved {
    /// By one that holds the message.
    Alone([OwnedSemaphorePermit; 2]),
    /// By several: given back when all are done with it.
    Shared(Arc<[OwnedSemaphorePermit; 2]>),
}

impl SendQuota {
    /// For messages up to so many bytes.
    pub fn for_messages_of(max_message_bytes: usize) -> Self {
        let bytes = |bytes: usize, messages: usize| {
            bytes.max(max_message_bytes.saturating_mul(messages)).min(Semaphore::MAX_PERMITS)
        };
        Self { everybody: Arc::new(Semaphore::new(bytes(GATEWAY_BYTES, 8))), each: bytes(SESSION_BYTES, 2) }
    }

    /// Both ends of a session.
    pub fn session(&self) -> (BackendSession, FromBridge) {
        let (queue, messages) = mpsc::channel(QUEUE);
        let (alive, dropped) = oneshot::channel();
        let own = Arc::new(Semaphore::new(self.each));
        let session = BackendSession { queue, own, everybody: self.everybody.clone(), _alive: alive };
        (session, FromBridge { messages, dropped })
    }
}

impl Reserved {
    /// For two that hold the message.
    pub(super) fn share(self) -> (Self, Self) {
        let shared = match self {
            Self::Alone(permits) => Arc::new(permits),
            Self::Shared(shared) => shared,
        };
        (Self::Shared(shared.clone()), Self::Shared(shared))
    }
}

impl BackendSession {
    /// Says something to the server. One that has ended takes it to no effect: it is about to report that.
    ///
    /// # Errors
    /// There is no room: the message, back.
    pub fn say(&self, message: Message) -> Result<(), Box<Message>> {
        let bytes = u32::try_from(message.raw().len()).unwrap_or(u32::MAX);
        let reserve = |quota: &Arc<Semaphore>| quota.clone().try_acquire_many_owned(bytes).ok();
        let reserved = if ends_something(&message) {
            None
        } else {
            let Some(reserved) = reserve(&self.own).zip(reserve(&self.everybody)) else {
                return Err(Box::new(message));
            };
            Some(Reserved::Alone(reserved.into()))
        };
        let outbound = Outbound { message, reserved };
        match self.queue.try_send(Box::new(outbound)) {
            Err(TrySendError::Full(outbound)) => Err(Box::new(outbound.message)),
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
        }
    }

    /// Waits for a place in the queue; none: the session has ended.
    pub(super) async fn place(&self) -> Option<mpsc::Permit<'_, Box<Outbound>>> {
        self.queue.reserve().await.ok()
    }
}

/// A short answer or notification (a cancellation, most often) needs no room: calls hold theirs until such a one ends them.
fn ends_something(message: &Message) -> bool {
    message.raw().len() <= SHORT && !matches!(message.kind(), Kind::Request { .. })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(bytes: usize) -> Message {
        let json = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{"p":"{}"}}}}"#, "x".repeat(bytes));
        Message::parse(Bytes::from(json), usize::MAX).unwrap()
    }

    #[test]
    fn a_session_has_its_share_and_gets_it_back_when_the_server_has_read() {
        let quota = SendQuota::for_messages_of(1 << 20);
        let ((stuck, mut from_stuck), (other, _from_other)) = (quota.session(), quota.session());
        let fit = (0..100).take_while(|_| stuck.say(message(1_000_000)).is_ok()).count();
        assert_eq!(fit, SESSION_BYTES / 1_000_000);
        assert!(other.say(message(1_000_000)).is_ok(), "the others have theirs");
        drop(from_stuck.messages.try_recv().unwrap());
        assert!(stuck.say(message(1_000_000)).is_ok());
        assert!(stuck.say(message(1_000_000)).is_err());
        assert!(stuck.say(message(100)).is_ok(), "small ones still fit");
        while stuck.say(message(5000)).is_ok() {}
        let request = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{}"}}"#, "m".repeat(4000));
        let request = |id: u8| Message::parse(Bytes::from(request(id)), usize::MAX).unwrap();
        while stuck.say(request(1)).is_ok() {}
        assert!(stuck.say(message(3000)).is_ok(), "what may end a call");
    }

    #[test]
    fn what_is_shared_is_given_back_by_the_last() {
        let quota = SendQuota::for_messages_of(SESSION_BYTES / 2);
        let (session, mut from_bridge) = quota.session();
        let half = || message(SESSION_BYTES / 2 - 100);
        assert!(session.say(half()).is_ok() && session.say(half()).is_ok());
        let outbound = from_bridge.messages.try_recv().unwrap();
        let (one, other) = outbound.reserved.map(Reserved::share).unzip();
        drop(one);
        assert!(session.say(half()).is_err());
        drop(other);
        assert!(session.say(half()).is_ok());
    }

    #[test]
    fn all_together_have_no_more_than_the_gateway_has_and_an_ended_session_gives_its_room_back() {
        let quota = SendQuota::for_messages_of(1 << 20);
        let mut sessions: Vec<_> = (0..8).map(|_| quota.session()).collect();
        let mut fit = 0;
        for (session, _) in &sessions {
            while session.say(message(1_000_000)).is_ok() {
                fit += 1;
            }
        }
        assert_eq!(fit, GATEWAY_BYTES / 1_000_000);
        sessions.remove(0);
        assert!(sessions[6].0.say(message(1_000_000)).is_ok());
    }

    #[test]
    fn a_queue_has_an_end_for_small_messages_too_and_two_of_the_largest_always_fit() {
        let quota = SendQuota::for_messages_of(6 << 20);
        let (session, _from_bridge) = quota.session();
        assert_eq!((0..1000).take_while(|_| session.say(message(10)).is_ok()).count(), QUEUE);
        let (session, _from_bridge) = quota.session();
        assert!(
            session.say(message((6 << 20) - 100)).is_ok() && session.say(message((6 << 20) - 100)).is_ok()
        );
        assert!(session.say(message((6 << 20) - 100)).is_err());
    }
}
