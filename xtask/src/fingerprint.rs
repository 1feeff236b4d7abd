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
    fn texts_do_not_run_together() {
        assert_ne!(
            Fingerprint::default().text("ab").text("c").finish(),
            Fingerprint::default().text("a").text("bc").finish()
        );
    }
}
