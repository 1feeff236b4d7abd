//! Project tasks: `cargo xtask help` lists them.

mod bench;
mod chart;
mod cluster;
mod demo;
mod fingerprint;
mod fuzz;
mod generated;
mod images;
mod mcp;
mod packages;
mod progress;
mod reference;
mod release;
mod suite;
mod tour;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Project tasks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job, shown: a Kubernetes, the chart, two services, tool calls over MQTT.
    Demo {
        /// The cluster's name.
        #[arg(long, env = cluster::VARIABLE, default_value = cluster::DEFAULT)]
        cluster: String,
    },
    /// Everything that CI runs.
    Test {
        /// One part alone.
        #[arg(long)]
        only: Option<suite::Part>,
    },
    /// Figures, as a table: of the gateway, unless something else is named.
    Bench {
        #[command(subcommand)]
        what: Option<bench::Bench>,
    },
    /// Fuzz what strangers write: topics, messages, streams.
    Fuzz(fuzz::FuzzArgs),
    /// Gateways under load for a while, with one fault after the other.
    Soak {
        /// For how long.
        #[arg(long, default_value_t = 15.0)]
        minutes: f64,
        /// Of the order of the faults, to see the same again.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// An MCP client over MQTT: what is registered, and calls.
    Mcp(Box<mcp::McpArgs>),
    /// The demo's second half, inside the cluster's network.
    #[command(hide = true)]
    Tour {
        #[arg(long)]
        broker: url::Url,
        #[arg(long)]
        cluster: String,
    },
    /// The demo's chart on a cluster that is up and has the images.
    #[command(hide = true)]
    Release {
        #[arg(long, env = cluster::VARIABLE, default_value = cluster::DEFAULT)]
        cluster: String,
    },
    /// A real Kubernetes on this machine, in namespaces of its own.
    #[command(subcommand)]
    Cluster(cluster::Commands),
    /// kubectl, in the cluster's network.
    Kubectl(cluster::Through),
    /// helm, in the cluster's network if it is up.
    Helm(cluster::Through),
    /// Any command, in the cluster's network and with KUBECONFIG set.
    InCluster(cluster::Through),
    /// Build the images that have changed, and import them into a cluster.
    Images {
        /// The cluster's name.
        #[arg(long, env = cluster::VARIABLE, default_value = cluster::DEFAULT)]
        cluster: String,
    },
    /// Write the CRDs, in crds/ and in the chart, from operator/src/crd.
    Crds {
        /// Write nothing; fail where a file differs.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/configuration.md and docs/metrics.md from the command lines and the metrics themselves.
    Docs {
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

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line a cause, and no backtrace: the message is for whoever typed the command.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let root = workspace::root();
    match command {
        Command::Demo { cluster } => demo::run(&cluster::Cluster::named(&cluster)?),
        Command::Test { only } => suite::run(only),
        Command::Bench { what } => what.unwrap_or_default().run(),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Soak { minutes, seed } => suite::soak(minutes, seed),
        Command::Mcp(arguments) => mcp::main(&arguments),
        Command::Tour { broker, cluster } => {
            runtime()?.block_on(tour::run(&broker, &cluster::Cluster::named(&cluster)?))
        }
        Command::Release { cluster } => release::install(&cluster::Cluster::named(&cluster)?),
        Command::Cluster(command) => command.run(),
        Command::Kubectl(command) => command.kubectl(),
        Command::Helm(command) => command.helm(),
        Command::InCluster(command) => command.any(),
        Command::Images { cluster } => images::ensure(&cluster::Cluster::named(&cluster)?),
        Command::Crds { check } => {
            generated::write_or_check(&reference::of_command("cargo xtask crds", root)?, check)
        }
        Command::Docs { check } => {
            generated::write_or_check(&reference::of_command("cargo xtask docs", root)?, check)
        }
        Command::Chart { check } => generated::write_or_check(&chart::generate(root)?, check),
    }
}

/// The runtime of the commands that speak MQTT. Its connections live on a thread of their own, so that they stay alive
/// while the command waits for kubectl.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}
