//! The provider of runs whose account cannot be used: it is not configured any more, or its client cannot be built.

use super::{ApiError, NoStream, Provider, Reply};
use crate::domain::RunRef;

/// Fails all polls, so that the watches of its runs end at their deadlines.
#[derive(Debug)]
pub struct Unusable {
    why: String,
}

impl Unusable {
    /// Fails for the reason `why`, which holds no secret.
    pub fn new(why: String) -> Self {
        Self { why }
    }

    fn error(&self) -> ApiError {
        ApiError::NotConfigured {
            why: self.why.clone(),
        }
    }
}

impl Provider for Unusable {
    type Events = NoStream;

    async fn get_run(&self, _id: &RunRef) -> Reply {
        Reply {
            requests: 0,
            ..Reply::of(Err(self.error()))
        }
    }

    fn is_same_account(&self, other: &Self) -> bool {
        self.why == other.why
    }

    async fn open_events(
        &self,
        _id: &RunRef,
        _last_id: Option<&str>,
    ) -> Result<NoStream, ApiError> {
        Err(self.error())
    }
}
