//! The event stream of a run over HTTP.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::Instant;

use super::activity;
use super::error::{ApiError, Malformed, Transport};
use crate::domain::Activity;
use crate::profile::Profile;
use crate::redact::Redactor;
use crate::sse::{Frame, Parser};

/// Most bytes of one stream that are read in a second: people cannot read that much, and a server that
/// floods is left waiting instead of being kept up with.
const BYTES_PER_SECOND: usize = 1024 * 1024;

/// Most bytes that an event may take in memory, its fields together; also of one line.
pub(super) const MAX_EVENT_BYTES: usize = 256 * 1024;

/// An open event stream of one run.
pub trait EventStream: Send + 'static {
    /// What comes next; `None` when the stream has ended. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Option<StreamItem>, ApiError>> + Send;

    /// The ID of the last event that had one.
    fn last_id(&self) -> Option<&str>;
}

/// What comes out of a stream.
#[derive(Debug, Clone)]
pub enum StreamItem {
    /// Data that only show that the stream is alive.
    Life,
    /// An event of a known type.
    Activity(Activity),
}

/// The stream of a source that has none.
#[derive(Debug)]
pub enum NoStream {}

impl EventStream for NoStream {
    async fn next(&mut self) -> Result<Option<StreamItem>, ApiError> {
        match *self {}
    }

    fn last_id(&self) -> Option<&str> {
        match *self {}
    }
}

/// An event stream over HTTP.
#[derive(Debug)]
pub struct HttpStream {
    response: Response,
    parser: Parser,
    /// What was received and not yet read.
    rest: Bytes,
    /// The second that bytes are counted in, and how many came in it.
    second: (Instant, usize),
    /// Takes secrets out of what comes in.
    redactor: Arc<Redactor>,
    /// Whose profile names the types of events.
    profile: Arc<Profile>,
}

impl HttpStream {
    pub(super) fn new(response: Response, redactor: Arc<Redactor>, profile: Arc<Profile>) -> Self {
        Self {
            response,
            parser: Parser::new(MAX_EVENT_BYTES),
            rest: Bytes::new(),
            second: (Instant::now(), 0),
            redactor,
            profile,
        }
    }
}

impl EventStream for HttpStream {
    async fn next(&mut self) -> Result<Option<StreamItem>, ApiError> {
        if self.rest.is_empty() {
            let (since, bytes) = self.second;
            if bytes >= BYTES_PER_SECOND {
                // Whatever was received stays where it is if this is dropped.
                tokio::time::sleep_until(since + Duration::from_secs(1)).await;
            }
            if since.elapsed() >= Duration::from_secs(1) {
                self.second = (Instant::now(), 0);
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.rest = bytes,
                Ok(None) => return Ok(None),
                Err(error) => {
                    return Err(ApiError::Transport(Transport::new(error, &self.redactor)));
                }
            }
            self.second.1 += self.rest.len();
        }
        let frame = self.parser.next(&mut self.rest);
        let frame = frame.map_err(|_too_large| {
            ApiError::Malformed(Malformed::Shape("an event of it is too large"))
        })?;
        let frame = frame.map(|frame| Frame {
            event: self.redactor.text(&frame.event).into_owned(),
            data: String::from_utf8(self.redactor.body(frame.data.into_bytes()))
                .unwrap_or_default(),
        });
        Ok(Some(
            frame
                .zip(self.profile.stream.as_ref())
                .and_then(|(frame, types)| activity::of_frame(types, &frame))
                .map_or(StreamItem::Life, StreamItem::Activity),
        ))
    }

    fn last_id(&self) -> Option<&str> {
        self.parser.last_id()
    }
}
