//! What waits to be sent, and who waits for an answer.
//!
//! Packet ids go round from 1 to the broker's Receive Maximum, and one is given out only when it is free again: so they
//! cannot collide, and we stay within the Receive Maximum (MQTT 5, section 4.9) without counting.

use std::{collections::VecDeque, mem};

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{
    Error as CodecError,
    v5::{Disconnect, DisconnectReasonCode, PubAck, Subscribe, Unsubscribe},
};
use tokio::sync::oneshot;

use super::{Filter, Publication, PublishError, Qos, ReasonCode, Refused, packet};

/// Publications that may wait: two for each of 512 busy sessions. More is a broker that does not keep up.
pub(super) const QUEUE: usize = 1024;

/// Bytes that may wait, whatever their number: one publication is always taken, more only up to this.
pub(super) const QUEUE_BYTES: usize = 16 << 20;

/// Bytes that may be unacknowledged, whatever their number: each publication is kept until its PUBACK, and 64 of the
/// largest would be more than a gateway is meant to hold.
const IN_FLIGHT_BYTES: usize = 4 << 20;

/// See the module.
pub(super) struct Outbox {
    waiting: VecDeque<Item>,
    waiting_bytes: usize,
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
    Publish {
        publication: Publication,
        size: usize,
        wanted: Wanted,
    },
    Subscribe {
        filters: Vec<Filter>,
        reply: oneshot::Sender<Vec<ReasonCode>>,
    },
    Unsubscribe {
        filters: Vec<String>,
        reply: oneshot::Sender<Vec<ReasonCode>>,
    },
    /// PUBACK, by the broker's packet id.
    Acknowledge(u16),
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
    Publish { publication: Publication, size: usize, wanted: Wanted },
    Filters(oneshot::Sender<Vec<ReasonCode>>),
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Packet,
    /// DISCONNECT: nothing may follow.
    Disconnect,
}

impl Outbox {
    pub(super) fn new(receive_maximum: u16, highest_qos: Qos) -> Self {
        Self {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
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

    /// Queues a packet.
    pub(super) fn push(&mut self, item: Item) -> Result<(), PublishError> {
        if self.phase != Phase::Open {
            return Err(PublishError::Closed);
        }
        let size = item.size();
        if self.room(size) == 0 {
            return Err(PublishError::Full);
        }
        self.waiting.push_back(item);
        self.waiting_bytes += size;
        Ok(())
    }

    /// Queues a PUBACK behind everything else, whatever waits: the broker bounds how many there can be.
    pub(super) fn acknowledge(&mut self, id: u16) {
        if self.phase == Phase::Open {
            self.waiting.push_back(Item::Acknowledge(id));
        }
    }

    /// Queues DISCONNECT behind everything else; nothing is taken after it. False when that was done before.
    pub(super) fn disconnect(&mut self) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        self.phase = Phase::Disconnecting;
        self.waiting.push_back(Item::Disconnect);
        true
    }

    /// PUBACK. A refusal, when somebody wants to know of it.
    pub(super) fn publish_acked(&mut self, id: u16, reason: ReasonCode) -> Option<Refused> {
        let Ack::Publish { publication, wanted, .. } = self.window.release(id)? else { return None };
        match wanted {
            Wanted::Refusal(note) if reason.is_error() => {
                Some(Refused { note, topic: publication.topic, payload: publication.payload, reason })
            }
            Wanted::Reply(reply) => {
                // Who asked may be gone; then nobody needs to know.
                let _ = reply.send(reason);
                None
            }
            Wanted::Nothing | Wanted::Refusal(_) => None,
        }
    }

    /// SUBACK or UNSUBACK.
    pub(super) fn filters_acked(&mut self, id: u16, reasons: Vec<ReasonCode>) {
        if let Some(Ack::Filters(reply)) = self.window.release(id) {
            let _ = reply.send(reasons);
        }
    }

    /// To be called at a steady pace while what the broker sends is read: whether it left something unacknowledged for
    /// so many of these calls.
    pub(super) fn tick(&mut self, patience: u32) -> bool {
        self.window.tick(patience)
    }

    /// Nothing more will be sent or answered: who waits learns it by the end of its channel. All publications that
    /// are left, the oldest first: those that were sent and not acknowledged, and those that wait.
    pub(super) fn close(&mut self) -> Vec<Publication> {
        self.phase = Phase::Closed;
        self.waiting_bytes = 0;
        let sent = self.window.take_oldest_first().into_iter().filter_map(|ack| match ack {
            Ack::Publish { publication, .. } => Some(publication),
            Ack::Filters(_) => None,
        });
        let waiting = mem::take(&mut self.waiting).into_iter().filter_map(|item| match item {
            Item::Publish { publication, .. } => Some(publication),
            _ => None,
        });
        sent.chain(waiting).collect()
    }

    /// Writes the next packet, if there is one that can go.
    pub(super) fn write_next(&mut self, output: &mut BytesMut) -> Option<Result<Written, CodecError>> {
        if self.waiting.front().is_none_or(|item| self.has_to_wait(item)) {
            return None;
        }
        let item = self.waiting.pop_front()?;
        self.waiting_bytes -= item.size();
        Some(self.write(item, output))
    }

    /// Whether its packet id is still in use.
    fn has_to_wait(&self, item: &Item) -> bool {
        match item {
            Item::Publish { publication, size, .. } => {
                self.qos(publication) == Qos::AtLeastOnce && !self.window.has_room(*size)
            }
            Item::Subscribe { .. } | Item::Unsubscribe { .. } => !self.window.has_room(0),
            Item::Acknowledge(_) | Item::Disconnect => false,
        }
    }

    fn qos(&self, publication: &Publication) -> Qos {
        publication.qos.min(self.highest_qos)
    }

    fn write(&mut self, item: Item, output: &mut BytesMut) -> Result<Written, CodecError> {
        match item {
            Item::Publish { publication, size, wanted } => {
                let qos = self.qos(&publication);
                let id = if qos == Qos::AtLeastOnce { self.window.next_id() } else { 0 };
                let publication = packet::write_publish(publication, qos, id, output)?;
                match (qos, wanted) {
                    (Qos::AtLeastOnce, wanted) => {
                        self.window.occupy(Ack::Publish { publication, size, wanted });
                    }
                    // A broker with QoS 0 only has no PUBACK: written is all that can be known.
                    (Qos::AtMostOnce, Wanted::Reply(reply)) => drop(reply.send(ReasonCode::SUCCESS)),
                    (Qos::AtMostOnce, Wanted::Nothing | Wanted::Refusal(_)) => {}
                }
            }
            Item::Subscribe { filters, reply } => {
                let filters = packet::wire_filters(filters, self.highest_qos);
                Subscribe { pkid: self.window.next_id(), filters, properties: None }.write(output)?;
                self.window.occupy(Ack::Filters(reply));
            }
            Item::Unsubscribe { filters, reply } => {
                Unsubscribe { pkid: self.window.next_id(), filters, properties: None }.write(output)?;
                self.window.occupy(Ack::Filters(reply));
            }
            Item::Acknowledge(id) => {
                PubAck::new(id, None).write(output)?;
            }
            Item::Disconnect => {
                Disconnect::new(DisconnectReasonCode::NormalDisconnection).write(output)?;
                return Ok(Written::Disconnect);
            }
        }
        Ok(Written::Packet)
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
            Self::Unsubscribe { filters, .. } => packet::unsubscribe_size(filters),
            Self::Acknowledge(_) | Self::Disconnect => 0,
        }
    }
}

