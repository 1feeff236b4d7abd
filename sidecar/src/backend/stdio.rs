//! stdio: one process per session. The shim in the server's container starts it and hands its pipes over (or, outside
//! a pod, the gateway starts it itself: [`own`]); the gateway reads and writes them directly.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixStream, unix::pipe},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use self::own::{Lease, Running, Spawner};
use super::{
    BackendEnd, BackendEvents, BackendLimits, FromBackend, FromBridge, Lost, SessionId,
    findings::Findings,
    incoming,
    lines::{Line, Lines},
    reports::{Room, more},
    send_quota::Outbound,
};
use crate::shim::control::{Control, Exit, Hello, Purpose, Report};

pub mod own;

/// From connecting to the shim until the process is there. Starting one takes milliseconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the shim is asked again whether it is there, where that could not be done.
const MONITOR_PAUSE: Duration = Duration::from_secs(1);
/// How long what is already queued may take to be written once the bridge has dropped the session.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(250);
/// How long more is waited for on stdout after the process has ended (a child of it may hold the pipe open), and how
/// long a process may live on after it closed stdin or stdout.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// How long what it said before may have to wait for room.
const LAST_WORDS: Duration = Duration::from_mins(1);
/// Messages that go into one write.
const WRITE_BATCH: usize = 32;
/// A message of more bytes is written by itself, and not copied.
const LARGE: usize = 16 * 1024;
/// Room that the write buffer keeps from one write to the next, in bytes.
const KEPT_WRITE_BUFFER: usize = 16 * 1024;

/// A server of which one process per session is started.
#[derive(Debug, Clone)]
pub struct StdioBackend {
    source: Source,
    limits: BackendLimits,
    pub(super) findings: Findings,
}

/// Who starts the processes.
#[derive(Debug, Clone)]
enum Source {
    /// The shim behind this socket.
    Shim(PathBuf),
    /// This gateway.
    Own(Spawner),
}

impl StdioBackend {
    /// The backend behind this shim's socket.
    pub fn new(socket: PathBuf, limits: BackendLimits) -> Self {
        Self { source: Source::Shim(socket), limits, findings: Findings::default() }
    }

    /// The backend whose processes are started here, once [`StdioBackend::start`] was called.
    pub fn of_own(spawner: Spawner, limits: BackendLimits) -> Self {
        Self { source: Source::Own(spawner), limits, findings: Findings::default() }
    }

    pub(super) fn start(&self) -> io::Result<Option<Running>> {
        match &self.source {
            Source::Shim(_) => Ok(None),
            Source::Own(spawner) => spawner.start().map(Some),
        }
    }

    pub(super) fn open(&self, session: SessionId, events: BackendEvents, from_bridge: FromBridge) {
        let backend = self.clone();
        tokio::spawn(async move {
            let end = match backend.start_process().await {
                Ok(process) => {
                    let session = Session {
                        id: session,
                        events: &events,
                        max: backend.limits.max_message_bytes,
                        reports: AtomicBool::new(false),
                    };
                    session.serve(process, from_bridge).await
                }
                Err(end) => end,
            };
            events.report(session, FromBackend::Ended(end), None).await;
        });
    }

    /// Resolves when the shim is gone.
    pub(super) async fn lost(&self) -> Lost {
        let Source::Shim(socket) = &self.source else {
            return std::future::pending().await; // we are here as long as we are
        };
        let mut told = false;
        loop {
            let why = match timeout(OPEN_TIMEOUT, monitor(socket)).await {
                Ok(Ok(mut control)) => {
                    while let Ok(Some(_)) = control.receive::<Report>().await {} // it has nothing more to say
                    return Lost::Gone(gone());
                }
                Ok(Err(BackendEnd::NobodyListens(why))) => return Lost::Gone(why),
                Ok(Err(error)) => error.to_string(),
                Err(_) => no_answer(),
            };
            // It may be for want of something of our own; and each session's process tells of its end itself.
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("for now nobody would see the end of the server container: {why}");
            }
            sleep(MONITOR_PAUSE).await;
        }
    }

    async fn start_process(&self) -> Result<Process, BackendEnd> {
        let failed = BackendEnd::OpenFailed;
        let socket = match &self.source {
            Source::Shim(socket) => socket,
            Source::Own(spawner) => {
                let mut lease = spawner.take().map_err(|error| failed(error.to_string()))?;
                let pipes = lease.take_pipes().map_err(|error| failed(error.to_string()))?;
                return Process::new(Watch::Own(lease), Some(pipes)).map_err(failed);
            }
        };
        let started = async {
            let mut control = connect(socket, Purpose::Session).await?;
            let pipes = match control.receive::<Report>().await {
                Ok(Some(Report::Spawned { .. })) => control.take_pipes(),
                Ok(Some(Report::Failed { message })) => return Err(failed(message)),
                Ok(_) => return Err(failed(gone())),
                Err(error) => return Err(failed(format!("the shim answered nothing usable: {error}"))),
            };
            Process::new(Watch::Shim(control), pipes).map_err(failed)
        };
        timeout(OPEN_TIMEOUT, started).await.unwrap_or_else(|_| Err(failed(no_answer())))
    }
}

