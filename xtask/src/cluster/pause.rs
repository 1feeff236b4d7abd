//! The image of a pod's sandbox, of our own: no registry has to be reached for it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{
    fingerprint::Fingerprint,
    images::{self, Build},
    packages,
    workspace::{program, root},
};

/// Builds the image unless it is built; returns its archive.
pub(super) fn ensure() -> Result<PathBuf> {
    let source = root().join("images/pause");
    let fingerprint = Fingerprint::default().path(&source)?.finish();
    images::archive("mcp-mqtt-pause", &fingerprint, |_| {
        packages::ensure(&[packages::COMPILER, packages::IMAGES])?;
        let context = images::fresh_context("mcp-mqtt-pause")?;
        let output = program("gcc")
            .args(["-Os", "-static", "-s", "-o"])
            .arg(context.join("pause"))
            .arg(source.join("pause.c"))
            .output()
            .context("cannot run gcc")?;
        if !output.status.success() {
            bail!(
                "gcc cannot compile the pause program:\n{}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(Build { dockerfile: source.join("Dockerfile"), context })
    })
}
