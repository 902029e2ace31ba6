//! What a wait says about sinks whose attempts fail: one line per sink, again when the cause is another one, and at
//! growing intervals.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::sentences::sink_sentence;
use crate::domain::SinkName;
use crate::store::{DeliveryState, DeliverySummary};

/// The least time between two looks at the deliveries.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// After how long a failure is shown again, at first; twice as long each time after that.
const REPEAT: Duration = Duration::from_secs(15);

/// The sinks that have trouble, and what was last shown of each.
#[derive(Debug, Default)]
pub(super) struct SinkTroubles(BTreeMap<SinkName, Trouble>);

#[derive(Debug)]
struct Trouble {
    why: String,
    again_at: Instant,
    after: Duration,
}

impl SinkTroubles {
    /// Takes in the deliveries that are not done with, and returns what is to be shown.
    pub(super) fn look(
        &mut self,
        open: &[DeliverySummary],
        now: Timestamp,
        instant: Instant,
    ) -> Vec<String> {
        let mut failing: BTreeMap<&SinkName, (&str, Option<Timestamp>)> = BTreeMap::new();
        for delivery in open {
            let Some(why) = delivery.last_detail.as_deref() else {
                continue;
            };
            let next = delivery
                .next_attempt_at
                .filter(|_| delivery.state != DeliveryState::Dead);
            failing
                .entry(&delivery.sink)
                .and_modify(|(_, known)| *known = [*known, next].into_iter().flatten().min())
                .or_insert((why, next));
        }
        let mut lines = Vec::new();
        for (sink, (why, next)) in &failing {
            let after = match self.0.get(*sink) {
                Some(known) if known.why == *why && instant < known.again_at => continue,
                Some(known) if known.why == *why => known.after * 2,
                _ => REPEAT,
            };
            let trouble = Trouble {
                why: (*why).to_owned(),
                again_at: instant + after,
                after,
            };
            self.0.insert((*sink).clone(), trouble);
            lines.push(sink_sentence(sink.as_str(), why, *next, now));
        }
        self.0.retain(|sink, _| failing.contains_key(sink));
        lines
    }
}
