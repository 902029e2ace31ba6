//! Reads the file of a profile: TOML to a [`Profile`], or every fault at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::builtin::{builtin_names, builtin_source};
use super::{
    Auth, Confirm, Detail, Each, Fields, List, Login, Next, Outcome, PartKind, Pointer, Profile,
    Rate, Rule, Scalar, Scheme, Stream, Subject, Template, Test,
};
use crate::domain::RunState;
use crate::text::nearest;

/// Largest file, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// Most rules of a list, and most tests of a rule: each rule is compared with those above it.
const MAX_RULES: usize = 128;
const MAX_TESTS: usize = 8;

/// Longest template, in bytes, and most parts of one.
const MAX_TEMPLATE_BYTES: usize = 2048;
const MAX_PARTS: usize = 16;

/// Most profiles of which each takes keys of the next.
const MAX_EXTENDS: usize = 4;

/// Keys that a profile does not take from another: they are about that one alone.
const OWN_KEYS: [&str; 3] = ["aliases", "checked", "extends"];

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

/// A value of the file, with its line.
#[derive(Debug, Clone)]
struct Node {
    line: usize,
    value: TomlValue,
}

#[derive(Debug, Clone)]
enum TomlValue {
    Text(String),
    Number(f64),
    Bool(bool),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// A date, or a number that is out of range.
    Other,
}

/// A key of a table with its value, in the order of the file.
#[derive(Debug, Clone)]
struct Entry {
    key: String,
    line: usize,
    node: Node,
}

impl Node {
    fn of(value: Spanned<DeValue<'_>>, lines: &[usize]) -> Self {
        let line = line_of(lines, value.span().start);
        let value = match value.into_inner() {
            DeValue::String(text) => TomlValue::Text(text.into_owned()),
            DeValue::Boolean(value) => TomlValue::Bool(value),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .ok()
                // By way of its text: there is no lossless conversion, and none is needed.
                .and_then(|number| number.to_string().parse().ok())
                .map_or(TomlValue::Other, TomlValue::Number),
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => TomlValue::Number(number),
                _ => TomlValue::Other,
            },
            DeValue::Datetime(_) => TomlValue::Other,
            DeValue::Array(items) => TomlValue::List(
                items
                    .into_iter()
                    .map(|item| Self::of(item, lines))
                    .collect(),
            ),
            DeValue::Table(table) => TomlValue::Table(entries(table, lines)),
        };
        Self { line, value }
    }

    /// The value as it is in a profile that takes it from another in `line`.
    fn moved_to(mut self, line: usize) -> Self {
        self.line = line;
        self.value = match self.value {
            TomlValue::List(items) => {
                TomlValue::List(items.into_iter().map(|item| item.moved_to(line)).collect())
            }
            TomlValue::Table(entries) => {
                let moved = |entry: Entry| Entry {
                    line,
                    node: entry.node.moved_to(line),
                    ..entry
                };
                TomlValue::Table(entries.into_iter().map(moved).collect())
            }
            other => other,
        };
        self
    }
}

fn entries(table: DeTable<'_>, lines: &[usize]) -> Vec<Entry> {
    let mut found: Vec<_> = table
        .into_iter()
        .map(|(key, value)| {
            let place = key.span().start;
            let entry = Entry {
                line: line_of(lines, place),
                key: key.into_inner().into_owned(),
                node: Node::of(value, lines),
            };
            (place, entry)
        })
        .collect();
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, entry)| entry).collect()
}

/// The line of an offset, from 1.
fn line_of(line_ends: &[usize], offset: usize) -> usize {
    line_ends.partition_point(|end| *end < offset) + 1
}

/// The keys of a file, with those that it takes from another.
struct Tree {
    table: Vec<Entry>,
    /// The keys that come from another profile, and its name.
    inherited: BTreeMap<String, String>,
}

