//! The name, the labels and the sinks of a watch, from the entry that led to it.

use std::collections::BTreeSet;

use crate::config::{DiscoverySettings, LABEL_VALUE_CHARS, NAME_CHARS, check_labels};
use crate::domain::{Labels, Routes, SinkName};
use crate::providers::ListEntry;
use crate::text::one_line;

/// Most names of sinks that are warned about.
const MAX_WARNED: usize = 100;

/// What the configuration says of a watch, filled with the values of its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) name: Option<String>,
    pub(super) labels: Labels,
    pub(super) sinks: Option<Vec<SinkName>>,
}

/// Fills names, labels and sinks. Values that are too long are cut, and lacking ones are empty; an empty name or label
/// is left out, and so is a sink that does not exist, with one warning for each name in `warned`.
pub(super) fn fill(
    settings: &DiscoverySettings,
    entry: &ListEntry,
    routes: &Routes,
    warned: &mut BTreeSet<String>,
) -> Filled {
    let parts = settings.profile.read_id(entry.run_id.id()).ok();
    let value = |name: &str| -> Option<String> {
        if let Some(value) = entry.values.get(name) {
            return Some(value.clone());
        }
        let part = parts.as_ref().and_then(|parts| parts.get(name));
        if let Some(value) = part {
            return Some(value.to_owned());
        }
        match name {
            "id" => Some(entry.run_id.id().to_owned()),
            "name" => entry.name.clone(),
            "group" => entry.group.clone(),
            "attempt" => entry.attempt.map(|attempt| attempt.to_string()),
            name => settings.parameters.get(name).cloned(),
        }
    };
    let text = |template: &crate::config::EntryText, chars: usize| {
        let text = one_line(&template.fill(&value), chars);
        let text: String = text
            .chars()
            .filter(|c| !c.is_control())
            .take(chars)
            .collect();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let name = settings
        .name
        .as_ref()
        .and_then(|name| text(name, NAME_CHARS));
    let mut labels = Labels::new();
    for (key, template) in &settings.labels {
        if let Some(value) = text(template, LABEL_VALUE_CHARS) {
            labels.insert(key.clone(), value);
            if check_labels(&labels).is_err() {
                labels.remove(key);
            }
        }
    }
    let sinks = settings.sinks.as_ref().map(|templates| {
        let mut sinks: Vec<SinkName> = Vec::new();
        for template in templates {
            let name = template.fill(&value);
            match SinkName::new(&name).ok().filter(|name| routes.contains(name)) {
                Some(sink) if sinks.contains(&sink) => {}
                Some(sink) => sinks.push(sink),
                None => {
                    let name = one_line(&name, NAME_CHARS);
                    if warned.len() < MAX_WARNED && warned.insert(name.clone()) {
                        tracing::warn!(
                            discovery = settings.title(),
                            sink = name,
                            run_id = %entry.run_id,
                            "no sink has this name, which discovered runs lead to; it is left out: add it to the \
                             configuration, or correct sinks of the discovery"
                        );
                    }
                }
            }
        }
        sinks
    });
    Filled {
        name,
        labels,
        sinks,
    }
}
