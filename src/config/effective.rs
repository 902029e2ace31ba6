//! The configuration in force, key by key, for people to look at.

use std::fmt::Write as _;

use serde_json::Value;

use super::problem::Origin;
use super::source::is_plain;

/// One key of the configuration in force.
#[derive(Debug, Clone, PartialEq)]
pub struct EffectiveEntry {
    /// The table it is in: `api`, `sinks.ops`, `watches[0]`.
    pub table: String,
    /// Its name in that table.
    pub key: String,
    /// Its value, in the form a file would have; `None` when it is unset. Secrets are replaced.
    pub value: Option<Value>,
    /// Where the value comes from.
    pub origin: Origin,
}

/// The configuration in force, in the order of the documentation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effective(pub Vec<EffectiveEntry>);

impl Effective {
    /// TOML with the origin of each key in a comment after it. Unset keys are comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut table = "";
        // Keys outside of all tables stand before the first table.
        let (outside, inside): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|entry| entry.table.is_empty());
        for entry in outside.into_iter().chain(inside) {
            if entry.table != table {
                let gap = if text.is_empty() { "" } else { "\n" };
                table = &entry.table;
                let header = match table.split_once('[') {
                    Some((list, _)) => format!("[[{list}]]"),
                    None => format!("[{table}]"),
                };
                push(&mut text, format_args!("{gap}{header}\n"));
            }
            let key = key_text(&entry.key);
            match &entry.value {
                Some(value) => push(
                    &mut text,
                    format_args!("{key} = {}  # {}\n", toml_text(value), entry.origin),
                ),
                None => push(&mut text, format_args!("# {key} is not set\n")),
            }
        }
        text
    }

    /// A JSON array of `{"key", "value", "origin"}`; an unset key has the value `null`.
    pub fn to_json(&self) -> Value {
        let entry = |entry: &EffectiveEntry| {
            serde_json::json!({
                "key": super::source::join(&entry.table, &entry.key),
                "value": entry.value,
                "origin": entry.origin.to_string(),
            })
        };
        self.0.iter().map(entry).collect()
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes all text");
}

fn key_text(key: &str) -> String {
    if is_plain(key) {
        key.to_owned()
    } else {
        string_text(key)
    }
}

/// A value as it stands in a file.
pub(super) fn toml_text(value: &Value) -> String {
    match value {
        Value::String(text) => string_text(text),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(toml_text).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(map) if map.is_empty() => "{}".to_owned(),
        Value::Object(map) => {
            let pairs = map
                .iter()
                .map(|(key, value)| format!("{} = {}", key_text(key), toml_text(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// A basic string. JSON escapes all that TOML wants escaped, but for the DEL character.
fn string_text(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_string_reads_back_from_toml(text in "\\PC{0,20}|[\\x00-\\x7f]{0,10}") {
            let document = format!("{0} = {0}", string_text(&text));
            let table: std::collections::BTreeMap<String, String> = toml::from_str(&document).unwrap();
            prop_assert_eq!(table.get(&text), Some(&text));
        }
    }
}
