//! Reads the file of a profile: TOML to a [`Profile`], or every fault at once.

mod list;
mod requests;
mod rules;
mod tree;
mod values;

use std::collections::BTreeMap;
use std::fmt;

use super::{Fields, PartKind, Pointer, Profile, Template};
use rules::first_place;
use tree::{Entry, read_tree};
use values::Section;

/// One thing that is wrong with a profile, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileFault {
    /// The line of the file, from 1.
    pub line: usize,
    /// The key with its path, such as `rules[2].when`; empty where the file as a whole is meant.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for ProfileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.what, self.fix)
    }
}

/// Reads a profile that is called `name`.
///
/// # Errors
/// Every [`ProfileFault`] of the file, by line; at least one.
pub fn parse(text: &str, name: &str) -> Result<Profile, Vec<ProfileFault>> {
    let mut reading = ProfileReading::default();
    let profile = read_tree(text, 0)
        .map(|tree| {
            reading.inherited = tree.inherited;
            let profile = reading.profile(tree.table, name);
            reading.check(&profile);
            profile
        })
        .map_err(|faults| reading.faults.extend(faults));
    let mut faults = reading.faults;
    if let (Ok(profile), true) = (profile, faults.is_empty()) {
        return Ok(profile);
    }
    faults.sort_by_key(|fault| fault.line);
    Err(faults)
}

/// What has been read so far.
#[derive(Debug, Default)]
pub(super) struct ProfileReading {
    faults: Vec<ProfileFault>,
    /// The lines of the keys, for what is found later.
    pub(super) lines: BTreeMap<String, usize>,
    /// The key of each rule and each address of the profile, by that of their list: what could not be read is left out.
    pub(super) keys: BTreeMap<String, Vec<String>>,
    inherited: BTreeMap<String, String>,
}

impl ProfileReading {
    pub(super) fn fault(
        &mut self,
        line: usize,
        key: &str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let mut what = what.into();
        let top = key.split(['.', '[']).next().unwrap_or_default();
        if let Some(base) = self.inherited.get(top) {
            what.push_str(&format!(" (taken from the built-in profile {base})"));
        }
        self.faults.push(ProfileFault {
            line,
            key: key.to_owned(),
            what,
            fix: fix.into(),
        });
    }

