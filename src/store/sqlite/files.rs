//! The files of an open database. SQLite writes on when one of them is removed or replaced, into a
//! file that no later start finds; so they are checked before and after each write.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::store::model::StoreError;
use crate::store::tables::NOTED_VERSION;

/// The identity of a file in its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|found| Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// The first bytes of a database, of which 60 to 63 are its version (sqlite.org/fileformat.html, "The Database Header").
const HEADER_BYTES: u64 = 100;

/// What a database file shows without being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFile {
    /// Bytes of the database and of its write-ahead log.
    pub bytes: u64,
    /// The version of its tables; `None` where it is not a database.
    pub version: Option<u32>,
    /// Whether no daemon starts on it, because it was copied to another place, or a copy into it did not end.
    pub is_noted: bool,
}

impl StoreFile {
    /// The version of the tables that this program writes.
    pub const KNOWN_VERSION: u32 = super::migrations::KNOWN_VERSION;

    /// Looks at the file of a database, which may be in use, and changes nothing. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn look(path: &Path) -> io::Result<Self> {
        use std::io::Read as _;
        let mut header = Vec::new();
        let file = std::fs::File::open(path)?;
        let mut bytes = file.metadata()?.len();
        file.take(HEADER_BYTES).read_to_end(&mut header)?;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        bytes += std::fs::metadata(log).map_or(0, |log| log.len());
        let version = header
            .starts_with(b"SQLite format 3\0")
            .then(|| header.get(60..64)?.try_into().ok())
            .flatten()
            .map(u32::from_be_bytes);
        let unnoted = version.and_then(|version| version.checked_sub(NOTED_VERSION));
        Ok(Self {
            bytes,
            version: unnoted.or(version),
            is_noted: unnoted.is_some(),
        })
    }
}

/// The files of an open database, as they were when it was opened.
#[derive(Debug)]
pub(super) struct Files(Vec<(PathBuf, Identity)>);

impl Files {
    /// Remembers the files of the database at `path`, which is open and was read.
    ///
    /// # Errors
    /// When the database itself cannot be found.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut files = vec![(path.to_owned(), Identity::of(path)?)];
        // Beside the file that a link leads to (sqlite.org/tempfiles.html, "Write-Ahead Log
        // Files").
        let database = path.canonicalize()?;
        for suffix in ["-wal", "-shm"] {
            let mut beside = OsString::from(&database);
            beside.push(suffix);
            let beside = PathBuf::from(beside);
            if let Ok(found) = Identity::of(&beside) {
                files.push((beside, found));
            }
        }
        Ok(Self(files))
    }

    /// Checks that every file still exists and is the same.
    ///
    /// # Errors
    /// [`StoreError::Gone`] when one is not, or is another file.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        for (path, before) in &self.0 {
            let what = match Identity::of(path) {
                Ok(now) if now == *before => continue,
                Ok(_) => "replaced",
                Err(error) if error.kind() == io::ErrorKind::NotFound => "removed",
                // Without permission, or on a failing disk, SQLite itself reports the error.
                Err(_) => continue,
            };
            return Err(StoreError::Gone {
                path: path.clone(),
                what,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_removed_replaced_or_put_back_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (database, log) = (
            dir.path().join("runwatch.db"),
            dir.path().join("runwatch.db-wal"),
        );
        let aside = dir.path().join("aside");
        for path in [&database, &log] {
            std::fs::write(path, "content").unwrap();
        }
        let files = Files::of(&database).unwrap();
        files.check().unwrap();
        for path in [&database, &log] {
            std::fs::rename(path, &aside).unwrap();
            let removed = files.check().unwrap_err().to_string();
            assert!(
                removed.contains(&format!("{} was removed", path.display())),
                "{removed}"
            );
            std::fs::write(path, "content").unwrap();
            let replaced = files.check().unwrap_err().to_string();
            assert!(
                replaced.contains(&format!("{} was replaced", path.display())),
                "{replaced}"
            );
            std::fs::rename(&aside, path).unwrap();
            files.check().unwrap();
        }
    }
}
