//! Waiting longer after each failure, a little differently each time.

use std::time::Duration;

/// Waits that double from a first to a longest one; each is shortened by up to half at random, so that instances
/// which failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with `first`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// How long to wait now; the next time it is twice as long.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// The next wait is at least this long.
    pub fn at_least(&mut self, wait: Duration) {
        self.next = self.next.max(wait).min(self.longest);
    }

    /// All is well: the next failure is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_never_less_than_half() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(1000));
        for expected in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.wait();
            assert!(wait >= ms(expected) / 2 && wait <= ms(expected), "{wait:?} for {expected}");
        }
        backoff.reset();
        assert!(backoff.wait() <= ms(100));
        backoff.at_least(ms(5000));
        assert!(backoff.wait() >= ms(500), "bounded by the longest");
    }
}
