//! Providers: everything that speaks to a run API. They poll one run, and read its event stream.
//!
//! Tolerant of everything that the two known versions of the documentation differ in, strict about
//! what a verdict rests on: the status and the ID of the run.

mod client;
mod credentials;
mod crewship;
mod erased;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
#[doc(hidden)]
pub mod hot;
mod rate_limit;
mod sse;
mod stream;
mod unusable;

use std::time::Duration;

pub use client::{ApiClient, BuildError, Probe};
pub use erased::{AnyProvider, AnyStream};
pub use error::{ApiError, KeyProblem, Malformed};
pub use stream::{EventStream, HttpStream, NoStream, StreamItem};
pub use unusable::Unusable;

use crate::domain::{Observation, RunRef};

/// A service account with a run API. Tests and simulations implement it as well.
pub trait Provider: Send + Sync + 'static {
    /// An open event stream; [`NoStream`] where there are none.
    type Events: EventStream;

    /// Polls one run, once. Dropping the future abandons the request.
    fn get_run(&self, id: &RunRef) -> impl Future<Output = Result<Reply, ApiError>> + Send;

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
}

/// A usable answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The observation of the run.
    pub observation: Observation,
    /// The requested pause: the answer shows that no requests are left
    /// (`X-RateLimit-Remaining: 0`) and when there will be (`X-RateLimit-Reset`).
    pub pause: Option<Duration>,
}
