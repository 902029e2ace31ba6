//! The status of a run: the text of its provider, and the state that the text stands for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the status of a run stands for, whatever its provider calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Accepted, not yet started.
    Pending,
    /// Under way.
    Running,
    /// Stopped until a person acts; not final.
    Waiting,
    /// Ended well; final.
    Succeeded,
    /// Ended with an error; final.
    Failed,
    /// Stopped by request; final.
    Canceled,
    /// Passed over by the provider; final.
    Skipped,
    /// The text is not known; not final.
    Unknown,
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Running,
        Self::Waiting,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::Skipped,
        Self::Unknown,
    ];

    /// The word in JSON and the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Skipped => "skipped",
            Self::Unknown => "unknown",
        }
    }

    /// Reads the word of [`RunState::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// The status of a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Status {
    state: RunState,
    /// The provider's text, where it is not the word of the state.
    text: Option<Box<str>>,
}

impl Status {
    /// The status that a provider words as `text`, which stands for `state`.
    pub fn new(state: RunState, text: &str) -> Self {
        Self {
            state,
            text: (text != state.as_str()).then(|| text.into()),
        }
    }

    /// Reads a status that was stored or sent as the word of its state and its text. Without a state, a text that is
    /// the word of one stands for that state, and any other is unknown.
    pub fn read(state: Option<&str>, text: &str) -> Self {
        let state = RunState::from_word(state.unwrap_or(text)).unwrap_or(RunState::Unknown);
        Self::new(state, text)
    }

    /// What it stands for.
    pub fn state(&self) -> RunState {
        self.state
    }

    /// The provider's text.
    pub fn as_str(&self) -> &str {
        self.text.as_deref().unwrap_or(self.state.as_str())
    }
}

impl From<RunState> for Status {
    fn from(state: RunState) -> Self {
        Self { state, text: None }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_back_as_it_was_stored() {
        for state in RunState::ALL {
            for text in ["failed", "Failed", "queued", "unknown", state.as_str()] {
                let status = Status::new(state, text);
                assert_eq!(status.as_str(), text);
                assert_eq!(status.to_string(), text);
                assert_eq!(Status::read(Some(state.as_str()), text), status);
            }
        }
    }

    #[test]
    fn a_text_without_a_state_stands_for_the_state_of_that_word() {
        assert_eq!(Status::read(None, "failed").state(), RunState::Failed);
        assert_eq!(Status::read(None, "FAILED").state(), RunState::Unknown);
        assert_eq!(Status::read(None, "queued").state(), RunState::Unknown);
    }
}
