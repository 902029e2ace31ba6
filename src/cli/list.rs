//! `runwatch list`.

use std::time::Duration;

use jiff::Timestamp;

use super::args::ListArgs;
use super::client::Printer;
use super::expectation::left_text;
use super::phrases::{TEXT_CHARS, cause, count_line, next_poll, notice_text, standing};
use super::table::{Column, TextTable};
use super::write_text;
use crate::config::Problems;
use crate::control::{Client, NOT_IN_FORCE, PollingList, PollingResponse, WatchResponse};
use crate::style::{Look, Style, ago, elapsed, width};
use crate::text::one_line;

/// Glyph, name, run, state, time, time left, next poll, polls, last error and origin.
const COLUMNS: [Column; 10] = [
    Column::whole("", 1),
    Column::text("NAME", 3, 12),
    Column::run(0),
    Column::text("STATE", 2, 8),
    Column::number("FOR", 4),
    Column::whole("LEFT", 6),
    Column::whole("NEXT POLL", 5),
    Column::number("POLLS", 7),
    Column::text("LAST ERROR", 6, 16),
    Column::text("FROM", 8, 12),
];

/// `runwatch list`: the newest first for people. What is wrong with the configuration (`problems`) is reported here,
/// unless the daemon reports it. With `json` the answer of `GET /v1/watches`, all pages in one and the oldest first;
/// with `--limit` the newest of them.
///
/// # Errors
/// When the result cannot be written.
pub async fn list(
    client: &Client,
    args: &ListArgs,
    problems: Option<&Problems>,
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
    let list = client.watches(&query).await;
    let is_reported = list.as_ref().is_ok_and(|list| {
        let mut notices = list.notices.iter();
        !printer.json && notices.any(|notice| notice.starts_with(NOT_IN_FORCE))
    });
    if !is_reported {
        printer.warn_of_problems(problems)?;
    }
    let mut list = match list {
        Ok(list) => list,
        Err(error) => return printer.failed(&error),
    };
    let hidden = args
        .limit
        .map_or(0, |limit| list.watches.len().saturating_sub(limit));
    if printer.json {
        list.watches.drain(..hidden);
        printer.json(&list)?;
        return Ok(0);
    }
    for notice in &list.notices {
        printer.warning(&notice_text(notice))?;
    }
    list.watches.reverse();
    let states: Vec<_> = list.watches.iter().map(standing).collect();
    let shown = list.watches.len() - hidden;
    if states.is_empty() {
        let filtered = args.verdict.is_some() || !args.labels.is_empty();
        printer.remark(match (filtered, args.all) {
            (true, _) => "no watch matches",
            (false, true) => "there are no watches; `runwatch add RUN_ID` adds one",
            (false, false) => {
                "nothing is watched at the moment; `runwatch add RUN_ID` adds a run, `runwatch list --all` lists \
                 finished watches too"
            }
        })?;
        return Ok(0);
    }
    // An older daemon does not have it.
    let polling = client.polling().await.ok();
    let now = Timestamp::now();
    let table = table(&list.watches[..shown], polling.as_ref(), now, printer.style);
    write_text(printer.out, &table.into_text(printer.width))?;
    let states = states.iter().map(String::as_str);
    let line = count_line(("watch", "watches"), states, shown);
    let line = with_requests(line, client, polling.as_ref(), &printer).await;
    printer.remark(&line)?;
    Ok(0)
}

/// The line with how much of the budget is used, or which daemon polls the runs, if there is room for that.
async fn with_requests(
    mut line: String,
    client: &Client,
    polling: Option<&PollingList>,
    printer: &Printer<'_>,
) -> String {
    let addition = match polling.and_then(PollingList::shown) {
        Some(polling) => Some(requests(polling)),
        None => leader(client).await,
    };
    if let Some(addition) = addition {
        let requests = format!("{}{addition}", printer.style.separator());
        let columns = printer.width.map_or(usize::MAX, usize::from);
        if width(&line) + width(&requests) < columns {
            line += &requests;
        }
    }
    line
}

