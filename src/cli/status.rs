//! `runwatch status`: one look at a run, without waiting and without a daemon.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::json;

use super::args::RunArg;
use super::client::Printer;
use super::failure::CommandFailure;
use super::phrases::{TEXT_CHARS, cause};
use super::run_names::RunNames;
use super::short_ids::watched_run;
use super::{STILL_GOING, WAITING};
use crate::config::Settings;
use crate::control::Client;
use crate::domain::{Observation, RunRef, RunState, Timing, Verdict};
use crate::providers::{ApiClient, ApiError, Provider as _};
use crate::style::{Look, elapsed, took};
use crate::text::{error_chain, one_line};

/// Makes one request for the run and prints where it is. Returns the exit code of its verdict, [`STILL_GOING`] without
/// one, that of `not_found` or `unreachable` where the API gave no usable answer, or [`super::KEY_REFUSED`]. A part of
/// the ID that only one watch of the daemon has is enough, where the API has no run of this ID. With `json` one line,
/// `{"run_id","status","verdict","error","created_at","started_at","completed_at"}`.
///
/// # Errors
/// When the client cannot be set up, the argument names no run, or the result cannot be written.
pub async fn status(
    run: &RunArg,
    names: &RunNames,
    daemon: Option<&Client>,
    settings: &Settings,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let named = names.one(run);
    let look = match &named {
        Ok(run_id) => Some(look_at(run_id, settings).await?),
        Err(_) => None,
    };
    if look.as_ref().is_none_or(RunLook::is_not_found)
        && let (RunArg::Named(text), Some(daemon)) = (run, daemon)
        && let Some(meant) = watched_run(daemon, text).await?
        && named.as_ref().ok() != Some(&meant)
    {
        let look = look_at(&meant, settings).await?;
        return look.report(&meant, &mut printer);
    }
    let run_id = named?;
    let look = look.expect("the run was found by its name");
    look.report(&run_id, &mut printer)
}

/// What one look at a run brought.
enum RunLook {
    /// There is no key.
    NoKey(CommandFailure),
    Seen(Box<Observation>),
    /// Why there is no usable answer, and how to give another key.
    Failed(ApiError, String),
}

/// Makes one request for a run.
async fn look_at(run_id: &RunRef, settings: &Settings) -> anyhow::Result<RunLook> {
    let account = settings.providers.get(&run_id.provider_name());
    let account = account.map_err(|why| anyhow::anyhow!(why))?;
    if !account.has_credentials() {
        let how = account.how_to_give_a_key();
        let failure = CommandFailure::unauthorized(format!("no API key for {}", account.name));
        return Ok(RunLook::NoKey(failure.fix(format!("set {how}"))));
    }
    let client = ApiClient::of_account(&account).context("cannot build the API client")?;
    client.read_key().await;
    Ok(match client.get_run(run_id).await.result {
        Ok(observation) => RunLook::Seen(Box::new(observation)),
        Err(error) => RunLook::Failed(error, account.how_to_give_a_key()),
    })
}

impl RunLook {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed(error, _) if error.is_not_found())
    }

    /// Prints it and returns its exit code.
    fn report(self, run_id: &RunRef, printer: &mut Printer<'_>) -> anyhow::Result<u8> {
        let observation = match self {
            Self::NoKey(failure) => return printer.failed(failure.about("run_id", run_id)),
            Self::Failed(error, how) => return report_failure(run_id, &error, &how, printer),
            Self::Seen(observation) => observation,
        };
        report(run_id, &observation, printer)?;
        let verdict = Verdict::of_status(&observation.status);
        Ok(match verdict {
            Some(verdict) => verdict.exit_code(),
            None if observation.status.state() == RunState::Waiting => WAITING,
            None => STILL_GOING,
        })
    }
}

fn report(
    run_id: &RunRef,
    observation: &Observation,
    printer: &mut Printer<'_>,
) -> anyhow::Result<()> {
    let (style, details, now) = (printer.style, &observation.details, Timestamp::now());
    let status = observation.status.as_str();
    let verdict = Verdict::of_status(&observation.status);
    if printer.json {
        return printer.json(&json!({
            "provider": run_id.provider(), "run_id": run_id.id(), "status": status,
            "state": observation.status.state(), "verdict": verdict.map(Verdict::as_str),
            "error": details.error_message, "created_at": details.created_at,
            "started_at": details.started_at, "completed_at": details.completed_at,
        }));
    }
    if printer.quiet {
        return Ok(());
    }
    let timing = Timing::of(details, now);
    let ran = timing.ran_ms.filter(|_| verdict.is_some());
    let time = match (ran, details.started_at.or(details.created_at)) {
        (Some(ran), _) => format!(" after {}", took(Duration::from_millis(ran))),
        (None, Some(since)) if verdict.is_none() => {
            let since = Duration::try_from(now.duration_since(since));
            format!(" for {}", elapsed(since.unwrap_or_default()))
        }
        _ => String::new(),
    };
    let why = details.error_message.as_deref();
    let why = why.map(|why| format!(": {}", one_line(why, TEXT_CHARS)));
    let word = verdict.map_or(status, |verdict| verdict.as_str());
    printer.line(&format!(
        "{} {run_id} {}{time}{}",
        style.glyph(Look::of(word)),
        style.state(word),
        why.unwrap_or_default()
    ))
}

/// Prints why there is no usable answer and returns the exit code for that.
fn report_failure(
    run_id: &RunRef,
    error: &ApiError,
    how: &str,
    printer: &mut Printer<'_>,
) -> anyhow::Result<u8> {
    let text = error_chain(error);
    if error.is_unauthorized() {
        let failure = CommandFailure::unauthorized(text);
        let failure = failure.fix(format!("set {how}, to a key that is valid"));
        return printer.failed(failure.about("run_id", run_id));
    }
    let verdict = if error.is_not_found() {
        Verdict::NotFound
    } else {
        Verdict::Unreachable
    };
    if printer.json {
        printer.json(&json!({
            "provider": run_id.provider(), "run_id": run_id.id(), "status": null, "state": null, "verdict": verdict.as_str(), "error": text,
            "created_at": null, "started_at": null, "completed_at": null,
        }))?;
    } else if !printer.quiet {
        let (style, word) = (printer.style, verdict.as_str());
        let glyph = style.glyph(Look::of(word));
        printer.line(&format!(
            "{glyph} {run_id} {}: {}",
            style.state(word),
            cause(&text)
        ))?;
    }
    Ok(verdict.exit_code())
}
