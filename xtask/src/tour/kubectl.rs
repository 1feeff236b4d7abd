//! kubectl, which is on the `PATH` inside the cluster's network, and what its answers mean.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::workspace::root;

/// Runs it before the reader's eyes: the command, then what it prints.
pub(super) fn kubectl(arguments: &[&str]) -> Result<()> {
    println!("$ kubectl {}", arguments.join(" "));
    let status = command(arguments).status().context("cannot run kubectl")?;
    ensure!(status.success(), "kubectl failed ({status})");
    Ok(())
}

/// Runs it unseen; what it says is shown when it fails.
pub(super) fn quiet(arguments: &[&str]) -> Result<()> {
    output(arguments).map(drop)
}

/// Waits until the operator says that every service of the tour is ready.
pub(super) fn services_ready() -> Result<()> {
    quiet(&["wait", "mcps", "--all", "--namespace", "tools", "--for=condition=Ready", "--timeout=60s"])
}

/// The most memory that any gateway uses, in bytes, as the kubelet measures it (the working set).
pub(super) fn gateway_memory() -> Result<Option<u64>> {
    let node = output(&["get", "nodes", "--output", "jsonpath={.items[0].metadata.name}"])?;
    let metrics = output(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/resource")])?;
    Ok(largest_gateway(&metrics))
}

fn largest_gateway(metrics: &str) -> Option<u64> {
    metrics
        .lines()
        .filter(|line| {
            line.starts_with("container_memory_working_set_bytes{") && line.contains("container=\"gateway\"")
        })
        .filter_map(|line| line.split("} ").nth(1)?.split(' ').next()?.parse::<f64>().ok())
        .map(|bytes| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of bytes")]
            let bytes = bytes as u64;
            bytes
        })
        .max()
}

fn output(arguments: &[&str]) -> Result<String> {
    let output = command(arguments).output().context("cannot run kubectl")?;
    ensure!(
        output.status.success(),
        "kubectl {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gateway_is_found_among_other_containers() {
        let metrics = "# TYPE container_memory_working_set_bytes gauge\n\
            container_memory_working_set_bytes{container=\"server\",namespace=\"tools\",pod=\"a\"} 9.1e+07 1700000000000\n\
            container_memory_working_set_bytes{container=\"gateway\",namespace=\"tools\",pod=\"a\"} 3.5e+06 1700000000000\n\
            container_memory_working_set_bytes{container=\"gateway\",namespace=\"tools\",pod=\"b\"} 4e+06 1700000000000\n\
            container_cpu_usage_seconds_total{container=\"gateway\",namespace=\"tools\",pod=\"b\"} 12 1700000000000\n";
        assert_eq!(largest_gateway(metrics), Some(4_000_000));
        assert_eq!(largest_gateway(""), None);
    }
}
