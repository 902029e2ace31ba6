//! The commands that talk to the daemon.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::wait::read_run_ids;
use super::{Signals, USAGE, write_text};
use crate::cli::args::{
    AddArgs, Deliveries, DeliveriesArgs, DeliveriesCommand, ListArgs, RunArg, WatchArgs,
};
use crate::cli::table::Table;
use crate::config::{self, Sources, format_duration};
use crate::control::{
    AddRequest, AttemptResponse, Client, ClientError, DeliveryResponse, WatchResponse,
};
use crate::domain::{EventType, RunId, Verdict};
use crate::logging::Screen;
use crate::store::Fate;
use crate::text::{escape_json_for_terminal, humanize, one_line};

/// Exit code when the daemon does not do what was asked, though it was asked rightly.
const REFUSED: u8 = 1;

/// The socket of systemd/runwatch.service, which only root may use.
const SERVICE_SOCKET: &str = "/run/runwatch/runwatch.sock";

/// Requests under way at once when many runs are handed over: they share syncs to the disk.
const AT_ONCE: usize = 64;

/// Longest free text in a list, in characters.
const TEXT_CHARS: usize = 200;

/// How a command talks to whoever called it.
pub struct Printer<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Everything else.
    pub err: &'a mut dyn Write,
    /// Results as JSON.
    pub json: bool,
    /// Width of the terminal that results go to, if they go to one.
    pub width: Option<u16>,
}

impl Printer<'_> {
    fn line(&mut self, text: &str) -> anyhow::Result<()> {
        write_text(self.out, &format!("{text}\n"))
    }

    fn json(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.line(&escape_json_for_terminal(&serde_json::to_string(value)?))
    }

    /// Says why something was not done and returns the exit code for that.
    fn failed(&mut self, error: &ClientError) -> anyhow::Result<u8> {
        write_text(self.err, &format!("error: {error}\n"))?;
        Ok(failure_code(error))
    }
}

/// The exit code for what the daemon did not do: 1 when it was asked rightly, 2 otherwise.
pub(super) fn failure_code(error: &ClientError) -> u8 {
    match error {
        ClientError::Refused(problem) if problem.status != 400 => REFUSED,
        _ => USAGE,
    }
}

/// A client of the daemon, wherever its socket is by the configuration. Problems elsewhere in it are
/// told, but stop nobody: the daemon may be running all the same.
///
/// # Errors
/// When there is no place for a socket.
pub fn client(sources: &Sources, screen: &Screen) -> anyhow::Result<Client> {
    if let Err(problems) = config::load(sources) {
        for problem in &problems.0 {
            screen.line(&format!("warning: {problem}"));
        }
    }
    let socket = socket(sources).context("no place for the socket; set control.socket")?;
    Ok(Client::new(&socket)?)
}

/// Root, who seldom has a session with a daemon in it, means the machine's service unless something else
/// is configured or there.
fn socket(sources: &Sources) -> Option<PathBuf> {
    let own = config::control_socket(sources);
    let absent = own == sources.socket_path() && !own.as_deref().is_some_and(Path::exists);
    let service = Path::new(SERVICE_SOCKET);
    let root = rustix::process::geteuid().is_root();
    if absent && root && (own.is_none() || service.exists()) {
        Some(service.to_owned())
    } else {
        own
    }
}

/// What is requested for a run.
pub(super) fn request(args: &WatchArgs, run_id: &RunId, again: bool) -> AddRequest {
    let sinks: Vec<_> = args
        .sinks
        .iter()
        .map(|name| name.as_str().to_owned())
        .collect();
    AddRequest {
        run_id: run_id.as_str().to_owned(),
        name: args.name.clone(),
        labels: args.labels.iter().cloned().collect(),
        sinks: (!sinks.is_empty()).then_some(sinks),
        timeout: args.timeout.map(format_duration),
        again,
    }
}

