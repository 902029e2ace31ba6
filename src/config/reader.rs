//! Takes typed values out of the merged tree and notes everything that is wrong.
//!
//! A key with a problem reads as `None`. Its place is then filled with anything at all, which is
//! never seen: with a problem noted, loading fails.

mod secrets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Map, Value, ValueKind};
use serde_json::Value as Json;

use super::effective::{Effective, EffectiveEntry, toml_text};
use super::problem::{Origin, Problem};
use super::source::{Merged, SourcePlace, Sources, join};
use super::units::{InvalidQuantity, format_duration, format_size, parse_duration, parse_size};
use crate::domain::{GROUP_SIZE_LABEL, Labels, MOST_GROUP_SIZE, read_group_size};
use crate::text::nearest;

/// Longest value that a problem repeats, in characters.
const SHOWN_CHARS: usize = 80;

/// Longest key of a label, in bytes, each of which is a character.
pub(crate) const LABEL_KEY_BYTES: usize = 64;
/// Longest value of a label, in characters.
pub(crate) const LABEL_VALUE_CHARS: usize = 256;
/// Most labels of a watch, and most bytes of all their keys and values: a message of at most 20 kB holds
/// them all.
pub(crate) const MAX_LABELS: usize = 32;
pub(crate) const MAX_LABEL_BYTES: usize = 8 * 1024;

/// A table being read: what is left after the reading is unknown.
pub(super) struct Table {
    /// Its path, such as `sinks.ops`.
    pub(super) path: String,
    values: Map<String, Value>,
    known: Vec<String>,
}

impl Table {
    /// A table with nothing in it.
    pub(super) fn empty() -> Self {
        Self {
            path: String::new(),
            values: Map::new(),
            known: Vec::new(),
        }
    }

    /// The names of the keys that were not taken yet, in order.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.values.keys().cloned().collect();
        names.sort();
        names
    }

    /// Whether there is a key that was not taken yet.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
}

/// One value with its key and place.
#[derive(Clone)]
pub(super) struct Item {
    table: String,
    name: String,
    pub(super) key: String,
    kind: ValueKind,
    pub(super) place: SourcePlace,
}

impl Item {
    /// Whether the value is text whatever its type: that of the environment and the defaults is.
    fn is_loose(&self) -> bool {
        matches!(
            self.place.origin,
            Origin::Environment { .. } | Origin::Default
        )
    }

    /// The folder that a relative path is relative to; empty for the current folder.
    fn folder(&self) -> &Path {
        match &self.place.origin {
            Origin::File { path, .. } => path.parent().unwrap_or(Path::new("")),
            Origin::Default | Origin::Environment { .. } | Origin::Credential { .. } => {
                Path::new("")
            }
        }
    }

    /// The name of its key.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The value as text, if it is a string.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.kind {
            ValueKind::String(text) => Some(text),
            _ => None,
        }
    }
}

/// What is wrong with a text, and what to do.
pub(super) type Violation = (String, String);

/// Reads typed values and collects problems.
pub(super) struct SettingsReader<'a> {
    sources: &'a Sources,
    merged: &'a Merged,
    pub(super) problems: Vec<Problem>,
    pub(super) effective: Effective,
}

impl<'a> SettingsReader<'a> {
    pub(super) fn new(sources: &'a Sources, merged: &'a Merged, problems: Vec<Problem>) -> Self {
        Self {
            sources,
            merged,
            problems,
            effective: Effective::default(),
        }
    }

    // --- tables ---

    /// The whole tree.
    pub(super) fn root(&self) -> Table {
        Table {
            path: String::new(),
            values: self.merged.tree.clone(),
            known: Vec::new(),
        }
    }

    /// The table `name` of `parent`; empty when absent or, as a problem, no table.
    pub(super) fn table(&mut self, parent: &mut Table, name: &str) -> Table {
        let empty = |path: String| Table {
            path,
            ..Table::empty()
        };
        match self.take(parent, name, None) {
            None => empty(join(&parent.path, name)),
            Some(item) => self
                .as_table(item.clone())
                .unwrap_or_else(|| empty(item.key)),
        }
    }

