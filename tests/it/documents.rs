//! Figures, names and links of the documents.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runwatch::app::policy;
use runwatch::config::Settings;

use crate::streams::paused::{LATENCY, Simulation, Stream};

const ARCHITECTURE: &str = include_str!("../../docs/architecture.md");
const PERFORMANCE: &str = include_str!("../../docs/performance.md");
const WAITING: &str = include_str!("../../docs/waiting.md");
const NOTIFICATIONS: &str = include_str!("../../docs/notifications.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
const README: &str = include_str!("../../README.md");
const GATE: &str = include_str!("../../.ci/run");
const JUSTFILE: &str = include_str!("../../justfile");
const WORKFLOW: &str = include_str!("../../.github/workflows/gate.yml");
const EXAMPLE: &str = include_str!("../../config/runwatch.toml");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All documents: those of the root, and of the folders that have some.
fn documents() -> Vec<PathBuf> {
    let folders = ["", "docs", "examples", ".github", ".github/ISSUE_TEMPLATE"]
        .map(|folder| root().join(folder));
    let entries = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

/// The lines of a document outside of its blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// The targets of the links of a document.
fn links(text: &str) -> Vec<&str> {
    prose(text)
        .flat_map(|line| line.split("](").skip(1))
        .map(|rest| rest.split(')').next().unwrap())
        .collect()
}

/// The anchors of a document's headings, as GitHub makes them: lower case, without punctuation, spaces as dashes.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_relative_link_leads_to_a_file_and_an_anchor_that_exist() {
    let documents = documents();
    assert!(documents.len() >= 15, "{documents:?}");
    let (mut broken, mut linked) = (Vec::new(), BTreeSet::new());
    for document in &documents {
        let text = std::fs::read_to_string(document).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = document.parent().unwrap();
            let target = if path.is_empty() {
                document.clone()
            } else {
                folder.join(path)
            };
            let Ok(target) = target.canonicalize() else {
                broken.push(format!("{}: {link}", document.display()));
                continue;
            };
            let has_anchor = anchor.is_empty()
                || std::fs::read_to_string(&target)
                    .is_ok_and(|text| anchors(&text).contains(anchor));
            if !has_anchor {
                broken.push(format!(
                    "{}: {link} has no such heading",
                    document.display()
                ));
            }
            if target != *document {
                linked.insert(target);
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
    let unlinked: Vec<_> = documents
        .iter()
        .filter(|document| {
            !document.starts_with(root().join(".github")) && !document.ends_with("README.md")
        })
        .filter(|document| !linked.contains(&document.canonicalize().unwrap()))
        .collect();
    assert!(unlinked.is_empty(), "no document leads to {unlinked:?}");
}

#[test]
fn the_readme_is_short_and_leads_to_every_page() {
    assert!(
        README.lines().count() <= 150,
        "{} lines",
        README.lines().count()
    );
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let page = format!("docs/{}", entry.unwrap().file_name().to_str().unwrap());
        if !page.ends_with(".md") {
            continue;
        }
        let is_linked = links(README)
            .iter()
            .any(|link| link.split('#').next() == Some(page.as_str()));
        assert!(is_linked, "README.md leads to {page}");
    }
}

#[test]
fn every_key_is_documented_with_its_default() {
    let (mut section, mut keys, mut missing) = ("", 0, Vec::new());
    for line in EXAMPLE.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name;
        }
        // The sinks come last, commented out as a whole.
        if line.starts_with("#[sinks.") {
            break;
        }
        let is_key = |name: &str| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        let Some((name, value)) = line
            .strip_prefix('#')
            .and_then(|line| line.split_once(" = "))
        else {
            continue;
        };
        if !is_key(name) {
            continue;
        }
        keys += 1;
        // Examples, whose default is another one or depends on the environment.
        let row = match name {
            "key_file" | "path" | "socket" => format!("| `{section}.{name}` |"),
            _ if section.is_empty() => format!("| `{name}` | `{value}` |"),
            _ => format!("| `{section}.{name}` | `{value}` |"),
        };
        if !CONFIGURATION.contains(&row) {
            missing.push(row);
        }
    }
    assert!(keys >= 25, "{keys}");
    assert!(
        missing.is_empty(),
        "docs/configuration.md lacks these rows:\n{}",
        missing.join("\n")
    );
}

