//! Who may use the control interface over TCP, where other users and web pages can reach it.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use secrecy::ExposeSecret as _;
use tokio::sync::watch;

use super::LiveConfig;
use super::extract::HttpError;
use super::server::Caller;
use crate::blocking::Lane;
use crate::text::one_line;

/// What a TCP listener requires of its callers.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    live_config: watch::Receiver<LiveConfig>,
    /// Whether only this machine can reach the listener.
    loopback: bool,
    /// The paths of operations that require no token.
    open: Arc<[&'static str]>,
    /// Reads the token where it is in a file.
    tokens: Lane,
}

/// Token files read at once.
const READS: usize = 4;

/// Lets a request through that is neither a web page's doing nor without the token.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if let Err(refusal) = guard.admit(request.uri().path(), request.headers()).await {
        return refusal.into_response();
    }
    if let Some(caller) = request
        .extensions()
        .get::<Caller>()
        .filter(|_| !guard.is_open(request.uri().path()))
    {
        caller.authorize();
    }
    next.run(request).await
}

impl Guard {
    pub(super) fn new(
        live_config: watch::Receiver<LiveConfig>,
        loopback: bool,
        open: Arc<[&'static str]>,
    ) -> Self {
        Self {
            live_config,
            loopback,
            open,
            tokens: Lane::new("tokens", READS),
        }
    }

    /// Whether the operation at this path requires no token.
    fn is_open(&self, path: &str) -> bool {
        self.open.contains(&path)
    }

    pub(super) async fn admit(&self, path: &str, headers: &HeaderMap) -> Result<(), HttpError> {
        // A browser says where a page is from with every request that could change something, and whether a
        // page of another origin is behind it with all requests (Fetch Metadata, "Sec-Fetch-Site").
        let foreign = |site: &HeaderValue| site != "none" && site != "same-origin";
        if headers.contains_key(header::ORIGIN)
            || headers.get_all("sec-fetch-site").iter().any(foreign)
        {
            return Err(HttpError::new(
                StatusCode::FORBIDDEN,
                "requests of web pages are not served",
            ));
        }
        // Probes carry no secrets, and learn none; many send no name of a host, or that of a container beside this one.
        if self.is_open(path) {
            return Ok(());
        }
        // A page may have its own name resolve to this machine; then the name is in `Host`.
        if self.loopback
            && let Some(what) = foreign_host(headers)
        {
            let detail = format!(
                "{what}; send `Host: localhost`, or listen on another address with a token"
            );
            return Err(HttpError::new(StatusCode::FORBIDDEN, detail));
        }
        let token = self.live_config.borrow().token.clone();
        let Some(token) = token else {
            // A reload may take away both the token and the listener, of which only one takes effect.
            return if self.loopback {
                Ok(())
            } else {
                Err(unauthorized())
            };
        };
        let token = token.read_on(&self.tokens).await.map_err(|error| {
            tracing::error!(
                error = crate::text::error_chain(&error),
                "cannot read the token of the control interface"
            );
            HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "the token cannot be read")
        })?;
        let given = headers
            .get(header::AUTHORIZATION)
            .map(HeaderValue::as_bytes)
            .unwrap_or_default();
        // The name of the scheme is taken in any case (RFC 9110, 11.1).
        let given = match given.split_at_checked(SCHEME.len()) {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case(SCHEME) => {
                without_leading_spaces(given)
            }
            _ => &[],
        };
        match verify_slices_are_equal(given, token.expose_secret().as_bytes()) {
            Ok(()) => Ok(()),
            Err(_differs) => Err(unauthorized()),
        }
    }
}

/// How a token is announced.
const SCHEME: &[u8] = b"Bearer ";

/// Removes the further spaces that may stand between a scheme and its token: spaces only (RFC 9110, 11.4).
fn without_leading_spaces(given: &[u8]) -> &[u8] {
    let spaces = given.iter().take_while(|byte| **byte == b' ').count();
    &given[spaces..]
}

fn unauthorized() -> HttpError {
    HttpError::new(
        StatusCode::UNAUTHORIZED,
        "the bearer token is missing or wrong",
    )
}

