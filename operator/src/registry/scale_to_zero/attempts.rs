//! What is asked of a broker until it comes to something: less and less often.

use std::time::{Duration, Instant};

use mcp_mqtt_transport::backoff::Backoff;

/// First and longest wait before a broker is asked again for what it did not allow: whoever mends its ACL sees that it is
/// mended while still at it, and a thousand services ask 33 times a second.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Between two requests, the first of which came to something.
const AGAIN: Duration = Duration::from_millis(500);

/// The waits before what a broker refused is asked for again.
pub(in crate::registry) fn after_refusals() -> Backoff {
    Backoff::new(FIRST, LONGEST)
}

/// See the module.
#[derive(Debug)]
pub(super) struct Attempts {
    next: Option<Instant>,
    pause: Backoff,
    /// Why the broker refused the last one.
    refused: Option<String>,
}

impl Attempts {
    pub(super) fn new() -> Self {
        Self { next: None, pause: after_refusals(), refused: None }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    /// Another one.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = Some(now + self.pause.wait());
    }

    /// It came to something.
    pub(super) fn worked(&mut self, now: Instant) {
        self.next = self.next.map(|next| next.min(now + AGAIN));
        self.pause.reset();
        self.refused = None;
    }

    /// It came to nothing, by no refusal of the broker's.
    pub(super) fn failed(&mut self) {
        self.pause.reset();
    }

    pub(super) fn refuse(&mut self, why: String) {
        self.refused = Some(why);
    }

    /// Why the broker refused the last one, on this connection or on an earlier one.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// On a new connection it is asked at once.
    pub(super) fn begin_anew(&mut self) {
        self.next = None;
        self.pause.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_grow_to_half_a_minute_until_one_comes_to_something_or_the_connection_is_another() {
        let (mut attempts, start) = (Attempts::new(), Instant::now());
        let mut now = start;
        let mut count = 0;
        while now < start + Duration::from_mins(10) {
            if attempts.is_due(now) {
                attempts.begin(now);
                attempts.refuse("not authorized".to_owned());
                count += 1;
            }
            now += Duration::from_millis(250);
        }
        assert!((20..50).contains(&count), "{count} in ten minutes");
        assert_eq!(attempts.refused(), Some("not authorized"));
        attempts.begin_anew();
        assert!(attempts.is_due(now) && attempts.refused().is_some(), "nothing else was heard");
        attempts.begin(now);
        attempts.worked(now);
        assert!(!attempts.is_due(now) && attempts.is_due(now + AGAIN));
        assert_eq!(attempts.refused(), None);
    }
}
