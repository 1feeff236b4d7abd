//! Idle processes kept ready, so that a session need not wait for its server to start.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    control::Exit,
    processes::{Process, Processes, SpawnError},
};

/// An idle process that ends sooner than this failed to start; later, it just had enough of waiting.
const STARTED: Duration = Duration::from_secs(10);
/// Pause after the first failure in a row; doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How often to look whether an idle process has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The idle processes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    processes: Processes,
    size: usize,
    idle: Arc<Mutex<VecDeque<Process>>>,
    taken: Arc<Notify>,
}

impl Pool {
    /// A pool that holds `size` idle processes once [`Pool::keep_filled`] runs.
    pub fn new(processes: Processes, size: usize) -> Self {
        Self { processes, size, idle: Arc::default(), taken: Arc::default() }
    }

    /// A process for a session: the idle one that has waited longest, or else a new one.
    ///
    /// # Errors
    /// A new one is needed and cannot be started.
    pub fn take(&self) -> Result<Process, SpawnError> {
        let waiting = {
            let mut idle = self.idle();
            idle.retain(|process| process.exit().is_none());
            idle.pop_front()
        };
        match waiting {
            Some(process) => {
                self.taken.notify_one();
                Ok(process)
            }
            None => self.processes.spawn(),
        }
    }

    /// Takes all idle processes away, to end them.
    pub fn take_all(&self) -> Vec<Process> {
        self.idle().drain(..).collect()
    }

    /// Replaces what is taken and what ends, for as long as it is polled; after a failure with a growing pause.
    pub async fn keep_filled(&self) {
        if self.size == 0 {
            return;
        }
        let mut failures = 0;
        let mut not_before = Instant::now();
        loop {
            if let Some((exit, age)) = self.remove_ended() {
                if age < STARTED {
                    failures += 1;
                    let pause = pause(failures);
                    not_before = Instant::now() + pause;
                    tracing::warn!(
                        "an idle process of the MCP server ended {} ms after its start: {exit}. Its own words, if \
                         any, stand above. Check the command (transport.stdio.command, args and env of the McpService). Next try \
                         in {} s.",
                        age.as_millis(),
                        pause.as_secs(),
                    );
                } else {
                    tracing::info!(
                        "an idle process of the MCP server ended after {} s: {exit}",
                        age.as_secs()
                    );
                }
            }
            if Instant::now() >= not_before {
                match self.fill() {
                    Ok(settled) => failures = if settled { 0 } else { failures },
                    Err(error) => {
                        failures += 1;
                        let pause = pause(failures);
                        not_before = Instant::now() + pause;
                        tracing::warn!(
                            "no idle process can be kept: {error} Next try in {} s.",
                            pause.as_secs()
                        );
                    }
                }
            }
            let look_again = (Instant::now() + LOOK_EVERY).max(not_before);
            tokio::select! {
                () = self.taken.notified() => {} // replace it
                () = sleep_until(look_again) => {} // somebody may have ended
            }
        }
    }

    /// Starts what is missing; true when all have run long enough to say that the server starts well.
    fn fill(&self) -> Result<bool, SpawnError> {
        let mut idle = self.idle();
        while idle.len() < self.size {
            idle.push_back(self.processes.spawn()?);
        }
        Ok(idle.iter().all(|process| process.age() >= STARTED))
    }

    /// Removes the idle processes that ended, and tells about the one that lived longest.
    fn remove_ended(&self) -> Option<(Exit, Duration)> {
        let mut ended = None::<(Exit, Duration)>;
        self.idle().retain(|process| {
            let Some(exit) = process.exit() else { return true };
            if ended.is_none_or(|(_, age)| age < process.age()) {
                ended = Some((exit, process.age()));
            }
            false
        });
        ended
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Process>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE)
}
