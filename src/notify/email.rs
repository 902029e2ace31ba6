//! E-mail over SMTP: one connection and one message for each attempt.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::{Duration, SystemTime};

use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::response::{Category, Detail, Severity as ReplySeverity};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message as Mail, Tokio1Executor};
use reqwest::Url;
use secrecy::ExposeSecret as _;

use super::{BuildSinkError, Message, Preview, SendError, Sent, summary};
use crate::blocking::Lane;
use crate::config::{EmailSettings, EmailTls};
use crate::domain::{EventData, EventType};
use crate::links::with_page;
use crate::redact::Redactor;
use crate::text::{error_chain, one_line};

/// Name lookups and secret files read at once, of each sink.
const LOOKUPS: usize = 4;

/// Characters of a server's reply that are shown.
const REPLY_CHARS: usize = 200;

/// An e-mail sink.
pub struct Email {
    settings: EmailSettings,
    /// Where messages link to the views of runs.
    page: Option<Url>,
    from: Mailbox,
    to: Vec<Mailbox>,
    tls: TlsParameters,
    lane: Lane,
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Email").field(&self.settings).finish()
    }
}

/// States that no person wrote the message, so that no program answers it (RFC 3834, section 5).
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

/// The event, by which mail programs can sort.
#[derive(Clone)]
struct EventHeader(EventType);

impl Header for EventHeader {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("X-Runwatch-Event")
    }

    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(EventType::from_word(text).ok_or("no event")?))
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), self.0.as_str().to_owned())
    }
}

impl Email {
    /// Checks the addresses and sets TLS up. Sends nothing yet.
    pub(super) fn new(settings: &EmailSettings, page: Option<Url>) -> Result<Self, BuildSinkError> {
        let mailbox = |text: &String| -> Result<Mailbox, BuildSinkError> {
            text.parse().map_err(|error| {
                BuildSinkError::Email(format!("{text:?} is not an e-mail address ({error})"))
            })
        };
        let tls = TlsParameters::new_rustls(settings.host.clone()).map_err(|error| {
            BuildSinkError::Email(format!("cannot set up TLS: {}", error_chain(&error)))
        })?;
        Ok(Self {
            from: mailbox(&settings.from)?,
            to: settings.to.iter().map(mailbox).collect::<Result<_, _>>()?,
            settings: settings.clone(),
            page,
            tls,
            lane: Lane::new("email", LOOKUPS),
        })
    }