/// What is wrong with the `Host` header of a request that came over loopback.
fn foreign_host(headers: &HeaderMap) -> Option<String> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Some("the request has no Host header".to_owned()),
        (Some(_), Some(_)) => Some("the request has more than one Host header".to_owned()),
        (Some(host), None) if names_this_machine(host) => None,
        (Some(host), None) => {
            let shown = one_line(&String::from_utf8_lossy(host.as_bytes()), HOST_CHARS);
            Some(format!(
                "the Host header {shown:?} does not name this machine"
            ))
        }
    }
}

/// Characters of a `Host` header that are shown.
const HOST_CHARS: usize = 80;

/// Whether a `Host` header is an address of loopback or `localhost`, with any port.
fn names_this_machine(host: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else {
        return false;
    };
    let name = authority.host();
    let address = name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::config::Secret;

    #[test]
    fn only_spaces_may_stand_between_the_scheme_and_the_token() {
        let (_sender, live_config) = watch::channel(LiveConfig {
            routes: std::sync::Arc::default(),
            scheduled_attempts: std::sync::Arc::default(),
            sink_types: Arc::default(),
            deadline: std::time::Duration::from_secs(60),
            retention: std::time::Duration::from_secs(60),
            token: Some(Secret::value("the-token")),
            discoveries: Arc::default(),
            providers: Arc::new(crate::config::Settings::default().providers),
            rejected: None,
        });
        let guard = Guard::new(live_config, false, Arc::new(["/healthz", "/readyz"]));
        let admits = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
            guard
                .admit("/v1/watches", &headers)
                .now_or_never()
                .expect("no file is read")
                .is_ok()
        };
        for value in ["Bearer the-token", "bearer the-token", "BEARER   the-token"] {
            assert!(admits(value), "{value:?}");
        }
        for value in [
            "Bearer\t\tthe-token",
            "Bearer \t\tthe-token",
            "Bearer the-token\t",
            "the-token",
            "Bearerthe-token",
        ] {
            assert!(!admits(value), "{value:?}");
        }
    }

    #[test]
    fn probes_need_no_host_and_others_learn_what_is_wrong_with_theirs() {
        let (_sender, live_config) = watch::channel(LiveConfig {
            routes: std::sync::Arc::default(),
            scheduled_attempts: std::sync::Arc::default(),
            sink_types: Arc::default(),
            deadline: std::time::Duration::from_secs(60),
            retention: std::time::Duration::from_secs(60),
            token: None,
            discoveries: Arc::default(),
            providers: Arc::new(crate::config::Settings::default().providers),
            rejected: None,
        });
        let guard = Guard::new(live_config, true, Arc::new(["/healthz", "/readyz"]));
        let admit = |path: &str, hosts: &[&'static str]| {
            let hosts = hosts
                .iter()
                .map(|host| (header::HOST, HeaderValue::from_static(host)));
            let mut headers = HeaderMap::new();
            for (name, host) in hosts {
                headers.append(name, host);
            }
            guard
                .admit(path, &headers)
                .now_or_never()
                .expect("no file is read")
        };
        for path in ["/healthz", "/readyz"] {
            assert!(admit(path, &[]).is_ok() && admit(path, &["runwatch:9477"]).is_ok());
        }
        for (hosts, what) in [
            (&[][..], "no Host header"),
            (&["localhost", "localhost"], "more than one Host header"),
            (
                &["runwatch:9477"],
                "\"runwatch:9477\" does not name this machine; send `Host: localhost`",
            ),
        ] {
            let refusal =
                format!("{:?}", admit("/v1/watches", hosts).unwrap_err()).replace("\\\"", "\"");
            assert!(refusal.contains(what), "{refusal}");
        }
        assert!(admit("/v1/watches", &["localhost:9477"]).is_ok());
    }

    #[test]
    fn only_names_of_this_machine_pass() {
        let names = |host: &str| names_this_machine(&HeaderValue::from_str(host).unwrap());
        for host in [
            "localhost",
            "LOCALHOST:9477",
            "127.0.0.1:9477",
            "127.8.8.8",
            "[::1]:9477",
            "[::1]",
            "localhost.",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(names(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "192.0.2.1:9477",
            "127.0.0.1.evil.example",
            "a@b",
        ] {
            assert!(!names(host), "{host}");
        }
    }
}
