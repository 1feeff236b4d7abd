//! The command line of clusters.

use std::ffi::OsString;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};

use super::{Cluster, DEFAULT, Event, VARIABLE, autoscalers, binary, check, enter, prepare};
use crate::{progress::human, workspace::program};

/// `cargo xtask cluster …`
#[derive(Debug, Subcommand)]
pub(crate) enum Commands {
    /// Bring a cluster up; harmless when it is up.
    Up {
        #[command(flatten)]
        cluster: Name,
    },
    /// Take a cluster down; nothing of it stays.
    Down {
        #[command(flatten)]
        cluster: Name,
    },
    /// Show the clusters of this machine.
    Status,
    /// Build what clusters are made of, and bring none up.
    Build,
    /// Build metrics-server and KEDA, for the suites that meet them.
    Autoscalers,
    /// Check this part itself: a throwaway cluster goes through its whole life, killed ones included.
    Check,
}

/// `--name`, for the commands that manage a cluster.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The cluster's name; several stand side by side.
    #[arg(long, env = VARIABLE, default_value = DEFAULT)]
    name: String,
}

/// A command that runs in a cluster's network, arguments and terminal handed through.
#[derive(Debug, Args)]
pub(crate) struct Through {
    /// The cluster's name.
    #[arg(long, env = VARIABLE, default_value = DEFAULT)]
    cluster: String,
    /// The arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Commands {
    /// Runs it.
    ///
    /// # Errors
    /// When the command fails.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Up { cluster } => Cluster::named(&cluster.name)?.up(),
            Self::Down { cluster } => Cluster::named(&cluster.name)?.down(),
            Self::Status => status(),
            Self::Build => prepare().map(drop),
            Self::Autoscalers => autoscalers::ensure(),
            Self::Check => check(),
        }
    }
}

impl Through {
    /// `cargo xtask in-cluster`: becomes any command.
    ///
    /// # Errors
    /// When the cluster is not up or the command cannot be run; a command that runs never returns here.
    pub(crate) fn any(self) -> Result<()> {
        ensure!(
            !self.arguments.is_empty(),
            "name the command to run: cargo xtask in-cluster -- COMMAND ARGUMENTS"
        );
        let mut command = Cluster::named(&self.cluster)?.command(&self.arguments[0])?;
        command.args(&self.arguments[1..]);
        Err(enter::exec(command))
    }

    /// `cargo xtask kubectl`.
    ///
    /// # Errors
    /// As [`Self::any`].
    pub(crate) fn kubectl(self) -> Result<()> {
        self.tool("kubectl", |words| {
            words.first().is_some_and(|word| matches!(*word, "kustomize" | "completion"))
        })
    }

    /// `cargo xtask helm`: what asks no cluster needs none.
    ///
    /// # Errors
    /// As [`Self::any`].
    pub(crate) fn helm(self) -> Result<()> {
        self.tool("helm", |words| words.first().is_none_or(|word| !ASKS_A_CLUSTER.contains(word)))
    }

    fn tool(self, name: &str, works_alone: impl FnOnce(&[&str]) -> bool) -> Result<()> {
        let cluster = Cluster::named(&self.cluster)?;
        let words: Vec<&str> = self
            .arguments
            .iter()
            .filter_map(|argument| argument.to_str())
            .filter(|word| !word.starts_with('-'))
            .collect();
        let mut command = if cluster.is_up() {
            cluster.command(name)?
        } else if works_alone(&words) {
            binary::ensure()?;
            let mut command = program("env");
            // Not some other cluster that the caller's own kubeconfig names.
            command.arg(name).env("KUBECONFIG", "/dev/null");
            enter::with_tools(&mut command)?;
            command
        } else {
            cluster.command(name)?
        };
        command.args(&self.arguments);
        Err(enter::exec(command))
    }
}

/// The commands of helm that are of no use without a cluster.
const ASKS_A_CLUSTER: [&str; 11] = [
    "get",
    "history",
    "install",
    "list",
    "ls",
    "rollback",
    "status",
    "test",
    "uninstall",
    "delete",
    "upgrade",
];

fn status() -> Result<()> {
    let clusters = Cluster::all()?;
    if clusters.is_empty() {
        println!("no cluster; bring one up with: cargo xtask cluster up");
    }
    for cluster in clusters {
        let name = cluster.name();
        match (cluster.node(), cluster.journal().last()) {
            (Some(node), Some(Event::Ready { .. })) => {
                let age = node.age().map(human).unwrap_or_default();
                println!("{name:<12} up for {age}, {} MB of memory", node.memory() / 1_000_000);
            }
            (Some(_), Some(Event::Failed { text })) => println!("{name:<12} ending: {text}"),
            (Some(_), _) => println!("{name:<12} starting"),
            (None, Some(Event::Failed { text })) => println!("{name:<12} ended: {text}"),
            (None, Some(_)) => {
                println!("{name:<12} ended: its first process was killed, or the machine restarted");
            }
            (None, None) => println!("{name:<12} down"),
        }
    }
    Ok(())
}
