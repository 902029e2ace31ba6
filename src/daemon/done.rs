//! The end of a daemon that runs with `--exit-when-done`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::LiveConfig;
use crate::domain::{SinkName, Verdict};
use crate::store::{Store, StoreError};

/// Ends when every watch has its verdict and every message that has a sink is delivered or given up, with
/// the worst verdict. A watch is waited for no longer than `idle_grace`: those that ended in an earlier
/// process count, but they do not show that no more will come. Cancel-safe.
pub(super) async fn done(
    store: Store,
    mut live_config: watch::Receiver<LiveConfig>,
    idle_grace: Duration,
    newest_before: i64,
) -> Result<Option<Verdict>, StoreError> {
    let (mut history, mut deliveries) = (store.history_changed(), store.deliveries_changed());
    let gives_up = Instant::now() + idle_grace;
    let mut arrived = false;
    loop {
        // Marked as seen before the store is read, so that no change in between is missed.
        history.mark_unchanged();
        deliveries.mark_unchanged();
        let routes = Arc::clone(&live_config.borrow_and_update().routes);
        let active = store.counts().await?.active;
        arrived |= active > 0 || store.newest_event().await? > newest_before;
        let open = store.sinks_with_open_deliveries().await?;
        let has_sink = |(name, _): &(SinkName, u64)| routes.contains(name);
        let waited = arrived || Instant::now() >= gives_up;
        if active == 0 && !open.iter().any(has_sink) && waited {
            return Ok(store.worst_verdict());
        }
        // A watch that is added changes neither before its first answer; the grace is looked at anew then.
        tokio::select! {
            Ok(()) = history.changed() => {}
            Ok(()) = deliveries.changed() => {}
            Ok(()) = live_config.changed() => {}
            () = tokio::time::sleep_until(gives_up), if Instant::now() < gives_up => {}
            else => return Err(StoreError::Closed),
        }
    }
}
