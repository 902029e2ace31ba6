//! What must not show in texts about a webhook: the parts of its address, its headers and its signing secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;

use crate::config::SIGNING_PREFIX;
use crate::redact::REDACTED;

/// User names, passwords and signing secrets shorter than this, in bytes, are not taken out of answers.
const MIN_CREDENTIAL: usize = 4;

/// Labels of a host name from this length on, in bytes, are secrets that a service made up.
const MIN_HOST_LABEL: usize = 20;

/// Parts of an address and headers shorter than this are no secrets, but words such as `hook`.
const HIDDEN_CHARS: usize = 8;

/// The value of a header, and its words: a receiver may repeat the token without its scheme, or decoded.
pub(super) fn secret_words(value: &str) -> Vec<String> {
    let words = value
        .split_whitespace()
        .filter(|word| word.len() < value.len());
    let mut secrets: Vec<_> = std::iter::once(value)
        .chain(words)
        .map(ToOwned::to_owned)
        .collect();
    if let Some(("Basic" | "basic", credentials)) = value.split_once(' ')
        && let Ok(decoded) = STANDARD.decode(credentials.trim())
        && let Ok(decoded) = String::from_utf8(decoded)
    {
        secrets.extend(
            decoded
                .split_once(':')
                .into_iter()
                .flat_map(|(user, password)| [user, password])
                .map(ToOwned::to_owned),
        );
        secrets.push(decoded);
    }
    secrets.retain(|text| text.len() >= HIDDEN_CHARS);
    secrets
}

/// A signing secret with and without its prefix, and the bytes that it stands for where these are a text.
pub(super) fn signing_secret(secret: &str) -> Vec<String> {
    let bare = secret.strip_prefix(SIGNING_PREFIX).unwrap_or(secret);
    let bytes = STANDARD
        .decode(bare)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    [secret, bare]
        .map(ToOwned::to_owned)
        .into_iter()
        .chain(bytes)
        .filter(|text| text.len() >= MIN_CREDENTIAL)
        .collect()
}

/// The parts of an address that only its owner knows: a chat service's address is the key to it. The user name is one:
/// many services have their token there.
pub(in crate::notify) fn secret_parts(url: &Url) -> Vec<String> {
    let host = url
        .host_str()
        .unwrap_or_default()
        .split('.')
        .filter(|label| label.len() >= MIN_HOST_LABEL);
    let path = url.path().split('/');
    let query = url.query().unwrap_or_default().split(['&', '=']);
    let long = path
        .chain(query)
        .chain(url.fragment())
        .filter(|part| part.len() >= HIDDEN_CHARS);
    let credentials = [Some(url.username()), url.password()].into_iter().flatten();
    let credentials = credentials.filter(|part| part.len() >= MIN_CREDENTIAL);
    let whole = std::iter::once(url.path()).filter(|path| path.len() > 1);
    let mut parts: Vec<_> = whole
        .chain(long)
        .chain(host)
        .chain(credentials)
        .map(ToOwned::to_owned)
        .collect();
    if let Some(password) = url.password() {
        parts.push(format!("{}:{password}", url.username()));
    }
    parts
}

/// An address as it can be shown: its scheme, host and port, and whether more follows.
pub(super) fn shown_address(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default().split('.');
    let host = host.map(|label| match label.len() {
        MIN_HOST_LABEL.. => REDACTED,
        _ => label,
    });
    let host = host.collect::<Vec<_>>().join(".");
    let port = url.port().map(|port| format!(":{port}"));
    let rest = if url.path() == "/" && url.query().is_none() {
        ""
    } else {
        REDACTED
    };
    format!(
        "{}://{host}{}/{rest}",
        url.scheme(),
        port.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_what_may_be_a_key() {
        for (address, shown) in [
            ("https://hooks.example.com/", "https://hooks.example.com/"),
            (
                "https://user:pass@hooks.example.com:8443/a/b?c=d#e",
                "https://hooks.example.com:8443/[redacted]",
            ),
            (
                "https://0123456789abcdef0123.example.com?key=1",
                "https://[redacted].example.com/[redacted]",
            ),
            ("http://[::1]:80/x", "http://[::1]/[redacted]"),
        ] {
            assert_eq!(shown_address(&Url::parse(address).unwrap()), shown);
        }
    }
}