    /// Moves the table `name` of the table `from` into the table `to`, whose own values win over it. Defaults do not.
    pub(super) fn move_table(&mut self, root: &mut Table, from: &str, name: &str, to: &str) {
        let Some(ValueKind::Table(all)) = root.values.get_mut(from).map(|value| &mut value.kind)
        else {
            return;
        };
        let Some(moved) = all.remove(name) else {
            return;
        };
        let ValueKind::Table(moved) = moved.kind else {
            return;
        };
        if let Some(ValueKind::Table(values)) = root.values.get_mut(to).map(|value| &mut value.kind)
        {
            for (key, value) in moved {
                if values
                    .get(&key)
                    .is_none_or(|known| known.origin().is_none())
                {
                    values.insert(key, value);
                }
            }
        }
    }

    /// The value as a table.
    pub(super) fn as_table(&mut self, item: Item) -> Option<Table> {
        match item.kind {
            ValueKind::Table(values) => Some(Table {
                path: item.key,
                values,
                known: Vec::new(),
            }),
            _ => {
                let fix = format!("write it as a table: [{}]", item.key);
                self.refuse_unseen(&item, "this must be a table", &fix);
                None
            }
        }
    }

    /// All that is left of a table, by name.
    pub(super) fn drain(&mut self, table: &mut Table) -> Vec<Item> {
        let names = table.names();
        names
            .iter()
            .filter_map(|name| self.take(table, name, None))
            .collect()
    }

    /// The tables of a list of tables.
    pub(super) fn tables(&mut self, parent: &mut Table, name: &str) -> Vec<Table> {
        let Some(item) = self.take(parent, name, None) else {
            return Vec::new();
        };
        let ValueKind::Array(values) = &item.kind else {
            let fix = format!("write each one under [[{}]]", item.key);
            self.refuse_unseen(&item, "this must be a list of tables", &fix);
            return Vec::new();
        };
        let items = values.iter().enumerate().map(|(index, value)| {
            let key = format!("{}[{index}]", item.key);
            let place = self.merged.place(&key, value);
            Item {
                table: parent.path.clone(),
                name: name.to_owned(),
                key,
                kind: value.kind.clone(),
                place,
            }
        });
        let items: Vec<Item> = items.collect();
        items
            .into_iter()
            .filter_map(|item| self.as_table(item))
            .collect()
    }

    /// The value of a key, which stays in its table.
    pub(super) fn peek(&self, table: &Table, name: &str) -> Option<Item> {
        let key = join(&table.path, name);
        let value = table.values.get(name)?;
        Some(Item {
            table: table.path.clone(),
            name: name.to_owned(),
            place: self.merged.place(&key, value),
            key,
            kind: value.kind.clone(),
        })
    }

    /// Takes the value of a key, or its default, out of a table.
    pub(super) fn take(
        &mut self,
        table: &mut Table,
        name: &str,
        default: Option<&str>,
    ) -> Option<Item> {
        table.known.push(name.to_owned());
        let key = join(&table.path, name);
        let value = table
            .values
            .remove(name)
            .or_else(|| default.map(|text| Value::new(None, text)))?;
        let place = self.merged.place(&key, &value);
        Some(Item {
            table: table.path.clone(),
            name: name.to_owned(),
            key,
            kind: value.kind,
            place,
        })
    }

    /// Finishes a table that stays where it is, as [`SettingsReader::finish`].
    pub(super) fn finish_rest(&mut self, table: &mut Table) {
        self.finish(std::mem::replace(table, Table::empty()));
    }

