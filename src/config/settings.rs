//! The validated configuration: plain data that nothing re-checks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use reqwest::Url;

use super::{DiscoverySettings, HeartbeatSettings, Providers, Secret, StoreSettings};
use crate::domain::{EventFilter, Labels, OverdueAfter, QuietHours, RunRef, SinkName};

/// Everything that can be configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[api]`, the account at Crewship; the same as `[providers.crewship]`.
    pub api: ApiSettings,
    /// `[providers.NAME]` and `default_provider`.
    pub providers: Providers,
    /// `[watch]`
    pub watch: WatchSettings,
    /// `[store]`
    pub store: StoreSettings,
    /// `[control]`
    pub control: ControlSettings,
    /// `[log]`
    pub log: LogSettings,
    /// `[heartbeat]`, where an address is configured.
    pub heartbeat: Option<HeartbeatSettings>,
    /// `[sinks.NAME]`, by name.
    pub sinks: BTreeMap<SinkName, SinkSettings>,
    /// `[[watches]]`
    pub watches: Vec<StaticWatch>,
    /// `[[discover]]`
    pub discoveries: Vec<DiscoverySettings>,
}

/// `[api]`: where and how runs are polled.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Base URL without a trailing slash; `/v1/runs/{id}` is appended. http or https, without user,
    /// query and fragment. Default: `https://api.crewship.dev`.
    pub base_url: String,
    /// Where the API key comes from; `None` when none is configured anywhere.
    pub key: Option<Secret>,
    /// Most requests in any 60 seconds, 1 to 1,000,000. Default: 60.
    pub requests_per_minute: u32,
    /// Limit for making a connection, 10 ms to 10 min. Default: 5 s.
    pub connect_timeout: Duration,
    /// Limit for a whole request, body included, 10 ms to 10 min. Default: 15 s.
    pub request_timeout: Duration,
    /// Most bytes of a body that are read, after decompression, 1 KiB to 1 GiB. Default: 8 MiB.
    pub max_response_bytes: u64,
    /// Template of an http or https link that people can open, with `{run_id}`. Default: none.
    pub run_url: Option<String>,
}

/// `[watch]`: when runs are polled and when watching ends.
#[derive(Debug, Clone)]
pub struct WatchSettings {
    /// First interval, 50 ms to 1 day. Default: 1 s.
    pub initial_interval: Duration,
    /// Growth per poll, 1 to 100. Default: 1.2.
    pub multiplier: f64,
    /// Longest interval, `initial_interval` to 1 day. Default: 30 s.
    pub max_interval: Duration,
    /// Largest part of an interval that a poll may come early, 0 to less than 1. Default: 0.1.
    pub jitter: f64,
    /// How long a watch lasts at most, 1 ms to 3650 days. Default: 24 h.
    pub deadline: Duration,
    /// How long `wait` tries to reach an API that it never reached, 1 ms to 1 day. Default: 30 s.
    pub connect_grace: Duration,
    /// How long every answer must be 404 before the run counts as not found, 0 to 1 day. Default: 2 min.
    pub not_found_grace: Duration,
    /// When a run still going is overdue; a time since its watch was added is 1 ms to 3650 days. Default: never.
    pub overdue_after: OverdueAfter,
    /// Most requests in flight at once, 1 to 65,536. Default: 64.
    pub max_in_flight: usize,
    /// Whether the event streams of runs are followed. Default: auto.
    pub events: EventsMode,
    /// Most event streams followed at once, 1 to 1,024. Default: 16.
    pub max_streams: usize,
}

/// Whether the event streams of runs are followed, besides polling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventsMode {
    /// Where the API has them and they help.
    Auto,
    /// Never.
    Off,
}

/// `[control]`: where the daemon listens.
#[derive(Debug, Clone)]
pub struct ControlSettings {
    /// The Unix socket; `None` when no directory for it could be found. Default: `runwatch.sock` in the
    /// first of `$RUNTIME_DIRECTORY`, else in `$XDG_RUNTIME_DIR/runwatch`.
    pub socket: Option<PathBuf>,
    /// TCP address; off unless set.
    pub listen: Option<std::net::SocketAddr>,
    /// The bearer token for `listen`; there always is one unless the address is a loopback one.
    pub token: Option<Secret>,
    /// Where browsers find the page, http or https, with a path that ends in a slash. Default: none.
    pub public_url: Option<Url>,
}

/// `[log]`: what the daemon logs. The flags of the command line win.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// How much. Default: info.
    pub level: LogLevel,
    /// How. Default: text.
    pub format: LogFormat,
}

/// How much is logged: this and all that is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// What may need a look.
    Warn,
    /// What happened.
    Info,
    /// Why it happened.
    Debug,
    /// Everything.
    Trace,
}

/// How log records look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[sinks.NAME]`
#[derive(Debug, Clone)]
pub struct SinkSettings {
    /// What it does.
    pub kind: SinkKind,
    /// The events it gets. Default: the verdicts.
    pub events: EventFilter,
    /// It gets events only of watches that carry all of these. Default: none.
    pub labels: Labels,
    /// Waits before the second and each further attempt, at most 100, each 0 to 30 days; empty is one
    /// attempt. Default: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h.
    pub retry_schedule: Vec<Duration>,
    /// The sink that gets a delivery which was given up; never a sink that leads back here. Default: none.
    pub fallback: Option<SinkName>,
    /// Whether it gets one message for a group in place of the verdicts of its watches. Default: false.
    pub one_per_group: bool,
    /// Whether it gets one summary of what ended while the daemon did not watch. Default: false.
    pub digest: bool,
    /// When it gets nothing but failures. Default: never.
    pub quiet: Option<QuietHours>,
    /// Where messages for people link to the views of runs: in the daemon `control.public_url`. Default: none.
    pub page: Option<Url>,
}

