//! Reads the rules of a profile.

use super::ProfileReading;
use super::tree::{Entry, TomlNode, TomlValue};
use super::values::{Section, words_of_states};
use crate::domain::RunState;
use crate::profile::{Pointer, Rule, RuleOutcome, Scalar, Subject, Test};

/// Most rules of a list, and most tests of a rule: each rule is compared with those above it.
const MAX_RULES: usize = 128;
const MAX_TESTS: usize = 8;

/// What a test may be.
const TESTS: &str = "write a text, a number, true, false, a list of these, { absent = true }, { present = true } or { gt = 0 }";

impl ProfileReading {
    pub(super) fn rules(&mut self, section: &mut Section) -> Vec<Rule> {
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

    fn outcome(&mut self, rule: &mut Section) -> Option<RuleOutcome> {
        let Some(word) = self.text(rule, "is") else {
            self.missing(rule, "is", "is = \"succeeded\" or another state");
            return None;
        };
        if word == "not_found" {
            return Some(RuleOutcome::NotFound);
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
        state.map(RuleOutcome::State)
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

    fn test(&mut self, path: &str, line: usize, node: TomlNode) -> Option<Test> {
        match node.value {
            TomlValue::List(items) => self.one_of(path, line, items),
            TomlValue::Table(entries) => self.test_by_name(path, line, &entries),
            other => {
                let value = scalar(other);
                if value.is_none() {
                    self.fault(line, path, "there is no such test", TESTS);
                }
                value.map(|value| Test::OneOf(vec![value]))
            }
        }
    }

    /// Reads a list of values: the test holds for each of them.
    fn one_of(&mut self, path: &str, line: usize, items: Vec<TomlNode>) -> Option<Test> {
        if items.is_empty() {
            let what = "an empty list holds for no answer";
            self.fault(line, path, what, "write at least one value");
            return None;
        }
        let mut values = Vec::new();
        let mut whole = true;
        for item in items {
            match scalar(item.value) {
                Some(value) => values.push(value),
                None => {
                    whole = false;
                    let what = "the list has something else than texts, numbers, true and false";
                    self.fault(item.line, path, what, TESTS);
                }
            }
        }
        whole.then_some(Test::OneOf(values))
    }

    /// Reads `{ absent = true }` and the like.
    fn test_by_name(&mut self, path: &str, line: usize, entries: &[Entry]) -> Option<Test> {
        if let [entry] = entries {
            match (&*entry.key, &entry.node.value) {
                ("absent", TomlValue::Bool(true)) => return Some(Test::Absent),
                ("present", TomlValue::Bool(true)) => return Some(Test::Present),
                ("gt", TomlValue::Number(number)) => return Some(Test::Greater(*number)),
                ("gt", _) => {
                    let what = "what gt compares with is not a number";
                    self.fault(line, path, what, "write { gt = 0 }");
                    return None;
                }
                _ => {}
            }
        }
        self.fault(line, path, "there is no such test", TESTS);
        None
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

/// The first place that the rules look at.
pub(super) fn first_place(rules: &[Rule]) -> Vec<Pointer> {
    let mut subjects = rules.iter().flat_map(|rule| &rule.when);
    let first = subjects.find_map(|(subject, _)| match subject {
        Subject::At(pointer) => Some(pointer.clone()),
        Subject::Http => None,
    });
    first.into_iter().collect()
}