/// Which other daemon polls the runs; `None` where that of the client does.
async fn leader(client: &Client) -> Option<String> {
    let lease = client.lease().await.ok().filter(|lease| !lease.leads)?;
    Some(format!("watched by {}", lease.leader?.name))
}

/// How much of the budget is used.
fn requests(polling: &PollingResponse) -> String {
    let (used, limit) = (polling.requests_last_minute, polling.requests_per_minute);
    format!("{used} of {limit} req/min")
}

fn table(
    watches: &[WatchResponse],
    polling: Option<&PollingList>,
    now: Timestamp,
    style: Style,
) -> TextTable {
    let mut table = TextTable::new(style, COLUMNS);
    // Where all were requested, as they mostly are, there is nothing to show.
    let shows_origin = watches
        .iter()
        .any(|watch| from(watch).is_some_and(|from| from != REQUEST));
    for watch in watches {
        let state = standing(watch);
        let since = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        let time = match watch.finished_at {
            Some(at) => ago(at, now).trim_end_matches(" ago").to_owned(),
            None => elapsed(since(watch.added_at)),
        };
        let error = watch
            .last_error
            .as_ref()
            .filter(|_| watch.verdict.is_none())
            .map(|error| format!("{} ({})", cause(&error.message), ago(error.at, now)));
        let left = watch.expected().filter(|_| watch.is_running());
        let left = left
            .map(|expected| {
                left_text(&expected, now)
                    .trim_end_matches(" left")
                    .to_owned()
            })
            .unwrap_or_default();
        let next = match watch.verdict {
            Some(_) => style.dim(style.nothing()),
            None => next_poll(watch, polling, now),
        };
        table.row([
            style.glyph(Look::of(&state)),
            watch
                .name
                .as_deref()
                .map(|name| one_line(name, TEXT_CHARS))
                .unwrap_or_default(),
            watch.run().to_string(),
            style.state(&state),
            time,
            left,
            next,
            watch.polls.to_string(),
            style.warning(&error.unwrap_or_default()),
            style.dim(&from(watch).filter(|_| shows_origin).unwrap_or_default()),
        ]);
    }
    table
}

/// The word for a watch that a request added.
const REQUEST: &str = "request";

/// Where a watch comes from, in few words.
fn from(watch: &WatchResponse) -> Option<String> {
    match (&watch.discovery, watch.origin.as_deref()) {
        (Some(discovery), _) => Some(one_line(discovery, TEXT_CHARS)),
        (None, Some("configuration")) => Some("config".to_owned()),
        (None, origin) => origin.map(ToOwned::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples;

    #[test]
    fn a_list_fits_every_terminal() {
        let shown = |width| {
            let table = table(&samples::watches(), None, samples::now(), Style::PLAIN);
            table.into_text(width)
        };
        insta::assert_snapshot!(shown(Some(40)));
        insta::assert_snapshot!(shown(Some(80)));
        insta::assert_snapshot!(shown(Some(120)));
        insta::assert_snapshot!(shown(Some(200)));
        assert_eq!(shown(None), shown(Some(200)));
    }

    #[test]
    fn where_watches_come_from_is_shown_unless_all_were_requested() {
        let shown = |change: fn(usize, &mut WatchResponse), width| {
            let mut watches = samples::watches();
            watches
                .iter_mut()
                .enumerate()
                .for_each(|(index, watch)| change(index, watch));
            table(&watches, None, samples::now(), Style::PLAIN).into_text(Some(width))
        };
        let requested = |_, watch: &mut WatchResponse| watch.origin = Some("request".to_owned());
        let discovered = |index, watch: &mut WatchResponse| {
            watch.origin = Some(if index == 0 { "discovery" } else { "request" }.to_owned());
            watch.discovery = (index == 0).then(|| "github branch=main".to_owned());
        };
        assert!(!shown(requested, 200).contains("FROM"));
        let text = shown(discovered, 200);
        assert!(
            text.contains("FROM") && text.contains("github branch=main"),
            "{text}"
        );
        assert!(
            !shown(discovered, 100).contains("FROM"),
            "it is left out first"
        );
    }
}
