//! Discoveries: runs are found in lists, and watched as they appear.
//!
//! One task runs all discoveries of a daemon. Each looks at its list in rounds: the pages of the runs that go on, then
//! those of the runs that are not settled, the newest first. What the store knows of each listed run decides
//! (see `decide`): it is noted, or noted and watched, in one transaction. A list is only a reason to watch a run; the
//! run's own polls decide everything else.
//!
//! ```text
//! every ─► round ─► pages (scheduler: budget, pauses) ─► known? (store) ─► note, or note and watch (one transaction)
//! ```
//!
//! A round is complete when nothing was left out: the list was read as far as it had to be, and every run that is to be
//! watched is. Only then does the cursor move, and what two of them had in reach, ten minutes apart, is settled. What is
//! left out, because an answer fails or a limit is reached, is read
//! in the next round.

mod decide;
mod fill;
mod round;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use tokio::sync::watch;
use tokio::time::Instant;

use self::round::{Followed, RoundFailure};
pub use self::view::{DiscoveryState, DiscoveryView, PAGES_AT_MOST, WATCHES_AT_MOST};
use crate::clock::Clock;
use crate::config::DiscoverySettings;
use crate::domain::{ProviderName, Routes, Watch};
use crate::metrics::Metrics;
use crate::providers::{ApiError, ListPage, ListRequest};
use crate::scheduler::{AddedBy, Schedulers};
use crate::store::{Added, PollFailure, STORE_RETRY, Store, StoreError, StoredDiscovery};
use crate::text::error_chain;

/// The longest time from a round that failed to the next one, unless `every` is longer.
const LONGEST_RETRY: Duration = Duration::from_secs(15 * 60);

/// How the runs of a discovery are listed and watched: by the scheduler of their provider. Tests have others.
pub trait RunLists: Clone + Send + Sync + 'static {
    /// Requests a page, within the budget of the provider.
    ///
    /// # Errors
    /// The outer one when no more requests are made at all, the inner one when there is no usable answer.
    fn list(
        &self,
        provider: &ProviderName,
        request: ListRequest,
    ) -> impl Future<Output = Result<Result<ListPage, ApiError>, StoreError>> + Send;

    /// Watches a run. Cancel-safe: once sent, it is done whether or not the caller waits.
    ///
    /// # Errors
    /// When the store rejects the write.
    fn add(
        &self,
        watch: Watch,
        origin: AddedBy,
    ) -> impl Future<Output = Result<Added, StoreError>> + Send;
}

impl RunLists for Schedulers {
    async fn list(
        &self,
        provider: &ProviderName,
        request: ListRequest,
    ) -> Result<Result<ListPage, ApiError>, StoreError> {
        Self::list(self, provider, request).await
    }

    async fn add(&self, watch: Watch, origin: AddedBy) -> Result<Added, StoreError> {
        Self::add(self, watch, origin).await
    }
}

/// What the configuration requires.
#[derive(Debug, Clone)]
pub struct DiscoveryPlan {
    /// The discoveries.
    pub discoveries: Arc<[DiscoverySettings]>,
    /// The sinks.
    pub routes: Arc<Routes>,
    /// How long a watch lasts.
    pub deadline: Duration,
}

/// What all discoveries use.
#[derive(Debug, Clone)]
pub struct Discoveries<L> {
    /// How runs are listed and watched.
    pub lists: L,
    /// The store.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Metrics,
    /// What people see, one for each discovery in the order of the configuration.
    pub views: watch::Sender<Vec<DiscoveryView>>,
}

impl<L: RunLists> Discoveries<L> {
    /// Runs the discoveries of a plan without end. Discoveries that are not in it are forgotten. Cancel-safe: a round
    /// that is dropped is made again, and what it has noted and watched stays so.
    pub async fn run(&self, plan: DiscoveryPlan) {
        let begun = self.begin(&plan).await;
        let views = plan.discoveries.iter().zip(&begun);
        let views = views.map(|(settings, stored)| DiscoveryView::new(settings, stored));
        self.views.send_replace(views.collect());
        self.count();
        let running = plan.discoveries.iter().zip(begun).enumerate();
        let running = running.map(|(index, (settings, stored))| {
            let followed = Followed::new(self, settings, &plan, stored);
            self.follow(followed, index, settings.every)
        });
        future::join_all(running).await;
        // There was none.
        future::pending::<()>().await;
    }

