//! Programs that are built from Go modules, with a view of how far the compiler is.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    fingerprint::Fingerprint,
    progress::Step,
    workspace::{find_program, program},
};

/// One program.
pub(super) struct Build<'a> {
    /// What it is, for people: with its version.
    pub(super) what: &'a str,
    /// How long the first build takes.
    pub(super) takes: &'a str,
    /// The directory of the module.
    pub(super) source: &'a Path,
    /// The package to build; `.` is the module's own.
    pub(super) package: &'a str,
    /// What the linker is told beside what it always is.
    pub(super) linker_flags: &'a str,
    /// The file that it becomes.
    pub(super) into: &'a Path,
}

/// Builds it, beside the file and moved over: who runs the old one keeps it.
///
/// # Errors
/// When there is no Go, the modules cannot be had, or the compiler fails.
pub(super) fn build(build: &Build<'_>) -> Result<()> {
    let Build { what, takes, source, package, linker_flags, into } = build;
    if find_program("go").is_none() {
        bail!(
            "Go is missing: {what} is built from its Go modules, once.\n\
             Install Go 1.26 or newer (https://go.dev/dl), or use a cluster of your own (kind, minikube, any other)."
        );
    }
    let step = Step::start(format!("Building {what} (once; {takes})"));
    step.detail("resolving modules");
    let total = packages(source, package)?;

    let fresh = into.with_extension("new");
    let mut compiler = go(source)
        .args([
            "build",
            "-v",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            &format!("-s -w {linker_flags}"),
            "-o",
        ])
        .arg(&fresh)
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run go")?;
    let said = follow(&mut compiler, &step, total)?;
    let status = compiler.wait().context("cannot wait for go")?;
    if !status.success() {
        bail!("building {what} failed ({status}):\n{}", said.join("\n"));
    }
    fs::rename(&fresh, into).with_context(|| format!("cannot write {}", into.display()))?;
    step.done(format!("{what} is built"));
    Ok(())
}

/// Where the files of a module stand that is required by the one in `source`.
///
/// # Errors
/// When it cannot be had.
pub(super) fn directory_of(source: &Path, module: &str) -> Result<PathBuf> {
    let output =
        go(source).args(["list", "-m", "-f", "{{.Dir}}", module]).output().context("cannot run go")?;
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || directory.is_empty() {
        bail!("{module} cannot be had:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(directory.into())
}

/// Of everything that is built from this directory.
///
/// # Errors
/// When something cannot be read.
pub(super) fn fingerprint(source: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(source)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot list {}", source.display()))?;
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "go" || extension == "mod" || extension == "sum")
    });
    files.sort();
    let mut fingerprint = Fingerprint::default();
    for file in files {
        fingerprint =
            fingerprint.text(&file.file_name().unwrap_or_default().to_string_lossy()).path(&file)?;
    }
    Ok(fingerprint.finish())
}

fn go(source: &Path) -> Command {
    let mut go = program("go");
    go.current_dir(source).env("CGO_ENABLED", "0").env("GOWORK", "off");
    go
}

/// How many packages go into the program.
fn packages(source: &Path, package: &str) -> Result<usize> {
    let output = go(source).args(["list", "-deps", package]).output().context("cannot run go")?;
    if !output.status.success() {
        bail!(
            "the modules of {} cannot be had; is there a way to a Go module proxy?\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}

/// Shows how far the compiler is; returns the last lines that were no package, which are the errors.
fn follow(build: &mut Child, step: &Step, total: usize) -> Result<Vec<String>> {
    let said: ChildStderr = build.stderr.take().context("go was started without its output")?;
    let mut compiled = 0;
    let mut errors = Vec::new();
    for line in BufReader::new(said).lines() {
        let line = line.context("cannot read what go says")?;
        if line.starts_with('#') || line.contains(' ') {
            errors.push(line);
        } else {
            compiled += 1;
            step.detail(if line.starts_with("mcp-mqtt.io/") {
                "linking".to_owned()
            } else {
                format!("{compiled} of {total} packages")
            });
        }
    }
    Ok(errors.split_off(errors.len().saturating_sub(40)))
}
