//! Processes that lost their parents and came to us, found in `/proc` by the mark in their environment.

use std::{fs, path::Path};

use rustix::process::Pid;

/// Children of this process that carry `mark` (`NAME=value`) and are no zombies. `skip` names those that are
/// accounted for otherwise; their environment is not read.
pub(super) fn marked(mark: &str, skip: impl Fn(Pid) -> bool) -> Vec<Pid> {
    let own_pid = std::process::id().cast_signed();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid =
                entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)?;
            let wanted =
                is_live_child_of(own_pid, &entry.path()) && !skip(pid) && carries(mark, &entry.path());
            wanted.then_some(pid)
        })
        .collect()
}

fn is_live_child_of(parent: i32, process: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(process.join("stat")) else { return false };
    parent_of(&stat) == Some(parent)
}

/// The parent in a `/proc/PID/stat` line (`17 (name) S 1 …`) unless it is a zombie. The name may hold anything,
/// parentheses and line breaks too.
fn parent_of(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.next()?.parse().ok()
}

fn carries(mark: &str, process: &Path) -> bool {
    let Ok(environment) = fs::read(process.join("environ")) else { return false };
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_of("17 (node) S 1 17 17 0"), Some(1));
        assert_eq!(parent_of("17 (a) b) (c) R 23 17"), Some(23));
        assert_eq!(parent_of("17 (line\nbreak) S 4 1"), Some(4));
        assert_eq!(parent_of("17 (node) Z 1 17"), None);
        assert_eq!(parent_of("17"), None);
    }

    #[test]
    fn the_mark_must_be_the_whole_variable() {
        let process = tempfile::tempdir().unwrap();
        fs::write(process.path().join("environ"), b"PATH=/bin\0MARK=1.12\0HOME=/").unwrap();
        assert!(carries("MARK=1.12", process.path()));
        assert!(!carries("MARK=1.1", process.path()));
        assert!(!carries("MARK=1.12", Path::new("/nowhere")));
    }
}
