//! The product's own images: static binaries, alone in an empty image.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{Build, archive, fresh_context};
use crate::{
    fingerprint::Fingerprint,
    progress::Step,
    workspace::{cargo, root, target, triple},
};

/// A build directory of its own: in the usual one, other flags would have cargo build everything anew at each change.
const DIRECTORY: &str = "static";
/// Cargo's profile of what goes into images.
const PROFILE: &str = "image";
/// How the binaries are linked.
const LINKING: &str = "images/static.toml";
/// How often it is looked at how far cargo is.
const LOOK: Duration = Duration::from_millis(50);
/// Binary, package and image have one name.
pub(super) const BINARIES: &[&str] = &["mcp-mqtt-sidecar", "mcp-mqtt-operator"];
/// What their images may have, in megabytes: each is its binary and no other file. The gateway is pulled with every
/// service.
const BUDGETS: &[(&str, u64)] = &[("mcp-mqtt-sidecar", 10), ("mcp-mqtt-operator", 15)];

/// The binaries being compiled, beside whatever else is done until they are needed. Dropping it stops that.
#[derive(Debug)]
pub(crate) struct Compilation {
    cargo: Child,
    /// The package that it is at.
    detail: Arc<Mutex<String>>,
    /// Ends when cargo has said all it has to say.
    reader: Option<JoinHandle<io::Result<Vec<String>>>>,
}

impl Compilation {
    /// Starts it, with all binaries in one go: they share most of what they are made of, and cargo is asked once
    /// whether anything has changed.
    ///
    /// # Errors
    /// When there is no cargo.
    pub(crate) fn start() -> Result<Self> {
        let mut cargo = cargo();
        cargo
            .current_dir(root())
            .args(["build", "--config", LINKING, "--profile", PROFILE, "--locked", "--target", &triple()])
            .arg("--target-dir")
            .arg(target(DIRECTORY))
            .args(BINARIES.iter().flat_map(|name| ["--package", name, "--bin", name]))
            // They would be taken in place of ours.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut cargo = cargo.spawn().context("cannot run cargo")?;
        let said = cargo.stderr.take().context("cargo was started without its output")?;
        let detail = Arc::<Mutex<String>>::default();
        let reader = thread::spawn({
            let detail = Arc::clone(&detail);
            move || BufReader::new(said).lines().inspect(|line| follow(line, &detail)).collect()
        });
        Ok(Self { cargo, detail, reader: Some(reader) })
    }

    /// Waits until they are there.
    ///
    /// # Errors
    /// When they do not compile: what cargo said.
    pub(crate) fn finish(mut self) -> Result<()> {
        let step = Step::start("Compiling the product");
        let reader = self.reader.take().context("it is finished once")?;
        while !reader.is_finished() {
            step.detail(lock(&self.detail).clone());
            thread::sleep(LOOK);
        }
        let Ok(lines) = reader.join() else { bail!("what cargo says was not understood") };
        let lines = lines.context("cannot read what cargo says")?;
        let status = self.cargo.wait().context("cannot wait for cargo")?;
        if !status.success() {
            bail!("the product does not compile:\n{}", lines.join("\n"));
        }
        step.done("The product is compiled");
        Ok(())
    }
}

impl Drop for Compilation {
    fn drop(&mut self) {
        // It may have ended, and been waited for.
        drop(self.cargo.kill());
        drop(self.cargo.wait());
    }
}

/// Takes from a line of cargo's what it is at.
fn follow(line: &io::Result<String>, detail: &Mutex<String>) {
    match line.as_ref().ok().and_then(|line| line.trim_start().split_once(' ')) {
        Some(("Compiling", package)) => {
            package.split(" (").next().unwrap_or(package).clone_into(&mut lock(detail));
        }
        Some(("Blocking", _)) => "waiting for another build".clone_into(&mut lock(detail)),
        _ => {}
    }
}

fn lock(detail: &Mutex<String>) -> MutexGuard<'_, String> {
    detail.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a binary stands that is compiled.
pub(super) fn binary(name: &str) -> PathBuf {
    target(DIRECTORY).join(triple()).join(PROFILE).join(name)
}

/// Builds the image of a binary that is compiled.
pub(super) fn ensure(name: &str) -> Result<PathBuf> {
    let binary = binary(name);
    let size = binary.metadata().with_context(|| format!("cannot look at {}", binary.display()))?.len();
    within_budget(name, size)?;
    let dockerfile = directory(name)?.join("Dockerfile");
    let fingerprint = Fingerprint::default().path(&dockerfile)?.path(&binary)?.finish();
    archive(name, &fingerprint, |_| {
        let context = fresh_context(name)?;
        fs::copy(&binary, context.join(name)).with_context(|| format!("cannot copy {}", binary.display()))?;
        Ok(Build { dockerfile, context })
    })
}

fn within_budget(name: &str, bytes: u64) -> Result<()> {
    let budget = BUDGETS.iter().find(|(of, _)| *of == name).map(|(_, megabytes)| megabytes * 1_000_000);
    let budget = budget.with_context(|| format!("{name} has no budget in xtask/src/images/product.rs"))?;
    ensure!(
        bytes <= budget,
        "image {name} would have {} kB, over its budget of {} kB: see what a new dependency brings (cargo tree), or \
         raise BUDGETS in xtask/src/images/product.rs",
        bytes / 1000,
        budget / 1000
    );
    Ok(())
}

/// `mcp-mqtt-sidecar` → `sidecar`.
fn directory(name: &str) -> Result<PathBuf> {
    let short = name.strip_prefix("mcp-mqtt-").with_context(|| format!("{name} is none of our packages"))?;
    Ok(root().join(short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_over_its_budget_is_refused_and_each_has_one() {
        for name in BINARIES {
            within_budget(name, 5_000_000).expect("it is small");
            let error = within_budget(name, 15_000_001).expect_err("it is large").to_string();
            assert!(error.contains(name) && error.contains("15000 kB"), "{error}");
        }
        assert!(within_budget("mcp-mqtt-sidecar", 10_000_001).is_err());
        assert!(within_budget("another", 0).is_err());
    }
}
