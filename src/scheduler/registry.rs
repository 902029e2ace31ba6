//! The watches that are followed: what is known of each, and when its turn comes. There may be a million,
//! so what every one of them has is kept small.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::WatchView;
use crate::domain::{Labels, Progress, RunId, SinkName, Watch};
use crate::failpoint::mutant;
use crate::store::{PollFailure, WatchId};

/// How long after its deadline a watch ends at the latest: until then it waits for its last poll.
pub(super) const LAST_POLL_LIMIT: Duration = Duration::from_secs(5);

/// Number of an entry: grows, so that equal due times are served in the order of adding.
pub(super) type Key = u64;

/// What a watch is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Polling,
    Storing,
}

/// A watch that is followed.
pub(super) struct Entry {
    /// Its number in the store, which tells it from other watches of the same run.
    pub(super) id: WatchId,
    pub(super) run_id: RunId,
    pub(super) added_at: Timestamp,
    pub(super) deadline_at: Timestamp,
    /// Boxed, as few have any.
    extras: Option<Box<Extras>>,
    pub(super) progress: Progress,
    pub(super) phase: Phase,
    pub(super) interval: Option<Duration>,
    /// When it is polled next. Set by [`Table::queue`].
    pub(super) due: Instant,
    /// Set by [`Table::set_deadline`].
    pub(super) deadline: Instant,
    /// When it ends at the latest, whatever it waits for; `None` until its deadline has come. Set by
    /// [`Table::set_end`].
    pub(super) ends_at: Option<Instant>,
    /// When its status last changed, or it was taken up.
    pub(super) changed_at: Instant,
    /// When it was last polled, and when a poll of it was last answered, be it by 404.
    pub(super) polled_at: Option<Instant>,
    pub(super) answered_at: Option<Instant>,
    /// It is to be asked for because of what its stream said, or is being asked for because of that.
    pub(super) hinted: bool,
    pub(super) polled_on_hint: bool,
    /// How often its interval started again because its status changed.
    pub(super) fresh_starts: u8,
    /// The API refused this watch's last poll.
    pub(super) refused: bool,
    /// Boxed, as few have one.
    pub(super) last_error: Option<Box<PollFailure>>,
}

/// What most watches do not have.
struct Extras {
    name: Option<String>,
    labels: Labels,
    sinks: Option<Vec<SinkName>>,
}

impl Entry {
    /// One that waits until `due` since the status of its run changed.
    pub(super) fn new(
        (id, watch): (WatchId, Watch),
        progress: Progress,
        due: Instant,
        deadline: Instant,
        changed_at: Instant,
    ) -> Self {
        let Watch { run_id, name, labels, sinks, added_at, deadline_at } = watch;
        let plain = name.is_none() && labels.is_empty() && sinks.is_none();
        Self {
            id,
            run_id,
            added_at,
            deadline_at,
            extras: (!plain).then(|| Box::new(Extras { name, labels, sinks })),
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
            labels: extras.map(|extras| extras.labels.clone()).unwrap_or_default(),
            sinks: extras.and_then(|extras| extras.sinks.clone()),
            added_at: self.added_at,
            deadline_at: self.deadline_at,
        }
    }

    /// Whether it has more time than the usual for its last poll: its deadline passed while nothing could be polled.
    pub(super) fn is_patient(&self) -> bool {
        self.ends_at.is_some_and(|ends_at| ends_at > self.deadline + LAST_POLL_LIMIT)
    }

    /// Whether its last poll was answered so shortly before the deadline that no other was due until then.
    pub(super) fn stands(&self) -> bool {
        let until = self.answered_at.map(|answered_at| answered_at + self.interval.unwrap_or_default());
        until.is_some_and(|until| until >= self.deadline)
    }

