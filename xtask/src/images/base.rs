//! `debian:bookworm-slim`, made on this machine: the Dockerfiles name it as anyone would, and where no image registry
//! can be reached, this is what they get.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context, Result, bail};

use super::buildah;
use crate::{
    progress::Step,
    workspace::{program, target},
};

/// The Debian release.
pub(super) const RELEASE: &str = "bookworm";
/// Its Python.
pub(super) const PYTHON: &str = "3.11";
const IMAGE: &str = "docker.io/library/debian:bookworm-slim";
/// What the official slim image leaves out as well.
const LEFT_OUT: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
];

/// Makes the image unless it is in buildah's storage.
pub(super) fn ensure(step: &Step) -> Result<()> {
    if buildah::has(IMAGE) {
        return Ok(());
    }
    let rootfs = target("images").join(format!("debian-{RELEASE}.tar"));
    if !rootfs.exists() {
        step.detail(format!("making a Debian {RELEASE} base, once"));
        bootstrap(&rootfs)?;
    }
    step.detail("taking in the Debian base, once");
    buildah::import_base(&rootfs, IMAGE, step)
}

fn bootstrap(rootfs: &Path) -> Result<()> {
    let fresh = rootfs.with_extension("new.tar");
    let output = program("mmdebstrap")
        .args(["--variant=minbase", "--mode=root", "--quiet"])
        // As in the official image: a build that breaks off is thrown away, so nothing has to reach the disk in order.
        .arg("--dpkgopt=force-unsafe-io")
        .args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg(RELEASE)
        .arg(&fresh)
        .stdin(Stdio::null())
        .output()
        .context("cannot run mmdebstrap")?;
    if !output.status.success() {
        bail!(
            "mmdebstrap cannot make a Debian {RELEASE}; is there a way to a Debian mirror?\n{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    fs::rename(&fresh, rootfs).with_context(|| format!("cannot write {}", rootfs.display()))
}
