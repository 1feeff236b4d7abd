//! `cargo xtask demo`: the main job, from nothing to tool calls over MQTT.

use anyhow::Result;

use crate::{
    cluster::Cluster,
    images,
    progress::step,
    release::{self, NAMESPACE},
};

/// Brings everything up, then becomes the [tour](crate::tour) inside the cluster's network.
///
/// # Errors
/// When a part cannot be brought up; its message says which and what to do. What is up stays up.
pub(crate) fn run(cluster: &Cluster) -> Result<()> {
    eprintln!("MCP services on Kubernetes over MQTT: the whole of it, on this machine.\n");
    cluster.up()?;
    images::ensure(cluster)?;
    step("Installing the Helm chart", "The operator and a broker run", |_| release::install(cluster))?;
    let broker = release::broker(cluster)?;
    let mut tour = cluster.command(std::env::current_exe()?)?;
    tour.args(["tour", "--broker", broker.as_str(), "--cluster", cluster.name()]);
    eprintln!("  in another terminal: cargo xtask kubectl --cluster {} -- get pods -A -w", cluster.name());
    eprintln!("  or follow the operator: cargo xtask kubectl --cluster {} -- logs -n {NAMESPACE} deploy/{} -f\n", cluster.name(), release::OPERATOR);
    crate::cluster::exec(tour)
}
