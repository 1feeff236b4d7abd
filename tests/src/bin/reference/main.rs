//! What is written down from the code itself: the CRDs, and the pages on configuration and metrics. As JSON on the
//! standard output: a list of objects with `path` (from the project's root), `content` and `command` (that writes the
//! file). `cargo xtask crds` and `cargo xtask docs` write it where it belongs, `cargo xtask test` compares.
//!
//! A program of its own, and not a part of xtask, which need not be built with the whole product in it.

mod crds;
mod docs;

use serde::Serialize;

/// One generated file.
#[derive(Debug, Serialize)]
struct Generated {
    path: String,
    content: String,
    command: &'static str,
}

fn main() -> anyhow::Result<()> {
    let mut files = crds::generate();
    files.extend(docs::generate());
    serde_json::to_writer(std::io::stdout().lock(), &files)?;
    Ok(())
}
