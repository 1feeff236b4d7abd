//! `cargo xtask fuzz`: the targets of `fuzz/` under libFuzzer, guided by coverage, on stable Rust.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    packages,
    progress::{heading, step},
    workspace::{self, root, target, triple},
};

/// What libFuzzer needs of a build: counters on each edge, and the operands of comparisons. All of it is stable.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Longest input, in bytes: more than any rule of the parsers needs.
const MAX_LENGTH: u32 = 4096;
/// Longest input that goes into the repository's corpus, in bytes.
const MAX_SEED: u32 = 128;
/// What one input may take, in seconds and MiB: they take microseconds and kilobytes.
const TIMEOUT: u32 = 5;
const MEMORY: u32 = 512;

#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// One target alone, of those in `fuzz/corpus`.
    target: Option<String>,
    /// How long, for each target.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=24 * 60))]
    minutes: u32,
    /// Then add to the repository's corpus what reaches code that it did not reach.
    #[arg(long)]
    keep: bool,
}

/// Fuzzes one target after the other.
///
/// # Errors
/// The first finding.
pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    packages::ensure(&[packages::FUZZER])?;
    let known = targets()?;
    let targets = match &args.target {
        None => known,
        Some(target) if known.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no target {target}: the targets are {}", known.join(", ")),
    };
    step("Building the fuzz targets", "The fuzz targets are built", |_| build())?;
    for target in &targets {
        eprintln!("\n{}", heading(&format!("Fuzzing {target} for {} min", args.minutes)));
        fuzz(target, args.minutes)?;
        if args.keep {
            keep(target)?;
        }
    }
    Ok(())
}

fn targets() -> Result<Vec<String>> {
    let entries = fs::read_dir(root().join("fuzz/corpus")).context("cannot read fuzz/corpus")?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn build() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--quiet", "--package", "mcp-mqtt-fuzz", "--bin", "fuzz", "--profile", "fuzz"]);
    // A directory of its own: other flags for everything, and the usual builds keep theirs.
    // With a target named, build scripts and macros are built without the flags.
    cargo.args(["--target", &triple(), "--target-dir"]).arg(target("fuzz/build")).env("RUSTFLAGS", FLAGS);
    let status = cargo.current_dir(root()).status().context("cannot run cargo")?;
    ensure!(status.success(), "the fuzz targets do not build");
    Ok(())
}

fn fuzz(name: &str, minutes: u32) -> Result<()> {
    let (seeds, grown, findings) =
        (root().join("fuzz/corpus").join(name), target("fuzz/corpus").join(name), target("fuzz/findings"));
    for directory in [&grown, &findings] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut command = fuzzer(name);
    command
        .arg(format!("-max_total_time={}", 60 * minutes))
        .arg(format!("-max_len={MAX_LENGTH}"))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-dict={}", root().join(format!("fuzz/dictionaries/{name}.dict")).display()))
        .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        .arg("-print_final_stats=1")
        .args([&grown, &seeds]);
    // What was found before comes first.
    for finding in fs::read_dir(&findings).context("cannot read the findings")? {
        let finding = finding?.path();
        if is_of(&finding, name) {
            let status = fuzzer(name).arg(&finding).stdin(Stdio::null()).status()?;
            ensure!(status.success(), "{name} still fails on {}", finding.display());
        }
    }
    // libFuzzer says a line for each input that it keeps.
    let log = target("fuzz").join(format!("{name}.log"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command.stdin(Stdio::null()).stderr(file).status().context("cannot run the fuzz target")?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        bail!(
            "{name} has a finding, its input in {}; the whole log is {}\n{}",
            findings.display(),
            log.display(),
            said.lines().filter(|line| !is_progress(line)).collect::<Vec<_>>().join("\n")
        );
    }
    let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    eprintln!("{name}: {} executions, no finding", runs.map_or("?", str::trim));
    Ok(())
}

/// `#1234 NEW cov: …`
fn is_progress(line: &str) -> bool {
    line.starts_with('#')
}

/// Adds the fewest that reach all new code, small ones before large ones. How often each edge is passed does not count:
/// that would be thousands.
fn keep(name: &str) -> Result<()> {
    let status = fuzzer(name)
        .args(["-set_cover_merge=1", "-use_counters=0", &format!("-max_len={MAX_SEED}")])
        .args([root().join("fuzz/corpus").join(name), target("fuzz/corpus").join(name)])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run the fuzz target")?;
    ensure!(status.success(), "the corpus of {name} cannot be merged");
    Ok(())
}

fn fuzzer(name: &str) -> Command {
    let mut command = Command::new(target("fuzz/build").join(triple()).join("fuzz/fuzz"));
    command.env("MCP_MQTT_FUZZ_TARGET", name).current_dir(root());
    command
}

fn is_of(finding: &Path, name: &str) -> bool {
    finding
        .file_name()
        .and_then(|file| file.to_str())
        .is_some_and(|file| file.starts_with(&format!("{name}-")))
}
