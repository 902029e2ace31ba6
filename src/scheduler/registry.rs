//! The active watches: what is known of each, and when it is polled next. There may be a million of
//! them, so an entry is small.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::WatchView;
use crate::domain::{Labels, Progress, RunRef, SinkName, Watch};
use crate::failpoint::mutant;
use crate::store::{PollFailure, WatchId};

/// The longest time from its deadline to the end of a watch, in which it waits for its last poll.
pub(super) const LAST_POLL_LIMIT: Duration = Duration::from_secs(5);

/// The number of an entry. It grows, so that entries with equal due times are polled in the order in
/// which they were added.
pub(super) type Key = u64;

/// What a watch is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Polling,
    Storing,
}

/// An active watch.
pub(super) struct Entry {
    /// Its number in the store, which distinguishes it from other watches of the same run.
    pub(super) id: WatchId,
    pub(super) run_id: RunRef,
    pub(super) added_at: Timestamp,
    pub(super) deadline_at: Timestamp,
    /// Boxed, as few have any.
    extras: Option<Box<Extras>>,
    pub(super) progress: Progress,
    pub(super) phase: Phase,
    pub(super) interval: Option<Duration>,
    /// When it is polled next. Set by [`Registry::queue`].
    pub(super) due: Instant,
    /// Set by [`Registry::set_deadline`].
    pub(super) deadline: Instant,
    /// The latest time at which it ends, whatever it waits for; `None` until its deadline has come.
    /// Set by [`Registry::set_end`].
    pub(super) ends_at: Option<Instant>,
    /// When its status last changed, or when it was loaded.
    pub(super) changed_at: Instant,
    /// When it was last polled, and when a poll of it was last answered, including by 404.
    pub(super) polled_at: Option<Instant>,
    pub(super) answered_at: Option<Instant>,
    /// A wake-up from its stream is pending, or caused the poll under way.
    pub(super) hinted: bool,
    pub(super) polled_on_hint: bool,
    /// The run was observed after the deadline. That decides, even if the store rejected the step.
    pub(super) seen_past_deadline: bool,
    /// How often its interval started again because its status changed.
    pub(super) fresh_starts: u8,
    /// The API rejected the last poll of this watch.
    pub(super) refused: bool,
    /// Boxed, as few have one.
    pub(super) last_error: Option<Box<PollFailure>>,
}

/// Fields that most watches do not have.
struct Extras {
    name: Option<String>,
    labels: Labels,
    sinks: Option<Vec<SinkName>>,
}

impl Entry {
    /// Returns an entry that waits until `due`; the status of its run changed at `changed_at`.
    pub(super) fn new(
        (id, watch): (WatchId, Watch),
        progress: Progress,
        due: Instant,
        deadline: Instant,
        changed_at: Instant,
    ) -> Self {
        let Watch {
            run_id,
            name,
            labels,
            sinks,
            added_at,
            deadline_at,
        } = watch;
        let plain = name.is_none() && labels.is_empty() && sinks.is_none();
        Self {
            id,
            run_id,
            added_at,
            deadline_at,
            extras: (!plain).then(|| {
                Box::new(Extras {
                    name,
                    labels,
                    sinks,
                })
            }),
            progress,
            phase: Phase::Waiting,
            interval: None,
            due,
            deadline,
            ends_at: None,
            changed_at,
            polled_at: None,
            answered_at: None,
            hinted: false,
            polled_on_hint: false,
            seen_past_deadline: false,
            fresh_starts: 0,
            refused: false,
            last_error: None,
        }
    }

    /// The watch.
    pub(super) fn watch(&self) -> Watch {
        let extras = self.extras.as_deref();
        Watch {
            run_id: self.run_id.clone(),
            name: extras.and_then(|extras| extras.name.clone()),
            labels: extras
                .map(|extras| extras.labels.clone())
                .unwrap_or_default(),
            sinks: extras.and_then(|extras| extras.sinks.clone()),
            added_at: self.added_at,
            deadline_at: self.deadline_at,
        }
    }

    /// Whether it has more time than usual for its last poll, because its deadline passed while
    /// nothing could be polled.
    pub(super) fn is_patient(&self) -> bool {
        self.ends_at
            .is_some_and(|ends_at| ends_at > self.deadline + LAST_POLL_LIMIT)
    }

    /// Whether its last poll was answered so shortly before the deadline that no other was due.
    pub(super) fn stands(&self) -> bool {
        let until = self
            .answered_at
            .map(|answered_at| answered_at + self.interval.unwrap_or_default());
        until.is_some_and(|until| until >= self.deadline)
    }

    /// Returns how much of the time since the previous answer counts as time in which polls were
    /// made, for a poll that began at `began` and is answered at `now`: nothing if it went out more
    /// than two intervals after that answer; otherwise that wait, plus the time that the answer took,
    /// up to one interval because the process may have been stopped in the meantime.
    pub(super) fn counted(&self, began: Instant, now: Instant) -> Duration {
        let (Some(before), Some(interval)) = (self.answered_at, self.interval) else {
            return Duration::ZERO;
        };
        let waited = began.saturating_duration_since(before);
        if mutant("grace-counts-sleep") {
            return now.duration_since(before);
        }
        if waited > interval * 2 {
            Duration::ZERO
        } else {
            waited + now.duration_since(began).min(interval)
        }
    }

