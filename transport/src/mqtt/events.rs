//! What arrives.

use super::{CloseReason, Received};

/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// A message arrived.
    Received(Received),
    /// The connection is over; nothing follows.
    Closed(CloseReason),
}

/// The receiving end of a connection's events. Bounded by count and by bytes: when nobody takes them, reading
/// from the broker stops.
#[derive(Debug)]
pub struct Events {}

impl Events {
    /// The next event; none after [`Event::Closed`].
    pub async fn recv(&mut self) -> Option<Event> {
        todo!()
    }

    /// The next event, when one waits.
    pub fn try_recv(&mut self) -> Option<Event> {
        todo!()
    }
}
