//! The table that people read.

use std::{fmt, fs, time::Duration};

use crate::{
    aims::{self, Bound, Missed},
    meter::{Cost, Requests},
    stage::Stage,
};

/// What was measured, a line each, in the order in which it was.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// The line that began the part.
    part: String,
    /// What was not as aimed at.
    pub(crate) missed: Missed,
}

#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    aim: String,
}

impl Table {
    /// A figure, and what is aimed at.
    pub(crate) fn row(
        &mut self,
        what: impl Into<String>,
        measured: impl Into<String>,
        aim: impl Into<String>,
    ) {
        let row = Row { what: what.into(), measured: measured.into(), aim: aim.into() };
        eprintln!("{}: {}", row.what, row.measured);
        self.rows.push(row);
    }

    /// A figure that has a bound.
    pub(crate) fn bounded(&mut self, what: &str, measured: impl Into<String>, value: f64, bound: Bound) {
        self.missed.compare(&self.part, what, value, bound);
        self.row(what, measured, bound.to_string());
    }

    /// Memory, in bytes, that has a bound.
    pub(crate) fn resident(&mut self, what: &str, bytes: u64, bound: Bound) {
        self.bounded(what, mebibytes(bytes), in_mebibytes(bytes), bound);
    }

    /// A line that begins a part.
    pub(crate) fn head(&mut self, what: impl Into<String>) {
        self.part = what.into();
        self.row(self.part.clone(), "", "");
    }

    /// The machine and the binary.
    pub(crate) fn machine(&mut self, stage: &Stage) {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        self.row("machine", format!("{cores} × {}", model.map_or("unknown", |(_, name)| name)), "");
        let size = stage.binary.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let megabytes = size as f64 / 1e6;
        self.bounded("binary", format!("{megabytes:.1} MB"), megabytes, aims::BINARY);
    }

    /// Who used the processors.
    pub(crate) fn cost(&mut self, cost: &Cost) {
        let parts: Vec<String> =
            cost.parts.iter().map(|(name, used)| format!("{name} {:.1} s", used.as_secs_f64())).collect();
        self.row("  processor time", parts.join(", "), "");
        self.row("  machine busy", format!("{:.0} %", cost.busy * 100.0), "");
    }

    /// What was asked of the API server, and no more of it than is aimed at.
    pub(crate) fn bounded_requests(&mut self, requests: &Requests, objects: usize) {
        self.requests_with(requests, objects, Some([aims::WRITES_PER_OBJECT, aims::CONFLICTS]));
    }

    /// What was asked of the API server.
    pub(crate) fn requests(&mut self, requests: &Requests, objects: usize) {
        self.requests_with(requests, objects, None);
    }

    fn requests_with(&mut self, requests: &Requests, objects: usize, bounds: Option<[Bound; 2]>) {
        let Requests { writes, events, conflicts, counts, .. } = requests;
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let [each, events, clashes] =
            [*writes as f64 / objects as f64, *events as f64 / objects as f64, *conflicts as f64];
        let what = "  writes per object";
        let text = format!("{each:.2} (Events: {events:.2}), conflicts: {conflicts}");
        let aim = bounds.map(|[writes, none]| {
            self.missed.compare(&self.part, what, each, writes);
            self.missed.compare(&self.part, "conflicts", clashes, none);
            format!("{writes}, {none}")
        });
        self.row(what, text, aim.unwrap_or_default());
        let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        self.row("  requests", counts.join(", "), "");
    }
}

impl fmt::Display for Table {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or_default();
        for Row { what, measured, aim } in &self.rows {
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
    format!("{:.1} MiB", in_mebibytes(bytes))
}

fn in_mebibytes(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}
