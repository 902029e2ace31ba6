//! Webhooks: one POST per attempt.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::body::{MAX_BODY_BYTES, MessageBody};
use super::template::MessageTemplate;
use super::{BuildSinkError, Message, SendError, Sent, chat, signature};
use crate::blocking::Lane;
use crate::config::{SIGNING_PREFIX, Secret, WebhookFormat, WebhookSettings};
use crate::http::{NO_ANSWER, Names, client, connection_ended, failure, proxy_secrets};
use crate::redact::Redactor;
use crate::retry_after::retry_after;
use crate::text::{error_chain, error_chain_after, one_line};

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

/// Secret files read at once, of each sink.
const SECRET_READS: usize = 4;

/// Most bytes of a chat service's answer to a successful attempt that are read, to see whether it was one.
const MAX_CHAT_BYTES: usize = 16 * 1024;

/// How long such an answer may take after its head.
const CHAT_ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// User names, passwords and signing secrets shorter than this, in bytes, are not taken out of answers.
const MIN_CREDENTIAL: usize = 4;

/// Labels of a host name from this length on, in bytes, are secrets that a service made up.
const MIN_HOST_LABEL: usize = 20;

/// Most bytes of a receiver's answer to a failed attempt that are read, to show them.
const MAX_ANSWER_BYTES: usize = 1024;

/// Parts of an address and headers shorter than this are no secrets, but words such as `hook`.
const HIDDEN_CHARS: usize = 8;

/// Characters of a receiver's answer that are shown.
const ANSWER_CHARS: usize = 120;

/// A webhook sink.
#[derive(Debug)]
pub struct Webhook {
    http: Client,
    settings: WebhookSettings,
    template: Option<MessageTemplate>,
    /// Reads secrets that are in files.
    secrets: Lane,
    /// When the receiver last answered. Held only to copy in and out.
    answered: Mutex<Option<Instant>>,
}

impl Webhook {
    pub(super) fn build(settings: &WebhookSettings) -> Result<Self, BuildSinkError> {
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
        let template = match &settings.format {
            WebhookFormat::Template { file, content_type } => {
                Some(MessageTemplate::load(file, content_type)?)
            }
            _ => None,
        };
        let (secrets, answered) = (Lane::new("secrets", SECRET_READS), Mutex::default());
        Ok(Self {
            http,
            settings: settings.clone(),
            template,
            secrets,
            answered,
        })
    }

    pub(super) async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        let url = self.read(&self.settings.url, "the address").await?;
        let url = Url::parse(&url).map_err(|_secret| SendError::new("the address is not a URL"))?;
        let (content_type, text, mut headers) = self.body(message)?;
        headers.insert(CONTENT_TYPE, content_type);
        let mut secrets = secret_parts(&url);
        secrets.extend(self.sign(message, &text, &mut headers).await?);
        for (name, value) in &self.settings.headers {
            let value = self.read(value, name).await?;
            let unusable = |what| {
                SendError::new(format!(
                    "the header {name} has {what} that HTTP does not allow"
                ))
            };
            let header = HeaderName::try_from(name).map_err(|_invalid| unusable("a name"))?;
            let mut value = HeaderValue::try_from(value).map_err(|_invalid| unusable("a value"))?;
            value.set_sensitive(true);
            secrets.extend(value.to_str().into_iter().flat_map(secret_words));
            headers.insert(header, value);
        }
        let redactor = Redactor::new(secrets.into_iter().chain(proxy_secrets()));
        let request = self.http.post(url).headers(headers).body(text);
        match tokio::time::timeout(LIMIT, self.post(&request)).await {
            Ok(Ok(response)) => judge(response, &self.settings.format, &redactor).await,
            Ok(Err(error)) => Err(SendError::new(redactor.text(&transport(error)))),
            Err(_elapsed) => Err(SendError::new(NO_ANSWER)),
        }
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

    async fn read(&self, secret: &Secret, what: &str) -> Result<String, SendError> {
        let cannot = |error| SendError::new(format!("cannot read {what}: {}", error_chain(&error)));
        Ok(secret
            .read_on(&self.secrets)
            .await
            .map_err(cannot)?
            .expose_secret()
            .to_owned())
    }