/// The kinds of sink.
#[derive(Debug, Clone)]
pub enum SinkKind {
    /// Desktop notifications.
    Desktop,
    /// HTTP POST.
    Webhook(Box<WebhookSettings>),
    /// E-mail over SMTP.
    Email(Box<EmailSettings>),
    /// A log record, or lines appended to `path`.
    Log {
        /// File to append to. Default: none, so a log record is written.
        path: Option<PathBuf>,
    },
    /// A program.
    Command {
        /// Program and arguments; never empty, never given to a shell.
        argv: Vec<String>,
        /// Limit for one run of it, 10 ms to 1 day. Default: 30 s.
        timeout: Duration,
    },
}

impl SinkKind {
    /// The word in the configuration and in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Desktop => "desktop",
            Self::Webhook(_) => "webhook",
            Self::Email(_) => "email",
            Self::Log { .. } => "log",
            Self::Command { .. } => "command",
        }
    }
}

/// An e-mail sink.
#[derive(Debug, Clone)]
pub struct EmailSettings {
    /// The SMTP server.
    pub host: String,
    /// Its port. Default: 587 for [`EmailTls::StartTls`], 465 for [`EmailTls::Tls`], 25 for [`EmailTls::None`].
    pub port: u16,
    /// How the connection is encrypted. Default: [`EmailTls::StartTls`].
    pub tls: EmailTls,
    /// The user name and the password, where the server requires them. Never over an unencrypted connection to another
    /// machine.
    pub credentials: Option<(String, Secret)>,
    /// The sender, an address or `Name <address>`.
    pub from: String,
    /// The recipients, 1 to 50, each an address or `Name <address>`.
    pub to: Vec<String>,
    /// Limit of one attempt, 10 ms to 10 min. Default: 30 s.
    pub timeout: Duration,
}

/// How the connection to an SMTP server is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmailTls {
    /// By the command `STARTTLS` (RFC 3207); without it nothing is sent.
    StartTls,
    /// From its beginning (RFC 8314, "implicit TLS").
    Tls,
    /// Not at all.
    None,
}

/// A webhook sink.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// Where to, http or https; the URL itself may be the secret (chat services), so it is one. [`DELIVERY_ID`] in it
    /// stands for the ID of the delivery.
    pub url: Secret,
    /// The method of the request. Default: [`WebhookMethod::Post`].
    pub method: WebhookMethod,
    /// Signing secrets, `whsec_` and base64, one a line. Default: none, so nothing is signed.
    pub secret: Option<Secret>,
    /// The signatures. Default: [`WebhookSignature::Standard`].
    pub signature: WebhookSignature,
    /// Whether the headers of CloudEvents are sent. Default: false.
    pub cloudevents: bool,
    /// What is sent. Default: [`WebhookFormat::Standard`].
    pub format: WebhookFormat,
    /// Further headers by name in lower case; none that belongs to the request or the signature.
    pub headers: BTreeMap<String, Secret>,
    /// What a template sees as `values`: keys, channels. Empty for other formats.
    pub values: BTreeMap<String, Secret>,
}

/// What stands for the ID of the delivery in the URL of a webhook.
pub const DELIVERY_ID: &str = "{delivery_id}";

impl WebhookSettings {
    /// A webhook with this address and the defaults.
    pub fn new(url: Secret) -> Self {
        Self {
            url,
            method: WebhookMethod::Post,
            secret: None,
            signature: WebhookSignature::Standard,
            cloudevents: false,
            format: WebhookFormat::Standard,
            headers: BTreeMap::new(),
            values: BTreeMap::new(),
        }
    }
}

/// The method of a webhook's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookMethod {
    /// `POST`
    Post,
    /// `PUT`, for receivers where a URL names the message.
    Put,
}

/// How a webhook with a secret is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookSignature {
    /// As the Standard Webhooks specification requires.
    Standard,
    /// So, and as GitHub signs its webhooks.
    Github,
}

/// What a webhook sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookFormat {
    /// The event as JSON, as the Standard Webhooks specification requires.
    Standard,
    /// Slack incoming webhook.
    Slack,
    /// Discord webhook.
    Discord,
    /// Microsoft Teams workflow webhook.
    Teams,
    /// ntfy topic.
    Ntfy,
    /// apprise-api, which passes it on to other services.
    Apprise,
    /// The user's own template.
    Template {
        /// File with the template; its syntax was right when the configuration was loaded.
        file: PathBuf,
        /// `Content-Type` of what it makes. Default: `application/json`.
        content_type: String,
    },
}

/// `[[watches]]`: a run watched from the start of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticWatch {
    /// The run.
    pub run_id: RunRef,
    /// A name for people, 1 to 200 characters. Default: none.
    pub name: Option<String>,
    /// Labels. Default: none.
    pub labels: Labels,
}
