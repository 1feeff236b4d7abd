//! Clients that are not ours (`tests/clients`): the official MCP SDK over MQTT.js, in Node.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;
use url::Url;

use crate::{binaries::workspace, servers::NODE_OPTIONS};

/// All that the client does, from discovery to its end.
const DEADLINE: Duration = Duration::from_mins(1);

/// Discovers a server by its name, uses it, and returns what it saw.
///
/// # Errors
/// When Node or its packages are missing (`cargo xtask test` installs both), or the client fails.
pub async fn everything(broker: &Url, server_name: &str) -> Result<Value> {
    let directory = workspace().join("tests/clients");
    ensure!(
        directory.join("node_modules").is_dir(),
        "the packages of tests/clients are not installed; run the suite by `cargo xtask test`, or `npm ci` there"
    );
    run(&directory, &["everything.js", broker.as_str(), server_name]).await
}

async fn run(directory: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new("node");
    command.env(NODE_OPTIONS.0, NODE_OPTIONS.1);
    command.args(arguments).current_dir(directory).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output())
        .await
        .with_context(|| format!("node {} did not end within {DEADLINE:?}", arguments.join(" ")))?
        .context("node cannot be started (Debian package nodejs)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "node {}: {}\n{errors}", arguments.join(" "), output.status);
    serde_json::from_slice(&output.stdout).context("the client printed no JSON")
}
