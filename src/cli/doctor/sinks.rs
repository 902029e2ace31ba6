//! The sinks: address, secret, signature, program, file; with `--send` a test message through each.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use secrecy::ExposeSecret as _;

use super::report::Check;
use super::{Advice, within_limit};
use crate::cli::phrases::cause;
use crate::cli::sinks::send_sample;
use crate::config::{Loaded, SinkKind, SinkSettings, WebhookFormat, WebhookSettings};
use crate::domain::SinkName;
use crate::notify::{Sink, signature};
use crate::style::Sign;
use crate::text::error_chain;

/// How long a test message may take, whatever is configured for a program.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// What is wrong, and what to do.
type SinkFault = (String, String);

/// Checks every sink, all at the same time.
pub(super) async fn checks(loaded: &Loaded, advice: &Advice, send: bool) -> Vec<Check> {
    let sinks = &loaded.settings.sinks;
    if sinks.is_empty() {
        let text = "none configured: `wait` writes to the terminal, the daemon to its log";
        return vec![Check::new("sinks", Sign::Good, text)];
    }
    let each = sinks.iter().map(async |(name, settings)| {
        let check = check(name, settings, send).await;
        advice.about(&[&format!("sinks.{name}.")], check)
    });
    join_all(each).await
}

async fn check(name: &SinkName, settings: &SinkSettings, send: bool) -> Check {
    let label = format!("sink {name}");
    let bad = |(text, fix): SinkFault| Check::new(&label, Sign::Bad, text).with_fix(&fix);
    let own = settings.clone();
    let looked = within_limit(move || {
        let sink = Sink::build(&own).map_err(|error| {
            (
                error_chain(&error),
                "correct it; `runwatch config check` says more".to_owned(),
            )
        })?;
        look(&own).map(|text| (sink, text))
    })
    .await;
    let (sink, text) = match looked {
        Ok(Ok(found)) => found,
        Ok(Err(fault)) => return bad(fault),
        Err(stuck) => {
            let text = format!("it cannot be looked at: {stuck}");
            return bad((text, "does the disk answer?".to_owned()));
        }
    };
    if !send {
        return Check::new(label, Sign::Good, format!("{text} (--send sends a test)"));
    }
    match tokio::time::timeout(SEND_LIMIT, send_sample(name, &sink)).await {
        Ok(Ok(detail)) => Check::new(label, Sign::Good, format!("{text}; test sent: {detail}")),
        Ok(Err(detail)) => bad((
            format!("{text}; the test did not arrive: {}", cause(&detail)),
            remedy(settings).to_owned(),
        )),
        Err(_elapsed) => bad((
            format!(
                "{text}; the test did not end within {} s",
                SEND_LIMIT.as_secs()
            ),
            remedy(settings).to_owned(),
        )),
    }
}

fn remedy(settings: &SinkSettings) -> &'static str {
    match &settings.kind {
        SinkKind::Desktop => "run it in the graphical session",
        SinkKind::Webhook(_) => "check the address and whether its receiver is up",
        SinkKind::Email(_) => "check the server, the user name and the password",
        SinkKind::Log { .. } => "check the path and its permissions",
        SinkKind::Command { .. } => "run the program by hand",
    }
}

/// Looks at all that can be known without sending anything. Returns what the sink is. Blocks on the disk.
fn look(settings: &SinkSettings) -> Result<String, SinkFault> {
    match &settings.kind {
        SinkKind::Desktop => look_at_desktop(),
        SinkKind::Webhook(webhook) => look_at_webhook(webhook),
        SinkKind::Email(email) => Ok(format!("email through {}:{}", email.host, email.port)),
        SinkKind::Log { path: None } => Ok("log, to the log of the daemon".to_owned()),
        SinkKind::Log { path: Some(path) } => look_at_file(path),
        SinkKind::Command { argv, .. } => look_at_program(argv.first().map_or("", String::as_str)),
    }
}

/// A session bus is where a variable says, or at the usual place (`sd_bus_open_user(3)`).
fn look_at_desktop() -> Result<String, SinkFault> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let usual = set("XDG_RUNTIME_DIR").map(|folder| PathBuf::from(folder).join("bus"));
    if set("DBUS_SESSION_BUS_ADDRESS").is_some() || usual.is_some_and(|bus| bus.exists()) {
        Ok("desktop, session bus set".to_owned())
    } else {
        let fix = "run it in the graphical session; DBUS_SESSION_BUS_ADDRESS is not set";
        Err(("desktop, no session bus".to_owned(), fix.to_owned()))
    }
}

fn look_at_webhook(webhook: &WebhookSettings) -> Result<String, SinkFault> {
    let format = match &webhook.format {
        WebhookFormat::Standard => "webhook",
        WebhookFormat::Slack => "slack",
        WebhookFormat::Discord => "discord",
        WebhookFormat::Teams => "teams",
        WebhookFormat::Ntfy => "ntfy",
        WebhookFormat::Apprise => "apprise",
        WebhookFormat::Template { .. } => "webhook with a template",
    };
    let unreadable = |error: &dyn std::error::Error| {
        let fix = "check the path and its permissions".to_owned();
        (error_chain(error), fix)
    };
    let url = webhook.url.read().map_err(|error| unreadable(&error))?;
    let not_a_url = || {
        let fix = "write it as https://host/path".to_owned();
        (format!("{format}, its address is not a URL"), fix)
    };
    let url: reqwest::Url = url.expose_secret().parse().map_err(|_secret| not_a_url())?;
    // For chat services the path is the secret; their host is known.
    let host = url.host_str().ok_or_else(not_a_url)?;
    let signed = match &webhook.secret {
        None => String::new(),
        Some(secret) => {
            let secret = secret.read().map_err(|error| unreadable(&error))?;
            signature::sign(secret.expose_secret(), "msg_1", 0, b"{}").map_err(|error| {
                let fix = format!("make another: {}", crate::config::MAKE_SIGNING_SECRET);
                (error.to_string(), fix)
            })?;
            ", signed".to_owned()
        }
    };
    Ok(format!("{format} to {host}{signed}"))
}

fn look_at_file(path: &Path) -> Result<String, SinkFault> {
    let shown = path.display();
    let place = if path.exists() {
        path.to_owned()
    } else {
        match path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            Some(folder) => folder.to_owned(),
            None => PathBuf::from("."),
        }
    };
    match rustix::fs::access(&place, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Ok(format!("log to {shown}, writable")),
        Err(error) => Err((
            format!("log to {shown}, not writable ({error})"),
            format!("create {} for this user, or correct path", place.display()),
        )),
    }
}

/// A program is a path, or a name that `PATH` leads to (execvp(3)).
fn look_at_program(program: &str) -> Result<String, SinkFault> {
    let is_program = |path: &Path| {
        path.metadata()
            .is_ok_and(|status| status.is_file() && status.permissions().mode() & 0o111 != 0)
    };
    let found = if program.contains('/') {
        is_program(Path::new(program))
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| is_program(&folder.join(OsStr::new(program))))
    };
    if found {
        Ok(format!("command {program}"))
    } else {
        let fix = "write the whole path in argv, and make the file executable".to_owned();
        Err((
            format!("command {program} is not a program that exists"),
            fix,
        ))
    }
}
