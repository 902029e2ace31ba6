//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is built in.
    Default,
    /// A configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Line and column, both from 1; `None` when the whole file is meant.
        position: Option<(usize, usize)>,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A systemd credential.
    Credential {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File {
                path,
                position: None,
            } => write!(f, "{}", path.display()),
            Self::File {
                path,
                position: Some((line, column)),
            } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Credential { name } => write!(f, "systemd credential {name}"),
        }
    }
}

/// One thing that is wrong, and what to do about it. It never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None` when no one place is to blame.
    pub origin: Option<Origin>,
    /// The key with its path, such as `sinks.ops.url`; empty when a file as a whole is meant.
    pub key: String,
    /// The value as it would stand in a file, shortened; never given for secrets and unknown keys.
    pub value: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        match (&self.value, self.key.is_empty()) {
            (_, true) => {}
            (None, false) => write!(f, "{}: ", self.key)?,
            (Some(value), false) => write!(f, "{} = {value}: ", self.key)?,
        }
        write!(f, "{}; {}", self.what, self.fix)
    }
}

/// Everything that is wrong with a configuration; never empty as an error. Displayed as one line for
/// each problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