/// Watches a run that ends after `length`, each wait shorter than its interval by `jitter`. Returns
/// the number of polls and the interval in which the end falls.
fn watched(length: Duration, jitter: f64) -> (u32, Duration) {
    let backoff = policy(&Settings::default()).backoff;
    let (mut asked_at, mut polls, mut interval) = (Duration::ZERO, 1, None);
    while asked_at < length {
        let next = backoff.next(interval).min(backoff.interval_after(asked_at));
        asked_at += next.mul_f64(1.0 - jitter);
        interval = Some(next);
        polls += 1;
    }
    (polls, interval.unwrap())
}

fn with_commas(number: u64) -> String {
    if number < 1000 {
        number.to_string()
    } else {
        format!("{},{:03}", number / 1000, number % 1000)
    }
}

/// The fewest and the most requests for a run of this length whose stream says something every 2 seconds,
/// in paused time: polls, and the opening of streams.
async fn activities(length: Duration) -> (u64, u64) {
    let mut counts = Vec::new();
    for seed in 0..8 {
        let simulation = Simulation::start(seed, |_| ());
        let run = simulation
            .add(
                0,
                length,
                Stream::Works {
                    every: Duration::from_secs(2),
                },
            )
            .await;
        let (_, delay) = simulation.verdict(&run).await;
        assert!(delay <= LATENCY * 2, "within moments: {delay:?}");
        counts.push(simulation.api.polls().len() + simulation.api.streams().openings().len());
        simulation.end().await;
    }
    (
        *counts.iter().min().unwrap() as u64,
        *counts.iter().max().unwrap() as u64,
    )
}

#[tokio::test(start_paused = true)]
async fn the_table_of_requests_and_delays_is_what_the_defaults_give() {
    let mut missing = Vec::new();
    let jitter = Settings::default().watch.jitter;
    for (name, seconds) in [
        ("10 s", 10),
        ("1 min", 60),
        ("10 min", 600),
        ("1 h", 3600),
        ("8 h", 8 * 3600),
    ] {
        let length = Duration::from_secs(seconds);
        let (least, delay) = watched(length, 0.0);
        let (most, _) = watched(length, jitter);
        let range = |least: u64, most: u64| {
            if least == most {
                with_commas(least)
            } else {
                format!("{}–{}", with_commas(least), with_commas(most))
            }
        };
        let requests = range(least.into(), most.into());
        let per_hour = match seconds / 3600 {
            0 => "–".to_owned(),
            hours => range(
                (u64::from(least) + hours / 2) / hours,
                (u64::from(most) + hours / 2) / hours,
            ),
        };
        let delay = delay.as_secs_f64();
        let delay = if delay < 30.0 {
            format!("{delay:.1} s")
        } else {
            "30 s".to_owned()
        };
        let fixed = with_commas(seconds.div_ceil(3) + 1);
        let (fewest, most) = activities(length).await;
        let activities = range(fewest, most);
        let row = format!(
            "| {name} | {requests} | {per_hour} | {delay} | {activities} | {fixed} requests, 3 s |"
        );
        if !PERFORMANCE.contains(&row) {
            missing.push(row);
        }
    }
    assert!(
        missing.is_empty(),
        "docs/performance.md lacks these rows:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_exit_code_and_event_is_named() {
    for code in [
        "| 0 |",
        "| 1 |",
        "| 2 |",
        "| 3 |",
        "| 4 |",
        "| 5 |",
        "| 6 |",
        "| 124 |",
        "| 130, 143 |",
    ] {
        assert!(WAITING.contains(code), "{code}");
    }
    for event in runwatch::domain::EventType::ALL {
        assert!(NOTIFICATIONS.contains(&format!("`{event}`")), "{event}");
    }
}

/// The texts that a line gives to `.ci/run`: words, or several words in quotes.
fn arguments(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 {
            found.push(part);
        } else {
            found.extend(part.split_whitespace());
        }
    }
    found
}

