//! The processes of a cluster, as the machine's `/proc` shows them.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

/// The first process of a cluster's namespaces.
///
/// It is found by its command line, not by a file that names its number: no moment of a boot that is cut short leaves a
/// node that cannot be found, and a number that came to mean another process is never believed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    /// Its process number on this machine.
    pub(super) pid: u32,
}

/// What part a process has in a cluster's boot.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Makes the namespaces; lives for a moment.
    Start,
    /// Is the first process in them.
    Run,
}

impl Node {
    /// The node whose state directory this is, if it runs.
    pub(super) fn find(state: &Path) -> Option<Self> {
        processes(state).into_iter().find(|(_, role)| *role == Role::Run).map(|(pid, _)| Self { pid })
    }

    /// Commands that run in the node's network without being the cluster's own, for a message.
    pub(super) fn visitors(self) -> Result<Vec<String>> {
        let network = fs::read_link(format!("/proc/{}/ns/net", self.pid))?;
        let own = fs::read_link(format!("/proc/{}/ns/pid", self.pid))?;
        Ok(all_processes()
            .filter(|pid| link(*pid, "net").is_some_and(|other| other == network))
            .filter(|pid| link(*pid, "pid").is_some_and(|other| other != own))
            // The sandboxes of pods share the node's network for a moment at their start.
            .filter(|pid| !is_inside(*pid))
            .map(|pid| format!("{} (process {pid})", command_line(pid).join(" ")))
            .collect())
    }

    /// When it was started, as time that has passed since.
    pub(super) fn age(self) -> Option<Duration> {
        let metadata = fs::metadata(format!("/proc/{}", self.pid)).ok()?;
        metadata.modified().ok()?.elapsed().ok()
    }

    /// All processes in its namespaces, pods included.
    pub(super) fn family(self) -> Vec<u32> {
        all_processes().filter(|pid| descends_from(*pid, self.pid)).collect()
    }

    /// Memory of the [`family`](Self::family): proportional shares, in bytes.
    pub(super) fn memory(self) -> u64 {
        self.family().into_iter().filter_map(proportional_memory).sum()
    }
}

/// Kills everything of the cluster and waits until it is gone.
pub(super) fn kill_all(state: &Path, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let found: Vec<Ending> =
            processes(state).into_iter().filter_map(|(pid, _)| Ending::of(pid)).collect();
        if found.is_empty() {
            return Ok(());
        }
        for process in &found {
            kill(process.pid);
        }
        for process in found {
            process.wait(deadline.saturating_duration_since(Instant::now()))?;
        }
    }
}

/// A process that is to end. Its command line goes at once when it is killed; that the first process of a namespace has
/// ended, and with it all others there, only the kernel knows.
struct Ending {
    pid: u32,
    descriptor: OwnedFd,
}

impl Ending {
    /// None: it is gone already.
    fn of(pid: u32) -> Option<Self> {
        let descriptor = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, descriptor })
    }

    fn wait(self, limit: Duration) -> Result<()> {
        let limit = Timespec::try_from(limit).context("a time limit is short")?;
        let mut ended = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let count = poll(&mut ended, Some(&limit)).context("cannot wait for a process")?;
        ensure!(count > 0, "process {} does not end after SIGKILL", self.pid);
        Ok(())
    }
}

/// Kills a process and all that descend from it. They are stopped first, so that none starts another meanwhile.
pub(crate) fn kill_tree(root: u32) {
    let mut stopped = BTreeSet::new();
    loop {
        let found: Vec<u32> = all_processes()
            .filter(|pid| descends_from(*pid, root))
            .filter(|pid| !stopped.contains(pid))
            .collect();
        if found.is_empty() {
            break;
        }
        for pid in found {
            signal(pid, Signal::STOP);
            stopped.insert(pid);
        }
    }
    stopped.into_iter().for_each(kill);
}

/// Sends SIGKILL.
pub(super) fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// One that is gone by now needs no signal.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The process of a node's that was started under that name.
pub(super) fn named(node: Node, name: &str) -> Result<u32> {
    node.family()
        .into_iter()
        .find(|pid| command_line(*pid).first().is_some_and(|first| first == name))
        .with_context(|| format!("no {name} runs"))
}

/// The command line of a process that has not ended.
pub(super) fn still_runs(pid: u32) -> Option<String> {
    let line = command_line(pid);
    (!line.is_empty() && !is_zombie(pid)).then(|| line.join(" "))
}

/// Command lines with that text in them.
pub(super) fn mentioning(text: &str) -> Vec<String> {
    all_processes().filter_map(still_runs).filter(|line| line.contains(text)).collect()
}

/// The cluster's `node start` and `node run`.
fn processes(state: &Path) -> Vec<(u32, Role)> {
    let state = format!("--state={}", state.display());
    all_processes()
        .filter_map(|pid| Some((pid, role(&command_line(pid), &state)?)))
        .filter(|(pid, _)| !is_zombie(*pid))
        .collect()
}

fn role(command_line: &[String], state: &str) -> Option<Role> {
    let [_, node, verb, options @ ..] = command_line else { return None };
    if node != "node" || !options.iter().any(|option| option == state) {
        return None;
    }
    match verb.as_str() {
        "start" => Some(Role::Start),
        "run" => Some(Role::Run),
        _ => None,
    }
}

fn all_processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Empty for a process that is gone, a zombie, or of the kernel.
fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// One that nobody has waited for: it holds no namespace any more.
fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('Z')))
        .unwrap_or(true)
}

fn link(pid: u32, namespace: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/{namespace}")).ok()
}

/// Numbers of a process in each process namespace from the machine's down to its own.
fn numbers(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            Some(line.split_whitespace().filter_map(|number| number.parse().ok()).collect())
        })
        .unwrap_or_default()
}

fn is_inside(pid: u32) -> bool {
    numbers(pid).len() > numbers(std::process::id()).len()
}

/// Every process of a node descends from its first one: that adopts the orphans.
fn descends_from(pid: u32, node: u32) -> bool {
    std::iter::successors(Some(pid), |pid| parent(*pid)).any(|pid| pid == node)
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn proportional_memory(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_node_is_known_by_its_command_line() {
        let state = "--state=/x/demo";
        assert_eq!(role(&words("kubernetes node run --name=demo --state=/x/demo"), state), Some(Role::Run));
        assert_eq!(role(&words("/x/bin node start --name=demo --state=/x/demo"), state), Some(Role::Start));
        assert_eq!(role(&words("kubernetes node run --name=demo --state=/x/demo2"), state), None);
        assert_eq!(role(&words("vi node run --state=/x"), state), None);
        assert_eq!(role(&[], state), None);
    }

    #[test]
    fn this_process_is_seen() {
        let own = std::process::id();
        assert!(all_processes().any(|pid| pid == own));
        assert!(!command_line(own).is_empty());
        assert!(!is_zombie(own));
        assert!(descends_from(own, own));
        assert!(proportional_memory(own).is_some_and(|bytes| bytes > 0));
    }
}
