//! `cargo xtask bench operator`: a control plane of its own, the operator as it is shipped, and the measurement in the
//! cluster's network.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    cluster::Cluster,
    images,
    progress::Step,
    suite::RUNNER,
    workspace::{self, root},
};

/// The measurement's own cluster: made anew for each.
const CLUSTER: &str = "bench";
/// Lines of what it said that an error shows.
const LAST_WORDS: usize = 20;

/// How much is measured.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// `McpServices` created at once.
    #[arg(long, default_value_t = 1000)]
    objects: usize,
    /// `McpServices` in memory at the end; 0 leaves this part out.
    #[arg(long, default_value_t = 10_000)]
    many: usize,
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
    let step = Step::start("Measuring the operator");
    // Each of its waits has a limit of its own.
    let mut command = workspace::cargo();
    command
        .args(["bench", "--package", "mcp-mqtt-tests", "--features", "cluster", "--bench", "operator", "--"])
        .args(["--objects", &arguments.objects.to_string(), "--many", &arguments.many.to_string()])
        .env("MCP_MQTT_OPERATOR_BINARY", binary)
        .env(RUNNER, format!("{} in-cluster --cluster {CLUSTER} --", workspace::this_program()?.display()))
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run cargo")?;
    let said = child.stderr.take().context("cargo was started without its output")?;
    let mut lines = Vec::new();
    for line in BufReader::new(said).lines() {
        let line = line.context("cannot read how far the measurement is")?;
        step.detail(line.trim());
        lines.push(line);
    }
    let mut table = String::new();
    child.stdout.take().context("as above")?.read_to_string(&mut table)?;
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        let last = lines.split_off(lines.len().saturating_sub(LAST_WORDS));
        bail!(
            "the measurement did not end well ({status}); the cluster {CLUSTER} stands to be looked at:\n{}",
            last.join("\n")
        );
    }
    step.done("The operator is measured");
    cluster.down()?;
    println!("{table}");
    Ok(())
}
