//! Checks rules: none may be out of reach, and no second request may be one that is never made.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{RunState, Verdict};
use crate::profile::parse::ProfileReading;
use crate::profile::{Pointer, Profile, Rule, RuleOutcome, Scalar, Subject, Test, Token};

impl ProfileReading {
    pub(super) fn check_on(&mut self, profile: &Profile, section: &str, on: &[RunState]) {
        let key = format!("{section}.on");
        if on.is_empty() && self.lines.contains_key(&key) {
            let what = "it has no state, so the request is never made";
            self.at(
                &key,
                what,
                "write on = [\"succeeded\"], or remove the whole",
            );
        }
        let of_each = profile.each.iter().flat_map(|each| &each.rules);
        let given: Vec<_> = profile
            .rules
            .iter()
            .chain(of_each)
            .map(|rule| rule.is)
            .collect();
        let is_partial = self.is_broken("rules") || self.is_broken("each");
        for state in on {
            let word = state.as_str();
            if Verdict::of_status(&(*state).into()).is_none() {
                let what = format!("{word} is not an end, and the request is made at the end");
                self.at(
                    &key,
                    what,
                    "write one of succeeded, failed, canceled, skipped",
                );
            } else if !is_partial && !given.contains(&RuleOutcome::State(*state)) {
                let what = format!("no rule concludes {word}, so the request is never made");
                self.at(&key, what, "write a state that a rule concludes");
            }
        }
    }

    pub(super) fn check_rules(&mut self, section: &str, rules: &[Rule], exact: bool) {
        let keys = self.keys.get(section).cloned().unwrap_or_default();
        let known: Vec<_> = rules.iter().map(|rule| Tests::of(rule, exact)).collect();
        for (index, (rule, key)) in rules.iter().zip(&keys).enumerate() {
            if let Some((what, fix)) = impossible(rule) {
                self.fault(rule.line, key, what, fix);
                continue;
            }
            if let Some(by) = known[index].covering(&known[..index]) {
                let by: Vec<_> = by.into_iter().map(|index| &*keys[index]).collect();
                let (verb, line) = if by.len() == 1 {
                    ("holds", "above it")
                } else {
                    ("hold", "above it")
                };
                let what = format!(
                    "no answer reaches it: {} {line} {verb} whenever it does",
                    by.join(" and ")
                );
                self.fault(rule.line, key, what, "put it above, or remove it");
            }
        }
    }
}

/// Why no answer can pass all tests of a rule, and what to do.
fn impossible(rule: &Rule) -> Option<(String, &'static str)> {
    for (index, (subject, test)) in rule.when.iter().enumerate() {
        let Subject::At(place) = subject else {
            let is_code = |value: &Scalar| matches!(value, Scalar::Number(code) if (100.0..600.0).contains(code) && code.fract() == 0.0);
            let sensible = match test {
                Test::OneOf(values) => values.iter().all(is_code),
                Test::Greater(code) => (99.0..599.0).contains(code),
                Test::Absent | Test::Present => false,
            };
            if !sensible {
                let what = "\"@http\" is the status code of the answer, a number from 100 to 599";
                return Some((what.to_owned(), "compare it with such a number"));
            }
            continue;
        };
        for (other, other_test) in &rule.when[index + 1..] {
            let Subject::At(other) = other else { continue };
            let found = contradict((place, test), (other, other_test))
                .or_else(|| contradict((other, other_test), (place, test)));
            if let Some(why) = found {
                return Some((why, "remove one of the two tests, or make two rules"));
            }
        }
    }
    None
}

/// Why the second test cannot hold together with the first, of a place further out.
fn contradict(
    (outer, outer_test): (&Pointer, &Test),
    (inner, inner_test): (&Pointer, &Test),
) -> Option<String> {
    if *inner_test == Test::Absent {
        return None;
    }
    let together = |why: &str| {
        Some(format!(
            "its tests of {outer} and {inner} can never both hold: {why}"
        ))
    };
    if inner.is_below(outer) {
        let step = &inner.0[outer.0.len()];
        let may_be_list = step.is_index() || matches!(step, Token::Where { .. });
        return match outer_test {
            Test::Absent => together("where the one is absent, the other is, too"),
            Test::Greater(_) => together("a number has nothing within it"),
            Test::OneOf(_) if !may_be_list => together("such a value has no members"),
            Test::OneOf(_) | Test::Present => None,
        };
    }
    if *outer_test == Test::Absent {
        return None;
    }
    // Both are there: what holds them is an object or an array.
    let common = std::iter::zip(&outer.0, &inner.0)
        .take_while(|(a, b)| a == b)
        .count();
    match (outer.0.get(common), inner.0.get(common)) {
        (Some(key @ Token::Key(_)), Some(Token::Where { .. })) if !key.is_index() => {
            together("what holds them would be an object and an array")
        }
        _ => None,
    }
}

/// The tests of a rule, in a form that can be compared.
struct Tests<'a>(BTreeMap<Option<&'a Pointer>, TestedValues>);

/// What a test wants; values as texts that are equal where the values are.
enum TestedValues {
    OneOf(BTreeSet<String>),
    Absent,
    Present,
    Greater(f64),
}

