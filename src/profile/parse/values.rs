//! Takes values out of the tables of a profile: texts, templates, places, numbers.

use std::collections::BTreeMap;

use super::ProfileReading;
use super::tree::{Entry, TomlNode, TomlValue};
use crate::domain::RunState;
use crate::profile::{Pointer, Template};
use crate::text::nearest;

/// Longest template, in bytes, and most parts of one.
const MAX_TEMPLATE_BYTES: usize = 2048;
const MAX_PARTS: usize = 16;

/// A table that is being read: which keys it has, and which were looked for.
pub(super) struct Section {
    pub(super) path: String,
    pub(super) line: usize,
    pub(super) entries: Vec<Entry>,
    known: Vec<&'static str>,
}

impl Section {
    pub(super) fn new(path: String, line: usize, entries: Vec<Entry>) -> Self {
        Self {
            path,
            line,
            entries,
            known: Vec::new(),
        }
    }

    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<TomlNode> {
        self.known.push(key);
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        let entry = self.entries.remove(index);
        Some(TomlNode {
            line: entry.line,
            ..entry.node
        })
    }
}

impl ProfileReading {
    pub(super) fn take(
        &mut self,
        section: &mut Section,
        key: &'static str,
    ) -> Option<(String, TomlNode)> {
        let path = section.key(key);
        let node = section.take(key)?;
        self.lines.insert(path.clone(), node.line);
        Some((path, node))
    }

    /// Takes a table; anything else is a fault.
    pub(super) fn section(
        &mut self,
        section: &mut Section,
        key: &'static str,
        example: &str,
    ) -> Option<Section> {
        let (path, node) = self.take(section, key)?;
        self.table(path, node, example)
    }

    pub(super) fn table(&mut self, path: String, node: TomlNode, example: &str) -> Option<Section> {
        match node.value {
            TomlValue::Table(entries) => Some(Section::new(path, node.line, entries)),
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
    pub(super) fn finish(&mut self, section: Section) {
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

    pub(super) fn missing(&mut self, section: &Section, key: &str, example: &str) {
        let path = section.key(key);
        // A key that is there and wrong has its fault already.
        if !self.lines.contains_key(&path) {
            let what = format!("{key} is missing");
            self.fault(section.line, &path, what, format!("write {example}"));
        }
    }

    pub(super) fn text(&mut self, section: &mut Section, key: &'static str) -> Option<String> {
        let (path, node) = self.take(section, key)?;
        match node.value {
            TomlValue::Text(text) => Some(text),
            _ => {
                self.fault(node.line, &path, "it is not a text", "write it in quotes");
                None
            }
        }
    }

    pub(super) fn flag(&mut self, section: &mut Section, key: &'static str) -> bool {
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
    pub(super) fn texts(
        &mut self,
        section: &mut Section,
        key: &'static str,
    ) -> Vec<(usize, String, String)> {
        let Some((path, node)) = self.take(section, key) else {
            return Vec::new();
        };
        self.texts_of(path, node)
    }

    /// Line, key and text of each.
    pub(super) fn texts_of(
        &mut self,
        path: String,
        node: TomlNode,
    ) -> Vec<(usize, String, String)> {
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

    pub(super) fn words(&mut self, section: &mut Section, key: &'static str) -> Vec<String> {
        let found = self.texts(section, key).into_iter();
        found.map(|(_, _, text)| text).collect()
    }

    /// Takes a whole number from 1 to `most`.
    pub(super) fn whole(
        &mut self,
        section: &mut Section,
        key: &'static str,
        most: u32,
    ) -> Option<u32> {
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
    pub(super) fn groups(&mut self, section: &mut Section, key: &'static str) -> Vec<Vec<String>> {
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

    pub(super) fn pointer_of(&mut self, line: usize, key: &str, text: &str) -> Option<Pointer> {
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

    pub(super) fn pointers(&mut self, section: &mut Section, key: &'static str) -> Vec<Pointer> {
        let found = self.texts(section, key);
        let read = |(line, key, text): (usize, String, String)| self.pointer_of(line, &key, &text);
        found.into_iter().filter_map(read).collect()
    }

    pub(super) fn pointer(&mut self, section: &mut Section, key: &'static str) -> Option<Pointer> {
        let text = self.text(section, key)?;
        let path = section.key(key);
        self.pointer_of(self.lines[&path], &path, &text)
    }

    pub(super) fn template_of(&mut self, line: usize, key: &str, text: &str) -> Option<Template> {
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

    pub(super) fn template(
        &mut self,
        section: &mut Section,
        key: &'static str,
    ) -> Option<Template> {
        let text = self.text(section, key)?;
        let path = section.key(key);
        self.template_of(self.lines[&path], &path, &text)
    }

    /// Takes a template; that there is none is a fault.
    pub(super) fn needed_template(
        &mut self,
        section: &mut Section,
        key: &'static str,
        example: &str,
    ) -> Option<Template> {
        let template = self.template(section, key);
        if template.is_none() {
            self.missing(section, key, example);
        }
        template
    }

    /// Takes a table whose values are texts.
    pub(super) fn map(
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

    /// Takes a table of places by name.
    pub(super) fn places(
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

    pub(super) fn states(
        &mut self,
        section: &mut Section,
        key: &'static str,
    ) -> Option<Vec<RunState>> {
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
pub(super) fn words_of_states() -> String {
    let states = RunState::ALL
        .into_iter()
        .filter(|state| *state != RunState::Unknown);
    states.map(RunState::as_str).collect::<Vec<_>>().join(", ")
}
