//! `cargo xtask test`: everything there is, in the order in which it is cheapest to fail; suites on clusters side by side,
//! as they wait more than they work.

mod lanes;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::lanes::{Lane, Task};
use crate::{
    chart,
    cluster::{self, Cluster},
    generated, images, packages,
    progress::{heading, human, step},
    reference,
    workspace::{self, find_program, program, root},
};

/// The suites' own clusters, made anew for each run.
const CLUSTERS: [ClusterSuites; 3] = [
    ClusterSuites { cluster: "test", images: true, tests_at_once: "8", steps: &[&["e2e_services"]] },
    // Each takes a whole cluster for itself: its operator, its broker, its autoscalers.
    ClusterSuites {
        cluster: "test-whole",
        images: true,
        tests_at_once: TESTS_AT_ONCE,
        steps: &[&["chart_release"], &["e2e_broker"], &["e2e_autoscalers"]],
    },
    // Their operators are processes of their own, beside which none may be installed. The longest come first.
    ClusterSuites {
        cluster: "test-api",
        images: false,
        tests_at_once: TESTS_AT_ONCE,
        steps: &[
            &["api_faults", "api_operation", "chart_render"],
            &["api_admission", "api_reconcile", "api_sleeping"],
        ],
    },
];

/// The cluster of the demo as a test.
const DEMO: &str = "test-demo";

/// What runs on a cluster.
struct ClusterSuites {
    cluster: &'static str,
    /// Whether pods run on it.
    images: bool,
    /// Of a suite.
    tests_at_once: &'static str,
    /// One after the other, the suites of a step at the same time.
    steps: &'static [&'static [&'static str]],
}

/// One set of features for all there is to build: with two, cargo would build much of it twice, and would change the
/// programs that one suite runs under the hands of another.
const FEATURES: [&str; 2] = ["--features", "mcp-mqtt-tests/cluster"];

/// Tests of a suite at one time: they wait more than they work, whatever the machine's cores.
const TESTS_AT_ONCE: &str = "4";

/// Calls of cargo at one time for the suites that need no cluster.
const LOCAL_LANES: usize = 4;

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

/// Checks, then the suites that need no cluster, then those that do; or one part alone.
///
/// # Errors
/// What fails.
pub(crate) fn run(only: Option<Part>) -> Result<()> {
    let start = Instant::now();
    match only {
        Some(Part::Checks) => checks()?,
        Some(Part::Local) => on_this_machine(local(&Suites::build()?).collect())?,
        Some(Part::Cluster) => {
            Suites::build()?;
            cluster::check()?;
            in_clusters()?;
        }
        None => {
            checks()?;
            let suites = Suites::build()?;
            on_this_machine(local(&suites).chain([cluster_check()?]).collect())?;
            in_clusters()?;
        }
    }
    eprintln!("\n{}", heading(&format!("All of it passed, in {}", human(start.elapsed()))));
    Ok(())
}

/// What needs nothing to run: formatting, generated files, lints, licences and dependencies.
fn checks() -> Result<()> {
    eprintln!("\n{}", heading("Formatting, generated files, lints, dependencies"));
    cargo(&["fmt", "--all", "--check"])?;
    let mut files = reference::generate(root())?;
    files.extend(chart::generate(root())?);
    generated::check(&files)?;
    cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "--deny", "warnings"])?;
    ensure_cargo_deny()?;
    // The advisories are for where their database can be fetched: `cargo deny check advisories`.
    cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
}

/// The test binaries, by whether they need a cluster.
struct Suites {
    local: Vec<String>,
}

impl Suites {
    /// Builds all of them, and the programs that they run.
    fn build() -> Result<Self> {
        eprintln!("\n{}", heading("Building"));
        packages::ensure(&[packages::BROKER, packages::SERVERS, packages::PROMETHEUS])?;
        npm_ci("tests/clients")?;
        build_programs()?;
        run_cargo(workspace::cargo().args(["test", "--workspace", "--no-run"]).args(FEATURES))?;
        Self::look()
    }

