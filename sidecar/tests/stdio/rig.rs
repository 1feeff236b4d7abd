//! A real shim process, and a backend that uses it.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use mcp_mqtt_sidecar::{
    backend::Backend,
    config::{BackendConfig, BackendOptions, Limits},
};
use tempfile::TempDir;
use tokio::time::sleep;

pub(crate) use crate::client::{Client, PATIENCE, message};

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
    let limits = Limits { max_message_bytes: MAX_MESSAGE, ..Limits::default() };
    Backend::from_config(&config, &BackendOptions::default(), &limits).unwrap()
}

pub(crate) fn ping(id: u64) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#)
}
