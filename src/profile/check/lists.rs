//! Checks how runs are listed.

use std::collections::BTreeSet;

use super::one_of;
use crate::profile::list::{OWN, STATUS, TIMES};
use crate::profile::parse::ProfileReading;
use crate::profile::{List, Next, Profile, Subject, Template};

impl ProfileReading {
    pub(super) fn check_list(&mut self, profile: &Profile, list: &List) {
        let parts: Vec<_> = profile.id.names().collect();
        let names = list.names();
        self.check_list_targets(profile, list);
        self.check_list_ids(list, &parts, &names);
        self.check_list_values(list, &parts);
        for name in &list.needs {
            if !list.parameters().contains(name) {
                let what = format!("the request has no parameter {{{name}}}");
                let known: Vec<_> = names.iter().map(String::as_str).collect();
                self.at("list.needs", what, one_of(name, &known));
            }
        }
        let entry = &list.entry;
        let mut subjects = profile.rules.iter().flat_map(|rule| &rule.when);
        let is_below =
            |(subject, _): &(Subject, _)| matches!(subject, Subject::At(at) if at.is_below(entry));
        if !entry.0.is_empty() && !subjects.any(is_below) {
            let what = format!("no rule looks at a place below {entry}");
            self.at(
                "list.entry",
                what,
                "write what such places begin with, or remove it",
            );
        }
        self.check_list_filters(list, &names);
        self.check_pages_of_list(list, &names);
    }

    /// Checks the addresses that a list is requested at.
    fn check_list_targets(&mut self, profile: &Profile, list: &List) {
        for (key, template) in [("list.get", &list.get), ("list.post", &list.post)] {
            let Some(template) = template else { continue };
            let own: Vec<_> = template.names().collect();
            self.check_path(key, template, &own, &[]);
            for name in own.iter().filter(|name| profile.vars.contains_key(**name)) {
                let what = format!("{{{name}}}, which is one of vars, is in a list");
                self.at(key, what, "write what it stands for in body");
            }
            for name in list.path_names() {
                if OWN.contains(&name) || name == STATUS {
                    let what = format!("{{{name}}} is in the path");
                    self.at(
                        key,
                        what,
                        "put it behind the \"?\", or give it another name",
                    );
                }
            }
        }
    }

    /// Checks that each run of a list gets each part of its ID once.
    fn check_list_ids(&mut self, list: &List, parts: &[&str], names: &[String]) {
        let mut given: BTreeSet<&str> = list.id.keys().map(String::as_str).collect();
        // A name that is not of the ID is a parameter of its own.
        given.extend(names.iter().map(String::as_str));
        for name in parts {
            if !given.contains(name) {
                let what =
                    format!("nothing gives the part {{{name}}} of the ID of a run in the list");
                self.at(
                    "list.id",
                    what,
                    format!("write {name} = \"/…\" in id, or {{{name}}} in get"),
                );
            }
            if OWN.contains(name) || *name == STATUS {
                let what = format!("{{{name}}} in a list is not the part of that name");
                self.at("list", what, "give the part of the ID another name");
            }
        }
        for name in list.id.keys() {
            if !parts.contains(&&**name) {
                let what = format!("the ID has no part {{{name}}}");
                self.at(&format!("list.id.{name}"), what, one_of(name, parts));
            }
        }
    }

    /// Checks the names of the values that a run of a list has.
    fn check_list_values(&mut self, list: &List, parts: &[&str]) {
        for name in list.values.keys() {
            let key = format!("list.values.{name}");
            let is_name = Template::parse(&format!("{{{name}}}"))
                .is_ok_and(|template| template.names().eq([name.as_str()]));
            if !is_name {
                let what = format!("{name:?} is not a name");
                self.at(&key, what, "write letters, digits, - and _");
            } else if parts.contains(&&**name) {
                let what = format!("{{{name}}} is a part of the ID");
                self.at(&key, what, "give it another name, or remove it");
            }
        }
    }

