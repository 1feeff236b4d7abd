//! The installer: brings this binary into a directory that the pod's containers share.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::config::{BIN_DIR, BINARY};

/// Where this process's own executable can be read, whatever its path was.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// Where to install.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct InstallConfig {
    /// Directory to copy the binary into.
    #[arg(long, default_value = BIN_DIR, value_name = "DIR")]
    pub to: PathBuf,
}

/// Installs, and says so on stderr.
pub fn run(config: &InstallConfig) -> ExitCode {
    match install(Path::new(OWN_EXECUTABLE), &config.to) {
        Ok(target) => {
            eprintln!("installed {}", target.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!(
                "cannot install {BINARY} into {}: {error}. The directory must be a volume that this user may \
                 write to (an emptyDir shared with the server container).",
                config.to.display()
            );
            ExitCode::FAILURE
        }
    }
}

/// Copies `source` to `directory/mcp-mqtt-sidecar`, mode 0755. Whoever looks sees the old file or the new one,
/// never a part; a binary that runs from there is not disturbed. Doing it again changes nothing.
///
/// # Errors
/// What the file system says.
pub fn install(source: &Path, directory: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let target = directory.join(BINARY);
    let temporary = directory.join(format!(".{BINARY}.{}", std::process::id()));
    let copied = copy_executable(source, &temporary).and_then(|()| fs::rename(&temporary, &target));
    if copied.is_err() {
        let _ = fs::remove_file(&temporary); // may not exist; the first error is the one to tell
    }
    copied.map(|()| target)
}

fn copy_executable(source: &Path, target: &Path) -> io::Result<()> {
    let mut from = fs::File::open(source)?;
    let mut to = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(target)?;
    io::copy(&mut from, &mut to)?;
    to.set_permissions(fs::Permissions::from_mode(0o755)) // whatever the umask took away
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_executable_by_everyone_and_replaces_an_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        let source = directory.path().join("source");
        fs::write(&source, "new").unwrap();
        for _twice in 0..2 {
            let target = install(&source, &bin).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"new");
            assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o755);
            fs::write(&target, "old, and longer than the new one").unwrap();
        }
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn a_failed_copy_leaves_the_old_file_and_no_temporary_one() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, "good").unwrap();
        install(&source, directory.path()).unwrap();
        assert!(install(&directory.path().join("missing"), directory.path()).is_err());
        assert_eq!(fs::read(directory.path().join(BINARY)).unwrap(), b"good");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "source and target only");
    }
}
