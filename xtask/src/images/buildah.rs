//! Dockerfiles to archives, with buildah: no daemon, no registry.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{Build, TAG};
use crate::{
    progress::Step,
    workspace::{program, target},
};

/// Lines of a failed build that are shown: the last ones have the error.
const SHOWN: usize = 25;

/// Builds a Dockerfile and writes the image's archive.
pub(super) fn build(build: &Build, name: &str, archive: &Path, step: &Step) -> Result<()> {
    let image = format!("docker.io/library/{name}:{TAG}");
    let mut command = buildah();
    command.args(["bud", "--isolation", "chroot", "--pull-never", "--layers=false", "--force-rm"]);
    command.arg("--tag").arg(&image).arg("--file").arg(&build.dockerfile).arg(&build.context);
    run(&mut command, step).with_context(|| format!("cannot build {}", build.dockerfile.display()))?;

    step.detail("writing the archive");
    let fresh = archive.with_extension("tar.new");
    // buildah adds to an archive that is there.
    drop(fs::remove_file(&fresh));
    let mut push = buildah();
    push.args(["push", &image, &format!("oci-archive:{}:{image}", fresh.display())]);
    run(&mut push, step).with_context(|| format!("cannot write {}", archive.display()))?;
    fs::rename(&fresh, archive).with_context(|| format!("cannot write {}", archive.display()))?;
    // The archive is what is kept.
    run(buildah().args(["rmi", "--force", &image]), step).context("cannot tidy up after the build")
}

/// Takes a root file system, as a tar archive, for an image.
pub(super) fn import_base(rootfs: &Path, image: &str, step: &Step) -> Result<()> {
    let context = super::fresh_context("base")?;
    fs::hard_link(rootfs, context.join("rootfs.tar")).context("cannot lay out the base image")?;
    fs::write(context.join("Dockerfile"), "FROM scratch\nADD rootfs.tar /\nCMD [\"/bin/bash\"]\n")
        .context("cannot lay out the base image")?;
    run(
        buildah()
            .args(["bud", "--isolation", "chroot", "--layers=false", "--force-rm", "--tag", image])
            .arg(&context),
        step,
    )
    .with_context(|| format!("cannot make the base image {image}"))
}

/// Whether an image is in the storage.
pub(super) fn has(image: &str) -> bool {
    buildah()
        .args(["inspect", "--type", "image", image])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Everything in a storage of the project's own; vfs works on every file system.
fn buildah() -> Command {
    let mut command = program("buildah");
    command
        .args(["--storage-driver", "vfs"])
        .arg("--root")
        .arg(target("images/storage"))
        .arg("--runroot")
        .arg(target("images/run"));
    command
}

/// Runs it with its steps shown; an error has its last lines.
fn run(command: &mut Command, step: &Step) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cannot share a pipe")?)
        .stderr(writer)
        .spawn()
        .context("cannot run buildah")?;
    // The command holds the pipe's other end, which has to close for the reading to end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut said = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line =
            String::from_utf8_lossy(&line.context("cannot read what buildah says")?).trim_end().to_owned();
        if let Some(detail) = headline(&line) {
            step.detail(detail);
        }
        said.push(line);
        if said.len() > 4 * SHOWN {
            said.drain(..2 * SHOWN);
        }
    }
    let status = child.wait().context("cannot wait for buildah")?;
    if !status.success() {
        bail!("buildah ended with {status}:\n{}", said[said.len().saturating_sub(SHOWN)..].join("\n"));
    }
    Ok(())
}

/// `[2/3] STEP 4/5: RUN npm ci` → `RUN npm ci`, cut to a line's length.
fn headline(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("STEP ")?;
    let (_, instruction) = rest.split_once(": ")?;
    let mut short: String = instruction.chars().take(50).collect();
    if short.len() < instruction.len() {
        short.push('…');
    }
    Some(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_by_its_instruction() {
        assert_eq!(headline("[2/3] STEP 4/5: RUN npm ci").as_deref(), Some("RUN npm ci"));
        assert_eq!(headline("STEP 1/4: FROM scratch").as_deref(), Some("FROM scratch"));
        assert_eq!(headline("added 90 packages"), None);
        let long = headline(&format!("STEP 1/1: RUN {}", "x".repeat(90)));
        assert!(long.is_some_and(|text| text.ends_with('…') && text.chars().count() == 51));
    }
}