    /// How much of the time since the answer before counts as time in which polls were made, now that a poll that
    /// began at `began` is answered at `now`: nothing, when it went out more than two intervals after that answer;
    /// otherwise that wait, and of the time that the answer took one interval at the most, as the process may have
    /// been stopped meanwhile.
    pub(super) fn counted(&self, began: Instant, now: Instant) -> Duration {
        let (Some(before), Some(interval)) = (self.answered_at, self.interval) else { return Duration::ZERO };
        let waited = began.saturating_duration_since(before);
        if mutant("grace-counts-sleep") {
            return now.duration_since(before);
        }
        if waited > interval * 2 { Duration::ZERO } else { waited + now.duration_since(began).min(interval) }
    }

    /// Moves what happened before a sleep back by its length, on a clock that stood still meanwhile.
    pub(super) fn slept(&mut self, slept: Duration) {
        let times = [Some(&mut self.changed_at), self.polled_at.as_mut(), self.answered_at.as_mut()];
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

/// The entries, those that wait in the order of their turns.
pub(super) struct Table {
    /// Boxed, because a hash table has twice the room that it needs.
    entries: HashMap<Key, Box<Entry>>,
    next_key: Key,
    /// The entries by the hash of their run's ID: that of a run is found without a second copy of its ID.
    runs: BTreeSet<(u64, Key)>,
    hasher: RandomState,
    turns: Turns,
    deadlines: Times,
    /// When those whose deadline has come end at the latest.
    ends: Times,
}

/// The turns of those that wait.
struct Turns {
    due: Times,
    /// Those whose deadline has come, apart for those that have more time than the usual: what one of these waits for
    /// must not hold up the end of the others.
    last: Times,
    patient: Times,
}

impl Turns {
    /// The turns among which that of an entry is.
    fn of(&mut self, entry: &Entry) -> &mut Times {
        match entry.ends_at {
            None => &mut self.due,
            Some(_) if entry.is_patient() => &mut self.patient,
            Some(_) => &mut self.last,
        }
    }
}

impl Table {
    /// An empty one. Times are told apart from `origin` on; earlier ones count as `origin`.
    pub(super) fn new(origin: Instant) -> Self {
        Self {
            entries: HashMap::new(),
            next_key: 0,
            runs: BTreeSet::new(),
            hasher: RandomState::new(),
            turns: Turns { due: Times::new(origin), last: Times::new(origin), patient: Times::new(origin) },
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

    /// Takes in a watch that waits.
    pub(super) fn insert(&mut self, entry: Entry) {
        let key = self.next_key;
        self.runs.insert((self.hasher.hash_one(&entry.run_id), key));
        self.turns.due.insert(entry.due, key);
        self.deadlines.insert(entry.deadline, key);
        self.load(entry);
    }

    /// Takes in a watch that waits; until [`Table::put_in_order`] nobody finds it.
    pub(super) fn load(&mut self, entry: Entry) {
        self.entries.insert(self.next_key, Box::new(entry));
        self.next_key += 1;
    }

    /// Puts all in order that wait, as all do before the first has its turn: at once that is quicker, and takes half
    /// the memory, than one after the other.
    pub(super) fn put_in_order(&mut self) {
        let entries = || self.entries.iter().map(|(key, entry)| (*key, entry.as_ref()));
        self.runs = entries().map(|(key, entry)| (self.hasher.hash_one(&entry.run_id), key)).collect();
        self.turns.due.replace(entries().map(|(key, entry)| (entry.due, key)));
        self.deadlines.replace(entries().map(|(key, entry)| (entry.deadline, key)));
    }

    /// How many were ever taken in.
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
            self.runs.remove(&(self.hasher.hash_one(&entry.run_id), key));
            self.turns.of(&entry).remove(entry.due, key);
            match entry.ends_at {
                None => self.deadlines.remove(entry.deadline, key),
                Some(ends_at) => self.ends.remove(ends_at, key),
            };
        }
    }

    /// The keys of all, in the order of adding.
    pub(super) fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<_> = self.entries.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// The keys of those that watch a run, in the order of adding: one, or two while one is being removed.
    pub(super) fn keys_of(&self, run_id: &RunId) -> Vec<Key> {
        let hash = self.hasher.hash_one(run_id);
        let same_hash = self.runs.range((hash, Key::MIN)..=(hash, Key::MAX)).map(|&(_, key)| key);
        same_hash.filter(|key| self.entries[key].run_id == *run_id).collect()
    }

    /// Whose turn is next among those whose deadline has not come, and when.
    pub(super) fn first_due(&self) -> Option<(Instant, Key)> {
        self.turns.due.first()
    }

    /// Whose turn is next among those whose deadline has come, and when.
    pub(super) fn first_last_due(&self) -> Option<(Instant, Key)> {
        let [last, patient] = self.first_turns_after_deadline();
        // Of two that are due together, the one with less time goes first.
        last.into_iter().chain(patient).min_by_key(|(due, _)| *due)
    }

    /// Whose turn is next among those whose deadline has come: with the usual time, and with more.
    pub(super) fn first_turns_after_deadline(&self) -> [Option<(Instant, Key)>; 2] {
        [self.turns.last.first(), self.turns.patient.first()]
    }

    /// Sets when the turn of one that waits comes.
    pub(super) fn queue(&mut self, key: Key, due: Instant) {
        let entry = self.entries.get_mut(&key).expect("the caller holds a key of an entry");
        let turns = self.turns.of(entry);
        turns.remove(entry.due, key);
        entry.due = due;
        turns.insert(due, key);
    }

    /// Takes one out of those that wait, until [`Table::queue`].
    pub(super) fn unqueue(&mut self, key: Key) -> &mut Entry {
        let entry = self.entries.get_mut(&key).expect("the caller holds a key of an entry");
        self.turns.of(entry).remove(entry.due, key);
        entry
    }

    /// When something is to be done because of a deadline: the next one comes, or the time after one is over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let firsts = self.deadlines.first().into_iter().chain(self.ends.first());
        firsts.map(|(at, _)| at).min()
    }

    /// Moves the deadline of one whose deadline has not come.
    pub(super) fn set_deadline(&mut self, key: Key, deadline: Instant) {
        let entry = self.entries.get_mut(&key).expect("the caller holds a key of an entry");
        self.deadlines.remove(entry.deadline, key);
        entry.deadline = deadline;
        self.deadlines.insert(deadline, key);
    }

    /// Sets when one ends at the latest: its deadline has come.
    pub(super) fn set_end(&mut self, key: Key, ends_at: Instant) {
        let entry = self.entries.get_mut(&key).expect("the caller holds a key of an entry");
        let waits = self.turns.of(entry).remove(entry.due, key);
        match entry.ends_at.replace(ends_at) {
            Some(before) => {
                self.ends.remove(before, key);
            }
            None => {
                self.deadlines.remove(entry.deadline, key);
                entry.due = if waits { entry.due.min(entry.deadline) } else { entry.due };
            }
        }
        if waits {
            self.turns.of(entry).insert(entry.due, key);
        }
        self.ends.insert(ends_at, key);
    }

    /// Takes note that the deadline has come of those whose deadline is not after `now`: each has a last poll, before
    /// those whose deadline came later.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((deadline, key)) = self.deadlines.first().filter(|&(deadline, _)| deadline <= now) {
            self.deadlines.remove(deadline, key);
            let wait = if mutant("deadline-waits") { Duration::from_secs(3600) } else { LAST_POLL_LIMIT };
            self.set_end(key, deadline + wait);
        }
    }

    /// Brings those that wait although their time is over at `now` to the front, for their end.
    pub(super) fn overtime(&mut self, now: Instant) {
        while let Some((ends_at, key)) = self.ends.first().filter(|&(ends_at, _)| ends_at <= now) {
            self.ends.remove(ends_at, key);
            let entry = self.entries.get_mut(&key).expect("what is removed has no time");
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
    /// Nanoseconds after `origin`, which are half as large as an [`Instant`] and last for 584 years.
    order: BTreeSet<(u64, Key)>,
}

impl Times {
    fn new(origin: Instant) -> Self {
        Self { origin, order: BTreeSet::new() }
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
