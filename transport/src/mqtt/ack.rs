//! Acknowledgements by hand: what was received counts as received only once it is taken care of.

use std::{fmt, sync::Arc};

use super::publisher::Link;

/// The PUBACK of a message that came with [`ConnectOptions::manual_acks`](super::ConnectOptions::manual_acks). Unless it
/// is sent, the broker delivers the message again on the next connection of the same session (MQTT 5, section 4.4); and
/// it delivers no more while as many are missing as it lets be in flight.
pub struct Ack {
    id: u16,
    link: Arc<Link>,
}

impl Ack {
    pub(super) fn new(id: u16, link: Arc<Link>) -> Self {
        Self { id, link }
    }

    /// Sends it, behind all that was published on its connection before: a broker that has the one has the other. When
    /// the connection is over, nothing is sent.
    pub fn send(self) {
        self.link.acknowledge(self.id);
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ack").field(&self.id).finish()
    }
}
