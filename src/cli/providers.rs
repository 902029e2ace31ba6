//! `runwatch providers`: which services with a run API can be watched, and how their answers are read.

use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::json;

use super::args::ProvidersCommand;
use super::client::Printer;
use super::failure::CommandFailure;
use super::phrases::TEXT_CHARS;
use super::run_names::RunNames;
use super::table::{Column, TextTable};
use super::write_text;
use crate::blocking;
use crate::config::{ProviderSettings, Settings};
use crate::domain::{Observation, ProviderName, RunRef, Verdict};
use crate::profile;
use crate::providers::{ApiClient, Explanation, explain};
use crate::style::{Look, Sign};
use crate::text::{error_chain, one_line};

/// Largest file with an answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// The exit code where an answer cannot be used.
const UNUSABLE: u8 = 1;

/// Name, how a run is named, credentials, address, and what the profile was checked against.
const COLUMNS: [Column; 5] = [
    Column::whole("PROVIDER", 0),
    Column::text("A RUN", 1, 22),
    Column::whole("KEY", 2),
    Column::text("ADDRESS", 3, 22),
    Column::whole("CHECKED AGAINST", 4),
];

/// Lists the providers, prints a profile, or tries one.
///
/// # Errors
/// When there is no such provider or run, a file cannot be read, or the result cannot be written.
pub async fn providers(
    command: Option<&ProvidersCommand>,
    names: &RunNames,
    settings: &Settings,
    printer: Printer<'_>,
) -> anyhow::Result<u8> {
    match command {
        None => list(settings, printer),
        Some(ProvidersCommand::Show { name }) => show(name, settings, printer),
        Some(ProvidersCommand::Test { run, file, code }) => {
            let run = names.one(run)?;
            let account = settings.providers.get(&run.provider_name());
            let account = account.map_err(|why| anyhow::anyhow!(why))?;
            test(
                &run,
                &account,
                file.as_deref().map(|file| (file, *code)),
                printer,
            )
            .await
        }
    }
}

fn list(settings: &Settings, mut printer: Printer<'_>) -> anyhow::Result<u8> {
    let mut accounts: Vec<(String, Result<ProviderSettings, String>)> = settings
        .providers
        .configured()
        .map(|account| (account.name.to_string(), Ok(account.clone())))
        .collect();
    for name in profile::builtin_names() {
        if !accounts.iter().any(|(known, _)| known == name) {
            let account = ProviderName::new(name)
                .map_err(|error| error.to_string())
                .and_then(|name| settings.providers.get(&name));
            accounts.push(((*name).to_owned(), account));
        }
    }
    accounts.sort_by(|one, other| one.0.cmp(&other.0));
    let mut table = TextTable::new(printer.style, COLUMNS);
    for (name, account) in &accounts {
        let built_in = || profile::builtin(name).and_then(Result::ok);
        let (profile, base_url, key) = match account {
            Ok(account) => {
                let auth = &account.profile.auth;
                let key = match (account.api.key.is_some(), account.has_credentials()) {
                    (true, _) => "yes",
                    (false, true) if auth.scheme == profile::Scheme::None => "not needed",
                    (false, true) => "optional",
                    (false, false) => "missing",
                };
                (
                    Some(account.profile.clone()),
                    account.api.base_url.clone(),
                    key,
                )
            }
            Err(_) => (built_in(), String::new(), "missing"),
        };
        let Some(profile) = profile else { continue };
        let id = format!("{name}:{}", profile.id);
        if printer.json {
            printer.json(&json!({
                "provider": name, "title": profile.title, "profile": profile.name, "aliases": profile.aliases,
                "run": id, "base_url": (!base_url.is_empty()).then_some(&base_url), "key": key,
                "key_from": profile.auth.env, "checked": profile.checked,
            }))?;
            continue;
        }
        let address = if base_url.is_empty() {
            format!("set providers.{name}.base_url")
        } else {
            base_url
        };
        let key = match key {
            "missing" => printer.style.warning(key),
            key => key.to_owned(),
        };
        table.row([name.clone(), id, key, address, profile.checked.clone()]);
    }
    if !printer.json {
        write_text(printer.out, &table.into_text(printer.width))?;
        printer.remark(
            "`runwatch providers show NAME` prints a profile; `runwatch wait PROVIDER:ID` watches a run",
        )?;
    }
    Ok(0)
}

fn show(name: &str, settings: &Settings, mut printer: Printer<'_>) -> anyhow::Result<u8> {
    let provider = ProviderName::new(name)?;
    let account = settings.providers.get(&provider);
    let of_account = account
        .as_ref()
        .ok()
        .map(|account| account.profile.name.clone());
    let source =
        profile::builtin_source(name).or_else(|| profile::builtin_source(of_account.as_deref()?));
    match (source, account) {
        (Some(source), _) => printer.line(source.trim_end())?,
        (None, Ok(_)) => printer.line("# This profile is in the file that profile_file names.")?,
        (None, Err(why)) => anyhow::bail!(why),
    }
    Ok(0)
}