impl<'a> Tests<'a> {
    pub(super) fn of(rule: &'a Rule, exact: bool) -> Self {
        let value = |value: &Scalar| match value {
            Scalar::Text(text) if exact => format!("\"{text}"),
            Scalar::Text(text) => format!("\"{}", text.to_ascii_lowercase()),
            Scalar::Number(number) => format!("{number}"),
            Scalar::Bool(value) => format!("{value}"),
        };
        let tests = rule.when.iter().map(|(subject, test)| {
            let place = match subject {
                Subject::At(pointer) => Some(pointer),
                Subject::Http => None,
            };
            let wanted = match test {
                Test::OneOf(values) => TestedValues::OneOf(values.iter().map(value).collect()),
                Test::Absent => TestedValues::Absent,
                Test::Present => TestedValues::Present,
                Test::Greater(number) => TestedValues::Greater(*number),
            };
            (place, wanted)
        });
        Self(tests.collect())
    }

    /// The rules of which one holds whenever these tests do, if there are such.
    fn covering(&self, earlier: &[Self]) -> Option<Vec<usize>> {
        if let Some(index) = earlier.iter().position(|rule| self.imply(rule, None)) {
            return Some(vec![index]);
        }
        // Or one for each value of a test.
        self.0.iter().find_map(|(place, wanted)| {
            let TestedValues::OneOf(values) = wanted else {
                return None;
            };
            let by: Option<BTreeSet<usize>> = values
                .iter()
                .map(|value| {
                    let narrowed = Some((*place, &**value));
                    earlier.iter().position(|rule| self.imply(rule, narrowed))
                })
                .collect();
            by.filter(|by| !by.is_empty())
                .map(|by| by.into_iter().collect())
        })
    }

    /// Whether all tests of `other` hold where these do, of which one may be narrowed to one value.
    fn imply(&self, other: &Self, narrowed: Option<(Option<&Pointer>, &str)>) -> bool {
        other.0.iter().all(|(place, wanted)| {
            let own = self.0.get(place);
            let one = narrowed
                .filter(|(narrow, _)| narrow == place)
                .map(|(_, value)| value);
            match (wanted, own) {
                (TestedValues::OneOf(values), Some(TestedValues::OneOf(own))) => match one {
                    Some(value) => values.contains(value),
                    None => own.is_subset(values),
                },
                (TestedValues::OneOf(_), _) => false,
                (TestedValues::Greater(limit), Some(TestedValues::Greater(own))) => own >= limit,
                (TestedValues::Greater(limit), Some(TestedValues::OneOf(own))) => {
                    let greater =
                        |value: &str| value.parse().is_ok_and(|value: f64| value > *limit);
                    match one {
                        Some(value) => greater(value),
                        None => own.iter().all(|value| greater(value)),
                    }
                }
                (TestedValues::Greater(_), _) => false,
                (TestedValues::Present, _) => self.needs(*place),
                (TestedValues::Absent, _) => self.excludes(*place),
            }
        })
    }

    /// Whether there is something at a place where these tests hold.
    pub(super) fn needs(&self, place: Option<&Pointer>) -> bool {
        let Some(place) = place else { return true };
        self.0.iter().any(|(own, wanted)| match (own, wanted) {
            (None, _) | (_, TestedValues::Absent) => false,
            (Some(own), _) if own.is_below(place) => true,
            (Some(own), TestedValues::OneOf(values)) => *own == place && !values.contains("\""),
            (Some(own), TestedValues::Present | TestedValues::Greater(_)) => *own == place,
        })
    }

