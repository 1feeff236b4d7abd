//! `cargo xtask test`: everything there is, in the order in which it is cheapest to fail.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{
    chart,
    cluster::{self, Cluster},
    crds, docs, generated, images, packages,
    progress::{heading, human, step},
    workspace::{self, find_program, program, root},
};

/// The suites' own cluster: made anew for each run.
const CLUSTER: &str = "test";

/// The suites that need it, in the order of their names: the API, the chart, the product as a whole.
const CLUSTER_SUITES: [&str; 3] = ["api_*", "chart_*", "e2e_*"];

/// Tests of a suite at one time: they wait for the cluster more than they work, whatever the machine's cores.
const TESTS_AT_ONCE: &str = "4";

/// The cargo setting that names what runs a test's binary.
pub(crate) const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

/// A part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Formatting, generated files, lints, dependencies.
    Checks,
    /// The suites that need no cluster.
    Local,
    /// The suites that need one.
    Cluster,
}

/// Checks, then suites: without a cluster, then with one; or one part alone.
///
/// # Errors
/// The first that fails.
pub(crate) fn run(only: Option<Part>) -> Result<()> {
    let start = Instant::now();
    let wanted = |part| only.is_none_or(|only| only == part);
    if wanted(Part::Checks) {
        checks()?;
    }
    if wanted(Part::Local) {
        local()?;
    }
    if wanted(Part::Cluster) {
        in_cluster()?;
    }
    eprintln!("\n{}", heading(&format!("All of it passed, in {}", human(start.elapsed()))));
    Ok(())
}

/// What needs nothing to run: formatting, generated files, lints, licences and dependencies.
fn checks() -> Result<()> {
    eprintln!("\n{}", heading("Formatting, generated files, lints, dependencies"));
    cargo(&["fmt", "--all", "--check"])?;
    let mut files = crds::generate(root());
    files.extend(chart::generate(root())?);
    files.extend(docs::generate(root()));
    generated::check(&files)?;
    cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "--deny", "warnings"])?;
    ensure_cargo_deny()?;
    // The advisories are for where their database can be fetched: `cargo deny check advisories`.
    cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
}

/// What needs this machine only: a broker on loopback, real servers, real processes.
fn local() -> Result<()> {
    eprintln!("\n{}", heading("Suites on this machine"));
    packages::ensure(&[packages::BROKER, packages::SERVERS, packages::PROMETHEUS])?;
    npm_ci("tests/clients")?;
    cargo(&["build", "--workspace", "--bins"])?;
    cargo(&["test", "--workspace"])
}

/// What needs a cluster: a new one, so that no run depends on the one before.
fn in_cluster() -> Result<()> {
    eprintln!("\n{}", heading("Suites on a cluster"));
    packages::ensure(&[packages::PROMETHEUS])?;
    cluster::check()?;
    cluster::ensure_autoscalers()?;
    let cluster = Cluster::named(CLUSTER)?;
    cluster.down()?;
    cluster.up()?;
    images::ensure(&cluster)?;
    let mut test = workspace::cargo();
    test.args(["test", "--package", "mcp-mqtt-tests", "--features", "cluster"]);
    for suite in CLUSTER_SUITES {
        test.args(["--test", suite]);
    }
    let xtask = workspace::this_program()?;
    test.env("RUST_TEST_THREADS", TESTS_AT_ONCE);
    test.env(RUNNER, format!("{} in-cluster --cluster {CLUSTER} --", xtask.display()));
    // A failed run leaves its cluster to look at: cargo xtask kubectl --cluster test …
    run_cargo(&mut test)?;
    cluster.down()
}

/// `cargo xtask soak`: gateways under load, with random faults, and an account at the end.
///
/// # Errors
/// When something cannot be built, or the account does not come out even.
pub(crate) fn soak(minutes: f64, seed: Option<u64>) -> Result<()> {
    packages::ensure(&[packages::BROKER])?;
    let minutes = minutes.to_string();
    let mut arguments = vec!["run", "--quiet", "--package", "mcp-mqtt-tests", "--bin", "soak", "--"];
    arguments.extend(["--minutes", &minutes]);
    let seed = seed.map(|seed| seed.to_string());
    if let Some(seed) = &seed {
        arguments.extend(["--seed", seed]);
    }
    cargo(&arguments)
}

fn ensure_cargo_deny() -> Result<()> {
    let there =
        workspace::cargo().args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    step("Installing cargo-deny, once (about five minutes)", "cargo-deny is installed", |_| {
        let output = workspace::cargo().args(["install", "--quiet", "--locked", "cargo-deny"]).output()?;
        ensure!(
            output.status.success(),
            "cargo install cargo-deny failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    })
}

/// Installs the npm packages of a directory as its lock file has them, where they are not.
fn npm_ci(directory: &str) -> Result<()> {
    let path = root().join(directory);
    let (lock, installed) = (path.join("package-lock.json"), path.join("node_modules/.package-lock.json"));
    if modified(&installed).is_some_and(|installed| modified(&lock).is_some_and(|lock| lock <= installed)) {
        return Ok(());
    }
    ensure!(find_program("npm").is_some(), "npm is missing (Debian package npm)");
    step(
        &format!("Installing the packages of {directory}"),
        &format!("The packages of {directory} are installed"),
        |_| {
            let output =
                program("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&path).output()?;
            ensure!(
                output.status.success(),
                "npm ci failed in {directory}:\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(())
        },
    )
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().ok()?.modified().ok()
}

/// Runs cargo before the reader's eyes.
///
/// # Errors
/// When it fails.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    run_cargo(workspace::cargo().args(arguments))
}

fn run_cargo(command: &mut Command) -> Result<()> {
    let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let line = format!("cargo {}", words.join(" "));
    eprintln!("$ {line}");
    let status = command
        .current_dir(root())
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {line}"))?;
    ensure!(status.success(), "failed ({status}): {line}");
    Ok(())
}
