//! One sidecar a data directory.
//!
//! The in-memory vectors follow the writes of this process only, so a second writer would make
//! them lie. The lock belongs to the open file, not to the file's existence: the kernel gives it
//! up with the process, however that ends, and a lock file left behind means nothing.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::Path,
};

use super::failure::unavailable;
use crate::store::{Error, Result};

const FILE_NAME: &str = "lock";

/// Held as long as the directory is in use.
#[derive(Debug)]
pub(super) struct DirLock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

impl DirLock {
    /// Takes the directory for this process, or names the process that has it.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        let cannot = |e: std::io::Error| {
            unavailable(format!("{} cannot be locked: {e}. Make the data directory writable", path.display()))
        };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken(&mut file, dir)),
            Err(TryLockError::Error(e)) => return Err(cannot(e)),
        }
        file.set_len(0).map_err(cannot)?;
        file.write_all(std::process::id().to_string().as_bytes()).map_err(cannot)?;
        Ok(Self(file))
    }
}

fn taken(file: &mut File, dir: &Path) -> Error {
    let mut text = String::new();
    // The holder may be about to write its number; without it the message still says what to do.
    let holder = match file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    };
    Error::InUse { what: dir.display().to_string(), holder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        let refusal = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_file_left_behind_means_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "4194304999").unwrap();
        DirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_missing_directory_is_an_error_with_its_path() {
        let refusal = DirLock::take(Path::new("/nonexistent/refrain")).unwrap_err().to_string();
        assert!(refusal.contains("/nonexistent/refrain"), "{refusal}");
    }
}
