//! What people read.

use std::{fs, time::Duration};

use anyhow::Result;
use mcp_mqtt_tests::binaries;
use mcp_mqtt_transport::mqtt::Qos;

use crate::rounds::{Measured, Shape};

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

/// One line about the binary.
pub(crate) fn binary() -> Result<String> {
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let megabytes = fs::metadata(binaries::sidecar())?.len() as f64 / 1e6;
    Ok(format!("gateway: {megabytes:.1} MB on disk"))
}

/// The medians of a row's rounds, the ratios taken pair by pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ratios {
    echo: Measured,
    gateway: Measured,
    /// What the gateway adds to the echo's p50, in microseconds.
    added: f64,
    p50: f64,
    p99: f64,
    per_second: f64,
}

impl Ratios {
    pub(crate) fn of(pairs: &[(Measured, Measured)]) -> Self {
        let of_side = |side: fn(&(Measured, Measured)) -> Measured| Measured {
            p50: median(pairs.iter().map(|pair| side(pair).p50)),
            p99: median(pairs.iter().map(|pair| side(pair).p99)),
            per_second: median_of(pairs.iter().map(|pair| side(pair).per_second)),
            cpu: median(pairs.iter().map(|pair| side(pair).cpu)),
        };
        let ratio =
            |of: fn(Measured) -> f64| median_of(pairs.iter().map(|(echo, gateway)| of(*gateway) / of(*echo)));
        Self {
            echo: of_side(|pair| pair.0),
            gateway: of_side(|pair| pair.1),
            added: median_of(pairs.iter().map(|(echo, gateway)| micros(gateway.p50) - micros(echo.p50))),
            p50: ratio(|it| micros(it.p50)),
            p99: ratio(|it| micros(it.p99)),
            per_second: ratio(|it| it.per_second),
        }
    }
}

/// A line of the tables of calls.
pub(crate) struct Bar;

impl Bar {
    pub(crate) fn head() -> String {
        format!(
            "{}\n{:<10} {:>7} {:>3} {:>7} │ {:>8} {:>8} {:>8} │ {:>8} {:>8} {:>8} {:>6} │ {:>6} {:>6} {:>6} {:>7}\n{}",
            "                               │           the echo         │             the gateway           │      gateway to echo",
            "server",
            "payload",
            "QoS",
            "clients",
            "p50 µs",
            "p99 µs",
            "calls/s",
            "p50 µs",
            "p99 µs",
            "calls/s",
            "CPU µs",
            "p50 +µs",
            "p50 ×",
            "p99 ×",
            "calls ×",
            Self::foot(),
        )
    }

    pub(crate) fn foot() -> String {
        format!("{}┼{}┼{}┼{}", "─".repeat(31), "─".repeat(28), "─".repeat(35), "─".repeat(31))
    }

    /// `name`: of what stands behind the gateway, or whatever else tells the lines apart.
    pub(crate) fn of(name: &str, shape: Shape, ratios: &Ratios) -> String {
        let Ratios { echo, gateway, added, p50, p99, per_second } = ratios;
        format!(
            "{:<10} {:>7} {:>3} {:>7} │ {:>8.0} {:>8.0} {:>8.0} │ {:>8.0} {:>8.0} {:>8.0} {:>6.1} │ {:>+7.0} {:>6.2} {:>6.2} {:>7.2}",
            name,
            bytes(shape.payload),
            u8::from(shape.qos == Qos::AtLeastOnce),
            shape.clients,
            micros(echo.p50),
            micros(echo.p99),
            echo.per_second,
            micros(gateway.p50),
            micros(gateway.p99),
            gateway.per_second,
            micros(gateway.cpu),
            added,
            p50,
            p99,
            per_second,
        )
    }
}

/// `256 B`, `16 KiB`
pub(crate) fn bytes(bytes: usize) -> String {
    if bytes < 1 << 10 { format!("{bytes} B") } else { format!("{} KiB", bytes >> 10) }
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The one in the middle.
pub(crate) fn median(all: impl Iterator<Item = Duration>) -> Duration {
    let mut all: Vec<Duration> = all.collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// The one in the middle.
pub(crate) fn median_of(all: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn mebibytes(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}
