//! Providers: everything that speaks to a run API. They poll one run, and read its event stream.
//!
//! One interpreter of profiles serves all of them. It is tolerant of everything that versions of an API differ in, and
//! strict about what a verdict rests on: the state and the ID of the run.

mod activity;
mod answer;
mod client;
mod credentials;
mod erased;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(any(fuzzing, feature = "bench-hooks"))]
#[doc(hidden)]
pub mod hot;
mod list;
#[cfg(any(test, fuzzing))]
mod naive;
mod plan;
mod rate_limit;
mod reader;
mod stream;
mod unusable;
mod value;

use std::time::Duration;

pub use answer::{Explanation, explain};
pub use client::{ApiClient, BuildError, Probe};
pub use credentials::Credentials;
pub use erased::{AnyProvider, AnyStream};
pub use error::{ApiError, KeyProblem, Malformed};
pub use list::{ListEntry, ListPage, ListParameters, ListReply, ListRequest, PageRef};
pub use stream::{EventStream, HttpStream, NoStream, StreamItem};
pub use unusable::Unusable;

use crate::domain::{Observation, ProviderName, RunRef};

/// A service account with a run API. Tests and simulations implement it as well.
pub trait Provider: Send + Sync + 'static {
    /// An open event stream; [`NoStream`] where there are none.
    type Events: EventStream;

    /// Polls one run, once. Dropping the future abandons the request.
    fn get_run(&self, id: &RunRef) -> impl Future<Output = Reply> + Send;

    /// Whether a request that is made now leaves at once. Cheap, and no request.
    fn is_open(&self) -> bool {
        true
    }

    /// Returns once [`Provider::is_open`]. Cancel-safe.
    fn opened(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// The address that a poll of a run goes to, for people; without user name and password. `None` where there is none.
    fn address(&self, _id: &RunRef) -> Option<String> {
        None
    }

    /// Lets go of all connections, which are most likely dead: the next request makes its own.
    fn reconnect(&self) {}

    /// Whether requests go to the same API with the same key as those of `other`, so that a limit of the one is one of
    /// the other. Cheap, and no request.
    fn is_same_account(&self, _other: &Self) -> bool {
        true
    }

    /// Opens the event stream of one run, after the event `last_id` where the API can do that. Dropping
    /// the future or the stream closes the connection.
    fn open_events(
        &self,
        id: &RunRef,
        last_id: Option<&str>,
    ) -> impl Future<Output = Result<Self::Events, ApiError>> + Send;

    /// The parameters of the list that shows this run; `None` where none does. Cheap, and no request.
    fn list_of(&self, _id: &RunRef) -> Option<ListParameters> {
        None
    }

    /// Whether runs are in the same lists as with `other`, read the same way: what one shows of a list holds for the
    /// other, and each can read the other's [`PageRef`]s. Cheap, and no request.
    fn has_same_lists(&self, other: &Self) -> bool {
        self.is_same_account(other)
    }

    /// Requests one page of a list of runs of `provider`, the name by which this account is known. Dropping the future
    /// abandons the request.
    fn list(
        &self,
        _provider: &ProviderName,
        _request: &ListRequest,
    ) -> impl Future<Output = ListReply> + Send {
        std::future::ready(ListReply::none())
    }
}

/// What one poll brought, and what it took.
#[derive(Debug)]
pub struct Reply {
    /// The observation of the run.
    pub result: Result<Observation, ApiError>,
    /// The longest pause that the answers requested: by `Retry-After`, or as one shows that no requests are left and
    /// when there will be. That of a rejection is in its error.
    pub pause: Option<Duration>,
    /// How many requests were made: none without a key, more than one where the profile has second ones, for redirects
    /// and for logins.
    pub requests: u32,
}

impl Reply {
    /// The reply of a poll of one request that requested no pause.
    pub fn of(result: Result<Observation, ApiError>) -> Self {
        Self {
            result,
            pause: None,
            requests: 1,
        }
    }
}