    /// Whether something of this key could not be read.
    pub(super) fn is_broken(&self, key: &str) -> bool {
        self.faults.iter().any(|fault| {
            let rest = fault.key.strip_prefix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    fn profile(&mut self, entries: Vec<Entry>, name: &str) -> Profile {
        let mut top = Section::new(String::new(), 1, entries);
        let title = self.text(&mut top, "title").unwrap_or_default();
        let checked = self.text(&mut top, "checked").unwrap_or_default();
        let aliases = self.words(&mut top, "aliases");
        let _taken_already = self.text(&mut top, "extends");
        let base_url = self.text(&mut top, "base_url").map(without_slash);
        let web = self.text(&mut top, "web").map(without_slash);
        let auth = self.auth(&mut top);
        let headers = self.headers(&mut top);
        let id = self.needed_template(&mut top, "id", "id = \"{run}\"");
        let parts = self.parts(&mut top);
        let urls = self.urls(&mut top);
        let vars = self.vars(&mut top);
        let get = self.needed_template(&mut top, "get", "get = \"/runs/{run}\"");
        let fallback_get = self.template(&mut top, "fallback_get");
        let roots = self.pointers(&mut top, "roots");
        let check_id = self.pointers(&mut top, "check_id");
        let status = self.pointers(&mut top, "status");
        let exact = self.flag(&mut top, "exact");
        let rules = self.rules(&mut top);
        let fields = self.fields(&mut top);
        let confirm = self.confirm(&mut top);
        let detail = self.detail(&mut top);
        let each = self.each(&mut top);
        if rules.is_empty() && each.is_none() {
            let example = "rules = [{ when = { \"/status\" = \"done\" }, is = \"succeeded\" }]";
            self.missing(&top, "rules", example);
        }
        let profile = Profile {
            name: name.to_owned(),
            title,
            checked,
            aliases,
            base_url,
            web,
            auth,
            headers,
            id: id.unwrap_or_default(),
            parts,
            urls,
            get: get.unwrap_or_default(),
            fallback_get,
            vars,
            roots: or_else(roots, || vec![Pointer(Vec::new())]),
            check_id,
            status: or_else(status, || first_place(&rules)),
            exact,
            rules,
            fields,
            confirm,
            detail,
            each,
            rate: self.rate(&mut top),
            stream: self.stream(&mut top),
            list: self.list(&mut top),
        };
        self.finish(top);
        profile
    }

    fn headers(&mut self, top: &mut Section) -> Vec<(String, String)> {
        let example = "headers = { Accept = \"application/json\" }";
        let headers = self.map(top, "headers", example).into_iter();
        headers.map(|(name, _, value)| (name, value)).collect()
    }

    fn urls(&mut self, top: &mut Section) -> Vec<Template> {
        let urls = self.texts(top, "urls").into_iter();
        urls.filter_map(|(line, key, text)| {
            self.lines.insert(key.clone(), line);
            let template = self.template_of(line, &key, &text)?;
            self.keys.entry("urls".to_owned()).or_default().push(key);
            Some(template)
        })
        .collect()
    }

    fn vars(&mut self, top: &mut Section) -> BTreeMap<String, Template> {
        let vars = self
            .map(top, "vars", "vars = { query = \"…\" }")
            .into_iter();
        vars.map(|(name, _, text)| (name, Template::parse_beside_braces(&text)))
            .collect()
    }

    fn parts(&mut self, top: &mut Section) -> BTreeMap<String, PartKind> {
        let mut parts = BTreeMap::new();
        for (name, line, kind) in self.map(top, "parts", "parts = { run = \"number\" }") {
            let kind = match &*kind {
                "number" => PartKind::Number,
                "uuid" => PartKind::Uuid,
                "token" => PartKind::Token,
                "url" => PartKind::Url,
                _ => {
                    let what = format!("there is no kind {kind:?} of a part");
                    let fix = "write number, uuid, token or url, or leave it out";
                    self.fault(line, &format!("parts.{name}"), what, fix);
                    continue;
                }
            };
            parts.insert(name, kind);
        }
        parts
    }

    fn fields(&mut self, top: &mut Section) -> Fields {
        let mut url = Vec::new();
        let mut url_template = None;
        for (line, key, text) in self.texts(top, "url") {
            self.lines.insert(key.clone(), line);
            if text.starts_with('/') {
                url.extend(self.pointer_of(line, &key, &text));
            } else if url_template.is_some() {
                self.fault(
                    line,
                    &key,
                    "it is the second template",
                    "leave out one of them",
                );
            } else {
                url_template = self.template_of(line, &key, &text);
                self.keys.insert("url".to_owned(), vec![key]);
            }
        }
        Fields {
            name: self.pointers(top, "name"),
            attempt: self.pointers(top, "attempt"),
            group: self.pointers(top, "group"),
            created: self.pointers(top, "created"),
            started: self.pointers(top, "started"),
            finished: self.pointers(top, "finished"),
            duration_ms: self.pointers(top, "duration_ms"),
            error: self.pointers(top, "error"),
            reason: self.pointers(top, "reason"),
            input: self.pointers(top, "input"),
            output: self.pointers(top, "output"),
            url,
            url_template,
            version_id: self.pointers(top, "version_id"),
            deployment_id: self.pointers(top, "deployment_id"),
            project: self.pointers(top, "project"),
        }
    }
}

fn without_slash(mut address: String) -> String {
    address.truncate(address.trim_end_matches('/').len());
    address
}

/// The values, or the usual ones where there are none.
fn or_else<T>(values: Vec<T>, usual: impl FnOnce() -> Vec<T>) -> Vec<T> {
    match values.is_empty() {
        true => usual(),
        false => values,
    }
}
