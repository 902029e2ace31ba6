//! Finds what is wrong with a profile that has the right keys and types.

mod credentials;
#[cfg(test)]
mod fixture;
mod ids;
mod lists;
mod requests;
mod rules;

use super::Profile;
use super::parse::ProfileReading;
use crate::text::nearest;

/// Names in templates of addresses that are not parts of an ID.
const PLACES: [&str; 2] = ["base_url", "web"];

impl ProfileReading {
    /// Checks what was read.
    pub(super) fn check(&mut self, profile: &Profile) {
        self.check_names(profile);
        self.check_auth(profile);
        self.check_headers(profile);
        if !self.is_broken("id") {
            self.check_id(profile);
            self.check_vars(profile);
            self.check_pages(profile);
            self.check_requests(profile);
            if let Some(list) = &profile.list {
                self.check_list(profile, list);
            }
        }
        self.check_rules("rules", &profile.rules, profile.exact);
        if let Some(confirm) = &profile.confirm {
            self.check_rules("confirm.rules", &confirm.rules, profile.exact);
            self.check_on(profile, "confirm", &confirm.on);
        }
        if let Some(each) = &profile.each {
            self.check_rules("each.rules", &each.rules, profile.exact);
        }
        if let Some(detail) = &profile.detail {
            self.check_on(profile, "detail", &detail.on);
            if detail.error.is_empty() && detail.output.is_empty() {
                let what = "nothing is read from its answer";
                self.at("detail", what, "add error or output, or remove it");
            }
        }
    }

    /// Reports a fault of a key, in its line or in that of what it is part of.
    fn at(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let mut known = key;
        let line = loop {
            match (self.lines.get(known), known.rfind(['.', '['])) {
                (Some(line), _) => break *line,
                (None, Some(end)) => known = &known[..end],
                (None, None) => break 1,
            }
        };
        self.fault(line, key, what, fix);
    }
}

