//! A real Kubernetes on this machine, in namespaces of its own: several by name, side by side.
//!
//! The node is one Go binary (`tests/cluster`) that boots everything and is the first process of its namespaces. Here
//! stand its building, its start and end, and the ways into its network.

mod autoscalers;
mod binary;
mod cgroups;
mod check;
mod commands;
mod enter;
mod go;
mod journal;
mod pause;
mod process;

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

pub(crate) use self::{
    autoscalers::ensure as ensure_autoscalers,
    check::check,
    commands::{Commands, Through},
    enter::exec,
    process::kill_tree,
};
use self::{
    journal::{Event, Journal},
    process::Node,
};
use crate::{
    packages,
    progress::{Step, human},
    workspace::{program, target},
};

/// The cluster that commands mean when none is named.
pub(crate) const DEFAULT: &str = "demo";
/// Names the cluster to use, for commands that are told none.
pub(crate) const VARIABLE: &str = "MCP_MQTT_CLUSTER";

/// How long a boot may take: it takes four seconds, on a machine that has nothing else to do.
const BOOT_LIMIT: Duration = Duration::from_mins(3);
/// How long the kernel may take to end all processes of a killed node.
const KILL_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Installs and builds what clusters are made of, where it is not there; the archive of the pause image.
///
/// # Errors
/// When something cannot be installed or built.
pub(crate) fn prepare() -> Result<PathBuf> {
    packages::ensure(&[packages::NODE])?;
    binary::ensure()?;
    pause::ensure()
}

/// A cluster of this machine, up or not.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    name: String,
}

