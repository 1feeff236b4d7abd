//! The table that people read.

use std::{fs, time::Duration};

use crate::rounds::Measured;

/// One line about the machine.
pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches(|c: char| c.is_whitespace() || c == ':'));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("machine: {cores} × {model}, Linux {}", kernel.trim())
}

/// The head of the table.
pub(crate) fn header() -> String {
    format!(
        "{:>7} │ {:>9} {:>9} {:>9} │ {:>9} {:>9} {:>9} │ {:>9} {:>9}\n{:>7} │ {:>9} {:>9} {:>9} │ {:>9} {:>9} {:>9} │ {:>9} {:>9}",
        "",
        "echo",
        "echo",
        "echo",
        "gateway",
        "gateway",
        "gateway",
        "p50",
        "calls/s",
        "clients",
        "p50 µs",
        "p99 µs",
        "calls/s",
        "p50 µs",
        "p99 µs",
        "calls/s",
        "× echo",
        "× echo"
    )
}

/// One row: medians over the rounds, and the medians of the ratios taken pair by pair.
pub(crate) fn row(clients: usize, pairs: &[(Measured, Measured)]) -> String {
    let median_of = |value: &dyn Fn(&(Measured, Measured)) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    format!(
        "{clients:>7} │ {:>9.0} {:>9.0} {:>9.0} │ {:>9.0} {:>9.0} {:>9.0} │ {:>9.2} {:>9.2}",
        median_of(&|(echo, _)| micros(echo.p50)),
        median_of(&|(echo, _)| micros(echo.p99)),
        median_of(&|(echo, _)| echo.per_second),
        median_of(&|(_, gateway)| micros(gateway.p50)),
        median_of(&|(_, gateway)| micros(gateway.p99)),
        median_of(&|(_, gateway)| gateway.per_second),
        median_of(&|(echo, gateway)| micros(gateway.p50) / micros(echo.p50)),
        median_of(&|(echo, gateway)| gateway.per_second / echo.per_second),
    )
}
