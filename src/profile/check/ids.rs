//! Checks IDs, and the addresses of pages that name a run.

use super::{PLACES, one_of};
use crate::profile::parse::ProfileReading;
use crate::profile::template::PagePattern;
use crate::profile::{PartKind, Piece, Profile, Template};

impl ProfileReading {
    pub(super) fn check_id(&mut self, profile: &Profile) {
        let id = &profile.id;
        let names: Vec<_> = id.names().collect();
        if names.is_empty() {
            self.at(
                "id",
                "it has no part",
                "write the parts of an ID, such as \"{run}\"",
            );
        }
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                let what = format!("it has the part {{{name}}} twice");
                self.at("id", what, "give each part a name of its own");
            }
            if PLACES.contains(name) {
                let what = format!("{{{name}}} stands for an address of the provider");
                self.at("id", what, "give the part another name");
            }
        }
        if has_neighbors(&id.0) {
            let what =
                "it has two parts without a text between them, so nothing says where one ends";
            self.at("id", what, "write \"/\" between them");
        }
        let long = |piece: &&Piece| matches!(piece, Piece::Part { slashes: true, .. });
        if id.0.iter().filter(long).count() > 1 {
            let what = "two of its parts may have slashes, so nothing says where one ends";
            self.at("id", what, "leave out the + of one of them");
        }
        for piece in &id.0 {
            match piece {
                Piece::Part {
                    name, raw: true, ..
                } => {
                    let what = format!("{{{name}|raw}} is a form for paths");
                    self.at(
                        "id",
                        what,
                        format!("write {{{name}+}} for a part that may have slashes"),
                    );
                }
                Piece::Text(text)
                    if text.contains(|c: char| c.is_control() || c.is_whitespace()) =>
                {
                    let what = "its text has white space or a control character";
                    self.at("id", what, "remove it");
                }
                Piece::Part { .. } | Piece::Text(_) => {}
            }
        }
        for (name, kind) in &profile.parts {
            let key = format!("parts.{name}");
            if !names.contains(&&**name) {
                let what = format!("the ID has no part {{{name}}}");
                self.at(&key, what, one_of(name, &names));
            } else if *kind == PartKind::Url && !(id.is_url() && profile.get.is_url()) {
                let what = "only an ID that is an address can have an address as a part";
                self.at(
                    &key,
                    what,
                    "write id = \"{url}\" and get = \"{url}\", or another kind",
                );
            }
        }
    }

    pub(super) fn check_pages(&mut self, profile: &Profile) {
        let parts: Vec<_> = profile.id.names().collect();
        let keys = self.keys.get("urls").cloned().unwrap_or_default();
        for (template, key) in profile.urls.iter().zip(keys) {
            self.check_page(&key, template, &parts);
        }
        let key = self.keys.get("url").and_then(|keys| keys.first().cloned());
        if let (Some(template), Some(key)) = (&profile.fields.url_template, key) {
            self.check_page_to_open(&key, template, &parts);
        }
    }

    /// Checks an address that is read.
    fn check_page(&mut self, key: &str, template: &Template, parts: &[&str]) {
        let Some(rest) = after_place(template) else {
            let what = format!(
                "{template} begins with neither {{web}} nor {{base_url}}, so it could name a page of another host"
            );
            self.at(
                key,
                what,
                "write \"{web}/…\" or \"{base_url}/…\", and where that is in web or base_url",
            );
            return;
        };
        if let Some(wrong) = wrong_text(rest, true) {
            self.at(key, wrong, "remove it");
        }
        let names: Vec<_> = Template(rest.to_vec()).names().map(str::to_owned).collect();
        for name in parts {
            match names.iter().filter(|found| found == name).count() {
                0 => {
                    let what = format!("it does not have the part {{{name}}} of the ID");
                    self.at(
                        key,
                        what,
                        format!(
                            "write {{{name}}} where it is in the address, or remove the template"
                        ),
                    );
                }
                1 => {}
                _ => {
                    let what = format!("it has the part {{{name}}} twice");
                    self.at(key, what, "give the other one a name that is not in id");
                }
            }
        }
        if names.iter().any(|name| PLACES.contains(&&**name)) {
            let what = "{web} or {base_url} is in its middle";
            self.at(key, what, "write it at the beginning alone");
        }
        self.check_pattern(key, &PagePattern::of(rest));
    }

    /// Checks that one address gives one value of each part.
    fn check_pattern(&mut self, key: &str, pattern: &PagePattern) {
        let spans = |pieces: &Vec<Piece>| pieces.iter().any(Piece::spans);
        let fragment = pattern.fragment.iter().flatten();
        let segments: Vec<_> = pattern.path.iter().chain(fragment).collect();
        if segments.iter().filter(|pieces| spans(pieces)).count() > 1 {
            let what = "two of its parts may have slashes, so nothing says where one ends";
            self.at(key, what, "leave out the + of one of them");
        }
        let values = pattern.query.iter().map(|(_, value)| value);
        if segments
            .iter()
            .any(|pieces| spans(pieces) && pieces.len() > 1)
            || values.clone().any(spans)
        {
            let what = "a part that may have slashes is not between two slashes";
            self.at(
                key,
                what,
                "write it as segments of their own, or leave out its +",
            );
        }
        if segments
            .into_iter()
            .chain(values)
            .any(|pieces| has_neighbors(pieces))
        {
            let what =
                "it has two parts without a text between them, so nothing says where one ends";
            self.at(key, what, "write \"/\" between them");
        }
        if pattern.query.iter().any(|(name, _)| name.contains('{')) {
            let what = "a part is where the name of a query parameter is";
            self.at(key, what, "write it behind \"=\"");
        }
    }

    /// Checks an address that is shown.
    fn check_page_to_open(&mut self, key: &str, template: &Template, parts: &[&str]) {
        let begins_right = match template.0.first() {
            Some(Piece::Text(text)) => {
                let rest = text
                    .strip_prefix("https://")
                    .or(text.strip_prefix("http://"));
                let host = rest
                    .and_then(|rest| rest.split_once('/'))
                    .map(|(host, _)| host);
                host.is_some_and(|host| !host.is_empty() && !host.contains('@'))
            }
            _ => after_place(template).is_some(),
        };
        if !begins_right {
            let text = template.to_string();
            let what =
                format!("{text:?} is neither a place in the answer nor the address of a page");
            let fix = if text.contains(['{', ':']) {
                "write \"{web}/…\", \"{base_url}/…\" or \"https://…/\"".to_owned()
            } else {
                format!("write {:?}", format!("/{text}"))
            };
            self.at(key, what, fix);
            return;
        }
        if let Some(wrong) = wrong_text(&template.0, true) {
            self.at(key, wrong, "write it percent-encoded, or remove it");
        }
        for name in template.names().skip_while(|name| PLACES.contains(name)) {
            if !parts.contains(&name) {
                let what = format!("{{{name}}} is not a part of the ID");
                self.at(key, what, one_of(name, parts));
            }
        }
    }
}

