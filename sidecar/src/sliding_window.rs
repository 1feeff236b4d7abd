//! How often something happened within the last minute.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What still counts.
const WINDOW: Duration = Duration::from_mins(1);
/// The window moves on by these: what happened longest ago counts for up to one more of them.
const SLOTS: usize = 12;

/// Counts what happens, and forgets it. Clones count together.
#[derive(Debug, Clone)]
pub struct SlidingWindow(Arc<Mutex<Ring>>);

#[derive(Debug)]
struct Ring {
    begun: Instant,
    /// The slot that is written now, counted from the beginning.
    now: u64,
    counts: [u32; SLOTS],
}

impl SlidingWindow {
    /// Nothing has happened.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Ring { begun: Instant::now(), now: 0, counts: [0; SLOTS] })))
    }

    /// It happened.
    pub fn note(&self) {
        self.at(Instant::now(), |ring| {
            let slot = ring.index();
            ring.counts[slot] = ring.counts[slot].saturating_add(1);
        });
    }

    /// How often it did, within the last minute.
    pub fn count(&self) -> u32 {
        self.at(Instant::now(), |ring| {
            ring.counts.iter().fold(0_u32, |sum, count| sum.saturating_add(*count))
        })
    }

    fn at<T>(&self, now: Instant, use_it: impl FnOnce(&mut Ring) -> T) -> T {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.move_to(now);
        use_it(&mut ring)
    }
}

impl Ring {
    fn move_to(&mut self, now: Instant) {
        let slot = WINDOW.as_millis() / SLOTS as u128;
        let target = u64::try_from(now.saturating_duration_since(self.begun).as_millis() / slot);
        let target = target.unwrap_or(self.now);
        if target.saturating_sub(self.now) >= SLOTS as u64 {
            self.counts = [0; SLOTS];
            self.now = target;
        }
        while self.now < target {
            self.now += 1;
            let slot = self.index();
            self.counts[slot] = 0;
        }
    }

    fn index(&self) -> usize {
        usize::try_from(self.now % SLOTS as u64).unwrap_or_default()
    }
}

impl Default for SlidingWindow {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(window: &SlidingWindow, after: Duration) -> u32 {
        let now = window.0.lock().unwrap().begun + after;
        window.at(now, |ring| ring.counts.iter().sum())
    }

    #[test]
    fn what_happened_counts_for_a_minute() {
        let window = SlidingWindow::new();
        window.note();
        window.clone().note();
        assert_eq!(window.count(), 2);
        assert_eq!(counted(&window, Duration::from_secs(54)), 2);
        assert_eq!(counted(&window, Duration::from_secs(66)), 0);
    }

    #[test]
    fn after_a_long_silence_nothing_counts() {
        let window = SlidingWindow::new();
        window.note();
        assert_eq!(counted(&window, Duration::from_hours(5)), 0);
        assert_eq!(window.count(), 0, "and the clock does not go back");
    }
}
