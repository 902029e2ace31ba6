//! The file that shows that a process on this machine has ended.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::store::HolderId;

/// The file of this machine, and its lock, which ends with the process.
#[derive(Debug)]
pub struct HolderFile {
    _file: File,
    /// The process that had it before, if that ran since this machine was started.
    pub ended: Option<HolderId>,
}

impl HolderFile {
    /// Takes the file and writes `holder` into it. `None` when another process has it. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn take(path: &Path, holder: &HolderId) -> io::Result<Option<Self>> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        let boot = boot_id()?;
        let mut before = String::new();
        file.read_to_string(&mut before)?;
        // A volume that was moved here from another machine shows nothing about a process there.
        let ended = before
            .split_once(' ')
            .filter(|(_, of)| of.trim() == boot)
            .map(|(holder, _)| HolderId::read(holder));
        file.rewind()?;
        file.set_len(0)?;
        writeln!(file, "{} {boot}", holder.as_str())?;
        file.sync_all()?;
        Ok(Some(Self { _file: file, ended }))
    }
}

/// A text that is another one after each start of the machine (proc_sys_kernel(5), `random/boot_id`).
fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_before_is_known_to_have_ended_once_its_lock_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("holder");
        let (first, second) = (HolderId::random(), HolderId::random());
        let held = HolderFile::take(&path, &first).unwrap().unwrap();
        assert_eq!(held.ended, None);
        assert!(HolderFile::take(&path, &second).unwrap().is_none());
        drop(held);
        let held = HolderFile::take(&path, &second).unwrap().unwrap();
        assert_eq!(held.ended, Some(first));
    }

    #[test]
    fn a_file_of_another_machine_or_another_start_shows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("holder");
        let holder = HolderId::random();
        for before in [
            format!("{} another-boot\n", holder.as_str()),
            "garbage".to_owned(),
            String::new(),
        ] {
            std::fs::write(&path, before).unwrap();
            let held = HolderFile::take(&path, &holder).unwrap().unwrap();
            assert_eq!(held.ended, None);
        }
    }
}
