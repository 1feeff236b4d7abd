//! Processor time and memory of a process.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    time::{Duration, Instant},
};

use crate::report;

/// Processor time of its threads, to the nanosecond; those that have ended are not counted.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let account = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        account.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    /// Its own: heap, stacks, data.
    anonymous: u64,
    /// Pages of its binary, which other processes of the same binary share.
    file: u64,
}

impl Memory {
    /// What it holds now; nothing when it is gone.
    pub(crate) fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() << 10
        };
        Self { resident: bytes("VmRSS:"), anonymous: bytes("RssAnon:"), file: bytes("RssFile:") }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [resident, anonymous, file] = [self.resident, self.anonymous, self.file].map(report::mebibytes);
        write!(to, "resident {resident:.1} MiB: {anonymous:.1} its own, {file:.1} pages of the binary")
    }
}

/// What the machine does for others than this program and all that it has started.
#[derive(Debug)]
pub(crate) struct Others {
    since: Instant,
    /// Processor time of everybody, and of ours, in ticks.
    used: (u64, u64),
}

/// Of the kernel's accounts, per second.
const TICKS: f64 = 100.0;

impl Others {
    /// From now on.
    pub(crate) fn watch() -> Self {
        Self { since: Instant::now(), used: (used_by_all(), used_by_us()) }
    }

    /// How many processors they have used since, on an average.
    pub(crate) fn processors(&self) -> f64 {
        let all = used_by_all().saturating_sub(self.used.0);
        let others = all.saturating_sub(used_by_us().saturating_sub(self.used.1));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 ticks")]
        let others = others as f64;
        others / TICKS / self.since.elapsed().as_secs_f64()
    }
}

/// By processes, and stolen by the host; what interrupts take is nobody's.
fn used_by_all() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let field = |at: usize| line.split_whitespace().nth(at).and_then(|it| it.parse::<u64>().ok());
    // user, nice, system; steal
    [1, 2, 3, 8].into_iter().filter_map(field).sum()
}

/// By this process, its children and theirs, with those that have ended.
fn used_by_us() -> u64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes: HashMap<u32, (u32, u64)> = processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let fields: Vec<u64> = stat
                .rsplit_once(')')?
                .1
                .split_whitespace()
                .map(|it| it.parse().unwrap_or_default())
                .collect();
            let parent = u32::try_from(*fields.get(1)?).ok()?;
            // utime, stime, and those of children that were waited for.
            Some((pid, (parent, fields.get(11..15)?.iter().sum())))
        })
        .collect();
    let mut ours = HashSet::from([std::process::id()]);
    loop {
        let more = processes.iter().filter(|(_, (parent, _))| ours.contains(parent)).map(|(pid, _)| *pid);
        let more: Vec<u32> = more.filter(|pid| !ours.contains(pid)).collect();
        if more.is_empty() {
            return ours.iter().filter_map(|pid| processes.get(pid)).map(|(_, used)| used).sum();
        }
        ours.extend(more);
    }
}