#[test]
fn the_recipes_and_the_workflow_run_each_step_of_the_gate() {
    let steps: Vec<_> = GATE
        .lines()
        .filter_map(|line| line.trim().strip_prefix("step ")?.split('\'').nth(1))
        .collect();
    assert!(steps.len() >= 15, "{steps:?}");
    let recipes = JUSTFILE
        .lines()
        .filter_map(|line| line.trim().strip_prefix(".ci/run "))
        .flat_map(arguments)
        .collect();
    let jobs = WORKFLOW
        .lines()
        .filter_map(|line| line.split_once("steps: ")?.1.trim().strip_suffix('}'));
    let jobs = jobs
        .flat_map(|steps| arguments(steps.trim().trim_matches('"')))
        .collect();
    for (file, beginnings) in [("justfile", recipes), ("gate.yml", jobs)] {
        let beginnings: Vec<&str> = beginnings;
        for beginning in &beginnings {
            assert!(
                steps.iter().any(|step| step.starts_with(beginning)),
                "{file}: no step begins with {beginning:?}"
            );
        }
        for step in &steps {
            let runs = beginnings
                .iter()
                .filter(|beginning| step.starts_with(**beginning))
                .count();
            assert_eq!(runs, 1, "{file} runs the step {step:?} once");
        }
    }
}

#[test]
fn every_file_that_the_architecture_names_exists() {
    let is_path = |word: &&str| word.contains('/') && !word.contains('\n');
    let named: BTreeSet<_> = ARCHITECTURE
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(is_path)
        .collect();
    assert!(named.len() >= 20, "{named:?}");
    let exists = |path: &&str| root().join(path).exists() || root().join("src").join(path).exists();
    let missing: Vec<_> = named.into_iter().filter(|path| !exists(path)).collect();
    assert!(
        missing.is_empty(),
        "docs/architecture.md names files that do not exist: {missing:?}"
    );
}

#[test]
fn the_documents_of_the_package_lead_to_files_of_the_package() {
    let manifest: toml::Table = toml::from_str(include_str!("../../Cargo.toml")).unwrap();
    let assets = &manifest["package"]["metadata"]["deb"]["assets"];
    let mut packaged = Vec::new();
    for asset in assets.as_array().unwrap() {
        let [source, target] = [0, 1].map(|index| asset[index].as_str().unwrap());
        let (folder, name) = source.rsplit_once('/').unwrap_or(("", source));
        let Some((before, after)) = name.split_once('*') else {
            packaged.push((source.to_owned(), format!("{target}{name}")));
            continue;
        };
        // What packaging/assets makes is not there yet.
        let entries = std::fs::read_dir(root().join(folder));
        for entry in entries.into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with(before) && name.ends_with(after) {
                packaged.push((format!("{folder}/{name}"), format!("{target}{name}")));
            }
        }
    }
    let mut broken = Vec::new();
    for (source, target) in packaged
        .iter()
        .filter(|(source, _)| source.ends_with(".md"))
    {
        let text = std::fs::read_to_string(root().join(source)).unwrap();
        for link in links(&text) {
            let path = link.split('#').next().unwrap();
            if path.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let mut parts: Vec<_> = target.split('/').collect();
            parts.pop();
            for part in path.trim_end_matches('/').split('/') {
                match part {
                    ".." => drop(parts.pop()),
                    part => parts.push(part),
                }
            }
            let place = parts.join("/");
            let folder = format!("{place}/");
            if !packaged
                .iter()
                .any(|(_, file)| *file == place || file.starts_with(&folder))
            {
                broken.push(format!("{source}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "not in the package: {broken:?}");
}
