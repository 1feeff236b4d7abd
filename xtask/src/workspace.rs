//! Where things stand in the project.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

/// The project's root directory.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace")
}

/// A path under the directory of everything that is built and may be deleted.
pub(crate) fn target(parts: &str) -> PathBuf {
    root().join("target").join(parts)
}

/// Where a program stands: on `PATH`, or where only root's `PATH` looks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// The system that this machine's programs are built for, as cargo names it.
pub(crate) fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// The cargo setting that names what runs a test's or a bench's binary on this machine.
pub(crate) fn runner_variable() -> String {
    format!("CARGO_TARGET_{}_RUNNER", triple().to_uppercase().replace('-', "_"))
}

/// This program's own file, to start it once more. A build may have put a newer one there meanwhile, which will do:
/// the kernel then calls ours deleted.
///
/// # Errors
/// When the system does not tell.
pub(crate) fn this_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("a process knows its executable")?;
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

/// A command for the program of that name, wherever [`find_program`] has it.
pub(crate) fn program(name: &str) -> Command {
    Command::new(find_program(name).unwrap_or_else(|| name.into()))
}

/// A cargo that does not see what the cargo that runs us has set: build scripts watch some of it (ring's does), and
/// would run anew, with everything above them, whenever a build by hand and one from here take turns.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| OF_THE_PACKAGE.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// Beginnings of the variables that cargo sets for the package it runs.
const OF_THE_PACKAGE: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_triple_and_the_runner_are_those_of_cargo() {
        let rustc = Command::new("rustc").arg("-vV").output().expect("rustc runs");
        let told = String::from_utf8_lossy(&rustc.stdout).into_owned();
        let host = told.lines().find_map(|line| line.strip_prefix("host: ")).expect("it tells its host");
        assert_eq!(triple(), host);
        let expected = format!("CARGO_TARGET_{}_RUNNER", host.replace('-', "_").to_uppercase());
        assert_eq!(runner_variable(), expected);
    }
}
