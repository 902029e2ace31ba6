//! Where a secret comes from. It is read when used, and never shown.

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

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
        source: std::io::Error,
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

    /// The secret, without surrounding white space. A file is read each time.
    ///
    /// # Errors
    /// When the file cannot be read, is not UTF-8, is empty or larger than 64 KiB.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        match self {
            Self::Value(value) => Ok(SecretString::from(value.expose_secret().trim())),
            Self::File(path) => read_file(path),
        }
    }
}

fn read_file(path: &Path) -> Result<SecretString, SecretError> {
    use std::io::Read as _;
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    let text = SecretString::from(text);
    if text.expose_secret().len() as u64 > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge { path: path.to_owned() });
    }
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
