//! The HTTP client of the API.

use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::error::{ApiError, KeyProblem};
use super::{HttpStream, Malformed, Reply, RunSource, hints, wire};
use crate::blocking::Lane;
use crate::config::{ApiSettings, REDACTED, Secret};
use crate::http::Names;
use crate::run::RunId;

/// How often the key is read again at the most. A refusal has it read again at once.
const KEY_LIFE: Duration = Duration::from_secs(1);

/// Key files read at once.
const KEY_READS: usize = 4;

/// Most bytes of the body of an error that are read: its message is what people see.
const MAX_ERROR_BYTES: u64 = 8 * 1024;

/// After how long without traffic a connection is checked, so that one that a router forgot is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Most name lookups at once.
const LOOKUPS: usize = 8;

/// Longest life of an event stream. The API ends one after 30 minutes ("Stream Events" of its reference).
const STREAM_LIFE: Duration = Duration::from_secs(35 * 60);

/// A client that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// TLS cannot be set up.
    #[error("cannot set up HTTPS (are certificates of authorities installed?)")]
    Https(#[source] reqwest::Error),
    /// The address of the API is none; a configuration that was loaded has none like that.
    #[error("the address of the API is not a URL")]
    Address(#[source] <Url as FromStr>::Err),
}

/// Asks the API for runs over HTTP.
///
/// HTTP/2 where the server offers it, connections kept alive, TLS by rustls with the system's
/// authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` replace them), proxies as `HTTPS_PROXY`,
/// `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say. Redirects are never followed.
pub struct ApiClient {
    http: Client,
    /// For event streams, each with a connection of its own: one that is not read fast enough would
    /// hold up all that share its connection.
    streams: Client,
    request_timeout: Duration,
    /// Where runs are, without a slash at the end.
    runs: Url,
    key: Option<Secret>,
    /// Reads the key where it is in a file.
    keys: Lane,
    /// The header with the key, and when it was read. Held only to copy in and out.
    read_key: Mutex<Option<(Instant, HeaderValue)>>,
    max_response_bytes: u64,
}

impl ApiClient {
    /// A client for these settings. Sends nothing yet.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the address of the API is not a URL.
    pub fn new(settings: &ApiSettings) -> Result<Self, BuildError> {
        // HTTP/2 carries all polls on one connection, and a poll that gets no answer does not end it. Pings do,
        // by the time that poll is given up: else all polls fail until the kernel gives the connection up, also
        // when the API has moved to another address meanwhile.
        let half = settings.request_timeout / 2;
        let names = Names::new(LOOKUPS);
        let http = builder(settings, &names)
            .timeout(settings.request_timeout)
            .http2_keep_alive_interval(half)
            .http2_keep_alive_timeout(half);
        let streams = builder(settings, &names).timeout(STREAM_LIFE).http1_only().pool_max_idle_per_host(0);
        let runs = format!("{}/v1/runs", settings.base_url.trim_end_matches('/'));
        let runs = runs.parse().map_err(BuildError::Address)?;
        Ok(Self {
            http: http.build().map_err(BuildError::Https)?,
            streams: streams.build().map_err(BuildError::Https)?,
            request_timeout: settings.request_timeout,
            runs,
            key: settings.key.clone(),
            keys: Lane::new("keys", KEY_READS),
            read_key: Mutex::new(None),
            max_response_bytes: settings.max_response_bytes,
        })
    }

    /// Where a run is, or a part of it. What is the same for all runs is not read again each time.
    fn run(&self, id: &RunId, part: Option<&str>) -> Url {
        let mut url = self.runs.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(id.as_str()).extend(part);
        }
        url
    }

    /// The `Authorization` header, read anew when the last reading is old.
    async fn authorization(&self) -> Result<HeaderValue, ApiError> {
        let now = Instant::now();
        let fresh = |(read_at, _): &&(Instant, HeaderValue)| now.duration_since(*read_at) < KEY_LIFE;
        if let Some((_, header)) = self.read_key.lock().expect("no holder panics").as_ref().filter(fresh) {
            return Ok(header.clone());
        }
        let key = self.key.as_ref().ok_or(ApiError::KeyMissing)?;
        let key = key.read_on(&self.keys).await.map_err(|error| ApiError::KeyUnusable(KeyProblem::File(error)))?;
        let key = key.expose_secret();
        let header = if key.bytes().all(|byte| byte.is_ascii_graphic()) {
            HeaderValue::try_from(format!("Bearer {key}")).ok()
        } else {
            None
        };
        let mut header = header.ok_or(ApiError::KeyUnusable(KeyProblem::Characters))?;
        header.set_sensitive(true);
        *self.read_key.lock().expect("no holder panics") = Some((now, header.clone()));
        Ok(header)
    }

    /// The body of a refusal without the key, which some repeat when they refuse it.
    fn without_key(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        let read = self.read_key.lock().expect("no holder panics");
        match read.as_ref().and_then(|(_, header)| header.to_str().ok()?.strip_prefix("Bearer ")) {
            Some(key) => text.replace(key, REDACTED),
            None => text.into_owned(),
        }
    }

    async fn refusal(&self, response: Response) -> ApiError {
        let code = response.status();
        let status = code.as_u16();
        let retry_after = hints::refusal_pause(code, response.headers(), SystemTime::now());
        if code.is_redirection() {
            return ApiError::Redirect { status };
        }
        // Only the message is lost when the body cannot be read; the status says what matters.
        let message = match read_body(response, MAX_ERROR_BYTES).await {
            Ok(body) => wire::error_message(self.without_key(&body).as_bytes()),
            Err(_unreadable) => String::new(),
        };
        match code {
            StatusCode::FORBIDDEN if retry_after.is_some() => ApiError::Status { status, message, retry_after },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                *self.read_key.lock().expect("no holder panics") = None;
                ApiError::Unauthorized { status, message }
            }
            StatusCode::NOT_FOUND => ApiError::NotFound { message },
            StatusCode::GONE => ApiError::Gone { message },
            _ => ApiError::Status { status, message, retry_after },
        }
    }
}