    /// Moves all times before a sleep back by its length, because the clock of timers stood still.
    pub(super) fn slept(&mut self, slept: Duration) {
        let times = [
            Some(&mut self.changed_at),
            self.polled_at.as_mut(),
            self.answered_at.as_mut(),
        ];
        for at in times.into_iter().flatten() {
            *at = at.checked_sub(slept).unwrap_or(*at);
        }
    }

    pub(super) fn view(&self, now: Instant, wall: Timestamp) -> WatchView {
        let wait = self.due.saturating_duration_since(now);
        WatchView {
            run_id: self.run_id.clone(),
            status: self.progress.status.clone(),
            polls: self.progress.polls,
            missing_since: self.progress.missing_since,
            polling: self.phase == Phase::Polling,
            next_poll_at: wall.checked_add(wait).unwrap_or(Timestamp::MAX),
            last_error: self.last_error.as_deref().cloned(),
        }
    }
}

/// All entries, and the order in which the waiting ones are polled.
pub(super) struct Registry {
    /// Boxed, because a hash table reserves twice the space that it needs.
    entries: HashMap<Key, Box<Entry>>,
    next_key: Key,
    /// The entries by the hash of their run ID, so that a run is found without a second copy of its
    /// ID.
    runs: BTreeSet<(u64, Key)>,
    hasher: RandomState,
    turns: Turns,
    deadlines: Times,
    /// The latest end times of those whose deadline has come.
    ends: Times,
}

/// The due times of those that wait.
struct Turns {
    due: Times,
    /// Those whose deadline has come; those with more time than usual are separate, because what they
    /// wait for must not delay the end of the others.
    last: Times,
    patient: Times,
}

impl Turns {
    /// Returns the set to which an entry belongs.
    fn of(&mut self, entry: &Entry) -> &mut Times {
        match entry.ends_at {
            None => &mut self.due,
            Some(_) if entry.is_patient() => &mut self.patient,
            Some(_) => &mut self.last,
        }
    }
}

impl Registry {
    /// Returns an empty registry. Times before `origin` count as `origin`.
    pub(super) fn new(origin: Instant) -> Self {
        Self {
            entries: HashMap::new(),
            next_key: 0,
            runs: BTreeSet::new(),
            hasher: RandomState::new(),
            turns: Turns {
                due: Times::new(origin),
                last: Times::new(origin),
                patient: Times::new(origin),
            },
            deadlines: Times::new(origin),
            ends: Times::new(origin),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a watch that waits.
    pub(super) fn insert(&mut self, entry: Entry) {
        let key = self.next_key;
        self.runs.insert((self.hasher.hash_one(&entry.run_id), key));
        self.turns.due.insert(entry.due, key);
        self.deadlines.insert(entry.deadline, key);
        self.load(entry);
    }

    /// Adds a watch that waits, without an order until [`Registry::put_in_order`].
    pub(super) fn load(&mut self, entry: Entry) {
        self.entries.insert(self.next_key, Box::new(entry));
        self.next_key += 1;
    }

    /// Orders all loaded watches, before the first is polled: doing so at once is faster and takes
    /// half the memory.
    pub(super) fn put_in_order(&mut self) {
        let entries = || {
            self.entries
                .iter()
                .map(|(key, entry)| (*key, entry.as_ref()))
        };
        self.runs = entries()
            .map(|(key, entry)| (self.hasher.hash_one(&entry.run_id), key))
            .collect();
        self.turns
            .due
            .replace(entries().map(|(key, entry)| (entry.due, key)));
        self.deadlines
            .replace(entries().map(|(key, entry)| (entry.deadline, key)));
    }

    /// Returns how many were ever added.
    pub(super) fn ever(&self) -> u64 {
        self.next_key
    }

    pub(super) fn get(&self, key: Key) -> Option<&Entry> {
        self.entries.get(&key).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(&key).map(Box::as_mut)
    }

    pub(super) fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.runs
                .remove(&(self.hasher.hash_one(&entry.run_id), key));
            self.turns.of(&entry).remove(entry.due, key);
            match entry.ends_at {
                None => self.deadlines.remove(entry.deadline, key),
                Some(ends_at) => self.ends.remove(ends_at, key),
            };
        }
    }

    /// Returns all keys, in the order in which they were added.
    pub(super) fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<_> = self.entries.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// Returns the keys of the watches of a run, in the order in which they were added: one, or two
    /// while one is being removed.
    pub(super) fn keys_of(&self, run_id: &RunRef) -> Vec<Key> {
        let hash = self.hasher.hash_one(run_id);
        let same_hash = self
            .runs
            .range((hash, Key::MIN)..=(hash, Key::MAX))
            .map(|&(_, key)| key);
        same_hash
            .filter(|key| self.entries[key].run_id == *run_id)
            .collect()
    }

