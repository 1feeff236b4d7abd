//! Helm, as a person would call it, on the chart in this checkout.
//!
//! The program is the one that `cargo xtask cluster` builds; `MCP_MQTT_HELM` names another. It speaks to a cluster of
//! `cargo xtask cluster` only.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{binaries::workspace, cluster};

/// What it does without a cluster.
const WITHOUT_CLUSTER: [&str; 4] = ["template", "lint", "package", "show"];

/// One call of helm. Longer than any `--timeout` that the suites give it.
const DEADLINE: Duration = Duration::from_mins(5);

/// What helm said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Whether it exited with 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// The chart's directory.
pub fn chart() -> PathBuf {
    workspace().join("charts/mcp-mqtt-operator")
}

/// The values files under the chart's `ci/`, sorted.
///
/// # Errors
/// When the directory cannot be read or holds none.
pub fn values_files() -> Result<Vec<PathBuf>> {
    let directory = chart().join("ci");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    ensure!(!files.is_empty(), "{} is empty", directory.display());
    Ok(files)
}

/// Runs helm with these arguments; an exit other than 0 is an answer too.
///
/// # Errors
/// When it cannot be started or does not end in time; when it is to ask a cluster that is not the project's own.
pub async fn helm<S: AsRef<str>>(arguments: &[S]) -> Result<Answer> {
    let output = timeout(DEADLINE, command(arguments)?.output())
        .await
        .with_context(|| format!("helm did not end within {DEADLINE:?}"))?
        .context("helm cannot be started")?;
    Ok(Answer {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Starts helm with these arguments, for a test that does not let it end.
///
/// # Errors
/// When it cannot be started; when it is to ask a cluster that is not the project's own.
pub fn start<S: AsRef<str>>(arguments: &[S]) -> Result<Child> {
    let mut command = command(arguments)?;
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("helm cannot be started")
}

fn command<S: AsRef<str>>(arguments: &[S]) -> Result<Command> {
    if arguments.first().is_none_or(|command| !WITHOUT_CLUSTER.contains(&command.as_ref())) {
        cluster::ensure_own()?;
    }
    let mut command = program()?;
    let home = workspace().join("target/helm");
    command
        .args(arguments.iter().map(AsRef::as_ref))
        .envs(["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(|name| (name, &home)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

/// Runs helm where nothing but success will do.
///
/// # Errors
/// What helm said, when it exited with anything but 0.
pub async fn helm_ok<S: AsRef<str>>(arguments: &[S]) -> Result<String> {
    let answer = helm(arguments).await?;
    if !answer.success {
        let line: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        bail!("helm {}:\n{}{}", line.join(" "), answer.stdout, answer.stderr);
    }
    Ok(answer.stdout)
}

/// What the chart renders to, as release `mcp-mqtt` in the namespace `mcp-mqtt`, tests included.
///
/// # Errors
/// What helm refused, or what in its output is no object.
pub async fn template<S: AsRef<str>>(arguments: &[S]) -> Result<Vec<Value>> {
    template_as("mcp-mqtt", &chart(), arguments).await
}

/// [`template`] under another release name, or of another copy of the chart.
///
/// # Errors
/// As [`template`].
pub async fn template_as<S: AsRef<str>>(release: &str, chart: &Path, arguments: &[S]) -> Result<Vec<Value>> {
    let chart = chart.to_string_lossy();
    let mut all = vec!["template", release, &*chart, "--namespace", "mcp-mqtt"];
    all.extend(arguments.iter().map(AsRef::as_ref));
    let text = helm_ok(&all).await?;
    let objects: Vec<Value> = serde_yaml::from_multiple(&text).context("helm's output is not YAML")?;
    for object in &objects {
        ensure!(object["kind"].is_string(), "no Kubernetes object: {object}");
    }
    Ok(objects)
}

/// The one object of this kind and name.
///
/// # Errors
/// When there is none, or more than one.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let mut found =
        objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let object = found.next().with_context(|| format!("no {kind} {name}"))?;
    ensure!(found.next().is_none(), "{kind} {name} stands there twice");
    Ok(object)
}

fn program() -> Result<Command> {
    if let Some(path) = std::env::var_os("MCP_MQTT_HELM") {
        return Ok(Command::new(path));
    }
    let path = workspace().join("target/cluster/bin/kubernetes");
    ensure!(
        path.exists(),
        "no helm: {} is not there; `cargo xtask cluster up` builds it, or name a helm in MCP_MQTT_HELM",
        path.display()
    );
    let mut command = Command::new(path);
    command.arg("helm");
    Ok(command)
}