fn read_tree(text: &str, depth: usize) -> Result<Tree, Vec<ProfileFault>> {
    let fault = |line, key: &str, what, fix| ProfileFault {
        line,
        key: key.to_owned(),
        what,
        fix,
    };
    if text.len() > MAX_BYTES {
        let what = format!("the file has more than {MAX_BYTES} bytes");
        return Err(vec![fault(1, "", what, "shorten it".to_owned())]);
    }
    let lines: Vec<usize> = text.match_indices('\n').map(|(place, _)| place).collect();
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let faults = errors.iter().map(|error| {
            let line = line_of(&lines, error.span().map_or(0, |span| span.start));
            let message = error.message().replace('\n', ", ");
            let what = format!("this is not valid TOML ({message})");
            fault(
                line,
                "",
                what,
                "correct it; https://toml.io has the rules".to_owned(),
            )
        });
        return Err(faults.collect());
    }
    let mut tree = Tree {
        table: entries(table.into_inner(), &lines),
        inherited: BTreeMap::new(),
    };
    let extends = tree.table.iter().find(|entry| entry.key == "extends");
    let Some((line, base)) = extends.map(|entry| (entry.line, entry.node.value.clone())) else {
        return Ok(tree);
    };
    let TomlValue::Text(base) = base else {
        let what = "it is not a text".to_owned();
        let fix = "write the name of a built-in profile".to_owned();
        return Err(vec![fault(line, "extends", what, fix)]);
    };
    let Some(source) = builtin_source(&base) else {
        let what = format!("there is no built-in profile {base:?}");
        let fix = match nearest(&base, builtin_names().iter().copied()) {
            Some(name) => format!("did you mean {name:?}?"),
            None => format!("write one of {}", builtin_names().join(", ")),
        };
        return Err(vec![fault(line, "extends", what, fix)]);
    };
    if depth == MAX_EXTENDS {
        let what = "the profile that it extends extends others, too often".to_owned();
        return Err(vec![fault(
            line,
            "extends",
            what,
            "extend another one".to_owned(),
        )]);
    }
    let own: BTreeSet<_> = tree.table.iter().map(|entry| entry.key.clone()).collect();
    for entry in read_tree(source, depth + 1)?.table {
        if own.contains(&entry.key) || OWN_KEYS.contains(&&*entry.key) {
            continue;
        }
        tree.inherited.insert(entry.key.clone(), base.clone());
        tree.table.push(Entry {
            line,
            node: entry.node.moved_to(line),
            ..entry
        });
    }
    Ok(tree)
}

/// A table that is being read: which keys it has, and which were looked for.
struct Section {
    path: String,
    line: usize,
    entries: Vec<Entry>,
    known: Vec<&'static str>,
}

