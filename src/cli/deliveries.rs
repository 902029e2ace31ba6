//! `runwatch deliveries`, with `retry` and `drop`.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::args::{Deliveries, DeliveriesArgs, DeliveriesCommand};
use super::client::Printer;
use super::failure::CommandFailure;
use super::phrases::{cause, count_line, delivery_glyph, delivery_state};
use super::table::{Column, TextTable};
use super::write_text;
use crate::control::{Client, DeliveryResponse};
use crate::store::Fate;
use crate::style::{Style, ago};

/// Glyph, sink, event, run, state, ID, age, attempts and result.
const COLUMNS: [Column; 9] = [
    Column::whole("", 1),
    Column::whole("SINK", 2),
    Column::whole("EVENT", 4),
    Column::run(5),
    Column::whole("STATE", 3),
    Column::whole("ID", 0),
    Column::number("MADE", 7),
    Column::number("ATTEMPTS", 8),
    Column::text("LAST RESULT", 6, 12),
];

/// Columns of a terminal from which IDs are shown in full.
const ROOM_FOR_IDS: u16 = 160;

/// Characters of an ID that are shown at least: those of its time (UUIDv7, RFC 9562), and four at random.
const LEAST_BEGINNING: usize = 16;

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
    let all = deliveries.len();
    let hidden = args.limit.map_or(0, |limit| all.saturating_sub(limit));
    if printer.json {
        deliveries.drain(..hidden);
        printer.json(&serde_json::json!({ "deliveries": deliveries }))?;
        return Ok(0);
    }
    deliveries.reverse();
    let shown = all - hidden;
    if deliveries.is_empty() {
        printer.remark(match (&args.sink, args.failed) {
            (None, false) => "there are no deliveries",
            _ => "no delivery matches",
        })?;
        return Ok(0);
    }
    let has_room = printer.width.is_none_or(|width| width >= ROOM_FOR_IDS);
    let table = table(
        &deliveries[..shown],
        Timestamp::now(),
        &TimeZone::system(),
        printer.style,
        has_room,
    );
    write_text(printer.out, &table.into_text(printer.width))?;
    let states = deliveries
        .iter()
        .map(|delivery| match delivery.state.as_str() {
            "dead" => "given up",
            state => state,
        });
    printer.remark(&count_line(("delivery", "deliveries"), states, shown))?;
    Ok(0)
}

/// A table of deliveries; `whole_ids` shows their IDs in full, and not the beginnings that distinguish them.
fn table(
    deliveries: &[DeliveryResponse],
    now: Timestamp,
    zone: &TimeZone,
    style: Style,
    whole_ids: bool,
) -> TextTable {
    let mut table = TextTable::new(style, COLUMNS);
    let beginning = beginning_chars(deliveries);
    for delivery in deliveries {
        let id = delivery.id.as_str();
        let shorten = |id: &str| {
            let short = id.trim_start_matches("msg_");
            short.get(..beginning).unwrap_or(short).to_owned()
        };
        let result = delivery
            .last_result
            .as_deref()
            .map(cause)
            .unwrap_or_default();
        let mut state = delivery_state(delivery, now, zone);
        if let Some(summary) = delivery.included_in.as_ref().filter(|_| !whole_ids) {
            state = state.replace(summary.as_str(), &shorten(summary.as_str()));
        }
        let shown_id = match whole_ids {
            true => id.to_owned(),
            false => shorten(id),
        };
        table.row([
            delivery_glyph(style, delivery),
            delivery.sink.to_string(),
            delivery.event.to_string(),
            delivery.subject().unwrap_or_default(),
            match delivery.state.as_str() {
                "delivered" => style.good(&state),
                "dead" => style.bad(&state),
                _ => state,
            },
            style.dim(&shown_id),
            ago(delivery.created_at, now),
            delivery.attempts.to_string(),
            result,
        ]);
    }
    table
}

/// How many characters of the IDs distinguish all of them: at least [`LEAST_BEGINNING`].
fn beginning_chars(deliveries: &[DeliveryResponse]) -> usize {
    let mut ids: Vec<_> = deliveries
        .iter()
        .map(|delivery| delivery.id.as_str().trim_start_matches("msg_"))
        .collect();
    ids.sort_unstable();
    let common = |pair: &[&str]| {
        let pairs = pair[0].bytes().zip(pair[1].bytes());
        pairs.take_while(|(left, right)| left == right).count()
    };
    let longest = ids.windows(2).map(common).max();
    longest.map_or(0, |common| common + 1).max(LEAST_BEGINNING)
}

/// Retries deliveries or gives them up.
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
            let failure = CommandFailure::from(&error).about("id", id);
            code = code.max(printer.failed(failure)?);
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples;

    #[test]
    fn deliveries_fit_every_terminal() {
        let shown = |width| {
            let whole = width >= ROOM_FOR_IDS;
            let table = table(
                &samples::deliveries(),
                samples::now(),
                &TimeZone::UTC,
                Style::PLAIN,
                whole,
            );
            table.into_text(Some(width))
        };
        insta::assert_snapshot!(shown(40));
        insta::assert_snapshot!(shown(80));
        insta::assert_snapshot!(shown(120));
        insta::assert_snapshot!(shown(200));
    }

    #[test]
    fn a_delivery_in_a_summary_names_that_one() {
        let mut deliveries = samples::deliveries();
        let summary = deliveries[1].id.clone();
        deliveries[0].state = "included".to_owned();
        deliveries[0].held_until = None;
        deliveries[0].fallback_for = None;
        deliveries[0].included_in = Some(summary.clone());
        let shown = |whole, width| {
            let (now, zone) = (samples::now(), TimeZone::UTC);
            let table = table(&deliveries[..2], now, &zone, Style::PLAIN, whole);
            table.into_text(Some(width))
        };
        let whole = format!("in the summary {summary}");
        assert!(shown(true, 200).contains(&whole), "{}", shown(true, 200));
        let text = shown(false, 80);
        assert!(text.contains("in the summary 0"), "{text}");
        assert!(!text.contains(summary.as_str()), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }

    #[test]
    fn short_ids_tell_deliveries_apart() {
        let mut deliveries = samples::deliveries();
        assert_eq!(beginning_chars(&deliveries[..1]), LEAST_BEGINNING);
        deliveries[0].id = "msg_01a21bcccaa870459cf46039cfe2efa6".parse().unwrap();
        deliveries[1].id = "msg_01a21bcccaa870459cf46039cfe2efa7".parse().unwrap();
        assert_eq!(beginning_chars(&deliveries), 32);
    }
}
