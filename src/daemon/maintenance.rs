//! What the daemon does beside serving: discovery, pruning, probing the store, the status line, the watchdog.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::systemd;
use crate::clock::Clock;
use crate::control::LiveConfig;
use crate::discovery::{Discoveries, DiscoveryPlan};
use crate::lease::{LeaseHandle, Published};
use crate::metrics::Metrics;
use crate::scheduler::{Outage, Schedulers, Watches, outage_texts};
use crate::store::{Counts, Mark, STORE_RETRY, Store, StoreError};
use crate::text::error_chain;

/// How often the files of the store are looked at where nothing is written.
pub(super) const PROBE_PERIOD: Duration = Duration::from_secs(10);

/// How often the status for the service manager is renewed at the most.
pub(super) const STATUS_PERIOD: Duration = Duration::from_secs(2);

/// How often finished watches are pruned, unless they are kept for a shorter time than this.
pub(super) const PRUNE_PERIOD: Duration = Duration::from_secs(3600);

/// How often a leader looks for what other daemons changed, besides when it sees a change.
pub(super) const MARK_PERIOD: Duration = Duration::from_secs(1);

/// How often groups are looked at at the most.
const GROUP_PERIOD: Duration = Duration::from_secs(2);

/// How often groups are looked at on a store that other daemons share.
const SHARED_GROUP_PERIOD: Duration = Duration::from_secs(10);

/// Most of it that is taken up in one transaction.
const MARKS_AT_ONCE: u32 = 500;

/// Deletes what is older than the retention, now and then, without end.
pub(super) async fn prune(
    store: Store,
    clock: Clock,
    metrics: Metrics,
    mut live_config: watch::Receiver<LiveConfig>,
) {
    loop {
        let (retention, routes) = {
            let live_config = live_config.borrow_and_update();
            (live_config.retention, Arc::clone(&live_config.routes))
        };
        let before = clock.now().checked_sub(retention).unwrap_or(Timestamp::MIN);
        loop {
            let began = Instant::now();
            let sinks = routes.names().cloned().collect();
            match store.prune(before, sinks, clock.now()).await {
                Ok(pruned) if pruned.is_nothing() => break,
                Ok(pruned) => {
                    tracing::debug!(deleted = pruned.deleted, pages = pruned.freed, "pruned");
                    for (sink, messages) in pruned.given_up {
                        tracing::warn!(%sink, messages, "gave up old messages to a sink that is no longer configured");
                        metrics.given_up(&sink, messages);
                    }
                }
                Err(error) => {
                    tracing::error!(error = error_chain(&error), "cannot prune");
                    break;
                }
            }
            // As long as the turn took: half of the time belongs to others, however much there is to prune.
            tokio::time::sleep(began.elapsed()).await;
        }
        let period = (retention / 4).clamp(Duration::from_millis(100), PRUNE_PERIOD);
        // Cancel-safe: one sleeps, the other waits for a change that is read above.
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            Ok(()) = live_config.changed() => {}
        }
    }
}

/// Finishes groups that wait for no watch any more though no verdict came last, without end.
pub(super) async fn finish_groups(
    store: Store,
    clock: Clock,
    live_config: watch::Receiver<LiveConfig>,
) {
    let mut changed = store.history_changed();
    loop {
        changed.mark_unchanged();
        let (retention, routes) = {
            let live_config = live_config.borrow();
            (live_config.retention, Arc::clone(&live_config.routes))
        };
        let now = clock.now();
        let before = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
        // What another daemon removes is no change in the history.
        let mut period = match store.is_shared() {
            true => SHARED_GROUP_PERIOD,
            false => PRUNE_PERIOD.min(retention / 4),
        };
        match store.finish_groups(routes, before, now).await {
            Ok(0) => {}
            Ok(_) => continue,
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::error!(error = error_chain(&error), "cannot finish groups");
                period = STORE_RETRY;
            }
        }
        tokio::time::sleep(GROUP_PERIOD).await;
        // Cancel-safe: one waits for a change that is read above, the other sleeps.
        tokio::select! {
            Ok(()) = changed.changed() => {}
            () = tokio::time::sleep(period) => {}
        }
    }
}

