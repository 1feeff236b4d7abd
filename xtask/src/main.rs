//! Project tasks: `cargo xtask help` lists them.

mod chart;
mod crds;
mod generated;

use std::path::Path;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Project tasks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the CRDs, in crds/ and in the chart, from operator/src/crd.
    Crds {
        /// Write nothing; fail where a file differs.
        #[arg(long)]
        check: bool,
    },
    /// Write the chart's README table and values.schema.json from its values.yaml.
    Chart {
        /// Write nothing; fail where a file differs.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask stands in the workspace")?;
    match Cli::parse().command {
        Command::Crds { check } => generated::write_or_check(&crds::generate(root), check),
        Command::Chart { check } => generated::write_or_check(&chart::generate(root)?, check),
    }
}
