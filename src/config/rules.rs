//! Rules that several parts of the configuration share.

use std::time::Duration;

use reqwest::Url;

use super::reader::Violation;

/// 24 hours.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Shortest limit of the time for a connection, a request or a program.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(10);

/// A violation: what is wrong, and what to write instead.
pub(super) fn refusal(what: &str, fix: &str) -> Violation {
    (what.to_owned(), fix.to_owned())
}

/// An absolute URL with the scheme http or https.
pub(super) fn http_url(text: &str) -> Result<Url, Violation> {
    let fix = "write it as https://host/path";
    let url = Url::parse(text)
        .map_err(|error| (format!("this is not a URL ({error})"), fix.to_owned()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refusal("the scheme of the URL is not http or https", fix));
    }
    Ok(url)
}
