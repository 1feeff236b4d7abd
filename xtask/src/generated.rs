//! Files that are generated and committed: written by a command, and compared by its `--check`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

/// One generated file.
#[derive(Debug)]
pub(crate) struct Generated {
    /// Where it stands.
    pub(crate) path: PathBuf,
    /// What belongs there.
    pub(crate) content: String,
    /// The command that writes it.
    pub(crate) command: String,
}

/// [`write`], or [`check`] where nothing shall change.
///
/// # Errors
/// As those.
pub(crate) fn write_or_check(files: &[Generated], only_check: bool) -> Result<()> {
    if only_check { check(files) } else { write(files) }
}

/// Writes what differs and says so.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(files: &[Generated]) -> Result<()> {
    for file in files {
        if fs::read_to_string(&file.path).is_ok_and(|old| old == file.content) {
            continue;
        }
        if let Some(directory) = file.path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(&file.path, &file.content)
            .with_context(|| format!("cannot write {}", file.path.display()))?;
        println!("wrote {}", file.path.display());
    }
    Ok(())
}

/// Compares and changes nothing.
///
/// # Errors
/// When a file differs; the message names the first line that does and the command that mends it.
pub(crate) fn check(files: &[Generated]) -> Result<()> {
    let stale: Vec<String> = files
        .iter()
        .filter_map(|file| {
            let old = fs::read_to_string(&file.path).unwrap_or_default();
            let line = first_difference(&old, &file.content)?;
            Some(format!("{}:{line} is not what `{}` writes", file.path.display(), file.command))
        })
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    bail!(
        "generated files have drifted; run the command and commit what it writes:\n  {}",
        stale.join("\n  ")
    )
}

/// Number of the first line that differs, from 1; none where nothing does.
fn first_difference(old: &str, new: &str) -> Option<usize> {
    if old == new {
        return None;
    }
    let same = old.lines().zip(new.lines()).take_while(|(old, new)| old == new).count();
    Some(same + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drifted_is_named_with_its_line_and_its_command() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/a.yaml");
        let files = [Generated {
            path: path.clone(),
            content: "a\nb\n".to_owned(),
            command: "cargo xtask x".to_owned(),
        }];
        let missing = check(&files).unwrap_err().to_string();
        assert!(missing.contains("sub/a.yaml:1 is not what `cargo xtask x` writes"), "{missing}");
        write(&files).unwrap();
        check(&files).unwrap();
        fs::write(&path, "a\nc\n").unwrap();
        let stale = check(&files).unwrap_err().to_string();
        assert!(stale.contains("a.yaml:2"), "{stale}");
    }

    #[test]
    fn a_missing_last_line_is_a_difference() {
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
        assert_eq!(first_difference("a", "a\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\n"), None);
    }
}
