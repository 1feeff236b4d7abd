//! The attempts at one connection: how long to wait before the next, and what its losses look like.

use std::time::{Duration, Instant};

use mcp_mqtt_transport::mqtt::CloseReason;
use tokio::time::sleep;

use crate::{backoff::Backoff, status::reason};

/// First and longest wait between attempts: the pod's start is quick, a broker's restart takes seconds.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Whoever took our client id over will be back: a little peace lets both be seen.
const TAKEN_OVER_WAIT: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one.
const STABLE: Duration = Duration::from_secs(10);
/// So many connections that the broker closed without a word, one soon after the other, are a take-over loop.
const TAKE_OVER_LOOP: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Attempts {
    backoff: Backoff,
    begun: bool,
    connected: bool,
    wordless_closes: u32,
}

impl Attempts {
    /// None yet: the first one does not wait.
    pub(super) fn new() -> Self {
        Self {
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            begun: false,
            connected: false,
            wordless_closes: 0,
        }
    }

    /// Waits until the next one is due.
    pub(super) async fn next(&mut self) {
        if self.begun {
            sleep(self.backoff.wait()).await;
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
        let stable = since.elapsed() >= STABLE;
        if stable {
            self.backoff.reset();
        }
        self.wordless_closes =
            if stable || *why != CloseReason::ClosedByBroker { 0 } else { self.wordless_closes + 1 };
        if *why == CloseReason::SessionTakenOver || self.wordless_closes >= TAKE_OVER_LOOP {
            self.backoff.at_least(TAKEN_OVER_WAIT);
            let message = format!(
                "{why}. The client id is {client_id}: is the same pod running in another cluster with the same cluster \
                 name, or is another MQTT client using this id?"
            );
            return (reason::BROKER_SESSION_TAKEN_OVER, message);
        }
        (reason::BROKER_CONNECTION_LOST, format!("{why}; connecting again"))
    }
}
