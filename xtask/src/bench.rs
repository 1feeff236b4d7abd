//! `cargo xtask bench`: what is measured, and what each needs to run.

mod measurement;
mod operator;
mod rollout;

use anyhow::Result;
use clap::Subcommand;

use crate::{packages, suite::cargo};

/// What is measured.
#[derive(Debug, Default, Subcommand)]
pub(crate) enum Bench {
    /// Calls through the gateway beside the broker's plain echo.
    #[default]
    Gateway,
    /// A thousand `McpServices` at a real API server: time, requests, writes, processor time, memory.
    Operator(operator::Arguments),
    /// Calls under way while instances are taken away: a rolling update, a scale-in, a drained node, an upgrade.
    Rollout(rollout::Arguments),
}

impl Bench {
    /// Measures it and prints the table.
    ///
    /// # Errors
    /// When something cannot be built, or does not answer.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Gateway => gateway(),
            Self::Operator(arguments) => operator::run(&arguments),
            Self::Rollout(arguments) => rollout::run(&arguments),
        }
    }
}

fn gateway() -> Result<()> {
    packages::ensure(&[packages::BROKER])?;
    cargo(&["build", "--release", "--package", "mcp-mqtt-sidecar", "--package", "mcp-mqtt-tests", "--bins"])?;
    cargo(&["bench", "--package", "mcp-mqtt-tests", "--bench", "gateway"])
}
