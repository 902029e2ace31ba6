//! What `benches/hot.rs` measures of this module.

use tokio::time::Instant;

use super::budget::Budget;

/// A budget, none of it used at `now`. For a time it returns whether a request may be sent then, and counts it.
pub fn budget(per_minute: u32, now: Instant) -> impl FnMut(Instant) -> bool {
    let mut budget = Budget::new(per_minute, now);
    move |now| budget.try_take(now)
}