    fn body(&self, message: &Message<'_>) -> Result<(HeaderValue, String, HeaderMap), SendError> {
        let body = match &self.settings.format {
            WebhookFormat::Standard => MessageBody {
                content_type: "application/json",
                text: message.event.to_json_within(MAX_BODY_BYTES),
                headers: HeaderMap::new(),
            },
            WebhookFormat::Slack => chat::slack(message.event),
            WebhookFormat::Discord => chat::discord(message.event),
            WebhookFormat::Teams => chat::teams(message.event),
            WebhookFormat::Ntfy => chat::ntfy(message.event),
            WebhookFormat::Template { content_type, .. } => {
                let template = self.template.as_ref().expect("built with the format");
                let text = template
                    .render(message, content_type)
                    .map_err(|error| SendError::new(error.to_string()))?;
                let content_type = HeaderValue::try_from(content_type).map_err(|_invalid| {
                    SendError::new("the content type is not one that HTTP allows")
                })?;
                return Ok((content_type, text, HeaderMap::new()));
            }
        };
        Ok((
            HeaderValue::from_static(body.content_type),
            body.text,
            body.headers,
        ))
    }

    /// Adds the headers of the Standard Webhooks specification; a signature where there is a secret. Returns what must
    /// not show.
    async fn sign(
        &self,
        message: &Message<'_>,
        body: &str,
        headers: &mut HeaderMap,
    ) -> Result<Vec<String>, SendError> {
        let id = HeaderValue::try_from(message.delivery.as_str())
            .expect("letters, digits and an underscore");
        headers.insert(signature::ID_HEADER, id);
        let timestamp = message.now.as_second();
        headers.insert(signature::TIMESTAMP_HEADER, timestamp.into());
        if let Some(secret) = &self.settings.secret {
            let secrets = self.read(secret, "the signing secret").await?;
            let signatures = signature::sign(
                &secrets,
                message.delivery.as_str(),
                timestamp,
                body.as_bytes(),
            )
            .map_err(|error| SendError::new(error.to_string()))?;
            let signatures = HeaderValue::try_from(signatures).expect("base64 and spaces");
            headers.insert(signature::SIGNATURE_HEADER, signatures);
            return Ok(secrets
                .split_whitespace()
                .flat_map(signing_secret)
                .collect());
        }
        Ok(Vec::new())
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

/// The value of a header, and its words: a receiver may repeat the token without its scheme, or decoded.
fn secret_words(value: &str) -> Vec<String> {
    let words = value
        .split_whitespace()
        .filter(|word| word.len() < value.len());
    let mut secrets: Vec<_> = std::iter::once(value)
        .chain(words)
        .map(ToOwned::to_owned)
        .collect();
    if let Some(("Basic" | "basic", credentials)) = value.split_once(' ')
        && let Ok(decoded) = STANDARD.decode(credentials.trim())
        && let Ok(decoded) = String::from_utf8(decoded)
    {
        secrets.extend(
            decoded
                .split_once(':')
                .into_iter()
                .flat_map(|(user, password)| [user, password])
                .map(ToOwned::to_owned),
        );
        secrets.push(decoded);
    }
    secrets.retain(|text| text.len() >= HIDDEN_CHARS);
    secrets
}

/// A signing secret with and without its prefix, and the bytes that it stands for where these are a text.
fn signing_secret(secret: &str) -> Vec<String> {
    let bare = secret.strip_prefix(SIGNING_PREFIX).unwrap_or(secret);
    let bytes = STANDARD
        .decode(bare)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    [secret, bare]
        .map(ToOwned::to_owned)
        .into_iter()
        .chain(bytes)
        .filter(|text| text.len() >= MIN_CREDENTIAL)
        .collect()
}

/// The parts of an address that only its owner knows: a chat service's address is the key to it. The user name is one:
/// many services have their token there.
fn secret_parts(url: &Url) -> Vec<String> {
    let host = url
        .host_str()
        .unwrap_or_default()
        .split('.')
        .filter(|label| label.len() >= MIN_HOST_LABEL);
    let path = url.path().split('/');
    let query = url.query().unwrap_or_default().split(['&', '=']);
    let long = path
        .chain(query)
        .chain(url.fragment())
        .filter(|part| part.len() >= HIDDEN_CHARS);
    let credentials = [Some(url.username()), url.password()].into_iter().flatten();
    let credentials = credentials.filter(|part| part.len() >= MIN_CREDENTIAL);
    let whole = std::iter::once(url.path()).filter(|path| path.len() > 1);
    let mut parts: Vec<_> = whole
        .chain(long)
        .chain(host)
        .chain(credentials)
        .map(ToOwned::to_owned)
        .collect();
    if let Some(password) = url.password() {
        parts.push(format!("{}:{password}", url.username()));
    }
    parts
}

/// Why no answer came, with the causes, without the URL: for chat services it is the secret.
fn transport(error: reqwest::Error) -> String {
    let what = failure(&error).to_owned();
    error_chain_after(what, &error.without_url())
}
