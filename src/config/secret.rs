//! Where a secret comes from. It is read when used, and never shown.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::blocking::{self, Lane};

/// A secret value, or the file that holds it.
#[derive(Clone)]
pub enum Secret {
    /// The value itself.
    Value(SecretString),
    /// A file, read again at each use, so that a secret can be changed without a restart.
    File(PathBuf),
}

/// A secret file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read the secret file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("the secret file {} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is no secret's size.
    #[error("the secret file {} is larger than {MAX_SECRET_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Largest secret file that is read, in bytes: room for any key, and an end to a wrong path.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

impl Secret {
    /// Takes a value.
    pub fn value(text: impl Into<String>) -> Self {
        Self::Value(SecretString::from(text.into()))
    }

    /// The secret, without surrounding white space. A file is read each time, and blocks for some seconds at most.
    ///
    /// # Errors
    /// When the file cannot be read in time, is not UTF-8, is empty or larger than 64 KiB.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        match self {
            Self::Value(value) => Ok(SecretString::from(value.expose_secret().trim())),
            Self::File(path) => check(path, blocking::read_file(path, MAX_SECRET_BYTES)),
        }
    }

    /// As [`Secret::read`], with a file read on a thread of `lane`.
    ///
    /// # Errors
    /// As [`Secret::read`].
    pub(crate) async fn read_on(&self, lane: &Lane) -> Result<SecretString, SecretError> {
        match self {
            Self::Value(_) => self.read(),
            Self::File(path) => check(path, blocking::read_file_on(lane, path.clone(), MAX_SECRET_BYTES).await),
        }
    }
}

fn check(path: &Path, read: io::Result<Vec<u8>>) -> Result<SecretString, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    let bytes = read.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge { path: path.to_owned() });
    }
    let text = SecretString::from(blocking::text(bytes).map_err(unreadable)?);
    if text.expose_secret().trim().is_empty() {
        return Err(SecretError::Empty { path: path.to_owned() });
    }
    Ok(SecretString::from(text.expose_secret().trim()))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("[redacted]"),
            Self::File(path) => write!(f, "[file {}]", path.display()),
        }
    }
}
