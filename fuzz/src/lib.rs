//! Fuzz targets: what strangers write, read by our parsers and by something simpler beside them. Each target takes any
//! bytes, and panics where the two disagree or a bound does not hold.
//!
//! `cargo xtask fuzz` runs them under libFuzzer, guided by coverage; `tests/replay.rs` replays `corpus/` and mutates it
//! for some seconds in each run of the tests.

mod control;
mod envelope;
mod jsonrpc;
mod lines;
mod pieces;
mod sse;
mod topic;

/// Something that is fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name; its seeds stand in `corpus/{name}`, its words in `dictionaries/{name}.dict`.
    pub name: &'static str,
    /// Panics on a finding.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "topic", run: topic::run },
    Target { name: "jsonrpc", run: jsonrpc::run },
    Target { name: "sse", run: sse::run },
    Target { name: "lines", run: lines::run },
    Target { name: "control", run: control::run },
    Target { name: "envelope", run: envelope::run },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
