//! What is aimed at. With `--strict` a measurement fails on the bounds: what is written, memory, and the binary do not
//! depend on who else uses the machine. Times are printed beside their aims, and fail nothing.

use std::fmt;

use anyhow::{Result, ensure};

/// What must not be exceeded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    at_most: f64,
    unit: &'static str,
}

pub(crate) const BINARY: Bound = Bound { at_most: 15.0, unit: " MB" };
/// Of a thousand services, where there are services.
pub(crate) const RESIDENT_WITH_NOTHING: Bound = Bound { at_most: 10.0, unit: " MiB" };
pub(crate) const RESIDENT_READY: Bound = Bound { at_most: 35.0, unit: " MiB" };
pub(crate) const RESIDENT_ASLEEP: Bound = Bound { at_most: 60.0, unit: " MiB" };
pub(crate) const WRITES_PER_OBJECT: Bound = Bound { at_most: 4.0, unit: "" };
pub(crate) const WRITES_AT_REST: Bound = Bound { at_most: 0.0, unit: "" };
pub(crate) const CONFLICTS: Bound = Bound { at_most: 0.0, unit: "" };

/// Of times, to be shown.
pub(crate) const ONE_CREATED: &str = "≤ 8 ms";
pub(crate) const ONE_CHANGED: &str = "≤ 8 ms";
pub(crate) const MENDED: &str = "≤ 100 ms";
pub(crate) const ALL_DEPLOYMENTS: &str = "≤ 12 s";
pub(crate) const LAST_WRITE: &str = "≤ 20 s";
pub(crate) const ALL_LOOKED_AT: &str = "≤ 3 s";

impl fmt::Display for Bound {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at_most, unit } = self;
        if *at_most == 0.0 { to.write_str("none") } else { write!(to, "≤ {at_most}{unit}") }
    }
}

/// What exceeded its bound.
#[derive(Debug, Default)]
pub(crate) struct Missed(Vec<String>);

impl Missed {
    /// Compares a figure, in hundredths: one status more of a thousand is none for each.
    pub(crate) fn compare(&mut self, part: &str, what: &str, value: f64, bound: Bound) {
        if (value * 100.0).round() > bound.at_most * 100.0 {
            let part = if part.is_empty() { String::new() } else { format!("{part}: ") };
            self.0.push(format!("{part}{}: {value:.2} (aim: {bound})", what.trim()));
        }
    }

    /// Whether all aims were met that have a bound.
    ///
    /// # Errors
    /// Those that were not.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.0.is_empty(), "{} aims were missed:\n  {}", self.0.len(), self.0.join("\n  "));
        Ok(())
    }
}
