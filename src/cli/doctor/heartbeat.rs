//! The heartbeat: its address; with `--send` a request to it.

use secrecy::ExposeSecret as _;

use super::report::Check;
use super::{Advice, within_limit};
use crate::config::{HeartbeatSettings, Loaded, format_duration};
use crate::notify::Heartbeat;
use crate::style::Sign;
use crate::text::error_chain;

const NAME: &str = "heartbeat";

/// Checks the heartbeat, where there is one. Without `send` there is no request: it would report progress of a daemon
/// that may not run.
pub(super) async fn check(loaded: &Loaded, advice: &Advice, send: bool) -> Option<Check> {
    let settings = loaded.settings.heartbeat.as_ref()?;
    Some(advice.about(&["heartbeat."], look(settings, send).await))
}

async fn look(settings: &HeartbeatSettings, send: bool) -> Check {
    let bad = |text: String, fix: &str| Check::new(NAME, Sign::Bad, text).with_fix(fix);
    let url = settings.url.clone();
    let host = within_limit(move || {
        let url = url.read().map_err(|error| error_chain(&error))?;
        let url = url.expose_secret().parse::<reqwest::Url>();
        let host = url.ok().and_then(|url| url.host_str().map(str::to_owned));
        host.ok_or_else(|| "its address is not a URL".to_owned())
    });
    let host = match host.await {
        Ok(Ok(host)) => host,
        Ok(Err(error)) => return bad(error, "correct heartbeat.url_file"),
        Err(stuck) => {
            let text = format!("it cannot be looked at: {stuck}");
            return bad(text, "does the disk answer?");
        }
    };
    let every = format_duration(settings.interval);
    let text = format!("to {host}, every {every}");
    if !send {
        return Check::new(NAME, Sign::Good, format!("{text} (--send sends one)"));
    }
    let sent = match within_limit(Heartbeat::build).await {
        Ok(Ok(client)) => client.send(&settings.url).await,
        Ok(Err(error)) => return bad(error_chain(&error), "check the authorities of the system"),
        Err(stuck) => return bad(format!("{text}; {stuck}"), "does the disk answer?"),
    };
    match sent {
        Ok(status) => Check::new(NAME, Sign::Good, format!("{text}; one sent: {status}")),
        Err(error) => bad(
            format!("{text}; one was not accepted: {}", error.detail),
            "check the address and whether its receiver is up",
        ),
    }
}
