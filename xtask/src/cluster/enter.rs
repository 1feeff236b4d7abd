//! The ways into a cluster: its network for whoever talks to it, its mounts too for its own tools.

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Error, Result, anyhow, bail};

use super::{Cluster, VARIABLE, binary, nsenter};

impl Cluster {
    /// A command that runs in the cluster's network, with `KUBECONFIG` set and `kubectl` and `helm` on its `PATH`.
    ///
    /// # Errors
    /// When the cluster is not up.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = nsenter(self.pid()?, &["net"]);
        command.arg(program).env("KUBECONFIG", self.kubeconfig()).env(VARIABLE, &self.name);
        with_tools(&mut command)?;
        Ok(command)
    }

    /// A command that also sees the node's own mounts, and with them containerd's socket.
    pub(super) fn command_on_node(&self, program: &str) -> Result<Command> {
        let mut command = nsenter(self.pid()?, &["net", "mount"]);
        command.arg(program);
        Ok(command)
    }

    fn pid(&self) -> Result<u32> {
        let flag = if self.name == super::DEFAULT { String::new() } else { format!(" --name {}", self.name) };
        match self.node() {
            Some(node) if self.is_up() => Ok(node.pid),
            Some(_) => {
                bail!("cluster {} is still starting; wait for: cargo xtask cluster up{flag}", self.name)
            }
            None => bail!("cluster {} is not up; bring it up with: cargo xtask cluster up{flag}", self.name),
        }
    }
}

/// Puts the directory of kubectl and helm before what `PATH` has.
pub(super) fn with_tools(command: &mut Command) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(binary::directory()).chain(std::env::split_paths(&path)))
        .context("the project's path cannot stand in PATH")?;
    command.env("PATH", path);
    Ok(())
}

/// Becomes the command: terminal, signals and exit status are all its own.
pub(crate) fn exec(mut command: Command) -> Error {
    let error = command.exec();
    anyhow!(error).context(format!("cannot run {}", command.get_program().display()))
}

/// Runs the command to its end and returns what it printed.
pub(super) fn output(command: &mut Command, what: &str) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {what}"))?;
    if !output.status.success() {
        bail!("{what} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_down_is_named_with_the_command_that_brings_it_up() -> Result<()> {
        let error = Cluster::named("no-such-cluster")?.command("true").expect_err("it is not up");
        assert!(error.to_string().contains("cargo xtask cluster up --name no-such-cluster"), "{error}");
        Ok(())
    }

    #[test]
    fn what_a_failed_command_said_is_in_the_error() {
        let mut command = Command::new("sh");
        let error = output(command.args(["-c", "echo no such pod >&2; exit 3"]), "kubectl get")
            .expect_err("it fails");
        let text = error.to_string();
        assert!(text.starts_with("kubectl get failed") && text.ends_with("no such pod"), "{text}");
    }
}
