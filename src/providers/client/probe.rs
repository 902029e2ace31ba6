//! Single requests for people: whether an account works, and what an API answers.

use std::time::SystemTime;

use reqwest::header::{CONTENT_TYPE, DATE};
use tokio::time::timeout_at;

use super::receive::Answered;
use super::{ApiClient, Spent};
use crate::domain::RunRef;
use crate::providers::Malformed;
use crate::providers::error::ApiError;

/// How one request of [`ApiClient::probe`] went.
#[derive(Debug)]
pub struct Probe {
    /// `Ok` where the key was accepted, whether or not there is such a run.
    pub result: Result<(), ApiError>,
    /// Whether the body is of a type that an API answers with, rather than a page for people.
    pub is_json: bool,
    /// The time that the server's clock shows, in whole seconds (`Date`, RFC 9110, 6.6.1).
    pub date: Option<SystemTime>,
}

impl ApiClient {
    /// Makes one request for a run that need not exist, and returns how it went.
    pub async fn probe(&self, id: &RunRef) -> Probe {
        let nothing = |error| Probe {
            result: Err(error),
            is_json: false,
            date: None,
        };
        let answered = match self.probed(id).await {
            Ok(answered) => answered,
            Err(error) => return nothing(error),
        };
        let Answered { response, ends, .. } = answered;
        let header = |name| response.headers().get(name)?.to_str().ok();
        let is_json = header(CONTENT_TYPE).is_some_and(|kind| kind.contains("json"));
        let date = header(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        let result = if response.status().is_success() {
            Ok(())
        } else {
            match self.refusal(response, ends).await {
                ApiError::NotFound { .. } | ApiError::Gone { .. } => Ok(()),
                error => Err(error),
            }
        };
        Probe {
            result,
            is_json,
            date,
        }
    }

    /// Makes one request for a run, and returns the status code and the body of its answer, whatever they are. Secrets
    /// are taken out of the body.
    ///
    /// # Errors
    /// When there is no answer, no key, or the body is larger than `max_response_bytes`.
    pub async fn raw_answer(&self, id: &RunRef) -> Result<(u16, Vec<u8>), ApiError> {
        let Answered { response, ends, .. } = self.probed(id).await?;
        let code = response.status().as_u16();
        let limit = usize::try_from(self.settings.max_response_bytes).unwrap_or(usize::MAX);
        let body = timeout_at(ends, self.read_body(response, limit))
            .await
            .map_err(|_elapsed| ApiError::Timeout)??;
        let body = body.ok_or(ApiError::Malformed(Malformed::TooLarge {
            bytes: limit as u64,
        }))?;
        Ok((code, self.keys.redactor().body(body)))
    }

    async fn probed(&self, id: &RunRef) -> Result<Answered, ApiError> {
        let spent = &mut Spent::default();
        let key = self.authorization(spent).await?;
        let url = self.address_of(&self.profile.get, &self.parts(id)?)?;
        self.fetch(
            url,
            (key.as_ref(), None),
            self.settings.request_timeout,
            spent,
        )
        .await
    }
}
