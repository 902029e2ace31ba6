//! Webhooks: one request per attempt.

mod request;
mod secrets;

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::time::Instant;

use self::request::RequestMaker;
pub(super) use self::secrets::secret_parts;
use self::secrets::shown_address;
use super::{BuildSinkError, Message, Preview, SendError, Sent, chat};
use crate::config::{WebhookFormat, WebhookSettings};
use crate::http::{NO_ANSWER, Names, client, connection_ended, failure, proxy_secrets};
use crate::redact::{REDACTED, Redactor};
use crate::retry_after::retry_after;
use crate::text::{error_chain_after, one_line};

/// Limit of one attempt, answer included.
const LIMIT: Duration = Duration::from_secs(15);

/// Limit for making the connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Most name lookups at once, of each sink.
const LOOKUPS: usize = 4;

/// Most connections kept alive while no message is sent. Each may turn out to be dead and cost another try.
const MAX_IDLE: usize = 2;

/// How long a connection is kept alive: shorter than servers and routers keep one that is idle.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Most bytes of a chat service's answer to a successful attempt that are read, to see whether it was one.
const MAX_CHAT_BYTES: usize = 16 * 1024;

/// How long such an answer may take after its head.
const CHAT_ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Most bytes of a receiver's answer to a failed attempt that are read, to show them.
const MAX_ANSWER_BYTES: usize = 1024;

/// Characters of a receiver's answer that are shown.
const ANSWER_CHARS: usize = 120;

/// A webhook sink.
#[derive(Debug)]
pub struct Webhook {
    http: Client,
    requests: RequestMaker,
    /// When the receiver last answered. Held only to copy in and out.
    answered: Mutex<Option<Instant>>,
}

impl Webhook {
    pub(super) fn build(
        settings: &WebhookSettings,
        page: Option<Url>,
    ) -> Result<Self, BuildSinkError> {
        // A redirect would send the message, and its secrets, to a place that is not configured: none is followed.
        let http = client()
            .dns_resolver(Names::new(LOOKUPS))
            .connect_timeout(CONNECT_LIMIT)
            .timeout(LIMIT)
            .pool_max_idle_per_host(MAX_IDLE)
            .pool_idle_timeout(IDLE_LIMIT)
            // So that the connection of an attempt that gets no answer is gone before the next attempt.
            .http2_keep_alive_interval(LIMIT / 2)
            .http2_keep_alive_timeout(LIMIT / 2)
            .build()
            .map_err(BuildSinkError::Http)?;
        Ok(Self {
            http,
            requests: RequestMaker::new(settings, page)?,
            answered: Mutex::default(),
        })
    }

    pub(super) async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        let request = self.requests.make(message).await?;
        let redactor = Redactor::new(request.secrets.into_iter().chain(proxy_secrets()));
        let request = self
            .http
            .request(request.method, request.url)
            .headers(request.headers)
            .body(request.body);
        match tokio::time::timeout(LIMIT, self.post(&request)).await {
            Ok(Ok(response)) => judge(response, self.requests.format(), &redactor).await,
            Ok(Err(error)) => Err(SendError::new(redactor.text(&transport(error)))),
            Err(_elapsed) => Err(SendError::new(NO_ANSWER)),
        }
    }

    /// The request that an attempt would make. Of the address only the host is shown, because the rest may be a key.
    pub(super) async fn preview(&self, message: &Message<'_>) -> Result<Preview, SendError> {
        let request = self.requests.make(message).await?;
        let fields = request.headers.iter().map(|(name, value)| {
            let value = if value.is_sensitive() {
                REDACTED.to_owned()
            } else {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            };
            (name.to_string(), value)
        });
        let redactor = Redactor::new(request.values);
        Ok(Preview {
            target: format!("{} {}", request.method, shown_address(&request.url)),
            fields: fields.collect(),
            body: redactor.text(&request.body).into_owned(),
        })
    }

    /// Sends a request. Where a connection that was kept alive turns out to be dead, it is sent again at once on
    /// another one: the receiver knows a second one by the ID of its delivery.
    async fn post(&self, request: &RequestBuilder) -> Result<Response, reqwest::Error> {
        let mut again = if self.keeps_connections() {
            MAX_IDLE
        } else {
            0
        };
        loop {
            let request = request.try_clone().expect("the body is a text");
            match request.send().await {
                Err(error) if again > 0 && connection_ended(&error) => again -= 1,
                Err(error) => return Err(error),
                Ok(response) => {
                    *self.answered.lock().expect("no holder panics") = Some(Instant::now());
                    return Ok(response);
                }
            }
        }
    }

    /// Whether there may be connections that are kept alive.
    fn keeps_connections(&self) -> bool {
        let answered = *self.answered.lock().expect("no holder panics");
        answered.is_some_and(|answered| answered.elapsed() < IDLE_LIMIT)
    }
}

/// Decides what an answer means: 2xx arrived, unless the body of a chat service reports a failure; everything else did not.
async fn judge(
    mut response: Response,
    format: &WebhookFormat,
    redactor: &Redactor,
) -> Result<Sent, SendError> {
    let status = response.status();
    let mut retry_after = retry_after(response.headers(), SystemTime::now());
    if *format == WebhookFormat::Apprise && status == StatusCode::NO_CONTENT {
        // Its code for a key without services (apprise-api, README, "Persistent Storage Solution").
        let detail = format!("{status}: the Apprise API has no services for this address");
        return Err(SendError::new(detail));
    }
    if status.is_success() {
        if !chat::explains(format) {
            return Ok(Sent {
                detail: status.to_string(),
            });
        }
        let text =
            tokio::time::timeout(CHAT_ANSWER_LIMIT, beginning(&mut response, MAX_CHAT_BYTES)).await;
        // Without a body, the status is what counts.
        let Some(failure) = text.ok().and_then(|text| chat::failure(format, &text)) else {
            return Ok(Sent {
                detail: status.to_string(),
            });
        };
        let text = one_line(&redactor.text(&failure.message), ANSWER_CHARS);
        let detail = format!("{status}, but the answer reports a failure: {text}");
        return Err(SendError {
            retry_after: failure.retry_after.or(retry_after),
            ..SendError::new(detail)
        });
    }
    if !matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        retry_after = None;
    }
    let detail = if status.is_redirection() {
        format!("{status} (redirects are not followed)")
    } else {
        let text = beginning(&mut response, MAX_ANSWER_BYTES).await;
        let text = if text.len() < MAX_ANSWER_BYTES {
            redactor.text(&String::from_utf8_lossy(&text)).into_owned()
        } else {
            redactor.beginning(&text)
        };
        match one_line(&text, ANSWER_CHARS) {
            text if text.is_empty() => status.to_string(),
            text => format!("{status}: {text}"),
        }
    };
    Err(SendError {
        retry_after,
        gone: status == StatusCode::GONE,
        ..SendError::new(detail)
    })
}

/// The beginning of a body, `most` bytes at the most. What cannot be read is left out; the status is what matters.
async fn beginning(response: &mut Response, most: usize) -> Vec<u8> {
    let mut text = Vec::new();
    while text.len() < most {
        let Ok(Some(chunk)) = response.chunk().await else {
            break;
        };
        text.extend_from_slice(&chunk);
    }
    text.truncate(most);
    text
}

/// Why no answer came, with the causes, without the URL: for chat services it is the secret.
pub(super) fn transport(error: reqwest::Error) -> String {
    let what = failure(&error).to_owned();
    error_chain_after(what, &error.without_url())
}
