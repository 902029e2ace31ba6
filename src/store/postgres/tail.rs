//! The tail: it looks for events that other daemons stored, so that those who follow events here see them.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::connection::{Line, READ_ON_PRIMARY};
use super::events::newest_event;
use crate::store::model::StoreError;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The task that looks for events.
pub(super) struct Tail {
    pub(super) line: Line,
    pub(super) history: watch::Sender<u64>,
    pub(super) deliveries: watch::Sender<u64>,
}

impl Tail {
    /// Looks until it is dropped.
    pub(super) async fn run(mut self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = None;
        loop {
            ticks.tick().await;
            let Ok(newest) = self.look().await else {
                continue;
            };
            if known.is_some_and(|known| known != newest) {
                self.history.send_modify(|generation| *generation += 1);
                self.deliveries.send_modify(|generation| *generation += 1);
            }
            known = Some(newest);
        }
    }

    async fn look(&mut self) -> Result<i64, StoreError> {
        let limit = self.line.connector().limit;
        let begin = self.line.connector().begin(READ_ON_PRIMARY);
        let db = self.line.db(false).await?;
        let newest = timeout(limit, db.read_within(&begin, newest_event(&db)))
            .await
            .unwrap_or_else(|_elapsed| {
                Err(StoreError::OutOfReach {
                    why: "the server did not answer in time".to_owned(),
                })
            });
        if let Err(error) = &newest {
            self.line.close(error);
        }
        newest
    }
}
