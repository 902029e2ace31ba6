//! Checks the paths of requests and the texts that they name.

use std::collections::BTreeSet;

use super::ids::wrong_text;
use super::one_of;
use crate::profile::parse::ProfileReading;
use crate::profile::{PartKind, Piece, Profile, Template};

impl ProfileReading {
    pub(super) fn check_vars(&mut self, profile: &Profile) {
        let names: Vec<_> = profile.id.names().collect();
        for (name, text) in &profile.vars {
            let key = format!("vars.{name}");
            if names.contains(&&**name) {
                let what = format!("{{{name}}} is a part of the ID");
                self.at(&key, what, "give it another name");
            }
            for part in text.names() {
                if !names.contains(&part) {
                    let what = format!("{{{part}}} is not a part of the ID");
                    let fix = format!(
                        "{}; a brace with blanks, {{ {part} }}, begins no part",
                        one_of(part, &names)
                    );
                    self.at(&key, what, fix);
                }
            }
        }
    }

    pub(super) fn check_requests(&mut self, profile: &Profile) {
        let parts: Vec<_> = profile.id.names().collect();
        let vars: Vec<_> = profile.vars.keys().map(String::as_str).collect();
        let get = &profile.get;
        if get.is_url() {
            if profile.parts.get("url") != Some(&PartKind::Url) {
                let what = "a request for an address that is the ID needs an ID that is an address";
                self.at(
                    "get",
                    what,
                    "write id = \"{url}\" and parts = { url = \"url\" }",
                );
            }
        } else if !self.is_broken("get") {
            self.check_path("get", get, &parts, &vars);
            let used: BTreeSet<_> = get
                .names()
                .flat_map(|name| {
                    let var = profile.vars.get(name);
                    std::iter::once(name).chain(var.into_iter().flat_map(Template::names))
                })
                .collect();
            for name in &parts {
                if !used.contains(name) {
                    let what = format!(
                        "it does not have the part {{{name}}} of the ID, so that different runs would be one"
                    );
                    self.at(
                        "get",
                        what,
                        format!("write {{{name}}} where it belongs, or remove it from id"),
                    );
                }
            }
        }
        let others = [
            ("fallback_get", profile.fallback_get.as_ref()),
            (
                "confirm.get",
                profile.confirm.as_ref().map(|confirm| &confirm.get),
            ),
            (
                "detail.get",
                profile.detail.as_ref().map(|detail| &detail.get),
            ),
            (
                "each.get",
                profile.each.as_ref().and_then(|each| each.get.as_ref()),
            ),
            (
                "stream.sse",
                profile.stream.as_ref().map(|stream| &stream.sse),
            ),
        ];
        for (key, template) in others {
            if let Some(template) = template {
                self.check_path(key, template, &parts, &vars);
            }
        }
    }