impl Section {
    fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        let entry = self.entries.remove(index);
        Some(Node {
            line: entry.line,
            ..entry.node
        })
    }
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

    fn take(&mut self, section: &mut Section, key: &'static str) -> Option<(String, Node)> {
        let path = section.key(key);
        let node = section.take(key)?;
        self.lines.insert(path.clone(), node.line);
        Some((path, node))
    }

    /// Takes a table; anything else is a fault.
    fn section(
        &mut self,
        section: &mut Section,
        key: &'static str,
        example: &str,
    ) -> Option<Section> {
        let (path, node) = self.take(section, key)?;
        self.table(path, node, example)
    }

    fn table(&mut self, path: String, node: Node, example: &str) -> Option<Section> {
        match node.value {
            TomlValue::Table(entries) => Some(Section {
                path,
                line: node.line,
                entries,
                known: Vec::new(),
            }),
            _ => {
                self.fault(
                    node.line,
                    &path,
                    "it is not a table",
                    format!("write {example}"),
                );
                None
            }
        }
    }

    /// Reports the keys of a table that nothing looked for.
    fn finish(&mut self, section: Section) {
        for entry in &section.entries {
            let fix = match nearest(&entry.key, section.known.iter().copied()) {
                Some(key) => format!("did you mean {key}?"),
                None => format!("remove it; there are {}", section.known.join(", ")),
            };
            self.fault(
                entry.line,
                &section.key(&entry.key),
                "there is no such key",
                fix,
            );
        }
    }

    fn text(&mut self, section: &mut Section, key: &'static str) -> Option<String> {
        let (path, node) = self.take(section, key)?;
        match node.value {
            TomlValue::Text(text) => Some(text),
            _ => {
                self.fault(node.line, &path, "it is not a text", "write it in quotes");
                None
            }
        }
    }

    fn flag(&mut self, section: &mut Section, key: &'static str) -> bool {
        let Some((path, node)) = self.take(section, key) else {
            return false;
        };
        match node.value {
            TomlValue::Bool(value) => value,
            _ => {
                self.fault(
                    node.line,
                    &path,
                    "it is neither true nor false",
                    "write true or false",
                );
                false
            }
        }
    }

    /// Takes a text, or a list of texts.
    fn texts(&mut self, section: &mut Section, key: &'static str) -> Vec<(usize, String, String)> {
        let Some((path, node)) = self.take(section, key) else {
            return Vec::new();
        };
        self.texts_of(path, node)
    }

    /// Line, key and text of each.
    fn texts_of(&mut self, path: String, node: Node) -> Vec<(usize, String, String)> {
        match node.value {
            TomlValue::Text(text) => vec![(node.line, path, text)],
            TomlValue::List(items) => {
                let mut found = Vec::new();
                for (index, item) in items.into_iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    match item.value {
                        TomlValue::Text(text) => found.push((item.line, path, text)),
                        _ => self.fault(item.line, &path, "it is not a text", "write it in quotes"),
                    }
                }
                found
            }
            _ => {
                self.fault(
                    node.line,
                    &path,
                    "it is not a text",
                    "write a text or a list of texts",
                );
                Vec::new()
            }
        }
    }

    fn words(&mut self, section: &mut Section, key: &'static str) -> Vec<String> {
        let found = self.texts(section, key).into_iter();
        found.map(|(_, _, text)| text).collect()
    }

    fn pointer_of(&mut self, line: usize, key: &str, text: &str) -> Option<Pointer> {
        match Pointer::parse(text) {
            Ok(pointer) => Some(pointer),
            Err(problem) => {
                let fix = format!("write a JSON Pointer such as {:?}", suggested(text));
                self.fault(
                    line,
                    key,
                    format!("{text:?} is not a place in an answer: {problem}"),
                    fix,
                );
                None
            }
        }
    }

    fn pointers(&mut self, section: &mut Section, key: &'static str) -> Vec<Pointer> {
        let found = self.texts(section, key);
        let read = |(line, key, text): (usize, String, String)| self.pointer_of(line, &key, &text);
        found.into_iter().filter_map(read).collect()
    }

    fn pointer(&mut self, section: &mut Section, key: &'static str) -> Option<Pointer> {
        let text = self.text(section, key)?;
        let path = section.key(key);
        self.pointer_of(self.lines[&path], &path, &text)
    }

    fn template_of(&mut self, line: usize, key: &str, text: &str) -> Option<Template> {
        if text.len() > MAX_TEMPLATE_BYTES {
            let what = format!("it has more than {MAX_TEMPLATE_BYTES} bytes");
            self.fault(line, key, what, "shorten it");
            return None;
        }
        match Template::parse(text) {
            Ok(template) if template.names().count() > MAX_PARTS => {
                let what = format!("it has more than {MAX_PARTS} parts");
                self.fault(line, key, what, "write fewer parts");
                None
            }
            Ok(template) => Some(template),
            Err(problem) => {
                let fix = "write a part as {name}, a name has letters, digits, - and _";
                self.fault(
                    line,
                    key,
                    format!("{text:?} is not a template: {problem}"),
                    fix,
                );
                None
            }
        }
    }

    fn template(&mut self, section: &mut Section, key: &'static str) -> Option<Template> {
        let text = self.text(section, key)?;
        let path = section.key(key);
        self.template_of(self.lines[&path], &path, &text)
    }

    /// Takes a table whose values are texts.
    fn map(
        &mut self,
        section: &mut Section,
        key: &'static str,
        example: &str,
    ) -> Vec<(String, usize, String)> {
        let Some(section) = self.section(section, key, example) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in section.entries {
            let path = format!("{}.{}", section.path, entry.key);
            self.lines.insert(path.clone(), entry.line);
            match entry.node.value {
                TomlValue::Text(text) => found.push((entry.key, entry.line, text)),
                _ => self.fault(entry.line, &path, "it is not a text", "write it in quotes"),
            }
        }
        found
    }

    fn states(&mut self, section: &mut Section, key: &'static str) -> Option<Vec<RunState>> {
        let (path, node) = self.take(section, key)?;
        let texts = self.texts_of(path, node).into_iter();
        let mut states = Vec::new();
        for (line, key, text) in texts {
            match RunState::from_word(&text).filter(|state| *state != RunState::Unknown) {
                Some(state) => states.push(state),
                None => {
                    let fix = format!("write one of {}", words_of_states());
                    self.fault(line, &key, format!("there is no state {text:?}"), fix);
                }
            }
        }
        Some(states)
    }

    fn missing(&mut self, section: &Section, key: &str, example: &str) {
        let path = section.key(key);
        // A key that is there and wrong has its fault already.
        if !self.lines.contains_key(&path) {
            let what = format!("{key} is missing");
            self.fault(section.line, &path, what, format!("write {example}"));
        }
    }

    fn rules(&mut self, section: &mut Section) -> Vec<Rule> {
        let Some((path, node)) = self.take(section, "rules") else {
            return Vec::new();
        };
        let example = "rules = [{ when = { \"/status\" = \"done\" }, is = \"succeeded\" }]";
        let TomlValue::List(items) = node.value else {
            self.fault(
                node.line,
                &path,
                "it is not a list",
                format!("write {example}"),
            );
            return Vec::new();
        };
        if items.is_empty() {
            self.fault(
                node.line,
                &path,
                "it has no rule",
                format!("write {example}"),
            );
        }
        if items.len() > MAX_RULES {
            let what = format!("it has more than {MAX_RULES} rules");
            self.fault(node.line, &path, what, "use lists of values in fewer rules");
            return Vec::new();
        }
        let list = path.clone();
        let mut rules = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let line = item.line;
            self.lines.insert(path.clone(), line);
            let example = "{ when = { \"/status\" = \"done\" }, is = \"succeeded\" }";
            let key = path.clone();
            let Some(mut rule) = self.table(path, item, example) else {
                continue;
            };
            let when = self.tests(&mut rule);
            let is = self.outcome(&mut rule);
            self.finish(rule);
            if let (Some(when), Some(is)) = (when, is) {
                rules.push(Rule { when, is, line });
                self.keys.entry(list.clone()).or_default().push(key);
            }
        }
        rules
    }

    fn outcome(&mut self, rule: &mut Section) -> Option<Outcome> {
        let Some(word) = self.text(rule, "is") else {
            self.missing(rule, "is", "is = \"succeeded\" or another state");
            return None;
        };
        if word == "not_found" {
            return Some(Outcome::NotFound);
        }
        let state = RunState::from_word(&word).filter(|state| *state != RunState::Unknown);
        if state.is_none() {
            let path = rule.key("is");
            let fix = format!("write one of {}, not_found", words_of_states());
            self.fault(
                self.lines[&path],
                &path,
                format!("there is no state {word:?}"),
                fix,
            );
        }
        state.map(Outcome::State)
    }

    fn tests(&mut self, rule: &mut Section) -> Option<Vec<(Subject, Test)>> {
        let example = "when = { \"/status\" = \"done\" }";
        let Some(when) = self.section(rule, "when", example) else {
            self.missing(rule, "when", example);
            return None;
        };
        if when.entries.is_empty() {
            let what = "a rule without a test holds for every answer, and an answer that no rule knows must stay unknown";
            self.fault(when.line, &when.path, what, format!("write {example}"));
            return None;
        }
        if when.entries.len() > MAX_TESTS {
            let what = format!("it has more than {MAX_TESTS} tests");
            self.fault(when.line, &when.path, what, "make several rules");
            return None;
        }
        let mut tests = Vec::new();
        let mut whole = true;
        for entry in when.entries {
            let path = format!("{}.{}", when.path, entry.key);
            let subject = if entry.key == "@http" {
                Some(Subject::Http)
            } else {
                self.pointer_of(entry.line, &path, &entry.key)
                    .map(Subject::At)
            };
            match (subject, self.test(&path, entry.line, entry.node)) {
                (Some(subject), Some(test)) => tests.push((subject, test)),
                _ => whole = false,
            }
        }
        whole.then_some(tests)
    }

    fn test(&mut self, path: &str, line: usize, node: Node) -> Option<Test> {
        let fix = "write a text, a number, true, false, a list of these, { absent = true }, { present = true } or { gt = 0 }";
        match node.value {
            TomlValue::List(items) => {
                if items.is_empty() {
                    self.fault(
                        line,
                        path,
                        "an empty list holds for no answer",
                        "write at least one value",
                    );
                    return None;
                }
                let mut values = Vec::new();
                let mut whole = true;
                for item in items {
                    match scalar(item.value) {
                        Some(value) => values.push(value),
                        None => {
                            whole = false;
                            let what =
                                "the list has something else than texts, numbers, true and false";
                            self.fault(item.line, path, what, fix);
                        }
                    }
                }
                whole.then_some(Test::OneOf(values))
            }
            TomlValue::Table(entries) => {
                let found = match &*entries {
                    [entry] => match (&*entry.key, &entry.node.value) {
                        ("absent", TomlValue::Bool(true)) => Some(Test::Absent),
                        ("present", TomlValue::Bool(true)) => Some(Test::Present),
                        ("gt", TomlValue::Number(number)) => Some(Test::Greater(*number)),
                        ("gt", _) => {
                            self.fault(
                                line,
                                path,
                                "what gt compares with is not a number",
                                "write { gt = 0 }",
                            );
                            return None;
                        }
                        _ => None,
                    },
                    _ => None,
                };
                if found.is_none() {
                    self.fault(line, path, "there is no such test", fix);
                }
                found
            }
            other => {
                let value = scalar(other);
                if value.is_none() {
                    self.fault(line, path, "there is no such test", fix);
                }
                value.map(|value| Test::OneOf(vec![value]))
            }
        }
    }

    fn profile(&mut self, entries: Vec<Entry>, name: &str) -> Profile {
        let mut top = Section {
            path: String::new(),
            line: 1,
            entries,
            known: Vec::new(),
        };
        let title = self.text(&mut top, "title").unwrap_or_default();
        let checked = self.text(&mut top, "checked").unwrap_or_default();
        let aliases = self.words(&mut top, "aliases");
        let _taken_already = self.text(&mut top, "extends");
        let base_url = self.text(&mut top, "base_url").map(without_slash);
        let web = self.text(&mut top, "web").map(without_slash);
        let auth = self.auth(&mut top);
        let headers = self.map(
            &mut top,
            "headers",
            "headers = { Accept = \"application/json\" }",
        );
        let headers = headers
            .into_iter()
            .map(|(name, _, value)| (name, value))
            .collect();
        let id = self.template(&mut top, "id");
        if id.is_none() {
            self.missing(&top, "id", "id = \"{run}\"");
        }
        let parts = self.parts(&mut top);
        let urls = self.texts(&mut top, "urls");
        let urls = urls
            .into_iter()
            .filter_map(|(line, key, text)| {
                self.lines.insert(key.clone(), line);
                let template = self.template_of(line, &key, &text)?;
                self.keys.entry("urls".to_owned()).or_default().push(key);
                Some(template)
            })
            .collect();
        let vars = self.map(&mut top, "vars", "vars = { query = \"…\" }");
        let vars = vars
            .into_iter()
            .map(|(name, _, text)| (name, Template::parse_beside_braces(&text)))
            .collect();
        let get = self.template(&mut top, "get");
        if get.is_none() {
            self.missing(&top, "get", "get = \"/runs/{run}\"");
        }
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
        let rate = self.rate(&mut top);
        let stream = self.stream(&mut top);
        let list = self.list(&mut top);
        self.finish(top);
        let nothing = || Template(Vec::new());
        Profile {
            name: name.to_owned(),
            title,
            checked,
            aliases,
            base_url,
            web,
            auth,
            headers,
            id: id.unwrap_or_else(nothing),
            parts,
            urls,
            get: get.unwrap_or_else(nothing),
            fallback_get,
            vars,
            roots: if roots.is_empty() {
                vec![Pointer(Vec::new())]
            } else {
                roots
            },
            check_id,
            status: if status.is_empty() {
                first_place(&rules)
            } else {
                status
            },
            exact,
            rules,
            fields,
            confirm,
            detail,
            each,
            rate,
            stream,
            list,
        }
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

    fn auth(&mut self, top: &mut Section) -> Auth {
        let mut auth = Auth {
            scheme: Scheme::None,
            env: Vec::new(),
            file: None,
            user_env: None,
            user: None,
            optional: false,
            login: None,
        };
        let example = "auth = { scheme = \"bearer\", env = [\"API_KEY\"] }";
        let Some(mut section) = self.section(top, "auth", example) else {
            return auth;
        };
        let scheme = self.text(&mut section, "scheme");
        let header = self.text(&mut section, "header");
        auth.env = self.words(&mut section, "env");
        auth.file = self.text(&mut section, "file");
        auth.user_env = self.text(&mut section, "user_env");
        auth.user = self.text(&mut section, "user");
        auth.optional = self.flag(&mut section, "optional");
        if let Some(mut login) = self.section(
            &mut section,
            "login",
            "login = { post = \"/auth/token\", token = \"/access_token\" }",
        ) {
            let post = self.template(&mut login, "post");
            let token = self.pointer(&mut login, "token");
            if post.is_none() {
                self.missing(&login, "post", "post = \"/auth/token\"");
            }
            if token.is_none() {
                self.missing(&login, "token", "token = \"/access_token\"");
            }
            let user_env = self.text(&mut login, "user_env");
            let password_env = self.text(&mut login, "password_env");
            self.finish(login);
            auth.login = post.zip(token).map(|(post, token)| Login {
                post,
                token,
                user_env,
                password_env,
            });
        }
        auth.scheme = match (scheme, header) {
            (Some(_), Some(_)) => {
                let what = "it has a scheme and a header";
                self.fault(section.line, "auth", what, "leave out one of them");
                Scheme::None
            }
            (None, Some(header)) => Scheme::Header(header),
            (Some(word), None) => match &*word {
                "none" => Scheme::None,
                "basic" => Scheme::Basic,
                "bearer" => Scheme::Word("Bearer".to_owned()),
                _ => Scheme::Word(word),
            },
            (None, None) => Scheme::Word("Bearer".to_owned()),
        };
        self.finish(section);
        auth
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

    fn confirm(&mut self, top: &mut Section) -> Option<Confirm> {
        let example = "confirm = { on = [\"succeeded\"], get = \"/…\", rules = […] }";
        let mut section = self.section(top, "confirm", example)?;
        let on = self.states(&mut section, "on");
        if on.is_none() {
            self.missing(&section, "on", "on = [\"succeeded\"]");
        }
        let get = self.template(&mut section, "get");
        if get.is_none() {
            self.missing(&section, "get", "get = \"/…\"");
        }
        let rules = self.rules(&mut section);
        if rules.is_empty() {
            let example = "rules = [{ when = { \"/status\" = \"paused\" }, is = \"waiting\" }]";
            self.missing(&section, "rules", example);
        }
        let error = self.pointers(&mut section, "error");
        let output = self.pointers(&mut section, "output");
        self.finish(section);
        Some(Confirm {
            on: on.unwrap_or_default(),
            get: get?,
            rules,
            error,
            output,
        })
    }

    fn detail(&mut self, top: &mut Section) -> Option<Detail> {
        let example = "detail = { get = \"/…\", error = \"/error\" }";
        let mut section = self.section(top, "detail", example)?;
        let on = self.states(&mut section, "on");
        let get = self.template(&mut section, "get");
        if get.is_none() {
            self.missing(&section, "get", "get = \"/…\"");
        }
        let error = self.pointers(&mut section, "error");
        let output = self.pointers(&mut section, "output");
        self.finish(section);
        Some(Detail {
            on: on.unwrap_or_else(|| vec![RunState::Failed]),
            get: get?,
            error,
            output,
        })
    }

    fn each(&mut self, top: &mut Section) -> Option<Each> {
        let example = "each = { items = \"/items\", rules = […] }";
        let mut section = self.section(top, "each", example)?;
        let get = self.template(&mut section, "get");
        let items = self.pointer(&mut section, "items");
        if items.is_none() {
            self.missing(&section, "items", "items = \"/items\"");
        }
        let rules = self.rules(&mut section);
        if rules.is_empty() {
            let example = "rules = [{ when = { \"/status\" = \"done\" }, is = \"succeeded\" }]";
            self.missing(&section, "rules", example);
        }
        let name = self.pointers(&mut section, "name");
        self.finish(section);
        Some(Each {
            get,
            items: items.unwrap_or(Pointer(Vec::new())),
            rules,
            name,
        })
    }

    fn rate(&mut self, top: &mut Section) -> Rate {
        let mut rate = Rate {
            remaining: "x-ratelimit-remaining".to_owned(),
            reset: "x-ratelimit-reset".to_owned(),
            per_minute: 60,
            etag_free: false,
        };
        let Some(mut section) = self.section(top, "rate", "rate = { per_minute = 60 }") else {
            return rate;
        };
        // Which status codes refuse a request is known without it.
        let _no_more_than_that = section.take("refused");
        if let Some(name) = self.text(&mut section, "remaining") {
            rate.remaining = name;
        }
        if let Some(name) = self.text(&mut section, "reset") {
            rate.reset = name;
        }
        if let Some(number) = self.whole(&mut section, "per_minute", 100_000) {
            rate.per_minute = number;
        }
        rate.etag_free = self.flag(&mut section, "etag_free");
        self.finish(section);
        rate
    }

    fn stream(&mut self, top: &mut Section) -> Option<Stream> {
        let mut section = self.section(top, "stream", "stream = { sse = \"/…\" }")?;
        let sse = self.template(&mut section, "sse");
        if sse.is_none() {
            self.missing(&section, "sse", "sse = \"/runs/{run}/events\"");
        }
        let mut words = |key| self.words(&mut section, key);
        let (started, ended) = (words("started"), words("ended"));
        let (over, alive) = (words("over"), words("alive"));
        let (news, failed, last) = (words("news"), words("failed"), words("last"));
        let suggestions = [
            ("started", &started),
            ("ended", &ended),
            ("over", &over),
            ("alive", &alive),
        ];
        for (at, (key, types)) in suggestions.into_iter().enumerate() {
            let others = &suggestions[..at];
            for kind in types {
                let other = others.iter().find(|(_, types)| types.contains(kind));
                if let Some((other, _)) = other {
                    let what =
                        format!("{kind:?} is in {other} as well, and only one of them can hold");
                    let fix = format!("take it out of {other} or of {key}");
                    self.fault(section.line, &section.key(key), what, fix);
                }
            }
        }
        self.finish(section);
        Some(Stream {
            sse: sse?,
            started,
            ended,
            over,
            alive,
            news,
            failed,
            last,
        })
    }

    fn list(&mut self, top: &mut Section) -> Option<List> {
        let example = "list = { get = \"/runs\", items = \"/runs\", id = { run = \"/id\" } }";
        let mut section = self.section(top, "list", example)?;
        let get = self.template(&mut section, "get");
        let post = self.template(&mut section, "post");
        let body = self.body(&mut section);
        let items = self.pointers(&mut section, "items");
        if items.is_empty() {
            self.missing(
                &section,
                "items",
                "items = \"/runs\", or items = \"\" for the whole answer",
            );
        }
        let omits_empty = self.flag(&mut section, "omits_empty");
        let id = self.places(&mut section, "id", "id = { run = \"/id\" }");
        let entry = self.pointer(&mut section, "entry");
        let limit = self.whole(&mut section, "limit", 1000);
        let active = self.groups(&mut section, "active");
        let unlisted = self.words(&mut section, "unlisted");
        let since = self.template(&mut section, "since");
        let needs = self.words(&mut section, "needs");
        let values = self.places(&mut section, "values", "values = { branch = \"/branch\" }");
        let next = self.next(&mut section);
        if get.is_none() && post.is_none() && !self.lines.contains_key("list.post") {
            self.missing(&section, "get", "get = \"/runs\", or post");
        } else if get.is_some() && post.is_some() {
            let what = "the list has get and post";
            self.fault(section.line, "list", what, "leave out one of them");
        }
        self.finish(section);
        Some(List {
            get,
            post,
            body,
            items,
            omits_empty,
            id,
            entry: entry.unwrap_or(Pointer(Vec::new())),
            limit: limit.unwrap_or(100),
            active,
            unlisted,
            since,
            needs,
            values,
            next,
        })
    }

    /// Takes a table of places by name.
    fn places(
        &mut self,
        section: &mut Section,
        key: &'static str,
        example: &str,
    ) -> BTreeMap<String, Pointer> {
        let path = section.key(key);
        let mut places = BTreeMap::new();
        for (name, line, text) in self.map(section, key, example) {
            if let Some(pointer) = self.pointer_of(line, &format!("{path}.{name}"), &text) {
                places.insert(name, pointer);
            }
        }
        places
    }

    /// Takes a whole number from 1 to `most`.
    fn whole(&mut self, section: &mut Section, key: &'static str, most: u32) -> Option<u32> {
        let (path, node) = self.take(section, key)?;
        match node.value {
            TomlValue::Number(number)
                if (1.0..=f64::from(most)).contains(&number) && number.fract() == 0.0 =>
            {
                number.to_string().parse().ok()
            }
            _ => {
                let what = format!("it is not a whole number from 1 to {most}");
                let fix = format!("write {key} = 60, or leave it out");
                self.fault(node.line, &path, what, fix);
                None
            }
        }
    }

    /// Takes texts, each alone or with others in a list of its own.
    fn groups(&mut self, section: &mut Section, key: &'static str) -> Vec<Vec<String>> {
        let Some((path, node)) = self.take(section, key) else {
            return Vec::new();
        };
        let TomlValue::List(items) = node.value else {
            let one = self.texts_of(path, node).into_iter();
            return one.map(|(_, _, text)| vec![text]).collect();
        };
        let mut groups = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let found = self.texts_of(format!("{path}[{index}]"), item).into_iter();
            groups.push(found.map(|(_, _, text)| text).collect());
        }
        groups
    }

    /// Takes JSON that is written as a text.
    fn body(&mut self, section: &mut Section) -> Option<serde_json::Value> {
        let text = self.text(section, "body")?;
        let path = section.key("body");
        match serde_json::from_str(&text) {
            Ok(body @ serde_json::Value::Object(_)) => Some(body),
            Ok(_) => {
                let what = "it is not a JSON object";
                let fix = "write one such as '{\"limit\": \"{limit}\"}'";
                self.fault(self.lines[&path], &path, what, fix);
                None
            }
            Err(error) => {
                let what = format!("it is not JSON ({error})");
                let fix = "write a JSON object in single quotes; parameters are in its texts, as \"{status}\"";
                self.fault(self.lines[&path], &path, what, fix);
                None
            }
        }
    }

    fn next(&mut self, list: &mut Section) -> Option<Next> {
        let (path, node) = self.take(list, "next")?;
        let example = "next = \"link\", \"offset\" or { cursor = \"/next\", param = \"cursor\" }";
        match &node.value {
            TomlValue::Text(word) if word == "link" => Some(Next::Link),
            TomlValue::Text(word) if word == "offset" => Some(Next::Offset),
            TomlValue::Table(_) => {
                let mut section = self.table(path, node, example)?;
                if let Some(link) = self.pointer(&mut section, "link") {
                    self.finish(section);
                    return Some(Next::LinkAt(link));
                }
                let cursor = self.pointer(&mut section, "cursor");
                if cursor.is_none() {
                    self.missing(&section, "cursor", "cursor = \"/next\"");
                }
                let param = self.text(&mut section, "param");
                let more = self.pointer(&mut section, "more");
                self.finish(section);
                Some(Next::Cursor {
                    cursor: cursor?,
                    param,
                    more,
                })
            }
            _ => {
                self.fault(
                    node.line,
                    &path,
                    "there is no such way to the next page",
                    format!("write {example}"),
                );
                None
            }
        }
    }
}

