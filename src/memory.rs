//! Gives memory back to the system after large outputs were handled.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::blocking;

/// From this size on, in bytes, the outputs of a run are a reason to give memory back afterwards.
const LARGE_BYTES: usize = 256 * 1024;

/// How long no large output is handled before memory is given back.
const QUIET: Duration = Duration::from_secs(1);

/// The longest time after which memory is given back although large outputs go on.
const LONGEST: Duration = Duration::from_secs(5);

/// The allocator is one of the process, and so is this.
static USED: Notify = Notify::const_new();

/// Returns whether `bytes` of a run are a reason to give memory back afterwards.
pub(crate) fn is_large(bytes: usize) -> bool {
    bytes >= LARGE_BYTES
}

/// Reports that `bytes` of a run were handled and are, or soon will be, free.
pub(crate) fn used(bytes: usize) {
    if is_large(bytes) {
        freed();
    }
}

/// Reports that much memory was freed.
pub(crate) fn freed() {
    USED.notify_one();
}

/// Gives memory back after each burst of large outputs. Never returns; cancel-safe.
pub(crate) async fn release_after_bursts() {
    loop {
        USED.notified().await;
        let ends = Instant::now() + LONGEST;
        while timeout_at(ends.min(Instant::now() + QUIET), USED.notified())
            .await
            .is_ok()
        {}
        if let Err(error) = blocking::run("memory", runwatch_memory::release).await {
            tracing::debug!(%error, "cannot give memory back");
        }
    }
}
