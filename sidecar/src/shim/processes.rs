//! Child processes: started, ended with everything they started, and reaped. Knows nothing of sockets.
//!
//! Each process leads a process group of its own. Ending one means the whole group: stdin closes → grace →
//! SIGTERM → grace → SIGKILL. Whatever left the group by `setsid` (a headless browser does) carries a mark in its
//! environment by which it is found once its parents are gone, and is ended too.

use std::{
    collections::HashMap,
    convert::Infallible,
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::{
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};

use super::{control::Exit, orphans};

/// The environment variable that marks all descendants of one process.
const MARK: &str = "MCP_MQTT_PROCESS";
/// How long SIGKILL may take: only the kernel can delay it (a process in uninterruptible sleep).
pub(crate) const KILL_GRACE: Duration = Duration::from_secs(5);
/// How often to look whether a group is empty: nobody tells about processes that are not our children.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// All processes that were started here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Processes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    command: Vec<OsString>,
    /// What stands before the command, if it is started by way of another one.
    launcher: Vec<OsString>,
    max: usize,
    reap: Reap,
    /// Leaders not yet reaped. Held while spawning and while reaping: `spawn` waits for a child whose exec failed
    /// itself, and a pid cannot come back to life between a look at this table and a signal.
    table: Mutex<HashMap<Pid, watch::Sender<Option<Exit>>>>,
    spawned: AtomicU64,
}

/// Which children to reap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reap {
    /// All, orphans of the processes included: for PID 1, which inherits them; made so for any other.
    Everything,
    /// Only those that were started here.
    Own,
}

/// A running process (or one that ended but was not looked at). Give it to [`Processes::end`] when done.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    mark: String,
    started: Instant,
    exit: watch::Receiver<Option<Exit>>,
    /// Its stdin, until it is handed over: only then does the process see that the other side closes it.
    pub stdin: Option<OwnedFd>,
    /// Its stdout, where nobody else reads it; see [`Processes::end`].
    pub stdout: Option<OwnedFd>,
}

/// A process could not be started; the messages are for a person.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No such file.
    #[error(
        "command not found: `{0}`. Check the command, and that it is in the PATH (in a pod: transport.stdio.command, and \
         the image's PATH)."
    )]
    NotFound(String),
    /// The file is there, what should interpret it is not.
    #[error(
        "`{0}` exists but cannot be run: the interpreter in its first line, or its dynamic loader, is not there."
    )]
    NoInterpreter(String),
    /// Not allowed.
    #[error(
        "`{0}` may not be executed by this user: check its mode (and in a pod the securityContext of the container)."
    )]
    NotExecutable(String),
    /// Not a program.
    #[error(
        "`{0}` is no program for this machine: a script without `#!`, or built for another architecture."
    )]
    NotAProgram(String),
    /// Too many.
    #[error("{0} processes of the MCP server run already, the most that --max-processes allows.")]
    TooMany(usize),
    /// Anything else.
    #[error("`{command}` could not be started: {error}.")]
    Other {
        /// The program.
        command: String,
        /// What the system said.
        error: io::Error,
    },
}

impl Processes {
    /// Will start `command` (program and arguments, not empty), at most `max` at one time.
    pub fn new(command: Vec<OsString>, max: usize, reap: Reap) -> Self {
        Self::launched_by(Vec::new(), command, max, reap)
    }