    /// Begins those that are new, as soon as the store takes that.
    async fn begin(&self, plan: &DiscoveryPlan) -> Vec<StoredDiscovery> {
        let names = plan
            .discoveries
            .iter()
            .map(|settings| (settings.provider.clone(), settings.identity()));
        let names: Vec<_> = names.collect();
        loop {
            match self
                .store
                .set_discoveries(names.clone(), self.clock.now())
                .await
            {
                Ok(begun) => return begun,
                Err(error) => {
                    tracing::error!(
                        error = error_chain(&error),
                        "the discoveries cannot be stored; trying again"
                    );
                    tokio::time::sleep(STORE_RETRY).await;
                }
            }
        }
    }

    /// Makes one round after the other.
    async fn follow(&self, mut followed: Followed<'_, L>, index: usize, every: Duration) {
        let mut failures: u32 = 0;
        let mut was_behind = false;
        loop {
            let began = Instant::now();
            let result = followed.round().await;
            // A round that takes long, as the budget is small, leaves requests to others.
            let ended = Instant::now();
            let mut next = (began + every).max(ended + every / 2);
            let title = followed.title.as_str();
            let failed = match &result {
                Ok(end) => {
                    if failures > 0 {
                        tracing::info!(discovery = title, "the list of runs is read again");
                    }
                    failures = 0;
                    if !end.is_complete && !was_behind {
                        tracing::warn!(
                            discovery = title,
                            pages = end.pages,
                            watched = end.watched,
                            "a round reached its limit of {PAGES_AT_MOST} pages of a kind or {WATCHES_AT_MOST} watches; the \
                             next ones go on, and match can make the list smaller"
                        );
                    }
                    was_behind = !end.is_complete;
                    None
                }
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    next = next.max(ended + retry_after(every, failures));
                    let message = failure.text();
                    if failures == 1 {
                        tracing::warn!(
                            discovery = title,
                            error = message,
                            "the list of runs cannot be read; trying again at growing intervals: {}",
                            failure.remedy()
                        );
                    }
                    let at = self.clock.now();
                    Some(PollFailure { at, message })
                }
            };
            let wait = next.saturating_duration_since(Instant::now());
            let next_round_at = self.clock.now().checked_add(wait).ok();
            self.views.send_modify(|views| {
                // A reload may have left fewer.
                let Some(view) = views.get_mut(index) else {
                    return;
                };
                view.found = followed.stored.found;
                view.watched = followed.stored.watched;
                view.last_round_at = followed.stored.cursor_at;
                view.next_round_at = next_round_at;
                view.pages = followed.pages;
                view.state = match &result {
                    Err(_) => DiscoveryState::Failing,
                    Ok(end) if !end.is_complete => DiscoveryState::Behind,
                    Ok(_) => DiscoveryState::Following,
                };
                if failed.is_some() {
                    view.last_error = failed;
                }
            });
            self.count();
            if matches!(result, Err(RoundFailure::Store(StoreError::Closed))) {
                // The daemon ends.
                return future::pending().await;
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// Counts the discoveries by provider and state.
    fn count(&self) {
        let mut counts: BTreeMap<(ProviderName, &'static str), u64> = BTreeMap::new();
        for view in self.views.borrow().iter() {
            for state in DiscoveryState::ALL {
                let count = counts.entry((view.provider.clone(), state.as_str()));
                *count.or_default() += u64::from(view.state == state);
            }
        }
        self.metrics.discoveries(counts);
    }
}

/// How long to wait after so many failures, one or more, in a row.
fn retry_after(every: Duration, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
    every.saturating_mul(factor).min(LONGEST_RETRY.max(every))
}

#[cfg(test)]
mod tests;
