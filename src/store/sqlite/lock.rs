//! The lock that allows one process per store.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// Why the store cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("the store {} is in use by {holder}", store.display())]
    Held {
        /// The database.
        store: PathBuf,
        /// Which process, as far as is known.
        holder: String,
    },
    /// The system reported an error.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The right to use a store, held until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the database `store`: a file beside it, which stays when the lock is gone.
    ///
    /// # Errors
    /// When another process has it, or the file cannot be made.
    pub fn take(store: &Path) -> Result<Self, LockError> {
        let mut path = store.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let io = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut options = OpenOptions::new();
        // Not truncated: it contains the ID of the process that holds the lock.
        let mut file = options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
                writeln!(file, "{}", std::process::id()).map_err(io)?;
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = file.read_to_string(&mut holder);
                let holder = match (read, holder.trim().parse::<u32>()) {
                    (Ok(_), Ok(process)) => format!("process {process}"),
                    _ => "another process".to_owned(),
                };
                Err(LockError::Held {
                    store: store.to_owned(),
                    holder,
                })
            }
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_process_gets_the_id_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("runwatch.db");
        let first = Lock::take(&store).unwrap();
        let error = Lock::take(&store).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!(
                "runwatch.db is in use by process {}",
                std::process::id()
            )),
            "{error}"
        );
        drop(first);
        Lock::take(&store).unwrap();
    }
}
