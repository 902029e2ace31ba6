//! Rules that several parts of the configuration share.

use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use zeroize::Zeroizing;

use super::reader::Violation;
use crate::blocking;

/// 24 hours.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Shortest limit of the time for a connection, a request or a program.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(10);

/// The beginning of each signing secret, in front of base64.
pub(crate) const SIGNING_PREFIX: &str = "whsec_";

/// The command that makes a signing secret, for people.
pub(crate) const MAKE_SIGNING_SECRET: &str = "`echo \"whsec_$(openssl rand -base64 32)\"`";

/// Returns the keys of the signing secrets in `text`, one a line: [`SIGNING_PREFIX`] and the base64 of at least one
/// byte (Standard Webhooks). Empty lines are skipped. A line of another form yields its number, from 1.
pub(crate) fn signing_keys(text: &str) -> impl Iterator<Item = Result<Zeroizing<Vec<u8>>, usize>> {
    let lines = (1..).zip(text.lines().map(str::trim));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            line.strip_prefix(SIGNING_PREFIX)
                .and_then(|encoded| STANDARD.decode(encoded).ok())
                .map(Zeroizing::new)
                .filter(|key| !key.is_empty())
                .ok_or(number)
        })
}

/// Largest template of a webhook and largest message that one makes, in bytes.
pub(crate) const MAX_TEMPLATE_BYTES: usize = 64 * 1024;

/// Reads the template of a webhook; `None` where it has more than [`MAX_TEMPLATE_BYTES`].
///
/// # Errors
/// When the file cannot be read in time or is not text.
pub(crate) fn read_template(path: &Path) -> io::Result<Option<String>> {
    let bytes = blocking::read_file(path, MAX_TEMPLATE_BYTES as u64)?;
    if bytes.len() > MAX_TEMPLATE_BYTES {
        return Ok(None);
    }
    blocking::text(bytes).map(Some)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn international_hosts_are_accepted() {
        for (text, host) in [
            ("https://münchen.example/x", "xn--mnchen-3ya.example"),
            ("https://日本語.jp", "xn--wgv71a119e.jp"),
            ("https://a.ⓔxample", "a.example"),
            ("https://بوابة.com", "xn--mgbbbe6m.com"),
        ] {
            assert_eq!(http_url(text).unwrap().host_str(), Some(host));
        }
    }
}
