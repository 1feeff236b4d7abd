//! Who asks for a drain, and how they hear that it is done: the Unix socket for `shim drain` (the server
//! container's preStop), and [`Drainer::drain`] for SIGTERM. The bridge does the draining.
//!
//! The kubelet runs a preStop before every stop of the container: when the pod is deleted, and when a probe has failed
//! and the container is to be restarted. So a drain by the socket may be followed by a new start of the server, and
//! only the drain by SIGTERM is the last.

use std::{io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

use crate::{
    serving::{self, ConnectionError},
    shim::drain::{DRAIN, DRAINED},
};

/// Requests that may wait for the bridge, which takes them at once. Beyond that others have asked already.
const REQUESTS: usize = 8;
/// What a drain takes beyond its own deadline: errors and goodbyes are sent, the presence is cleared and confirmed.
pub const GOODBYE: Duration = Duration::from_secs(10);
/// A client of the socket that says nothing for so long, or reads nothing, is sent away.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest command line, in bytes.
const COMMAND_BYTES: u64 = 64;
/// Clients of the socket at one time: there is one, and whoever else in the pod comes must not take the descriptors of the
/// data path.
const CONNECTIONS: usize = 16;

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// None was asked for.
    Serving,
    /// Sessions end as their requests are answered.
    Draining {
        /// Sessions left.
        sessions: usize,
        /// Requests left.
        in_flight: usize,
    },
    /// The presence is cleared and the connection closed, until the server has been started anew.
    Drained,
}

/// To ask for a drain with; cheap to clone.
#[derive(Debug, Clone)]
pub struct Drainer {
    requests: mpsc::Sender<Request>,
    progress: watch::Receiver<Progress>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    /// For the requests in flight.
    patience: Duration,
    /// Whether the process ends after it.
    is_last: bool,
}

/// The bridge's end.
#[derive(Debug)]
pub struct Drains {
    requests: mpsc::Receiver<Request>,
    /// To tell how far it is.
    pub progress: watch::Sender<Progress>,
    asked: Option<Instant>,
    is_last: bool,
}

/// Both ends.
pub fn channel() -> (Drainer, Drains) {
    let (requests, from_drainer) = mpsc::channel(REQUESTS);
    let (to_drainer, progress) = watch::channel(Progress::Serving);
    let drains = Drains { requests: from_drainer, progress: to_drainer, asked: None, is_last: false };
    (Drainer { requests, progress }, drains)
}

impl Drainer {
    /// Asks for a drain; `patience` is for the requests in flight. Asking again joins the drain that runs, and may
    /// shorten it.
    pub fn ask(&self, patience: Duration) {
        let _ = self.requests.try_send(Request { patience, is_last: false }); // full: others have asked
    }

    /// How far it is.
    pub fn progress(&mut self) -> Progress {
        *self.progress.borrow_and_update()
    }

    /// Waits until [`Drainer::progress`] has changed. False when it never will.
    pub async fn changed(&mut self) -> bool {
        self.progress.changed().await.is_ok()
    }

    /// Asks for the last drain, and waits until it is done.
    pub async fn drain(mut self, patience: Duration) {
        let _ = self.requests.send(Request { patience, is_last: true }).await; // the bridge is gone: it has drained
        while self.progress() != Progress::Drained && self.changed().await {}
    }
}

impl Drains {
    /// The next request: how long requests in flight may take. Cancel-safe.
    pub async fn next(&mut self) -> Option<Duration> {
        let Request { patience, is_last } = self.requests.recv().await?;
        self.asked = Some(Instant::now());
        self.is_last |= is_last;
        Some(patience)
    }

    /// Whether the process ends after the drain.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// Whether a server that answers now was started after the last request for a drain, as nobody was there at this
    /// moment. One that merely goes on answering while its pod is deleted is not to be registered again.
    pub fn are_older_than(&self, absence: Option<Instant>) -> bool {
        matches!((self.asked, absence), (Some(asked), Some(absence)) if absence > asked)
    }
}

