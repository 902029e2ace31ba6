//! The HTTP client of the API.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::error::{ApiError, KeyProblem};
use super::{Reply, RunSource, hints, wire};
use crate::config::{ApiSettings, Secret};
use crate::run::RunId;

/// How often the key is read again at the most. A refusal has it read again at once.
const KEY_LIFE: Duration = Duration::from_secs(1);

/// Most bytes of the body of an error that are read: its message is what people see.
const MAX_ERROR_BYTES: u64 = 8 * 1024;

/// Idle connections kept for the next polls. With HTTP/2 one carries them all.
const IDLE_CONNECTIONS: usize = 16;

/// After how long without traffic a connection is checked, so that one that a router forgot is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A client that cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up HTTPS (are certificates of authorities installed?)")]
pub struct BuildError(#[source] reqwest::Error);

/// Asks the API for runs over HTTP.
///
/// HTTP/2 where the server offers it, connections kept alive, TLS by rustls with the system's
/// authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` replace them), proxies as `HTTPS_PROXY`,
/// `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say. Redirects are never followed.
pub struct ApiClient {
    http: Client,
    base_url: String,
    key: Option<Secret>,
    /// The header with the key, and when it was read. Held only to copy in and out.
    read_key: Mutex<Option<(Instant, HeaderValue)>>,
    max_response_bytes: u64,
}

impl ApiClient {
    /// A client for these settings. Sends nothing yet.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(settings: &ApiSettings) -> Result<Self, BuildError> {
        let http = Client::builder()
            .user_agent(concat!("runwatch/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.request_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .tcp_keepalive(KEEPALIVE)
            .build()
            .map_err(BuildError)?;
        Ok(Self {
            http,
            base_url: settings.base_url.trim_end_matches('/').to_owned(),
            key: settings.key.clone(),
            read_key: Mutex::new(None),
            max_response_bytes: settings.max_response_bytes,
        })
    }

    /// The `Authorization` header, read anew when the last reading is old.
    fn authorization(&self) -> Result<HeaderValue, ApiError> {
        let now = Instant::now();
        let fresh = |(read_at, _): &&(Instant, HeaderValue)| now.duration_since(*read_at) < KEY_LIFE;
        if let Some((_, header)) = self.read_key.lock().expect("no holder panics").as_ref().filter(fresh) {
            return Ok(header.clone());
        }
        let key = self.key.as_ref().ok_or(ApiError::KeyMissing)?;
        let key = key.read().map_err(|error| ApiError::KeyUnusable(KeyProblem::File(error)))?;
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

    async fn refusal(&self, response: Response) -> ApiError {
        let code = response.status();
        let status = code.as_u16();
        let retry_after = match code {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                hints::pause(response.headers(), SystemTime::now())
            }
            _ => None,
        };
        if code.is_redirection() {
            return ApiError::Redirect { status };
        }
        // Only the message is lost when the body cannot be read; the status says what matters.
        let message = match read_body(response, MAX_ERROR_BYTES).await {
            Ok(body) => wire::error_message(&body),
            Err(_unreadable) => String::new(),
        };
        match code {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                *self.read_key.lock().expect("no holder panics") = None;
                ApiError::Unauthorized { status, message }
            }
            StatusCode::NOT_FOUND => ApiError::NotFound { message },
            _ => ApiError::Status { status, message, retry_after },
        }
    }
}

impl RunSource for ApiClient {
    async fn get_run(&self, id: &RunId) -> Result<Reply, ApiError> {
        let request = self
            .http
            .get(format!("{}/v1/runs/{id}", self.base_url))
            .header(AUTHORIZATION, self.authorization()?)
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
