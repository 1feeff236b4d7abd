//! The installer: brings this binary into a directory that the pod's containers share.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::config::{BIN_DIR, BINARY};

/// Where this process's own executable can be read, whatever its path was.
const OWN_EXECUTABLE: &str = "/proc/self/exe";
/// For everyone to run, whoever the server's container runs as.
const MODE: u32 = 0o755;
/// Bytes that are compared at a time.
const CHUNK: usize = 64 * 1024;

/// Where the kubelet reads a container's last words. The installer runs as a hook of the gateway's container, and nobody
/// keeps what a hook prints.
const TERMINATION_LOG: &str = "/dev/termination-log";

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
            let failed = format!(
                "cannot install {BINARY} into {}: {error}. The directory must be a volume that this user may \
                 write to (an emptyDir shared with the server container).",
                config.to.display()
            );
            eprintln!("{failed}");
            note(&failed, Path::new(TERMINATION_LOG));
            ExitCode::FAILURE
        }
    }
}

/// Where nobody made that file, nobody reads it.
fn note(failed: &str, termination_log: &Path) {
    let file = fs::OpenOptions::new().write(true).truncate(true).open(termination_log);
    let _ = file.and_then(|mut file| file.write_all(failed.as_bytes()));
}

/// Copies `source` to `directory/mcp-mqtt-sidecar`, mode 0755. Whoever looks sees the old file or the new one,
/// never a part; a binary that runs from there is not disturbed. What is there already stays, also on a full disk: a
/// gateway that is started anew beside a running server must not fail here.
///
/// # Errors
/// What the file system says.
pub fn install(source: &Path, directory: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let target = directory.join(BINARY);
    if is_installed(source, &target).unwrap_or(false) {
        return Ok(target);
    }
    let temporary = directory.join(format!(".{BINARY}.{}", std::process::id()));
    let copied = copy_executable(source, &temporary).and_then(|()| fs::rename(&temporary, &target));
    if copied.is_err() {
        let _ = fs::remove_file(&temporary); // may not exist; the first error is the one to tell
    }
    copied.map(|()| target)
}

fn is_installed(source: &Path, target: &Path) -> io::Result<bool> {
    let (ours, there) = (fs::File::open(source)?, fs::File::open(target)?);
    let is_executable = there.metadata()?.permissions().mode() & 0o7777 == MODE;
    Ok(is_executable && ours.metadata()?.len() == there.metadata()?.len() && is_same(ours, there)?)
}

fn is_same(one: impl io::Read, other: impl io::Read) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::with_capacity(CHUNK, one), BufReader::with_capacity(CHUNK, other));
    loop {
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let common = a.len().min(b.len());
        if a[..common] != b[..common] {
            return Ok(false);
        }
        if common == 0 {
            return Ok(a.len() == b.len());
        }
        one.consume(common);
        other.consume(common);
    }
}

fn copy_executable(source: &Path, target: &Path) -> io::Result<()> {
    let mut from = fs::File::open(source)?;
    let mut to = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(target)?;
    io::copy(&mut from, &mut to)?;
    to.set_permissions(fs::Permissions::from_mode(MODE)) // whatever the umask took away
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

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

    #[test]
    fn what_is_there_already_stays_and_needs_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let (bin, source) = (directory.path().join("bin"), directory.path().join("source"));
        let file = |target: &Path| fs::metadata(target).unwrap().ino();
        fs::write(&source, vec![7; 3 * CHUNK / 2]).unwrap();
        let target = install(&source, &bin).unwrap();
        let first = file(&target);
        install(&source, &bin).unwrap();
        assert_eq!(file(&target), first);
        // Of the same length, and different at the end; the same, and not to be run.
        let mut other = vec![7; 3 * CHUNK / 2];
        *other.last_mut().unwrap() = 8;
        fs::write(&target, other).unwrap();
        install(&source, &bin).unwrap();
        assert_ne!(file(&target), first);
        assert_eq!(fs::read(&target).unwrap(), fs::read(&source).unwrap());
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
        install(&source, &bin).unwrap();
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, MODE);
    }

    #[test]
    fn why_it_failed_is_noted_where_the_kubelet_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("termination-log");
        note("no room", &log);
        assert!(!log.exists(), "nobody would read it");
        fs::write(&log, "what somebody said before").unwrap();
        note("no room", &log);
        assert_eq!(fs::read_to_string(&log).unwrap(), "no room");
    }
}