    /// Checks what chooses the runs of a list.
    fn check_list_filters(&mut self, list: &List, names: &[String]) {
        let has = |name: &str| names.iter().any(|known| known == name);
        if list.body.is_some() && list.post.is_none() {
            let what = "a GET has no body";
            self.at(
                "list.body",
                what,
                "write post in place of get, or remove it",
            );
        }
        for (key, is_there) in [
            ("active", !list.active.is_empty()),
            ("unlisted", !list.unlisted.is_empty()),
        ] {
            if is_there && !has(STATUS) {
                let what = "the request does not have {status}";
                let key = format!("list.{key}");
                self.at(&key, what, "write {status} where it belongs, or remove it");
            }
        }
        let mut statuses = list.active.iter().flatten().collect::<Vec<_>>();
        statuses.sort();
        let is_twice = statuses.windows(2).any(|pair| pair[0] == pair[1]);
        if is_twice || statuses.iter().any(|status| status.is_empty()) {
            let what = "it has an empty value, or one twice";
            self.at("list.active", what, "write each value once");
        }
        if list.active.iter().any(Vec::is_empty) {
            let what = "it has an empty list";
            self.at("list.active", what, "write the values of {status}");
        }
        match &list.since {
            None if has("since") && !self.is_broken("list.since") => {
                let what = "nothing says how the API writes the time of {since}";
                let fix = "write since = \"{time}\", or with {seconds} or {ms}";
                self.at("list.since", what, fix);
            }
            Some(_) if !has("since") => {
                let what = "the request does not have {since}";
                self.at(
                    "list.since",
                    what,
                    "write {since} where it belongs, or remove it",
                );
            }
            Some(since) => {
                let of_since: Vec<_> = since.names().collect();
                if of_since.is_empty() || of_since.iter().any(|name| !TIMES.contains(name)) {
                    let what = "it has another name than {time}, {seconds} and {ms}, or none";
                    self.at("list.since", what, "write since = \"{time}\"");
                }
            }
            None => {}
        }
    }