    /// Asks cargo for them; every one that is meant for a cluster has to be one that we run there.
    fn look() -> Result<Self> {
        let output = workspace::cargo()
            .args(["metadata", "--no-deps", "--format-version=1"])
            .current_dir(root())
            .output()
            .context("cannot run cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
        let named: Vec<&str> = CLUSTERS.iter().flat_map(|suites| suites.steps.concat()).collect();
        let mut local = Vec::new();
        let packages = metadata["packages"].as_array().into_iter().flatten();
        for target in packages.flat_map(|package| package["targets"].as_array().into_iter().flatten()) {
            let name = target["name"].as_str().unwrap_or_default();
            let is_suite = target["kind"][0] == "test";
            let needs_cluster = target["required-features"][0] == "cluster";
            match (is_suite, needs_cluster) {
                (true, true) => ensure!(
                    named.contains(&name),
                    "{name} needs a cluster, and CLUSTERS in xtask/src/suite.rs does not say which"
                ),
                (true, false) => local.push(name.to_owned()),
                _ => {}
            }
        }
        Ok(Self { local })
    }
}

/// Builds all programs of the workspace as the suites have them.
///
/// # Errors
/// When they do not compile.
pub(crate) fn build_programs() -> Result<()> {
    run_cargo(workspace::cargo().args(["build", "--workspace", "--bins"]).args(FEATURES))
}

/// What needs this machine only: a broker on loopback, real servers, real processes. Cargo runs one suite after the
/// other, and each ends with a test that waits: some at a time fill the processors.
fn local(suites: &Suites) -> impl Iterator<Item = Lane> {
    (0..LOCAL_LANES).map(|share| {
        let mut command = tests(TESTS_AT_ONCE);
        if share == 0 {
            command.args(["--lib", "--bins"]);
        }
        for suite in suites.local.iter().skip(share).step_by(LOCAL_LANES) {
            command.args(["--test", suite]);
        }
        let units = if share == 0 { " and the unit tests" } else { "" };
        let name = format!("share {} of {LOCAL_LANES}{units}", share + 1);
        Lane { steps: vec![vec![Task { name, command }]] }
    })
}

/// Clusters checked on themselves, which waits as much as the suites do. What that needs is built before, as builds leave
/// nothing of the processors for others.
fn cluster_check() -> Result<Lane> {
    cluster::prepare()?;
    let mut command = Command::new(workspace::this_program()?);
    command.args(["cluster", "check"]).current_dir(root());
    Ok(Lane { steps: vec![vec![Task { name: "the clusters themselves".to_owned(), command }]] })
}

/// What needs no cluster that is up.
fn on_this_machine(lanes: Vec<Lane>) -> Result<()> {
    eprintln!("\n{}", heading("Suites on this machine"));
    lanes::run("The suites on this machine", lanes, lanes::LIMIT)?;
    run_cargo(workspace::cargo().args(["test", "--workspace", "--doc"]).args(FEATURES))
}

/// Cargo, about to run tests, so many of a suite at a time.
fn tests(at_once: &str) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).args(FEATURES).current_dir(root());
    cargo.env("RUST_TEST_THREADS", at_once);
    // An error tells its causes; fifty frames of the test harness behind them only hide them. Panics keep theirs.
    cargo.env("RUST_LIB_BACKTRACE", "0");
    cargo
}

/// What needs a cluster: new ones, so that no run depends on the one before.
fn in_clusters() -> Result<()> {
    eprintln!("\n{}", heading("Clusters"));
    cluster::ensure_autoscalers()?;
    let xtask = workspace::this_program()?;
    let mut lanes = Vec::new();
    for ClusterSuites { cluster: name, images, tests_at_once, steps } in CLUSTERS {
        let cluster = Cluster::named(name)?;
        cluster.down()?;
        cluster.up()?;
        if images {
            images::ensure(&cluster)?;
        }
        let task = |suite: &&str| {
            let mut test = tests(tests_at_once);
            test.args(["--test", suite]);
            let runner = format!("{} in-cluster --cluster {name} --", xtask.display());
            test.env(workspace::runner_variable(), runner);
            Task { name: (*suite).to_owned(), command: test }
        };
        lanes.push(Lane { steps: steps.iter().map(|step| step.iter().map(task).collect()).collect() });
    }
    // Behind the lane that is through first.
    if let Some(lane) = lanes.last_mut() {
        lane.steps.extend(demo_twice()?);
    }
    // A failed run leaves its clusters to look at: cargo xtask kubectl --cluster test …
    lanes::run("The suites on clusters", lanes, lanes::LIMIT)?;
    let names = CLUSTERS.iter().map(|suites| suites.cluster).chain([DEMO]);
    names.map(Cluster::named).try_for_each(|cluster| cluster?.down())
}

/// `cargo xtask demo` as a newcomer has it, from nothing; and once more, as who runs it twice.
fn demo_twice() -> Result<[Vec<Task>; 2]> {
    Cluster::named(DEMO)?.down()?;
    let demo = |name: &str| -> Result<Vec<Task>> {
        let mut command = Command::new(workspace::this_program()?);
        command.args(["demo", "--cluster", DEMO]).current_dir(root());
        Ok(vec![Task { name: name.to_owned(), command }])
    };
    Ok([demo("demo")?, demo("demo again")?])
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
    let line = line_of(command);
    eprintln!("$ {line}");
    let status = command
        .current_dir(root())
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {line}"))?;
    ensure!(status.success(), "failed ({status}): {line}");
    Ok(())
}

/// The command as a person types it.
fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_is_run_somewhere() {
        let suites = Suites::look().expect("all are known");
        assert!(suites.local.iter().any(|suite| suite == "gateway_wire"), "{:?}", suites.local);
        assert!(!suites.local.iter().any(|suite| suite.starts_with("e2e_")), "{:?}", suites.local);
    }
}
