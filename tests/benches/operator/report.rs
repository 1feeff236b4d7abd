//! The table that people read.

use std::{fmt, fs, time::Duration};

use crate::{
    meter::{Cost, Requests},
    stage::Stage,
};

/// What was measured, a line each, in the order in which it was.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    aim: &'static str,
}

impl Table {
    /// A figure, and what is aimed at.
    pub(crate) fn row(&mut self, what: impl Into<String>, measured: impl Into<String>, aim: &'static str) {
        let row = Row { what: what.into(), measured: measured.into(), aim };
        eprintln!("{}: {}", row.what, row.measured);
        self.0.push(row);
    }

    /// A line that begins a part.
    pub(crate) fn head(&mut self, what: impl Into<String>) {
        self.row(what, "", "");
    }

    /// The machine and the binary.
    pub(crate) fn machine(&mut self, stage: &Stage) {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        self.row("machine", format!("{cores} × {}", model.map_or("unknown", |(_, name)| name)), "");
        let size = stage.binary.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        self.row("binary", format!("{:.1} MB", size as f64 / 1e6), "≤ 15 MB");
    }

    /// Who used the processors.
    pub(crate) fn cost(&mut self, cost: &Cost) {
        let parts: Vec<String> =
            cost.parts.iter().map(|(name, used)| format!("{name} {:.1} s", used.as_secs_f64())).collect();
        self.row("  processor time", parts.join(", "), "");
        self.row("  machine busy", format!("{:.0} %", cost.busy * 100.0), "");
    }

    /// What was asked of the API server.
    pub(crate) fn requests(&mut self, requests: &Requests, objects: usize, aim: &'static str) {
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let each = |count: usize| count as f64 / objects as f64;
        let (writes, events) = (requests.writes, requests.events);
        let text =
            format!("{:.2} (Events: {:.2}), conflicts: {}", each(writes), each(events), requests.conflicts);
        self.row("  writes per object", text, aim);
        let counts: Vec<String> =
            requests.counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        self.row("  requests", counts.join(", "), "");
    }
}

impl fmt::Display for Table {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|row| row.what.chars().count()).max().unwrap_or_default();
        for Row { what, measured, aim } in &self.0 {
            let aim = if aim.is_empty() { String::new() } else { format!("   (aim: {aim})") };
            writeln!(to, "{what:<width$} │ {measured}{aim}")?;
        }
        Ok(())
    }
}

/// `12.3 s`
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Median and the largest.
pub(crate) fn median(mut all: Vec<Duration>) -> String {
    all.sort();
    let millis = |at: Option<&Duration>| at.copied().unwrap_or_default().as_secs_f64() * 1e3;
    format!(
        "{:.1} ms (longest of {}: {:.1} ms)",
        millis(all.get(all.len() / 2)),
        all.len(),
        millis(all.last())
    )
}

/// `12.3 MiB`
pub(crate) fn mebibytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{mebibytes:.1} MiB")
}
