//! `runwatch discover`: the lists in which the daemon finds runs.

use jiff::Timestamp;

use super::client::Printer;
use super::phrases::{TEXT_CHARS, cause};
use super::table::{Column, TextTable};
use super::write_text;
use crate::control::{Client, DiscoveryResponse};
use crate::style::{Sign, Style, ago, ahead};
use crate::text::one_line;

/// Glyph, title, state, last and next round, what was found and watched, pages and the last error.
const COLUMNS: [Column; 9] = [
    Column::whole("", 1),
    Column::text("DISCOVERY", 0, 16),
    Column::whole("STATE", 2),
    Column::whole("LAST ROUND", 4),
    Column::whole("NEXT", 5),
    Column::number("FOUND", 6),
    Column::number("WATCHED", 3),
    Column::number("PAGES", 8),
    Column::text("LAST ERROR", 7, 16),
];

/// `runwatch discover`: a row for each discovery, in the order of the configuration. With `json` the answer of `GET
/// /v1/discoveries`.
///
/// # Errors
/// When the result cannot be written.
pub async fn discover(client: &Client, mut printer: Printer<'_>) -> anyhow::Result<u8> {
    let list = match client.discoveries().await {
        Ok(list) => list,
        Err(error) => return printer.failed(&error),
    };
    if printer.json {
        printer.json(&list)?;
        return Ok(0);
    }
    if list.discoveries.is_empty() {
        printer.remark(
            "nothing is discovered; add [[discover]] to the configuration (`runwatch man runwatch.toml`), and reload",
        )?;
        return Ok(0);
    }
    let table = table(&list.discoveries, Timestamp::now(), printer.style);
    write_text(printer.out, &table.into_text(printer.width))?;
    Ok(0)
}

fn table(discoveries: &[DiscoveryResponse], now: Timestamp, style: Style) -> TextTable {
    let mut table = TextTable::new(style, COLUMNS);
    for discovery in discoveries {
        let mark = match discovery.state.as_str() {
            "following" => style.mark(Sign::Good),
            "failing" => style.mark(Sign::Bad),
            "behind" => style.mark(Sign::Warning),
            _ => style.dim(style.nothing()),
        };
        let is_failing = discovery.state == "failing";
        let error = discovery.last_error.as_ref().map(|error| {
            let text = format!("{} ({})", cause(&error.message), ago(error.at, now));
            if is_failing {
                style.warning(&text)
            } else {
                style.dim(&text)
            }
        });
        let nothing = || style.dim(style.nothing());
        table.row([
            mark,
            one_line(&discovery.title, TEXT_CHARS),
            discovery.state.clone(),
            discovery
                .last_round_at
                .map_or_else(nothing, |at| ago(at, now)),
            discovery
                .next_round_at
                .map_or_else(nothing, |at| ahead(at, now)),
            discovery.found.to_string(),
            discovery.watched.to_string(),
            discovery.pages.to_string(),
            error.unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn discoveries_fit_every_terminal() {
        let now: Timestamp = "2026-11-28T09:00:00Z".parse().unwrap();
        let discoveries: Vec<DiscoveryResponse> = serde_json::from_value(json!([
            {"title": "github branch=main owner=acme repo=site", "provider": "github",
             "match": {"branch": "main", "owner": "acme", "repo": "site"}, "every": "1m", "state": "following",
             "began_at": "2026-11-27T09:00:00Z", "last_round_at": "2026-11-28T08:59:30Z",
             "next_round_at": "2026-11-28T09:00:30Z", "found": 120, "watched": 118, "pages": 2, "last_error": null},
            {"title": "nightly", "provider": "gitlab", "match": {"project": "acme/site"}, "every": "5m",
             "state": "failing", "began_at": "2026-11-27T09:00:00Z", "last_round_at": null,
             "next_round_at": "2026-11-28T09:15:00Z", "found": 0, "watched": 0, "pages": 0,
             "last_error": {"at": "2026-11-28T08:59:00Z", "message": "404 Not Found: Project Not Found"}},
        ]))
        .unwrap();
        let shown = |width| table(&discoveries, now, Style::PLAIN).into_text(width);
        insta::assert_snapshot!(shown(None));
        insta::assert_snapshot!(shown(Some(80)));
        for width in 20..140 {
            assert!(shown(Some(width)).contains("nightly"), "{width}");
        }
    }
}
