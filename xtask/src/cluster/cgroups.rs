//! The cgroups of a cluster: a directory in every hierarchy, empty once its processes are gone, that stays until someone
//! removes it.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// The kernel lets go of a dead process's cgroup a moment after the process.
const LIMIT: Duration = Duration::from_secs(10);

/// Removes the cgroup of that name in every hierarchy, with all below.
pub(super) fn remove(name: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let deadline = Instant::now() + LIMIT;
    for root in hierarchies(&mounts) {
        remove_tree(&root.join(name), deadline)?;
    }
    Ok(())
}

/// Those that exist in any hierarchy.
pub(super) fn present(name: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(hierarchies(&mounts).into_iter().map(|root| root.join(name)).filter(|path| path.exists()).collect())
}

/// Where cgroups are mounted: one place under v2, a dozen under v1.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            matches!(fields.get(2), Some(&("cgroup" | "cgroup2"))).then(|| PathBuf::from(fields[1]))
        })
        .collect()
}

/// Only directories can be removed in a cgroup file system, and only from the leaves up.
fn remove_tree(directory: &Path, deadline: Instant) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", directory.display())),
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path(), deadline)?;
        }
    }
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let mounts = "proc /proc proc rw 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
            tmpfs /sys/fs/cgroup tmpfs rw 0 0\n";
        assert_eq!(
            hierarchies(mounts),
            [PathBuf::from("/sys/fs/cgroup/memory"), PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }

    #[test]
    fn a_tree_is_removed_from_its_leaves() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("kubepods/pod1"))?;
        fs::create_dir_all(root.join("kubepods/pod2"))?;
        remove_tree(&root, Instant::now())?;
        assert!(!root.exists());
        remove_tree(&root, Instant::now())
    }
}
