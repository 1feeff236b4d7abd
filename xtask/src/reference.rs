//! What is written down from the code itself: `crds/` and the reference pages in `docs/`. A program of the package
//! `mcp-mqtt-tests` makes it, which has the whole product in it; this one does not, so that `cargo xtask demo` starts
//! sooner on a new machine.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{
    generated::Generated,
    suite,
    workspace::{root, target},
};

const PROGRAM: &str = "reference";

/// One file, as the program has it.
#[derive(Debug, Deserialize)]
struct File {
    path: String,
    content: String,
    command: String,
}

/// All files under `root`.
///
/// # Errors
/// When the program cannot be built.
pub(crate) fn generate(under: &Path) -> Result<Vec<Generated>> {
    suite::build_programs()?;
    let output = Command::new(target("debug").join(PROGRAM))
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {PROGRAM}"))?;
    ensure!(output.status.success(), "{PROGRAM}: {}", output.status);
    let files: Vec<File> = serde_json::from_slice(&output.stdout).context(PROGRAM)?;
    let placed = |File { path, content, command }| Generated { path: under.join(path), content, command };
    Ok(files.into_iter().map(placed).collect())
}

/// Those that a command writes.
///
/// # Errors
/// As [`generate`].
pub(crate) fn of_command(command: &str, under: &Path) -> Result<Vec<Generated>> {
    let mut files = generate(under)?;
    files.retain(|file| file.command == command);
    Ok(files)
}
