//! Finds what is wrong with a profile that has the right keys and types.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::header::{HeaderName, HeaderValue};

use super::list::{OWN, STATUS, TIMES};
use super::parse::Reading;
use super::template::{PagePattern, web_address};
use super::{
    List, Next, Outcome, PartKind, Piece, Pointer, Profile, Rule, Scalar, Scheme, Subject,
    Template, Test, Token,
};
use crate::domain::{RunState, Verdict};
use crate::text::nearest;

/// Names in templates of addresses that are not parts of an ID.
const PLACES: [&str; 2] = ["base_url", "web"];

/// Headers with which a request proves who sends it.
const KEY_HEADERS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// Headers that say how a request is sent.
const OWN_HEADERS: [&str; 8] = [
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Reading {
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

    fn check_names(&mut self, profile: &Profile) {
        for alias in &profile.aliases {
            let allowed = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
            };
            if !(1..=64).contains(&alias.len()) || !alias.bytes().all(allowed) {
                let what = format!("{alias:?} is not a name");
                self.at(
                    "aliases",
                    what,
                    "write 1 to 64 of the characters a-z 0-9 - _",
                );
            }
        }
        for (key, address) in [("base_url", &profile.base_url), ("web", &profile.web)] {
            let Some(address) = address else { continue };
            let plain =
                !address.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\');
            let right = web_address(address)
                .filter(|url| plain && url.query().is_none() && url.fragment().is_none());
            if right.is_none() {
                let what = format!(
                    "{address:?} is not an http or https address without user, query and fragment"
                );
                self.at(key, what, "write one such as \"https://api.example.com\"");
            }
        }
    }

    fn check_auth(&mut self, profile: &Profile) {
        let auth = &profile.auth;
        match &auth.scheme {
            Scheme::Word(word) if HeaderName::from_bytes(word.as_bytes()).is_err() => {
                let what = format!("{word:?} is not the name of a scheme");
                self.at(
                    "auth.scheme",
                    what,
                    "write bearer, basic, none or one other word",
                );
            }
            Scheme::Header(name) => {
                if self.check_header_name("auth.header", name)
                    && OWN_HEADERS.contains(&&*name.to_ascii_lowercase())
                {
                    let what = format!("the header {name} has another purpose");
                    self.at("auth.header", what, "write the header that takes the key");
                }
            }
            Scheme::None | Scheme::Word(_) | Scheme::Basic => {}
        }
        if auth.scheme != Scheme::Basic {
            for (key, value) in [("user", &auth.user), ("user_env", &auth.user_env)] {
                if value.is_some() {
                    let key = format!("auth.{key}");
                    self.at(&key, "only the scheme basic sends a user", "remove it");
                }
            }
        }
        let login = auth.login.iter();
        let of_login = login.flat_map(|login| [&login.user_env, &login.password_env]);
        let names = auth
            .env
            .iter()
            .chain(&auth.user_env)
            .chain(of_login.flatten());
        for name in names {
            if name.is_empty() || name.contains(['=', '\0']) {
                let what = format!("{name:?} is not the name of an environment variable");
                self.at("auth", what, "write a name such as \"API_KEY\"");
            }
        }
        if auth
            .file
            .as_ref()
            .is_some_and(|file| !file.starts_with('/'))
        {
            self.at(
                "auth.file",
                "the path does not begin with \"/\"",
                "write the whole path",
            );
        }
        if let Some(login) = &auth.login {
            self.check_path("auth.login.post", &login.post, &[], &[]);
        }
    }

    fn check_header_name(&mut self, key: &str, name: &str) -> bool {
        let valid = HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !valid {
            let what = format!("{name:?} is not the name of a header");
            self.at(key, what, "write one such as \"X-Api-Key\"");
        }
        valid
    }

    fn check_headers(&mut self, profile: &Profile) {
        let mut seen = BTreeSet::new();
        if let Scheme::Header(name) = &profile.auth.scheme {
            seen.insert(name.to_ascii_lowercase());
        }
        for (name, value) in &profile.headers {
            let key = format!("headers.{name}");
            if !self.check_header_name(&key, name) {
                continue;
            }
            let lower = name.to_ascii_lowercase();
            if KEY_HEADERS.contains(&&*lower) {
                let what = "a key does not belong in a profile";
                self.at(&key, what, "describe in auth how the key is sent");
            } else if OWN_HEADERS.contains(&&*lower) {
                self.at(&key, "each request has this header already", "remove it");
            } else if !seen.insert(lower) {
                self.at(&key, "the header is there already", "remove one of them");
            }
            if HeaderValue::from_str(value).is_err() {
                let what = format!("{value:?} cannot be sent in a header");
                self.at(&key, what, "write printable ASCII characters");
            }
        }
        for (key, name) in [
            ("rate.remaining", &profile.rate.remaining),
            ("rate.reset", &profile.rate.reset),
        ] {
            self.check_header_name(key, name);
        }
    }

    fn check_id(&mut self, profile: &Profile) {
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

    fn check_vars(&mut self, profile: &Profile) {
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

    fn check_requests(&mut self, profile: &Profile) {
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
    fn check_path(&mut self, key: &str, template: &Template, parts: &[&str], vars: &[&str]) {
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

    fn check_pages(&mut self, profile: &Profile) {
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
        let pattern = PagePattern::of(rest);
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

    fn check_list(&mut self, profile: &Profile, list: &List) {
        let parts: Vec<_> = profile.id.names().collect();
        let names = list.names();
        let mut given: BTreeSet<&str> = list.id.keys().map(String::as_str).collect();
        // A name that is not of the ID is a parameter of its own.
        given.extend(names.iter().map(String::as_str));
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
        for name in &parts {
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
                self.at(&format!("list.id.{name}"), what, one_of(name, &parts));
            }
        }
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

    fn check_on(&mut self, profile: &Profile, section: &str, on: &[RunState]) {
        let key = format!("{section}.on");
        if on.is_empty() && self.lines.contains_key(&key) {
            let what = "it has no state, so the request is never made";
            self.at(
                &key,
                what,
                "write on = [\"succeeded\"], or remove the whole",
            );
        }
        let of_each = profile.each.iter().flat_map(|each| &each.rules);
        let given: Vec<_> = profile
            .rules
            .iter()
            .chain(of_each)
            .map(|rule| rule.is)
            .collect();
        let is_partial = self.is_broken("rules") || self.is_broken("each");
        for state in on {
            let word = state.as_str();
            if Verdict::of_status(&(*state).into()).is_none() {
                let what = format!("{word} is not an end, and the request is made at the end");
                self.at(
                    &key,
                    what,
                    "write one of succeeded, failed, canceled, skipped",
                );
            } else if !is_partial && !given.contains(&Outcome::State(*state)) {
                let what = format!("no rule concludes {word}, so the request is never made");
                self.at(&key, what, "write a state that a rule concludes");
            }
        }
    }

    fn check_rules(&mut self, section: &str, rules: &[Rule], exact: bool) {
        let keys = self.keys.get(section).cloned().unwrap_or_default();
        let known: Vec<_> = rules.iter().map(|rule| Tests::of(rule, exact)).collect();
        for (index, (rule, key)) in rules.iter().zip(&keys).enumerate() {
            if let Some((what, fix)) = impossible(rule) {
                self.fault(rule.line, key, what, fix);
                continue;
            }
            if let Some(by) = known[index].covering(&known[..index]) {
                let by: Vec<_> = by.into_iter().map(|index| &*keys[index]).collect();
                let (verb, line) = if by.len() == 1 {
                    ("holds", "above it")
                } else {
                    ("hold", "above it")
                };
                let what = format!(
                    "no answer reaches it: {} {line} {verb} whenever it does",
                    by.join(" and ")
                );
                self.fault(rule.line, key, what, "put it above, or remove it");
            }
        }
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
fn wrong_text(pieces: &[Piece], is_page: bool) -> Option<String> {
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

/// Why no answer can pass all tests of a rule, and what to do.
fn impossible(rule: &Rule) -> Option<(String, &'static str)> {
    for (index, (subject, test)) in rule.when.iter().enumerate() {
        let Subject::At(place) = subject else {
            let is_code = |value: &Scalar| matches!(value, Scalar::Number(code) if (100.0..600.0).contains(code) && code.fract() == 0.0);
            let sensible = match test {
                Test::OneOf(values) => values.iter().all(is_code),
                Test::Greater(code) => (99.0..599.0).contains(code),
                Test::Absent | Test::Present => false,
            };
            if !sensible {
                let what = "\"@http\" is the status code of the answer, a number from 100 to 599";
                return Some((what.to_owned(), "compare it with such a number"));
            }
            continue;
        };
        for (other, other_test) in &rule.when[index + 1..] {
            let Subject::At(other) = other else { continue };
            let found = contradict((place, test), (other, other_test))
                .or_else(|| contradict((other, other_test), (place, test)));
            if let Some(why) = found {
                return Some((why, "remove one of the two tests, or make two rules"));
            }
        }
    }
    None
}

/// Why the second test cannot hold together with the first, of a place further out.
fn contradict(
    (outer, outer_test): (&Pointer, &Test),
    (inner, inner_test): (&Pointer, &Test),
) -> Option<String> {
    if *inner_test == Test::Absent {
        return None;
    }
    let together = |why: &str| {
        Some(format!(
            "its tests of {outer} and {inner} can never both hold: {why}"
        ))
    };
    if inner.is_below(outer) {
        let step = &inner.0[outer.0.len()];
        let may_be_list = step.is_index() || matches!(step, Token::Where { .. });
        return match outer_test {
            Test::Absent => together("where the one is absent, the other is, too"),
            Test::Greater(_) => together("a number has nothing within it"),
            Test::OneOf(_) if !may_be_list => together("such a value has no members"),
            Test::OneOf(_) | Test::Present => None,
        };
    }
    if *outer_test == Test::Absent {
        return None;
    }
    // Both are there: what holds them is an object or an array.
    let common = std::iter::zip(&outer.0, &inner.0)
        .take_while(|(a, b)| a == b)
        .count();
    match (outer.0.get(common), inner.0.get(common)) {
        (Some(key @ Token::Key(_)), Some(Token::Where { .. })) if !key.is_index() => {
            together("what holds them would be an object and an array")
        }
        _ => None,
    }
}

/// The tests of a rule, in a form that can be compared.
struct Tests<'a>(BTreeMap<Option<&'a Pointer>, Wanted>);

/// What a test wants; values as texts that are equal where the values are.
enum Wanted {
    OneOf(BTreeSet<String>),
    Absent,
    Present,
    Greater(f64),
}

impl<'a> Tests<'a> {
    fn of(rule: &'a Rule, exact: bool) -> Self {
        let value = |value: &Scalar| match value {
            Scalar::Text(text) if exact => format!("\"{text}"),
            Scalar::Text(text) => format!("\"{}", text.to_ascii_lowercase()),
            Scalar::Number(number) => format!("{number}"),
            Scalar::Bool(value) => format!("{value}"),
        };
        let tests = rule.when.iter().map(|(subject, test)| {
            let place = match subject {
                Subject::At(pointer) => Some(pointer),
                Subject::Http => None,
            };
            let wanted = match test {
                Test::OneOf(values) => Wanted::OneOf(values.iter().map(value).collect()),
                Test::Absent => Wanted::Absent,
                Test::Present => Wanted::Present,
                Test::Greater(number) => Wanted::Greater(*number),
            };
            (place, wanted)
        });
        Self(tests.collect())
    }

    /// The rules of which one holds whenever these tests do, if there are such.
    fn covering(&self, earlier: &[Self]) -> Option<Vec<usize>> {
        if let Some(index) = earlier.iter().position(|rule| self.imply(rule, None)) {
            return Some(vec![index]);
        }
        // Or one for each value of a test.
        self.0.iter().find_map(|(place, wanted)| {
            let Wanted::OneOf(values) = wanted else {
                return None;
            };
            let by: Option<BTreeSet<usize>> = values
                .iter()
                .map(|value| {
                    let narrowed = Some((*place, &**value));
                    earlier.iter().position(|rule| self.imply(rule, narrowed))
                })
                .collect();
            by.filter(|by| !by.is_empty())
                .map(|by| by.into_iter().collect())
        })
    }

    /// Whether all tests of `other` hold where these do, of which one may be narrowed to one value.
    fn imply(&self, other: &Self, narrowed: Option<(Option<&Pointer>, &str)>) -> bool {
        other.0.iter().all(|(place, wanted)| {
            let own = self.0.get(place);
            let one = narrowed
                .filter(|(narrow, _)| narrow == place)
                .map(|(_, value)| value);
            match (wanted, own) {
                (Wanted::OneOf(values), Some(Wanted::OneOf(own))) => match one {
                    Some(value) => values.contains(value),
                    None => own.is_subset(values),
                },
                (Wanted::OneOf(_), _) => false,
                (Wanted::Greater(limit), Some(Wanted::Greater(own))) => own >= limit,
                (Wanted::Greater(limit), Some(Wanted::OneOf(own))) => {
                    let greater =
                        |value: &str| value.parse().is_ok_and(|value: f64| value > *limit);
                    match one {
                        Some(value) => greater(value),
                        None => own.iter().all(|value| greater(value)),
                    }
                }
                (Wanted::Greater(_), _) => false,
                (Wanted::Present, _) => self.needs(*place),
                (Wanted::Absent, _) => self.excludes(*place),
            }
        })
    }

    /// Whether there is something at a place where these tests hold.
    fn needs(&self, place: Option<&Pointer>) -> bool {
        let Some(place) = place else { return true };
        self.0.iter().any(|(own, wanted)| match (own, wanted) {
            (None, _) | (_, Wanted::Absent) => false,
            (Some(own), _) if own.is_below(place) => true,
            (Some(own), Wanted::OneOf(values)) => *own == place && !values.contains("\""),
            (Some(own), Wanted::Present | Wanted::Greater(_)) => *own == place,
        })
    }

    /// Whether there is nothing at a place where these tests hold.
    fn excludes(&self, place: Option<&Pointer>) -> bool {
        let Some(place) = place else { return false };
        self.0.iter().any(|(own, wanted)| match (own, wanted) {
            (Some(own), Wanted::Absent) => *own == place || place.is_below(own),
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fault, parse};
    use super::*;
    use proptest::prelude::*;

    /// A profile without a fault; each test replaces or adds some of its lines.
    const SOUND: [(&str, &str); 5] = [
        ("base_url", "\"https://api.example.com\""),
        ("id", "\"{owner}/{run}\""),
        ("urls", "[\"{web}/{owner}/runs/{run}\"]"),
        ("get", "\"/o/{owner}/runs/{run}\""),
        (
            "rules",
            r#"[{ when = { "/s" = "on" }, is = "running" }, { when = { "/s" = "ok" }, is = "succeeded" }, { when = { "/s" = "no" }, is = "failed" }]"#,
        ),
    ];

    fn faults(changes: &[(&str, &str)]) -> Vec<Fault> {
        let mut lines: BTreeMap<&str, &str> = SOUND.into_iter().collect();
        lines.extend(
            changes
                .iter()
                .copied()
                .filter(|(_, value)| !value.is_empty()),
        );
        for (key, _) in changes.iter().filter(|(_, value)| value.is_empty()) {
            lines.remove(key);
        }
        let text: String = lines
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"))
            .collect();
        parse(&text, "test").err().unwrap_or_default()
    }

    /// What is wrong with the value of one key.
    fn one(key: &str, value: &str) -> String {
        let found = faults(&[(key, value)]);
        let lines: Vec<_> = found
            .iter()
            .map(|fault| {
                assert!(!fault.what.is_empty() && !fault.fix.is_empty() && fault.line > 0);
                format!("{}: {}; {}", fault.key, fault.what, fault.fix)
            })
            .collect();
        lines.join("\n")
    }

    #[track_caller]
    fn assert_faults(cases: &[(&str, &str, &str)]) {
        for (key, value, expected) in cases {
            let found = one(key, value);
            assert!(
                found.contains(expected),
                "{key} = {value}\nexpected {expected}\nfound    {found}"
            );
        }
    }

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
        let shown: Vec<_> = found.iter().map(Fault::to_string).collect();
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

    #[test]
    fn a_rule_that_no_answer_reaches_is_a_fault() {
        let rules = |rules: &[&str]| {
            let rules: Vec<_> = rules
                .iter()
                .map(|when| format!("{{ when = {{ {when} }}, is = \"running\" }}"))
                .collect();
            one("rules", &format!("[{}]", rules.join(", ")))
        };
        for (earlier, later) in [
            (r#""/s" = "a""#, r#""/s" = "a""#),
            (r#""/s" = "a""#, r#""/s" = "A""#),
            (r#""/s" = ["a", "b"]"#, r#""/s" = "b", "/t" = 1"#),
            (r#""/s" = 1"#, r#""/s" = 1.0"#),
            (r#""/s" = { present = true }"#, r#""/s" = "a""#),
            (r#""/s" = { present = true }"#, r#""/s/t" = "a""#),
            (r#""/s" = { present = true }"#, r#""/s" = { gt = 3 }"#),
            (r#""/s" = { gt = 3 }"#, r#""/s" = { gt = 4 }"#),
            (r#""/s" = { gt = 3 }"#, r#""/s" = [4, 5]"#),
            (
                r#""/s/t" = { absent = true }"#,
                r#""/s" = { absent = true }"#,
            ),
            (r#""@http" = [202, 204]"#, r#""@http" = 202, "/s" = 1"#),
        ] {
            let found = rules(&[earlier, later]);
            assert!(
                found.contains("rules[1]: no answer reaches it: rules[0] above it holds"),
                "{earlier} / {later}: {found}"
            );
        }
        let found = rules(&[
            r#""/s" = "a""#,
            r#""/s" = ["b", "c"]"#,
            r#""/s" = ["a", "c"]"#,
        ]);
        assert!(
            found.contains("rules[2]: no answer reaches it: rules[0] and rules[1] above it hold"),
            "{found}"
        );
        for (earlier, later) in [
            (r#""/s" = "a", "/t" = 1"#, r#""/s" = "a""#),
            (r#""/s" = "a""#, r#""/s" = ["a", "b"]"#),
            (r#""/s" = "1""#, r#""/s" = 1"#),
            (r#""/s" = "true""#, r#""/s" = true"#),
            (r#""/s" = { present = true }"#, r#""/s" = ["a", ""]"#),
            (r#""/s" = { gt = 3 }"#, r#""/s" = { gt = 2 }"#),
            (r#""/s" = { gt = 3 }"#, r#""/s" = { present = true }"#),
            (
                r#""/s" = { absent = true }"#,
                r#""/s/t" = { absent = true }"#,
            ),
            (r#""/s" = "a""#, r#""/s" = { present = true }"#),
            (r#""@http" = 202"#, r#""@http" = { gt = 201 }"#),
        ] {
            assert_eq!(rules(&[earlier, later]), "", "{earlier} / {later}");
        }
        // Letter for letter, these are two.
        let exact = faults(&[
            ("exact", "true"),
            (
                "rules",
                r#"[{ when = { "/s" = "a" }, is = "failed" }, { when = { "/s" = "A" }, is = "failed" }]"#,
            ),
        ]);
        assert_eq!(exact, []);
        for section in ["confirm", "each"] {
            let value = r#"{ on = ["succeeded"], get = "/x", items = "", rules = [{ when = { "/s" = 1 }, is = "failed" }, { when = { "/s" = 1 }, is = "failed" }] }"#;
            let found = one(section, value);
            assert!(
                found.contains(&format!(
                    "{section}.rules[1]: no answer reaches it: {section}.rules[0]"
                )),
                "{found}"
            );
        }
    }

    #[test]
    fn a_rule_whose_tests_contradict_each_other_is_a_fault() {
        let rule = |when: &str| {
            one(
                "rules",
                &format!("[{{ when = {{ {when} }}, is = \"running\" }}]"),
            )
        };
        for when in [
            r#""/s" = "a", "/s/t" = "b""#,
            r#""/s/t" = { present = true }, "/s" = 3"#,
            r#""/s" = { gt = 1 }, "/s/0" = 1"#,
            r#""/s" = { absent = true }, "/s/t" = 1"#,
            r#""/s/t/u" = { gt = 0 }, "/s" = { absent = true }"#,
            r#""/s/t" = 1, "/s/[k=v]/t" = 1"#,
        ] {
            let found = rule(when);
            assert!(found.contains("can never both hold"), "{when}: {found}");
        }
        for when in [
            r#""@http" = "ok""#,
            r#""@http" = 20"#,
            r#""@http" = [200, 200.5]"#,
            r#""@http" = { present = true }"#,
            r#""@http" = { gt = 599 }"#,
        ] {
            assert!(
                rule(when).contains("is the status code of the answer"),
                "{when}"
            );
        }
        for when in [
            r#""/s" = "a", "/t/u" = "b""#,
            r#""/s" = "a", "/s/0" = "b""#,
            r#""/s" = { present = true }, "/s/t" = { absent = true }"#,
            r#""/s" = "a", "/s/t" = { absent = true }"#,
            r#""/s/0/t" = 1, "/s/[k=v]/t" = 1"#,
            r#""@http" = 400, "/code" = "X""#,
        ] {
            assert_eq!(rule(when), "", "{when}");
        }
    }

    #[test]
    fn a_second_request_that_is_never_made_is_a_fault() {
        let rules = r#"rules = [{ when = { "/w" = true }, is = "waiting" }]"#;
        let confirm = |on: &str| {
            one(
                "confirm",
                &format!("{{ on = {on}, get = \"/x\", {rules} }}"),
            )
        };
        assert!(confirm("[\"canceled\"]").contains("no rule concludes canceled"));
        assert!(confirm("[\"running\"]").contains("running is not an end"));
        assert!(confirm("[\"done\"]").contains("there is no state \"done\""));
        assert!(confirm("[]").contains("it has no state"));
        assert_faults(&[
            (
                "detail",
                r#"{ on = ["skipped"], get = "/x", error = "/e" }"#,
                "detail.on: no rule concludes skipped",
            ),
            (
                "detail",
                r#"{ get = "/x" }"#,
                "nothing is read from its answer",
            ),
        ]);
    }

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
        let list = |rest: &str| {
            format!(r#"{{ items = "", id = {{ owner = "/o", run = "/id" }}, {rest} }}"#)
        };
        let cases = [
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
        ];
        let cases: Vec<_> = cases
            .iter()
            .map(|(rest, fault)| (list(rest), *fault))
            .collect();
        for (list, fault) in &cases {
            assert_faults(&[("list", list.as_str(), *fault)]);
        }
    }

    #[test]
    fn a_header_that_cannot_be_sent_is_a_fault() {
        assert_faults(&[
            (
                "headers",
                r#"{ "A B" = "c" }"#,
                "\"A B\" is not the name of a header",
            ),
            ("headers", r#"{ A = "b\nc" }"#, "cannot be sent in a header"),
            (
                "headers",
                r#"{ authorization = "Bearer x" }"#,
                "a key does not belong in a profile; describe in auth",
            ),
            (
                "headers",
                r#"{ Cookie = "x" }"#,
                "a key does not belong in a profile",
            ),
            (
                "headers",
                r#"{ Host = "evil.example" }"#,
                "each request has this header already",
            ),
            (
                "headers",
                r#"{ Accept = "a", accept = "b" }"#,
                "the header is there already",
            ),
            (
                "auth",
                r#"{ header = "X Key" }"#,
                "is not the name of a header",
            ),
            ("auth", r#"{ header = "Host" }"#, "has another purpose"),
            (
                "auth",
                r#"{ scheme = "a b" }"#,
                "is not the name of a scheme",
            ),
            (
                "auth",
                r#"{ scheme = "bearer", user_env = "U" }"#,
                "only the scheme basic sends a user",
            ),
            (
                "auth",
                r#"{ env = ["A=B"] }"#,
                "is not the name of an environment variable",
            ),
            ("auth", r#"{ file = "key" }"#, "does not begin with \"/\""),
            (
                "rate",
                r#"{ reset = "x y" }"#,
                "is not the name of a header",
            ),
            ("rate", r#"{ per_minute = 0 }"#, "not a whole number from 1"),
            (
                "rate",
                r#"{ per_minute = 1.5 }"#,
                "not a whole number from 1",
            ),
            ("aliases", r#"["G H"]"#, "is not a name"),
        ]);
        let found = faults(&[
            ("auth", "{ header = \"X-Key\" }"),
            ("headers", "{ x-key = \"a\" }"),
        ]);
        assert!(found[0].what.contains("there already"), "{found:?}");
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
        let shown: Vec<_> = faults.iter().map(Fault::to_string).collect();
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