    /// Returns the next due watch whose deadline has not come.
    pub(super) fn first_due(&self) -> Option<(Instant, Key)> {
        self.turns.due.first()
    }

    /// Returns the next due watch whose deadline has come.
    pub(super) fn first_last_due(&self) -> Option<(Instant, Key)> {
        let [last, patient] = self.first_turns_after_deadline();
        // Of two that are due together, the one with less time is first.
        last.into_iter().chain(patient).min_by_key(|(due, _)| *due)
    }

    /// Returns the next due watches whose deadline has come: with the usual time, and with more.
    pub(super) fn first_turns_after_deadline(&self) -> [Option<(Instant, Key)>; 2] {
        [self.turns.last.first(), self.turns.patient.first()]
    }

    /// Sets when a watch is due, and makes it wait.
    pub(super) fn queue(&mut self, key: Key, due: Instant) {
        let entry = self
            .entries
            .get_mut(&key)
            .expect("the caller holds a key of an entry");
        let turns = self.turns.of(entry);
        turns.remove(entry.due, key);
        entry.due = due;
        turns.insert(due, key);
    }

    /// Removes a watch from those that wait, until [`Registry::queue`].
    pub(super) fn unqueue(&mut self, key: Key) -> &mut Entry {
        let entry = self
            .entries
            .get_mut(&key)
            .expect("the caller holds a key of an entry");
        self.turns.of(entry).remove(entry.due, key);
        entry
    }

    /// Returns when a deadline next requires an action: it comes, or the time after one is over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let firsts = self.deadlines.first().into_iter().chain(self.ends.first());
        firsts.map(|(at, _)| at).min()
    }

    /// Moves a deadline that has not come.
    pub(super) fn set_deadline(&mut self, key: Key, deadline: Instant) {
        let entry = self
            .entries
            .get_mut(&key)
            .expect("the caller holds a key of an entry");
        self.deadlines.remove(entry.deadline, key);
        entry.deadline = deadline;
        self.deadlines.insert(deadline, key);
    }

    /// Sets the latest end time of a watch whose deadline has come.
    pub(super) fn set_end(&mut self, key: Key, ends_at: Instant) {
        let entry = self
            .entries
            .get_mut(&key)
            .expect("the caller holds a key of an entry");
        let waits = self.turns.of(entry).remove(entry.due, key);
        match entry.ends_at.replace(ends_at) {
            Some(before) => {
                self.ends.remove(before, key);
            }
            None => {
                self.deadlines.remove(entry.deadline, key);
                entry.due = if waits {
                    entry.due.min(entry.deadline)
                } else {
                    entry.due
                };
            }
        }
        if waits {
            self.turns.of(entry).insert(entry.due, key);
        }
        self.ends.insert(ends_at, key);
    }

    /// Gives a last poll to each watch whose deadline is not after `now`, the earliest deadline
    /// first.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((deadline, key)) = self
            .deadlines
            .first()
            .filter(|&(deadline, _)| deadline <= now)
        {
            self.deadlines.remove(deadline, key);
            let wait = if mutant("deadline-waits") {
                Duration::from_secs(3600)
            } else {
                LAST_POLL_LIMIT
            };
            self.set_end(key, deadline + wait);
        }
    }

    /// Moves watches whose time is over at `now` to the front, so that they end.
    pub(super) fn overtime(&mut self, now: Instant) {
        while let Some((ends_at, key)) = self.ends.first().filter(|&(ends_at, _)| ends_at <= now) {
            self.ends.remove(ends_at, key);
            let entry = self
                .entries
                .get_mut(&key)
                .expect("what is removed has no time");
            let turns = self.turns.of(entry);
            if turns.remove(entry.due, key) {
                entry.due = turns.origin;
                turns.insert(entry.due, key);
            }
        }
    }
}

/// Keys in the order of their times.
struct Times {
    origin: Instant,
    /// Nanoseconds after `origin`, which are half as large as an [`Instant`] and suffice for 584
    /// years.
    order: BTreeSet<(u64, Key)>,
}

impl Times {
    fn new(origin: Instant) -> Self {
        Self {
            origin,
            order: BTreeSet::new(),
        }
    }

    fn place(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    fn replace(&mut self, all: impl Iterator<Item = (Instant, Key)>) {
        self.order = all.map(|(at, key)| (self.place(at), key)).collect();
    }

    fn insert(&mut self, at: Instant, key: Key) {
        self.order.insert((self.place(at), key));
    }

    /// Returns whether it was there.
    fn remove(&mut self, at: Instant, key: Key) -> bool {
        self.order.remove(&(self.place(at), key))
    }

    fn first(&self) -> Option<(Instant, Key)> {
        let &(nanoseconds, key) = self.order.first()?;
        Some((self.origin + Duration::from_nanos(nanoseconds), key))
    }
}