    /// Reports every key of the table that was not taken. Their values are not repeated: the key may be
    /// a misspelled secret.
    pub(super) fn finish(&mut self, mut table: Table) {
        let known = std::mem::take(&mut table.known);
        for item in self.drain(&mut table) {
            let what = if item.table.is_empty() {
                "there is no such section"
            } else {
                "there is no such key"
            };
            let fix = match nearest(&item.name, known.iter().map(String::as_str)) {
                Some(name) => format!("did you mean {name:?}?"),
                None => format!("remove it; known are {}", known.join(", ")),
            };
            let at_key = Item {
                place: SourcePlace {
                    origin: self.merged.key_origin(&item.key, &item.place),
                    rank: item.place.rank,
                },
                ..item
            };
            self.refuse_unseen(&at_key, what, &fix);
        }
    }

    // --- problems ---

    /// Notes a problem with a value that may be shown.
    pub(super) fn refuse(&mut self, item: &Item, what: impl Into<String>, fix: impl Into<String>) {
        let value = toml_text(&json_of(&item.kind));
        let mut shown: String = value.chars().take(SHOWN_CHARS).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        self.note(item, Some(shown), what.into(), fix.into());
    }

    /// Notes a problem with a value that may not be shown.
    pub(super) fn refuse_unseen(&mut self, item: &Item, what: &str, fix: &str) {
        self.note(item, None, what.to_owned(), fix.to_owned());
    }

    fn note(&mut self, item: &Item, value: Option<String>, what: String, fix: String) {
        let origin = match &item.kind {
            ValueKind::Table(_) => self.merged.table_origin(&item.key),
            _ => Some(item.place.origin.clone()),
        };
        self.problems.push(Problem {
            origin,
            key: item.key.clone(),
            value,
            what,
            fix,
        });
    }

    /// Notes that a table lacks a key, unless a file that could not be read may hold it.
    pub(super) fn missing(&mut self, table: &Table, name: &str, fix: &str) {
        if self.merged.complete {
            self.problems.push(Problem {
                origin: self.merged.table_origin(&table.path),
                key: join(&table.path, name),
                value: None,
                what: "this is required".to_owned(),
                fix: fix.to_owned(),
            });
        }
    }

    /// Notes a problem with something outside of the configuration.
    pub(super) fn outside(&mut self, origin: Origin, key: &str, what: &str, fix: &str) {
        let (what, fix) = (what.to_owned(), fix.to_owned());
        self.problems.push(Problem {
            origin: Some(origin),
            key: key.to_owned(),
            value: None,
            what,
            fix,
        });
    }

    /// Whether a problem with this very key is noted.
    pub(super) fn has_problem_at(&self, table: &Table, name: &str) -> bool {
        let key = join(&table.path, name);
        self.problems.iter().any(|problem| problem.key == key)
    }

    // --- typed values ---

    /// Notes a value for `config show`.
    fn show(&mut self, item: &Item, value: Option<Json>) {
        let (table, key) = (item.table.clone(), item.name.clone());
        self.effective.0.push(EffectiveEntry {
            table,
            key,
            value,
            origin: item.place.origin.clone(),
        });
    }

    /// Notes for `config show` that a key is unset.
    pub(super) fn show_unset(&mut self, table: &Table, name: &str) {
        let entry = EffectiveEntry {
            table: table.path.clone(),
            key: name.to_owned(),
            value: None,
            origin: Origin::Default,
        };
        self.effective.0.push(entry);
    }

    /// Notes for `config show` a value that does not come from a key.
    pub(super) fn show_outside(
        &mut self,
        table: &Table,
        name: &str,
        value: impl Into<Json>,
        origin: Origin,
    ) {
        let (table, key) = (table.path.clone(), name.to_owned());
        self.effective.0.push(EffectiveEntry {
            table,
            key,
            value: Some(value.into()),
            origin,
        });
    }

    /// A string; control characters are refused, since no key has a use for them.
    pub(super) fn text(&mut self, item: &Item) -> Option<String> {
        let ValueKind::String(text) = &item.kind else {
            self.refuse(item, "this must be a string", "put it in quotes");
            return None;
        };
        if text.chars().any(char::is_control) {
            self.refuse(
                item,
                "this has control characters",
                "remove line ends, tabs and the like",
            );
            return None;
        }
        self.show(item, Some(text.as_str().into()));
        Some(text.clone())
    }

