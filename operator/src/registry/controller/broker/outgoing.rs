//! What a broker is to get, in order, as soon as it takes it.

use std::collections::VecDeque;

use mcp_mqtt_transport::mqtt::{Ack, Publication, Publisher};

use crate::registry::pending::{BYTES_IN_ALL, IN_ALL};

/// What may wait for a broker that takes nothing at present: an answer, a line of the journal and an acknowledgement for
/// all that can be held at one broker, which is half of all.
const WAITING: usize = 3 * (IN_ALL / 2);
/// Bytes that may wait: those lines, and as much again.
const WAITING_BYTES: usize = BYTES_IN_ALL;

pub(super) enum Item {
    Publication(Publication),
    /// For a message of which everything before it was said.
    Ack(Ack),
}

/// See the module.
#[derive(Default)]
pub(super) struct Outgoing {
    items: VecDeque<Item>,
    bytes: usize,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Behind everything else. How many publications, of those that have waited longest, had to go for it.
    pub(super) fn push(&mut self, item: Item) -> usize {
        self.bytes += item.bytes();
        self.items.push_back(item);
        let mut dropped = 0;
        while self.items.len() > WAITING || self.bytes > WAITING_BYTES {
            let first = self.items.iter().position(|it| matches!(it, Item::Publication(_)));
            let Some(item) = first.and_then(|index| self.items.remove(index)) else { break };
            self.bytes -= item.bytes();
            dropped += 1;
        }
        dropped
    }

    pub(super) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= item.bytes();
        Some(item)
    }

    /// It could not be sent: it stays the first.
    pub(super) fn put_back(&mut self, publication: Publication) {
        let item = Item::Publication(publication);
        self.bytes += item.bytes();
        self.items.push_front(item);
    }

    /// An acknowledgement is of its connection; on the next, the broker delivers the message again.
    pub(super) fn forget_acks(&mut self) {
        self.items.retain(|item| matches!(item, Item::Publication(_)));
    }
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Publication(publication) => Publisher::packet_size(publication),
            Self::Ack(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use mcp_mqtt_transport::mqtt::Qos;

    use super::*;

    fn publication(number: usize, bytes: usize) -> Publication {
        Publication::new(format!("a/{number}"), vec![b' '; bytes], Qos::AtLeastOnce)
    }

    #[test]
    fn of_what_a_broker_does_not_take_the_last_is_kept_within_bounds() {
        for (size, expected) in [(0, WAITING), (64 << 10, WAITING_BYTES / (64 << 10) - 1)] {
            let mut outgoing = Outgoing::default();
            let dropped: usize = (0..WAITING + 10)
                .map(|number| outgoing.push(Item::Publication(publication(number, size))))
                .sum();
            assert_eq!((outgoing.items.len(), dropped), (expected, WAITING + 10 - expected));
            assert!(outgoing.bytes <= WAITING_BYTES);
            let Some(Item::Publication(first)) = outgoing.pop() else { panic!("it is empty") };
            assert_eq!(first.topic, format!("a/{dropped}"));
            outgoing.put_back(first);
            while outgoing.pop().is_some() {}
            assert_eq!(outgoing.bytes, 0);
        }
    }
}
