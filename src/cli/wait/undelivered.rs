//! Deliveries that are still open when the runs have ended.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::session::{ALL, GRACE, OPEN, Session};
use crate::cli::Signals;
use crate::cli::phrases::{cause, counted};
use crate::domain::{DeliveryId, SinkName};
use crate::store::{DeliveryFilter, DeliveryState, DeliverySummary};
use crate::text::humanize;

/// How long they are given where `--linger` has passed.
pub(super) const AFTER_LINGER: Duration = Duration::from_millis(500);

impl Session {
    /// Waits until every message is delivered or given up, as long as the next attempt is due within `linger`. Every
    /// first attempt is made, however many stand before it, and has [`GRACE`] from its beginning; an attempt that is
    /// under way when `linger` has passed has as long from then. Returns the code of a signal that ended it early.
    pub(super) async fn linger(&mut self, signals: &mut Signals) -> anyhow::Result<Option<u8>> {
        let linger = self.until.linger;
        let ends_at = self
            .clock
            .now()
            .checked_add(linger)
            .unwrap_or(Timestamp::MAX);
        let ends = Instant::now() + linger;
        let mut changed = self.engine.store.deliveries_changed();
        let mut cut_offs: BTreeMap<DeliveryId, Instant> = BTreeMap::new();
        self.about.usage = self.usage().await;
        loop {
            changed.mark_unchanged();
            let open = DeliveryFilter {
                states: OPEN.to_vec(),
                ..DeliveryFilter::default()
            };
            let open = self.engine.store.deliveries(open, ALL).await?.items;
            let now = Instant::now();
            let mut look_again = None;
            let mut is_waited_for = false;
            for delivery in &open {
                let first = delivery.attempts <= 1;
                let until = match delivery.state {
                    // Each sink ends its attempts itself, so that each one has its turn.
                    _ if delivery.attempts == 0 => None,
                    DeliveryState::Sending if first => {
                        let cut_off = *cut_offs.entry(delivery.id.clone()).or_insert(now + GRACE);
                        Some(cut_off.max(ends))
                    }
                    DeliveryState::Sending => Some(ends + GRACE),
                    _ if delivery.next_attempt_at.is_none_or(|at| at <= ends_at) => Some(ends),
                    _ => Some(now),
                };
                is_waited_for |= until.is_none_or(|until| now < until);
                look_again = until
                    .filter(|until| now < *until)
                    .into_iter()
                    .chain(look_again)
                    .min();
            }
            if !is_waited_for {
                return Ok(None);
            }
            self.show_troubles().await?;
            let look_again = async {
                match look_again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Every arm is cancel-safe, as above.
            tokio::select! {
                Ok(()) = changed.changed() => {}
                () = look_again => {}
                code = signals.next() => return Ok(Some(code)),
                error = self.engine.broken() => return Err(error),
            }
        }
    }

    /// Reports which notifications did not arrive, and why.
    pub(super) async fn report_undelivered(&self) -> anyhow::Result<()> {
        let now = self.clock.now();
        let states = OPEN.into_iter().chain([DeliveryState::Dead]).collect();
        let undelivered = DeliveryFilter {
            states,
            ..DeliveryFilter::default()
        };
        let undelivered = self.engine.store.deliveries(undelivered, ALL).await?.items;
        let mut by_sink: BTreeMap<&SinkName, Vec<&DeliverySummary>> = BTreeMap::new();
        for delivery in &undelivered {
            by_sink.entry(&delivery.sink).or_default().push(delivery);
        }
        for (sink, deliveries) in by_sink {
            for delivery in deliveries.iter().take(SHOWN_PER_SINK) {
                let line = undelivered_line(delivery, now);
                self.report.options.screen.line(&line);
            }
            let more = deliveries.len().saturating_sub(SHOWN_PER_SINK);
            if more > 0 {
                self.report.options.screen.line(&format!(
                    "warning: {} more {} not delivered to {sink}",
                    counted(more, "notification", "notifications"),
                    if more == 1 { "was" } else { "were" }
                ));
            }
        }
        if undelivered
            .iter()
            .any(|delivery| OPEN.contains(&delivery.state))
        {
            self.report.options.screen.line(
                "these notifications end with this command; a longer --linger gives them more time",
            );
        }
        Ok(())
    }
}

/// Most notifications that are named for one sink when they were not delivered.
const SHOWN_PER_SINK: usize = 5;

/// The line about a notification that was not delivered.
fn undelivered_line(delivery: &DeliverySummary, now: Timestamp) -> String {
    let about = delivery
        .run_id
        .as_ref()
        .map(|id| format!(" of {id}"))
        .unwrap_or_default();
    let why = delivery
        .last_detail
        .as_ref()
        .map(|detail| format!(": {}", cause(detail)))
        .unwrap_or_default();
    let next = match (delivery.state, delivery.next_attempt_at) {
        (DeliveryState::Sending, _) => " (the last one was cut off)".to_owned(),
        (DeliveryState::Pending, Some(at)) => format!(
            " (the next attempt would be in {})",
            humanize(at.duration_since(now).unsigned_abs())
        ),
        _ => String::new(),
    };
    format!(
        "warning: {}{about} was not delivered to {} after {}{why}{next}",
        delivery.event_type,
        delivery.sink,
        counted(
            usize::try_from(delivery.attempts).unwrap_or(usize::MAX),
            "attempt",
            "attempts"
        ),
    )
}
