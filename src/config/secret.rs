//! Where a secret comes from. It is read when used, and never shown.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use crate::blocking::{self, Lane};
use crate::text::trimmed;

/// A secret value, or the file that holds it.
#[derive(Clone)]
pub enum Secret {
    /// The value itself.
    Value(SecretString),
    /// A file, read again at each use, so that a secret can be changed without a restart.
    File(PathBuf),
}

/// A secret file that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read the secret file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
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

    /// The secret, without white space and byte order marks around it. A file is read each time, and blocks for some seconds at most.
    ///
    /// # Errors
    /// When the file cannot be read in time, is not text, is empty or larger than 64 KiB.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        match self {
            Self::Value(value) => Ok(SecretString::from(trimmed(value.expose_secret()))),
            Self::File(path) => check(path, blocking::read_file(path, MAX_SECRET_BYTES)),
        }
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Value(_) => None,
            Self::File(path) => Some(path),
        }
    }

    /// As [`Secret::read`], with a file read on a thread of `lane`.
    ///
    /// # Errors
    /// As [`Secret::read`].
    pub(crate) async fn read_on(&self, lane: &Lane) -> Result<SecretString, SecretError> {
        match self {
            Self::Value(_) => self.read(),
            Self::File(path) => check(
                path,
                blocking::read_file_on(lane, path.clone(), MAX_SECRET_BYTES).await,
            ),
        }
    }
}

/// The key that a variable of the environment has.
///
/// # Errors
/// As [`check_key`].
pub(in crate::config) fn key_of_variable(
    value: &Path,
) -> Result<Secret, (&'static str, &'static str)> {
    let Some(key) = value.to_str().map(trimmed) else {
        let what = "it has unusual characters: it is not UTF-8";
        return Err((what, "copy the key again"));
    };
    check_key(key).map(|()| Secret::value(key))
}

/// Checks that a key or token can be sent: visible ASCII characters, and nothing around them that was pasted too.
///
/// # Errors
/// What is odd about it, without showing it, and what to do.
pub(crate) fn check_key(key: &str) -> Result<(), (&'static str, &'static str)> {
    let quotes = [
        '"', '\'', '`', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}', '\u{ab}', '\u{bb}',
    ];
    let after_scheme = key
        .get(..6)
        .filter(|scheme| scheme.eq_ignore_ascii_case("bearer"))
        .map(|_| &key[6..]);
    if key.starts_with(quotes) || key.ends_with(quotes) {
        Err(("there are quotes around the key", "remove them"))
    } else if after_scheme
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_whitespace() || c == ':'))
    {
        Err((
            "there is the word Bearer before the key",
            "write the key alone",
        ))
    } else if key.starts_with("CREWSHIP_API_KEY=") || key.starts_with("export ") {
        Err((
            "there is the name of a variable before the key",
            "write only what stands after the equals sign",
        ))
    } else if key.contains(['\n', '\r']) {
        Err((
            "it has unusual characters: more than one line",
            "write one key on one line",
        ))
    } else if key.contains(char::is_whitespace) {
        Err(("it has spaces inside", "write the key without spaces"))
    } else if !key.is_ascii() {
        Err((
            "it has unusual characters: some are invisible, or not ASCII",
            "copy the key again",
        ))
    } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err((
            "it has unusual characters: control characters",
            "copy the key again",
        ))
    } else {
        Ok(())
    }
}

fn check(path: &Path, read: io::Result<Vec<u8>>) -> Result<SecretString, SecretError> {
    let unreadable = |source| SecretError::Unreadable {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let bytes = read.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge {
            path: path.to_owned(),
        });
    }
    let text = SecretString::from(blocking::text(bytes).map_err(unreadable)?);
    if trimmed(text.expose_secret()).is_empty() {
        return Err(SecretError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(SecretString::from(trimmed(text.expose_secret())))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("[redacted]"),
            Self::File(path) => write!(f, "[file {}]", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pasted_around_a_key_is_named_and_never_shown() {
        for (key, word) in [
            ("\"ck_1234567890\"", "quotes"),
            ("'ck_1234567890'", "quotes"),
            ("\u{201c}ck_1234567890\u{201d}", "quotes"),
            ("ck_1234567890\"", "quotes"),
            ("Bearer ck_1234567890", "Bearer"),
            ("bearer\tck_1234567890", "Bearer"),
            ("CREWSHIP_API_KEY=ck_1234567890", "variable"),
            ("ck_1234567890\nck_old", "line"),
            ("ck_123 4567890", "space"),
            ("ck_1234567890\u{200b}\u{e9}", "unusual characters"),
            ("ck_12345\u{7f}67890", "unusual characters"),
        ] {
            let (what, fix) = check_key(key).unwrap_err();
            assert!(
                what.contains(word) && !what.contains("ck_") && !fix.contains("ck_"),
                "{key:?}: {what}; {fix}"
            );
        }
        assert_eq!(check_key("ck_live_A+/=-._~"), Ok(()));
        assert_eq!(check_key("bearerck"), Ok(()));
    }

    #[test]
    fn marks_and_white_space_around_a_secret_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for text in ["ck_1", "\u{feff}ck_1\r\n", " ck_1\u{a0}\n\n", "ck_1\0"] {
            std::fs::write(&path, text).unwrap();
            for secret in [Secret::File(path.clone()), Secret::value(text)] {
                assert_eq!(secret.read().unwrap().expose_secret(), "ck_1", "{text:?}");
            }
        }
        let utf16: Vec<u8> = [0xfeff_u16]
            .into_iter()
            .chain("ck_1\r\n".encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        std::fs::write(&path, utf16).unwrap();
        assert_eq!(Secret::File(path).read().unwrap().expose_secret(), "ck_1");
    }
}