fn has_neighbors(pieces: &[Piece]) -> bool {
    pieces
        .windows(2)
        .any(|pair| matches!(pair, [Piece::Part { .. }, Piece::Part { .. }]))
}

/// What follows `{web}` or `{base_url}` at the beginning of an address, if no host can be part of it.
fn after_place(template: &Template) -> Option<&[Piece]> {
    let (first, rest) = template.0.split_first()?;
    let Piece::Part {
        name,
        slashes: false,
        raw: false,
    } = first
    else {
        return None;
    };
    let ends_host = match rest.first() {
        None => true,
        Some(Piece::Text(text)) => text.starts_with(['/', '?', '#']),
        Some(Piece::Part { .. }) => false,
    };
    (PLACES.contains(&&**name) && ends_host).then_some(rest)
}

/// What is wrong with the text of a path, or of a page, which may have a fragment.
pub(super) fn wrong_text(pieces: &[Piece], is_page: bool) -> Option<String> {
    for piece in pieces {
        let Piece::Text(text) = piece else { continue };
        for (place, c) in text.char_indices() {
            let allowed = match c {
                '#' => is_page,
                '%' => text.as_bytes()[place + 1..]
                    .get(..2)
                    .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
                '"' | '<' | '>' | '\\' | '^' | '`' | '|' | '{' | '}' => false,
                c => c.is_ascii_graphic(),
            };
            if !allowed {
                return Some(format!(
                    "its text has {c:?}, which an address cannot have there"
                ));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::profile::check::fixture::assert_faults;

    #[test]
    fn an_id_that_does_not_read_back_is_a_fault() {
        assert_faults(&[
            ("id", r#""run""#, "it has no part"),
            (
                "id",
                r#""{owner}{run}""#,
                "two parts without a text between them",
            ),
            (
                "id",
                r#""{owner+}/{run+}""#,
                "two of its parts may have slashes",
            ),
            ("id", r#""{owner|raw}/{run}""#, "write {owner+}"),
            (
                "id",
                r#""{run}/{run}/{owner}""#,
                "it has the part {run} twice",
            ),
            (
                "id",
                r#""{owner}/{run}/{web}""#,
                "stands for an address of the provider",
            ),
            ("id", r#""{owner} {run}""#, "white space"),
            (
                "id",
                &format!("{:?}", "{a}/".repeat(17)),
                "more than 16 parts",
            ),
            (
                "id",
                &format!("{:?}", "x".repeat(3000)),
                "more than 2048 bytes",
            ),
        ]);
    }

    #[test]
    fn an_address_of_a_page_that_could_be_anywhere_is_a_fault() {
        assert_faults(&[
            (
                "urls",
                r#"["https://example.com/{owner}/{run}"]"#,
                "urls[0]: https://example.com/{owner}/{run} begins with neither {web} nor {base_url}",
            ),
            (
                "urls",
                r#"["{web}/{owner}/{run}", "{web}.evil.example/{owner}/{run}"]"#,
                "urls[1]: ",
            ),
            (
                "urls",
                r#"["{web}{owner}/{run}"]"#,
                "neither {web} nor {base_url}",
            ),
            (
                "urls",
                r#"["{web}:80/{owner}/{run}"]"#,
                "neither {web} nor {base_url}",
            ),
            (
                "urls",
                r#"["{web}@evil.example/{owner}/{run}"]"#,
                "neither {web} nor {base_url}",
            ),
            (
                "urls",
                r#"["{web}/{run}"]"#,
                "it does not have the part {owner} of the ID",
            ),
            (
                "urls",
                r#"["{web}/{owner}/{run}/{run}"]"#,
                "it has the part {run} twice",
            ),
            (
                "urls",
                r#"["{web}/{owner}/{base_url}/{run}"]"#,
                "is in its middle",
            ),
            (
                "urls",
                r#"["{web}/{owner}{run}"]"#,
                "without a text between",
            ),
            (
                "urls",
                r#"["{web}/{a+}/{owner+}/{run}"]"#,
                "two of its parts may have slashes",
            ),
            (
                "urls",
                r#"["{web}/x-{owner+}/{run}"]"#,
                "is not between two slashes",
            ),
            (
                "urls",
                r#"["{web}/{owner}?{run}=1"]"#,
                "the name of a query parameter",
            ),
        ]);
    }

    #[test]
    fn an_address_to_open_that_is_neither_a_place_nor_a_page_is_a_fault() {
        assert_faults(&[
            ("url", r#""html_url""#, "write \"/html_url\""),
            (
                "url",
                r#""{owner}/x""#,
                "neither a place in the answer nor the address of a page",
            ),
            (
                "url",
                r#""https://{owner}/x""#,
                "neither a place in the answer nor the address of a page",
            ),
            ("url", r#""javascript:x""#, "neither a place"),
            (
                "url",
                r#"["{web}/a", "{web}/b"]"#,
                "it is the second template",
            ),
        ]);
    }

    #[test]
    fn an_address_of_the_provider_that_is_not_one_is_a_fault() {
        assert_faults(&[
            (
                "base_url",
                r#""ftp://example.com""#,
                "is not an http or https address",
            ),
            (
                "base_url",
                r#""https://user:key@example.com""#,
                "is not an http or https address",
            ),
            (
                "base_url",
                r#""https://example.com/?a=b""#,
                "is not an http or https address",
            ),
            (
                "base_url",
                r#""https://example.com\\.evil""#,
                "is not an http or https address",
            ),
            (
                "web",
                r#""example.com""#,
                "web: \"example.com\" is not an http",
            ),
        ]);
    }
}
