//! The product's own images: static binaries, alone in an empty image.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use super::{Build, archive, fresh_context};
use crate::{
    fingerprint::Fingerprint,
    progress::Step,
    workspace::{cargo, root, target},
};

/// A build directory of its own: in the usual one, other flags would have cargo build everything anew at each change.
const DIRECTORY: &str = "static";
/// Cargo's profile of what goes into images.
const PROFILE: &str = "image";
/// Binary, package and image have one name.
pub(super) const BINARIES: &[&str] = &["mcp-mqtt-sidecar", "mcp-mqtt-operator"];

/// Compiles the binaries.
///
/// In one go: they share most of what they are made of, and cargo is asked once whether anything has changed.
pub(super) fn compile() -> Result<()> {
    let step = Step::start("Compiling the product");
    let mut cargo = cargo();
    cargo
        .current_dir(root())
        .args(["build", "--profile", PROFILE, "--locked", "--target", &triple(), "--target-dir"])
        .arg(target(DIRECTORY))
        .args(BINARIES.iter().flat_map(|name| ["--package", name, "--bin", name]))
        // Static, C library and all: the images have no other file.
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
        match line.trim_start().split_once(' ') {
            Some(("Compiling", package)) => step.detail(package.split(" (").next().unwrap_or(package)),
            Some(("Blocking", _)) => step.detail("waiting for another build"),
            _ => {}
        }
        lines.push(line);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("the product does not compile:\n{}", lines.join("\n"));
    }
    step.done("The product is compiled");
    Ok(())
}

/// Where a binary stands that is compiled.
pub(super) fn binary(name: &str) -> PathBuf {
    target(DIRECTORY).join(triple()).join(PROFILE).join(name)
}

/// Builds the image of a binary that is compiled.
pub(super) fn ensure(name: &str) -> Result<PathBuf> {
    let binary = binary(name);
    let dockerfile = directory(name)?.join("Dockerfile");
    let fingerprint = Fingerprint::default().path(&dockerfile)?.path(&binary)?.finish();
    archive(name, &fingerprint, |_| {
        let context = fresh_context(name)?;
        fs::copy(&binary, context.join(name)).with_context(|| format!("cannot copy {}", binary.display()))?;
        Ok(Build { dockerfile, context })
    })
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// `mcp-mqtt-sidecar` → `sidecar`.
fn directory(name: &str) -> Result<PathBuf> {
    let short = name.strip_prefix("mcp-mqtt-").with_context(|| format!("{name} is none of our packages"))?;
    Ok(root().join(short))
}
