//! The keys of a file of a profile with their lines, and those of the profile that it extends.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ProfileFault;
use crate::profile::builtin::{builtin_names, builtin_source};
use crate::text::nearest;

/// Largest file, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// Most profiles of which each takes keys of the next.
const MAX_EXTENDS: usize = 4;

/// Keys that a profile does not take from another: they are about that one alone.
const OWN_KEYS: [&str; 3] = ["aliases", "checked", "extends"];

/// A value of the file, with its line.
#[derive(Debug, Clone)]
pub(super) struct TomlNode {
    pub(super) line: usize,
    pub(super) value: TomlValue,
}

#[derive(Debug, Clone)]
pub(super) enum TomlValue {
    Text(String),
    Number(f64),
    Bool(bool),
    List(Vec<TomlNode>),
    Table(Vec<Entry>),
    /// A date, or a number that is out of range.
    Other,
}

/// A key of a table with its value, in the order of the file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) node: TomlNode,
}

impl TomlNode {
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
                node: TomlNode::of(value, lines),
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
pub(super) struct Tree {
    pub(super) table: Vec<Entry>,
    /// The keys that come from another profile, and its name.
    pub(super) inherited: BTreeMap<String, String>,
}

/// Reads the keys of a profile which `depth` others extend.
pub(super) fn read_tree(text: &str, depth: usize) -> Result<Tree, Vec<ProfileFault>> {
    let mut tree = Tree {
        table: read_entries(text)?,
        inherited: BTreeMap::new(),
    };
    let Some(base) = base_of(&tree.table).map_err(|fault| vec![fault])? else {
        return Ok(tree);
    };
    if depth == MAX_EXTENDS {
        let what = "the profile that it extends extends others, too often";
        return Err(vec![fault(
            base.line,
            "extends",
            what,
            "extend another one",
        )]);
    }
    let own: BTreeSet<_> = tree.table.iter().map(|entry| entry.key.clone()).collect();
    for entry in read_tree(base.source, depth + 1)?.table {
        if own.contains(&entry.key) || OWN_KEYS.contains(&&*entry.key) {
            continue;
        }
        tree.inherited.insert(entry.key.clone(), base.name.clone());
        tree.table.push(Entry {
            line: base.line,
            node: entry.node.moved_to(base.line),
            ..entry
        });
    }
    Ok(tree)
}

fn read_entries(text: &str) -> Result<Vec<Entry>, Vec<ProfileFault>> {
    if text.len() > MAX_BYTES {
        let what = format!("the file has more than {MAX_BYTES} bytes");
        return Err(vec![fault(1, "", what, "shorten it")]);
    }
    let lines: Vec<usize> = text.match_indices('\n').map(|(place, _)| place).collect();
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(entries(table.into_inner(), &lines));
    }
    let faults = errors.iter().map(|error| {
        let line = line_of(&lines, error.span().map_or(0, |span| span.start));
        let message = error.message().replace('\n', ", ");
        let what = format!("this is not valid TOML ({message})");
        fault(line, "", what, "correct it; https://toml.io has the rules")
    });
    Err(faults.collect())
}

/// The built-in profile whose keys another one takes.
struct Base {
    name: String,
    source: &'static str,
    /// The line of `extends`.
    line: usize,
}

/// The profile that `extends` names, if there is this key.
fn base_of(table: &[Entry]) -> Result<Option<Base>, ProfileFault> {
    let Some(entry) = table.iter().find(|entry| entry.key == "extends") else {
        return Ok(None);
    };
    let TomlValue::Text(name) = &entry.node.value else {
        let fix = "write the name of a built-in profile";
        return Err(fault(entry.line, "extends", "it is not a text", fix));
    };
    let Some(source) = builtin_source(name) else {
        let what = format!("there is no built-in profile {name:?}");
        let fix = match nearest(name, builtin_names().iter().copied()) {
            Some(name) => format!("did you mean {name:?}?"),
            None => format!("write one of {}", builtin_names().join(", ")),
        };
        return Err(fault(entry.line, "extends", what, fix));
    };
    Ok(Some(Base {
        name: name.clone(),
        source,
        line: entry.line,
    }))
}

fn fault(line: usize, key: &str, what: impl Into<String>, fix: impl Into<String>) -> ProfileFault {
    ProfileFault {
        line,
        key: key.to_owned(),
        what: what.into(),
        fix: fix.into(),
    }
}
