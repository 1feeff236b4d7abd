//! `cargo xtask bench rollout`: the product on a cluster of its own, and clients that call throughout while instances are
//! taken away.

use anyhow::Result;
use clap::Args;

use super::measurement::{CLUSTER, Measurement};
use crate::{cluster::Cluster, images, packages, workspace::root};

/// How much load there is.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Clients at one time; every fourth calls a tool that takes three seconds.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Wakes of a service that sleeps; 0 leaves them out.
    #[arg(long, default_value_t = 10)]
    wakes: usize,
    /// Only these, and no change.
    #[arg(long, conflicts_with = "picture")]
    only_wakes: bool,
    /// Fail where a wake or a client's move took longer than its aim; on a machine that has nothing else to do.
    #[arg(long)]
    strict: bool,
    /// Draws the chart's dashboard, too, as a Prometheus saw the changes: docs/dashboard.svg.
    #[arg(long)]
    picture: bool,
}

/// Runs it and prints its table.
///
/// # Errors
/// When something cannot be built, a call is cut off, or one is never answered.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut further =
        vec![format!("--clients={}", arguments.clients), format!("--wakes={}", arguments.wakes)];
    if arguments.only_wakes {
        further.push("--only-wakes".to_owned());
    }
    if arguments.strict {
        further.push("--strict".to_owned());
    }
    if arguments.picture {
        packages::ensure(&[packages::PROMETHEUS])?;
        further.push(format!("--picture={}", root().join("docs/dashboard.svg").display()));
    }
    let cluster = Cluster::named(CLUSTER)?;
    cluster.down()?;
    cluster.up()?;
    images::ensure(&cluster)?;
    Measurement {
        bench: "rollout",
        arguments: further,
        environment: Vec::new(),
        what: "what clients notice of rollouts",
    }
    .run(&cluster)
}
