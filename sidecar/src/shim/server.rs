//! The shim at work: hands out processes on its socket, and ends them all when it is told to go.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use super::{
    control::{Control, Exit, Hello, Purpose, Report},
    prewarm::Pool,
    processes::{Process, Processes},
};

/// How long a new connection may take to say what it is for.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a line to the gateway may take: it always reads, or it is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections beyond the processes': monitors, and sessions about to be refused. Bounds what a stranger in the
/// pod could make us hold.
const SPARE_CONNECTIONS: usize = 64;
/// Pause after a failed accept (out of file descriptors): not a tight loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the shim serves.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) socket: PathBuf,
    pub(super) processes: Processes,
    pub(super) prewarm: usize,
    pub(super) max_processes: usize,
    pub(super) grace: Duration,
}

impl Server {
    /// Serves until SIGTERM or SIGINT, then ends all processes.
    pub(super) async fn serve(self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = bind(&self.socket).map_err(|error| {
            let hint = "its directory must be a volume shared with the gateway that this user may write to";
            io::Error::new(
                error.kind(),
                format!("cannot listen on {}: {error}; {hint}", self.socket.display()),
            )
        })?;
        tracing::info!(socket = %self.socket.display(), command = %self.processes.program(), "shim ready");

        let pool = Pool::new(self.processes.clone(), self.prewarm);
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        let reaper = tokio::spawn({
            let processes = self.processes.clone();
            async move { processes.reap().await }
        });
        let filler = tokio::spawn({
            let pool = pool.clone();
            async move { pool.keep_filled().await }
        });
        loop {
            let room = connections.len() < self.max_processes.saturating_add(SPARE_CONNECTIONS);
            tokio::select! {
                accepted = listener.accept(), if room => match accepted {
                    Ok((stream, _)) => {
                        let connection = Connection {
                            control: Control::new(stream),
                            pool: pool.clone(),
                            processes: self.processes.clone(),
                            grace: self.grace,
                            stopping: stopping.clone(),
                        };
                        connections.spawn(connection.serve());
                    }
                    Err(error) => {
                        tracing::warn!("cannot accept a connection of the gateway: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {} // it logs for itself
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }

        tracing::info!(
            processes = self.processes.running(),
            "stopping: ending all processes of the MCP server"
        );
        let _ = fs::remove_file(&self.socket); // or it is stale, and the next start replaces it
        filler.abort();
        let _ = filler.await; // aborted
        stop.send_replace(true);
        for process in pool.take_all() {
            let processes = self.processes.clone();
            let grace = self.grace;
            connections.spawn(async move { end(&processes, process, grace, true).await });
        }
        while connections.join_next().await.is_some() {} // each is bounded by its graces
        reaper.abort();
        Ok(())
    }
}

/// Replaces whatever stands at `path`: a socket there is what a former life of this container left. It appears
/// with its final mode, for everyone: only this pod's containers can reach the directory.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o666))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

async fn end(processes: &Processes, process: Process, grace: Duration, close_first: bool) {
    let pid = process.pid();
    let exit = processes.end(process, grace, close_first).await;
    tracing::debug!(pid, exit = exit.map(tracing::field::display), "process ended");
}

/// One connection of the gateway.
struct Connection {
    control: Control,
    pool: Pool,
    processes: Processes,
    grace: Duration,
    stopping: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(mut self) {
        match timeout(HELLO_TIMEOUT, self.control.receive()).await {
            Ok(Ok(Some(Hello::Open(Purpose::Session)))) => self.serve_session().await,
            Ok(Ok(Some(Hello::Open(Purpose::Monitor)))) => self.serve_monitor().await,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!("a connection that is not the gateway's, or of another version: {error}");
            }
            Err(_) => {
                tracing::warn!("a connection did not say what it is for within {HELLO_TIMEOUT:?}; closed");
            }
        }
    }

    async fn serve_monitor(mut self) {
        let pid = std::process::id().cast_signed();
        if let Ok(Ok(())) = timeout(SEND_TIMEOUT, self.control.send(&Report::Ready { pid })).await {
            self.until_closed().await;
        }
    }

    async fn serve_session(mut self) {
        let mut process = match self.pool.take() {
            Ok(process) => process,
            Err(error) => {
                tracing::warn!("a session could not be opened: {error}");
                let _ =
                    timeout(SEND_TIMEOUT, self.control.send(&Report::Failed { message: error.to_string() }))
                        .await;
                return;
            }
        };
        let pid = process.pid();
        let handed_over = match (&process.stdin, &process.stdout) {
            (Some(stdin), Some(stdout)) => {
                self.control.send_with(&Report::Spawned { pid }, [stdin, stdout]).await
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()), // taken twice: cannot be
        };
        if let Err(error) = handed_over {
            tracing::debug!(pid, "the gateway left before its process came: {error}");
            return end(&self.processes, process, self.grace, true).await;
        }
        process.stdin = None; // the gateway's now: its closing of stdin must be seen by the process
        let stopping = tokio::select! {
            exit = process.exited() => {
                self.tell_exit(pid, exit).await;
                false
            }
            stopping = self.until_closed() => stopping,
        };
        if stopping || process.exit().is_some() {
            process.stdout = None; // the gateway is there, and may still read it
        }
        // At a stop the gateway may still hold stdin open: do not wait for what cannot come.
        end(&self.processes, process, self.grace, !stopping).await;
    }

    async fn tell_exit(&mut self, pid: i32, exit: Exit) {
        if !matches!(exit, Exit::Code(0)) {
            tracing::warn!(pid, "a process of the MCP server ended by itself: {exit}");
        }
        let _ = timeout(SEND_TIMEOUT, self.control.send(&Report::Exited(exit))).await; // or it is gone: no matter
    }

    /// Resolves when the gateway closes the connection (false) or the shim is to stop (true). The gateway has
    /// nothing more to say; a line all the same ends the connection.
    async fn until_closed(&mut self) -> bool {
        tokio::select! {
            stopped = self.stopping.wait_for(|stopping| *stopping) => stopped.is_ok(),
            _ = self.control.receive::<Hello>() => false,
        }
    }
}
