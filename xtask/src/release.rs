//! The chart as the demo and the suites install it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use url::Url;

use crate::{
    cluster::Cluster,
    workspace::{root, target},
};

/// Release name, and with it the first part of the chart's object names.
const RELEASE: &str = "mcp-mqtt";

/// Where the operator and the broker live.
pub(crate) const NAMESPACE: &str = "mcp-mqtt";

/// The operator's Deployment.
pub(crate) const OPERATOR: &str = "mcp-mqtt-operator";

/// The broker's Service.
const BROKER: &str = "mcp-mqtt-mosquitto";

/// How long the operator and the broker may take to be ready, images present.
const READY_LIMIT: Duration = Duration::from_mins(2);

/// Installs the chart with the images of `cargo xtask images`, or brings an installed one up to date.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    let chart = root().join("charts/mcp-mqtt-operator");
    let values = root().join("examples/demo-values.yaml");
    // The images keep their tag when they are built anew; what they were built from makes the operator roll over.
    let stamp = std::fs::read_to_string(target("images/mcp-mqtt-operator.stamp")).unwrap_or_default();
    cluster.helm(&[
        "upgrade",
        "--install",
        RELEASE,
        path(&chart)?,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--values",
        path(&values)?,
        "--set-string",
        &format!("podAnnotations.mcp-mqtt\\.io/built-from={}", stamp.trim()),
        "--wait",
        "--timeout",
        &format!("{}s", READY_LIMIT.as_secs()),
    ])?;
    Ok(())
}

/// The broker's address inside the cluster's network.
pub(crate) fn broker(cluster: &Cluster) -> Result<Url> {
    let address = cluster
        .kubectl(&[
            "get",
            "service",
            BROKER,
            "--namespace",
            NAMESPACE,
            "--output",
            "jsonpath={.spec.clusterIP}",
        ])
        .context("the demo's broker is not there; bring it up with: cargo xtask demo")?;
    ensure!(!address.is_empty(), "Service {NAMESPACE}/{BROKER} has no address");
    Ok(Url::parse(&format!("mqtt://{address}:1883"))?)
}

fn path(path: &std::path::Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
