//! What has to be installed on the machine, and the installing of it.

mod services;

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, bail};

use crate::{
    progress::Step,
    workspace::{find_program, program},
};

/// A Debian package and what it is needed for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: &'static str,
    /// How to see that it, or what stands in for it, is there: a program's name, or any of some absolute paths.
    provides: &'static [&'static str],
    /// What it is for.
    why: &'static str,
}

/// What a node of a cluster on this machine runs on.
pub(crate) const NODE: &[Package] = &[
    Package {
        name: "containerd",
        provides: &["containerd", "ctr"],
        why: "runs the containers of the cluster",
    },
    Package { name: "runc", provides: &["runc"], why: "starts a container" },
    Package {
        name: "containernetworking-plugins",
        provides: &["/usr/lib/cni/ptp|/opt/cni/bin/ptp"],
        why: "connects pods",
    },
    Package { name: "nftables", provides: &["nft"], why: "carries Services (kube-proxy)" },
    Package { name: "iptables", provides: &["iptables"], why: "carries host ports of pods" },
    Package { name: "conntrack", provides: &["conntrack"], why: "lets kube-proxy end stale UDP flows" },
];

/// What images are built with.
pub(crate) const IMAGES: &[Package] = &[
    Package { name: "buildah", provides: &["buildah"], why: "builds the project's Dockerfiles" },
    Package {
        name: "mmdebstrap",
        provides: &["mmdebstrap"],
        why: "makes the Debian base of the test images",
    },
];

/// What the sandbox image's one program is compiled with.
pub(crate) const COMPILER: &[Package] = &[
    Package { name: "gcc", provides: &["gcc"], why: "compiles the pause program" },
    Package {
        name: "libc6-dev",
        provides: &["/usr/include/signal.h"],
        why: "has what a static program is linked from",
    },
];

/// What libFuzzer is compiled with.
pub(crate) const FUZZER: &[Package] =
    &[Package { name: "g++", provides: &["c++|g++"], why: "compiles libFuzzer" }];

/// What the tests talk to.
pub(crate) const BROKER: &[Package] =
    &[Package { name: "mosquitto", provides: &["mosquitto"], why: "is the broker of the tests" }];

/// What judges the chart's alerts and the queries of its dashboard.
pub(crate) const PROMETHEUS: &[Package] = &[Package {
    name: "prometheus",
    provides: &["prometheus", "promtool"],
    why: "runs the alerts and queries of the tests",
}];

/// What runs the MCP servers and clients that are not ours.
pub(crate) const SERVERS: &[Package] = &[
    Package { name: "nodejs", provides: &["node|nodejs"], why: "runs MCP servers and clients from npm" },
    Package { name: "npm", provides: &["npm"], why: "fetches them" },
];

/// What installs the MCP servers from `PyPI`.
pub(crate) const PIP: &[Package] = &[Package {
    name: "python3-pip",
    provides: &["python3", "/usr/bin/pip3|/usr/local/bin/pip3|/usr/lib/python3/dist-packages/pip"],
    why: "fetches MCP servers from PyPI",
}];

impl Package {
    fn is_installed(&self) -> bool {
        self.provides.iter().all(|needed| {
            needed.split('|').any(|place| {
                if place.starts_with('/') { Path::new(place).exists() } else { find_program(place).is_some() }
            })
        })
    }
}

/// Installs those that are missing.
///
/// # Errors
/// When something is missing that cannot be installed here; the message says what, why, and what to do.
pub(crate) fn ensure(groups: &[&[Package]]) -> Result<()> {
    let missing: Vec<Package> =
        groups.concat().into_iter().filter(|package| !package.is_installed()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if find_program("apt-get").is_none() {
        bail!(
            "{}\nThis machine has no apt: install what provides these by its own means, or use a cluster of your own \
             (\"Install on your own cluster\" in README.md).",
            list(&missing)
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "{}\nInstall them (sudo apt-get install {}), or run this as root.",
            list(&missing),
            names.join(" ")
        );
    }
    let step = Step::start(format!("Installing {}", names.join(", ")));
    let new: Vec<&str> = names.iter().copied().filter(|name| !services::is_there(name)).collect();
    let held = services::Held::start()?;
    if apt_install(&names).is_err() {
        // The usual cause is a package list that is old, or was never fetched.
        step.detail("updating the package lists");
        apt(&["update"])?;
        step.detail("");
        apt_install(&names).with_context(|| list(&missing))?;
    }
    drop(held);
    if let Some(package) = missing.iter().find(|package| !package.is_installed()) {
        bail!("{} is installed, but {} is not there", package.name, package.provides.join(", "));
    }
    step.done(format!("Installed {}", names.join(", ")));
    if let Err(error) = services::disable(&new) {
        eprintln!("  their services may start at the machine's next boot: {error:#}");
    }
    Ok(())
}

/// Says that root is needed and what to do without, if this is not root.
///
/// # Errors
/// When this is not root.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "{what} needs root: it makes namespaces, mounts and cgroups.\n\
         Run it as root (a throwaway machine or a privileged container will do), or use a cluster of your own \
         (kind, minikube, any other) with your own kubectl and helm: the chart is in charts/."
    )
}

fn list(missing: &[Package]) -> String {
    let lines: Vec<String> =
        missing.iter().map(|package| format!("  {:<28} {}", package.name, package.why)).collect();
    format!("Some Debian packages are missing:\n{}", lines.join("\n"))
}

fn apt_install(names: &[&str]) -> Result<()> {
    apt(&[&["install", "--yes", "--no-install-recommends"], names].concat())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let output = program("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-get")?;
    if !output.status.success() {
        bail!("apt-get {} failed:\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_missing() {
        let package =
            Package { name: "shell", provides: &["sh", "/nowhere|/bin/sh"], why: "it is everywhere" };
        assert!(package.is_installed());
    }

    #[test]
    fn a_part_that_is_not_there_makes_the_package_missing() {
        let package = Package { name: "half", provides: &["sh", "no-such-program-here"], why: "of one half" };
        assert!(!package.is_installed());
    }

    #[test]
    fn the_message_names_each_package_and_its_use() {
        let message = list(NODE);
        for package in NODE {
            assert!(message.contains(package.name) && message.contains(package.why));
        }
    }
}
