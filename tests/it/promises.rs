//! Every test, script and deliberate bug that guarantees.md, testing.md and SECURITY.md name exists.

use std::collections::BTreeSet;
use std::path::Path;

const GUARANTEES: &str = include_str!("../../docs/guarantees.md");
const TESTING: &str = include_str!("../../docs/testing.md");
const SECURITY: &str = include_str!("../../SECURITY.md");
const README: &str = include_str!("../../README.md");
const GATE: &str = include_str!("../../.ci/run");
const MUTATE: &str = include_str!("../simulation/mutate");
const FUZZ: &str = include_str!("../../fuzz/run");

/// The names of all tests below a folder: functions with an attribute that makes one.
fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            let lists_tests = path.ends_with("contract/mod.rs");
            for line in text.lines().map(str::trim) {
                // A macro makes a test of each name of this list, for each engine of the store.
                if let Some(name) = line.strip_suffix(',').filter(|_| lists_tests)
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                {
                    found.insert(name.to_owned());
                }
                if line.starts_with("#[") {
                    is_test |= line.starts_with("#[test") || line.starts_with("#[tokio::test");
                } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                    found.insert(
                        rest.chars()
                            .take_while(|c| c.is_alphanumeric() || *c == '_')
                            .collect(),
                    );
                    is_test = false;
                } else if !line.starts_with("//") {
                    is_test = false;
                }
            }
        }
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The cells of the rows of a table that comes after a heading, without its head.
fn rows_after<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let text = text.split(heading).nth(1).expect(heading);
    let table = text
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    table
        .skip(2)
        .map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// The names of the deliberate bugs, and what each of them does.
fn mutants() -> BTreeSet<(String, String)> {
    let row = |line: &str| {
        let (name, what) = line
            .strip_prefix("    (\"")?
            .strip_suffix("\"),")?
            .split_once("\", \"")?;
        Some((name.to_owned(), what.to_owned()))
    };
    MUTATE.lines().filter_map(row).collect()
}

/// What stands between backticks and is the name of a test: words of our own, joined.
fn named(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.matches('_').count() >= 3
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte))
    };
    quoted(text).filter(is_name).collect()
}

fn all_tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    tests_below(&root.join("src"), &mut tests);
    tests_below(&root.join("tests"), &mut tests);
    tests
}

#[test]
fn every_test_that_a_promise_rests_on_exists() {
    let tests = all_tests();
    assert!(
        tests.contains("every_test_that_a_promise_rests_on_exists") && tests.len() > 200,
        "{}",
        tests.len()
    );
    for (file, text, least) in [
        ("docs/guarantees.md", GUARANTEES, 35),
        ("SECURITY.md", SECURITY, 30),
        ("docs/testing.md", TESTING, 20),
    ] {
        let named = named(text);
        assert!(named.len() >= least, "{file} names {} tests", named.len());
        let missing: Vec<_> = named
            .iter()
            .filter(|name| !tests.contains(**name))
            .collect();
        assert!(
            missing.is_empty(),
            "{file} names tests that do not exist: {missing:?}"
        );
    }
}

#[test]
fn every_promise_is_shown_and_what_it_rests_on_is_run() {
    let promises = GUARANTEES
        .split("## Promises")
        .nth(1)
        .unwrap()
        .split("## Not promised")
        .next()
        .unwrap();
    let rows: Vec<_> = promises
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .collect();
    assert!(rows.len() > 10, "{}", rows.len());
    for row in rows {
        let cells: Vec<_> = row.split(" | ").collect();
        assert_eq!(cells.len(), 3, "{row}");
        assert!(!named(cells[2]).is_empty(), "nothing shows: {row}");
    }
    let mut scripts = BTreeSet::from(["tests/run", "tests/simulation/mutate"]);
    for text in [GUARANTEES, TESTING, SECURITY] {
        let is_script = |word: &&str| {
            (word.starts_with("tests/") || word.starts_with("fuzz/")) && word.ends_with("/run")
        };
        scripts.extend(quoted(text).filter(is_script));
    }
    assert!(scripts.len() >= 5, "{scripts:?}");
    for script in scripts {
        assert!(
            GATE.lines().any(|line| line.trim().ends_with(script)),
            "{script} is in the gate"
        );
    }
    for file in ["docs/guarantees.md", "SECURITY.md"] {
        assert!(
            README.contains(&format!("({file})")),
            "the README leads to {file}"
        );
    }
}

#[test]
fn the_deliberate_bugs_are_those_of_the_table() {
    let row = |cells: Vec<&str>| (cells[0].trim_matches('`').to_owned(), cells[1].to_owned());
    let table: BTreeSet<_> = rows_after(TESTING, "### Deliberate bugs")
        .into_iter()
        .map(row)
        .collect();
    assert!(table.len() >= 24, "{}", table.len());
    assert_eq!(mutants(), table);
}

#[test]
fn every_test_of_a_defect_exists() {
    let (tests, bugs) = (all_tests(), mutants());
    let rows = rows_after(TESTING, "## Defects found on the way");
    assert!(rows.len() >= 39, "{}", rows.len());
    for row in rows {
        assert_eq!(row.len(), 3, "{row:?}");
        let named: Vec<_> = quoted(row[2]).collect();
        assert!(
            !named.is_empty() || row[2].starts_with("none: "),
            "a test, or why there is none: {row:?}"
        );
        for name in named {
            let is_there = tests.contains(name) || bugs.iter().any(|(bug, _)| bug == name);
            assert!(
                is_there,
                "`{name}` is neither a test nor a deliberate bug: {row:?}"
            );
        }
    }
}

#[test]
fn every_fuzzing_target_exists() {
    let targets = FUZZ
        .lines()
        .find_map(|line| Some(line.split_once("targets=(answer")?.1.split_once(')')?.0));
    let mut targets: BTreeSet<_> = targets
        .expect("a list of targets")
        .split_whitespace()
        .collect();
    targets.insert("answer");
    for text in [GUARANTEES, TESTING, SECURITY] {
        for after in text.split("uzzing of ").skip(1) {
            let sentence = after.split([',', '.', '|', ')']).next().unwrap();
            let named: Vec<_> = quoted(sentence).collect();
            assert!(!named.is_empty(), "{sentence}");
            assert!(
                named.iter().all(|name| targets.contains(name)),
                "{sentence}"
            );
        }
    }
}