    pub(super) async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        match tokio::time::timeout(self.settings.timeout, self.deliver(message)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(SendError::new(format!(
                "the server did not take the message within {:?}",
                self.settings.timeout
            ))),
        }
    }

    async fn deliver(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        let event = with_page(message.event, self.page.as_ref());
        let mail = self.mail(&Message {
            event: &event,
            ..*message
        })?;
        let credentials = self.credentials().await?;
        let secrets = credentials.iter().map(|(_user, password)| password.clone());
        let redactor = Redactor::new(secrets.collect::<Vec<_>>());
        let addresses = self.addresses().await?;
        let mut failure = None;
        for address in addresses {
            let transport = self.transport(address, credentials.clone());
            match transport.send(mail.clone()).await {
                Ok(reply) => {
                    let text: String = reply.message().collect::<Vec<_>>().join(" ");
                    let detail = format!("{} {}", reply.code(), redactor.text(&text));
                    return Ok(Sent {
                        detail: one_line(&detail, REPLY_CHARS),
                    });
                }
                Err(error) => {
                    let has_answered = error.status().is_some() || error.is_tls();
                    failure = Some(failed(&error, &redactor));
                    if has_answered {
                        break;
                    }
                }
            }
        }
        let host = &self.settings.host;
        Err(failure.unwrap_or_else(|| SendError::new(format!("{host} has no address"))))
    }

    /// The message of an event. Its ID is that of the delivery, so that mail programs and people know a repeated one.
    fn mail(&self, message: &Message<'_>) -> Result<Mail, SendError> {
        let now = u64::try_from(message.now.as_millisecond()).unwrap_or_default();
        let domain = self.from.email.domain();
        let builder = Mail::builder()
            .message_id(Some(format!("<{}@{domain}>", message.delivery)))
            .date(SystemTime::UNIX_EPOCH + Duration::from_millis(now))
            .from(self.from.clone())
            .subject(subject(message))
            .header(AutoSubmitted)
            .header(EventHeader(message.event.event_type))
            .header(ContentType::TEXT_PLAIN);
        let to = |builder: MessageBuilder, mailbox: &Mailbox| builder.to(mailbox.clone());
        self.to
            .iter()
            .fold(builder, to)
            .body(text(message))
            .map_err(|error| SendError::new(format!("cannot make the message: {error}")))
    }

    async fn credentials(&self) -> Result<Option<(String, String)>, SendError> {
        let Some((user, password)) = &self.settings.credentials else {
            return Ok(None);
        };
        let password = password.read_on(&self.lane).await.map_err(|error| {
            SendError::new(format!("cannot read the password: {}", error_chain(&error)))
        })?;
        Ok(Some((user.clone(), password.expose_secret().to_owned())))
    }

    /// The addresses of the server. The lookup is made on a thread of this sink, because it may hang.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, SendError> {
        let (host, port) = (self.settings.host.clone(), self.settings.port);
        let lookup = move || {
            (host.as_str(), port)
                .to_socket_addrs()
                .map(Iterator::collect)
        };
        let host = &self.settings.host;
        let cannot = |why: &dyn std::fmt::Display| {
            SendError::new(format!("cannot find the address of {host}: {why}"))
        };
        let found = self.lane.run(self.settings.timeout, lookup).await;
        found
            .map_err(|stuck| cannot(&stuck))?
            .map_err(|error: std::io::Error| cannot(&error))
    }

    fn transport(
        &self,
        address: SocketAddr,
        credentials: Option<(String, String)>,
    ) -> AsyncSmtpTransport<Tokio1Executor> {
        let tls = match self.settings.tls {
            EmailTls::StartTls => Tls::Required(self.tls.clone()),
            EmailTls::Tls => Tls::Wrapper(self.tls.clone()),
            EmailTls::None => Tls::None,
        };
        // "Dangerous" is the default of no TLS, which is replaced here.
        let builder =
            AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(address.ip().to_string())
                .port(address.port())
                .tls(tls)
                .timeout(Some(self.settings.timeout));
        match credentials {
            Some((user, password)) => builder.credentials(Credentials::new(user, password)),
            None => builder,
        }
        .build()
    }

    /// The message that would be sent.
    pub(super) fn preview(&self, message: &Message<'_>) -> Result<Preview, SendError> {
        let formatted = self.mail(message)?.formatted();
        let formatted = String::from_utf8_lossy(&formatted).replace("\r\n", "\n");
        let (head, _encoded) = formatted.split_once("\n\n").unwrap_or((&formatted, ""));
        let unfolded = head.replace("\n ", " ").replace("\n\t", " ");
        let fields = unfolded.lines().filter_map(|line| line.split_once(": "));
        let tls = match self.settings.tls {
            EmailTls::StartTls => "STARTTLS",
            EmailTls::Tls => "TLS",
            EmailTls::None => "no encryption",
        };
        Ok(Preview {
            target: format!(
                "a message to {}:{} with {tls}",
                self.settings.host, self.settings.port
            ),
            fields: fields
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: text(message),
        })
    }
}

/// The title. What looks like an encoded word (RFC 2047) would be read as one.
fn subject(message: &Message<'_>) -> String {
    summary::of(message.event).title.replace("=?", "= ?")
}

/// The text of a message: what happened, why, and where to look.
fn text(message: &Message<'_>) -> String {
    let summary = summary::of(message.event);
    let mut text = format!("{}\n", summary.title);
    for line in &summary.lines {
        text += &format!("\n    {line}");
    }
    if !summary.lines.is_empty() {
        text.push('\n');
    }
    text.push('\n');
    if let Some(url) = &summary.url {
        text += &format!("Open:     {url}\n");
    }
    text += &format!("Event:    {}\n", message.event.event_type);
    if let EventData::Run(data) = &message.event.data {
        text += &format!("Run:      {}\n", data.run.id);
        let labels = data.watch.labels.iter();
        let labels: Vec<_> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if !labels.is_empty() {
            text += &format!("Labels:   {}\n", one_line(&labels.join(" "), REPLY_CHARS));
        }
    }
    text += &format!("Time:     {:.3}\n", message.event.timestamp);
    text += &format!("Delivery: {}\n", message.delivery);
    text
}

/// What a failed attempt means. A reply of 5xx is final for the message (RFC 5321, section 4.2.1), but one about
/// authentication (RFC 4954, section 6) is about the configuration, and is tried again.
fn failed(error: &SmtpError, redactor: &Redactor) -> SendError {
    let text = redactor.text(&error_chain(error)).into_owned();
    let is_of_authentication = error.status().is_some_and(|code| {
        code.severity == ReplySeverity::PermanentNegativeCompletion
            && code.category == Category::Unspecified3
            && matches!(
                code.detail,
                Detail::Zero | Detail::Four | Detail::Five | Detail::Eight
            )
    });
    SendError {
        rejected: error.is_permanent() && !is_of_authentication,
        ..SendError::new(text)
    }
}
