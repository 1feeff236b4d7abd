//! The attempts at one connection: how long to wait before the next, and what its losses look like.

use std::time::{Duration, Instant};

use mcp_mqtt_transport::mqtt::{CloseReason, Reconnect};
use tokio::time::sleep;

use crate::status::reason;

/// First and longest wait between attempts: the pod's start is quick, a broker's restart takes seconds.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Attempts {
    reconnect: Reconnect,
    begun: bool,
    connected: bool,
}

impl Attempts {
    /// None yet: the first one does not wait.
    pub(super) fn new() -> Self {
        Self { reconnect: Reconnect::new(FIRST_WAIT, LONGEST_WAIT), begun: false, connected: false }
    }

    /// Waits until the next one is due.
    pub(super) async fn next(&mut self) {
        if self.begun {
            sleep(self.reconnect.wait()).await;
        }
        self.begun = true;
    }

    /// The connection stands; whether it did so before.
    pub(super) fn connected(&mut self) -> bool {
        std::mem::replace(&mut self.connected, true)
    }

    /// The connection of this client id, which stood since then, is lost: a [`reason`], and a sentence.
    pub(super) fn lost(
        &mut self,
        client_id: &str,
        why: &CloseReason,
        since: Instant,
    ) -> (&'static str, String) {
        if self.reconnect.lost(why, since) {
            let message = format!(
                "{why}. The client id is {client_id}: is the same pod running in another cluster with the same cluster \
                 name, or is another MQTT client using this id?"
            );
            return (reason::BROKER_SESSION_TAKEN_OVER, message);
        }
        (reason::BROKER_CONNECTION_LOST, format!("{why}; connecting again"))
    }
}
