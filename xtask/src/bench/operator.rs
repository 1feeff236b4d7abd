//! `cargo xtask bench operator`: a control plane of its own, the operator as it is shipped, and the measurement in the
//! cluster's network.

use anyhow::Result;
use clap::Args;

use super::measurement::{CLUSTER, Measurement};
use crate::{cluster::Cluster, images};

/// How much is measured.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// `McpServices` created at once.
    #[arg(long, default_value_t = 1000)]
    objects: usize,
    /// `McpServices` in memory at the end; 0 leaves this part out.
    #[arg(long, default_value_t = 10_000)]
    many: usize,
    /// `McpServices` with real pods; 0 leaves this part, and the images, out.
    #[arg(long, default_value_t = 50)]
    pods: usize,
    /// Only these parts, by commas: latencies, pods, floor, parked, at-once, ready, restart, upgrade. Those from ready on need at-once.
    #[arg(long)]
    only: Option<String>,
    /// Seconds that the operator is watched at rest.
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// Fail where more is written, held in memory or linked into the binary than is aimed at for the default numbers.
    #[arg(long)]
    strict: bool,
}

/// Runs it and prints its table.
///
/// # Errors
/// When something cannot be built or does not come to rest.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let binary = images::operator_binary()?;
    let cluster = Cluster::named(CLUSTER)?;
    cluster.down()?;
    cluster.up()?;
    let Arguments { objects, many, pods, only, rest, strict } = arguments;
    let parts = only.as_deref().map(|only| only.split(',').collect::<Vec<_>>());
    if *pods > 0 && parts.is_none_or(|parts| parts.contains(&"pods")) {
        images::ensure(&cluster)?;
    }
    let only = only.iter().map(|only| format!("--only={only}"));
    let numbers =
        [("objects", *objects), ("many", *many), ("pods", *pods)].map(|(name, n)| format!("--{name}={n}"));
    let rest = [format!("--rest={rest}")];
    let strict = strict.then(|| "--strict".to_owned());
    Measurement {
        bench: "operator",
        arguments: numbers.into_iter().chain(rest).chain(only).chain(strict).collect(),
        environment: vec![("MCP_MQTT_OPERATOR_BINARY", binary.to_string_lossy().into_owned())],
        what: "the operator",
    }
    .run(&cluster)
}
