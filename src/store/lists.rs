//! Which rows a list has, and in which order: conditions that both engines read, with parameters `$1`, `$2` and so on.

use super::model::{DeliveryFilter, DeliveryState, WatchFilter, WatchOrder, WatchState};
use crate::domain::{DeliveryId, Verdict};

/// A text that sorts after every ID of a delivery.
const PAST_ALL: &str = "~";

/// The condition and the order of a list of watches, after the one with the time `$1` and the run `$2` ([`watches_after`]),
/// with the verdict `$3`. `None` when no watch can match.
pub(super) fn watches_where(
    state: Option<WatchState>,
    verdict: Option<Verdict>,
    order: WatchOrder,
) -> Option<(String, &'static str)> {
    let state = match order {
        WatchOrder::Ended => Some(state.unwrap_or(WatchState::Finished)),
        WatchOrder::Oldest | WatchOrder::Newest => state,
    };
    let which = match (state, verdict) {
        (Some(WatchState::Active), Some(_)) => return None,
        (Some(WatchState::Active), None) if order == WatchOrder::Ended => return None,
        (None, None) => "$3 IS NULL",
        (Some(WatchState::Active), None) => "verdict IS NULL AND $3 IS NULL",
        (Some(WatchState::Finished), None) => "verdict IS NOT NULL AND $3 IS NULL",
        (None | Some(WatchState::Finished), Some(_)) => "verdict IS NOT NULL AND verdict = $3",
    };
    let (after, by) = match order {
        WatchOrder::Oldest => ("(added_at, run_id) > ($1, $2)", "added_at, run_id, id"),
        WatchOrder::Newest => (
            "(added_at, run_id) < ($1, $2)",
            "added_at DESC, run_id DESC, id DESC",
        ),
        WatchOrder::Ended => (
            "(verdict_at, run_id) < ($1, $2)",
            "verdict_at DESC, run_id DESC, id DESC",
        ),
    };
    Some((format!("{which} AND {after}"), by))
}

/// The time and the run after which a list of watches begins.
pub(super) fn watches_after(filter: &WatchFilter) -> (i64, &str) {
    match (&filter.after, filter.order) {
        (Some((at, run_id)), _) => (at.as_millisecond(), run_id.as_str()),
        (None, WatchOrder::Oldest) => (i64::MIN, ""),
        (None, WatchOrder::Newest | WatchOrder::Ended) => (i64::MAX, ""),
    }
}

/// The condition and the direction of a list of deliveries `d`, after the one with the ID `$1` ([`deliveries_after`]), to
/// the sink `$2`. `any` is true without states, and `states` selects them.
pub(super) fn deliveries_where(
    filter: &DeliveryFilter,
    any: &str,
    states: &str,
) -> (String, &'static str) {
    // Those that are not delivered are few among many, and have an index of their own.
    let delivered = [DeliveryState::Delivered, DeliveryState::Included];
    let delivered =
        filter.states.is_empty() || delivered.iter().any(|state| filter.states.contains(state));
    let state = match delivered {
        true => "CASE WHEN d.included_in IS NULL THEN d.state ELSE 'included' END",
        false => "d.state",
    };
    let which = match (&filter.sink, delivered) {
        (Some(_), _) => format!("d.sink = $2 AND ({any} OR {state} IN ({states}))"),
        (None, false) => {
            format!("d.state != 'delivered' AND $2 IS NULL AND d.state IN ({states})")
        }
        (None, true) => format!("$2 IS NULL AND ({any} OR {state} IN ({states}))"),
    };
    let (after, direction) = if filter.newest_first {
        ("<", "DESC")
    } else {
        (">", "ASC")
    };
    (format!("{which} AND d.id {after} $1"), direction)
}

/// The ID after which a list of deliveries begins.
pub(super) fn deliveries_after(filter: &DeliveryFilter) -> &str {
    let first = if filter.newest_first { PAST_ALL } else { "" };
    filter.after.as_ref().map_or(first, DeliveryId::as_str)
}