/// Serves the drain socket. Any container of the pod may connect; nothing else can reach it.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(
    path: &Path,
    drainer: Drainer,
    patience: Duration,
) -> io::Result<impl Future<Output = ()> + use<>> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // of a former life of this container
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(async move {
        let serve = |stream| converse(stream, drainer.clone(), patience);
        serving::accept("the drain socket", listener, CONNECTIONS, serve).await;
    })
}

/// One client: `drain\n` comes, progress lines go, at last `drained\n`.
async fn converse(
    stream: UnixStream,
    mut drainer: Drainer,
    patience: Duration,
) -> Result<(), ConnectionError> {
    let (from_client, mut to_client) = stream.into_split();
    let mut line = String::new();
    let mut from_client = BufReader::new(from_client.take(COMMAND_BYTES));
    timeout(COMMAND_TIMEOUT, from_client.read_line(&mut line)).await??;
    if line.trim_end() != DRAIN {
        return Ok(timeout(COMMAND_TIMEOUT, to_client.write_all(b"unknown command\n")).await??);
    }
    tracing::info!("drain asked for at the socket");
    drainer.ask(patience);
    let mut draining = false;
    loop {
        let line = match drainer.progress() {
            Progress::Serving if !draining => String::new(), // the bridge is about to hear of it
            Progress::Draining { sessions, in_flight } => {
                draining = true;
                format!("{sessions} sessions left, {in_flight} requests in flight\n")
            }
            // Or it serves again already, as the server has been started anew.
            Progress::Drained | Progress::Serving => format!("{DRAINED}\n"),
        };
        timeout(COMMAND_TIMEOUT, to_client.write_all(line.as_bytes())).await??;
        if line.trim_end() == DRAINED || !drainer.changed().await {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::shim::drain::{Outcome, drain};

    #[tokio::test]
    async fn the_shims_command_drains_and_hears_how_far_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.sock");
        std::fs::write(&path, "left by a former life").unwrap();
        let (drainer, mut drains) = channel();
        tokio::spawn(listen(&path, drainer, Duration::from_mins(1)).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        let bridge = tokio::spawn(async move {
            assert_eq!(drains.next().await, Some(Duration::from_mins(1)));
            assert!(!drains.is_last());
            drains.progress.send_replace(Progress::Draining { sessions: 2, in_flight: 1 });
            sleep(Duration::from_millis(20)).await;
            drains.progress.send_replace(Progress::Drained);
            drains // kept, as the bridge does
        });
        let mut lines = Vec::new();
        let outcome = drain(&path, Duration::from_secs(5), |line| lines.push(line.to_owned())).await;
        assert_eq!(outcome, Outcome::Drained);
        assert_eq!(lines, ["2 sessions left, 1 requests in flight"]);
        let _drains = bridge.await.unwrap();
        let again = drain(&path, Duration::from_secs(5), |_| ()).await;
        assert_eq!(again, Outcome::Drained, "asking again is answered at once");
    }

    #[tokio::test]
    async fn another_command_does_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.sock");
        let (drainer, mut drains) = channel();
        tokio::spawn(listen(&path, drainer, Duration::from_mins(1)).unwrap());
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"explode\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "unknown command\n");
        assert!(drains.requests.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_new_when_nobody_was_there_after_the_last_request() {
        let (drainer, mut drains) = channel();
        let before = Instant::now();
        assert!(!drains.are_older_than(Some(before)), "there was no drain");
        sleep(Duration::from_secs(1)).await;
        drainer.ask(Duration::ZERO);
        drains.next().await;
        assert!(!drains.are_older_than(None) && !drains.are_older_than(Some(before)));
        sleep(Duration::from_secs(1)).await;
        let after = Instant::now();
        assert!(drains.are_older_than(Some(after)));
        sleep(Duration::from_secs(1)).await;
        drainer.ask(Duration::ZERO);
        drains.next().await;
        assert!(!drains.are_older_than(Some(after)), "the new server is drained as well");
        assert!(!drains.is_last());
        tokio::spawn(drainer.drain(Duration::ZERO));
        drains.next().await;
        assert!(drains.is_last());
    }
}
