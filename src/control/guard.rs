//! Who may use the control interface over TCP, where other users and web pages can reach it.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use secrecy::ExposeSecret as _;
use tokio::sync::watch;

use super::InForce;
use super::routes::{MAX_BODY_BYTES, Refusal};

/// How long a caller may take to send the body of a request.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// What a TCP listener asks of its callers.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    pub(super) in_force: watch::Receiver<InForce>,
    /// Whether only this machine can reach the listener.
    pub(super) loopback: bool,
}

/// Lets a request through that is neither a web page's doing nor without the token.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if let Err(refusal) = guard.admit(request.uri().path(), request.headers()) {
        return refusal.into_response();
    }
    let (parts, body) = request.into_parts();
    let body = match tokio::time::timeout(BODY_LIMIT, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_too_large_or_broken)) => {
            return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body cannot be read, or is too large")
                .into_response();
        }
        Err(_elapsed) => {
            return Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time").into_response();
        }
    };
    next.run(Request::from_parts(parts, Body::from(body))).await
}

impl Guard {
    pub(super) fn admit(&self, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        // A browser says where a page is from with every request that could change something.
        if headers.contains_key(header::ORIGIN) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "requests of web pages are not served"));
        }
        // A page may have its own name resolve to this machine; then the name is in `Host`.
        if self.loopback && !headers.get(header::HOST).is_some_and(names_this_machine) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "the Host header does not name this machine"));
        }
        // Probes carry no secrets, and learn none.
        if matches!(path, "/healthz" | "/readyz") {
            return Ok(());
        }
        let token = self.in_force.borrow().token.clone();
        let Some(token) = token else { return Ok(()) };
        let token = token.read().map_err(|error| {
            tracing::error!(error = crate::text::with_causes(&error), "cannot read the token of the control interface");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the token cannot be read")
        })?;
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        match verify_slices_are_equal(given, token.expose_secret().as_bytes()) {
            Ok(()) => Ok(()),
            Err(_differs) => Err(Refusal::new(StatusCode::UNAUTHORIZED, "the bearer token is missing or wrong")),
        }
    }
}

/// Whether a `Host` header is an address of loopback or `localhost`, with any port.
fn names_this_machine(host: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass() {
        let names = |host: &str| names_this_machine(&HeaderValue::from_str(host).unwrap());
        for host in ["localhost", "LOCALHOST:9477", "127.0.0.1:9477", "127.8.8.8", "[::1]:9477", "[::1]"] {
            assert!(names(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "192.0.2.1:9477", "127.0.0.1.evil.example", "a@b"] {
            assert!(!names(host), "{host}");
        }
    }
}
