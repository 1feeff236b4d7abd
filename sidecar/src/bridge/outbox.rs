//! What waits because the connection's own queue is full, or because the connection is over and its end not yet told:
//! then it goes out on another one.
//!
//! While anything waits, nothing is taken from the backends of the connection's sessions; what still comes for these is
//! errors, which is why their bound is high and nothing large. What is not owed has a bound of its own. So has what goes
//! to all clients: it may come from the backends of other connections' sessions, which go on, and may be large.

use std::collections::VecDeque;

use bytes::Bytes;
use mcp_mqtt_transport::{
    mqtt::{FilterReply, PublishError, PublishReply},
    topic::ClientId,
};

use super::broadcast;
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
    /// Of `waiting`, how many are owed, and how many may be.
    owed: usize,
    limit: usize,
    /// Of `waiting`, how many are not owed.
    unowed: usize,
    /// Of `waiting`, the bytes of what goes to all clients.
    to_all_bytes: usize,
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
        Self { waiting: VecDeque::new(), owed: 0, limit, unowed: 0, to_all_bytes: 0, overflows: false }
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
                Err(error) if has_to_wait(&error) => {}
                Err(error) => return Err(Unsent::Refused(outgoing, error)),
                Ok(sent) => return Ok(sent),
            }
        }
        if !self.has_room(&outgoing) {
            let first = !std::mem::replace(&mut self.overflows, true);
            return Err(Unsent::Overflow { outgoing, first });
        }
        self.count_in(&outgoing);
        self.waiting.push_back(outgoing);
        Ok(Sent::Waits)
    }

    fn has_room(&self, outgoing: &Outgoing) -> bool {
        match outgoing {
            // One is always taken, whatever its size.
            Outgoing::ToAll { payload } => {
                self.to_all_bytes == 0 || self.to_all_bytes + payload.len() <= broadcast::MAX_BYTES
            }
            Outgoing::ToClient { owed: false, .. } => self.unowed < UNOWED,
            _ => self.owed < self.limit,
        }
    }

    fn count_in(&mut self, outgoing: &Outgoing) {
        match outgoing {
            Outgoing::ToAll { payload } => self.to_all_bytes += payload.len(),
            Outgoing::ToClient { owed: false, .. } => self.unowed += 1,
            _ => self.owed += 1,
        }
    }

    fn count_out(&mut self, outgoing: &Outgoing) {
        match outgoing {
            Outgoing::ToAll { payload } => self.to_all_bytes -= payload.len(),
            Outgoing::ToClient { owed: false, .. } => self.unowed -= 1,
            _ => self.owed -= 1,
        }
    }

    /// Sends the first that waits; nothing when none does or it still cannot go.
    pub(super) fn retry(
        &mut self,
        transmit: impl FnOnce(&Outgoing) -> Result<Sent, PublishError>,
    ) -> Option<Result<Sent, Unsent>> {
        let sent = transmit(self.waiting.front()?);
        if sent.as_ref().is_err_and(has_to_wait) {
            return None;
        }
        let outgoing = self.waiting.pop_front()?;
        self.count_out(&outgoing);
        self.overflows &= !self.waiting.is_empty();
        Some(sent.map_err(|error| Unsent::Refused(outgoing, error)))
    }
}

/// On a connection that is over, until its end is told: then all of it is handed on.
fn has_to_wait(error: &PublishError) -> bool {
    matches!(error, PublishError::Full | PublishError::Closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_client(text: &'static str) -> Outgoing {
        let payload = Bytes::from_static(text.as_bytes());
        Outgoing::ToClient { client: ClientId::new("c").unwrap(), payload, owed: true }
    }

    fn to_all(bytes: usize) -> Outgoing {
        Outgoing::ToAll { payload: Bytes::from(vec![b'x'; bytes]) }
    }

    fn text(outgoing: &Outgoing) -> String {
        match outgoing {
            Outgoing::ToClient { payload, .. } => String::from_utf8_lossy(payload).into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_does_not_fit_waits_in_order_and_the_bound_holds() {
        let mut outbox = Outbox::new(2);
        let mut sent = Vec::new();
        assert!(
            outbox
                .send(to_client("a"), |o| {
                    sent.push(text(o));
                    Ok(Sent::Waits)
                })
                .is_ok()
        );
        assert!(outbox.send(to_client("b"), |_| Err(PublishError::Full)).is_ok());
        assert!(outbox.send(to_client("c"), |_| panic!("not before b")).is_ok());
        assert!(matches!(
            outbox.send(to_client("d"), |_| panic!()),
            Err(Unsent::Overflow { first: true, .. })
        ));
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
        let refused = outbox.send(to_client("a"), |_| Err(PublishError::Invalid("no")));
        assert!(matches!(refused, Err(Unsent::Refused(..))) && outbox.is_empty());
    }
    #[test]
    fn what_a_connection_that_is_over_does_not_take_stays_to_be_handed_on() {
        let mut outbox = Outbox::new(3);
        assert!(matches!(outbox.send(to_client("a"), |_| Err(PublishError::Closed)), Ok(Sent::Waits)));
        assert!(matches!(outbox.send(to_client("b"), |_| panic!("not before a")), Ok(Sent::Waits)));
        assert!(outbox.retry(|_| Err(PublishError::Closed)).is_none() && !outbox.is_empty());
        assert!(outbox.send(to_client("c"), |_| panic!("not before a")).is_ok());
        let beyond = outbox.send(to_client("d"), |_| panic!("not before a"));
        assert!(matches!(beyond, Err(Unsent::Overflow { first: true, .. })), "the bound holds there, too");
        let waiting: Vec<_> = outbox.into_waiting().map(|outgoing| text(&outgoing)).collect();
        assert_eq!(waiting, ["a", "b", "c"]);
    }

    #[test]
    fn what_goes_to_all_is_bounded_by_its_bytes_and_takes_no_place_of_what_is_owed() {
        const HALF: usize = broadcast::MAX_BYTES / 2;
        let full = |_: &Outgoing| Err(PublishError::Full);
        let mut outbox = Outbox::new(2);
        assert!(outbox.send(to_all(HALF), full).is_ok() && outbox.send(to_all(HALF), full).is_ok());
        let beyond = outbox.send(to_all(1), full);
        assert!(matches!(beyond, Err(Unsent::Overflow { outgoing: Outgoing::ToAll { .. }, first: true })));
        assert!(outbox.send(to_client("a"), full).is_ok() && outbox.send(to_client("b"), full).is_ok());
        assert!(outbox.send(to_client("c"), full).is_err());
        // One that went makes room for as much.
        assert!(outbox.retry(|_| Ok(Sent::Waits)).is_some());
        assert!(outbox.send(to_all(HALF), full).is_ok() && outbox.send(to_all(1), full).is_err());
        while outbox.retry(|_| Ok(Sent::Waits)).is_some() {}
        // A single one may be larger than all of them.
        assert!(outbox.send(to_all(2 * broadcast::MAX_BYTES), full).is_ok());
        assert!(outbox.send(to_all(1), full).is_err());
    }
}
