//! What a browser reports of the page behind a request, and which of these pages may use the control interface: the one
//! that it serves itself.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority};
use reqwest::Url;

use super::extract::HttpError;
use super::page;
use crate::text::one_line;

/// The headers by which a browser describes where a request comes from (W3C, "Fetch Metadata Request Headers").
const SITE: &str = "sec-fetch-site";
const MODE: &str = "sec-fetch-mode";
const DESTINATION: &str = "sec-fetch-dest";

/// Lets a request pass that no page makes, or the page of this daemon. A link on any other page may lead to the page, as
/// that shows nothing to the other one.
///
/// # Errors
/// 403 for requests of other pages, and for those of the page that a form could send too.
pub(super) fn check(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    public_url: Option<&Url>,
) -> Result<(), HttpError> {
    let refuse = |what: &str| Err(HttpError::new(StatusCode::FORBIDDEN, what));
    let foreign = |site: &HeaderValue| site != "none" && site != "same-origin";
    if headers.get_all(SITE).iter().any(foreign) && !is_link(method, path, headers) {
        return refuse("requests of other web pages are not served");
    }
    let own = |origin: &HeaderValue| is_own(origin, headers, public_url);
    if !headers.get_all(header::ORIGIN).iter().all(own) {
        return refuse(
            "requests of other web pages are not served; behind a proxy that changes `Host`, set control.public_url",
        );
    }
    if *method == Method::POST
        && path.starts_with("/v1/")
        && is_of_page(headers)
        && !is_json(headers)
    {
        return refuse("the page sends JSON: set `Content-Type: application/json`");
    }
    Ok(())
}

/// Whether a browser reports that a page is behind a request: this one, after [`check`].
pub(super) fn is_of_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        || headers
            .get_all(SITE)
            .iter()
            .any(|site| site == "same-origin")
}

/// Whether a request opens the page in a tab, as a link does.
fn is_link(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let is = |name: &str, value: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().is_some_and(|found| found == value) && values.next().is_none()
    };
    (*method == Method::GET || *method == Method::HEAD)
        && page::is_view(path)
        && is(MODE, "navigate")
        && is(DESTINATION, "document")
}

/// Whether an origin is that of the page: by the name that the request itself has, or by the configured address.
fn is_own(origin: &HeaderValue, headers: &HeaderMap, public_url: Option<&Url>) -> bool {
    let parsed = |text: &str| Url::parse(text).ok().map(|url| url.origin());
    let Some(origin_text) = origin.to_str().ok() else {
        return false;
    };
    let Some((scheme, _)) = origin_text.split_once("://") else {
        return false;
    };
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let named = host.and_then(|host| parsed(&format!("{scheme}://{host}")));
    let configured = public_url.map(Url::origin);
    let own = parsed(origin_text).filter(|origin| origin.is_tuple());
    own.is_some() && (own == named || own == configured)
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE);
    let essence = given
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// What is wrong with the `Host` header of a request that came over loopback.
pub(super) fn foreign_host(headers: &HeaderMap) -> Option<String> {
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
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_the_page_itself_and_what_no_page_sends_may_pass() {
        let public = Url::parse("https://watch.example.com/at/").unwrap();
        let host = ("host", "localhost:9477");
        let json = ("content-type", "application/json; charset=utf-8");
        for (pairs, passes) in [
            (&[host][..], true),
            (&[host, ("sec-fetch-site", "none")], true),
            (&[host, ("sec-fetch-site", "same-origin")], false),
            (&[host, ("sec-fetch-site", "same-origin"), json], true),
            (&[host, ("origin", "http://localhost:9477"), json], true),
            (&[host, ("origin", "http://LOCALHOST:9477"), json], true),
            (&[host, ("origin", "https://localhost:9477"), json], true),
            (&[host, ("origin", "https://watch.example.com"), json], true),
            (
                &[
                    ("host", "a.example"),
                    ("origin", "https://a.example:443"),
                    json,
                ],
                true,
            ),
            (&[host, ("origin", "http://localhost:9477")], false),
            (
                &[
                    host,
                    ("origin", "http://localhost:9477"),
                    ("content-type", "text/plain"),
                ],
                false,
            ),
            (&[host, ("origin", "http://watch.example.com"), json], false),
            (&[host, ("origin", "http://localhost"), json], false),
            (&[host, ("origin", "http://localhost:9478"), json], false),
            (
                &[host, ("origin", "http://localhost:9477.evil.example"), json],
                false,
            ),
            (&[host, ("origin", "null"), json], false),
            (&[host, ("origin", ""), json], false),
            (&[host, ("origin", "file://"), json], false),
            (&[host, ("origin", "data://localhost:9477"), json], false),
            (
                &[
                    host,
                    ("origin", "http://localhost:9477"),
                    ("origin", "http://evil.example"),
                    json,
                ],
                false,
            ),
            (&[("origin", "http://localhost:9477"), json], false),
            (&[host, ("sec-fetch-site", "same-site"), json], false),
            (&[host, ("sec-fetch-site", "cross-site"), json], false),
            (
                &[
                    host,
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "document"),
                    json,
                ],
                false,
            ),
        ] {
            let found = check(&Method::POST, "/v1/watches", &headers(pairs), Some(&public));
            assert_eq!(found.is_ok(), passes, "{pairs:?}");
        }
    }

    #[test]
    fn a_link_of_another_page_leads_to_the_page_and_nowhere_else() {
        let link = [
            ("host", "localhost:9477"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        let passes = |method: Method, path: &str, pairs: &[_]| {
            check(&method, path, &headers(pairs), None).is_ok()
        };
        assert!(passes(Method::GET, "/", &link) && passes(Method::HEAD, "/", &link));
        assert!(passes(Method::GET, "/runs/crewship:run_1", &link));
        for path in [
            "/v1/watches",
            "/page.js",
            "/metrics",
            "/healthz",
            "/logout",
            "/runs",
            "/runs/a/b",
        ] {
            assert!(!passes(Method::GET, path, &link), "{path}");
        }
        assert!(!passes(Method::POST, "/", &link) && !passes(Method::POST, "/login", &link));
        // In a frame, as an image, or by a script.
        assert!(!passes(Method::GET, "/", &link[..2]));
        for (mode, destination) in [
            ("navigate", "iframe"),
            ("no-cors", "image"),
            ("cors", "empty"),
        ] {
            let other = [
                link[0],
                link[1],
                ("sec-fetch-mode", mode),
                ("sec-fetch-dest", destination),
            ];
            assert!(!passes(Method::GET, "/", &other), "{destination}");
        }
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