/// A connection that ends with the shim.
async fn monitor(socket: &Path) -> Result<Control, BackendEnd> {
    let mut control = connect(socket, Purpose::Monitor).await?;
    match control.receive::<Report>().await {
        Ok(Some(Report::Ready { .. })) => Ok(control),
        Ok(_) => Err(BackendEnd::OpenFailed("the shim closed the connection".to_owned())),
        Err(error) => Err(BackendEnd::OpenFailed(format!("the shim answered nothing usable: {error}"))),
    }
}

async fn connect(socket: &Path, purpose: Purpose) -> Result<Control, BackendEnd> {
    let connected = async {
        let mut control = Control::new(UnixStream::connect(socket).await?);
        control.send(&Hello::Open(purpose)).await?;
        Ok(control)
    };
    connected.await.map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => BackendEnd::NobodyListens(format!(
            "the server container does not run (yet): nobody listens on {}. If it stays so, see `kubectl describe pod` \
             and `kubectl logs -c server`.",
            socket.display()
        )),
        _ => BackendEnd::OpenFailed(format!("the shim's socket {} cannot be used: {error}", socket.display())),
    })
}

fn gone() -> String {
    "the server container stopped; see `kubectl describe pod` for why, and `kubectl logs -c server --previous` for \
     its last words"
        .to_owned()
}

fn no_answer() -> String {
    format!("the shim did not answer within {OPEN_TIMEOUT:?}: is the server container out of CPU, or frozen?")
}

/// A process of the server, and who tells of its end. Dropping it ends the process.
struct Process {
    watch: Watch,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
}

/// Who tells of a process's end.
enum Watch {
    Shim(Control),
    Own(Lease),
}

impl Process {
    fn new(watch: Watch, pipes: Option<[OwnedFd; 2]>) -> Result<Self, String> {
        let Some([stdin, stdout]) = pipes else {
            return Err("the shim handed over no pipes (are gateway and shim of one version?)".to_owned());
        };
        let pipes = pipe::Sender::from_owned_fd(stdin)
            .and_then(|stdin| pipe::Receiver::from_owned_fd(stdout).map(|stdout| (stdin, stdout)));
        let (stdin, stdout) =
            pipes.map_err(|error| format!("the process's pipes cannot be used: {error}"))?;
        Ok(Self { watch, stdin, stdout })
    }
}

impl Watch {
    /// How the process ended; nothing when whoever could tell is gone. Cancel-safe.
    async fn exited(&mut self) -> Option<Exit> {
        match self {
            Self::Shim(control) => match control.receive::<Report>().await {
                Ok(Some(Report::Exited(exit))) => Some(exit),
                Ok(_) | Err(_) => None,
            },
            Self::Own(lease) => Some(lease.exited().await),
        }
    }
}

struct Session<'a> {
    id: SessionId,
    events: &'a BackendEvents,
    max: usize,
    /// Whether something was read that is not reported yet: it may have to wait for room.
    reports: AtomicBool,
}

