//! What can go wrong with an answer.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, LOCATION, RETRY_AFTER};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::Value;

use super::server::{ResponseBody, ServedAnswer, json, streaming, text};

/// A fault in place of an answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// A status code, with an error body as documented.
    Status {
        /// The code.
        code: u16,
        /// Headers to add.
        headers: HeaderMap,
    },
    /// 200 with a page for people.
    Html,
    /// 200 with nothing.
    Empty,
    /// The first half of the answer, then the connection ends.
    HalfBody,
    /// The connection ends without an answer.
    Reset,
    /// Nothing, for as long as the client waits.
    Hang,
    /// The answer, a few bytes at a time, with this pause between them.
    Drip(Duration),
    /// A body that never ends.
    Endless,
    /// A body of so many bytes.
    Oversize(usize),
    /// A small body that decompresses to so many bytes.
    GzipBomb(usize),
    /// The answer with an output nested so deeply.
    DeeplyNested(usize),
    /// An answer about another run, which has succeeded.
    OtherRun,
    /// The answer with a status that is no text.
    WrongTypes,
    /// 302 to this place.
    Redirect(String),
}

/// Bytes of one piece of a body that drips.
const DRIP_BYTES: usize = 8;

/// Bytes of one piece of a body that never ends.
const PIECE: Bytes = Bytes::from_static(&[b' '; 16 * 1024]);

impl Fault {
    /// A status code, with an error body as documented.
    pub fn status(code: u16) -> Self {
        Self::Status {
            code,
            headers: HeaderMap::new(),
        }
    }

    /// The same with `Retry-After`. Only statuses carry it.
    ///
    /// # Panics
    /// When `value` cannot be a header.
    #[must_use]
    pub fn with_retry_after(self, value: &str) -> Self {
        self.with_header(RETRY_AFTER.as_str(), value)
    }

    /// The same with another header. Only statuses carry it.
    ///
    /// # Panics
    /// When `name` or `value` cannot be a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Self::Status { headers, .. } = &mut self {
            let name = hyper::header::HeaderName::try_from(name).expect("a header name");
            headers.insert(name, value.parse().expect("a header value"));
        }
        self
    }

    /// The answer that this fault makes of `body`.
    pub(super) fn answer(&self, body: &Value) -> ServedAnswer {
        let whole = || Bytes::from(body.to_string());
        let response = match self {
            Self::Status { code, headers } => {
                let status =
                    StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let reason = status.canonical_reason().unwrap_or("Error");
                let mut response = json(status, &serde_json::json!({"error": {"message": reason}}));
                response.headers_mut().extend(headers.clone());
                response
            }
            Self::Html => text(
                "text/html",
                "<html><body>We are down for maintenance</body></html>",
            ),
            Self::Empty => text("application/json", ""),
            Self::HalfBody => half_of(whole()),
            Self::Reset => return ServedAnswer::Nothing,
            Self::Hang => return ServedAnswer::Silence,
            Self::Drip(pause) => drip(whole(), *pause),
            Self::Endless => streaming(stream::repeat_with(|| Ok(PIECE))),
            Self::Oversize(bytes) => {
                let pieces = bytes.div_ceil(PIECE.len());
                streaming(stream::iter((0..pieces).map(|_| Ok(PIECE))))
            }
            Self::GzipBomb(bytes) => {
                let mut response = streaming(stream::iter([Ok(gzip_of_spaces(*bytes))]));
                response
                    .headers_mut()
                    .insert(CONTENT_ENCODING, "gzip".parse().expect("a header value"));
                response
            }
            Self::DeeplyNested(levels) => text("application/json", nested(body, *levels)),
            Self::OtherRun => {
                let other =
                    serde_json::json!({"id": "run_of_somebody_else", "status": "succeeded"});
                json(StatusCode::OK, &other)
            }
            Self::WrongTypes => {
                let mut body = body.clone();
                body["status"] = serde_json::json!({"state": "succeeded"});
                json(StatusCode::OK, &body)
            }
            Self::Redirect(place) => {
                let mut response = text("text/plain", "");
                *response.status_mut() = StatusCode::FOUND;
                response
                    .headers_mut()
                    .insert(LOCATION, place.parse().expect("a header value"));
                response
            }
        };
        response.into()
    }
}

/// An answer that is cut off in the middle, after a length that says more.
fn half_of(whole: Bytes) -> Response<ResponseBody> {
    let half = whole.slice(..whole.len() / 2);
    // The server sends what it has when it must wait for more.
    let cut = stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut off on purpose"))
    });
    let mut response = streaming(stream::iter([Ok(half)]).chain(cut));
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, whole.len().into());
    response
}

/// An answer of which a few bytes come at a time.
fn drip(whole: Bytes, pause: Duration) -> Response<ResponseBody> {
    streaming(stream::unfold(whole, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(pause).await;
        let piece = rest.split_to(DRIP_BYTES.min(rest.len()));
        Some((Ok(piece), rest))
    }))
}

/// The text of a JSON object with one more field, which has arrays in arrays.
fn nested(body: &Value, levels: usize) -> String {
    let mut json = body.to_string();
    let nested = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    if let Some(at) = json.rfind('}') {
        json.insert_str(at, &format!(",\"nested\":{nested}"));
    }
    json
}

fn gzip_of_spaces(bytes: usize) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(PIECE.len());
        encoder
            .write_all(&PIECE[..piece])
            .expect("memory takes every byte");
        left -= piece;
    }
    encoder.finish().expect("memory takes every byte").into()
}
