//! The final outcome of a watch.

use std::fmt;

use super::{EventType, RunState, Status};
use crate::failpoint::mutant;

/// What caused the poll that found the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FoundBy {
    /// Its time had come.
    Poll,
    /// Its event stream gave a reason.
    Stream,
}

impl FoundBy {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Poll, Self::Stream];

    /// The word in JSON, the store and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Stream => "stream",
        }
    }

    /// Reads the word of [`FoundBy::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|found_by| found_by.as_str() == word)
    }
}

/// The final outcome of a watch. Given once, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The API reported `succeeded`.
    Succeeded,
    /// The API reported `failed`.
    Failed,
    /// The API reported `canceled`.
    Canceled,
    /// The API reported that the run was passed over.
    Skipped,
    /// The API knew no such run for the whole of the grace time.
    NotFound,
    /// The deadline came and the last poll had got no usable answer.
    Unreachable,
    /// The deadline came and the run was still going.
    TimedOut,
}

impl Verdict {
    /// Every verdict, the worst first: the order that decides the exit code for several runs.
    pub const WORST_FIRST: [Self; 7] = [
        Self::Failed,
        Self::TimedOut,
        Self::Unreachable,
        Self::NotFound,
        Self::Canceled,
        Self::Skipped,
        Self::Succeeded,
    ];

    /// The verdict that a status stands for, if the status is final.
    pub fn of_status(status: &Status) -> Option<Self> {
        match status.state() {
            RunState::Succeeded => Some(Self::Succeeded),
            RunState::Failed => Some(Self::Failed),
            RunState::Canceled => Some(Self::Canceled),
            RunState::Skipped => Some(Self::Skipped),
            RunState::Unknown
                if mutant("unknown-is-final")
                    && status.as_str().eq_ignore_ascii_case("succeeded") =>
            {
                Some(Self::Succeeded)
            }
            RunState::Pending | RunState::Running | RunState::Waiting | RunState::Unknown => None,
        }
    }

    /// The word in JSON, the store and command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Skipped => "skipped",
            Self::NotFound => "not_found",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
        }
    }

    /// Reads the word of [`Verdict::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORST_FIRST
            .into_iter()
            .find(|verdict| verdict.as_str() == word)
    }

    /// The exit code of `runwatch wait` for this verdict.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::Failed => 1,
            Self::Canceled => 3,
            Self::Skipped => 7,
            Self::NotFound => 5,
            Self::Unreachable => 6,
            Self::TimedOut => 124,
        }
    }

    /// The type of the event that reports this verdict.
    pub fn event_type(self) -> EventType {
        match self {
            Self::Succeeded => EventType::RunSucceeded,
            Self::Failed => EventType::RunFailed,
            Self::Canceled => EventType::RunCanceled,
            Self::Skipped => EventType::RunSkipped,
            Self::NotFound => EventType::WatchNotFound,
            Self::Unreachable => EventType::WatchUnreachable,
            Self::TimedOut => EventType::WatchTimedOut,
        }
    }

    /// The worst of several verdicts, if there is one at all.
    pub fn worst(verdicts: impl IntoIterator<Item = Self>) -> Option<Self> {
        verdicts
            .into_iter()
            .min_by_key(|verdict| Self::WORST_FIRST.iter().position(|other| other == verdict))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_verdict_follows_the_documented_order() {
        let worst = |words: &[&str]| {
            Verdict::worst(words.iter().filter_map(|word| Verdict::from_word(word)))
        };
        assert_eq!(worst(&["succeeded", "canceled"]), Some(Verdict::Canceled));
        assert_eq!(
            worst(&["not_found", "unreachable", "timed_out"]),
            Some(Verdict::TimedOut)
        );
        assert_eq!(
            worst(&["timed_out", "failed", "succeeded"]),
            Some(Verdict::Failed)
        );
        assert_eq!(worst(&[]), None);
    }

    #[test]
    fn what_found_an_end_has_a_word() {
        for (found_by, word) in [(FoundBy::Poll, "poll"), (FoundBy::Stream, "stream")] {
            assert_eq!(found_by.as_str(), word);
            assert_eq!(FoundBy::from_word(word), Some(found_by));
        }
        assert_eq!(FoundBy::from_word("guess"), None);
    }

    #[test]
    fn words_and_codes_are_distinct() {
        for verdict in Verdict::WORST_FIRST {
            assert_eq!(Verdict::from_word(verdict.as_str()), Some(verdict));
            assert_eq!(verdict.to_string(), verdict.as_str());
            let same_code = Verdict::WORST_FIRST
                .into_iter()
                .filter(|v| v.exit_code() == verdict.exit_code());
            assert_eq!(same_code.count(), 1);
        }
    }
}
