//! What GUARANTEES.md and SECURITY.md say is shown by a test is shown by one that exists.

use std::collections::BTreeSet;
use std::path::Path;

const GUARANTEES: &str = include_str!("../../GUARANTEES.md");
const SECURITY: &str = include_str!("../../SECURITY.md");
const README: &str = include_str!("../../README.md");
const GATE: &str = include_str!("../../.ci/run");

/// The names of all tests below a folder: functions with an attribute that makes one.
fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[") {
                    is_test |= line.starts_with("#[test") || line.starts_with("#[tokio::test");
                } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                    found.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
                    is_test = false;
                } else if !line.starts_with("//") {
                    is_test = false;
                }
            }
        }
    }
}

/// What stands between backticks and is the name of a test: words of our own, joined.
fn named(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.matches('_').count() >= 3
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte))
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

#[test]
fn every_test_that_a_promise_rests_on_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    tests_below(&root.join("src"), &mut tests);
    tests_below(&root.join("tests"), &mut tests);
    assert!(tests.contains("every_test_that_a_promise_rests_on_exists") && tests.len() > 200, "{}", tests.len());
    for (file, text, least) in [("GUARANTEES.md", GUARANTEES, 35), ("SECURITY.md", SECURITY, 30)] {
        let named = named(text);
        assert!(named.len() >= least, "{file} names {} tests", named.len());
        let missing: Vec<_> = named.iter().filter(|name| !tests.contains(**name)).collect();
        assert!(missing.is_empty(), "{file} names tests that do not exist: {missing:?}");
    }
}

#[test]
fn every_promise_is_shown_and_what_it_rests_on_is_run() {
    let promises = GUARANTEES.split("## Promises").nth(1).unwrap().split("## Not promised").next().unwrap();
    let rows: Vec<_> = promises.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 10, "{}", rows.len());
    for row in rows {
        let cells: Vec<_> = row.split(" | ").collect();
        assert_eq!(cells.len(), 3, "{row}");
        assert!(!named(cells[2]).is_empty(), "nothing shows: {row}");
    }
    for script in ["tests/torture/run", "fuzz/run", "tests/run"] {
        assert!(GATE.contains(&format!("bash {script}")), "{script} is in the gate");
    }
    for file in ["GUARANTEES.md", "SECURITY.md"] {
        assert!(README.contains(&format!("({file})")), "the README leads to {file}");
    }
}
