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
use crate::metrics::Metrics;
use crate::scheduler::{Schedulers, outage_texts};
use crate::store::{Counts, Store};
use crate::text::error_chain;

/// How often the files of the store are looked at where nothing is written.
pub(super) const PROBE_PERIOD: Duration = Duration::from_secs(10);

/// How often the status for the service manager is renewed at the most.
pub(super) const STATUS_PERIOD: Duration = Duration::from_secs(2);

/// How often finished watches are pruned, unless they are kept for a shorter time than this.
pub(super) const PRUNE_PERIOD: Duration = Duration::from_secs(3600);

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

/// Keeps the status for the service manager up to date. Never returns.
pub(super) async fn keep_status(
    store: Store,
    watches: Schedulers,
    mut live_config: watch::Receiver<LiveConfig>,
) {
    let (mut history, mut deliveries) = (store.history_changed(), store.deliveries_changed());
    let mut breakers = watches.breakers();
    loop {
        // Cancel-safe: each waits for a change, and what it missed is read below.
        tokio::select! {
            Ok(()) = history.changed() => {}
            Ok(()) = deliveries.changed() => {}
            Ok(()) = breakers.changed() => {}
            Ok(()) = live_config.changed() => {}
            else => std::future::pending().await,
        }
        history.mark_unchanged();
        deliveries.mark_unchanged();
        let outage = outage_texts(&breakers.borrow_and_update()).next();
        let rejected = live_config.borrow_and_update().rejected.clone();
        if let Ok(counts) = store.counts().await {
            systemd::status(&status_line(&counts, rejected.or(outage).as_deref()));
        }
        tokio::time::sleep(STATUS_PERIOD).await;
    }
}

/// Reports that the service is alive while the scheduler and the store answer. Never returns.
pub(super) async fn watchdog(store: Store, watches: Schedulers, period: Duration) {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match tokio::try_join!(watches.ping(), store.ping()) {
            Ok(_) => systemd::alive(),
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
