//! `cargo xtask bench`: what is measured, and what each needs to run.

mod measurement;
mod operator;
mod rollout;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use crate::{
    images, packages,
    suite::cargo,
    workspace::{self, root},
};

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Calls through the gateway beside the broker's plain echo, and what its sessions cost.
    #[command(disable_help_flag = true)]
    Gateway {
        /// Of the measurement itself: `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
        options: Vec<String>,
    },
    /// A thousand `McpServices` at a real API server: time, requests, writes, processor time, memory.
    Operator(operator::Arguments),
    /// Calls under way while instances are taken away: a rolling update, a scale-in, a drained node, an upgrade; and wakes.
    Rollout(rollout::Arguments),
}

impl Default for Bench {
    fn default() -> Self {
        Self::Gateway { options: Vec::new() }
    }
}

impl Bench {
    /// Measures it and prints the table.
    ///
    /// # Errors
    /// When something cannot be built, or does not answer.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Gateway { options } => gateway(&options),
            Self::Operator(arguments) => operator::run(&arguments),
            Self::Rollout(arguments) => rollout::run(&arguments),
        }
    }
}

/// The gateway as it is shipped.
fn gateway(options: &[String]) -> Result<()> {
    packages::ensure(&[packages::BROKER, packages::SERVERS])?;
    let binary = images::sidecar_binary()?;
    // No package is named: as the measurement asks for the stub server, so that nothing is built twice.
    cargo(&["build", "--release", "--bin", "bench-gateway", "--bin", "stub-server"])?;
    let mut bench = Command::new(workspace::target("release/bench-gateway"));
    let status = bench.args(options).env("MCP_MQTT_SIDECAR_BINARY", binary).current_dir(root()).status();
    let status = status.context("cannot run the measurement")?;
    ensure!(status.success(), "the measurement did not end well ({status})");
    Ok(())
}