impl Cluster {
    /// The cluster of that name.
    ///
    /// # Errors
    /// When the name is none: it becomes the node's name, so it is a DNS label.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let letters =
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let ends = !name.starts_with('-') && !name.ends_with('-');
        // `bin` is where the binary stands, beside the clusters' directories.
        ensure!(
            letters && ends && (1..=40).contains(&name.len()) && name != "bin",
            "{name:?} cannot name a cluster: it takes lower-case letters, digits and inner hyphens (and not \"bin\")"
        );
        Ok(Self { name: name.to_owned() })
    }

    /// Every cluster that has left something on disk.
    ///
    /// # Errors
    /// When the directory of clusters cannot be listed.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let directory = target("cluster");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", directory.display())),
        };
        let mut all: Vec<Self> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| Self::named(entry.file_name().to_str()?).ok())
            .collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What a command of `cargo xtask` needs behind its name to mean this cluster.
    pub(crate) fn flag(&self) -> String {
        if self.name == DEFAULT { String::new() } else { format!(" --cluster {}", self.name) }
    }

    /// The directory of everything it writes.
    pub(crate) fn state(&self) -> PathBuf {
        target("cluster").join(&self.name)
    }

    /// The admin's kubeconfig; it is of use in the cluster's network only.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state().join("kubeconfig")
    }

    /// The API server's audit log: one JSON object a line.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.state().join("log/audit.log")
    }

    /// Whether it is up and through its boot.
    pub(crate) fn is_up(&self) -> bool {
        self.node().is_some() && matches!(self.journal().last(), Some(Event::Ready { .. }))
    }

    /// Brings it up, from whatever state it is in; harmless when it is up.
    ///
    /// # Errors
    /// When something is missing on the machine, or the boot fails; the message names the log to read.
    pub(crate) fn up(&self) -> Result<()> {
        packages::require_root("A cluster on this machine")?;
        let _lock = self.lock()?;
        if self.is_up() {
            eprintln!("✓ Cluster {} is up already{}", self.name, self.remark_on_age()?);
            return Ok(());
        }
        // A node without a lock-holder is one whose `up` was interrupted: it may still be on its way.
        let booting = self.node().is_some() && !matches!(self.journal().last(), Some(Event::Failed { .. }));
        if !booting {
            self.prepare()?;
        }
        let step = Step::start(format!("Starting cluster {}", self.name));
        if !booting {
            self.start_node()?;
        }
        let millis = self.await_boot(&step)?;
        let took = human(Duration::from_millis(millis));
        step.done(format!(
            "Cluster {} is up: Kubernetes {}, Ready after {took}",
            self.name,
            binary::version()?
        ));
        Ok(())
    }

    /// Takes it down; nothing of it stays. Harmless when it is down.
    ///
    /// # Errors
    /// When a process or a file of it cannot be removed.
    pub(crate) fn down(&self) -> Result<()> {
        packages::require_root("Taking a cluster down")?;
        if !self.state().exists() && self.node().is_none() {
            eprintln!("✓ Cluster {} is down already", self.name);
            return Ok(());
        }
        let _lock = self.lock()?;
        let step = Step::start(format!("Taking cluster {} down", self.name));
        let visitors = self.visitors()?;
        self.clear()?;
        remove(&self.state())?;
        step.done(format!("Cluster {} is down", self.name));
        for visitor in visitors {
            eprintln!("  still in its network, which stays until it ends: {visitor}");
        }
        Ok(())
    }

    /// Runs kubectl on it and returns what it printed.
    ///
    /// # Errors
    /// When the cluster is not up, or kubectl fails; the message has what it said.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        enter::output(self.command("kubectl")?.args(arguments), &format!("kubectl {}", arguments.join(" ")))
    }

    /// Runs helm on it and returns what it printed.
    ///
    /// # Errors
    /// When the cluster is not up, or helm fails; the message has what it said.
    pub(crate) fn helm(&self, arguments: &[&str]) -> Result<String> {
        enter::output(self.command("helm")?.args(arguments), &format!("helm {}", arguments.join(" ")))
    }

    /// Gives images to it, as archives; those that it has already are not imported again.
    ///
    /// # Errors
    /// When the cluster is not up, or an archive cannot be imported.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        let snapshotter = fs::read_to_string(self.state().join("snapshotter")).unwrap_or_default();
        let mut command = self.command_on_node("ctr")?;
        command.args([
            "--address",
            "/run/containerd/containerd.sock",
            "--namespace",
            "k8s.io",
            "images",
            "import",
        ]);
        if !snapshotter.is_empty() {
            command.args(["--snapshotter", &snapshotter]);
        }
        enter::output(command.arg(archive), &format!("importing {}", archive.display()))?;
        Ok(())
    }

    /// Commands that run in its network without being its own.
    ///
    /// # Errors
    /// When the machine does not tell.
    pub(crate) fn visitors(&self) -> Result<Vec<String>> {
        Ok(self.node().map(Node::visitors).transpose()?.unwrap_or_default())
    }

    /// The node's first process, while there is one.
    fn node(&self) -> Option<Node> {
        Node::find(&self.state())
    }

    fn journal(&self) -> Journal {
        Journal::read(&self.state().join("journal"))
    }

    /// What a boot needs: programs, binaries, and nothing of an earlier life.
    fn prepare(&self) -> Result<()> {
        let pause = prepare()?;
        self.clear()?;
        let state = self.state();
        // The last life's logs are worth keeping for one more: they say why it ended.
        let logs = state.join("log");
        let kept = target("cluster").join(format!("{}.log.previous", self.name));
        remove(&kept)?;
        if logs.exists() {
            fs::rename(&logs, &kept).with_context(|| format!("cannot move {}", logs.display()))?;
        }
        remove(&state)?;
        if kept.exists() {
            fs::create_dir_all(&state)?;
            fs::rename(&kept, state.join("log.previous"))?;
        }
        for directory in ["log", "images"] {
            let directory = state.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(state.join("build"), binary::fingerprint()?).context("cannot write which build this is")?;
        fs::copy(&pause, state.join("images/pause.tar"))
            .with_context(|| format!("cannot copy {}", pause.display()))?;
        Ok(())
    }

    /// What to know of a cluster that has been up for long: it runs what was built when it came up.
    fn remark_on_age(&self) -> Result<&'static str> {
        let runs = fs::read_to_string(self.state().join("build")).unwrap_or_default();
        Ok(if runs == binary::fingerprint()? {
            ""
        } else {
            ", as it was built then: take it down and up for what is new"
        })
    }

    fn start_node(&self) -> Result<()> {
        let state = self.state();
        let output = std::process::Command::new(binary::path())
            .args([
                "node",
                "start",
                &format!("--name={}", self.name),
                &format!("--state={}", state.display()),
            ])
            .stdin(Stdio::null())
            .output()
            .context("cannot run the cluster's binary")?;
        ensure!(
            output.status.success(),
            "the node did not start: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Follows the boot; returns the milliseconds it took.
    fn await_boot(&self, step: &Step) -> Result<u64> {
        let logs = self.state().join("log");
        let limit = Instant::now() + BOOT_LIMIT;
        loop {
            // Looked at before the journal: a node that failed has written why before it ended.
            let alive = self.node().is_some();
            match self.journal().last() {
                Some(Event::Ready { millis }) => return Ok(*millis),
                Some(Event::Failed { text }) => bail!("cluster {} did not come up: {text}", self.name),
                Some(Event::Step { text, .. }) => step.detail(text.as_str()),
                None => {}
            }
            if !alive {
                bail!("cluster {} ended during its boot; its logs are in {}", self.name, logs.display());
            }
            if Instant::now() > limit {
                bail!(
                    "cluster {} is not up after {}; its logs are in {}",
                    self.name,
                    human(BOOT_LIMIT),
                    logs.display()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends what runs of the cluster and removes what the kernel still has of it.
    fn clear(&self) -> Result<()> {
        process::kill_all(&self.state(), KILL_LIMIT)
            .with_context(|| format!("cannot end the processes of cluster {}", self.name))?;
        cgroups::remove(&format!("mcp-mqtt-{}", self.name))
    }

    /// Held by whoever brings the cluster up or down; the kernel releases it with the process.
    fn lock(&self) -> Result<File> {
        let path = target("cluster").join(format!("{}.lock", self.name));
        fs::create_dir_all(target("cluster")).context("cannot make target/cluster")?;
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        if file.try_lock().is_err() {
            let _step = Step::start(format!("Another command is busy with cluster {}", self.name));
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// Removes a directory that may not be there.
fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// A command that enters namespaces of a process.
fn nsenter(pid: u32, namespaces: &[&str]) -> std::process::Command {
    let mut command = program("nsenter");
    for namespace in namespaces {
        let file = if *namespace == "mount" { "mnt" } else { namespace };
        command.arg(format!("--{namespace}=/proc/{pid}/ns/{file}"));
    }
    command.arg("--");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_label() {
        for good in ["demo", "test-2", "a"] {
            assert!(Cluster::named(good).is_ok(), "{good}");
        }
        for bad in ["", "Demo", "-a", "a-", "a.b", "../x", "bin"] {
            assert!(Cluster::named(bad).is_err(), "{bad}");
        }
    }
}
