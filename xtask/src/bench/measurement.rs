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
    workspace::{self, root},
};

/// The measurements' own cluster: made anew for each.
pub(crate) const CLUSTER: &str = "bench";
/// Lines of what it said that an error shows.
const LAST_WORDS: usize = 20;
/// How a program of ours that returns an error from `main` begins to tell of it; its causes follow, and where
/// `RUST_BACKTRACE` is set a hundred lines more.
const FAILS: &str = "Error: ";

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
                workspace::runner_variable(),
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
            bail!(
                "the measurement did not end well ({status}); the cluster {CLUSTER} stands to be looked at:\n{table}\n{}",
                last_words(&lines).join("\n")
            );
        }
        step.done(format!("Measured: {}", self.what));
        cluster.down()?;
        println!("{table}");
        Ok(())
    }
}

/// What an error shows of what was said: from the error itself on, or the end where there is none.
fn last_words(lines: &[String]) -> &[String] {
    let end = lines.len().saturating_sub(LAST_WORDS);
    let begin = lines.iter().rposition(|line| line.starts_with(FAILS)).unwrap_or(end);
    &lines[begin..lines.len().min(begin + LAST_WORDS)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(first: &[&str], then: usize) -> Vec<String> {
        let first = first.iter().map(|line| (*line).to_owned());
        first.chain((0..then).map(|number| format!("  {number}: core::ops::call"))).collect()
    }

    #[test]
    fn an_error_is_shown_however_much_is_said_after_it() {
        let cause = ["creating: 3 of 4", "Error: there are no pods", "", "Stack backtrace:"];
        let lines = said(&cause, 100);
        let shown = last_words(&lines);
        assert_eq!((shown[0].as_str(), shown.len()), (cause[1], LAST_WORDS));
        assert_eq!(last_words(&said(&cause, 0)), &cause[1..]);
    }

    #[test]
    fn without_an_error_the_end_is_shown() {
        let lines = said(&["error: could not compile"], 100);
        assert_eq!(last_words(&lines), &lines[lines.len() - LAST_WORDS..]);
        assert_eq!(last_words(&said(&["killed"], 0)), ["killed"]);
    }
}