    /// A string that a rule accepts, or turns into something else.
    pub(super) fn parsed<T>(
        &mut self,
        item: &Item,
        rule: impl FnOnce(&str) -> Result<T, Violation>,
    ) -> Option<T> {
        let text = self.text(item)?;
        rule(&text)
            .map_err(|(what, fix)| self.refuse(item, what, fix))
            .ok()
    }

    /// A duration within limits, both included.
    pub(super) fn duration(
        &mut self,
        item: &Item,
        least: Duration,
        most: Duration,
    ) -> Option<Duration> {
        let found = self.one_duration(item, least, most)?;
        self.show(item, Some(format_duration(found).into()));
        Some(found)
    }

    fn one_duration(&mut self, item: &Item, least: Duration, most: Duration) -> Option<Duration> {
        let range = format!(
            "write a duration from {} to {}",
            format_duration(least),
            format_duration(most)
        );
        let ValueKind::String(text) = &item.kind else {
            let what = "this must be a duration in quotes, with a unit";
            self.refuse(item, what, format!("{range}, such as \"30s\""));
            return None;
        };
        match parse_duration(text) {
            Ok(found) if (least..=most).contains(&found) => Some(found),
            Ok(_) => {
                self.refuse(item, "this duration is out of range", range);
                None
            }
            Err(error) => {
                let example = "with the units d, h, m, s, ms, such as \"1h30m\"";
                self.refuse(
                    item,
                    format!("this is not a duration: {error}"),
                    format!("{range}, {example}"),
                );
                None
            }
        }
    }

    /// Several durations, each within limits.
    pub(super) fn durations(
        &mut self,
        item: &Item,
        least: Duration,
        most: Duration,
    ) -> Option<Vec<Duration>> {
        let parts = self.list(item)?;
        let part = |(index, kind)| Item {
            key: format!("{}[{index}]", item.key),
            kind,
            ..item.clone()
        };
        let parts: Vec<Item> = parts.into_iter().enumerate().map(part).collect();
        let found: Vec<_> = parts
            .iter()
            .map(|part| self.one_duration(part, least, most))
            .collect();
        let found: Vec<Duration> = found.into_iter().collect::<Option<_>>()?;
        self.show(
            item,
            Some(found.iter().map(|one| format_duration(*one)).collect()),
        );
        Some(found)
    }

    /// A size in bytes within limits, both included.
    pub(super) fn size(&mut self, item: &Item, least: u64, most: u64) -> Option<u64> {
        let range = format!(
            "write a size from {} to {} with one of the units B, KiB, MiB, GiB, kB, MB, GB, such as \"8MiB\"",
            format_size(least),
            format_size(most)
        );
        let parsed = item
            .as_text()
            .map_or(Err(InvalidQuantity::NoUnit), parse_size);
        match parsed {
            Ok(found) if (least..=most).contains(&found) => {
                self.show(item, Some(format_size(found).into()));
                Some(found)
            }
            Ok(_) => {
                self.refuse(item, "this size is out of range", range);
                None
            }
            Err(error) => {
                self.refuse(item, format!("this is not a size: {error}"), range);
                None
            }
        }
    }

