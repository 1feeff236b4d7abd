//! What waits to be sent, and who waits for an answer.
//!
//! The library numbers packets by itself and lets two of them have one number at a time: a publish then waits in a
//! "collision" that can stall or wedge it, and a SUBSCRIBE simply reuses the number. So we number along and hand it
//! a packet only when its number is free. That also keeps us within the broker's Receive Maximum.

use std::collections::VecDeque;

use bytes::Bytes;
use rumqttc::v5::AsyncClient;
use tokio::sync::oneshot;

use super::{Filter, Publication, PublishError, Qos, ReasonCode, Refused, packet};

/// Publications that may wait: two for each of 512 busy sessions. More is a broker that does not keep up.
pub(super) const QUEUE: usize = 1024;

/// Bytes that may wait, whatever their number: one publication is always taken, more only up to this.
pub(super) const QUEUE_BYTES: usize = 16 << 20;

/// Bytes that may be unacknowledged, whatever their number: the library keeps each publication until its PUBACK, and
/// 64 of the largest would be more than a gateway is meant to hold.
const IN_FLIGHT_BYTES: usize = 4 << 20;

/// Packets handed to the library and not yet taken by it. A few keep it busy; the rest waits here, where it is
/// counted.
pub(super) const FEED: usize = 16;

/// See the module.
pub(super) struct Outbox {
    client: AsyncClient,
    waiting: VecDeque<Item>,
    waiting_bytes: usize,
    /// Handed over and not yet taken; at most [`FEED`].
    fed: usize,
    window: Window,
    highest_qos: Qos,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// DISCONNECT is the last in the queue.
    Disconnecting,
    Closed,
}

/// One packet to send.
pub(super) enum Item {
    Publish { publication: Publication, size: usize, wanted: Wanted },
    Subscribe { filters: Vec<Filter>, reply: oneshot::Sender<Vec<ReasonCode>> },
    Unsubscribe { filter: String, reply: oneshot::Sender<Vec<ReasonCode>> },
    Disconnect,
}

/// What whoever publishes wants to know of the PUBACK.
pub(super) enum Wanted {
    Nothing,
    /// All of it.
    Reply(oneshot::Sender<ReasonCode>),
    /// Only a refusal, which then comes as an event.
    Refusal(u64),
}

/// What waits for the acknowledgement of a packet id.
enum Ack {
    Publish {
        size: usize,
        reply: Option<oneshot::Sender<ReasonCode>>,
    },
    /// The payload is shared with the library, which keeps it until the PUBACK as well.
    Noted {
        size: usize,
        note: u64,
        payload: Bytes,
    },
    Filters(oneshot::Sender<Vec<ReasonCode>>),
}

impl Outbox {
    pub(super) fn new(client: AsyncClient, receive_maximum: u16, highest_qos: Qos) -> Self {
        Self {
            client,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            fed: 0,
            window: Window::new(receive_maximum),
            highest_qos,
            phase: Phase::Open,
        }
    }

    /// How many packets may be queued now, and whether one of `size` bytes may.
    pub(super) fn room(&self, size: usize) -> usize {
        if self.waiting_bytes > 0 && self.waiting_bytes + size > QUEUE_BYTES {
            return 0;
        }
        QUEUE.saturating_sub(self.waiting.len())
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Queues all of `items` or none, and hands over what can go.
    pub(super) fn push(&mut self, items: impl ExactSizeIterator<Item = Item>) -> Result<(), PublishError> {
        if self.phase != Phase::Open {
            return Err(PublishError::Closed);
        }
        let (count, before) = (items.len(), self.waiting.len());
        self.waiting.extend(items);
        let size: usize = self.waiting.range(before..).map(Item::size).sum();
        if self.waiting_bytes > 0 && self.waiting_bytes + size > QUEUE_BYTES || before + count > QUEUE {
            self.waiting.truncate(before);
            return Err(PublishError::Full);
        }
        self.waiting_bytes += size;
        self.feed();
        Ok(())
    }

    /// Queues DISCONNECT behind everything else; nothing is taken after it. False when that was done before.
    pub(super) fn disconnect(&mut self) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        self.phase = Phase::Disconnecting;
        self.waiting.push_back(Item::Disconnect);
        self.feed();
        true
    }

    /// The library has taken a packet. True when that made room.
    pub(super) fn taken(&mut self) -> bool {
        self.fed = self.fed.saturating_sub(1);
        self.feed()
    }

    /// PUBACK. True when that made room; and a refusal, when somebody wants to know of it.
    pub(super) fn publish_acked(&mut self, id: u16, reason: ReasonCode) -> (bool, Option<Refused>) {
        let refused = match self.window.release(id) {
            Some(Ack::Noted { note, payload, .. }) if reason.is_error() => {
                Some(Refused { note, payload, reason })
            }
            Some(Ack::Publish { reply: Some(reply), .. }) => {
                // Who asked may be gone; then nobody needs to know.
                let _ = reply.send(reason);
                None
            }
            _ => None,
        };
        (self.feed(), refused)
    }

    /// SUBACK or UNSUBACK. True when that made room.
    pub(super) fn filters_acked(&mut self, id: u16, reasons: Vec<ReasonCode>) -> bool {
        if let Some(Ack::Filters(reply)) = self.window.release(id) {
            let _ = reply.send(reasons);
        }
        self.feed()
    }

