//! The packages of the real MCP servers: installed on this machine, for the image's interpreters, and copied in. So the
//! image needs neither npm nor pip, and whoever has a mirror or an authority configured for them has it here too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{Build, archive, base, fresh_context};
use crate::{
    fingerprint::Fingerprint,
    packages,
    progress::Step,
    workspace::{program, root},
};

/// What pins the packages.
const PINS: [&str; 3] = ["package.json", "package-lock.json", "requirements.txt"];

/// Builds the image unless it is built; returns its archive.
pub(super) fn ensure() -> Result<PathBuf> {
    let image = root().join("images/servers");
    let servers = root().join("tests/servers");
    let mut fingerprint = Fingerprint::default().text(base::RELEASE).path(&image)?;
    for file in PINS {
        fingerprint = fingerprint.path(&servers.join(file))?;
    }
    archive("mcp-servers", &fingerprint.finish(), |step| {
        base::ensure(step)?;
        packages::ensure(&[packages::SERVERS, packages::PIP])?;
        let context = fresh_context("mcp-servers")?;
        for (from, file) in PINS.map(|file| (&servers, file)).into_iter().chain([(&image, "mcp-server-time")])
        {
            fs::copy(from.join(file), context.join(file)).with_context(|| format!("cannot copy {file}"))?;
        }
        step.detail("npm ci");
        install(program("npm").args(["ci", "--omit=dev", "--no-audit", "--no-fund"]), &context)?;
        pip(&context, step)?;
        Ok(Build { dockerfile: image.join("Dockerfile"), context })
    })
}

/// Wheels for the image's Python, whatever this machine's is.
fn pip(context: &Path, step: &Step) -> Result<()> {
    step.detail("pip install");
    let platform = format!("manylinux_2_28_{}", std::env::consts::ARCH);
    let older = format!("manylinux2014_{}", std::env::consts::ARCH);
    install(
        program("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--no-compile",
            ])
            .args(["--only-binary=:all:", "--implementation=cp", "--python-version", base::PYTHON])
            .args(["--platform", &platform, "--platform", &older])
            .args(["--target=python", "--requirement=requirements.txt"]),
        context,
    )
}

fn install(command: &mut Command, directory: &Path) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = command
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} cannot install the MCP servers of tests/servers:\n{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