    /// A whole number within limits, both included.
    pub(super) fn integer(&mut self, item: &Item, least: u32, most: u32) -> Option<u32> {
        let parsed = match &item.kind {
            ValueKind::I64(value) => Some(*value),
            ValueKind::String(text) if item.is_loose() => text.trim().parse().ok(),
            _ => None,
        };
        let found = parsed
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| (least..=most).contains(value));
        match found {
            Some(value) => self.show(item, Some(value.into())),
            None => {
                let what = match parsed {
                    Some(_) => "this number is out of range",
                    None => "this must be a whole number, without quotes in a file",
                };
                self.refuse(item, what, format!("write a number from {least} to {most}"));
            }
        }
        found
    }

    /// `true` or `false`, also as a text, as the environment has it.
    pub(super) fn boolean(&mut self, item: &Item) -> Option<bool> {
        let found = match &item.kind {
            ValueKind::Boolean(value) => Some(*value),
            ValueKind::String(text) => text.parse().ok(),
            _ => None,
        };
        match found {
            Some(value) => self.show(item, Some(value.into())),
            None => self.refuse(
                item,
                "this must be true or false",
                "write one of them without quotes",
            ),
        }
        found
    }

    /// A number that `legal` accepts; `range` says which do.
    pub(super) fn number(
        &mut self,
        item: &Item,
        legal: impl Fn(f64) -> bool,
        range: &str,
    ) -> Option<f64> {
        let parsed = match &item.kind {
            ValueKind::Float(value) => Some(*value),
            // Larger ones lose their last digits, and are out of every range here.
            ValueKind::I64(value) => i32::try_from(*value)
                .ok()
                .map(f64::from)
                .or(Some(f64::INFINITY)),
            ValueKind::String(text) if item.is_loose() => text.trim().parse().ok(),
            _ => None,
        };
        let found = parsed.filter(|value| value.is_finite() && legal(*value));
        match found {
            Some(value) => self.show(item, Some(value.into())),
            None => {
                let what = match parsed {
                    Some(_) => "this number is out of range",
                    None => "this must be a number, without quotes in a file",
                };
                self.refuse(item, what, format!("write {range}"));
            }
        }
        found
    }

    /// The parts of a list; text of the environment is split at commas, and empty text is no part.
    fn list(&mut self, item: &Item) -> Option<Vec<ValueKind>> {
        match &item.kind {
            ValueKind::Array(values) => {
                Some(values.iter().map(|value| value.kind.clone()).collect())
            }
            ValueKind::String(text) if item.is_loose() && text.trim().is_empty() => {
                Some(Vec::new())
            }
            ValueKind::String(text) if item.is_loose() => {
                Some(text.split(',').map(|part| part.trim().into()).collect())
            }
            _ => {
                self.refuse_unseen(
                    item,
                    "this must be a list",
                    "write it in brackets: [\"...\", \"...\"]",
                );
                None
            }
        }
    }

    /// Several strings. Problems do not repeat them: a command line may hold a secret.
    pub(super) fn texts(&mut self, item: &Item) -> Option<Vec<String>> {
        let parts = self.list(item)?;
        let text = |part: ValueKind| match part {
            ValueKind::String(text) => Some(text),
            _ => None,
        };
        let Some(found) = parts.into_iter().map(text).collect::<Option<Vec<String>>>() else {
            self.refuse_unseen(
                item,
                "each part must be a string",
                "put every part in quotes",
            );
            return None;
        };
        self.show(item, Some(found.clone().into()));
        Some(found)
    }

    /// A path. `~/` is the home; a relative one in a file is relative to the folder of that file, so
    /// that it means the same wherever the program is started. An empty one is `None`.
    pub(super) fn path(&mut self, item: &Item) -> Option<PathBuf> {
        let text = self.text(item)?;
        self.resolve(item, &text)
    }

    fn resolve(&mut self, item: &Item, text: &str) -> Option<PathBuf> {
        if text.is_empty() {
            return None;
        }
        let Some(below_home) = text.strip_prefix("~/") else {
            return Some(item.folder().join(text));
        };
        let home = self.sources.path_of("HOME");
        if home.is_none() {
            self.refuse(
                item,
                "the home folder is not known",
                "set HOME, or write the whole path",
            );
        }
        Some(home?.join(below_home))
    }

    /// Labels: a table of strings.
    pub(super) fn labels(&mut self, parent: &mut Table) -> Labels {
        let Some(item) = self.take(parent, "labels", None) else {
            self.show_table(parent, "labels", &Origin::Default, serde_json::Map::new());
            return Labels::new();
        };
        let whole = (item.place.origin.clone(), item.key.clone());
        let Some(mut table) = self.as_table(item) else {
            return Labels::new();
        };
        let mut labels = Labels::new();
        let mut origin = Origin::Default;
        for item in self.drain(&mut table) {
            let Some(value) = item.as_text() else {
                self.refuse(
                    &item,
                    "the value of a label must be a string",
                    "put it in quotes",
                );
                continue;
            };
            if let Err((what, fix)) = check_label(&item.name, value) {
                self.refuse(&item, what, fix);
                continue;
            }
            labels.insert(item.name.clone(), value.to_owned());
            origin = item.place.origin.clone();
        }
        if let Err((what, fix)) = check_labels(&labels) {
            let (origin, key) = whole;
            self.problems.push(Problem {
                origin: Some(origin),
                key,
                value: None,
                what,
                fix,
            });
        }
        let shown = labels
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        self.show_table(parent, "labels", &origin, shown);
        labels
    }

    /// Notes an inner table for `config show`, with the place of one of its values.
    pub(super) fn show_table(
        &mut self,
        parent: &Table,
        name: &str,
        origin: &Origin,
        map: serde_json::Map<String, Json>,
    ) {
        let (table, key) = (parent.path.clone(), name.to_owned());
        self.effective.0.push(EffectiveEntry {
            table,
            key,
            value: Some(Json::Object(map)),
            origin: origin.clone(),
        });
    }
}

