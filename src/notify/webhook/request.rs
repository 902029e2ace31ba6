//! The request of one attempt: address, headers and body, and what of them must not show.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use secrecy::ExposeSecret as _;

use super::secrets::{secret_parts, secret_words, signing_secret};
use crate::blocking::Lane;
use crate::config::{
    DELIVERY_ID, Secret, WebhookFormat, WebhookMethod, WebhookSettings, WebhookSignature,
};
use crate::domain::{TRACE_PARENT, TRACE_STATE, TraceContext};
use crate::links::with_page;
use crate::notify::body::{MAX_BODY_BYTES, MessageBody};
use crate::notify::payload::json_within;
use crate::notify::template::{MessageTemplate, TemplateError, TemplateValues};
use crate::notify::{Message, SendError, apprise, chat, cloudevents, signature};
use crate::text::error_chain;

/// Secret files read at once, of each sink.
const SECRET_READS: usize = 4;

/// A request that can be sent.
pub(super) struct WebhookRequest {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Those with secret values, and the signatures, are marked as sensitive.
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    /// The values of the template, which its body has.
    pub(super) values: Vec<String>,
    /// What must not show in texts about the request.
    pub(super) secrets: Vec<String>,
}

/// Makes the requests of one sink.
#[derive(Debug)]
pub(super) struct RequestMaker {
    settings: WebhookSettings,
    template: Option<MessageTemplate>,
    /// Where messages for people link to the views of runs.
    page: Option<Url>,
    /// Reads secrets that are in files.
    secrets: Lane,
}

impl RequestMaker {
    /// Reads the template, if the format has one.
    pub(super) fn new(
        settings: &WebhookSettings,
        page: Option<Url>,
    ) -> Result<Self, TemplateError> {
        let template = match &settings.format {
            WebhookFormat::Template { file, content_type } => {
                let values = settings.values.keys();
                Some(MessageTemplate::load(file, content_type, values)?)
            }
            _ => None,
        };
        Ok(Self {
            settings: settings.clone(),
            template,
            page,
            secrets: Lane::new("secrets", SECRET_READS),
        })
    }

    /// What the sink sends.
    pub(super) fn format(&self) -> &WebhookFormat {
        &self.settings.format
    }

    /// Makes the request of an attempt. Reads the secrets anew.
    pub(super) async fn make(&self, message: &Message<'_>) -> Result<WebhookRequest, SendError> {
        let url = self.read(&self.settings.url, "the address").await?;
        let url = url.replace(DELIVERY_ID, message.delivery.as_str());
        let url = Url::parse(&url).map_err(|_secret| SendError::new("the address is not a URL"))?;
        let mut secrets = secret_parts(&url);
        let mut values = TemplateValues::new();
        for (name, value) in &self.settings.values {
            let value = self.read(value, &format!("the value {name}")).await?;
            secrets.extend(secret_words(&value));
            values.insert(name.clone(), value);
        }
        let (content_type, body, mut headers) = self.body(message, &values)?;
        headers.insert(CONTENT_TYPE, content_type);
        if self.settings.cloudevents {
            headers.extend(cloudevents::headers(message));
        }
        if let Some(trace) = message.trace {
            headers.extend(trace_headers(trace));
        }
        secrets.extend(self.sign(message, &body, &mut headers).await?);
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
        Ok(WebhookRequest {
            method: match self.settings.method {
                WebhookMethod::Post => Method::POST,
                WebhookMethod::Put => Method::PUT,
            },
            url,
            headers,
            body,
            values: values.into_values().collect(),
            secrets,
        })
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

    fn body(
        &self,
        message: &Message<'_>,
        values: &TemplateValues,
    ) -> Result<(HeaderValue, String, HeaderMap), SendError> {
        let event = with_page(message.event, self.page.as_ref());
        let body = match &self.settings.format {
            WebhookFormat::Standard => MessageBody {
                content_type: "application/json",
                text: json_within(message.event, MAX_BODY_BYTES),
                headers: HeaderMap::new(),
            },
            WebhookFormat::Slack => chat::slack(&event),
            WebhookFormat::Discord => chat::discord(&event),
            WebhookFormat::Teams => chat::teams(&event),
            WebhookFormat::Ntfy => chat::ntfy(&event),
            WebhookFormat::Apprise => apprise::body(&event),
            WebhookFormat::Template { content_type, .. } => {
                let template = self.template.as_ref().expect("built with the format");
                let linked = Message {
                    event: &event,
                    ..*message
                };
                let text = template
                    .render(&linked, content_type, values)
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
            let mut signatures = HeaderValue::try_from(signatures).expect("base64 and spaces");
            signatures.set_sensitive(true);
            headers.insert(signature::SIGNATURE_HEADER, signatures);
            if self.settings.signature == WebhookSignature::Github {
                let signature = signature::sign_as_github(&secrets, body.as_bytes())
                    .map_err(|error| SendError::new(error.to_string()))?;
                let mut signature = HeaderValue::try_from(signature).expect("letters and digits");
                signature.set_sensitive(true);
                headers.insert(signature::GITHUB_HEADER, signature);
            }
            return Ok(secrets
                .split_whitespace()
                .flat_map(signing_secret)
                .collect());
        }
        Ok(Vec::new())
    }
}

/// The headers that make the receiver's part one of the trace of the watch (W3C Trace Context level 2).
fn trace_headers(trace: &TraceContext) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let headers = [
        (TRACE_PARENT, Some(trace.parent())),
        (TRACE_STATE, trace.state()),
    ];
    headers.into_iter().filter_map(|(name, value)| {
        let value = HeaderValue::try_from(value?).expect("visible ASCII characters and spaces");
        Some((HeaderName::from_static(name), value))
    })
}