fn scalar(value: TomlValue) -> Option<Scalar> {
    match value {
        TomlValue::Text(text) => Some(Scalar::Text(text)),
        TomlValue::Number(number) => Some(Scalar::Number(number)),
        TomlValue::Bool(value) => Some(Scalar::Bool(value)),
        TomlValue::List(_) | TomlValue::Table(_) | TomlValue::Other => None,
    }
}

fn without_slash(mut address: String) -> String {
    address.truncate(address.trim_end_matches('/').len());
    address
}

/// The first place that the rules look at.
fn first_place(rules: &[Rule]) -> Vec<Pointer> {
    let mut subjects = rules.iter().flat_map(|rule| &rule.when);
    let first = subjects.find_map(|(subject, _)| match subject {
        Subject::At(pointer) => Some(pointer.clone()),
        Subject::Http => None,
    });
    first.into_iter().collect()
}

/// What a text that is not a pointer may have been meant for.
fn suggested(text: &str) -> String {
    let path = text
        .trim_start_matches(['$', '.', '/', '#'])
        .replace('.', "/");
    let pointer = format!("/{path}");
    if Pointer::parse(&pointer).is_ok() && path.len() <= 60 {
        pointer
    } else {
        "/status".to_owned()
    }
}

/// The words that a rule may conclude.
fn words_of_states() -> String {
    let states = RunState::ALL
        .into_iter()
        .filter(|state| *state != RunState::Unknown);
    states.map(RunState::as_str).collect::<Vec<_>>().join(", ")
}
