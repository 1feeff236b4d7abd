//! Whether what a process is there for goes on, as its `/healthz` tells: the kubelet starts anew what stands still, as
//! nothing else would mend it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How often there is to be a beat.
pub const BEAT: Duration = Duration::from_secs(10);
/// After so long without one, the work stands still: whatever it waits for has an end sooner.
const STANDSTILL: Duration = Duration::from_mins(1);

/// When the work last showed that it goes on; none: it has not begun, or has ended. All clones are one.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Mutex<Option<Instant>>>);

impl Pulse {
    /// The work goes on; to be told every [`BEAT`].
    pub fn beat(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// The work has ended: nobody is to wait for its next beat.
    pub fn end(&self) {
        *self.lock() = None;
    }

    /// For how long the work has stood still, if that is too long.
    pub fn standstill(&self) -> Option<Duration> {
        let beat = (*self.lock())?;
        Some(beat.elapsed()).filter(|silence| *silence >= STANDSTILL)
    }

    /// As if the last beat were so long ago: to see what comes of it.
    pub fn be_silent_for(&self, silence: Duration) {
        *self.lock() = Instant::now().checked_sub(silence);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_shows_no_life_for_a_minute_stands_still() {
        let pulse = Pulse::default();
        assert_eq!(pulse.standstill(), None, "it has not begun");
        pulse.be_silent_for(BEAT);
        assert_eq!(pulse.standstill(), None);
        pulse.be_silent_for(STANDSTILL);
        assert!(pulse.standstill().is_some());
        pulse.beat();
        assert_eq!(pulse.standstill(), None);
        pulse.be_silent_for(STANDSTILL);
        pulse.end();
        assert_eq!(pulse.standstill(), None, "what has ended does not stand still");
    }
}
