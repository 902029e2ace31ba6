//! A watch: our request to follow one run.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

use super::{RunRef, SinkName, TraceContext};

/// Labels of a watch: free key and value pairs that sinks can select by.
pub type Labels = BTreeMap<String, String>;

/// Where a watch comes from. As text it is its word, and the title of the discovery after a space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchOrigin {
    /// A person or a program.
    Request,
    /// `[[watches]]` in the configuration.
    Configuration,
    /// A discovery, by its title.
    Discovery(String),
}

impl WatchOrigin {
    /// The words of all.
    pub const WORDS: [&str; 3] = ["request", "configuration", "discovery"];

    /// The word in the store and in JSON, one of [`WatchOrigin::WORDS`].
    pub fn word(&self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Configuration => "configuration",
            Self::Discovery(_) => "discovery",
        }
    }

    /// The title of the discovery, if it was one.
    pub fn discovery(&self) -> Option<&str> {
        match self {
            Self::Request | Self::Configuration => None,
            Self::Discovery(title) => Some(title),
        }
    }

    /// Reads the text of an origin; `None` for one that this program does not write.
    pub fn read(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            None if text == "request" => Some(Self::Request),
            None if text == "configuration" => Some(Self::Configuration),
            Some(("discovery", title)) => Some(Self::Discovery(title.to_owned())),
            None | Some(_) => None,
        }
    }
}

impl fmt::Display for WatchOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        self.discovery()
            .map_or(Ok(()), |title| write!(f, " {title}"))
    }
}

/// Our request to follow one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The run.
    pub run_id: RunRef,
    /// A name for people.
    pub name: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// Only these sinks get its events; `None` means every sink whose filters match.
    pub sinks: Option<Vec<SinkName>>,
    /// When the watch was added.
    pub added_at: Timestamp,
    /// When it ends, with or without an end of the run.
    pub deadline_at: Timestamp,
    /// The trace that it belongs to: that of the request that added it.
    pub trace: Option<TraceContext>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_reads_back() {
        for origin in [
            WatchOrigin::Request,
            WatchOrigin::Configuration,
            WatchOrigin::Discovery("github branch=main owner=acme".to_owned()),
        ] {
            assert_eq!(WatchOrigin::read(&origin.to_string()), Some(origin.clone()));
            assert!(WatchOrigin::WORDS.contains(&origin.word()));
        }
        assert_eq!(WatchOrigin::read("request again"), None);
        assert_eq!(WatchOrigin::read("discovery"), None);
    }
}