/// The packet ids: 1 to `max`, then 1 again.
struct Window {
    /// The one to be given out next.
    next: u16,
    /// By packet id, less one; with the tick in which it was sent.
    slots: Vec<Option<(Ack, u32)>>,
    /// Counts the times at which it was looked whether something is left unacknowledged.
    tick: u32,
    /// Bytes of the publications in it.
    bytes: usize,
}

impl Window {
    fn new(max: u16) -> Self {
        Self { next: 1, slots: (0..max).map(|_| None).collect(), tick: 0, bytes: 0 }
    }

    fn next_id(&self) -> u16 {
        self.next
    }

    fn has_room(&self, size: usize) -> bool {
        let free = self.slots[usize::from(self.next) - 1].is_none();
        free && (self.bytes == 0 || self.bytes + size <= IN_FLIGHT_BYTES)
    }

    /// Gives out the next id.
    fn occupy(&mut self, ack: Ack) {
        self.bytes += ack.size();
        self.slots[usize::from(self.next) - 1] = Some((ack, self.tick));
        self.next = if usize::from(self.next) == self.slots.len() { 1 } else { self.next + 1 };
    }

    /// Whether something was sent before so many of these ticks, and is not acknowledged.
    fn tick(&mut self, patience: u32) -> bool {
        self.tick = self.tick.wrapping_add(1);
        self.slots.iter().flatten().any(|(_, at)| self.tick.wrapping_sub(*at) > patience)
    }

    fn release(&mut self, id: u16) -> Option<Ack> {
        let (ack, _) = self.slots.get_mut(usize::from(id).checked_sub(1)?)?.take()?;
        self.bytes -= ack.size();
        Some(ack)
    }

    /// Ids go round, so the next one to be given out is the one that was given out longest ago.
    fn take_oldest_first(&mut self) -> Vec<Ack> {
        self.bytes = 0;
        let (new, old) = self.slots.split_at_mut(usize::from(self.next) - 1);
        old.iter_mut().chain(new).filter_map(Option::take).map(|(ack, _)| ack).collect()
    }
}

impl Ack {
    fn size(&self) -> usize {
        match self {
            Self::Publish { size, .. } => *size,
            Self::Filters(_) => 0,
        }
    }
}
