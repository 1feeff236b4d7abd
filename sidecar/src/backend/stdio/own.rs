//! Processes that the gateway starts itself, where no shim does: a process per session, some kept ready, and all of
//! them ended with everything they started.

use std::{io, os::fd::OwnedFd, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::shim::{
    control::Exit,
    prewarm::Pool,
    processes::{KILL_GRACE, Process, Processes, SpawnError},
};

/// Starts processes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spawner {
    processes: Processes,
    pool: Pool,
    grace: Duration,
    /// Processes that were given out and have not ended with all they started.
    given_out: watch::Sender<usize>,
}

/// A spawner at work; see [`Running::stop`].
#[derive(Debug)]
pub struct Running {
    spawner: Spawner,
    reaper: JoinHandle<()>,
    filler: JoinHandle<()>,
}

/// A session's process. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Lease {
    process: Option<Process>,
    spawner: Spawner,
}

impl Spawner {
    /// Will start these processes; `prewarm` idle ones are kept ready, and `grace` is how long one may take to leave.
    pub fn new(processes: Processes, prewarm: usize, grace: Duration) -> Self {
        let pool = Pool::new(processes.clone(), prewarm);
        Self { processes, pool, grace, given_out: watch::Sender::new(0) }
    }

    /// Begins to reap and to prewarm. Must be called within a tokio runtime; without it no process is ever seen to
    /// end.
    ///
    /// # Errors
    /// The system refuses to make this process the reaper of its descendants.
    pub fn start(&self) -> io::Result<Running> {
        self.processes.adopt()?;
        let (reaping, pool) = (self.processes.clone(), self.pool.clone());
        let reaper = tokio::spawn(async move {
            if let Err(error) = reaping.reap().await {
                tracing::error!("the MCP server's processes cannot be looked after: {error}");
            }
        });
        let filler = tokio::spawn(async move { pool.keep_filled().await });
        Ok(Running { spawner: self.clone(), reaper, filler })
    }

    /// A process for a session.
    pub(super) fn take(&self) -> Result<Lease, SpawnError> {
        let process = self.pool.take()?;
        self.given_out.send_modify(|number| *number += 1);
        Ok(Lease { process: Some(process), spawner: self.clone() })
    }

    async fn end(&self, process: Process) {
        let pid = process.pid();
        let exit = self.processes.end(process, self.grace, true).await;
        tracing::debug!(pid, exit = exit.map(tracing::field::display), "process ended");
    }
}

impl Running {
    /// Ends all processes that are left, each with its graces.
    pub async fn stop(self) {
        let Self { spawner, reaper, filler } = self;
        filler.abort();
        let _ = filler.await; // aborted
        let idle = spawner.pool.take_all();
        let mut given_out = spawner.given_out.subscribe();
        let all = async {
            futures::future::join_all(idle.into_iter().map(|process| spawner.end(process))).await;
            let _ = given_out.wait_for(|number| *number == 0).await; // the sender is in `spawner`
        };
        // Each is bounded by its graces: closing stdin, SIGTERM, SIGKILL.
        if timeout(spawner.grace * 2 + KILL_GRACE * 2, all).await.is_err() {
            let processes = spawner.processes.running();
            tracing::error!(processes, "processes of the MCP server are left behind");
        }
        reaper.abort();
    }
}

impl Lease {
    /// Its stdin and stdout, once. What is left of its stdout when the lease is dropped is read by nobody.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn take_pipes(&mut self) -> io::Result<[OwnedFd; 2]> {
        let process = self.process.as_mut();
        let pipes = process.and_then(|process| Some((process.stdin.take()?, process.stdout.as_ref()?)));
        let (stdin, stdout) = pipes.ok_or_else(|| io::Error::other("its pipes were taken before"))?;
        Ok([stdin, stdout.try_clone()?])
    }

    /// Resolves when it has ended. Cancel-safe.
    pub(super) async fn exited(&mut self) -> Exit {
        match &mut self.process {
            Some(process) => {
                let exit = process.exited().await;
                if !matches!(exit, Exit::Code(0)) {
                    tracing::warn!(
                        pid = process.pid(),
                        "a process of the MCP server ended by itself: {exit}"
                    );
                }
                exit
            }
            None => std::future::pending().await, // only being dropped takes it
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        let spawner = self.spawner.clone();
        // Without a runtime this process is about to end, and the others with it: their stdin closes.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                spawner.end(process).await;
                spawner.given_out.send_modify(|number| *number -= 1);
            });
        }
    }
}
