//! Content hashes: what has not changed is not built again.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A hash over everything that a result is made from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    /// Adds a text: a version, a command line.
    pub(crate) fn text(mut self, text: &str) -> Self {
        self.0.update(text.len().to_le_bytes());
        self.0.update(text);
        self
    }

    /// Adds a file's name and content, or those of all files under a directory.
    ///
    /// # Errors
    /// When something cannot be read.
    pub(crate) fn path(mut self, path: &Path) -> Result<Self> {
        for file in files_under(path)? {
            let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
            self = self.text(&name);
            let mut content = File::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
            io::copy(&mut content, &mut Sink(&mut self.0))
                .with_context(|| format!("cannot read {}", file.display()))?;
        }
        Ok(self)
    }

    /// The hash, as a name of 16 digits.
    pub(crate) fn finish(self) -> String {
        use std::fmt::Write as _;
        self.0.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// A file that is built, and what is kept beside it.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The file.
    pub(crate) file: PathBuf,
    /// Has the fingerprint of what it was built from.
    pub(crate) stamp: PathBuf,
    /// Held while it is looked at and built: a second build would only take the processors from the first, or fight with
    /// it over what they share.
    pub(crate) lock: PathBuf,
}

/// Builds a file where there is none, or one that was built from something else.
///
/// # Errors
/// What `build` fails with; the next call builds again.
pub(crate) fn rebuild_if_changed(
    kept: &Kept,
    fingerprint: &str,
    build: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let Kept { file, stamp, lock } = kept;
    for directory in [file, stamp, lock].into_iter().filter_map(|path| path.parent()) {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let held = File::create(lock).with_context(|| format!("cannot make {}", lock.display()))?;
    held.lock().with_context(|| format!("cannot lock {}", lock.display()))?;
    if file.exists() && fs::read_to_string(stamp).is_ok_and(|old| old == fingerprint) {
        return Ok(());
    }
    build()?;
    fs::write(stamp, fingerprint).with_context(|| format!("cannot write {}", stamp.display()))
}

struct Sink<'a>(&'a mut Sha256);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The path itself if it is a file, else every file under it, in a fixed order.
fn files_under(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot list {}", path.display()))?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        files.extend(files_under(&entry)?);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_shows() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let print = || Ok::<_, anyhow::Error>(Fingerprint::default().path(directory.path())?.finish());
        fs::write(directory.path().join("a"), "one")?;
        let first = print()?;
        assert_eq!(first, print()?);
        assert_eq!(first.len(), 16);

        fs::write(directory.path().join("a"), "two")?;
        let second = print()?;
        assert_ne!(first, second);

        fs::create_dir(directory.path().join("sub"))?;
        fs::write(directory.path().join("sub/b"), "")?;
        assert_ne!(second, print()?);
        Ok(())
    }

    #[test]
    fn what_has_not_changed_is_not_built_again() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join("new").join(name);
        let kept = Kept { file: path("file"), stamp: path("stamp"), lock: path("lock") };
        let builds = std::cell::Cell::new(0);
        let ensure = |fingerprint: &str| {
            rebuild_if_changed(&kept, fingerprint, || {
                builds.set(builds.get() + 1);
                anyhow::ensure!(fingerprint != "broken", "it does not build");
                Ok(fs::write(&kept.file, fingerprint)?)
            })
        };
        ensure("one")?;
        ensure("one")?;
        assert_eq!(builds.get(), 1);
        ensure("two")?;
        assert_eq!((builds.get(), fs::read_to_string(&kept.file)?.as_str()), (2, "two"));
        // One that failed is tried again, and one that is gone is made again.
        for _ in 0..2 {
            assert!(ensure("broken").is_err());
        }
        assert_eq!(builds.get(), 4);
        fs::remove_file(&kept.file)?;
        ensure("two")?;
        assert_eq!(builds.get(), 5);
        Ok(())
    }

    #[test]
    fn texts_do_not_run_together() {
        assert_ne!(
            Fingerprint::default().text("ab").text("c").finish(),
            Fingerprint::default().text("a").text("bc").finish()
        );
    }
}
