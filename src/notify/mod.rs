//! Notification: couriers take deliveries out of the store and hand them to sinks.
//!
//! A sink makes one attempt, bounded in time, and returns its result. It does not know retries,
//! schedules or other sinks; those are the courier's ([`Courier`]).

mod apprise;
mod body;
mod chat;
mod cloudevents;
mod command;
mod courier;
#[cfg(feature = "desktop")]
mod desktop;
#[cfg(feature = "email")]
mod email;
#[cfg(test)]
mod example_templates;
#[cfg(fuzzing)]
pub mod fuzzing;
mod heartbeat;
mod log;
pub mod payload;
mod preview;
mod program;
pub mod signature;
pub mod summary;
mod template;
mod trouble;
mod webhook;

use std::time::Duration;

use jiff::Timestamp;

pub use self::courier::Courier;
pub use self::heartbeat::Heartbeat;
pub use self::preview::Preview;
pub use self::trouble::SinkTrouble;
use crate::config::{SinkKind, SinkSettings};
use crate::domain::{DeliveryId, Event, SinkName, TraceContext};
use crate::text::one_line;

/// Longest detail of an attempt, in characters.
const MAX_DETAIL_CHARS: usize = 300;

/// What a sink sends in one attempt.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The ID of the delivery, the same on every attempt.
    pub delivery: &'a DeliveryId,
    /// The sink's name.
    pub sink: &'a SinkName,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// What happened.
    pub event: &'a Event,
    /// The trace of the watch that it is about.
    pub trace: Option<&'a TraceContext>,
    /// When this attempt is made.
    pub now: Timestamp,
}

/// An attempt that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The answer of the receiver; one line, no secrets.
    pub detail: String,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct SendError {
    /// What went wrong; one line, no secrets.
    pub detail: String,
    /// The requested pause.
    pub retry_after: Option<Duration>,
    /// The receiver wants no more messages, ever.
    pub gone: bool,
    /// The receiver will never accept this message, so that no other attempt is made.
    pub rejected: bool,
}

impl SendError {
    /// Returns a failure that may pass with another attempt. The text is made harmless and short.
    fn new(detail: impl AsRef<str>) -> Self {
        Self {
            detail: one_line(detail.as_ref(), MAX_DETAIL_CHARS),
            retry_after: None,
            gone: false,
            rejected: false,
        }
    }
}

/// A sink that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildSinkError {
    /// TLS cannot be set up.
    #[error("cannot set up HTTPS (are certificates of authorities installed?)")]
    Http(#[source] reqwest::Error),
    /// The template cannot be used.
    #[error(transparent)]
    Template(#[from] template::TemplateError),
    /// An address of an e-mail sink cannot be used, or TLS cannot be set up.
    #[error("{0}")]
    Email(String),
    /// The feature `email` is off.
    #[error("this build cannot send e-mail")]
    NoEmail,
    /// The feature `desktop` is off.
    #[error("this build has no desktop notifications (nor has the container image)")]
    NoDesktop,
}

/// Where messages go. Couriers are generic over it, so that simulations can stand in for [`Sink`].
pub trait Deliver: Send + Sync + 'static {
    /// Makes one attempt, bounded in time. Dropping the future ends what it started.
    ///
    /// # Errors
    /// When the message did not arrive, as far as can be known.
    fn send(&self, message: &Message<'_>) -> impl Future<Output = Result<Sent, SendError>> + Send;

    /// Size of an input or output, in bytes, above which its messages leave it out.
    fn most_bytes(&self) -> usize {
        usize::MAX
    }
}

/// A sink of any kind.
#[derive(Debug)]
pub enum Sink {
    /// Desktop notifications.
    #[cfg(feature = "desktop")]
    Desktop(desktop::Desktop),
    /// HTTP POST.
    Webhook(Box<webhook::Webhook>),
    /// E-mail.
    #[cfg(feature = "email")]
    Email(Box<email::Email>),
    /// A log.
    Log(log::Log),
    /// A program.
    Command(command::CommandSink),
}

impl Sink {
    /// Sets a sink up. Sends nothing yet.
    ///
    /// # Errors
    /// When a template cannot be used, TLS cannot be set up, or the build has no desktop notifications.
    pub fn build(settings: &SinkSettings) -> Result<Self, BuildSinkError> {
        Ok(match &settings.kind {
            #[cfg(not(feature = "desktop"))]
            SinkKind::Desktop => return Err(BuildSinkError::NoDesktop),
            #[cfg(feature = "desktop")]
            SinkKind::Desktop => Self::Desktop(desktop::Desktop::new(settings.page.clone())),
            SinkKind::Webhook(webhook) => Self::Webhook(Box::new(webhook::Webhook::build(
                webhook,
                settings.page.clone(),
            )?)),
            #[cfg(not(feature = "email"))]
            SinkKind::Email(_) => return Err(BuildSinkError::NoEmail),
            #[cfg(feature = "email")]
            SinkKind::Email(email) => {
                Self::Email(Box::new(email::Email::new(email, settings.page.clone())?))
            }
            SinkKind::Log { path } => Self::Log(log::Log::new(path.clone())),
            SinkKind::Command { argv, timeout } => {
                Self::Command(command::CommandSink::new(argv.clone(), *timeout))
            }
        })
    }
}

impl Sink {
    /// Returns what an attempt would send, without sending it. Secrets are left out.
    ///
    /// # Errors
    /// When the message cannot be made: a secret cannot be read, or a template cannot be filled in.
    pub async fn preview(&self, message: &Message<'_>) -> Result<Preview, SendError> {
        match self {
            #[cfg(feature = "desktop")]
            Self::Desktop(sink) => Ok(sink.preview(message)),
            Self::Webhook(sink) => sink.preview(message).await,
            #[cfg(feature = "email")]
            Self::Email(sink) => sink.preview(message),
            Self::Log(sink) => Ok(sink.preview(message)),
            Self::Command(sink) => Ok(sink.preview(message)),
        }
    }
}

impl Deliver for Sink {
    async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        match self {
            #[cfg(feature = "desktop")]
            Self::Desktop(sink) => sink.send(message).await,
            Self::Webhook(sink) => sink.send(message).await,
            #[cfg(feature = "email")]
            Self::Email(sink) => sink.send(message).await,
            Self::Log(sink) => sink.send(message).await,
            Self::Command(sink) => sink.send(message).await,
        }
    }

    fn most_bytes(&self) -> usize {
        match self {
            #[cfg(feature = "desktop")]
            Self::Desktop(_) => body::MAX_BODY_BYTES,
            Self::Webhook(_) => body::MAX_BODY_BYTES,
            #[cfg(feature = "email")]
            Self::Email(_) => body::MAX_BODY_BYTES,
            Self::Log(_) | Self::Command(_) => usize::MAX,
        }
    }
}
