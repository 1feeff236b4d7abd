//! Reconnect: how long to wait between the connections of one client id.

use std::time::{Duration, Instant};

use super::CloseReason;
use crate::backoff::Backoff;

/// Another client took our client id over, and connects again as we do: a longer wait lets both be seen.
const TAKEN_OVER_WAIT: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one: the wait after it is the first one.
const STABLE: Duration = Duration::from_secs(10);
/// So many connections that the broker closed without a word, one soon after the other, are a take-over loop.
const TAKE_OVER_LOOP: u32 = 3;

/// See the module.
#[derive(Debug, Clone)]
pub struct Reconnect {
    backoff: Backoff,
    wordless_closes: u32,
}

impl Reconnect {
    /// Waits double from the first to the longest one.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { backoff: Backoff::new(first, longest), wordless_closes: 0 }
    }

    /// How long to wait before the next attempt.
    pub fn wait(&mut self) -> Duration {
        self.backoff.wait()
    }

    /// The connection, which stood since then, is lost. Whether another client seems to use the client id.
    pub fn lost(&mut self, why: &CloseReason, since: Instant) -> bool {
        let stable = since.elapsed() >= STABLE;
        if stable {
            self.backoff.reset();
        }
        self.wordless_closes =
            if stable || *why != CloseReason::ClosedByBroker { 0 } else { self.wordless_closes + 1 };
        let taken_over = *why == CloseReason::SessionTakenOver || self.wordless_closes >= TAKE_OVER_LOOP;
        if taken_over {
            self.backoff.at_least(TAKEN_OVER_WAIT);
        }
        taken_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);

    fn reconnect() -> Reconnect {
        Reconnect::new(FIRST, Duration::from_secs(10))
    }

    #[test]
    fn a_connection_that_lasts_a_moment_does_not_shorten_the_wait() {
        let (mut reconnect, why) = (reconnect(), CloseReason::Abandoned);
        for _ in 0..5 {
            assert!(!reconnect.lost(&why, Instant::now()));
            reconnect.wait();
        }
        assert!(reconnect.wait() > FIRST, "it would connect ten times a second for ever");
        let long_ago = Instant::now().checked_sub(STABLE).unwrap();
        assert!(!reconnect.lost(&why, long_ago));
        assert!(reconnect.wait() <= FIRST);
    }

    #[test]
    fn two_clients_of_one_id_take_their_time() {
        let mut told = reconnect();
        assert!(told.lost(&CloseReason::SessionTakenOver, Instant::now()));
        assert!(told.wait() >= TAKEN_OVER_WAIT / 2);
        // A broker that says nothing of the reason.
        let mut wordless = reconnect();
        let lost = |reconnect: &mut Reconnect| reconnect.lost(&CloseReason::ClosedByBroker, Instant::now());
        assert_eq!([0; 3].map(|_| lost(&mut wordless)), [false, false, true]);
        assert!(wordless.wait() >= TAKEN_OVER_WAIT / 2);
    }
}
