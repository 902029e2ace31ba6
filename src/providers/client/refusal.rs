//! Answers that refuse a request: what they say, and whether it is made again with another key.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::receive::Answered;
use super::{ApiClient, Spent};
use crate::providers::answer;
use crate::providers::error::ApiError;

/// Most keys that one poll tries.
const KEYS_TRIED: usize = 3;

/// Most bytes of the body of an error that are read: its message is what people see.
const MAX_ERROR_BYTES: usize = 8 * 1024;

impl ApiClient {
    pub(super) async fn refusal(&self, response: Response, ends: Instant) -> ApiError {
        let (code, headers) = (response.status(), response.headers().clone());
        // Only the message is lost when the body cannot be read; the status is what matters.
        let read = self.read_body(response, MAX_ERROR_BYTES);
        let body = match timeout_at(ends, read).await {
            Ok(Ok(Some(body))) if !code.is_redirection() => body,
            Ok(Ok(_) | Err(_)) | Err(_) => Vec::new(),
        };
        self.refusal_of(code, &headers, &body)
    }

    pub(super) fn refusal_of(
        &self,
        code: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
    ) -> ApiError {
        let status = code.as_u16();
        let retry_after = self.rate.refusal_pause(code, headers, SystemTime::now());
        if code.is_redirection() {
            return ApiError::Redirect { status };
        }
        let message = answer::error_message(self.keys.redactor().beginning(body).as_bytes());
        match code {
            StatusCode::FORBIDDEN if self.rate.limits(headers) => ApiError::Status {
                status,
                message,
                retry_after,
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.keys.refuse();
                ApiError::Unauthorized { status, message }
            }
            StatusCode::NOT_FOUND => ApiError::NotFound { message },
            StatusCode::GONE => ApiError::Gone { message },
            _ => ApiError::Status {
                status,
                message,
                retry_after,
            },
        }
    }

    /// Remembers that the API accepted the key of a request, if its answer shows that.
    pub(super) fn accept(&self, key: Option<&HeaderValue>, code: StatusCode) {
        if let Some(key) = key.filter(|_| code.is_success() || code == StatusCode::NOT_MODIFIED) {
            self.keys.accept(key);
        }
    }

    /// Reads the answer to a request that was refused. Returns the error; `None` where the request is made again,
    /// because its key was the problem and has been replaced meanwhile. `key` was sent with it, and `tried` requests
    /// were made in all.
    pub(super) async fn refused(
        &self,
        answered: Answered,
        (key, tried): (Option<&HeaderValue>, usize),
        pause: Option<Duration>,
        spent: &mut Spent,
    ) -> Option<ApiError> {
        let refusal = self.refusal(answered.response, answered.ends).await;
        if refusal.is_not_found() || matches!(refusal, ApiError::Redirect { .. }) {
            spent.pause(pause);
        }
        let is_key = matches!(refusal, ApiError::Unauthorized { .. });
        let again = match key {
            Some(key) if is_key && tried < KEYS_TRIED => self.keys.has_another(key).await,
            _ => false,
        };
        (!again).then_some(refusal)
    }
}
