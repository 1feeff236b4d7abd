//! `cargo xtask demo`: the main job, from nothing to tool calls over MQTT.

use anyhow::Result;

use crate::{
    cluster::{self, Cluster},
    images::{self, Compilation},
    release::{self, NAMESPACE, OPERATOR},
    workspace::this_program,
};

/// Brings everything up, then becomes the [tour](crate::tour) inside the cluster's network.
///
/// # Errors
/// When a part cannot be brought up; its message says which and what to do. What is up stays up.
pub(crate) fn run(cluster: &Cluster) -> Result<()> {
    eprintln!("MCP services on Kubernetes over MQTT: the whole of it, on this machine.\n");
    // What has to be compiled takes most of a first run: it goes on beside the cluster's own.
    let product = Compilation::start()?;
    cluster.up()?;
    images::ensure_with(cluster, product)?;
    release::install(cluster)?;
    let broker = release::broker(cluster)?;
    let mut tour = cluster.command(this_program()?)?;
    tour.args(["tour", "--broker", broker.as_str(), "--cluster", cluster.name()]);
    let flag = cluster.flag();
    eprintln!("\nA second terminal can watch: cargo xtask kubectl{flag} -- get pods -n tools -w");
    eprintln!(
        "and follow the operator:     cargo xtask kubectl{flag} -- logs -n {NAMESPACE} deploy/{OPERATOR} -f"
    );
    Err(cluster::exec(tour))
}