fn builder(settings: &ApiSettings, names: &Arc<Names>) -> ClientBuilder {
    Client::builder()
        .dns_resolver(Arc::clone(names))
        .user_agent(concat!("runwatch/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(settings.connect_timeout)
        .tcp_keepalive(KEEPALIVE)
}

impl RunSource for ApiClient {
    type Events = HttpStream;

    async fn get_run(&self, id: &RunId) -> Result<Reply, ApiError> {
        let request = self
            .http
            .get(self.run(id, None))
            .header(AUTHORIZATION, self.authorization().await?)
            .header(ACCEPT, HeaderValue::from_static("application/json"));
        let response = request.send().await.map_err(transport)?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let pause = hints::exhausted(response.headers(), SystemTime::now());
        let body = read_body(response, self.max_response_bytes).await?;
        let observation = wire::observation(&body, id).map_err(ApiError::Malformed)?;
        Ok(Reply { observation, pause })
    }

    async fn open_events(&self, id: &RunId, last_id: Option<&str>) -> Result<HttpStream, ApiError> {
        let mut request = self
            .streams
            .get(self.run(id, Some("events")))
            .header(AUTHORIZATION, self.authorization().await?)
            .header(ACCEPT, HeaderValue::from_static(EVENT_STREAM));
        if let Some(last_id) = last_id.and_then(|last_id| HeaderValue::from_str(last_id).ok()) {
            request = request.header("last-event-id", last_id);
        }
        let opening = async {
            let response = request.send().await.map_err(transport)?;
            if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
        };
        let response = tokio::time::timeout(self.request_timeout, opening).await;
        let response = response.map_err(|_elapsed| ApiError::Timeout)??;
        if !is_event_stream(response.headers()) {
            return Err(ApiError::Malformed(Malformed::Shape("it is not an event stream")));
        }
        Ok(HttpStream::new(response))
    }
}

/// The media type of Server-Sent Events.
const EVENT_STREAM: &str = "text/event-stream";

fn is_event_stream(headers: &HeaderMap) -> bool {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().is_some_and(|given| given.trim().eq_ignore_ascii_case(EVENT_STREAM))
}

/// Reads a body, decompressed, up to `limit` bytes.
async fn read_body(mut response: Response, limit: u64) -> Result<Vec<u8>, ApiError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(ApiError::TooLarge { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The URL is left out: a proxy's may hold a password.
fn transport(error: reqwest::Error) -> ApiError {
    ApiError::Transport(error.without_url())
}
