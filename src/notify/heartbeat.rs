//! Heartbeats: requests to a dead-man's switch, which raises an alarm when they cease.

use std::time::Duration;

use reqwest::{Client, Url};
use secrecy::ExposeSecret as _;

use super::webhook::{secret_parts, transport};
use super::{BuildSinkError, SendError};
use crate::blocking::Lane;
use crate::config::{MIN_BEAT_INTERVAL, Secret};
use crate::http::{NO_ANSWER, Names, client, proxy_secrets};
use crate::redact::Redactor;
use crate::text::error_chain;

/// Limit of one heartbeat, from reading its address to the head of the answer.
const LIMIT: Duration = MIN_BEAT_INTERVAL;

/// Sends heartbeats.
#[derive(Debug)]
pub struct Heartbeat {
    http: Client,
    /// Reads the address, where that is in a file.
    files: Lane,
}

impl Heartbeat {
    /// Builds the client, which uses proxies and authorities as those of webhooks do.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn build() -> Result<Self, BuildSinkError> {
        // A redirect would lead to an address that is not configured: none is followed. Connections are not kept
        // alive: they would be idle for longer than servers keep them.
        let http = client()
            .dns_resolver(Names::new(1))
            .timeout(LIMIT)
            .pool_max_idle_per_host(0)
            .build()
            .map_err(BuildSinkError::Http)?;
        Ok(Self {
            http,
            files: Lane::new("secrets", 1),
        })
    }

    /// Sends one heartbeat, a GET request, to the address, which is read anew. Returns the status of the answer, whose
    /// body is not read. Ends within 10 s. Cancel-safe.
    ///
    /// # Errors
    /// When the address cannot be read, or no answer of success came; the text has no part of the address.
    pub async fn send(&self, url: &Secret) -> Result<String, SendError> {
        let sent = tokio::time::timeout(LIMIT, self.request(url)).await;
        sent.unwrap_or_else(|_elapsed| Err(SendError::new(NO_ANSWER)))
    }

    async fn request(&self, url: &Secret) -> Result<String, SendError> {
        let url = url.read_on(&self.files).await.map_err(|error| {
            SendError::new(format!("cannot read the address: {}", error_chain(&error)))
        })?;
        let url = Url::parse(url.expose_secret())
            .map_err(|_secret| SendError::new("the address is not a URL"))?;
        let redactor = Redactor::new(secret_parts(&url).into_iter().chain(proxy_secrets()));
        // Healthchecks takes HEAD, GET and POST (healthchecks.io/docs/http_api/); GET is what all such services take.
        let sent = self.http.get(url).send().await;
        let response = sent.map_err(|error| SendError::new(redactor.text(&transport(error))))?;
        let status = response.status();
        if status.is_success() {
            Ok(status.to_string())
        } else if status.is_redirection() {
            let detail = format!("{status} (redirects are not followed)");
            Err(SendError::new(detail))
        } else {
            Err(SendError::new(status.to_string()))
        }
    }
}