async fn test(
    run: &RunRef,
    account: &ProviderSettings,
    file: Option<(&Path, u16)>,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let (code, body) = match file {
        Some((path, code)) => {
            let shown = path.display().to_string();
            let path = path.to_owned();
            let read = blocking::run("answer", move || {
                blocking::read_file(&path, MAX_ANSWER_BYTES)
            });
            let body = read
                .await?
                .with_context(|| format!("{shown} cannot be read"))?;
            (code, body)
        }
        None => {
            let client = ApiClient::of_account(account).context("cannot build the API client")?;
            match client.raw_answer(run).await {
                Ok(answer) => answer,
                Err(error) => {
                    let what = error_chain(&error);
                    let failure = if error.is_unauthorized() {
                        let how = account.how_to_give_a_key();
                        CommandFailure::unauthorized(what).fix(format!("set {how}"))
                    } else {
                        CommandFailure::failed(what, Verdict::Unreachable.exit_code())
                    };
                    return printer.failed(failure.about("run_id", run));
                }
            }
        }
    };
    let explanation = explain(&account.profile, run.id(), code, &body);
    if printer.json {
        printer.json(&as_json(run, code, &explanation, account))?;
    } else {
        describe(run, code, &explanation, account, &mut printer)?;
    }
    Ok(match explanation.observation {
        Ok(_) => 0,
        Err(_) => UNUSABLE,
    })
}

fn as_json(
    run: &RunRef,
    code: u16,
    explanation: &Explanation,
    account: &ProviderSettings,
) -> serde_json::Value {
    let rules = account.profile.rules.iter().zip(&explanation.rules);
    let rules: Vec<_> = rules
        .map(|(rule, holds)| json!({ "line": rule.line, "rule": rule.to_string(), "holds": holds }))
        .collect();
    let observation = explanation.observation.as_ref();
    let seen = observation.ok().and_then(Option::as_ref);
    json!({
        "provider": run.provider(), "run_id": run.id(), "http": code, "rules": rules,
        "state": seen.map(|seen| seen.status.state()), "status": seen.map(|seen| seen.status.as_str()),
        "details": seen.map(|seen| &seen.details), "error": observation.err(),
    })
}

fn describe(
    run: &RunRef,
    code: u16,
    explanation: &Explanation,
    account: &ProviderSettings,
    printer: &mut Printer<'_>,
) -> anyhow::Result<()> {
    let style = printer.style;
    printer.line(&format!(
        "{run}: answer with the status code {code}, read by the profile {}",
        account.profile.name
    ))?;
    describe_rules(explanation, account, printer)?;
    let seen = match &explanation.observation {
        Ok(Some(seen)) => seen,
        Ok(None) => return printer.line("state: the answer says that there is no such run"),
        Err(why) => {
            return printer.line(&format!(
                "{} the answer cannot be used: {why}",
                style.mark(Sign::Bad)
            ));
        }
    };
    describe_observation(run, seen, account, printer)
}

/// Prints each rule, and whether it holds.
fn describe_rules(
    explanation: &Explanation,
    account: &ProviderSettings,
    printer: &mut Printer<'_>,
) -> anyhow::Result<()> {
    let style = printer.style;
    let decides = explanation
        .rules
        .iter()
        .position(|holds| *holds == Some(true));
    for (index, (rule, holds)) in account
        .profile
        .rules
        .iter()
        .zip(&explanation.rules)
        .enumerate()
    {
        let (mark, note) = match holds {
            Some(true) if decides == Some(index) => (style.mark(Sign::Good), "holds, and decides"),
            Some(true) => (style.mark(Sign::Good), "holds; an earlier one decides"),
            Some(false) => (style.dim("-"), "does not hold"),
            None => (
                style.mark(Sign::Warning),
                "cannot be decided: what it looks at is missing",
            ),
        };
        printer.line(&format!("  {mark} {rule}: {note}"))?;
    }
    Ok(())
}

/// Prints the state of a run, and all details that an answer has.
fn describe_observation(
    run: &RunRef,
    seen: &Observation,
    account: &ProviderSettings,
    printer: &mut Printer<'_>,
) -> anyhow::Result<()> {
    let style = printer.style;
    let state = seen.status.state().as_str();
    let details = &seen.details;
    let ends = match Verdict::of_status(&seen.status) {
        Some(_) => "an end",
        None => "not an end: polled again",
    };
    printer.line(&format!(
        "{} state: {}, {ends}",
        style.glyph(Look::of(state)),
        style.state(state)
    ))?;
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let json = |value: &Option<crate::domain::JsonText>| {
        value.as_ref().map(|value| value.get().to_owned())
    };
    let page = account.profile.read_id(run.id()).ok().and_then(|parts| {
        account
            .profile
            .page(&parts, &account.api.base_url, account.web.as_deref())
    });
    let rows = [
        ("status", Some(seen.status.as_str().to_owned())),
        ("reason", details.reason.clone()),
        ("name", details.name.clone()),
        ("group", details.group.clone()),
        (
            "attempt",
            details.attempt.map(|attempt| attempt.to_string()),
        ),
        ("created", time(details.created_at)),
        ("started", time(details.started_at)),
        ("finished", time(details.completed_at)),
        ("error", details.error_message.clone()),
        ("output", json(&details.output)),
        ("page", details.url.clone().or(page)),
    ];
    for (label, value) in rows {
        if let Some(value) = value {
            printer.line(&format!("  {label}: {}", one_line(&value, TEXT_CHARS)))?;
        }
    }
    Ok(())
}
