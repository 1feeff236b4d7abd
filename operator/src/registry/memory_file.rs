//! A file that is in memory only: certificates and keys of a Secret for who reads files. It has a path within this
//! process, and is gone with it.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use rustix::fs::{MemfdFlags, memfd_create};

/// See the module.
#[derive(Debug)]
pub(super) struct MemoryFile(OwnedFd);

impl MemoryFile {
    pub(super) fn new(content: &[u8]) -> io::Result<Self> {
        let mut file = File::from(memfd_create("broker-credentials", MemfdFlags::CLOEXEC)?);
        file.write_all(content)?;
        Ok(Self(file.into()))
    }

    /// Holds as long as this does.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_again_and_goes_with_it() {
        let file = MemoryFile::new(b"PEM").unwrap();
        let path = file.path();
        for _ in 0..2 {
            assert_eq!(std::fs::read(&path).unwrap(), b"PEM");
        }
        drop(file);
        assert!(std::fs::read(&path).is_err());
    }
}
