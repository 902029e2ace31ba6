//! The validated configuration: plain data that nothing re-checks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;
use crate::run::{EventFilter, Labels, RunId, SinkName};

/// Everything that can be configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[api]`
    pub api: ApiSettings,
    /// `[watch]`
    pub watch: WatchSettings,
    /// `[store]`
    pub store: StoreSettings,
    /// `[control]`
    pub control: ControlSettings,
    /// `[sinks.NAME]`, by name.
    pub sinks: BTreeMap<SinkName, SinkSettings>,
    /// `[[watches]]`
    pub watches: Vec<StaticWatch>,
}

/// `[api]`: where and how runs are asked for.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Base URL without a trailing slash; `/v1/runs/{id}` is appended.
    pub base_url: String,
    /// Where the API key comes from; `None` when none is configured anywhere.
    pub key: Option<Secret>,
    /// Most requests in any 60 seconds, 1 to 1,000,000.
    pub requests_per_minute: u32,
    /// Limit for making a connection.
    pub connect_timeout: Duration,
    /// Limit for a whole request, body included.
    pub request_timeout: Duration,
    /// Most bytes of a body that are read, after decompression.
    pub max_response_bytes: u64,
    /// Template of a link that people can open, with `{run_id}`.
    pub run_url: Option<String>,
}

/// `[watch]`: when runs are asked for and when watching ends.
#[derive(Debug, Clone)]
pub struct WatchSettings {
    /// First interval, 50 ms or more.
    pub initial_interval: Duration,
    /// Growth per poll, 1 or more.
    pub multiplier: f64,
    /// Longest interval, at least `initial_interval`.
    pub max_interval: Duration,
    /// Largest part of an interval that a poll may come early, 0 to less than 1.
    pub jitter: f64,
    /// How long a watch lasts at most.
    pub deadline: Duration,
    /// How long every answer must be 404 before the run counts as not found.
    pub not_found_grace: Duration,
    /// After how long a run still going is overdue.
    pub overdue_after: Option<Duration>,
    /// Most requests in flight at once, 1 or more.
    pub max_in_flight: usize,
}

/// `[store]`: where the daemon keeps its state.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The database file; `None` when no directory for it could be found.
    pub path: Option<PathBuf>,
    /// How long finished watches and their deliveries are kept.
    pub retention: Duration,
}

/// `[control]`: where the daemon listens.
#[derive(Debug, Clone)]
pub struct ControlSettings {
    /// The Unix socket; `None` when no directory for it could be found.
    pub socket: Option<PathBuf>,
    /// TCP address; off unless set.
    pub listen: Option<std::net::SocketAddr>,
    /// File with the bearer token for `listen`.
    pub token: Option<Secret>,
}

/// `[sinks.NAME]`
#[derive(Debug, Clone)]
pub struct SinkSettings {
    /// What it does.
    pub kind: SinkKind,
    /// The events it gets.
    pub events: EventFilter,
    /// It is told only of watches that carry all of these.
    pub labels: Labels,
    /// Waits before the second and each further attempt.
    pub retry_schedule: Vec<Duration>,
}

/// The kinds of sink.
#[derive(Debug, Clone)]
pub enum SinkKind {
    /// Desktop notifications.
    Desktop,
    /// HTTP POST.
    Webhook(Box<WebhookSettings>),
    /// A log record, or lines appended to `path`.
    Log {
        /// File to append to.
        path: Option<PathBuf>,
    },
    /// A program.
    Command {
        /// Program and arguments; never empty, never given to a shell.
        argv: Vec<String>,
        /// Limit for one run of it.
        timeout: Duration,
    },
}

/// A webhook sink.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// Where to; the URL itself may be the secret (chat services), so it is one.
    pub url: Secret,
    /// Signing secrets, `whsec_...`, one a line.
    pub secret: Option<Secret>,
    /// What is sent.
    pub format: WebhookFormat,
    /// Further headers.
    pub headers: BTreeMap<String, Secret>,
}

/// What a webhook sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookFormat {
    /// The event as JSON, as the Standard Webhooks specification asks.
    Standard,
    /// Slack incoming webhook.
    Slack,
    /// Discord webhook.
    Discord,
    /// Microsoft Teams workflow webhook.
    Teams,
    /// ntfy topic.
    Ntfy,
    /// The user's own template.
    Template {
        /// File with the template.
        file: PathBuf,
        /// `Content-Type` of what it makes.
        content_type: String,
    },
}

/// `[[watches]]`: a run watched from the start of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticWatch {
    /// The run.
    pub run_id: RunId,
    /// A name for people.
    pub name: Option<String>,
    /// Labels.
    pub labels: Labels,
}
