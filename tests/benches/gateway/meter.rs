//! Processor time and memory of a process.

use std::{fmt, fs, time::Duration};

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
