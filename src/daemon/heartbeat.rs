//! Heartbeats: while this daemon leads and makes progress, a dead-man's switch is notified at intervals.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::clock::Clock;
use crate::config::HeartbeatSettings;
use crate::control::LiveConfig;
use crate::lease::Gate;
use crate::metrics::Metrics;
use crate::notify::{BuildSinkError, Heartbeat};
use crate::reminder::Reminder;
use crate::scheduler::Schedulers;
use crate::store::Store;
use crate::text::error_chain;

/// How long scheduler and store may take to show progress: longer than another process may hold the lock of a store.
const PROGRESS_LIMIT: Duration = Duration::from_secs(10);

/// What heartbeats need.
pub(super) struct Heart {
    pub(super) store: Store,
    /// Open while the lease is confirmed; `None` with a store of this daemon's own.
    pub(super) gate: Option<Gate>,
    pub(super) watches: Schedulers,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) live_config: watch::Receiver<LiveConfig>,
}

/// Why there was no heartbeat.
enum MissedBeat {
    /// The scheduler or the store makes no progress, or the lease is not confirmed.
    Withheld(String),
    /// It did not arrive.
    NotAccepted(String),
}

impl Heart {
    /// Sends a heartbeat at once, after each interval and after each change of the settings, without end.
    pub(super) async fn beat(mut self) {
        // A client takes memory: there is one only where it is used.
        let mut client = None;
        let mut reminder = Reminder::default();
        let mut failing = false;
        loop {
            let settings = self.live_config.borrow_and_update().heartbeat.clone();
            let began = Instant::now();
            let Some(settings) = settings else {
                (client, failing) = (None, false);
                if self.live_config.changed().await.is_err() {
                    std::future::pending().await
                }
                continue;
            };
            match self.beat_once(&mut client, &settings).await {
                Ok(()) => {
                    self.metrics.heartbeat_accepted(self.clock.now());
                    if failing {
                        tracing::info!("heartbeats are accepted again");
                    }
                    failing = false;
                    reminder = Reminder::default();
                }
                Err(missed) => {
                    failing = true;
                    self.report(&missed, reminder.is_due(Instant::now()));
                }
            }
            // Cancel-safe: one sleeps, the other waits for a change that is read above.
            tokio::select! {
                () = tokio::time::sleep_until(began + settings.interval) => {}
                Ok(()) = self.live_config.changed() => {}
            }
        }
    }

    /// Sends a heartbeat, if there is progress. Ends within 20 s.
    async fn beat_once(
        &self,
        client: &mut Option<Heartbeat>,
        settings: &HeartbeatSettings,
    ) -> Result<(), MissedBeat> {
        // Nothing is polled meanwhile, also where the database answers all else.
        if self.gate.as_ref().is_some_and(|gate| !gate.is_open()) {
            let error = "the store has not confirmed the lease".to_owned();
            return Err(MissedBeat::Withheld(error));
        }
        // A database that does not answer is no progress here, unlike for the watchdog: a person must know of it.
        let progress = async {
            self.watches.ping().await?;
            self.store.ping().await
        };
        match timeout(PROGRESS_LIMIT, progress).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(MissedBeat::Withheld(error_chain(&error))),
            Err(_elapsed) => {
                let limit = PROGRESS_LIMIT.as_secs();
                let error = format!("neither of them has shown any for {limit} s");
                return Err(MissedBeat::Withheld(error));
            }
        }
        let not_built = |error: BuildSinkError| MissedBeat::NotAccepted(error_chain(&error));
        let client = match client {
            Some(client) => client,
            None => client.insert(Heartbeat::build().map_err(not_built)?),
        };
        let sent = client.send(&settings.url).await;
        sent.map(drop)
            .map_err(|error| MissedBeat::NotAccepted(error.detail))
    }

    fn report(&self, missed: &MissedBeat, is_due: bool) {
        match missed {
            MissedBeat::Withheld(error) => {
                self.metrics.heartbeat_withheld();
                if is_due {
                    tracing::warn!(
                        error,
                        "no heartbeat is sent: the scheduler or the store makes no progress"
                    );
                }
            }
            MissedBeat::NotAccepted(error) => {
                self.metrics.heartbeat_not_accepted();
                if is_due {
                    tracing::warn!(
                        error,
                        "a heartbeat was not accepted; check heartbeat.url_file and its receiver"
                    );
                }
            }
        }
    }
}