impl Session<'_> {
    /// Both directions at once; neither waits for the other.
    async fn serve(&self, process: Process, from_bridge: FromBridge) -> BackendEnd {
        let Process { watch, stdin, stdout } = process;
        let FromBridge { messages, dropped } = from_bridge;
        let mut read = pin!(self.read_until_exit(stdout, watch));
        let mut both = pin!(async {
            let written = tokio::select! {
                end = &mut read => return end,
                written = write(stdin, messages) => written,
            };
            let Err(error) = written else { return BackendEnd::Closed };
            // Most often it has exited, and the shim is about to say how.
            self.last_words(read).await.unwrap_or_else(|| {
                BackendEnd::Exited(format!("it reads no more from its stdin ({error}); it is being ended"))
            })
        });
        tokio::select! {
            end = &mut both => end,
            // The bridge's last words (a cancellation) may still be on their way.
            _ = dropped => timeout(FLUSH_TIMEOUT, both).await.unwrap_or(BackendEnd::Closed),
        }
    }

    async fn read_until_exit(&self, stdout: pipe::Receiver, mut watch: Watch) -> BackendEnd {
        let mut read = pin!(self.read(stdout));
        let exit = tokio::select! {
            () = &mut read => match timeout(EXIT_GRACE, watch.exited()).await {
                Ok(exit) => exit,
                Err(_) => return BackendEnd::Exited("it closed its stdout; it is being ended".to_owned()),
            },
            exit = watch.exited() => {
                self.last_words(read).await; // they come before its end
                exit
            }
        };
        match exit {
            Some(exit) => BackendEnd::Exited(exit.to_string()),
            None => BackendEnd::BackendLost(gone()),
        }
    }

    /// What comes of reading on until nothing more is said; none: it was cut short.
    async fn last_words<T>(&self, mut read: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let by = Instant::now() + LAST_WORDS;
        loop {
            match timeout(EXIT_GRACE, read.as_mut()).await {
                Ok(end) => return Some(end),
                Err(_) if self.reports.load(Relaxed) && Instant::now() < by => {}
                Err(_) => return None,
            }
        }
    }

    /// Reports what the process says until it says no more.
    async fn read(&self, mut stdout: pipe::Receiver) {
        let mut lines = Lines::new(self.max);
        let mut room = None;
        loop {
            self.reports.store(false, Relaxed);
            let read = more(&mut room, stdout.read_buf(lines.buffer())).await;
            self.reports.store(true, Relaxed);
            match read {
                Ok(0) => break,
                Ok(read) => lines.was_read(read),
                Err(error) => {
                    tracing::warn!(session = self.id.0, "stdout of the MCP server cannot be read: {error}");
                    break;
                }
            }
            while let Some(line) = lines.next_line() {
                self.report(line, room.take()).await;
            }
            self.events.make_room(&mut room, lines.held()).await;
        }
        if let Some(line) = lines.rest() {
            self.report(line, room).await;
        }
    }

    async fn report(&self, line: Line, mut room: Option<Room>) {
        let events = match line {
            Line::Whole(line) => incoming::read(&line, self.max),
            Line::TooLong { size, answers } => incoming::too_large(Some(size), self.max, answers),
        };
        for event in events {
            self.events.report(self.id, event, room.take()).await;
        }
    }
}

/// Writes what comes, as many messages at once as wait; ends when the bridge has no more, or the process does not
/// take them: most often it has exited, and the shim is about to say how.
async fn write(mut stdin: pipe::Sender, mut messages: mpsc::Receiver<Box<Outbound>>) -> io::Result<()> {
    let mut waiting = Vec::new();
    let mut buffer = Vec::new();
    while messages.recv_many(&mut waiting, WRITE_BATCH).await > 0 {
        write_batch(&mut stdin, &waiting, &mut buffer).await?;
        waiting.clear(); // now it takes up no room any more
        buffer.shrink_to(KEPT_WRITE_BUFFER);
    }
    Ok(())
}

/// Leaves the buffer empty.
async fn write_batch(
    stdin: &mut pipe::Sender,
    batch: &[Box<Outbound>],
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    for outbound in batch {
        let line = outbound.message.to_line();
        if line.len() > LARGE {
            stdin.write_all(buffer).await?;
            buffer.clear();
            stdin.write_all(&line).await?;
        } else {
            buffer.extend_from_slice(&line);
        }
        buffer.push(b'\n');
    }
    stdin.write_all(buffer).await?;
    buffer.clear();
    Ok(())
}

#[cfg(test)]
mod tests;
