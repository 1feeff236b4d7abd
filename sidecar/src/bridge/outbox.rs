//! What waits because the connection's own queue is full. While anything waits, nothing is taken from the backends;
//! what still comes is errors for clients, which is why the bound is high and nothing large. What is not owed has a
//! bound of its own.

use std::collections::VecDeque;

use bytes::Bytes;
use mcp_mqtt_transport::{
    mqtt::{FilterReply, PublishError, PublishReply},
    topic::ClientId,
};

use crate::backend::SessionId;

/// Answers that are not owed (see [`Action::ToClient`](super::action::Action::ToClient)) and may wait: a burst of many
/// clients. Each is some 200 bytes and the request's id.
const UNOWED: usize = 4096;

/// Something for the broker.
#[derive(Debug)]
pub(super) enum Outgoing {
    ToClient { client: ClientId, payload: Bytes, owed: bool },
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
    /// Of `waiting`, how many are not owed.
    unowed: usize,
    /// Of the others.
    limit: usize,
    /// Something was dropped since it was last empty.
    overflows: bool,
}

/// It was not sent and will not be.
#[derive(Debug)]
pub(super) enum Unsent {
    /// Too much waits; whether it is the first for which there is no room since nothing waited.
    Overflow { outgoing: Outgoing, first: bool },
    /// The connection would not take it.
    Refused(Outgoing, PublishError),
}

impl Outbox {
    pub(super) fn new(limit: usize) -> Self {
        Self { waiting: VecDeque::new(), unowed: 0, limit, overflows: false }
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
        let is_full = if outgoing.is_owed() {
            self.waiting.len() - self.unowed >= self.limit
        } else {
            self.unowed >= UNOWED
        };
        if is_full {
            let first = !std::mem::replace(&mut self.overflows, true);
            return Err(Unsent::Overflow { outgoing, first });
        }
        self.unowed += usize::from(!outgoing.is_owed());
        self.waiting.push_back(outgoing);
        Ok(Sent::Waits)
    }

    /// Sends the first that waits; nothing when none does or there is still no room.
    pub(super) fn retry(
        &mut self,
        transmit: impl FnOnce(&Outgoing) -> Result<Sent, PublishError>,
    ) -> Option<Result<Sent, Unsent>> {
        let sent = transmit(self.waiting.front()?);
        if matches!(sent, Err(PublishError::Full)) {
            return None;
        }
        let outgoing = self.waiting.pop_front()?;
        self.unowed -= usize::from(!outgoing.is_owed());
        self.overflows &= !self.waiting.is_empty();
        Some(sent.map_err(|error| Unsent::Refused(outgoing, error)))
    }
}

impl Outgoing {
    fn is_owed(&self) -> bool {
        !matches!(self, Self::ToClient { owed: false, .. })
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
        assert!(matches!(outbox.send(to_all("d"), |_| panic!()), Err(Unsent::Overflow { first: true, .. })));
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
    fn what_is_not_owed_takes_no_place_of_what_is_and_the_first_that_is_dropped_is_told() {
        let to_client = |owed| {
            let (client, payload) = (ClientId::new("c").unwrap(), Bytes::from_static(b"m"));
            Outgoing::ToClient { client, payload, owed }
        };
        let mut outbox = Outbox::new(2);
        let mut send = |owed| match outbox.send(to_client(owed), |_| Err(PublishError::Full)) {
            Ok(_) => None,
            Err(Unsent::Overflow { first, .. }) => Some(first),
            Err(other) => panic!("{other:?}"),
        };
        assert!((0..UNOWED).all(|_| send(false).is_none()));
        assert_eq!([send(false), send(false)], [Some(true), Some(false)]);
        assert_eq!([send(true), send(true), send(true)], [None, None, Some(false)]);
        while outbox.retry(|_| Ok(Sent::Waits)).is_some() {}
        let mut send = |owed| outbox.send(to_client(owed), |_| Err(PublishError::Full)).is_ok();
        assert!((0..UNOWED).all(|_| send(false)) && send(true) && send(true) && !send(true));
        let again = outbox.send(to_client(true), |_| panic!("others wait"));
        assert!(matches!(again, Err(Unsent::Overflow { first: false, .. })));
    }

    #[test]
    fn what_the_connection_refuses_does_not_stay() {
        let mut outbox = Outbox::new(2);
        let refused = outbox.send(to_all("a"), |_| Err(PublishError::Invalid("no")));
        assert!(matches!(refused, Err(Unsent::Refused(..))) && outbox.is_empty());
    }
}