/// Runs the discoveries of the settings in force, without end.
pub(super) async fn discover(
    discoveries: Discoveries<Schedulers>,
    mut live_config: watch::Receiver<LiveConfig>,
) {
    loop {
        let plan = {
            let live_config = live_config.borrow_and_update();
            DiscoveryPlan {
                discoveries: Arc::clone(&live_config.discoveries),
                routes: Arc::clone(&live_config.routes),
                deadline: live_config.deadline,
            }
        };
        // Cancel-safe: a round that is dropped is made again, and the other waits for a change that is read above.
        tokio::select! {
            () = discoveries.run(plan) => {}
            Ok(()) = live_config.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// Looks now and then whether the store could be written, without end. The store itself logs that it could not.
pub(super) async fn probe(store: Store) {
    loop {
        tokio::time::sleep(PROBE_PERIOD).await;
        if let Err(error) = store.probe().await {
            tracing::debug!(
                error = error_chain(&error),
                "the store could not be written now"
            );
        }
    }
}

/// Takes up the watches that other daemons added or removed, without end.
pub(super) async fn take_marks(store: Store, watches: Schedulers, clock: Clock) {
    let mut changed = store.history_changed();
    // Those whose marks are out of the store, and that are not handed over yet.
    let mut marked = Vec::new();
    loop {
        match take_some_marks(&store, &watches, &clock, &mut marked).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::debug!(
                error = error_chain(&error),
                "cannot take up what other daemons changed"
            ),
        }
        // Cancel-safe: one sleeps, the other waits for a change.
        tokio::select! {
            () = tokio::time::sleep(MARK_PERIOD) => {}
            Ok(()) = changed.changed() => {}
        }
    }
}

/// Returns whether there may be further ones. What was handed over leaves `marked`.
async fn take_some_marks(
    store: &Store,
    watches: &Schedulers,
    clock: &Clock,
    marked: &mut Vec<Mark>,
) -> Result<bool, StoreError> {
    let marks = store.take_marks(MARKS_AT_ONCE).await?;
    let may_be_more = marks.len() >= MARKS_AT_ONCE as usize;
    marked.extend(marks);
    let runs = marked.iter().filter_map(|mark| match mark {
        Mark::Run(run_id) => Some(run_id.clone()),
        Mark::Sink(_) => None,
    });
    let runs: Vec<_> = runs.collect();
    if runs.len() < marked.len() {
        store.wake_couriers().await?;
    }
    if !runs.is_empty() {
        let stored = store.active_watches_of(clock.now(), runs.clone()).await?;
        watches.refresh(runs, stored).await?;
    }
    marked.clear();
    Ok(may_be_more)
}

/// Publishes the state of this leader, without end.
pub(super) async fn publish(
    watches: Schedulers,
    mut live_config: watch::Receiver<LiveConfig>,
    published: watch::Sender<String>,
) {
    let mut breakers = watches.breakers();
    loop {
        let state = {
            let breakers = breakers.borrow_and_update();
            let paused = breakers
                .iter()
                .filter(|(_, view)| view.outage == Some(Outage::Paused));
            let until = paused.filter_map(|(name, view)| Some((name.to_string(), view.retry_at?)));
            let live_config = live_config.borrow_and_update();
            Published {
                notices: outage_texts(&breakers).collect(),
                pauses: until.collect(),
                settings: live_config.fingerprint,
            }
        };
        published.send_replace(state.to_text());
        // Cancel-safe: each waits for a change, and what it missed is read above.
        tokio::select! {
            Ok(()) = breakers.changed() => {}
            Ok(()) = live_config.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// Keeps the status for the service manager up to date. Never returns.
pub(super) async fn keep_status(
    store: Store,
    watches: Watches,
    lease: Option<LeaseHandle>,
    mut live_config: watch::Receiver<LiveConfig>,
) {
    let (mut history, mut deliveries) = (store.history_changed(), store.deliveries_changed());
    let mut leading = watches.leading();
    let mut lease = lease.map(|lease| lease.view);
    loop {
        let mut breakers = watches.schedulers().map(|schedulers| schedulers.breakers());
        // Cancel-safe: each waits for a change, and what it missed is read below.
        tokio::select! {
            Ok(()) = history.changed() => {}
            Ok(()) = deliveries.changed() => {}
            Ok(()) = changed(&mut breakers) => {}
            Ok(()) = changed(&mut lease) => {}
            Ok(()) = leading.changed() => {}
            Ok(()) = live_config.changed() => {}
            else => std::future::pending().await,
        }
        history.mark_unchanged();
        deliveries.mark_unchanged();
        let standing_by = lease
            .as_mut()
            .and_then(|view| view.borrow_and_update().sentence());
        let outage = outage_texts(&watches.breakers()).next();
        let rejected = live_config.borrow_and_update().rejected.clone();
        if let Ok(counts) = store.counts().await {
            let but = rejected.or(outage).or(standing_by);
            systemd::status(&status_line(&counts, but.as_deref()));
        } else if let Some(problem) = standing_by {
            systemd::status(&problem);
        }
        tokio::time::sleep(STATUS_PERIOD).await;
    }
}

/// Waits for a change of what may not be there.
async fn changed<T>(
    receiver: &mut Option<watch::Receiver<T>>,
) -> Result<(), watch::error::RecvError> {
    match receiver {
        Some(receiver) => receiver.changed().await,
        None => std::future::pending().await,
    }
}

/// Reports that the service is alive while the scheduler and the store make progress. Never returns.
pub(super) async fn watchdog(store: Store, watches: Watches, period: Duration) {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let progress = async {
            watches.ping().await?;
            if store.is_shared() {
                // A restart of this process does not bring a database back.
                store.progresses(period)
            } else {
                store.ping().await
            }
        };
        match progress.await {
            Ok(()) => systemd::alive(),
            Err(error) => {
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "no progress"
                );
            }
        }
    }
}

pub(super) fn status_line(counts: &Counts, but: Option<&str>) -> String {
    let Counts {
        active,
        pending,
        dead,
    } = counts;
    let mut line = format!("watching {active} runs, {pending} messages to deliver");
    if *dead > 0 {
        line.push_str(&format!(", {dead} given up"));
    }
    if let Some(but) = but {
        line.push_str("; ");
        line.push_str(but);
    }
    line
}
