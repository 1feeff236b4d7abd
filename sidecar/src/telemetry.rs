//! Logs: a line for what a person may have to know, never one a message.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{filter::Targets, fmt, prelude::*};

use crate::config::LogFormat;

/// Starts logging to stderr. Done once; later calls change nothing. The filter has been checked with the
/// configuration; one that cannot be read all the same means `info`.
pub fn init(format: LogFormat, filter: &str) {
    let filter = filter.parse().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(stderr);
    let json = match format {
        LogFormat::Auto => !stderr().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    // Fails only where a subscriber is set already (several gateways in one test process).
    let _ = if json {
        registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init()
    } else {
        registry.with(lines.with_ansi(false)).try_init()
    };
}