/// Hands runs to the daemon. The answers come in the same order: each run is either watched now, with
/// whether that is new, or refused.
pub(super) async fn add_all(
    client: &Client,
    args: &WatchArgs,
    again: bool,
    run_ids: &[RunId],
) -> Vec<Result<(WatchResponse, bool), ClientError>> {
    let add = |run_id: &RunId| {
        let asked = request(args, run_id, again);
        async move { client.add(&asked).await }
    };
    stream::iter(run_ids)
        .map(add)
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// Says of a run that was watched already which of the options do not apply, and what to do; `None` when all do.
pub(super) fn not_applied(watch: &WatchResponse, without: &str) -> Option<String> {
    let flag = |option: &String| match option.as_str() {
        "labels" => "--label".to_owned(),
        "sinks" => "--sink".to_owned(),
        other => format!("--{other}"),
    };
    let flags: Vec<_> = watch
        .not_applied
        .iter()
        .map(flag)
        .filter(|flag| flag != without)
        .collect();
    let fix = if watch.verdict.is_some() {
        "watch it anew with --again"
    } else {
        "to change them, remove the watch and add the run again"
    };
    let what = format!(
        "{} is watched already, and {} not applied; {fix}",
        watch.run_id,
        flags.join(", ")
    );
    match flags.len() {
        0 => None,
        1 => Some(what.replacen(" not applied", " is not applied", 1)),
        _ => Some(what.replacen(" not applied", " are not applied", 1)),
    }
}

/// What became of a run that was watched already: it is finished, or goes on.
pub(super) fn standing_of_known(watch: &WatchResponse, now: Timestamp) -> String {
    match (&watch.verdict, watch.finished_at) {
        (None, _) => format!("{}: already watched", watch.run_id),
        (Some(verdict), None) => format!("{}: already watched, and {verdict}", watch.run_id),
        (Some(verdict), Some(at)) => {
            format!(
                "{}: already watched, and {verdict} {}; --again watches it anew",
                watch.run_id,
                ago(at, now)
            )
        }
    }
}

/// `runwatch add`. With `json` one line per run, `{"run_id","added","watch"}`, `added` being `new` or
/// `known`.
///
/// # Errors
/// When the arguments or the result cannot be used.
pub async fn add(client: &Client, args: &AddArgs, mut printer: Printer<'_>) -> anyhow::Result<u8> {
    let run_ids = read_run_ids(&args.runs).await?;
    let mut code = 0;
    for (run_id, added) in run_ids
        .iter()
        .zip(add_all(client, &args.watch, args.again, &run_ids).await)
    {
        let dropped = added
            .as_ref()
            .ok()
            .and_then(|(watch, _)| not_applied(watch, ""));
        match added {
            Ok((watch, new)) if printer.json => {
                let added = if new { "new" } else { "known" };
                printer.json(
                    &serde_json::json!({ "run_id": watch.run_id, "added": added, "watch": watch }),
                )?;
            }
            Ok((watch, true)) => printer.line(&format!("{}: watching", watch.run_id))?,
            Ok((watch, false)) => printer.line(&standing_of_known(&watch, Timestamp::now()))?,
            Err(error) => {
                if matches!(
                    error,
                    ClientError::NotRunning(_) | ClientError::Forbidden(_)
                ) {
                    return printer.failed(&error);
                }
                write_text(
                    printer.err,
                    &format!("error: {run_id} is not watched: {error}\n"),
                )?;
                code = code.max(failure_code(&error));
            }
        }
        if let Some(dropped) = dropped {
            write_text(printer.err, &format!("error: {dropped}\n"))?;
            code = code.max(USAGE);
        }
    }
    Ok(code)
}

/// `runwatch list`. With `json` the answer of `GET /v1/watches`, all pages in one.
///
/// # Errors
/// When the result cannot be written.
pub async fn list(
    client: &Client,
    args: &ListArgs,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let labels: Vec<_> = args
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let mut query: Vec<(&str, &str)> = labels
        .iter()
        .map(|label| ("label", label.as_str()))
        .collect();
    match args.verdict {
        Some(verdict) => query.push(("verdict", verdict.as_str())),
        None if args.all => {}
        None => query.push(("state", "active")),
    }
    let list = match client.watches(&query).await {
        Ok(list) => list,
        Err(error) => return printer.failed(&error),
    };
    if printer.json {
        printer.json(&list)?;
        return Ok(0);
    }
    for notice in &list.notices {
        write_text(printer.err, &format!("warning: {notice}\n"))?;
    }
    if list.watches.is_empty() {
        write_text(printer.err, "no such watches\n")?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let mut table = Table::new([
        "RUN",
        "NAME",
        "STATUS",
        "SINCE",
        "POLLS",
        "NEXT POLL",
        "LAST ERROR",
    ]);
    for watch in &list.watches {
        let since = watch.finished_at.unwrap_or(watch.added_at);
        let error = watch
            .last_error
            .as_ref()
            .filter(|_| watch.verdict.is_none());
        table.row([
            watch.run_id.to_string(),
            watch
                .name
                .as_deref()
                .map(|name| one_line(name, TEXT_CHARS))
                .unwrap_or_default(),
            standing(watch),
            ago(since, now),
            watch.polls.to_string(),
            next_poll(watch, now),
            error
                .map(|error| format!("{} ({})", error.message, ago(error.at, now)))
                .unwrap_or_default(),
        ]);
    }
    write_text(printer.out, &table.into_text(printer.width))?;
    Ok(0)
}

/// `runwatch show`. With `json` the answer of `GET /v1/watches/{run_id}`.
///
/// # Errors
/// When the result cannot be written.
pub async fn show(client: &Client, run_id: &RunId, mut printer: Printer<'_>) -> anyhow::Result<u8> {
    match client.watch(run_id, Duration::ZERO).await {
        Ok(watch) if printer.json => printer.json(&watch)?,
        Ok(watch) => {
            let text = describe(&watch, Timestamp::now(), &TimeZone::system(), printer.width);
            write_text(printer.out, &text)?;
        }
        Err(error) => return printer.failed(&error),
    }
    Ok(0)
}

/// `runwatch healthcheck`. With `json` the answer of `GET /healthz`, or with `ready` of `GET /readyz`.
///
/// # Errors
/// When the result cannot be written.
pub async fn healthcheck(
    client: &Client,
    ready: bool,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    match if ready {
        client.readiness().await
    } else {
        client.health().await
    } {
        Ok(health) if printer.json => printer.json(&health)?,
        Ok(health) => printer.line(
            health
                .get("status")
                .and_then(|status| status.as_str())
                .unwrap_or("ok"),
        )?,
        // One that is there and does not answer in time makes no progress.
        Err(error @ ClientError::Broken { .. }) => {
            return printer.failed(&error).map(|_code| REFUSED);
        }
        Err(error) => return printer.failed(&error),
    }
    Ok(0)
}

/// `runwatch remove`. With `json` one line per run, `{"run_id","removed"}`.
///
/// # Errors
/// When the result cannot be written.
pub async fn remove(
    client: &Client,
    runs: &[RunArg],
    force: bool,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let mut code = 0;
    for run_id in &read_run_ids(runs).await? {
        let removed = client.remove(run_id, force).await;
        if printer.json {
            printer.json(&serde_json::json!({ "run_id": run_id, "removed": removed.is_ok() }))?;
        } else if removed.is_ok() {
            printer.line(&format!("{run_id}: no longer watched"))?;
        }
        if let Err(error) = removed {
            code = code.max(printer.failed(&error)?);
        }
    }
    Ok(code)
}

/// `runwatch events`: each event as a line, the JSON that sinks get with its `id`, until a signal or
/// until the reader of standard output is gone. A reader that is slow has the events wait in the daemon.
///
/// # Errors
/// When the result cannot be written.
pub async fn events(client: &Client, after: Option<u64>, screen: &Screen) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    // Both are cancel-safe: an event that has come is kept until it is whole.
    tokio::select! {
        code = print_events(client, after, screen) => code,
        code = signals.next() => Ok(code),
    }
}

async fn print_events(client: &Client, after: Option<u64>, screen: &Screen) -> anyhow::Result<u8> {
    let failed = |error: &ClientError| {
        screen.line(&format!("error: {error}"));
        Ok(failure_code(error))
    };
    let mut events = match client
        .events(after.map(|after| after.to_string()).as_deref())
        .await
    {
        Ok(events) => events,
        Err(error) => return failed(&error),
    };
    loop {
        match events.next().await {
            Ok(Some((id, json))) => {
                let json = escape_json_for_terminal(&json);
                let fields = json
                    .strip_prefix('{')
                    .context("an event is no JSON object")?;
                screen.out.print(format!("{{\"id\":{id},{fields}\n"));
                screen.out.flush().await;
                match screen.out.result_failed() {
                    Some(ErrorKind::BrokenPipe) => return Ok(0),
                    Some(error) => {
                        return Err(std::io::Error::from(error)).context("cannot write the result");
                    }
                    None => {}
                }
            }
            Ok(None) => {
                screen.line("error: the daemon has stopped");
                return Ok(REFUSED);
            }
            Err(error) => return failed(&error),
        }
    }
}

/// `runwatch deliveries`, `deliveries retry` and `deliveries drop`. With `json` `{"deliveries":[…]}`, or a line for each
/// that is tried again or given up, `{"id","due"}` or `{"id","dropped"}`; for all of a sink `{"sink","deliveries"}`.
///
/// # Errors
/// When the result cannot be written.
pub async fn deliveries(
    client: &Client,
    args: &DeliveriesArgs,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    match &args.command {
        Some(DeliveriesCommand::Retry(which)) => {
            return decide(client, which, Fate::Retry, printer).await;
        }
        Some(DeliveriesCommand::Drop(which)) => {
            return decide(client, which, Fate::Drop, printer).await;
        }
        None => {}
    }
    let mut query = Vec::new();
    query.extend(args.sink.as_ref().map(|sink| ("sink", sink.as_str())));
    if args.failed {
        query.extend([
            ("state", "pending"),
            ("state", "sending"),
            ("state", "dead"),
        ]);
    }
    let mut deliveries = match client.deliveries(&query).await {
        Ok(deliveries) => deliveries,
        Err(error) => return printer.failed(&error),
    };
    deliveries.retain(|delivery| !args.failed || delivery.last_result.is_some());
    if printer.json {
        printer.json(&serde_json::json!({ "deliveries": deliveries }))?;
        return Ok(0);
    }
    if deliveries.is_empty() {
        write_text(printer.err, "no such deliveries\n")?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let mut table = Table::new([
        "ID",
        "EVENT",
        "RUN",
        "SINK",
        "STATE",
        "ATTEMPTS",
        "MADE",
        "LAST RESULT",
    ]);
    for delivery in &deliveries {
        table.row([
            delivery.id.to_string(),
            delivery.event.to_string(),
            delivery
                .run_id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            delivery.sink.to_string(),
            delivery_state(delivery, now),
            delivery.attempts.to_string(),
            ago(delivery.created_at, now),
            delivery
                .last_result
                .as_deref()
                .map(|result| one_line(result, TEXT_CHARS))
                .unwrap_or_default(),
        ]);
    }
    write_text(printer.out, &table.into_text(printer.width))?;
    Ok(0)
}

/// Has deliveries tried again or given up.
async fn decide(
    client: &Client,
    which: &Deliveries,
    fate: Fate,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let (key, done) = match fate {
        Fate::Retry => ("due", "being tried again"),
        Fate::Drop => ("dropped", "given up"),
    };
    if let Some(sink) = &which.sink {
        match client.decide_all(sink, fate).await {
            Ok(deliveries) if printer.json => {
                printer.json(&serde_json::json!({ "sink": sink, "deliveries": deliveries }))?
            }
            Ok(1) => printer.line(&format!("1 message to {sink} is {done}"))?,
            Ok(deliveries) => {
                printer.line(&format!("{deliveries} messages to {sink} are {done}"))?
            }
            Err(error) => return printer.failed(&error),
        }
        return Ok(0);
    }
    let mut code = 0;
    for id in &which.ids {
        let decided = client.decide(id, fate).await;
        if printer.json {
            printer.json(&serde_json::json!({ "id": id, key: decided.is_ok() }))?;
        } else if decided.is_ok() {
            printer.line(&format!("{id}: {done}"))?;
        }
        if let Err(error) = decided {
            code = code.max(printer.failed(&error)?);
        }
    }
    Ok(code)
}

/// The verdict, or else the status, of a watch.
fn standing(watch: &WatchResponse) -> String {
    match (&watch.verdict, &watch.status) {
        (Some(verdict), _) => verdict.clone(),
        (None, _) if watch.missing_since.is_some() => "not there yet".to_owned(),
        (None, Some(status)) => one_line(status, TEXT_CHARS),
        (None, None) => "not asked yet".to_owned(),
    }
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    if at > now {
        "now".to_owned()
    } else {
        format!("{} ago", humanize(now.duration_since(at).unsigned_abs()))
    }
}

fn ahead(at: Timestamp, now: Timestamp) -> String {
    if at <= now {
        "now".to_owned()
    } else {
        format!("in {}", humanize(at.duration_since(now).unsigned_abs()))
    }
}

fn next_poll(watch: &WatchResponse, now: Timestamp) -> String {
    match watch.next_poll_at {
        _ if watch.polling => "asking".to_owned(),
        Some(at) => ahead(at, now),
        None => String::new(),
    }
}

fn delivery_state(delivery: &DeliveryResponse, now: Timestamp) -> String {
    match (delivery.state.as_str(), delivery.next_attempt_at) {
        ("pending", Some(at)) => format!("pending, {}", ahead(at, now)),
        ("dead", _) => "given up".to_owned(),
        (state, _) => state.to_owned(),
    }
}

/// Everything about one watch, for people.
fn describe(watch: &WatchResponse, now: Timestamp, zone: &TimeZone, width: Option<u16>) -> String {
    let mut text = match &watch.name {
        Some(name) => format!("{} ({})\n", watch.run_id, one_line(name, TEXT_CHARS)),
        None => format!("{}\n", watch.run_id),
    };
    let mut line = |name: &str, value: String| {
        writeln!(text, "  {name:<10} {value}").expect("a String takes all text");
    };
    let ended = watch
        .finished_at
        .map(|at| format!(", seen {}", ago(at, now)))
        .unwrap_or_default();
    line("status", format!("{}{ended}", standing(watch)));
    if let Some(found_by) = &watch.found_by {
        line(
            "found by",
            if found_by == "stream" {
                "its event stream"
            } else {
                found_by
            }
            .to_owned(),
        );
    }
    line("added", ago(watch.added_at, now));
    if watch.verdict.is_none() {
        line("deadline", ahead(watch.deadline_at, now));
        line("next poll", next_poll(watch, now));
    }
    line("polls", watch.polls.to_string());
    if let Some(since) = watch.missing_since {
        line("not found", format!("since {}", ago(since, now)));
    }
    if let Some(error) = &watch.last_error {
        line(
            "last error",
            format!(
                "{} ({})",
                one_line(&error.message, TEXT_CHARS),
                ago(error.at, now)
            ),
        );
    }
    if !watch.labels.is_empty() {
        let labels: Vec<_> = watch
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        line("labels", one_line(&labels.join(" "), TEXT_CHARS));
    }
    if let Some(sinks) = &watch.sinks {
        line(
            "only to",
            sinks
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        );
    }
    let time = |at: Timestamp| {
        at.to_zoned_datetime(zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string()
    };
    let mut part = |title: &str, rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            let mut table = Table::plain();
            rows.into_iter().for_each(|row| table.row(row));
            write!(text, "\n{title}\n{}", table.into_text(width)).expect("a String takes all text");
        }
    };
    let history = watch.history.iter().flatten();
    part(
        "Status",
        history
            .map(|change| vec![time(change.at), one_line(&change.status, TEXT_CHARS)])
            .collect(),
    );
    let routing = watch.routing.iter().flatten().map(|sink| {
        vec![
            sink.sink.to_string(),
            gets(&sink.events),
            sink.why_not.clone().unwrap_or_default(),
        ]
    });
    part("Sinks, as configured now", routing.collect());
    let mut rows = Vec::new();
    for delivery in watch.deliveries.iter().flatten() {
        let to = format!("{} to {}", delivery.event, delivery.sink);
        rows.push(vec![
            time(delivery.created_at),
            to,
            delivery_state(delivery, now),
            delivery.id.to_string(),
        ]);
        rows.extend(
            delivery
                .attempt_log
                .iter()
                .flatten()
                .map(|attempt| attempt_row(attempt, time(attempt.at))),
        );
    }
    part("Messages", rows);
    text
}

/// Which events a sink gets, for people.
fn gets(events: &[EventType]) -> String {
    let (verdicts, others): (Vec<_>, Vec<_>) =
        events.iter().partition(|event| event.verdict().is_some());
    let mut words: Vec<_> = if verdicts.len() == Verdict::WORST_FIRST.len() {
        vec!["every verdict"]
    } else {
        verdicts
            .into_iter()
            .map(|event: &EventType| event.as_str())
            .collect()
    };
    words.extend(others.into_iter().map(|event: &EventType| event.as_str()));
    if words.is_empty() {
        "nothing".to_owned()
    } else {
        words.join(", ")
    }
}

fn attempt_row(attempt: &AttemptResponse, at: String) -> Vec<String> {
    let took = humanize(Duration::from_millis(attempt.took_ms));
    let outcome = if attempt.delivered {
        "arrived"
    } else {
        "failed"
    };
    let result = one_line(&attempt.result, TEXT_CHARS);
    vec![
        at,
        format!("  attempt {}", attempt.attempt),
        format!("{outcome} after {took}"),
        result,
    ]
}
