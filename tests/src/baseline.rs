//! What a gateway and its server hold of the machine, and that it is given back after a fault.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

use crate::gateway::{Gateway, PATIENCE, until};

/// Memory that an allocator may keep after a burst (in bytes): its arenas grow in steps and are cut at their ends only.
pub const KEPT: u64 = 12 << 20;
/// File descriptors that come and go by themselves: one scrape of `/status`, one probe of the server.
const PASSING_FDS: usize = 4;

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Baseline {
    /// Resident memory of the gateway, in bytes.
    pub memory: u64,
    /// Open file descriptors of the gateway.
    pub fds: usize,
    /// Open file descriptors of the shim.
    pub shim_fds: usize,
    /// Processes of the server: the shim's descendants.
    pub processes: usize,
}

impl Baseline {
    /// What this gateway holds now.
    pub fn of(gateway: &Gateway) -> Self {
        let shim = gateway.server_pid();
        Self {
            memory: memory(gateway.pid()),
            fds: fds(gateway.pid()),
            shim_fds: shim.map(fds).unwrap_or_default(),
            processes: shim.map(|shim| descendants(shim).len()).unwrap_or_default(),
        }
    }

    /// Waits until the gateway holds no more than this, and [`KEPT`] of memory.
    ///
    /// # Errors
    /// It holds on to something.
    pub async fn regained(&self, gateway: &Gateway) -> Result<()> {
        self.regained_within(gateway, KEPT).await
    }

    /// Waits until the gateway holds no more than this, and so many bytes of memory.
    ///
    /// # Errors
    /// It holds on to something.
    pub async fn regained_within(&self, gateway: &Gateway, kept: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::of(gateway);
            if now.memory <= self.memory + kept
                && now.fds <= self.fds + PASSING_FDS
                && now.shim_fds <= self.shim_fds + PASSING_FDS
                && now.processes <= self.processes
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not given back: {self:?} before, {now:?} now");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Resident memory of a process, in bytes; 0 when it is gone.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// Processor time that a process has used; none when it is gone.
pub fn cpu(pid: u32) -> Duration {
    /// The kernel's unit there, on every architecture that we build for.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // User and system time are the 14th and 15th of all, the 12th and 13th behind the name.
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// Open file descriptors of a process; 0 when it is gone.
pub fn fds(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or_default()
}

/// Waits until there is no process below this one: those of the sessions that were have ended, the readiness probe's too.
///
/// # Errors
/// They live on.
pub async fn childless(pid: u32) -> Result<()> {
    until("processes of sessions have ended", || descendants(pid).is_empty()).await
}

/// All processes below this one, however deep; those that have ended and wait for their parent are none.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // `pid (any name) state parent …`
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        if let (Some(state), Some(Ok(parent))) = (fields.next(), fields.next().map(str::parse))
            && state != "Z"
        {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut found = children.remove(&pid).unwrap_or_default();
    let mut at = 0;
    while let Some(&next) = found.get(at) {
        found.extend(children.remove(&next).unwrap_or_default());
        at += 1;
    }
    found
}
