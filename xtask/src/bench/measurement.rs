//! A measurement inside a cluster's network: how far it is comes on its stderr and is shown as it comes, its table on its
//! stdout.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::{
    cluster::Cluster,
    progress::Step,
    suite::RUNNER,
    workspace::{self, root},
};

/// The measurements' own cluster: made anew for each.
pub(crate) const CLUSTER: &str = "bench";
/// Lines of what it said that an error shows.
const LAST_WORDS: usize = 20;

/// A bench of the package `mcp-mqtt-tests` that needs a cluster.
#[derive(Debug)]
pub(crate) struct Measurement<'a> {
    /// Its name in `Cargo.toml`.
    pub(crate) bench: &'a str,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Its environment.
    pub(crate) environment: Vec<(&'a str, String)>,
    /// What it measures, as a sentence has it: `the operator`.
    pub(crate) what: &'a str,
}

impl Measurement<'_> {
    /// Runs it on a cluster that is up, takes the cluster down, and prints its table.
    ///
    /// # Errors
    /// When it does not compile or does not end well; the cluster stands then.
    pub(crate) fn run(self, cluster: &Cluster) -> Result<()> {
        let step = Step::start(format!("Measuring {}", self.what));
        // Each of its waits has a limit of its own.
        let mut command = workspace::cargo();
        command
            .args([
                "bench",
                "--package",
                "mcp-mqtt-tests",
                "--features",
                "cluster",
                "--bench",
                self.bench,
                "--",
            ])
            .args(&self.arguments)
            .envs(self.environment)
            .env(
                RUNNER,
                format!("{} in-cluster --cluster {CLUSTER} --", workspace::this_program()?.display()),
            )
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run cargo")?;
        let said = child.stderr.take().context("cargo was started without its output")?;
        let mut lines = Vec::new();
        for line in BufReader::new(said).lines() {
            let line = line.context("cannot read how far the measurement is")?;
            step.detail(line.trim());
            lines.push(line);
        }
        let mut table = String::new();
        child.stdout.take().context("as above")?.read_to_string(&mut table)?;
        let status = child.wait().context("cannot wait for cargo")?;
        if !status.success() {
            let last = lines.split_off(lines.len().saturating_sub(LAST_WORDS));
            bail!(
                "the measurement did not end well ({status}); the cluster {CLUSTER} stands to be looked at:\n{table}\n{}",
                last.join("\n")
            );
        }
        step.done(format!("Measured: {}", self.what));
        cluster.down()?;
        println!("{table}");
        Ok(())
    }
}
