//! What follows from one entry of a list. Pure: no I/O, no clock.

use jiff::{SignedDuration, Timestamp};

use crate::domain::Verdict;
use crate::failpoint::mutant;
use crate::providers::ListEntry;
use crate::store::{KnownRun, NotedRun, RunNote};

/// How far lists lag behind at most, and for how long they fail to show a run, as pages shift while they are read.
pub(super) const LONGEST_LAG: SignedDuration = SignedDuration::from_mins(10);

/// How long before what is settled the end of an unknown run may lie for it to count. An older one was
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
    /// What began before is settled; `None` in the first round.
    pub(super) settled_at: Option<Timestamp>,
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
    // The end of a run that is or was watched is noted as one since the discovery began, that of any other as one before:
    // that tells them apart when the watch is no longer in the store.
    let end_since_began = listed_end.map(|at| at.max(moment.began_at));
    let end_before = listed_end.map(|at| at.min(moment.before_beginning()));
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
    let is_unknown = known.watch.is_none() && (known.noted.is_none() || mutant("discovered-twice"));
    let is_missed = !has_ended && moment.passed_over(known);
    if active.is_none() && (is_unknown || is_next || is_missed) {
        let is_news = !has_ended || moment.is_new_end(entry);
        return if is_news {
            Decision::Watch {
                note: note(end_since_began),
                again: is_next,
            }
        } else {
            Decision::Note(note(end_before))
        };
    }
    let Some(noted) = &known.noted else {
        return Decision::Note(note(end_since_began));
    };
    let ends = has_ended && noted.ended_at.is_none();
    let grows = attempt > noted.attempt;
    if ends || grows || moment.now.duration_since(noted.seen_at) >= SEEN_PERIOD {
        // A list that lags behind does not take an end back.
        let end_of_same = noted.ended_at.filter(|_| !grows);
        return Decision::Note(note(end_of_same.or(end_since_began)));
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
    /// The last moment before the discovery began.
    fn before_beginning(&self) -> Timestamp {
        let before = self.began_at.checked_sub(SignedDuration::from_millis(1));
        before.unwrap_or(Timestamp::MIN)
    }

    /// Whether a run was noted and not watched because its end was an old one, so long ago that no list lags that far
    /// behind. If it is listed as going on now, that end was none.
    fn passed_over(&self, known: &KnownRun) -> bool {
        known.watch.is_none()
            && known.noted.as_ref().is_some_and(|noted| {
                noted.ended_at.is_some_and(|at| at < self.began_at)
                    && self.now.duration_since(noted.seen_at) >= LONGEST_LAG
            })
    }

    /// Whether an end is one since the discovery began. What had ended when it first looked is none, whatever the
    /// clock of the provider shows.
    fn is_new_end(&self, entry: &ListEntry) -> bool {
        if mutant("old-ends-are-news") {
            return true;
        }
        let is_first_look =
            self.cursor_at.is_none() && self.now.duration_since(self.began_at) <= LONGEST_LAG;
        if is_first_look {
            return false;
        }
        let oldest = self
            .settled_at
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::{RunRef, RunState, Status};
    use crate::store::KnownWatch;

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    /// A discovery that began at 0, at this time, after a complete round.
    fn moment(now: i64) -> Moment {
        Moment {
            began_at: time(0),
            cursor_at: Some(time(now - 60)),
            settled_at: Some(time(now - 660)),
            now: time(now),
        }
    }

    fn entry(state: RunState, attempt: u64) -> ListEntry {
        ListEntry {
            run_id: RunRef::new("github:acme/site/1").unwrap(),
            status: Status::from(state),
            attempt: Some(attempt),
            name: None,
            group: None,
            url: None,
            created_at: Some(time(-100)),
            started_at: Some(time(-100)),
            completed_at: None,
            values: BTreeMap::new(),
        }
    }

    /// What is known after a note at this time, in the first round.
    fn noted(note: &RunNote, seen_at: i64, watch: Option<KnownWatch>) -> KnownRun {
        let noted = NotedRun {
            attempt: note.attempt,
            ended_at: note.ended_at,
            round: 1,
            seen_at: time(seen_at),
        };
        KnownRun {
            noted: Some(noted),
            watch,
        }
    }

    fn note_of(decision: Decision) -> RunNote {
        match decision {
            Decision::Note(note) => note,
            other => panic!("the run is not noted alone: {other:?}"),
        }
    }

    #[test]
    fn a_run_that_a_list_falsely_showed_as_ended_is_watched_once_no_list_lags_that_far_behind() {
        let first = Moment {
            cursor_at: None,
            settled_at: None,
            ..moment(5)
        };
        for completed_at in [None, Some(time(-50)), Some(time(3))] {
            let ended = ListEntry {
                completed_at,
                ..entry(RunState::Failed, 1)
            };
            let note = note_of(decide(&ended, &KnownRun::default(), &first));
            let known = noted(&note, 5, None);
            let going = entry(RunState::Running, 1);
            assert_eq!(decide(&going, &known, &moment(500)), Decision::Nothing);
            let later = decide(&going, &known, &moment(700));
            let Decision::Watch { note, again: false } = later else {
                panic!("{later:?}");
            };
            assert_eq!(note.ended_at, None);
            // One that has really ended stays as it is.
            assert_eq!(decide(&ended, &known, &moment(700)), Decision::Nothing);
        }
    }

    #[test]
    fn a_run_whose_watch_is_gone_is_not_watched_again_whatever_a_list_shows() {
        for completed_at in [None, Some(time(-50)), Some(time(300))] {
            let ended = ListEntry {
                completed_at,
                ..entry(RunState::Failed, 1)
            };
            let watch = KnownWatch {
                is_active: false,
                attempt: Some(1),
                ended_at: completed_at,
            };
            // It was watched before it was listed, or noted as going on.
            let unknown = KnownRun {
                noted: None,
                watch: Some(watch),
            };
            let going = RunNote {
                run_id: ended.run_id.clone(),
                attempt: Some(1),
                ended_at: None,
            };
            for known in [unknown, noted(&going, 100, None)] {
                let note = note_of(decide(&ended, &known, &moment(400)));
                let known = noted(&note, 400, None);
                let going = entry(RunState::Running, 1);
                assert_eq!(decide(&going, &known, &moment(1_900)), Decision::Nothing);
            }
        }
    }

    #[test]
    fn an_attempt_that_an_active_watch_observed_is_noted_at_once() {
        let going = RunNote {
            run_id: entry(RunState::Running, 1).run_id,
            attempt: Some(1),
            ended_at: None,
        };
        let watch = |attempt| KnownWatch {
            is_active: true,
            attempt: Some(attempt),
            ended_at: None,
        };
        let second = entry(RunState::Running, 2);
        let unobserved = noted(&going, 100, Some(watch(1)));
        assert_eq!(
            decide(&second, &unobserved, &moment(400)),
            Decision::Nothing
        );
        let observed = noted(&going, 100, Some(watch(2)));
        let note = note_of(decide(&second, &observed, &moment(400)));
        assert_eq!(note.attempt, Some(2));
        // So it is not watched again when its watch is removed.
        let removed = noted(&note, 400, None);
        assert_eq!(decide(&second, &removed, &moment(500)), Decision::Nothing);
    }
}
