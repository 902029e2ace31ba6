//! `runwatch deliveries`, with `retry` and `drop`.

use jiff::Timestamp;

use super::args::{Deliveries, DeliveriesArgs, DeliveriesCommand};
use super::client::Printer;
use super::phrases::{TEXT_CHARS, ago, delivery_state};
use super::table::Table;
use super::write_text;
use crate::control::Client;
use crate::store::Fate;
use crate::text::one_line;

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
            code = code.max(printer.failed(&error)?);
        }
    }
    Ok(code)
}
