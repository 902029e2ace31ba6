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
