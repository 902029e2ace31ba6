//! Activity: what a run is doing according to its event stream, for people and as a reason to poll.
//! No verdict comes from here.

use serde_json::value::RawValue;

use crate::text::one_line;

/// Longest reason of a stream that cannot be followed, in characters.
const REASON_CHARS: usize = 100;

/// What an event of the stream suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// The run may have started.
    Started,
    /// The run may have ended.
    Ended,
    /// The stream is about to end by itself.
    StreamOver,
}

/// One event of a run's stream, as the provider reads it.
#[derive(Debug, Clone)]
pub struct Activity {
    /// Its type as sent, one of those that the profile names.
    pub kind: String,
    /// What it suggests.
    pub hint: Option<Hint>,
    /// Whether it shows people something that the watch does not show already.
    pub is_news: bool,
    /// Whether it reports a failure.
    pub is_failure: bool,
    /// Its data in a few words, harmless on a terminal; empty if there are none.
    pub summary: String,
    /// Its data, on one line and harmless on a terminal; `None` if there are none, too many, or too
    /// deeply nested.
    pub data: Option<Box<RawValue>>,
}

impl Activity {
    /// Our own notice that the stream of a run cannot be followed, and why.
    pub fn unavailable(why: &str) -> Self {
        let data = serde_json::value::to_raw_value(&serde_json::json!({ "message": why }));
        Self {
            kind: "stream.unavailable".to_owned(),
            hint: None,
            is_news: true,
            is_failure: true,
            summary: one_line(why, REASON_CHARS),
            data: data.ok(),
        }
    }
}
