//! What waits because the connection's own queue is full. While anything waits, nothing is taken from the backends;
//! what still comes is errors for clients, which is why the bound is high and nothing large.

use std::collections::VecDeque;

use bytes::Bytes;
use mcp_mqtt_transport::{
    mqtt::{FilterReply, PublishError, PublishReply},
    topic::ClientId,
};

use crate::backend::SessionId;

/// Something for the broker.
#[derive(Debug)]
pub(super) enum Outgoing {
    ToClient { client: ClientId, payload: Bytes },
    ToAll { payload: Bytes },
    Subscribe { session: SessionId, client: ClientId },
    Unsubscribe { clients: Vec<ClientId> },
    Presence { online: bool },
}

/// What came of sending it, when somebody has to wait for an answer.
#[derive(Debug)]
pub(super) enum Sent {
    /// So much payload went.
    Bytes(usize),
    /// It has not gone yet.
    Waits,
    Subscribing(SessionId, FilterReply),
    Unsubscribing(FilterReply),
    Announcing(bool, PublishReply),
}

/// The queue; see the module.
#[derive(Debug)]
pub(super) struct Outbox {
    waiting: VecDeque<Outgoing>,
    limit: usize,
}

/// It was not sent and will not be.
#[derive(Debug)]
pub(super) enum Unsent {
    /// Too much waits.
    Overflow(Outgoing),
    /// The connection would not take it.
    Refused(Outgoing, PublishError),
}

impl Outbox {
    pub(super) fn new(limit: usize) -> Self {
        Self { waiting: VecDeque::new(), limit }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What waits.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = Outgoing> {
        self.waiting.into_iter()
    }

    /// Sends it, or keeps it for later behind what waits already.
    pub(super) fn send(
        &mut self,
        outgoing: Outgoing,
        transmit: impl FnOnce(&Outgoing) -> Result<Sent, PublishError>,
    ) -> Result<Sent, Unsent> {
        if self.waiting.is_empty() {
            match transmit(&outgoing) {
                Err(PublishError::Full) => {}
                Err(error) => return Err(Unsent::Refused(outgoing, error)),
                Ok(sent) => return Ok(sent),
            }
        }
        if self.waiting.len() >= self.limit {
            return Err(Unsent::Overflow(outgoing));
        }
        self.waiting.push_back(outgoing);
        Ok(Sent::Waits)
    }

    /// Sends the first that waits; nothing when none does or there is still no room.
    pub(super) fn retry(
        &mut self,
        transmit: impl FnOnce(&Outgoing) -> Result<Sent, PublishError>,
    ) -> Option<Result<Sent, Unsent>> {
        let outgoing = self.waiting.pop_front()?;
        match transmit(&outgoing) {
            Ok(sent) => Some(Ok(sent)),
            Err(PublishError::Full) => {
                self.waiting.push_front(outgoing);
                None
            }
            Err(error) => Some(Err(Unsent::Refused(outgoing, error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_all(text: &'static str) -> Outgoing {
        Outgoing::ToAll { payload: Bytes::from_static(text.as_bytes()) }
    }

    fn text(outgoing: &Outgoing) -> String {
        match outgoing {
            Outgoing::ToAll { payload } => String::from_utf8_lossy(payload).into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_does_not_fit_waits_in_order_and_the_bound_holds() {
        let mut outbox = Outbox::new(2);
        let mut sent = Vec::new();
        assert!(
            outbox
                .send(to_all("a"), |o| {
                    sent.push(text(o));
                    Ok(Sent::Waits)
                })
                .is_ok()
        );
        assert!(outbox.send(to_all("b"), |_| Err(PublishError::Full)).is_ok());
        assert!(outbox.send(to_all("c"), |_| panic!("not before b")).is_ok());
        assert!(matches!(outbox.send(to_all("d"), |_| panic!()), Err(Unsent::Overflow(_))));
        assert!(outbox.retry(|_| Err(PublishError::Full)).is_none() && !outbox.is_empty());
        while outbox
            .retry(|o| {
                sent.push(text(o));
                Ok(Sent::Waits)
            })
            .is_some()
        {}
        assert_eq!(sent, ["a", "b", "c"]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_the_connection_refuses_does_not_stay() {
        let mut outbox = Outbox::new(2);
        let refused = outbox.send(to_all("a"), |_| Err(PublishError::Invalid("no")));
        assert!(matches!(refused, Err(Unsent::Refused(..))) && outbox.is_empty());
    }
}
