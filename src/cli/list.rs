//! `runwatch list`.

use jiff::Timestamp;

use super::args::ListArgs;
use super::client::Printer;
use super::phrases::{TEXT_CHARS, ago, next_poll, standing};
use super::table::Table;
use super::write_text;
use crate::control::Client;
use crate::text::one_line;

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
