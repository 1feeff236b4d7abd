//! The Go binary that is all of Kubernetes: built from `tests/cluster` when that has changed.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::go::{self, Build};
use crate::{
    fingerprint::{Kept, rebuild_if_changed},
    workspace::{root, target},
};

/// The file that says which versions are built.
const VERSION_SOURCE: &str = "tests/cluster/go.mod";
/// Names under which the binary stands for users: on the `PATH` of commands in the cluster.
const TOOLS: [&str; 2] = ["kubectl", "helm"];

/// Where the binary and its names stand.
pub(super) fn directory() -> PathBuf {
    target("cluster/bin")
}

/// The binary.
pub(super) fn path() -> PathBuf {
    directory().join("kubernetes")
}

/// The version of Kubernetes that is built: `v1.35.4`.
pub(super) fn version() -> Result<String> {
    version_of("k8s.io/kubernetes")
}

fn version_of(module: &str) -> Result<String> {
    let file = root().join(VERSION_SOURCE);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    version_in(&text, module).with_context(|| format!("{} requires no {module}", file.display()))
}

fn version_in(go_mod: &str, module: &str) -> Option<String> {
    let mut required = go_mod.lines().map(str::trim).filter_map(|line| line.strip_prefix(module));
    // A space after the name, or it is another module whose name is longer.
    let line = required.find(|rest| rest.starts_with(" v"))?;
    line.split_whitespace().next().map(str::to_owned)
}

/// Builds the binary, unless it is what its sources say.
pub(super) fn ensure() -> Result<()> {
    let directory = directory();
    let kept = Kept { file: path(), stamp: directory.join("stamp"), lock: directory.join("lock") };
    rebuild_if_changed(&kept, &fingerprint()?, || {
        build(&source())?;
        for tool in TOOLS {
            let name = directory.join(tool);
            if !name.exists() {
                symlink("kubernetes", &name).with_context(|| format!("cannot make {}", name.display()))?;
            }
        }
        Ok(())
    })
}

fn source() -> PathBuf {
    root().join("tests/cluster")
}

/// Of everything the binary is built from.
pub(super) fn fingerprint() -> Result<String> {
    go::fingerprint(&source())
}

fn build(source: &Path) -> Result<()> {
    let version = version()?;
    go::build(&Build {
        what: &format!("Kubernetes {version}"),
        takes: "about 5 min on two processors",
        source,
        package: ".",
        linker_flags: &linker_flags(&version, &version_of("helm.sh/helm/v4")?),
        into: &path(),
    })
}

/// Without these the versions are empty, and clients complain.
fn linker_flags(kubernetes: &str, helm: &str) -> String {
    let package = "k8s.io/component-base/version";
    let mut numbers = kubernetes.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    format!(
        "-X {package}.gitVersion={kubernetes} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
         -X helm.sh/helm/v4/internal/version.version={helm}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_modules() -> Result<()> {
        let text =
            "module x\n\nrequire (\n\tk8s.io/kubernetes/x v0.1.0\n\tk8s.io/kubernetes v1.35.4 // pinned\n)\n";
        assert_eq!(version_in(text, "k8s.io/kubernetes").as_deref(), Some("v1.35.4"));
        assert_eq!(version_in("module x\n", "k8s.io/kubernetes"), None);
        assert!(version()?.starts_with("v1."));
        assert!(version_of("helm.sh/helm/v4")?.starts_with("v4."));
        Ok(())
    }

    #[test]
    fn the_binary_is_told_its_versions() {
        let flags = linker_flags("v1.35.4", "v4.1.3");
        for part in ["gitVersion=v1.35.4 ", "gitMajor=1 ", "gitMinor=35 ", "version.version=v4.1.3"] {
            assert!(flags.contains(part), "{flags}");
        }
    }
}
