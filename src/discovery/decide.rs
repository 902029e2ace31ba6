//! What follows from one entry of a list. Pure: no I/O, no clock.

use jiff::{SignedDuration, Timestamp};

use crate::domain::Verdict;
use crate::providers::ListEntry;
use crate::store::{KnownRun, NotedRun, RunNote};

/// How far a round reads back beyond the beginning of the newest complete one: lists lag behind, and pages shift while
/// they are read.
pub(super) const OVERLAP: SignedDuration = SignedDuration::from_mins(10);

/// How long before the newest complete round the end of an unknown run may lie for it to count. An older one was
/// listed then, or is one of long ago that comes back into sight.
const OLDEST_END: SignedDuration = SignedDuration::from_hours(24);

/// How often it is stored that a run is still listed.
const SEEN_PERIOD: SignedDuration = SignedDuration::from_hours(1);

/// When a discovery looks at a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// When the discovery began.
    pub(super) began_at: Timestamp,
    /// When the newest complete round began; `None` in the first one.
    pub(super) cursor_at: Option<Timestamp>,
    /// The time.
    pub(super) now: Timestamp,
}

/// What follows from an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing.
    Nothing,
    /// The run is noted, and not watched.
    Note(RunNote),
    /// The run is noted and watched; its own polls decide about its end.
    Watch {
        /// What is noted.
        note: RunNote,
        /// Whether it may have a finished watch.
        again: bool,
    },
}

/// Decides what follows from an entry about a run of which this is known. The list's word for an end is only a reason
/// to watch the run, and never a verdict.
pub(super) fn decide(entry: &ListEntry, known: &KnownRun, moment: &Moment) -> Decision {
    let has_ended = Verdict::of_status(&entry.status).is_some();
    let listed_end = has_ended.then(|| entry.completed_at.unwrap_or(moment.now));
    // An active watch may still get the verdict of the attempt that it observed last. Later ones are not noted until it
    // has observed them, or is finished.
    let active = known.watch.as_ref().filter(|watch| watch.is_active);
    let attempt = active.map_or(entry.attempt, |watch| entry.attempt.min(watch.attempt));
    let note = |ended_at| RunNote {
        run_id: entry.run_id.clone(),
        attempt,
        ended_at,
    };
    let is_next = is_next_attempt(entry, known, has_ended);
    let is_unknown = known.noted.is_none() && known.watch.is_none();
    if active.is_none() && (is_unknown || is_next) {
        let is_news = !has_ended || moment.is_new_end(entry);
        return if is_news {
            Decision::Watch {
                note: note(listed_end),
                again: is_next,
            }
        } else {
            Decision::Note(note(listed_end))
        };
    }
    let Some(noted) = &known.noted else {
        return Decision::Note(note(listed_end));
    };
    let ends = has_ended && noted.ended_at.is_none();
    if ends || moment.now.duration_since(noted.seen_at) >= SEEN_PERIOD {
        // A list that lags behind does not take an end back.
        return Decision::Note(note(noted.ended_at.or(listed_end)));
    }
    Decision::Nothing
}

/// Whether the entry shows another attempt than those that are known: by its number, or where there are none, because
/// the run goes on and started after its last end.
fn is_next_attempt(entry: &ListEntry, known: &KnownRun, has_ended: bool) -> bool {
    let (noted, watch) = (known.noted.as_ref(), known.watch.as_ref());
    let attempts = [
        noted.and_then(|noted| noted.attempt),
        watch.and_then(|watch| watch.attempt),
    ];
    if let (Some(listed), Some(greatest)) = (entry.attempt, attempts.into_iter().flatten().max()) {
        return listed > greatest;
    }
    let ends = [
        noted.and_then(|noted| noted.ended_at),
        watch.and_then(|watch| watch.ended_at),
    ];
    let last_end = ends.into_iter().flatten().max();
    !has_ended
        && entry
            .started_at
            .zip(last_end)
            .is_some_and(|(started, end)| started > end)
}

impl Moment {
    /// Whether an end is one since the discovery began. What had ended when it first looked is none, whatever the
    /// clock of the provider shows.
    fn is_new_end(&self, entry: &ListEntry) -> bool {
        let is_first_look =
            self.cursor_at.is_none() && self.now.duration_since(self.began_at) <= OVERLAP;
        if is_first_look {
            return false;
        }
        let oldest = self
            .cursor_at
            .and_then(|at| at.checked_sub(OLDEST_END).ok())
            .map_or(self.began_at, |at| at.max(self.began_at));
        match entry.completed_at {
            Some(at) => at >= oldest,
            // Without the time of its end, a run that is older than the discovery counts as over before it began.
            None => {
                let began = entry.started_at.or(entry.created_at);
                self.cursor_at.is_some() && began.is_none_or(|at| at >= oldest)
            }
        }
    }
}

/// Whether a run was known when the newest complete round ended, after `rounds` of them.
pub(super) fn is_settled(noted: Option<&NotedRun>, rounds: u64) -> bool {
    noted.is_some_and(|noted| noted.round <= rounds)
}
