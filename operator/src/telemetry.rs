//! Logs.

use tracing_subscriber::{
    filter::{ParseError, Targets},
    fmt,
    prelude::*,
};

use crate::cli::LogFormat;

/// The filter cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("--log {filter:?} is no filter: {source}; it looks like info, or info,mcp_mqtt_operator=debug")]
pub struct TelemetryError {
    filter: String,
    #[source]
    source: ParseError,
}

/// Sets the process's log up; done once.
///
/// # Errors
/// A filter that cannot be read.
pub fn start(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let parsed: Targets =
        filter.parse().map_err(|source| TelemetryError { filter: filter.to_owned(), source })?;
    let registry = tracing_subscriber::registry().with(parsed);
    let lines = fmt::layer().with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first one's.
    let _ = match format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => registry.with(lines).try_init(),
    };
    Ok(())
}
