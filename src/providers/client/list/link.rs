//! The next page in the header `Link` (RFC 8288).

use reqwest::header::{HeaderMap, LINK};

/// The target of the first link whose relation is `next`, as it is in the header.
pub(super) fn next_link(headers: &HeaderMap) -> Option<String> {
    let mut links = headers.get_all(LINK).iter();
    links.find_map(|link| next_target(&String::from_utf8_lossy(link.as_bytes())))
}

/// The target of the first link of a header whose relation is `next`.
fn next_target(header: &str) -> Option<String> {
    let mut rest = header;
    loop {
        let (_, from) = rest.split_once('<')?;
        let (target, after) = from.split_once('>')?;
        // The parameters of a link end at a comma that is not within quotes.
        let mut is_quoted = false;
        let mut is_escaped = false;
        let end = after.find(|c| {
            match c {
                _ if is_escaped => is_escaped = false,
                '\\' if is_quoted => is_escaped = true,
                '"' => is_quoted = !is_quoted,
                _ => {}
            }
            c == ',' && !is_quoted
        });
        let (parameters, following) = after.split_at(end.unwrap_or(after.len()));
        // Of several, the first counts.
        let relation = parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case("rel")
                .then(|| value.trim().trim_matches('"'))
        });
        let is_next = |word: &str| word.eq_ignore_ascii_case("next");
        if relation.is_some_and(|relation| relation.split_ascii_whitespace().any(is_next)) {
            return Some(target.trim().to_owned());
        }
        rest = following;
    }
}