    /// Checks the path and the query of a request: it begins with one slash, and has no other parts than `parts`, and
    /// in the query `vars`.
    pub(super) fn check_path(
        &mut self,
        key: &str,
        template: &Template,
        parts: &[&str],
        vars: &[&str],
    ) {
        let text = template.to_string();
        if !text.starts_with('/') || text.starts_with("//") {
            let what = format!(
                "{text:?} could reach another host, since it does not begin with exactly one \"/\""
            );
            self.at(key, what, "write a path such as \"/runs/{run}\"");
            return;
        }
        if let Some(wrong) = wrong_text(&template.0, false) {
            self.at(key, wrong, "write it percent-encoded, or remove it");
        }
        let path_end = text.find('?').unwrap_or(text.len());
        let segments = text[1..path_end].split('/');
        for segment in segments {
            let decoded = segment.to_ascii_lowercase().replace("%2e", ".");
            if matches!(&*decoded, "." | "..") {
                let what = format!("the segment {segment:?} stands for another place of the API");
                self.at(key, what, "write the path without it");
            }
        }
        let mut in_query = false;
        for piece in &template.0 {
            let (name, slashes, raw) = match piece {
                Piece::Text(text) => {
                    in_query |= text.contains('?');
                    continue;
                }
                Piece::Part { name, slashes, raw } => (&**name, *slashes, *raw),
            };
            let is_part = parts.contains(&name);
            if !is_part && !vars.contains(&name) {
                let what = format!("{{{name}}} is neither a part of the ID nor one of vars");
                let known: Vec<_> = parts.iter().chain(vars).copied().collect();
                self.at(key, what, one_of(name, &known));
            } else if !is_part && !in_query {
                let what = format!("{{{name}}}, which is one of vars, is in the path");
                self.at(key, what, "put it behind the \"?\"");
            }
            if slashes {
                let what = format!("{{{name}+}} is a form for IDs and pages");
                let fix = format!(
                    "write {{{name}}} for one encoded segment, or {{{name}|raw}} to keep its slashes"
                );
                self.at(key, what, fix);
            }
            if raw && in_query {
                let what = format!("{{{name}|raw}} is in the query");
                self.at(key, what, format!("write {{{name}}}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::profile::check::fixture::{assert_faults, faults, one};

    #[test]
    fn a_path_that_could_lead_elsewhere_is_a_fault() {
        for get in [
            "//evil.example/{owner}/{run}",
            "https://evil.example/{owner}/{run}",
            "{owner}/{run}",
            "@evil.example/{owner}{run}",
            ".evil.example/{owner}/{run}",
            ":80/{owner}/{run}",
            "",
            "{url}",
        ] {
            assert_ne!(one("get", &format!("{get:?}")), "", "{get}");
        }
        assert_faults(&[
            (
                "get",
                r#""/\\evil.example/{owner}/{run}""#,
                "its text has '\\\\'",
            ),
            (
                "get",
                r#""/\t/evil.example/{owner}/{run}""#,
                "its text has '\\t'",
            ),
            (
                "get",
                r#""/a/../{owner}/{run}""#,
                "the segment \"..\" stands for another place",
            ),
            (
                "get",
                r#""/a/%2e%2E/{owner}/{run}""#,
                "the segment \"%2e%2E\" stands for another place",
            ),
            ("get", r#""/{owner}/{run}#x""#, "its text has '#'"),
            ("get", r#""/{owner}/{run} x""#, "its text has ' '"),
            ("get", r#""/{owner}/{run}%2""#, "its text has '%'"),
            ("get", r#""/{owner}/{run}é""#, "its text has 'é'"),
            ("fallback_get", r#""//x/{run}""#, "fallback_get: "),
            (
                "confirm",
                r#"{ on = ["succeeded"], get = "//x", rules = [{ when = { "/w" = true }, is = "waiting" }] }"#,
                "confirm.get: \"//x\" could reach another host",
            ),
            (
                "detail",
                r#"{ get = "x", error = "/e" }"#,
                "detail.get: \"x\" could reach another host",
            ),
            (
                "each",
                r#"{ get = "//x", items = "", rules = [{ when = { "/s" = 1 }, is = "failed" }] }"#,
                "each.get: ",
            ),
            ("stream", r#"{ sse = "wss://x" }"#, "stream.sse: "),
            (
                "list",
                r#"{ post = "//x", items = "", id = { owner = "/o", run = "/r" } }"#,
                "list.post: ",
            ),
            (
                "auth",
                r#"{ login = { post = "https://evil.example/", token = "/t" } }"#,
                "auth.login.post: ",
            ),
            (
                "auth",
                r#"{ login = { post = "/{run}", token = "/t" } }"#,
                "neither a part of the ID",
            ),
        ]);
    }

    #[test]
    fn a_part_that_is_not_of_the_id_is_a_fault() {
        assert_faults(&[
            (
                "get",
                r#""/{owner}/{run}/{repo}""#,
                "{repo} is neither a part of the ID nor one of vars; write one of {owner}, {run}",
            ),
            ("get", r#""/{owner}/{rum}""#, "did you mean {run}?"),
            (
                "get",
                r#""/{owner}/{rum}""#,
                "it does not have the part {run} of the ID, so that different runs would be one",
            ),
            (
                "get",
                r#""/{owner+}/{run}""#,
                "write {owner} for one encoded segment, or {owner|raw}",
            ),
            (
                "get",
                r#""/{owner}?r={run|raw}""#,
                "{run|raw} is in the query",
            ),
            (
                "get",
                r#""/{owner}/{run""#,
                "it has a brace that is not of a part",
            ),
            ("fallback_get", r#""/{x}""#, "fallback_get: {x} is neither"),
            (
                "confirm",
                r#"{ on = ["succeeded"], get = "/{x}", rules = [{ when = { "/w" = true }, is = "waiting" }] }"#,
                "confirm.get: {x} is neither",
            ),
            (
                "vars",
                r#"{ q = "{x}" }"#,
                "vars.q: {x} is not a part of the ID",
            ),
            ("vars", r#"{ run = "x" }"#, "{run} is a part of the ID"),
            (
                "parts",
                r#"{ rum = "number" }"#,
                "the ID has no part {rum}; did you mean {run}?",
            ),
            (
                "parts",
                r#"{ run = "url" }"#,
                "only an ID that is an address",
            ),
            ("url", r#""{web}/{x}""#, "{x} is not a part of the ID"),
        ]);
        let found = faults(&[("vars", "{ q = \"x\" }"), ("get", "\"/{q}/{owner}/{run}\"")]);
        assert!(found[0].what.contains("is in the path"), "{found:?}");
        // A part may be used by way of a text.
        let by_way = [
            ("vars", "{ q = '{\"id\":\"{run}\"}' }"),
            ("get", "\"/{owner}?q={q}\""),
        ];
        assert_eq!(faults(&by_way), []);
    }
}
