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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};
    use crate::domain::{EventFilter, Route, RunRef, RunState, Status};

    /// A discovery with these lines.
    fn discovery(lines: &str) -> DiscoverySettings {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let head =
            "[[discover]]\nprovider = \"github\"\nmatch = { owner = \"acme\", repo = \"site\" }\n";
        std::fs::write(&path, format!("{head}{lines}")).unwrap();
        let sources = Sources {
            explicit: Some(path),
            ..Sources::default()
        };
        load(&sources).unwrap().settings.discoveries.remove(0)
    }

    fn entry() -> ListEntry {
        let run_id = RunRef::new("github:acme/site/17").unwrap();
        ListEntry {
            attempt: Some(2),
            name: Some("Deploy".to_owned()),
            group: Some("99".to_owned()),
            values: [("branch".to_owned(), "main".to_owned())].into(),
            ..ListEntry::new(run_id, Status::from(RunState::Running))
        }
    }

    fn routes(names: &[&str]) -> Routes {
        let route = |name: &&str| Route {
            sink: SinkName::new(name).unwrap(),
            events: EventFilter::verdicts(),
            labels: Labels::new(),
            one_per_group: false,
            digest: false,
        };
        names.iter().map(route).collect()
    }

    fn filled(lines: &str, entry: &ListEntry) -> Filled {
        let routes = routes(&["ops", "team-main"]);
        fill(&discovery(lines), entry, &routes, &mut BTreeSet::new())
    }

    #[test]
    fn texts_have_values_of_the_entry_of_its_id_and_of_match() {
        let lines = "name = \"{name} {attempt} of {run}\"\n\
                     labels = { branch = \"{branch}\", where = \"{owner}/{repo}\", group = \"{group}\", id = \"{id}\" }\n";
        let filled = filled(lines, &entry());
        assert_eq!(filled.name.as_deref(), Some("Deploy 2 of 17"));
        let labels = [
            ("branch", "main"),
            ("where", "acme/site"),
            ("group", "99"),
            ("id", "acme/site/17"),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(filled.labels, Labels::from(labels));
        assert_eq!(filled.sinks, None);
    }

    #[test]
    fn what_an_entry_lacks_is_empty_and_an_empty_text_is_left_out() {
        let bare = ListEntry::new(entry().run_id, Status::from(RunState::Running));
        let lines = "name = \"{name}\"\n\
                     labels = { branch = \"{branch}\", kept = \"on {branch}\" }\n";
        let filled = filled(lines, &bare);
        assert_eq!(filled.name, None);
        let kept = ("kept".to_owned(), "on".to_owned());
        assert_eq!(filled.labels, Labels::from([kept]));
    }

    #[test]
    fn texts_of_others_are_made_one_line_of_a_limited_length() {
        let hostile = ListEntry {
            name: Some(format!("a\u{1b}[31m\n\u{202e}{}", "x".repeat(1_000))),
            ..entry()
        };
        let filled = filled(
            "name = \"{name}\"\nlabels = { name = \"{name}\" }\n",
            &hostile,
        );
        for (text, most) in [
            (filled.name.unwrap(), NAME_CHARS),
            (filled.labels["name"].clone(), LABEL_VALUE_CHARS),
        ] {
            assert_eq!(text.chars().count(), most, "{text}");
            assert!(
                !text.chars().any(|c| c.is_control() || c == '\u{202e}'),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_sink_that_does_not_exist_is_left_out_and_named_once() {
        let settings = discovery("sinks = [\"team-{branch}\", \"{actor}\", \"team-{branch}\"]\n");
        let routes = routes(&["team-main"]);
        let mut warned = BTreeSet::new();
        for (branch, sinks, names) in [
            ("main", vec![SinkName::new("team-main").unwrap()], vec![""]),
            ("dev", Vec::new(), vec!["", "team-dev"]),
            ("dev", Vec::new(), vec!["", "team-dev"]),
        ] {
            let mut entry = entry();
            entry.values.insert("branch".to_owned(), branch.to_owned());
            let filled = fill(&settings, &entry, &routes, &mut warned);
            assert_eq!(filled.sinks, Some(sinks));
            assert_eq!(Vec::from_iter(&warned), names);
        }
    }
}
