//! Who may use the control interface over TCP, where other users and web pages can reach it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;

use super::LiveConfig;
use super::browser;
use super::extract::HttpError;
use super::page;
use super::server::Caller;
use super::session::{FailureLimit, Sessions};
use crate::blocking::Lane;
use crate::clock::Clock;

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
    clock: Clock,
    failures: Arc<FailureLimit>,
}

/// Token files read at once.
const READS: usize = 4;

/// Why a request is admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admission {
    /// Its operation requires no token.
    Open,
    /// No token is configured, and only this machine can reach the listener.
    Loopback,
    /// It has the token.
    Token,
    /// A browser sent the cookie of a session. This makes the session last longer.
    Session(HeaderValue),
}

/// Lets a request through that has the token, or is one of a session of the page, and that no other web page makes.
pub(super) async fn check(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let access = match guard.admit(&method, &path, request.headers()).await {
        Ok(access) => access,
        Err(refusal) if refusal.is_unauthorized() && page::is_for_people(&request) => {
            return page::login(&path, path.strip_prefix('/'), page::LoginHint::None);
        }
        Err(refusal) => return refusal.into_response(),
    };
    if access != Admission::Open
        && let Some(caller) = request.extensions().get::<Caller>()
    {
        caller.authorize();
    }
    let session = match &access {
        Admission::Session(cookie) if page::is_view(&path) => Some(cookie.clone()),
        _ => None,
    };
    request.extensions_mut().insert(access);
    request.extensions_mut().insert(guard);
    let mut response = next.run(request).await;
    if let Some(cookie) = session {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

impl Guard {
    pub(super) fn new(
        live_config: watch::Receiver<LiveConfig>,
        loopback: bool,
        open: Arc<[&'static str]>,
        clock: Clock,
    ) -> Self {
        Self {
            live_config,
            loopback,
            open,
            tokens: Lane::new("tokens", READS),
            clock,
            failures: Arc::new(FailureLimit::new()),
        }
    }

    /// Whether the operation at this path requires no token.
    fn is_open(&self, path: &str) -> bool {
        self.open.contains(&path)
    }

    pub(super) async fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Admission, HttpError> {
        let public_url = self.live_config.borrow().public_url.clone();
        browser::check(method, path, headers, public_url.as_ref())?;
        // Probes carry no secrets, and learn none; many send no name of a host, or that of a container beside this one.
        if self.is_open(path) && !page::is_session_path(path) {
            return Ok(Admission::Open);
        }
        // A page may have its own name resolve to this machine; then the name is in `Host`.
        if self.loopback
            && let Some(what) = browser::foreign_host(headers)
        {
            let detail = format!(
                "{what}; send `Host: localhost`, or listen on another address with a token"
            );
            return Err(HttpError::new(StatusCode::FORBIDDEN, detail));
        }
        if self.is_open(path) {
            return Ok(Admission::Open);
        }
        let Some(token) = self.token().await? else {
            // A reload may take away both the token and the listener, of which only one takes effect.
            return if self.loopback {
                Ok(Admission::Loopback)
            } else {
                Err(unauthorized())
            };
        };
        match headers.get(header::AUTHORIZATION) {
            Some(given) if is_bearer(given, &token) => Ok(Admission::Token),
            Some(_) => Err(unauthorized()),
            None => self.of_session(method, headers, &token),
        }
    }

    /// The token, if one is configured.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn token(&self) -> Result<Option<SecretString>, HttpError> {
        let token = self.live_config.borrow().token.clone();
        let Some(token) = token else {
            return Ok(None);
        };
        let read = token.read_on(&self.tokens).await.map_err(|error| {
            tracing::error!(
                error = crate::text::error_chain(&error),
                "cannot read the token of the control interface"
            );
            HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "the token cannot be read")
        })?;
        Ok(Some(read))
    }

    fn of_session(
        &self,
        method: &Method,
        headers: &HeaderMap,
        token: &SecretString,
    ) -> Result<Admission, HttpError> {
        let (sessions, now) = (Sessions::of(token.expose_secret()), self.clock.now());
        if !sessions.admits(headers, now) {
            return Err(unauthorized());
        }
        // A browser may send a cookie with what another site makes it do, if it is old enough to ignore `SameSite`; then
        // it does not report the page either.
        let reads = *method == Method::GET || *method == Method::HEAD;
        if !reads && !browser::is_of_page(headers) {
            let what = "a change by a session must come from the page; use the token elsewhere";
            return Err(HttpError::new(StatusCode::FORBIDDEN, what));
        }
        Ok(Admission::Session(sessions.begin(now, self.requires_tls())))
    }

    /// Begins a session where `given` is the token. Returns its `Set-Cookie`, or the hint for the next attempt.
    ///
    /// # Errors
    /// When the token cannot be read, or none is configured.
    pub(super) async fn begin_session(
        &self,
        given: &[u8],
    ) -> Result<Result<HeaderValue, page::LoginHint>, HttpError> {
        let Some(token) = self.token().await? else {
            let what = "no token is configured, so there is nothing to log in to";
            return Err(HttpError::new(StatusCode::NOT_FOUND, what));
        };
        if let Err(wait) = self.failures.take() {
            return Ok(Err(page::LoginHint::Wait(wait)));
        }
        let is_right = given.ct_eq(token.expose_secret().as_bytes());
        if !bool::from(is_right) {
            return Ok(Err(page::LoginHint::Wrong));
        }
        self.failures.give_back();
        let sessions = Sessions::of(token.expose_secret());
        Ok(Ok(sessions.begin(self.clock.now(), self.requires_tls())))
    }

    /// `Set-Cookie` that ends a session in its browser; `None` where no token is configured.
    ///
    /// # Errors
    /// When the token cannot be read.
    pub(super) async fn end_session(&self) -> Result<Option<HeaderValue>, HttpError> {
        let token = self.token().await?;
        let secure = self.requires_tls();
        Ok(token.map(|token| Sessions::of(token.expose_secret()).end(secure)))
    }

    /// Whether cookies are for TLS only: browsers find the page at an https address. Those of this machine take such
    /// cookies from `http://localhost` too.
    fn requires_tls(&self) -> bool {
        let live_config = self.live_config.borrow();
        let public_url = live_config.public_url.as_ref();
        public_url.is_some_and(|url| url.scheme() == "https")
    }
}

/// Whether the value of `Authorization` is this token.
fn is_bearer(given: &HeaderValue, token: &SecretString) -> bool {
    let given = given.as_bytes();
    // The name of the scheme is taken in any case (RFC 9110, 11.1).
    let given = match given.split_at_checked(SCHEME.len()) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(SCHEME) => {
            without_leading_spaces(given)
        }
        _ => &[],
    };
    given.ct_eq(token.expose_secret().as_bytes()).into()
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::config::Secret;

    fn settings(token: Option<&str>) -> LiveConfig {
        LiveConfig {
            routes: Arc::default(),
            scheduled_attempts: Arc::default(),
            sink_types: Arc::default(),
            public_url: None,
            heartbeat: None,
            deadline: std::time::Duration::from_secs(60),
            retention: std::time::Duration::from_secs(60),
            token: token.map(Secret::value),
            discoveries: Arc::default(),
            providers: Arc::new(crate::config::Settings::default().providers),
            fingerprint: 0,
            rejected: None,
        }
    }

    #[test]
    fn only_spaces_may_stand_between_the_scheme_and_the_token() {
        let (_sender, live_config) = watch::channel(settings(Some("the-token")));
        let guard = Guard::new(
            live_config,
            false,
            Arc::new(["/healthz", "/readyz"]),
            Clock::system(),
        );
        let admits = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
            guard
                .admit(&Method::GET, "/v1/watches", &headers)
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
        let (_sender, live_config) = watch::channel(settings(None));
        let guard = Guard::new(
            live_config,
            true,
            Arc::new(["/healthz", "/readyz"]),
            Clock::system(),
        );
        let admit = |path: &str, hosts: &[&'static str]| {
            let hosts = hosts
                .iter()
                .map(|host| (header::HOST, HeaderValue::from_static(host)));
            let mut headers = HeaderMap::new();
            for (name, host) in hosts {
                headers.append(name, host);
            }
            guard
                .admit(&Method::GET, path, &headers)
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
    fn a_session_reads_and_changes_only_from_the_page() {
        let (_sender, live_config) = watch::channel(settings(Some("the-token")));
        let clock = Clock::system();
        let guard = Guard::new(live_config, false, Arc::new([]), clock.clone());
        let cookie = Sessions::of("the-token").begin(clock.now(), false);
        let cookie = cookie
            .to_str()
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        let admit = |method: Method, more: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("watch.example"));
            headers.insert(
                header::COOKIE,
                HeaderValue::try_from(cookie.as_str()).unwrap(),
            );
            for (name, value) in more {
                headers.insert(*name, HeaderValue::try_from(*value).unwrap());
            }
            let admitted = guard.admit(&method, "/v1/watches", &headers);
            admitted.now_or_never().expect("no file is read").is_ok()
        };
        let own = ("origin", "https://watch.example");
        let json = ("content-type", "application/json");
        assert!(admit(Method::GET, &[]));
        assert!(admit(Method::POST, &[own, json]));
        assert!(admit(Method::DELETE, &[own]));
        assert!(admit(Method::DELETE, &[("sec-fetch-site", "same-origin")]));
        assert!(!admit(Method::POST, &[json]) && !admit(Method::DELETE, &[]));
        assert!(!admit(Method::POST, &[own, ("content-type", "text/plain")]));
        assert!(!admit(
            Method::DELETE,
            &[("origin", "https://evil.example")]
        ));
        assert!(!admit(Method::DELETE, &[("sec-fetch-site", "none")]));
        // A token that is sent counts, and not the session beside it.
        assert!(!admit(Method::GET, &[("authorization", "Bearer wrong")]));
        assert!(admit(
            Method::POST,
            &[("authorization", "Bearer the-token")]
        ));
    }
}
