//! The status of a run, as the API words it.

use std::fmt;

/// The status of a run.
///
/// `pending`, `running`, `succeeded`, `failed` and `canceled` are the documented ones (Get Run). Any
/// other text is kept as it came and is never final.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Status {
    /// Accepted, not yet started.
    Pending,
    /// Under way.
    Running,
    /// Ended well; final.
    Succeeded,
    /// Ended with an error; final.
    Failed,
    /// Stopped by request; final. `cancelled` is read as this too.
    Canceled,
    /// A text that the API's documentation does not list, verbatim; not final.
    Unknown(Box<str>),
}

impl Status {
    /// Reads the API's word. Only the documented words, letter for letter, are known.
    pub fn from_api(text: &str) -> Self {
        match text {
            "pending" => Self::Pending,
            "running" => Self::Running,
            "succeeded" => Self::Succeeded,
            "failed" => Self::Failed,
            "canceled" | "cancelled" => Self::Canceled,
            other => Self::Unknown(other.into()),
        }
    }

    /// The word: the documented one, or the unknown text verbatim.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Unknown(text) => text,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
