//! The page: what the control interface shows to people in a browser.
//!
//! Three embedded files, no build step, nothing from other hosts. The server writes the first state into the HTML, so
//! that it can be read without script; the script then follows `/v1/events` and reads the same routes as any client.

mod html;
mod overview;
mod run;

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::response::Response as AxumResponse;

use self::html::{Fill, Html};
pub(super) use self::overview::{Overview, ROWS};
pub(super) use self::run::of_run;

/// The HTML of all views; [`html::Fill`] describes its marks.
const PAGE: &str = include_str!("page.html");
/// The style sheet, served as `/page.css`.
pub(super) const STYLE: &str = include_str!("page.css");
/// The script, served as `/page.js`.
pub(super) const SCRIPT: &str = include_str!("page.js");

/// Paths that require no token: what the login form needs. It shows nothing.
pub(super) const OPEN: [&str; 4] = ["/page.css", "/page.js", LOGIN, LOGOUT];

/// Where the login form is sent, and where a session ends.
pub(super) const LOGIN: &str = "/login";
pub(super) const LOGOUT: &str = "/logout";

/// The headers of everything that belongs to the page.
///
/// The policy allows its own script, style and requests, and nothing inline (W3C, "Content Security Policy Level 3").
/// `same-origin` as policy of referrers: with `no-referrer`, browsers send `Origin: null` with a form (WHATWG, "Fetch",
/// "append a request `Origin` header").
const HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "same-origin"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    // For browsers that do not know `frame-ancestors`.
    (header::X_FRAME_OPTIONS, "DENY"),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=()",
    ),
];

/// Whether a path is one of a view of the page.
pub(super) fn is_view(path: &str) -> bool {
    let run = path.strip_prefix("/runs/");
    path == "/" || run.is_some_and(|run| !run.is_empty() && !run.contains('/'))
}

/// Whether a path begins or ends a session.
pub(super) fn is_session_path(path: &str) -> bool {
    path == LOGIN || path == LOGOUT
}

/// Whether the answer to a request should be one for people: it is for a view, from something that shows HTML.
pub(super) fn is_for_people(request: &Request) -> bool {
    let is_html = |accept: &HeaderValue| {
        accept
            .to_str()
            .is_ok_and(|accept| accept.contains("text/html"))
    };
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let mut accepted = request.headers().get_all(header::ACCEPT).iter();
    reads && is_view(request.uri().path()) && accepted.any(is_html)
}

/// An answer that belongs to the page.
pub(super) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> AxumResponse {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // A view shows what only its reader may see; the other files are checked again, as a new version changes them.
    let caching = if content_type == HTML {
        "no-store"
    } else {
        "no-cache"
    };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The type of content of a view.
pub(super) const HTML: &str = "text/html; charset=utf-8";

/// What the login form says of the attempt before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginHint {
    /// There was none.
    None,
    /// It was another token.
    Wrong,
    /// There were too many; the next is accepted after this time.
    Wait(Duration),
}

/// The login form at a path, in place of the view `next`, which it leads to.
pub(super) fn login(path: &str, next: Option<&str>, hint: LoginHint) -> AxumResponse {
    let mut fill = Fill::view("login", path);
    if let Some(next) = next.filter(|next| is_run_view(next)) {
        let encoded: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
        fill.set("next", Html::of(&format!("?next={encoded}")));
    }
    let (status, words) = match hint {
        LoginHint::None => (StatusCode::UNAUTHORIZED, String::new()),
        LoginHint::Wrong => (
            StatusCode::UNAUTHORIZED,
            "This is not the token. It is in the file that control.token_file names.".to_owned(),
        ),
        LoginHint::Wait(wait) => (
            StatusCode::TOO_MANY_REQUESTS,
            format!(
                "There were too many wrong tokens; try again in {} s.",
                wait.as_secs() + 1
            ),
        ),
    };
    fill.set("hint", Html::of(&words));
    let mut response = response(status, HTML, fill.page("Log in · runwatch"));
    let headers = response.headers_mut();
    match hint {
        LoginHint::Wait(wait) => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        }
        LoginHint::None | LoginHint::Wrong => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
    }
    response
}