/// A value of `config` as JSON, to be shown.
fn json_of(kind: &ValueKind) -> Json {
    match kind {
        ValueKind::Nil => Json::Null,
        ValueKind::Boolean(value) => (*value).into(),
        ValueKind::I64(value) => (*value).into(),
        ValueKind::U64(value) => (*value).into(),
        ValueKind::I128(value) => value.to_string().into(),
        ValueKind::U128(value) => value.to_string().into(),
        ValueKind::Float(value) => (*value).into(),
        ValueKind::String(text) => text.as_str().into(),
        ValueKind::Table(_) => Json::Object(serde_json::Map::new()),
        ValueKind::Array(values) => values.iter().map(|value| json_of(&value.kind)).collect(),
    }
}

/// Checks a label: a key of 1 to 64 of `A-Z a-z 0-9 _ - . /` and a value of at most 256 characters
/// without control characters; that of `group_size` is a number.
pub(crate) fn check_label(key: &str, value: &str) -> Result<(), Violation> {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/');
    if key.is_empty() || key.len() > LABEL_KEY_BYTES || !key.bytes().all(allowed) {
        return Err((
            "this is not the key of a label".to_owned(),
            format!("use 1 to {LABEL_KEY_BYTES} of the characters A-Z a-z 0-9 _ - . /"),
        ));
    }
    if value.chars().count() > LABEL_VALUE_CHARS || value.chars().any(char::is_control) {
        return Err((
            "this is not the value of a label".to_owned(),
            format!(
                "use at most {LABEL_VALUE_CHARS} characters without line ends and other control characters"
            ),
        ));
    }
    if key == GROUP_SIZE_LABEL && read_group_size(value).is_none() {
        return Err((
            "this is not the size of a group".to_owned(),
            format!("write a whole number from 1 to {MOST_GROUP_SIZE}"),
        ));
    }
    Ok(())
}

/// Checks that labels are few and short enough together.
pub(crate) fn check_labels(labels: &Labels) -> Result<(), Violation> {
    let bytes: usize = labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if labels.len() <= MAX_LABELS && bytes <= MAX_LABEL_BYTES {
        return Ok(());
    }
    Err((
        format!("these are {} labels of {bytes} bytes", labels.len()),
        format!("use at most {MAX_LABELS}, and {MAX_LABEL_BYTES} bytes in all"),
    ))
}
