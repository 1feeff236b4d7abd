//! The product's own images: static binaries, alone in an empty image.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{Build, archive, fresh_context};
use crate::{
    fingerprint::Fingerprint,
    progress::Step,
    workspace::{root, target},
};

/// Binary, package and image have one name.
pub(super) const BINARIES: &[&str] = &["mcp-mqtt-sidecar", "mcp-mqtt-operator"];

/// Compiles the binary and builds its image.
pub(super) fn ensure(name: &str) -> Result<PathBuf> {
    let binary = compile(name)?;
    let dockerfile = directory(name)?.join("Dockerfile");
    let fingerprint = Fingerprint::default().path(&dockerfile)?.path(&binary)?.finish();
    archive(name, &fingerprint, |_| {
        let context = fresh_context(name)?;
        fs::copy(&binary, context.join(name)).with_context(|| format!("cannot copy {}", binary.display()))?;
        Ok(Build { dockerfile, context })
    })
}

/// `mcp-mqtt-sidecar` → `sidecar`.
fn directory(name: &str) -> Result<PathBuf> {
    let short = name.strip_prefix("mcp-mqtt-").with_context(|| format!("{name} is none of our packages"))?;
    Ok(root().join(short))
}

/// The release build, in a directory of its own: other flags would have cargo build everything anew at each change.
fn compile(name: &str) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let directory = target("static");
    let step = Step::start(format!("Compiling {name}"));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .args(["build", "--release", "--locked", "--package", name, "--bin", name, "--target", &triple])
        .arg("--target-dir")
        .arg(&directory)
        // Static, C library and all: the image has no other file.
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = cargo.spawn().context("cannot run cargo")?;
    let said = child.stderr.take().context("cargo was started without its output")?;
    let mut lines = Vec::new();
    for line in BufReader::new(said).lines() {
        let line = line.context("cannot read what cargo says")?;
        if let Some(package) = line.trim_start().strip_prefix("Compiling ") {
            step.detail(package.split(" (").next().unwrap_or(package));
        }
        lines.push(line);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("{name} does not compile:\n{}", lines.join("\n"));
    }
    step.done(format!("{name} is compiled"));
    Ok(directory.join(triple).join("release").join(name))
}
