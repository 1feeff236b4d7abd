//! Notifications to all clients: one for the instance, however many backend sessions say it. Without IO.
//!
//! What is said waits for [`MERGE_WINDOW`] and stands for all that say the same meanwhile. So N sessions that tell of
//! one change make one broadcast, and every change is followed by a broadcast that comes after it.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

/// How long a notification waits for others that say the same. Sessions of one server tell of a change within
/// milliseconds of each other; a client does not notice the wait.
pub const MERGE_WINDOW: Duration = Duration::from_millis(50);
/// Different notifications that may wait; one more goes out at once. Only `resources/updated` has many forms.
const MAX_WAITING: usize = 1024;
/// And their bytes: a server may write much into one, and there are as many servers as sessions. As many may wait once
/// more for the connection, where it does not keep up.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// What waits to be broadcast.
#[derive(Debug, Default)]
pub struct Broadcasts {
    /// In the order of their due times, as all wait equally long.
    due: VecDeque<(Instant, Bytes)>,
    waiting: HashSet<Bytes>,
    /// Of all that wait.
    bytes: usize,
}

/// What became of a notification.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It waits.
    Waits,
    /// Another one that waits says the same.
    Merged,
    /// Too many wait: publish it now.
    Now(Bytes),
}

impl Broadcasts {
    /// A backend session said this.
    pub fn say(&mut self, payload: Bytes, now: Instant) -> Said {
        if self.waiting.contains(&payload) {
            return Said::Merged;
        }
        if self.due.len() >= MAX_WAITING || self.bytes + payload.len() > MAX_BYTES {
            return Said::Now(payload);
        }
        self.bytes += payload.len();
        self.waiting.insert(payload.clone());
        self.due.push_back((now + MERGE_WINDOW, payload));
        Said::Waits
    }

    /// When to call [`Broadcasts::take_due`].
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.front().map(|(due, _)| *due)
    }

    /// The next one to publish, when its time has come.
    pub fn take_due(&mut self, now: Instant) -> Option<Bytes> {
        if self.next_deadline()? > now {
            return None;
        }
        let (_, payload) = self.due.pop_front()?;
        self.waiting.remove(&payload);
        self.bytes -= payload.len();
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOLS: Bytes = Bytes::from_static(b"tools/list_changed");
    const PROMPTS: Bytes = Bytes::from_static(b"prompts/list_changed");

    #[test]
    fn what_many_sessions_say_at_once_is_broadcast_once() {
        let start = Instant::now();
        let mut broadcasts = Broadcasts::default();
        assert_eq!(broadcasts.say(TOOLS, start), Said::Waits);
        for session in 1..100 {
            assert_eq!(broadcasts.say(TOOLS, start + Duration::from_micros(session)), Said::Merged);
        }
        assert_eq!(broadcasts.say(PROMPTS, start + Duration::from_millis(1)), Said::Waits, "another change");
        assert_eq!(broadcasts.take_due(start), None);
        assert_eq!(broadcasts.next_deadline(), Some(start + MERGE_WINDOW));
        assert_eq!(broadcasts.take_due(start + MERGE_WINDOW), Some(TOOLS));
        assert_eq!(broadcasts.take_due(start + MERGE_WINDOW), None, "the other one waits a millisecond more");
        assert_eq!(broadcasts.take_due(start + MERGE_WINDOW + Duration::from_millis(1)), Some(PROMPTS));
        assert_eq!(broadcasts.next_deadline(), None);
    }

    #[test]
    fn a_change_after_the_broadcast_is_broadcast_again() {
        let start = Instant::now();
        let mut broadcasts = Broadcasts::default();
        assert_eq!(broadcasts.say(TOOLS, start), Said::Waits);
        assert_eq!(broadcasts.take_due(start + MERGE_WINDOW), Some(TOOLS));
        assert_eq!(broadcasts.say(TOOLS, start + MERGE_WINDOW), Said::Waits);
        assert_eq!(broadcasts.take_due(start + 2 * MERGE_WINDOW), Some(TOOLS));
    }

    #[test]
    fn beyond_the_bound_nothing_waits_and_nothing_is_lost() {
        let now = Instant::now();
        let mut broadcasts = Broadcasts::default();
        for n in 0..MAX_WAITING {
            assert_eq!(broadcasts.say(Bytes::from(n.to_string()), now), Said::Waits);
        }
        assert_eq!(broadcasts.say(TOOLS, now), Said::Now(TOOLS));
        assert_eq!(broadcasts.say(Bytes::from_static(b"0"), now), Said::Merged);
    }

    #[test]
    fn large_ones_wait_only_as_long_as_all_of_them_are_small_together() {
        let now = Instant::now();
        let mut broadcasts = Broadcasts::default();
        let large = |n: u8| Bytes::from(vec![n; MAX_BYTES / 2]);
        assert_eq!(broadcasts.say(large(1), now), Said::Waits);
        assert_eq!(broadcasts.say(large(2), now), Said::Waits);
        assert_eq!(broadcasts.say(large(3), now), Said::Now(large(3)));
        assert_eq!(broadcasts.say(large(1), now), Said::Merged);
        assert!(broadcasts.take_due(now + MERGE_WINDOW).is_some());
        assert_eq!(broadcasts.say(large(3), now), Said::Waits, "there is room again");
    }
}
