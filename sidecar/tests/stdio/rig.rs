//! A real shim process, and a backend that uses it.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_sidecar::{
    backend::{Backend, BackendEnd, BackendEvents, BackendSession, FromBackend, SessionId},
    config::{BackendConfig, Limits},
};
use mcp_mqtt_transport::jsonrpc::Message;
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The stop grace of the shims here.
pub(crate) const GRACE: Duration = Duration::from_millis(400);
/// The largest message here.
pub(crate) const MAX_MESSAGE: u32 = 256 * 1024;

/// A running shim; killed when dropped, should it still run.
pub(crate) struct Shim {
    process: Child,
    pub(crate) directory: TempDir,
}

impl Shim {
    /// Starts `shim run` for a shell script.
    pub(crate) fn script(options: &[&str], script: &str) -> Self {
        Self::command(options, &["sh", "-c", script])
    }

    /// Starts `shim run` for a command.
    pub(crate) fn command(options: &[&str], command: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), options, command)
    }

    pub(crate) fn start_in(directory: TempDir, options: &[&str], command: &[&str]) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_mcp-mqtt-sidecar"))
            .args(["shim", "run", "--log=error", "--stop-grace=400ms", "--socket"])
            .arg(directory.path().join("shim.sock"))
            .args(options)
            .arg("--")
            .args(command)
            .env("DIRECTORY", directory.path())
            .spawn()
            .unwrap();
        let shim = Self { process, directory };
        assert!(eventually(|| UnixStream::connect(shim.socket()).is_ok()), "the shim does not listen");
        shim
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("shim.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn backend(&self) -> Backend {
        backend(&self.socket())
    }

    /// Opens a session with a channel of its own.
    pub(crate) fn open(&self) -> Client {
        Client::open(&self.backend())
    }

    /// Everything that descends from the shim, zombies included: pid and command name.
    pub(crate) fn descendants(&self) -> Vec<String> {
        let mut known = vec![self.pid()];
        let mut found = Vec::new();
        let all: Vec<(u32, u32, String)> = processes();
        while let Some(parent) = known.pop() {
            for (pid, _, name) in all.iter().filter(|(_, its_parent, _)| *its_parent == parent) {
                known.push(*pid);
                found.push(format!("{pid} {name}"));
            }
        }
        found
    }

    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Waits until nothing descends from the shim.
    pub(crate) async fn until_alone(&self) {
        self.until("nothing is left", || self.descendants().is_empty()).await;
    }

    /// Waits until the condition holds, while the runtime goes on.
    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "{what}: not within {PATIENCE:?}; the shim has {:?}",
                self.descendants()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the shim's own end and gives back its directory.
    pub(crate) fn wait(mut self) -> (std::process::ExitStatus, TempDir) {
        let mut status = None;
        assert!(
            eventually(|| {
                status = self.process.try_wait().unwrap();
                status.is_some()
            }),
            "the shim does not end"
        );
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        (status.unwrap(), directory)
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Where PID 1 dies all others do. Here, a test that failed must leave nothing behind.
        for process in marked(self.pid()) {
            let pid = process
                .split(' ')
                .next()
                .and_then(|pid| pid.parse().ok())
                .and_then(rustix::process::Pid::from_raw);
            let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }
}

/// Waits until the condition holds; for what needs no runtime.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Pid, parent and name of everything that runs.
fn processes() -> Vec<(u32, u32, String)> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (name, rest) = stat.rsplit_once(')')?;
            let parent = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent, name.to_owned()))
        })
        .collect()
}

/// Whatever carries the mark of the processes of this shim, wherever in the process tree.
pub(crate) fn marked(shim: u32) -> Vec<String> {
    let mark = format!("MCP_MQTT_PROCESS={shim}.");
    let environment = |pid| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let carries =
        |pid| environment(pid).split(|byte| *byte == 0).any(|variable| variable.starts_with(mark.as_bytes()));
    processes()
        .into_iter()
        .filter(|(pid, ..)| carries(*pid))
        .map(|(pid, _, name)| format!("{pid} {name}"))
        .collect()
}

pub(crate) fn backend(socket: &Path) -> Backend {
    let config = BackendConfig::stdio(socket);
    let limits = Limits { max_sessions: 100, max_message_bytes: MAX_MESSAGE, max_in_flight: 64 };
    Backend::from_config(&config, &limits).unwrap()
}

/// One session and what it reported.
pub(crate) struct Client {
    pub(crate) session: BackendSession,
    pub(crate) events: mpsc::Receiver<(SessionId, FromBackend)>,
}

impl Client {
    pub(crate) fn open(backend: &Backend) -> Self {
        let (events, receiver): (BackendEvents, _) = mpsc::channel(64);
        Self { session: backend.open(SessionId(1), events), events: receiver }
    }

    pub(crate) async fn send(&self, raw: &str) {
        timeout(PATIENCE, self.session.to_backend.send(message(raw))).await.unwrap().unwrap();
    }

    pub(crate) async fn event(&mut self) -> FromBackend {
        let (session, event) =
            timeout(PATIENCE, self.events.recv()).await.expect("an event").expect("not closed");
        assert_eq!(session, SessionId(1));
        event
    }

    /// The raw text of the next message.
    pub(crate) async fn message(&mut self) -> String {
        match self.event().await {
            FromBackend::Message(message) => String::from_utf8(message.into_raw().to_vec()).unwrap(),
            other => panic!("not a message: {other:?}"),
        }
    }

    /// The next event has to be the last.
    pub(crate) async fn end(&mut self) -> BackendEnd {
        match self.event().await {
            FromBackend::Ended(end) => {
                assert!(
                    timeout(PATIENCE, self.events.recv()).await.unwrap().is_none(),
                    "an event after the end"
                );
                end
            }
            other => panic!("not the end: {other:?}"),
        }
    }

    /// Drops the session and waits until it says that it is closed.
    pub(crate) async fn close(self) {
        let Self { session, mut events } = self;
        drop(session);
        while let Some((_, event)) = timeout(PATIENCE, events.recv()).await.unwrap() {
            if let FromBackend::Ended(end) = event {
                assert_eq!(end, BackendEnd::Closed);
                return;
            }
        }
        panic!("no end");
    }
}

pub(crate) fn message(raw: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(raw.as_bytes()), usize::MAX).unwrap()
}

pub(crate) fn ping(id: u64) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#)
}