/// A view that says why there is nothing to see.
pub(super) fn nothing(
    status: StatusCode,
    path: &str,
    has_session: bool,
    why: &str,
) -> AxumResponse {
    let mut fill = Fill::view("nothing", path);
    fill.with_session(has_session);
    fill.set("why", Html::of(why));
    response(status, HTML, fill.page("runwatch"))
}

/// Whether a text is the path of the view of a run, as it stands in an address.
fn is_run_view(next: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%:".contains(&byte);
    next.strip_prefix("runs/")
        .is_some_and(|run| !run.is_empty() && run.bytes().all(safe))
}

/// Leads a browser on to a view of the page, with a cookie.
pub(super) fn lead_to(next: Option<&str>, cookie: Option<HeaderValue>) -> AxumResponse {
    let next = next.filter(|next| is_run_view(next));
    let place = format!("./{}", next.unwrap_or_default());
    let mut response = response(
        StatusCode::SEE_OTHER,
        "text/plain; charset=utf-8",
        Body::empty(),
    );
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(
        header::LOCATION,
        HeaderValue::try_from(place).expect("only safe characters"),
    );
    if let Some(cookie) = cookie {
        headers.insert(header::SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::style::{Look, Style};

    /// Most bytes of the page, uncompressed.
    const MOST_BYTES: usize = 60 * 1024;

    #[test]
    fn the_page_is_small_and_loads_nothing_else() {
        let files = [PAGE, STYLE, SCRIPT];
        let bytes: usize = files.iter().map(|file| file.len()).sum();
        assert!(bytes <= MOST_BYTES, "{bytes}");
        for file in files {
            // The namespace of SVG is a name, and is not loaded.
            let file = file.replace("http://www.w3.org/2000/svg", "");
            for foreign in [
                "http:",
                "https:",
                "//cdn",
                "@import",
                "innerHTML",
                "outerHTML",
                "eval(",
                "document.write",
            ] {
                assert!(!file.contains(foreign), "{foreign}");
            }
        }
        for inline in [" style=", " onclick=", "<style", "javascript:"] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert!(!STYLE.contains("url("));
    }

    #[test]
    fn the_policy_allows_nothing_inline_and_no_frame() {
        let response = login("/", None, LoginHint::None);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap();
        assert!(
            !policy.contains("unsafe") && !policy.contains('*'),
            "{policy}"
        );
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{part}: {policy}");
        }
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["cache-control"], "no-store");
    }

    #[test]
    fn the_script_has_the_glyphs_of_all_states() {
        for word in [
            "pending",
            "running",
            "waiting",
            "succeeded",
            "failed",
            "canceled",
            "skipped",
            "not_found",
            "unreachable",
            "timed_out",
        ] {
            let line = format!("{word}: \"{}\"", Style::PLAIN.glyph(Look::of(word)));
            assert!(SCRIPT.contains(&line), "{line}");
        }
    }

    #[test]
    fn a_login_leads_to_views_only() {
        let place = |next| {
            let response = lead_to(next, None);
            response.headers()[header::LOCATION]
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(place(None), "./");
        assert_eq!(place(Some("runs/github:a%2Fb")), "./runs/github:a%2Fb");
        for other in [
            "//evil.example",
            "https://evil.example",
            "runs/",
            "runs/a/b",
            "v1/watches",
            "runs/a\r\nb",
            "runs/é",
        ] {
            assert_eq!(place(Some(other)), "./", "{other}");
        }
        let path = |path: &str| is_view(path);
        assert!(path("/") && path("/runs/run_1") && path("/runs/a%2Fb"));
        assert!(!path("/runs/") && !path("/runs/a/b") && !path("/v1/watches") && !path("/login"));
    }
}
