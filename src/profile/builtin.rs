//! The built-in profiles: files in `builtin/`, each parsed only when it is used.

use std::sync::Arc;

use super::Profile;
use super::parse::{ProfileFault, parse};

/// A file of `builtin/`.
struct File {
    name: &'static str,
    /// As in the file, so that a name is found without parsing any.
    aliases: &'static [&'static str],
    source: &'static str,
}

macro_rules! files {
    ($($name:literal $([$($alias:literal),*])?,)*) => {
        /// Every file, by name.
        const FILES: &[File] = &[$(File {
            name: $name,
            aliases: &[$($($alias),*)?],
            source: include_str!(concat!("builtin/", $name, ".toml")),
        }),*];
        /// Their names.
        const NAMES: &[&str] = &[$($name),*];
    };
}

// A new file needs one line here: its name, and its aliases in brackets.
files! {
    "aip151",
    "airflow",
    "airflow2",
    "anthropic-batch",
    "argo",
    "azure-devops",
    "azure-lro",
    "buildbot",
    "buildkite",
    "circleci",
    "circleci-pipeline",
    "crewai",
    "crewship",
    "dagster",
    "databricks",
    "dbt",
    "flower",
    "gitea" ["forgejo"],
    "github" ["gh"],
    "gitlab",
    "gitlab-job",
    "http202",
    "jenkins",
    "kestra",
    "kubeflow",
    "kubernetes-job" ["k8s-job"],
    "langgraph",
    "langgraph-thread",
    "mlflow",
    "n8n",
    "openai-batch",
    "openai-response",
    "prefect",
    "replicate",
    "runpod",
    "slurm",
    "temporal",
    "terraform",
    "trigger",
    "vercel",
}

/// The names of the built-in profiles, in alphabetical order.
pub fn builtin_names() -> &'static [&'static str] {
    NAMES
}

fn find(name: &str) -> Option<&'static File> {
    FILES
        .iter()
        .find(|file| file.name == name || file.aliases.contains(&name))
}

/// The file of the built-in profile that has this name or alias.
pub fn builtin_source(name: &str) -> Option<&'static str> {
    find(name).map(|file| file.source)
}

/// Parses the built-in profile that has this name or alias; `None` where there is none.
pub fn builtin(name: &str) -> Option<Result<Arc<Profile>, Vec<ProfileFault>>> {
    let file = find(name)?;
    Some(parse(file.source, file.name).map(Arc::new))
}

/// The built-in profile that `[api]` describes.
///
/// # Panics
/// Never: that it has no fault is tested.
pub fn crewship() -> Arc<Profile> {
    builtin("crewship")
        .and_then(Result::ok)
        .expect("the profile has no fault")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::domain::{Status, Verdict};
    use crate::profile::{Rule, RuleOutcome, Scalar, Test};

    #[test]
    fn every_file_of_the_folder_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/profile/builtin");
        let files = std::fs::read_dir(folder).unwrap();
        let files: BTreeSet<_> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        let expected: BTreeSet<_> = files
            .iter()
            .map(|file| file.strip_suffix(".toml").expect("only profiles"))
            .collect();
        let expected: Vec<_> = expected.into_iter().collect();
        let names = builtin_names();
        assert_eq!(
            names, expected,
            "see the list in builtin.rs, in alphabetical order"
        );
    }

    #[test]
    fn every_built_in_profile_is_without_a_fault() {
        let mut faults = String::new();
        for name in builtin_names() {
            match builtin(name).unwrap() {
                Ok(profile) => {
                    assert_eq!(profile.name, *name);
                    assert!(
                        !profile.title.is_empty() && !profile.checked.is_empty(),
                        "{name}"
                    );
                    let aliases = find(name).unwrap().aliases;
                    assert_eq!(
                        profile.aliases, aliases,
                        "{name}: see the list in builtin.rs"
                    );
                }
                Err(found) => {
                    for fault in found {
                        faults.push_str(&format!("{name}.toml: {fault}\n"));
                    }
                }
            }
        }
        assert!(faults.is_empty(), "{faults}");
    }

    /// Whether a rule compares a value of an answer with this word of a filter. Some filters shorten the words of
    /// answers, as Temporal's: `Running` is `WORKFLOW_EXECUTION_STATUS_RUNNING`.
    fn names(rule: &Rule, word: &str) -> bool {
        let is_word = |value: &Scalar| match value {
            Scalar::Text(text) => {
                let end = format!("_{}", word.to_ascii_uppercase());
                text.eq_ignore_ascii_case(word) || text.ends_with(&end)
            }
            Scalar::Number(number) => number.to_string() == word,
            Scalar::Bool(value) => value.to_string() == word,
        };
        let mut tests = rule.when.iter();
        tests.any(|(_, test)| matches!(test, Test::OneOf(values) if values.iter().any(is_word)))
    }

    #[test]
    fn runs_that_a_list_shows_as_going_on_have_not_ended_by_the_rules_of_the_profile() {
        let mut words = 0;
        for name in builtin_names() {
            let profile = builtin(name).unwrap().unwrap();
            let active = profile
                .list
                .iter()
                .flat_map(|list| list.active.iter().flatten());
            for word in active.flat_map(|value| value.split(',')) {
                words += 1;
                let rules: Vec<&Rule> = profile
                    .rules
                    .iter()
                    .filter(|rule| names(rule, word))
                    .collect();
                // The filter of Databricks has a name of its own: `active_only`.
                assert_eq!(rules.is_empty(), name == &"databricks", "{name}: {word}");
                let is_end = |rule: &&&Rule| match rule.is {
                    RuleOutcome::State(state) => Verdict::of_status(&Status::from(state)).is_some(),
                    RuleOutcome::NotFound => true,
                };
                // Only together with something else may the word be that of an end.
                let ends: Vec<_> = rules.iter().filter(is_end).collect();
                assert!(
                    ends.iter().all(|rule| rule.when.len() > 1),
                    "{name}: {word}: {ends:?}"
                );
                assert!(
                    rules.is_empty() || ends.len() < rules.len(),
                    "{name}: {word}: {ends:?}"
                );
            }
        }
        assert!(words > 80, "{words}");
    }

    #[test]
    fn no_two_profiles_have_a_name_or_an_alias_in_common() {
        let mut seen = BTreeSet::new();
        for file in FILES {
            for name in file.aliases.iter().chain([&file.name]) {
                assert!(seen.insert(*name), "{name}");
                assert_eq!(find(name).unwrap().name, file.name);
            }
        }
        assert!(builtin("none of them").is_none());
    }
}