    /// Checks how the next page is found.
    fn check_pages_of_list(&mut self, list: &List, names: &[String]) {
        let has = |name: &str| names.iter().any(|known| known == name);
        if self.lines.contains_key("list.limit") && !has("limit") {
            let what = "the request does not have {limit}";
            self.at(
                "list.limit",
                what,
                "write {limit} where it belongs, or remove it",
            );
        }
        let is_offset = matches!(list.next, Some(Next::Offset));
        if is_offset && !(has("offset") && has("limit")) {
            let what = "the request does not have {offset} and {limit}";
            self.at("list.next", what, "write both where they belong");
        }
        if has("offset") && !is_offset {
            let what = "the request has {offset}, and every page would be the first";
            self.at("list.next", what, "write next = \"offset\"");
        }
        match &list.next {
            Some(Next::Link | Next::LinkAt(_)) if list.post.is_some() => {
                let what = "the address of a page is requested by GET";
                self.at("list.next", what, "write \"offset\", or a cursor");
            }
            Some(Next::Cursor { param: None, .. }) if !has("cursor") => {
                let what = "param is missing";
                let fix = "write param = \"cursor\", or {cursor} in body";
                self.at("list.next.param", what, fix);
            }
            Some(Next::Cursor {
                param: Some(param), ..
            }) => {
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~[]$".contains(&byte);
                if param.is_empty() || !param.bytes().all(allowed) {
                    let what = format!("{param:?} is not the name of a query parameter");
                    self.at("list.next.param", what, "write one such as \"cursor\"");
                }
                if has("cursor") {
                    let what = "the request has {cursor} as well";
                    self.at("list.next.param", what, "leave out one of them");
                }
            }
            _ if has("cursor") && !matches!(list.next, Some(Next::Cursor { .. })) => {
                let what = "the request has {cursor}, and nothing says where it is in an answer";
                self.at("list.next", what, "write next = { cursor = \"/next\" }");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::profile::check::fixture::assert_faults;

    #[test]
    fn a_list_that_does_not_name_its_runs_is_a_fault() {
        assert_faults(&[
            (
                "list",
                r#"{ get = "/runs", items = "", id = { run = "/id" } }"#,
                "list.id: nothing gives the part {owner} of the ID of a run in the list; write owner = \"/…\" in id, or {owner} in get",
            ),
            (
                "list",
                r#"{ get = "/{owner}/runs", items = "", id = { rum = "/id" } }"#,
                "list.id.rum: the ID has no part {rum}; did you mean {run}?",
            ),
            (
                "list",
                r#"{ get = "/{owner}/runs", items = "", id = { run = "/id" }, next = { cursor = "/c", param = "a&b" } }"#,
                "is not the name of a query parameter",
            ),
            (
                "list",
                r#"{ get = "/{owner}/runs", items = "", id = { run = "/id" }, next = { cursor = "/c" } }"#,
                "list.next.param: param is missing",
            ),
        ]);
    }

    #[test]
    fn a_list_that_cannot_be_requested_as_it_says_is_a_fault() {
        assert_faults_of_lists(&[
            (r#"get = "/x", body = '{}'"#, "list.body: a GET has no body"),
            (
                r#"post = "/x", body = '{,}'"#,
                "list.body: it is not JSON (key must be a string",
            ),
            (
                r#"post = "/x", body = '[]'"#,
                "list.body: it is not a JSON object",
            ),
            (
                r#"get = "/x", active = ["on"]"#,
                "list.active: the request does not have {status}",
            ),
            (
                r#"get = "/x", unlisted = ["on"]"#,
                "list.unlisted: the request does not have {status}",
            ),
            (
                r#"get = "/x?s={status}", active = ["on", ["up", "on"]]"#,
                "list.active: it has an empty value, or one twice",
            ),
            (
                r#"get = "/x?s={status}", active = [[]]"#,
                "list.active: it has an empty list",
            ),
            (
                r#"get = "/x/{status}""#,
                "list.get: {status} is in the path",
            ),
            (r#"get = "/x/{limit}""#, "list.get: {limit} is in the path"),
            (
                r#"get = "/x?s={since}""#,
                "list.since: nothing says how the API writes the time of {since}; write since",
            ),
            (
                r#"get = "/x", since = "{time}""#,
                "list.since: the request does not have {since}",
            ),
            (
                r#"get = "/x?s={since}", since = "{date}""#,
                "list.since: it has another name than",
            ),
            (
                r#"get = "/x?s={since}", since = "x""#,
                "list.since: it has another name than",
            ),
            (
                r#"get = "/x", limit = 0"#,
                "list.limit: it is not a whole number from 1 to 1000",
            ),
            (
                r#"get = "/x", needs = ["team"]"#,
                "list.needs: the request has no parameter {team}",
            ),
            (
                r#"get = "/x", values = { owner = "/r" }"#,
                "list.values.owner: {owner} is a part of the ID",
            ),
            (
                r#"get = "/x", values = { "a b" = "/r" }"#,
                "list.values.a b: \"a b\" is not a name",
            ),
            (
                r#"get = "/x", values = { a = "r" }"#,
                "list.values.a: \"r\" is not a place in an answer",
            ),
            (
                r#"get = "/x", entry = "/other""#,
                "list.entry: no rule looks at a place below /other",
            ),
            (
                r#"get = "/x", sort = "new""#,
                "list.sort: there is no such key",
            ),
        ]);
    }

    #[test]
    fn a_list_whose_pages_cannot_be_requested_as_it_says_is_a_fault() {
        assert_faults_of_lists(&[
            (
                r#"get = "/x", limit = 10"#,
                "list.limit: the request does not have {limit}",
            ),
            (
                r#"get = "/x?o={offset}", next = "offset""#,
                "list.next: the request does not have {offset} and {limit}",
            ),
            (
                r#"get = "/x?o={offset}""#,
                "list.next: the request has {offset}, and every page",
            ),
            (
                r#"get = "/x?c={cursor}""#,
                "list.next: the request has {cursor}, and nothing says",
            ),
            (
                r#"get = "/x?c={cursor}", next = { cursor = "/c", param = "c" }"#,
                "list.next.param: the request has {cursor} as well",
            ),
            (
                r#"post = "/x", next = "link""#,
                "list.next: the address of a page is requested by GET",
            ),
        ]);
    }

    /// Asserts the fault of each list, of which the first text is what it has beside its items and its ID.
    fn assert_faults_of_lists(cases: &[(&str, &str)]) {
        for (rest, fault) in cases {
            let list = format!(r#"{{ items = "", id = {{ owner = "/o", run = "/id" }}, {rest} }}"#);
            assert_faults(&[("list", list.as_str(), *fault)]);
        }
    }
}
