//! Short IDs of runs: the beginning of an ID, its last part, or both ends of it, as tables show long ones.

use std::collections::BTreeSet;
use std::time::Duration;

use super::args::RunArg;
use super::failure::CommandFailure;
use super::run_ids::read_run_ids;
use super::run_names::RunNames;
use crate::control::{Client, WatchResponse};
use crate::domain::RunRef;

/// Shortest text that is taken for a part of an ID, in characters.
const LEAST_CHARS: usize = 4;

/// How long the daemon may take to list its watches.
const LIST_LIMIT: Duration = Duration::from_secs(10);

/// Most runs that an error names.
const SHOWN: usize = 5;

/// Requests the watch that an argument names, whole or by a part of its ID that only one watch has.
///
/// # Errors
/// Why there is none.
pub(super) async fn watch_of(
    client: &Client,
    names: &RunNames,
    run: &RunArg,
) -> Result<WatchResponse, CommandFailure> {
    let request = async |run: &RunRef| client.watch(run, Duration::ZERO).await;
    let failure = match names.one(run) {
        Ok(run) => match request(&run).await {
            Ok(watch) => return Ok(watch),
            Err(error) if error.is_unknown() => CommandFailure::from(&error),
            Err(error) => return Err(CommandFailure::from(&error)),
        },
        Err(error) => CommandFailure::of_command(&error),
    };
    let RunArg::Named(text) = run else {
        return Err(failure);
    };
    let run = watched_run(client, text).await?.ok_or(failure)?;
    request(&run)
        .await
        .map_err(|error| CommandFailure::from(&error))
}

/// Finds the runs that arguments name, each once and in order, whole or by a part of an ID that only one watch has.
///
/// # Errors
/// As [`read_run_ids`], and when a text could be several runs.
pub(super) async fn runs_of(
    client: &Client,
    names: &RunNames,
    arguments: &[RunArg],
) -> anyhow::Result<Vec<RunRef>> {
    let mut runs = Vec::new();
    for argument in arguments {
        let found = read_run_ids(std::slice::from_ref(argument), names).await;
        match (found, argument) {
            (Ok(found), _) => runs.extend(found),
            (Err(error), RunArg::Named(text)) => {
                runs.push(watched_run(client, text).await?.ok_or(error)?);
            }
            (Err(error), RunArg::Stdin) => return Err(error),
        }
    }
    let mut seen = BTreeSet::new();
    runs.retain(|run| seen.insert(run.clone()));
    Ok(runs)
}

/// Finds the run of the one watch that has `text` as a part of its ID; `None` if no watch has it, or no daemon answers.
///
/// # Errors
/// When several watches have it.
pub(super) async fn watched_run(
    client: &Client,
    text: &str,
) -> Result<Option<RunRef>, CommandFailure> {
    if text.chars().count() < LEAST_CHARS {
        return Ok(None);
    }
    let list = tokio::time::timeout(LIST_LIMIT, client.watches(&[])).await;
    let Ok(Ok(list)) = list else {
        return Ok(None);
    };
    let runs: BTreeSet<_> = list.watches.iter().map(WatchResponse::run).collect();
    let runs: Vec<_> = runs
        .into_iter()
        .filter(|run| is_short_for(text, run))
        .collect();
    match runs.as_slice() {
        [] => Ok(None),
        [run] => Ok(Some(run.clone())),
        several => match several.iter().find(|run| run.as_str() == text) {
            Some(whole) => Ok(Some(whole.clone())),
            None => Err(ambiguous(text, several)),
        },
    }
}

/// Wrong usage: a text could be any of these runs.
fn ambiguous(text: &str, runs: &[RunRef]) -> CommandFailure {
    let shown: Vec<_> = runs.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = match runs.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let what = format!("{text} could be {}{more}", shown.join(", "));
    CommandFailure::usage(what).fix("write more of it")
}

/// Whether a text is a part of an ID that a person may give instead of it.
fn is_short_for(text: &str, run: &RunRef) -> bool {
    let whole = run.to_string();
    let cut = text.split_once('…').or_else(|| text.split_once("..."));
    let (head, tail) = cut.unwrap_or((text, ""));
    if head.chars().count() + tail.chars().count() < LEAST_CHARS {
        return false;
    }
    let fits = |id: &str| {
        let rest = id.strip_prefix(head);
        rest.is_some_and(|rest| rest.ends_with(tail))
    };
    let is_last_part = || {
        let before = whole.strip_suffix(text);
        before.is_some_and(|before| before.ends_with('/'))
    };
    fits(&whole) || fits(run.id()) || is_last_part()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ProviderName;

    #[test]
    fn beginnings_ends_and_both_stand_for_an_id() {
        let name = ProviderName::new("airflow").unwrap();
        let run = RunRef::of(&name, "nightly_load/manual__2026-11-27").unwrap();
        for text in [
            "airflow:nightly_load/manual__2026-11-27",
            "airflow:night",
            "nightly_load/man",
            "manual__2026-11-27",
            "airflow:nigh…11-27",
            "nightly...-27",
            "…2026-11-27",
        ] {
            assert!(is_short_for(text, &run), "{text}");
        }
        for text in [
            "",
            "air",
            "…",
            "…27",
            "2026-11-27",
            "airflow:x",
            "airflow:nigh…28",
            "load/manual__2026-11-27",
        ] {
            assert!(!is_short_for(text, &run), "{text}");
        }
        // The ends may not overlap.
        let short = RunRef::new("run_12").unwrap();
        assert!(!is_short_for("run_1…_12", &short));
    }
}