/// What to write in place of a name.
fn one_of(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(name) => format!("did you mean {{{name}}}?"),
        None if known.is_empty() => "remove it".to_owned(),
        None => {
            let known: Vec<_> = known.iter().map(|name| format!("{{{name}}}")).collect();
            format!("write one of {}", known.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fixture::{SOUND, assert_faults, faults, one};

    use crate::profile::{ProfileFault, parse};

    #[test]
    fn a_sound_profile_has_no_fault() {
        assert_eq!(faults(&[]), []);
        for (key, value) in [
            ("id", r#""{owner+}/{run}""#),
            ("get", r#""/o/{owner|raw}/runs/{run}?a=b%20c&d={run}""#),
            (
                "urls",
                r##"["{base_url}/{owner}/#/{run}", "{web}/x?o={owner}&r={run}", "{web}/{any}/{owner+}/-/{run}"]"##,
            ),
            ("url", r#"["/html_url", "{web}/{owner}/{run}"]"#),
            ("url", r#""https://pages.example.com/{owner}""#),
            (
                "detail",
                r#"{ get = "/o/{owner}/why/{run}", error = "/e" }"#,
            ),
            (
                "confirm",
                r#"{ on = ["succeeded"], get = "/o/{owner}", rules = [{ when = { "/w" = true }, is = "waiting" }] }"#,
            ),
            (
                "each",
                r#"{ items = "/jobs", rules = [{ when = { "/s" = 1 }, is = "succeeded" }] }"#,
            ),
            (
                "auth",
                r#"{ scheme = "Token", env = ["A"], optional = true }"#,
            ),
            ("auth", r#"{ header = "authorization", env = ["A"] }"#),
            ("auth", r#"{ scheme = "basic", user = "", env = ["A"] }"#),
            (
                "auth",
                r#"{ env = ["A"], login = { post = "/auth/token", token = "/t", user_env = "U", password_env = "P" } }"#,
            ),
            (
                "rate",
                r#"{ refused = [403, 429], remaining = "x-left", per_minute = 30, etag_free = true }"#,
            ),
            (
                "list",
                r#"{ get = "/o/{owner}/runs?state={status}&since={since}&who={actor}", items = "", id = { run = "/id" }, since = "{time}", next = "link" }"#,
            ),
            (
                "list",
                r#"{ post = "/runs/filter", items = "", id = { owner = "/o", run = "/id" }, next = { cursor = "/next", param = "page[after]" } }"#,
            ),
            ("stream", r#"{ sse = "/o/{owner}/runs/{run}/events" }"#),
            ("vars", r#"{ unused = "{ braces }" }"#),
        ] {
            assert_eq!(faults(&[(key, value)]), [], "{key} = {value}");
        }
        let url = [
            ("id", r#""{url}""#),
            ("get", r#""{url}""#),
            ("parts", r#"{ url = "url" }"#),
            ("urls", ""),
        ];
        assert_eq!(faults(&url), []);
        let each_alone = [
            ("rules", ""),
            (
                "each",
                r#"{ items = "/jobs", rules = [{ when = { "/s" = 1 }, is = "failed" }] }"#,
            ),
        ];
        assert_eq!(faults(&each_alone), []);
    }

    #[test]
    fn all_faults_are_reported_at_once_by_line() {
        let text = "id = \"{run}\"\nget = \"//evil.example/{run}\"\ncheck_id = \"id\"\nrulez = 1\nrules = [\n  { when = { \"status\" = \"x\" }, is = \"done\" },\n]\n[rate]\nper_minute = 0\n";
        let found = parse(text, "test").unwrap_err();
        let shown: Vec<_> = found.iter().map(ProfileFault::to_string).collect();
        assert_eq!(
            shown,
            [
                "line 2: get: \"//evil.example/{run}\" could reach another host, since it does not begin with exactly one \"/\"; write a path such as \"/runs/{run}\"",
                "line 3: check_id: \"id\" is not a place in an answer: it does not begin with \"/\"; write a JSON Pointer such as \"/id\"",
                "line 4: rulez: there is no such key; did you mean rules?",
                "line 6: rules[0].when.status: \"status\" is not a place in an answer: it does not begin with \"/\"; write a JSON Pointer such as \"/status\"",
                "line 6: rules[0].is: there is no state \"done\"; write one of pending, running, waiting, succeeded, failed, canceled, skipped, not_found",
                "line 9: rate.per_minute: it is not a whole number from 1 to 100000; write per_minute = 60, or leave it out",
            ]
        );
    }

    #[test]
    fn a_rule_that_lacks_something_or_has_no_such_test_is_a_fault() {
        assert_faults(&[
            ("rules", "[]", "it has no rule"),
            ("rules", "{}", "it is not a list"),
            ("rules", "[3]", "rules[0]: it is not a table"),
            (
                "rules",
                "[{ when = {}, is = \"failed\" }]",
                "a rule without a test holds for every answer",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = [] }, is = \"failed\" }]",
                "an empty list holds for no answer",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = [[1]] }, is = \"failed\" }]",
                "something else than texts",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = { absent = false } }, is = \"failed\" }]",
                "there is no such test",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = { lt = 1 } }, is = \"failed\" }]",
                "there is no such test",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = { gt = \"1\" } }, is = \"failed\" }]",
                "is not a number; write { gt = 0 }",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = nan }, is = \"failed\" }]",
                "there is no such test",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = 2026-11-28 }, is = \"failed\" }]",
                "there is no such test",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = 1 } }]",
                "rules[0].is: is is missing",
            ),
            (
                "rules",
                "[{ is = \"failed\" }]",
                "rules[0].when: when is missing",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = 1 }, is = \"unknown\" }]",
                "there is no state \"unknown\"",
            ),
            (
                "rules",
                "[{ when = { \"/s\" = 1 }, is = \"failed\", then = 1 }]",
                "rules[0].then: there is no such key",
            ),
        ]);
    }

    #[test]
    fn what_is_missing_or_has_another_type_is_a_fault() {
        let found = parse("", "test").unwrap_err();
        let shown: Vec<_> = found
            .iter()
            .map(|fault| (fault.line, &*fault.key, &*fault.what))
            .collect();
        assert_eq!(
            shown,
            [
                (1, "id", "id is missing"),
                (1, "get", "get is missing"),
                (1, "rules", "rules is missing")
            ]
        );
        assert_eq!(parse("id = \n = 3", "test").unwrap_err()[0].line, 1);
        assert!(
            parse(&"#".repeat(70_000), "test").unwrap_err()[0]
                .what
                .contains("65536 bytes")
        );
        assert_faults(&[
            ("title", "3", "it is not a text"),
            ("exact", "\"yes\"", "neither true nor false"),
            ("roots", "[3]", "roots[0]: it is not a text"),
            ("auth", "\"bearer\"", "it is not a table; write auth = {"),
            ("headers", "{ A = 3 }", "headers.A: it is not a text"),
            ("parts", "{ run = \"int\" }", "no kind \"int\""),
            ("confirm", "{ get = \"/x\" }", "confirm.on: on is missing"),
            (
                "confirm",
                "{ get = \"/x\" }",
                "confirm.rules: rules is missing",
            ),
            ("each", "{ get = \"/x\" }", "each.items: items is missing"),
            ("detail", "{ error = \"/e\" }", "detail.get: get is missing"),
            ("stream", "{}", "stream.sse: sse is missing"),
            ("list", "{ items = \"\" }", "list.get: get is missing"),
            (
                "list",
                "{ get = \"/x\", items = \"\", next = \"more\" }",
                "no such way to the next page",
            ),
            (
                "list",
                "{ get = \"/x\", post = \"/x\", items = \"\", id = { owner = \"/o\", run = \"/r\" } }",
                "has get and post",
            ),
            (
                "auth",
                "{ scheme = \"bearer\", header = \"X\" }",
                "a scheme and a header",
            ),
            (
                "auth",
                "{ login = { post = \"/x\" } }",
                "auth.login.token: token is missing",
            ),
        ]);
        assert_eq!(
            one("rules", ""),
            "rules: rules is missing; write rules = [{ when = { \"/status\" = \"done\" }, is = \"succeeded\" }]"
        );
    }

    #[test]
    fn a_place_that_is_not_a_pointer_is_a_fault() {
        assert_faults(&[
            ("name", "\"/a~\"", "\"~\" without 0 or 1"),
            (
                "finished",
                "[\"/a\", \"/b/[c]\"]",
                "finished[1]: \"/b/[c]\" is not a place in an answer: its step in brackets is not [key=value]",
            ),
            (
                "error",
                "\"$.error.message\"",
                "write a JSON Pointer such as \"/error/message\"",
            ),
            ("url", "\"/a~3\"", "url: "),
            (
                "list",
                "{ get = \"/x/{owner}\", items = \"x\", id = { run = \"id\" } }",
                "list.id.run: ",
            ),
            (
                "rules",
                "[{ when = { \"@status\" = 200 }, is = \"failed\" }]",
                "is not a place",
            ),
        ]);
    }

    #[test]
    fn a_profile_takes_what_it_does_not_say_from_another() {
        let found = parse(
            "extends = \"crewship\"\nbase_url = \"https://crews.example.com/\"\ntitle = \"Ours\"\n",
            "ours",
        )
        .unwrap();
        let base = crate::profile::builtin("crewship").unwrap().unwrap();
        assert_eq!((&*found.name, &*found.title), ("ours", "Ours"));
        assert_eq!(found.base_url.as_deref(), Some("https://crews.example.com"));
        assert_eq!(
            (&found.get, &found.fields, &found.stream),
            (&base.get, &base.fields, &base.stream)
        );
        assert_eq!(found.rules.len(), base.rules.len());
        assert!(found.checked.is_empty() && found.rules.iter().all(|rule| rule.line == 1));

        let faults = parse(
            "# Ours\nextends = \"crewship\"\nid = \"{team}/{run}\"\n",
            "ours",
        )
        .unwrap_err();
        let shown: Vec<_> = faults.iter().map(ProfileFault::to_string).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].starts_with("line 2: urls[0]: it does not have the part {team} of the ID (taken from the built-in profile crewship); "), "{shown:?}");
        assert!(
            shown[1].starts_with("line 2: get: it does not have the part {team}"),
            "{shown:?}"
        );

        let faults = parse("extends = \"crewshop\"", "ours").unwrap_err();
        assert_eq!(
            faults[0].to_string(),
            "line 1: extends: there is no built-in profile \"crewshop\"; did you mean \"crewship\"?"
        );
        assert!(
            parse("extends = 3", "ours").unwrap_err()[0]
                .what
                .contains("not a text")
        );
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,200}") {
            let _either = parse(&text, "test");
        }

        #[test]
        fn no_value_is_too_strange(index in 0_usize..5, value in "(\\PC|[{}+|/\"\\[\\]=@.]){0,24}") {
            let (key, _) = SOUND[index];
            for value in [format!("{value:?}"), value] {
                let text: String = SOUND.iter()
                    .map(|(name, sound)| format!("{name} = {}\n", if *name == key { &*value } else { sound }))
                    .collect();
                if let Err(faults) = parse(&text, "test") {
                    prop_assert!(!faults.is_empty());
                }
            }
        }
    }
}
