//! Watches in a store before a scheduler starts. The benchmark of lists includes this file, too.

use std::time::Duration;

use jiff::Timestamp;
use runwatch::domain::{
    FoundBy, Labels, Limits, Observation, PollOutcome, Progress, RunDetails, RunRef, RunState,
    Status, Watch,
};
use runwatch::store::Store;

/// A watch without a name, labels and sinks, whose deadline is `deadline` after `added_at`.
pub(crate) fn watch_of(run_id: &str, added_at: Timestamp, deadline: Duration) -> Watch {
    Watch {
        run_id: RunRef::new(run_id).expect("a valid ID"),
        name: None,
        labels: Labels::new(),
        sinks: None,
        added_at,
        deadline_at: added_at.checked_add(deadline).expect("a near time"),
        trace: None,
    }
}

/// Stores a watch whose run was seen running when the watch was added.
pub(crate) async fn store_running(store: &Store, watch: &Watch, limits: &Limits) {
    let at = watch.added_at;
    let (_, id) = store
        .add_watch(watch.clone())
        .await
        .expect("the store accepts it");
    let running = PollOutcome::Seen(Box::new(Observation {
        status: Status::from(RunState::Running),
        details: RunDetails::default(),
    }));
    let step = Progress::begin(at).step(watch, running, at, limits);
    let step = step.expect("a new status is a step");
    let stored = store.record_step(id, step, Vec::new(), None, FoundBy::Poll, at);
    stored.await.expect("the store accepts it");
}