    /// The same, by way of another command that becomes this one.
    pub fn launched_by(launcher: Vec<OsString>, command: Vec<OsString>, max: usize, reap: Reap) -> Self {
        let shared =
            Shared { command, launcher, max, reap, table: Mutex::default(), spawned: AtomicU64::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// Makes this process the one that its descendants come to when their parents are gone, where it is to reap all.
    ///
    /// # Errors
    /// The system refuses.
    pub fn adopt(&self) -> io::Result<()> {
        if self.shared.reap == Reap::Everything {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        Ok(())
    }

    /// The program that is started.
    pub fn program(&self) -> String {
        self.shared.command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Processes that run, those being ended included.
    pub fn running(&self) -> usize {
        self.table().len()
    }

    /// Starts a process. Its stderr is ours.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub fn spawn(&self) -> Result<Process, SpawnError> {
        let Shared { command, launcher, .. } = &*self.shared;
        let words: Vec<&OsString> = launcher.iter().chain(command).collect();
        let (Some((program, arguments)), Some(wanted)) = (words.split_first(), command.first()) else {
            return Err(SpawnError::NotFound(String::new()));
        };
        if !launcher.is_empty() && !is_found(wanted) {
            // The launcher would find out, and could tell nobody but the log.
            return Err(SpawnError::NotFound(wanted.to_string_lossy().into_owned()));
        }
        let mut table = self.table();
        if table.len() >= self.shared.max {
            return Err(SpawnError::TooMany(table.len()));
        }
        let serial = self.shared.spawned.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}.{serial}", std::process::id());
        let mut child = Command::new(program)
            .args(arguments)
            .env(MARK, &mark)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
            .map_err(|error| explain(program, error))?;
        let (tell, exit) = watch::channel(None);
        let pid = Pid::from_child(&child);
        table.insert(pid, tell);
        let (stdin, stdout) = (child.stdin.take().map(Into::into), child.stdout.take().map(Into::into));
        Ok(Process { pid, mark, started: Instant::now(), exit, stdin, stdout })
    }

    /// Reaps whatever ends, for as long as it is polled. Without it no process is ever seen to end.
    ///
    /// # Errors
    /// SIGCHLD cannot be listened to.
    pub async fn reap(&self) -> io::Result<()> {
        let mut child_ended = signal(SignalKind::child())?;
        loop {
            self.reap_ended();
            if child_ended.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap_ended(&self) {
        let mut table = self.table();
        match self.shared.reap {
            Reap::Everything => {
                while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                    tell_exit(&mut table, pid, status);
                }
            }
            Reap::Own => {
                let pids: Vec<Pid> = table.keys().copied().collect();
                for pid in pids {
                    if let Ok(Some((pid, status))) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG)
                    {
                        tell_exit(&mut table, pid, status);
                    }
                }
            }
        }
    }

    /// Ends a process and everything it started, and says how it ended (`None`: it would not even by SIGKILL).
    /// Takes at most two graces and [`KILL_GRACE`]. `close_first`: wait a grace for it to leave by itself, its
    /// stdin being closed. Its stdout, if it is still here, is read to the last: an answer that nobody waits for any more
    /// is no reason for a server to die of a broken pipe (MCP 2025-11-25, Lifecycle, "Shutdown": its stdin is closed, and
    /// it leaves).
    pub async fn end(&self, mut process: Process, grace: Duration, close_first: bool) -> Option<Exit> {
        process.stdin = None;
        let stdout = process.stdout.take();
        tokio::select! {
            exit = self.end_unread(process, grace, close_first) => exit,
            never = discard(stdout) => match never {},
        }
    }

    async fn end_unread(&self, mut process: Process, grace: Duration, close_first: bool) -> Option<Exit> {
        if close_first {
            let _ = timeout(grace, process.exited()).await; // it had its chance
        }
        for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, KILL_GRACE)] {
            if !self.signal(&process, signal) {
                break;
            }
            if timeout(patience, self.gone(&mut process)).await.is_ok() {
                break;
            }
        }
        let exit = *process.exit.borrow();
        if exit.is_none() {
            tracing::error!(
                pid = process.pid(),
                "a process of the MCP server does not end, not even by SIGKILL"
            );
        }
        exit
    }

    /// Signals the process, its group and its strays; false when there is nobody left.
    fn signal(&self, process: &Process, signal: Signal) -> bool {
        let table = self.table();
        // Once the leader is reaped its pid may name another process of ours; a group that still has members
        // keeps its id from being used again.
        let reused = process.exit.borrow().is_some() && table.contains_key(&process.pid);
        let group = !reused && rustix::process::kill_process_group(process.pid, signal).is_ok();
        let strays = self.strays(process, &table);
        for stray in &strays {
            let _ = rustix::process::kill_process(*stray, signal); // gone meanwhile: good
        }
        group || !strays.is_empty()
    }

    /// Resolves when the process, its group and its strays are gone. Strays that appear while the others go
    /// (their parents died) get SIGKILL: their time was their parents' time.
    async fn gone(&self, process: &mut Process) {
        process.exited().await;
        loop {
            {
                let table = self.table();
                let group = !table.contains_key(&process.pid)
                    && rustix::process::test_kill_process_group(process.pid).is_ok();
                if !group {
                    let strays = self.strays(process, &table);
                    if strays.is_empty() {
                        return;
                    }
                    for stray in strays {
                        let _ = rustix::process::kill_process(stray, Signal::KILL);
                    }
                }
            }
            sleep(GROUP_POLL).await;
        }
    }

