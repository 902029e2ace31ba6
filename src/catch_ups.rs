//! How many rounds of polls after a start or a sleep are under way: couriers hold what becomes known in one, and send it
//! as a summary.

use tokio::sync::watch;

/// The rounds of all schedulers; clones share them.
#[derive(Debug, Clone)]
pub struct CatchUps(watch::Sender<RoundCounts>);

/// How many rounds are under way, and how many are over.
#[derive(Debug, Clone, Copy, Default)]
pub struct RoundCounts {
    open: u32,
    over: u64,
}

impl Default for CatchUps {
    fn default() -> Self {
        Self(watch::Sender::new(RoundCounts::default()))
    }
}

impl CatchUps {
    /// How many rounds are over; `None` while one is under way.
    pub fn over(&self) -> Option<u64> {
        let counts = *self.0.borrow();
        (counts.open == 0).then_some(counts.over)
    }

    /// Changes with every beginning and end of a round.
    pub fn changes(&self) -> watch::Receiver<RoundCounts> {
        self.0.subscribe()
    }

    /// Notes that a round began.
    pub(crate) fn begin(&self) {
        self.0.send_modify(|counts| counts.open += 1);
    }

    /// Notes that a round is over, with all that it led to in the store.
    pub(crate) fn end(&self) {
        self.0.send_modify(|counts| {
            counts.open -= 1;
            counts.over += 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_over_when_none_is_under_way() {
        let rounds = CatchUps::default();
        let changes = rounds.changes();
        assert_eq!(rounds.over(), Some(0));
        let shared = rounds.clone();
        shared.begin();
        rounds.begin();
        assert!(changes.has_changed().unwrap());
        assert_eq!(rounds.over(), None);
        shared.end();
        assert_eq!(rounds.over(), None, "one of two");
        rounds.end();
        assert_eq!(rounds.over(), Some(2));
    }
}
