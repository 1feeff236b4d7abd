//! The node that `cargo xtask cluster` runs on this machine: its containers' processes are processes here, in
//! namespaces of their own, so that a test can kill what Kubernetes itself would never kill this way.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Kills the first process of a container with SIGKILL, as the kernel's out-of-memory killer would.
///
/// `container_id` is as in a container's status: `containerd://<hex>`.
///
/// # Errors
/// When the container has no process on this machine.
pub fn kill_container(container_id: &str) -> Result<()> {
    kill_process(first_process(container_id)?, Signal::KILL).context("cannot kill the container's process")
}

/// The first process of a container.
///
/// # Errors
/// When the container has no process on this machine.
pub fn first_process(container_id: &str) -> Result<Pid> {
    let id = container_id.rsplit('/').next().filter(|id| id.len() == 64).context("odd container id")?;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
        if read("cgroup").contains(id) && is_first(&read("status")) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            return name.parse().ok().and_then(Pid::from_raw).context("odd process id");
        }
    }
    bail!("container {id} has no process on this machine; this test wants the cluster of `cargo xtask test`")
}

/// Packets of a process's network are dropped, both ways and without a word, as long as this exists: no socket learns
/// of it.
#[derive(Debug)]
pub struct Blackhole(Pid);

impl Blackhole {
    /// Begins to drop what goes to a TCP port elsewhere, and what comes from there.
    ///
    /// # Errors
    /// When the process is gone, or nftables will not have it.
    pub fn of_port(process: Pid, port: u16) -> Result<Self> {
        Self::open(process, &format!("tcp sport {port} drop"), &format!("tcp dport {port} drop"))
    }

    /// Begins to drop what goes to a TCP port of the process's own, and what comes from it.
    ///
    /// # Errors
    /// As [`of_port`](Self::of_port).
    pub fn of_own_port(process: Pid, port: u16) -> Result<Self> {
        Self::open(process, &format!("tcp dport {port} drop"), &format!("tcp sport {port} drop"))
    }

    /// Begins to drop everything, as if the node were lost.
    ///
    /// # Errors
    /// As [`of_port`](Self::of_port).
    pub fn of_all(process: Pid) -> Result<Self> {
        Self::open(process, "iif != lo drop", "oif != lo drop")
    }

    fn open(process: Pid, incoming: &str, outgoing: &str) -> Result<Self> {
        let rules = format!(
            "table inet blackhole {{
                chain in {{ type filter hook input priority 0; {incoming}; }}
                chain out {{ type filter hook output priority 0; {outgoing}; }}
            }}"
        );
        nft(process, &rules)?;
        Ok(Self(process))
    }

    /// Lets packets pass again.
    ///
    /// # Errors
    /// When nftables will not have it.
    pub fn close(self) -> Result<()> {
        nft(self.0, "delete table inet blackhole")
    }
}

fn nft(process: Pid, rules: &str) -> Result<()> {
    let target = process.as_raw_nonzero().to_string();
    let done = Command::new("nsenter").args(["--target", &target, "--net", "nft", rules]).output()?;
    ensure!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A program of the cluster's, by the name it was started under (`kube-apiserver`): the one in this process's network.
///
/// # Errors
/// When there is none on this machine.
pub fn component(name: &str) -> Result<u32> {
    let network = fs::read_link("/proc/self/ns/net")?;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        let command_line = fs::read(path.join("cmdline")).unwrap_or_default();
        let first = command_line.split(|byte| *byte == 0).next().unwrap_or_default();
        if first == name.as_bytes() && fs::read_link(path.join("ns/net")).is_ok_and(|link| link == network) {
            return Ok(pid);
        }
    }
    bail!("no {name} runs on this machine; this wants a cluster of `cargo xtask cluster`")
}

/// Halts a process where it stands, until it goes on.
///
/// # Errors
/// When it has ended.
pub fn halt(pid: u32) -> Result<()> {
    send(pid, Signal::STOP)
}

/// Lets a halted process go on.
///
/// # Errors
/// When it has ended.
pub fn go_on(pid: u32) -> Result<()> {
    send(pid, Signal::CONT)
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("odd process id")?;
    kill_process(pid, signal).context("no signal reaches the process")
}

/// Whether `/proc/<pid>/status` is of the first process of its PID namespace.
fn is_first(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.and_then(|ids| ids.split_whitespace().last()) == Some("1")
}
