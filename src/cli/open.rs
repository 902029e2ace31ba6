//! `runwatch open`: the address of the page.

use std::net::Ipv4Addr;
use std::time::Duration;

use reqwest::Url;
use serde_json::json;

use super::client::Printer;
use super::failure::CommandFailure;
use crate::config::ControlSettings;
use crate::control::Client;
use crate::domain::RunRef;
use crate::links::run_address;
use crate::xdg_open;

/// How long the opener of the desktop is waited for: some wait until the browser ends.
const OPENER_LIMIT: Duration = Duration::from_secs(5);

/// Prints the address of the page, or of the view of a run, and opens it where `in_browser`. An address of this machine is
/// printed only if a daemon answers at `client`. Never is the token a part of it. Returns 0, and 2 when there is no
/// address or no daemon; a browser that cannot be opened is a warning.
///
/// # Errors
/// When the result cannot be written, or there is no place for a socket of the daemon.
pub async fn open(
    settings: &ControlSettings,
    run: Option<&RunRef>,
    in_browser: bool,
    client: impl FnOnce() -> anyhow::Result<Client>,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let page = match &settings.public_url {
        Some(url) => url.clone(),
        None => {
            let Some(page) = local_address(settings) else {
                let failure = CommandFailure::usage("the page has no address");
                let fix = "set control.listen = \"127.0.0.1:9477\" and restart the daemon, or control.public_url if it is \
                           behind a proxy";
                return printer.failed(failure.fix(fix));
            };
            if let Err(error) = client()?.health().await {
                return printer.failed(&error);
            }
            page
        }
    };
    let address = match run {
        Some(run) => run_address(&page, run),
        None => page.to_string(),
    };
    if !printer.json {
        printer.line(&address)?;
    }
    let opened = if in_browser {
        match tokio::time::timeout(OPENER_LIMIT, xdg_open::open(&address)).await {
            Ok(Ok(())) | Err(_) => true,
            Ok(Err(error)) => {
                printer.warning(&format!("no browser can be opened: {error}"))?;
                false
            }
        }
    } else {
        false
    };
    if printer.json {
        printer.json(&json!({ "url": address, "opened": opened }))?;
    }
    Ok(0)
}

/// The address on this machine. A listener on a port that the system chooses has none that is known before.
fn local_address(settings: &ControlSettings) -> Option<Url> {
    let listen = settings.listen.filter(|address| address.port() != 0)?;
    // `localhost` may not lead to an address of loopback other than the usual one.
    let is_usual = listen.ip().is_unspecified() || listen.ip() == Ipv4Addr::LOCALHOST;
    let address = if is_usual {
        format!("http://localhost:{}/", listen.port())
    } else {
        format!("http://{listen}/")
    };
    Url::parse(&address).ok()
}

/// Whether this is a session of a desktop, as X11 (X(7), `DISPLAY`) and Wayland (`wl_display_connect`) know it.
pub fn is_desktop(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    ["DISPLAY", "WAYLAND_DISPLAY"]
        .into_iter()
        .any(|name| variable(name).is_some_and(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_on_this_machine_is_one_that_browsers_can_open() {
        let address = |listen: &str| {
            let listen = Some(listen.parse().unwrap());
            let settings = ControlSettings {
                socket: None,
                listen,
                token: None,
                public_url: None,
            };
            local_address(&settings).map(|url| url.to_string())
        };
        for (listen, expected) in [
            ("127.0.0.1:9477", "http://localhost:9477/"),
            ("[::1]:9477", "http://[::1]:9477/"),
            ("127.8.8.8:9477", "http://127.8.8.8:9477/"),
            ("0.0.0.0:9477", "http://localhost:9477/"),
            ("[::]:9477", "http://localhost:9477/"),
            ("192.0.2.1:9477", "http://192.0.2.1:9477/"),
        ] {
            assert_eq!(address(listen).as_deref(), Some(expected), "{listen}");
        }
        assert_eq!(address("127.0.0.1:0"), None);
    }

    #[test]
    fn a_desktop_has_a_display() {
        let with = |set: &'static [(&str, &str)]| {
            is_desktop(|name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.into())
            })
        };
        assert!(with(&[("DISPLAY", ":0")]) && with(&[("WAYLAND_DISPLAY", "wayland-0")]));
        assert!(!with(&[]) && !with(&[("DISPLAY", "")]));
    }
}