    /// All publications that are left at the end of the connection, the oldest first: those that were handed over, by
    /// packet id, and those that wait.
    pub(super) fn take_publications(&mut self, mut handed_over: Vec<(u16, Publication)>) -> Vec<Publication> {
        // Without an id they have not been taken yet, and come in order. (A QoS 0 one may change its place.)
        handed_over.sort_by_key(|(id, _)| if *id == 0 { usize::MAX } else { self.window.age(*id) });
        let waiting = std::mem::take(&mut self.waiting).into_iter().filter_map(|item| match item {
            Item::Publish { publication, .. } => Some(publication),
            _ => None,
        });
        handed_over.into_iter().map(|(_, publication)| publication).chain(waiting).collect()
    }

    /// Nothing more will be sent or answered: who waits learns it by the end of its channel.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closed;
        self.waiting = VecDeque::new();
        self.waiting_bytes = 0;
        self.window.clear();
    }

    /// Hands over what can go, in order. True when that made room.
    fn feed(&mut self) -> bool {
        let before = self.waiting.len();
        while self.fed < FEED && self.waiting.front().is_some_and(|item| !self.has_to_wait(item)) {
            let Some(item) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= item.size();
            self.fed += 1;
            self.hand_over(item);
        }
        self.waiting.len() < before
    }

    /// Whether its packet id is still in use.
    fn has_to_wait(&self, item: &Item) -> bool {
        match item {
            Item::Publish { publication, size, .. } => {
                self.qos(publication) == Qos::AtLeastOnce && !self.window.has_room(*size)
            }
            Item::Subscribe { .. } | Item::Unsubscribe { .. } => !self.window.has_room(0),
            Item::Disconnect => false,
        }
    }

    fn qos(&self, publication: &Publication) -> Qos {
        publication.qos.min(self.highest_qos)
    }

    fn hand_over(&mut self, item: Item) {
        let handed = match item {
            Item::Publish { publication, size, wanted } => {
                let qos = self.qos(&publication);
                match (qos, wanted) {
                    (Qos::AtLeastOnce, Wanted::Nothing) => {
                        self.window.occupy(Ack::Publish { size, reply: None });
                    }
                    (Qos::AtLeastOnce, Wanted::Reply(reply)) => {
                        self.window.occupy(Ack::Publish { size, reply: Some(reply) });
                    }
                    (Qos::AtLeastOnce, Wanted::Refusal(note)) => {
                        self.window.occupy(Ack::Noted { size, note, payload: publication.payload.clone() });
                    }
                    // A broker with QoS 0 only has no PUBACK: written is all that can be known.
                    (Qos::AtMostOnce, Wanted::Reply(reply)) => drop(reply.send(ReasonCode::SUCCESS)),
                    (Qos::AtMostOnce, Wanted::Nothing | Wanted::Refusal(_)) => {}
                }
                let Publication { topic, payload, retain, user_properties, .. } = publication;
                let qos = packet::wire_qos(qos);
                if user_properties.is_empty() {
                    self.client.try_publish(topic, qos, retain, payload)
                } else {
                    let properties = packet::wire_properties(user_properties);
                    self.client.try_publish_with_properties(topic, qos, retain, payload, properties)
                }
            }
            Item::Subscribe { filters, reply } => {
                self.window.occupy(Ack::Filters(reply));
                self.client.try_subscribe_many(packet::wire_filters(filters, self.highest_qos))
            }
            Item::Unsubscribe { filter, reply } => {
                self.window.occupy(Ack::Filters(reply));
                self.client.try_unsubscribe(filter)
            }
            Item::Disconnect => self.client.try_disconnect(),
        };
        // Its queue has room for FEED packets and our checks are no weaker than its own; so this happens only when
        // the event loop is gone, and then all of this is about to be closed.
        if handed.is_err() {
            tracing::debug!("the event loop took no packet: the connection is closing");
        }
    }
}

impl Item {
    pub(super) fn publish(publication: Publication, wanted: Wanted) -> Self {
        let size = packet::publish_size(&publication);
        Self::Publish { publication, size, wanted }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Publish { size, .. } => *size,
            Self::Subscribe { filters, .. } => packet::subscribe_size(filters),
            Self::Unsubscribe { filter, .. } => packet::unsubscribe_size(filter),
            Self::Disconnect => 0,
        }
    }
}

/// The library's packet ids, numbered along: 1 to `max`, then 1 again.
struct Window {
    last: u16,
    /// By packet id; 0 is none.
    slots: Vec<Option<Ack>>,
    /// Bytes of the publications in it.
    bytes: usize,
}

impl Window {
    fn new(max: u16) -> Self {
        Self { last: 0, slots: (0..=max).map(|_| None).collect(), bytes: 0 }
    }

    fn next(&self) -> usize {
        usize::from(self.last) + 1
    }

    /// Orders the ids in use, the oldest first: they go round, and the last one was given out last.
    fn age(&self, id: u16) -> usize {
        let max = self.slots.len() - 1;
        (usize::from(id) + max - self.next()) % max
    }

    fn has_room(&self, size: usize) -> bool {
        self.slots[self.next()].is_none() && (self.bytes == 0 || self.bytes + size <= IN_FLIGHT_BYTES)
    }

    fn occupy(&mut self, ack: Ack) {
        let next = self.next();
        self.bytes += ack.size();
        self.slots[next] = Some(ack);
        self.last = if next + 1 == self.slots.len() { 0 } else { self.last + 1 };
    }

    fn release(&mut self, id: u16) -> Option<Ack> {
        let ack = self.slots.get_mut(usize::from(id))?.take()?;
        self.bytes -= ack.size();
        Some(ack)
    }

    fn clear(&mut self) {
        for slot in &mut self.slots {
            *slot = None;
        }
        self.bytes = 0;
    }
}

impl Ack {
    fn size(&self) -> usize {
        match self {
            Self::Publish { size, .. } | Self::Noted { size, .. } => *size,
            Self::Filters(_) => 0,
        }
    }
}
