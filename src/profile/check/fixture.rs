//! A profile without a fault, and what a change of it makes wrong.

use std::collections::BTreeMap;

use crate::profile::{ProfileFault, parse};

/// A profile without a fault; each test replaces or adds some of its lines.
pub(super) const SOUND: [(&str, &str); 5] = [
    ("base_url", "\"https://api.example.com\""),
    ("id", "\"{owner}/{run}\""),
    ("urls", "[\"{web}/{owner}/runs/{run}\"]"),
    ("get", "\"/o/{owner}/runs/{run}\""),
    (
        "rules",
        r#"[{ when = { "/s" = "on" }, is = "running" }, { when = { "/s" = "ok" }, is = "succeeded" }, { when = { "/s" = "no" }, is = "failed" }]"#,
    ),
];

pub(super) fn faults(changes: &[(&str, &str)]) -> Vec<ProfileFault> {
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
pub(super) fn one(key: &str, value: &str) -> String {
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
pub(super) fn assert_faults(cases: &[(&str, &str, &str)]) {
    for (key, value, expected) in cases {
        let found = one(key, value);
        assert!(
            found.contains(expected),
            "{key} = {value}\nexpected {expected}\nfound    {found}"
        );
    }
}
