//! A request as it comes and a refusal as it goes: bodies, parameters, paths, problems.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, Request};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response as AxumResponse};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use serde::Serialize;

use super::schemas::MAX_PAGE;
use super::types::{AMBIGUOUS, ProblemDetails};
use crate::config::Providers;
use crate::domain::RunRef;
use crate::store::StoreError;
use crate::text::error_chain;

/// Largest body of a request, in bytes: room for every label a watch may carry.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// How much more of a body that is too large is read, so that its sender comes to read the answer.
const MAX_DROPPED_BYTES: usize = 1024 * 1024;

/// How long a caller may take to send the body of a request.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// Items of a page of a list if the request names no number.
const PAGE: u32 = 100;

/// Reads the body of a request whole, before anything is done with it: no more than [`MAX_BODY_BYTES`],
/// in no more than [`BODY_LIMIT`].
pub(super) async fn read_body(request: Request, next: Next) -> AxumResponse {
    let (parts, body) = request.into_parts();
    let whole = async {
        let (mut body, mut kept, mut dropped) = (body, BytesMut::new(), 0);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(HttpError::bad("the body cannot be read"));
            };
            let data = frame.into_data().unwrap_or_default();
            if kept.len() + data.len() <= MAX_BODY_BYTES && dropped == 0 {
                kept.extend_from_slice(&data);
                continue;
            }
            // A caller that is still sending when the connection ends never sees the answer.
            dropped += data.len();
            if dropped > MAX_DROPPED_BYTES {
                break;
            }
        }
        if dropped == 0 {
            Ok(kept.freeze())
        } else {
            Err(too_large())
        }
    };
    match tokio::time::timeout(BODY_LIMIT, whole).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Ok(Err(refusal)) => refusal.into_response(),
        Err(_elapsed) => {
            HttpError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")
                .into_response()
        }
    }
}

fn too_large() -> HttpError {
    HttpError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is larger than {MAX_BODY_BYTES} bytes"),
    )
}

/// A request that is refused, as RFC 9457 has it.
#[derive(Debug)]
pub(super) struct HttpError {
    status: StatusCode,
    /// The usual words for the status unless set.
    title: Option<&'static str>,
    detail: String,
}

impl HttpError {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            title: None,
            detail: detail.into(),
        }
    }

    /// The beginning of an ID fits several.
    pub(super) fn ambiguous(detail: impl Into<String>) -> Self {
        Self {
            title: Some(AMBIGUOUS),
            ..Self::new(StatusCode::CONFLICT, detail)
        }
    }

    /// Whether the token is missing or wrong.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    pub(super) fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn unknown(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} is not known here"))
    }
}

impl From<StoreError> for HttpError {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Precondition { .. } => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let detail = error_chain(&error);
        // The caller gets the error; the store logs its own failures, once.
        tracing::debug!(%status, detail, "request refused");
        Self::new(status, detail)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> AxumResponse {
        let problem = ProblemDetails {
            title: self
                .title
                .or(self.status.canonical_reason())
                .unwrap_or("Error")
                .to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let mut response = json_response(self.status, "application/problem+json", &problem);
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> AxumResponse {
    json_response(status, "application/json", value)
}

fn json_response<T: Serialize>(
    status: StatusCode,
    content_type: &'static str,
    value: &T,
) -> AxumResponse {
    let body = serde_json::to_vec(value).expect("the documents have text keys");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The parameters of a request, each known and read once.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn read(RawQuery(text): RawQuery, known: &[&str]) -> Result<Self, HttpError> {
        let text = text.unwrap_or_default();
        let pairs: Vec<(String, String)> = form_urlencoded::parse(text.as_bytes())
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        match pairs
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            Some((name, _)) => Err(HttpError::bad(format!(
                "{name:?} is no parameter; known: {}",
                known.join(", ")
            ))),
            None => Ok(Self(pairs)),
        }
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a parameter that may be given once, read by `read`.
    pub(super) fn one<T>(
        &self,
        name: &str,
        read: impl FnOnce(&str) -> Option<T>,
        rule: &str,
    ) -> Result<Option<T>, HttpError> {
        let mut values = self.all(name);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(HttpError::bad(format!("{name} is given more than once")));
        }
        read(value)
            .map(Some)
            .ok_or_else(|| HttpError::bad(format!("{name}={value}: write {rule}")))
    }

    pub(super) fn limit(&self) -> Result<u32, HttpError> {
        let read = |text: &str| {
            text.parse()
                .ok()
                .filter(|limit| (1..=MAX_PAGE).contains(limit))
        };
        Ok(self
            .one("limit", read, "a number from 1 to 1000")?
            .unwrap_or(PAGE))
    }
}

pub(super) fn run_id(text: &str, providers: &Providers) -> Result<RunRef, HttpError> {
    // A run that is known may be one of a provider that is not configured any more.
    let known = || RunRef::new(text).ok().filter(|_| text.contains(':'));
    providers
        .run(text)
        .or_else(|why| known().ok_or_else(|| HttpError::bad(why)))
}

/// The ID in the path of a request.
pub(super) type InPath = Result<Path<String>, PathRejection>;

impl From<PathRejection> for HttpError {
    fn from(rejection: PathRejection) -> Self {
        Self::bad(format!("the path cannot be read: {rejection}"))
    }
}
