//! What belongs to one provider: its client, and how many requests it is sent, when.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::breaker::{Breaker, BreakerView};
use super::budget::Budget;
use super::lists::Lists;
use super::streams::Streams;
use crate::clock::Now;
use crate::domain::ProviderName;
use crate::metrics::Metrics;
use crate::providers::AnyProvider;

/// How far the times of two views may differ for them to count as the same: the time of the next request moves by
/// rounding.
const SAME_TIME: jiff::SignedDuration = jiff::SignedDuration::from_millis(50);

/// The state of one provider.
pub(super) struct ProviderState {
    pub(super) name: ProviderName,
    pub(super) client: AnyProvider,
    /// Whether its requests left when the scheduler last looked.
    pub(super) was_open: bool,
    pub(super) budget: Budget,
    pub(super) breaker: Breaker,
    pub(super) streams: Streams,
    pub(super) lists: Lists,
    pub(super) polls_since_stream: u32,
    /// Polls under way end with this: their connections, or what they poll, are those of before.
    pub(super) current: CancellationToken,
    /// Since when the time of an outage is not counted yet.
    counted_until: Instant,
    view: watch::Sender<BreakerView>,
}

impl ProviderState {
    /// The state of a provider that was never polled, with the view that others get of it.
    pub(super) fn new(
        name: ProviderName,
        client: AnyProvider,
        requests_per_minute: u32,
        max_streams: usize,
        now: Instant,
    ) -> (Self, watch::Receiver<BreakerView>) {
        let (view, receiver) = watch::channel(BreakerView::default());
        let state = Self {
            name,
            client,
            was_open: true,
            budget: Budget::new(requests_per_minute, now),
            breaker: Breaker::new(now),
            streams: Streams::new(max_streams),
            lists: Lists::new(),
            polls_since_stream: 0,
            current: CancellationToken::new(),
            counted_until: now,
            view,
        };
        (state, receiver)
    }

    /// Ends polls under way, whose runs are polled again at once.
    pub(super) fn call_back_polls(&mut self) {
        std::mem::take(&mut self.current).cancel();
    }

    /// When the next request may go out: the circuit breaker is not open, and the budget has room.
    pub(super) fn opens_at(&self, now: Instant) -> Instant {
        self.breaker
            .opens_at()
            .unwrap_or(now)
            .max(self.budget.next_at())
    }

    /// Opens the breaker anew after a sleep, whose connections are most likely dead.
    pub(super) fn slept(&mut self, slept: Duration, max_streams: usize) {
        self.breaker.slept(slept);
        self.call_back_polls();
        self.streams.reset(max_streams);
    }

    /// Counts the time of an outage up to now. Called before the state may change.
    pub(super) fn count_outage(&mut self, metrics: &Metrics, now: Instant) {
        if let Some(outage) = self.breaker.outage() {
            metrics.paused(
                outage.reason(),
                now.saturating_duration_since(self.counted_until),
            );
        }
        self.counted_until = now;
    }

    /// Shows the state of the breaker to those who follow it, when it changed.
    pub(super) fn publish(&self, now: Now) {
        let mut view = self.breaker.view(now);
        self.view.send_if_modified(|shown| {
            let same_time = match (shown.retry_at, view.retry_at) {
                (Some(shown), Some(new)) => shown.duration_since(new).abs() <= SAME_TIME,
                (shown, new) => shown == new,
            };
            if same_time {
                view.retry_at = shown.retry_at;
            }
            let changed = *shown != view;
            if changed {
                shown.clone_from(&view);
            }
            changed
        });
    }
}
