//! The chart as the demo and the suites install it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use url::Url;

use crate::{
    cluster::Cluster,
    progress::{Step, step},
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

/// Between two looks whether another helm has ended.
const POLL: Duration = Duration::from_millis(200);

/// Installs the chart with the images of `cargo xtask images`, or brings an installed one up to date. A release that an
/// interrupted helm has left half made is cleared up first.
///
/// # Errors
/// When the cluster is not up, or the operator and the broker do not become ready.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    await_other_helm(cluster)?;
    clear_up(cluster)?;
    step("Installing the Helm chart", "The operator and a broker run", |_| upgrade(cluster))
}

/// Waits while another helm works on the cluster: what it has under way is not interrupted.
fn await_other_helm(cluster: &Cluster) -> Result<()> {
    let Some(mut other) = other_helm(cluster)? else { return Ok(()) };
    let step = Step::start("Waiting for another helm on this cluster");
    let begin = Instant::now();
    // As long as its own `--timeout`, and some time to begin and to end.
    while begin.elapsed() < READY_LIMIT * 2 {
        step.detail(other.as_str());
        thread::sleep(POLL);
        let Some(still) = other_helm(cluster)? else {
            step.done("The other helm has ended");
            return Ok(());
        };
        other = still;
    }
    bail!("another helm is at work on cluster {}: {other}; end it, and try again", cluster.name())
}

/// A helm in the cluster's network that changes a release.
fn other_helm(cluster: &Cluster) -> Result<Option<String>> {
    Ok(cluster.visitors()?.into_iter().find(|line| changes_release(line)))
}

/// The program goes by its own name, or by that of the cluster's binary, which is helm as well.
fn changes_release(command_line: &str) -> bool {
    let mut words = command_line.split(' ');
    let program = words.next().and_then(|program| program.rsplit('/').next());
    let helm = match program {
        Some("helm") => true,
        Some("kubernetes") => words.next() == Some("helm"),
        _ => false,
    };
    helm && words.any(|word| matches!(word, "install" | "upgrade" | "rollback" | "uninstall" | "delete"))
}

/// What an interrupted helm calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mend {
    /// There is no release that could be gone back to.
    Uninstall,
    /// To the one that was there before.
    RollBack,
}

/// By a release's status.
fn mend_of(status: &str) -> Option<Mend> {
    match status {
        "pending-install" | "uninstalling" => Some(Mend::Uninstall),
        "pending-upgrade" | "pending-rollback" => Some(Mend::RollBack),
        _ => None,
    }
}

/// Mends a release that an interrupted helm has left half made: the next one would refuse it as under way.
fn clear_up(cluster: &Cluster) -> Result<()> {
    let listed = cluster.helm(&["list", "--namespace", NAMESPACE, "--output", "json"])?;
    let releases: Value = serde_json::from_str(&listed).context("helm list")?;
    let ours = releases.as_array().into_iter().flatten().find(|release| release["name"] == RELEASE);
    let Some(status) = ours.and_then(|release| release["status"].as_str()) else { return Ok(()) };
    let Some(mend) = mend_of(status) else { return Ok(()) };
    // One that has begun since we looked has made it pending, and is no business of ours.
    await_other_helm(cluster)?;
    let (doing, done, command) = match mend {
        Mend::Uninstall => ("Uninstalling", "uninstalled", "uninstall"),
        Mend::RollBack => ("Rolling back", "rolled back", "rollback"),
    };
    step(
        &format!("{doing} a release that was interrupted ({status})"),
        &format!("A release that was interrupted ({status}) is {done}"),
        |_| {
            // No release is waited for that the next step replaces.
            cluster.helm(&[command, RELEASE, "--namespace", NAMESPACE]).map(drop)
        },
    )
}

fn upgrade(cluster: &Cluster) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_half_made_is_mended() {
        assert_eq!(mend_of("pending-install"), Some(Mend::Uninstall));
        assert_eq!(mend_of("pending-upgrade"), Some(Mend::RollBack));
        assert_eq!(mend_of("pending-rollback"), Some(Mend::RollBack));
        assert_eq!(mend_of("deployed"), None);
        assert_eq!(mend_of("failed"), None);
    }

    #[test]
    fn a_helm_that_changes_something_is_told_from_one_that_looks() {
        assert!(changes_release("helm upgrade --install mcp-mqtt charts/x (process 7)"));
        assert!(changes_release("/usr/bin/helm --debug uninstall mcp-mqtt (process 7)"));
        assert!(changes_release("/x/cluster/bin/kubernetes helm rollback mcp-mqtt (process 7)"));
        assert!(!changes_release("helm list --all-namespaces (process 7)"));
        assert!(!changes_release("vi helm upgrade (process 7)"));
    }
}
