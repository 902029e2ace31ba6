//! Fuzzes a configuration: whatever a file or the environment contains, it is accepted or every
//! problem is reported on a line of its own, and a secret shows in neither.

use super::{Sources, load};

/// What stands for a secret in the seeds.
const SECRET: &str = "0SecretOfTheSeeds0";

/// A configuration file; behind the first zero byte variables as `NAME=value`, one a line.
pub fn file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (file, variables) = text.split_once('\0').unwrap_or((&text, ""));
    // Reading what a file names is not what is fuzzed, and some of what can be named never ends.
    if text.contains('/') && (text.contains("dev") || text.contains("proc") || text.contains("sys"))
    {
        return;
    }
    let path = std::env::temp_dir().join(format!("runwatch-fuzz-{}.toml", std::process::id()));
    std::fs::write(&path, file).expect("a temporary file");
    let environment = variables.lines().filter_map(|line| line.split_once('='));
    let environment = environment.filter(|(name, _)| !name.is_empty() && !name.contains('\0'));
    let environment = environment
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let sources = Sources {
        explicit: Some(path),
        files: Vec::new(),
        environment,
    };
    let hidden = is_hidden(file, variables);
    let clean = |text: &str| {
        assert!(
            !(hidden && text.contains(SECRET)),
            "a secret is shown: {text}"
        )
    };
    match load(&sources) {
        Ok(loaded) => {
            let shown = loaded.effective.to_toml();
            toml::from_str::<toml::Table>(&shown).expect("what is shown reads back");
            clean(&shown);
            clean(&loaded.effective.to_json().to_string());
            clean(&format!("{loaded:?}"));
        }
        Err(problems) => {
            assert!(!problems.0.is_empty());
            for problem in &problems.0 {
                let shown = problem.value.iter().any(|value| value.contains(SECRET));
                assert!(
                    !(shown && is_secret(&problem.key)),
                    "a secret is shown: {problem}"
                );
                clean(&problem.to_string());
            }
            clean(&problems.to_string());
            clean(&format!("{problems:?}"));
        }
    }
}

/// Whether a key holds a secret, in whatever table it stands.
fn is_secret(key: &str) -> bool {
    ["key", "url", "secret"].contains(&key.rsplit('.').next().unwrap_or_default())
}

/// Whether the mark stands only where secrets do, so that it must show nowhere.
fn is_hidden(file: &str, variables: &str) -> bool {
    fn hidden_marks(key: &str, value: &toml::Value) -> usize {
        match value {
            toml::Value::Table(table) => table
                .iter()
                .map(|(key, value)| hidden_marks(key, value))
                .sum(),
            toml::Value::String(text) if is_secret(key) => text.matches(SECRET).count(),
            _ => 0,
        }
    }
    // A mark in a name, in a comment or in another value makes more of them in the file.
    let all_hidden =
        |table| hidden_marks("", &toml::Value::Table(table)) == file.matches(SECRET).count();
    !variables.contains(SECRET) && toml::from_str::<toml::Table>(file).is_ok_and(all_hidden)
}