    fn strays(&self, process: &Process, table: &HashMap<Pid, watch::Sender<Option<Exit>>>) -> Vec<Pid> {
        match self.shared.reap {
            Reap::Everything => {
                orphans::marked(&format!("{MARK}={}", process.mark), |pid| table.contains_key(&pid))
            }
            Reap::Own => Vec::new(), // they are not our children
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Pid, watch::Sender<Option<Exit>>>> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Resolves when it has ended. Cancel-safe.
    pub async fn exited(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // The table never drops a sender without telling first.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

fn tell_exit(table: &mut HashMap<Pid, watch::Sender<Option<Exit>>>, pid: Pid, status: WaitStatus) {
    let exit = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => return, // stopped or continued
    };
    if let Some(tell) = table.remove(&pid) {
        tell.send_replace(Some(exit));
    }
}

/// Reads for nobody.
async fn discard(stdout: Option<OwnedFd>) -> Infallible {
    if let Some(Ok(mut stdout)) = stdout.map(pipe::Receiver::from_owned_fd) {
        let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await; // to its end, or as far as can be read
    }
    std::future::pending().await
}

/// Whether there is such a file, by its path or in the PATH.
fn is_found(program: &OsString) -> bool {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.exists();
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories).any(|directory| directory.join(path).is_file())
}

/// What a failed start means.
pub(super) fn explain(program: &OsString, error: io::Error) -> SpawnError {
    const ENOEXEC: i32 = 8;
    let path = Path::new(program);
    let command = program.to_string_lossy().into_owned();
    match error.kind() {
        io::ErrorKind::NotFound if path.components().count() > 1 && path.exists() => {
            SpawnError::NoInterpreter(command)
        }
        io::ErrorKind::NotFound => SpawnError::NotFound(command),
        io::ErrorKind::PermissionDenied => SpawnError::NotExecutable(command),
        _ if error.raw_os_error() == Some(ENOEXEC) => SpawnError::NotAProgram(command),
        _ => SpawnError::Other { command, error },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const GRACE: Duration = Duration::from_millis(300);
    /// A grace that nobody is to need.
    const LONG: Duration = Duration::from_secs(20);

    /// Processes of a shell script. Only our own are reaped: the tests share one process.
    fn of(script: &str) -> Processes {
        let command = ["sh", "-c", script].map(OsString::from).to_vec();
        let processes = Processes::new(command, 2, Reap::Own);
        let reaper = processes.clone();
        tokio::spawn(async move { reaper.reap().await });
        processes
    }

    fn exists(pid: i32) -> bool {
        Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }

    #[tokio::test]
    async fn a_process_that_leaves_when_its_stdin_closes_is_not_signalled() {
        let processes = of("read line; echo \"got $line\"; cat; exit 7");
        let mut process = processes.spawn().unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        std::fs::File::from(stdin).write_all(b"it\n").unwrap(); // and is closed
        let mut said = String::new();
        std::fs::File::from(stdout).read_to_string(&mut said).unwrap();
        assert_eq!(said, "got it\n");
        assert_eq!(processes.end(process, GRACE, true).await, Some(Exit::Code(7)));
        assert_eq!(processes.running(), 0);
    }

    #[tokio::test]
    async fn what_a_process_says_last_does_not_break_it() {
        // More than a pipe holds.
        let processes = of("trap '' PIPE; cat; head -c 200000 /dev/zero || exit 3");
        let process = processes.spawn().unwrap();
        assert_eq!(processes.end(process, LONG, true).await, Some(Exit::Code(0)));
        // Where somebody else reads, nothing is taken away.
        let mut process = processes.spawn().unwrap();
        let mut stdout = std::fs::File::from(process.stdout.take().unwrap());
        let reading = tokio::task::spawn_blocking(move || stdout.read_to_end(&mut Vec::new()).unwrap());
        assert_eq!(processes.end(process, LONG, true).await, Some(Exit::Code(0)));
        assert_eq!(reading.await.unwrap(), 200_000);
    }

    #[tokio::test]
    async fn a_process_gets_sigterm_then_sigkill_and_its_group_too() {
        let polite = of("trap 'exit 5' TERM; sleep 1000 & wait");
        assert_eq!(polite.end(ready(&polite).await, GRACE, false).await, Some(Exit::Code(5)));

        let stubborn = of("trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1; done");
        let mut process = stubborn.spawn().unwrap();
        let stdout = process.stdout.take().unwrap();
        let mut child = [0; 16];
        let length = std::fs::File::from(stdout).read(&mut child).unwrap();
        let child: i32 = std::str::from_utf8(&child[..length]).unwrap().trim().parse().unwrap();
        assert!(exists(child));
        let started = Instant::now();
        assert_eq!(stubborn.end(process, GRACE, false).await, Some(Exit::Signal(9)));
        assert!(started.elapsed() >= GRACE, "it had its time");
        assert!(!exists(child), "a child in its group");
    }

    /// A process whose shell has read its script.
    async fn ready(processes: &Processes) -> Process {
        let process = processes.spawn().unwrap();
        sleep(Duration::from_millis(200)).await;
        process
    }

    #[tokio::test]
    async fn a_signal_is_never_sent_to_a_successor_with_the_same_pid() {
        let processes = of("exit 0");
        let mut ended = processes.spawn().unwrap();
        ended.exited().await;
        let successor = of("sleep 1000");
        let alive = successor.spawn().unwrap();
        ended.pid = alive.pid; // as the kernel may give it
        assert!(successor.signal(&alive, Signal::CONT), "somebody is there");
        assert!(!successor.signal(&ended, Signal::KILL));
        assert_eq!(alive.exit(), None);
        successor.end(alive, GRACE, false).await;
    }

    #[tokio::test]
    async fn there_are_no_more_than_allowed() {
        let processes = of("cat");
        let first = processes.spawn().unwrap();
        let _second = processes.spawn().unwrap();
        assert!(matches!(processes.spawn(), Err(SpawnError::TooMany(2))));
        processes.end(first, GRACE, true).await;
        let third = processes.spawn().unwrap();
        processes.end(third, GRACE, true).await;
    }
}