    /// Whether there is nothing at a place where these tests hold.
    fn excludes(&self, place: Option<&Pointer>) -> bool {
        let Some(place) = place else { return false };
        self.0.iter().any(|(own, wanted)| match (own, wanted) {
            (Some(own), TestedValues::Absent) => *own == place || place.is_below(own),
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::profile::check::fixture::{assert_faults, faults, one};

    #[test]
    fn a_rule_that_no_answer_reaches_is_a_fault() {
        let rules = |rules: &[&str]| {
            let rules: Vec<_> = rules
                .iter()
                .map(|when| format!("{{ when = {{ {when} }}, is = \"running\" }}"))
                .collect();
            one("rules", &format!("[{}]", rules.join(", ")))
        };
        for (earlier, later) in [
            (r#""/s" = "a""#, r#""/s" = "a""#),
            (r#""/s" = "a""#, r#""/s" = "A""#),
            (r#""/s" = ["a", "b"]"#, r#""/s" = "b", "/t" = 1"#),
            (r#""/s" = 1"#, r#""/s" = 1.0"#),
            (r#""/s" = { present = true }"#, r#""/s" = "a""#),
            (r#""/s" = { present = true }"#, r#""/s/t" = "a""#),
            (r#""/s" = { present = true }"#, r#""/s" = { gt = 3 }"#),
            (r#""/s" = { gt = 3 }"#, r#""/s" = { gt = 4 }"#),
            (r#""/s" = { gt = 3 }"#, r#""/s" = [4, 5]"#),
            (
                r#""/s/t" = { absent = true }"#,
                r#""/s" = { absent = true }"#,
            ),
            (r#""@http" = [202, 204]"#, r#""@http" = 202, "/s" = 1"#),
        ] {
            let found = rules(&[earlier, later]);
            assert!(
                found.contains("rules[1]: no answer reaches it: rules[0] above it holds"),
                "{earlier} / {later}: {found}"
            );
        }
        let found = rules(&[
            r#""/s" = "a""#,
            r#""/s" = ["b", "c"]"#,
            r#""/s" = ["a", "c"]"#,
        ]);
        assert!(
            found.contains("rules[2]: no answer reaches it: rules[0] and rules[1] above it hold"),
            "{found}"
        );
        for (earlier, later) in [
            (r#""/s" = "a", "/t" = 1"#, r#""/s" = "a""#),
            (r#""/s" = "a""#, r#""/s" = ["a", "b"]"#),
            (r#""/s" = "1""#, r#""/s" = 1"#),
            (r#""/s" = "true""#, r#""/s" = true"#),
            (r#""/s" = { present = true }"#, r#""/s" = ["a", ""]"#),
            (r#""/s" = { gt = 3 }"#, r#""/s" = { gt = 2 }"#),
            (r#""/s" = { gt = 3 }"#, r#""/s" = { present = true }"#),
            (
                r#""/s" = { absent = true }"#,
                r#""/s/t" = { absent = true }"#,
            ),
            (r#""/s" = "a""#, r#""/s" = { present = true }"#),
            (r#""@http" = 202"#, r#""@http" = { gt = 201 }"#),
        ] {
            assert_eq!(rules(&[earlier, later]), "", "{earlier} / {later}");
        }
        // Letter for letter, these are two.
        let exact = faults(&[
            ("exact", "true"),
            (
                "rules",
                r#"[{ when = { "/s" = "a" }, is = "failed" }, { when = { "/s" = "A" }, is = "failed" }]"#,
            ),
        ]);
        assert_eq!(exact, []);
        for section in ["confirm", "each"] {
            let value = r#"{ on = ["succeeded"], get = "/x", items = "", rules = [{ when = { "/s" = 1 }, is = "failed" }, { when = { "/s" = 1 }, is = "failed" }] }"#;
            let found = one(section, value);
            assert!(
                found.contains(&format!(
                    "{section}.rules[1]: no answer reaches it: {section}.rules[0]"
                )),
                "{found}"
            );
        }
    }

    #[test]
    fn a_rule_whose_tests_contradict_each_other_is_a_fault() {
        let rule = |when: &str| {
            one(
                "rules",
                &format!("[{{ when = {{ {when} }}, is = \"running\" }}]"),
            )
        };
        for when in [
            r#""/s" = "a", "/s/t" = "b""#,
            r#""/s/t" = { present = true }, "/s" = 3"#,
            r#""/s" = { gt = 1 }, "/s/0" = 1"#,
            r#""/s" = { absent = true }, "/s/t" = 1"#,
            r#""/s/t/u" = { gt = 0 }, "/s" = { absent = true }"#,
            r#""/s/t" = 1, "/s/[k=v]/t" = 1"#,
        ] {
            let found = rule(when);
            assert!(found.contains("can never both hold"), "{when}: {found}");
        }
        for when in [
            r#""@http" = "ok""#,
            r#""@http" = 20"#,
            r#""@http" = [200, 200.5]"#,
            r#""@http" = { present = true }"#,
            r#""@http" = { gt = 599 }"#,
        ] {
            assert!(
                rule(when).contains("is the status code of the answer"),
                "{when}"
            );
        }
        for when in [
            r#""/s" = "a", "/t/u" = "b""#,
            r#""/s" = "a", "/s/0" = "b""#,
            r#""/s" = { present = true }, "/s/t" = { absent = true }"#,
            r#""/s" = "a", "/s/t" = { absent = true }"#,
            r#""/s/0/t" = 1, "/s/[k=v]/t" = 1"#,
            r#""@http" = 400, "/code" = "X""#,
        ] {
            assert_eq!(rule(when), "", "{when}");
        }
    }

    #[test]
    fn a_second_request_that_is_never_made_is_a_fault() {
        let rules = r#"rules = [{ when = { "/w" = true }, is = "waiting" }]"#;
        let confirm = |on: &str| {
            one(
                "confirm",
                &format!("{{ on = {on}, get = \"/x\", {rules} }}"),
            )
        };
        assert!(confirm("[\"canceled\"]").contains("no rule concludes canceled"));
        assert!(confirm("[\"running\"]").contains("running is not an end"));
        assert!(confirm("[\"done\"]").contains("there is no state \"done\""));
        assert!(confirm("[]").contains("it has no state"));
        assert_faults(&[
            (
                "detail",
                r#"{ on = ["skipped"], get = "/x", error = "/e" }"#,
                "detail.on: no rule concludes skipped",
            ),
            (
                "detail",
                r#"{ get = "/x" }"#,
                "nothing is read from its answer",
            ),
        ]);
    }
}
