//! A watch: our request to follow one run.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{RunRef, SinkName};

/// Labels of a watch: free key and value pairs that sinks can select by.
pub type Labels = BTreeMap<String, String>;

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
}
