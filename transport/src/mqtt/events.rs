//! What arrives.
//!
//! Bounded by count and by bytes. When more waits than that, the connection stops reading from its socket: the
//! broker then holds what follows, and by its own rules drops some. Only sending goes on, and what keeps the connection
//! alive, until there is room again or the driver loses its patience with a receiver that is stuck for good.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use super::{CloseReason, ReasonCode, Received, Unusable, publisher::Link};

/// Messages that wait before reading stops: a burst of many clients at once.
pub(super) const PAUSE_MESSAGES: usize = 1024;
/// Bytes that wait before reading stops.
pub(super) const PAUSE_BYTES: usize = 8 << 20;
/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// A message arrived.
    Received(Received),
    /// A message arrived that is of no use; it is acknowledged, and the connection goes on.
    Unusable(Unusable),
    /// The broker refused what was published with a note.
    Refused(Refused),
    /// The connection is over; nothing follows.
    Closed(CloseReason),
}

/// A publish of ours that the broker took and then refused, in its PUBACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// As given to [`Publisher::try_publish_noted`](super::Publisher::try_publish_noted).
    pub note: u64,
    /// Where it was published.
    pub topic: String,
    /// What was published.
    pub payload: Bytes,
    /// Why not.
    pub reason: ReasonCode,
}

/// The receiving end of a connection's events.
///
/// When nobody takes them, reading from the broker stops (see the module). Overlapping filters make some brokers
/// (Mosquitto) deliver a message once for each: keep the filters of one connection disjoint, or take a message
/// twice without harm.
#[derive(Debug)]
pub struct Events {
    messages: mpsc::UnboundedReceiver<Event>,
    link: Arc<Link>,
    waiting: Arc<Waiting>,
    closed: bool,
}

/// The driver's end. The channel itself has no bound: [`Waiting`] is the bound.
#[derive(Debug)]
pub(super) struct Sink {
    messages: mpsc::UnboundedSender<Event>,
    waiting: Arc<Waiting>,
}

/// How much waits.
#[derive(Debug, Default)]
struct Waiting {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// There is room again.
    room: Notify,
}

pub(super) fn channel(link: Arc<Link>) -> (Sink, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(Waiting::default());
    let sink = Sink { messages: sender, waiting: waiting.clone() };
    (sink, Events { messages: receiver, link, waiting, closed: false })
}

impl Sink {
    /// Passes an event on. False: nobody is there to take it.
    pub(super) fn push(&self, event: Event) -> bool {
        let bytes = event.weight();
        self.waiting.messages.fetch_add(1, SeqCst);
        self.waiting.bytes.fetch_add(bytes, SeqCst);
        self.messages.send(event).is_ok()
    }

    pub(super) fn has_room(&self) -> bool {
        let (messages, bytes) = (self.waiting.messages.load(SeqCst), self.waiting.bytes.load(SeqCst));
        messages < PAUSE_MESSAGES && bytes < PAUSE_BYTES
    }

    /// Waits until there is room.
    pub(super) async fn room(&self) {
        while !self.has_room() {
            self.waiting.room.notified().await;
        }
    }
}

impl Waiting {
    fn release(&self, event: &Event) {
        let bytes = event.weight();
        let messages_before = self.messages.fetch_sub(1, SeqCst);
        let bytes_before = self.bytes.fetch_sub(bytes, SeqCst);
        // Only who crosses a limit has somebody to wake.
        let crossed = |before: usize, taken: usize, limit: usize| before >= limit && before - taken < limit;
        if crossed(messages_before, 1, PAUSE_MESSAGES) || crossed(bytes_before, bytes, PAUSE_BYTES) {
            self.room.notify_one();
        }
    }
}

impl Event {
    /// Bytes that it holds in memory, nearly.
    fn weight(&self) -> usize {
        match self {
            Self::Received(received) => received.weight(),
            Self::Refused(refused) => refused.payload.len() + refused.topic.len(),
            Self::Unusable(_) | Self::Closed(_) => 0,
        }
    }
}

impl Events {
    /// The next event; none after [`Event::Closed`]. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`recv`](Self::recv), for who waits for several connections at once.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        Poll::Ready(match ready!(self.messages.poll_recv(cx)) {
            Some(event) => {
                self.waiting.release(&event);
                Some(event)
            }
            None => self.end(),
        })
    }

    /// The next event, when one waits.
    pub fn try_recv(&mut self) -> Option<Event> {
        match self.messages.try_recv() {
            Ok(event) => {
                self.waiting.release(&event);
                Some(event)
            }
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => self.end(),
        }
    }

    /// The close reason, once.
    fn end(&mut self) -> Option<Event> {
        if std::mem::replace(&mut self.closed, true) {
            return None;
        }
        // The driver tells its reason before it drops its end; without one its task was aborted with the runtime.
        let reason = self.link.close_reason();
        Some(Event::Closed(reason.unwrap_or_else(|| CloseReason::Lost("its task was aborted".to_owned()))))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.messages.close();
        self.link.wake_driver();
    }
}
