//! Short IDs of runs: the beginning of an ID, its last part, or both ends of it, as tables show long ones.

use std::time::Duration;

use super::args::RunArg;
use super::failure::CommandFailure;
use super::run_names::RunNames;
use crate::control::{Client, WatchResponse};
use crate::domain::RunRef;

/// Shortest text that is taken for a part of an ID, in characters.
const LEAST_CHARS: usize = 4;

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
    let Ok(list) = client.watches(&[]).await else {
        return Err(failure);
    };
    let runs = list.watches.iter().map(WatchResponse::run);
    let meant: Vec<_> = runs.filter(|run| is_short_for(text, run)).collect();
    match meant.as_slice() {
        [] => Err(failure),
        [run] => request(run)
            .await
            .map_err(|error| CommandFailure::from(&error)),
        several => {
            let shown: Vec<_> = several
                .iter()
                .take(SHOWN)
                .map(ToString::to_string)
                .collect();
            let more = match several.len() - shown.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let what = format!("{text} could be {}{more}", shown.join(", "));
            Err(CommandFailure::usage(what).fix("write more of it"))
        }
    }
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
