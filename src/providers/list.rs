//! Lists of runs: one request for a page of them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::ApiError;
use crate::domain::{RunRef, Status};

/// Values of the parameters of a profile's list, by name: parts of the ID, and filters such as `branch`.
pub type ListParameters = BTreeMap<String, String>;

/// A request for one page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Which runs are listed.
    pub parameters: ListParameters,
    /// Only those that go on, where the API can leave out the others; else all of them come.
    pub only_active: bool,
    /// Only those created since then, where the API can leave out the others.
    pub since: Option<Timestamp>,
    /// The page after another one; `None` is the first.
    pub page: Option<PageRef>,
}

/// Where a page of a list begins, as the answer for the page before shows it. Its text means something to the client
/// only that gave it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PageRef(Box<str>);

impl PageRef {
    /// A place that the client which reads it back describes as `text`.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    /// The runs, in the order of the API. A run may be listed twice.
    pub entries: Vec<ListEntry>,
    /// The next page; `None` where this is the last.
    pub next: Option<PageRef>,
    /// How many elements had no ID that could be read.
    pub unreadable: usize,
}

/// What a list shows of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// The run.
    pub run_id: RunRef,
    /// Its status; that of an element that fits no rule is unknown.
    pub status: Status,
    /// The attempt, for a provider that runs the same ID again.
    pub attempt: Option<u64>,
    /// A name for people.
    pub name: Option<String>,
    /// What runs that are alike have in common.
    pub group: Option<String>,
    /// The address of its page.
    pub url: Option<String>,
    /// When the run was created.
    pub created_at: Option<Timestamp>,
    /// When execution started.
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    pub completed_at: Option<Timestamp>,
    /// Further values, by the names that the profile gives them: `branch`, `event`.
    pub values: BTreeMap<String, String>,
}

impl ListEntry {
    /// The entry of a list that shows the run and its status alone.
    pub fn new(run_id: RunRef, status: Status) -> Self {
        Self {
            run_id,
            status,
            attempt: None,
            name: None,
            group: None,
            url: None,
            created_at: None,
            started_at: None,
            completed_at: None,
            values: BTreeMap::new(),
        }
    }
}

/// What one request for a page brought, and what it took.
#[derive(Debug)]
pub struct ListReply {
    /// The page.
    pub result: Result<ListPage, ApiError>,
    /// As [`super::Reply::pause`].
    pub pause: Option<Duration>,
    /// As [`super::Reply::requests`].
    pub requests: u32,
}

impl ListReply {
    /// The reply to one request that requested no pause.
    pub fn of(result: Result<ListPage, ApiError>) -> Self {
        Self {
            result,
            pause: None,
            requests: 1,
        }
    }

    /// The reply of an API without lists, which gets no request.
    pub(super) fn none() -> Self {
        let message = "this API has no list of runs".to_owned();
        Self {
            result: Err(ApiError::NotFound { message }),
            pause: None,
            requests: 0,
        }
    }
}
