//! The watches that are followed: what is known of each, and when its turn comes. There may be a million,
//! so what every one of them has is kept small.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::WatchView;
use crate::run::{Labels, Progress, RunId, SinkName, Watch};
use crate::store::{PollFailure, WatchId};

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
    /// When it is asked for next. Set by [`Table::queue`].
    pub(super) due: Instant,
    /// Set by [`Table::set_deadline`].
    pub(super) deadline: Instant,
    /// When its status last changed, or it was taken up.
    pub(super) changed_at: Instant,
    /// When it was last asked for.
    pub(super) polled_at: Option<Instant>,
    /// It is to be asked for because of what its stream said, or is being asked for because of that.
    pub(super) hinted: bool,
    pub(super) asked_on_hint: bool,
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
            changed_at,
            polled_at: None,
            hinted: false,
            asked_on_hint: false,
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
    due: Times,
    deadlines: Times,
    /// Those whose deadline has come and that have no verdict yet.
    expired: BTreeSet<Key>,
}

impl Table {
    /// An empty one. Times are told apart from `origin` on; earlier ones count as `origin`.
    pub(super) fn new(origin: Instant) -> Self {
        Self {
            entries: HashMap::new(),
            next_key: 0,
            runs: BTreeSet::new(),
            hasher: RandomState::new(),
            due: Times::new(origin),
            deadlines: Times::new(origin),
            expired: BTreeSet::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes in a watch that waits.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.runs.insert((self.hasher.hash_one(&entry.run_id), self.next_key));
        self.due.insert(entry.due, self.next_key);
        self.deadlines.insert(entry.deadline, self.next_key);
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
        self.due.replace(entries().map(|(key, entry)| (entry.due, key)));
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
            self.due.remove(entry.due, key);
            self.deadlines.remove(entry.deadline, key);
            self.expired.remove(&key);
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

    /// Whose turn is next, and when.
    pub(super) fn first_due(&self) -> Option<(Instant, Key)> {
        self.due.first()
    }

    /// Sets when the turn of one that waits comes.
    pub(super) fn queue(&mut self, key: Key, due: Instant) {
        let entry = self.entries.get_mut(&key).expect("the caller holds a key of an entry");
        self.due.remove(entry.due, key);
        entry.due = due;
        self.due.insert(due, key);
    }

    /// Takes one out of those that wait, until [`Table::queue`].
    pub(super) fn unqueue(&mut self, key: Key) -> &mut Entry {
        let entry = self.entries.get_mut(&key).expect("the caller holds a key of an entry");
        self.due.remove(entry.due, key);
        entry
    }

    /// Whose deadline comes next, and when.
    pub(super) fn first_deadline(&self) -> Option<(Instant, Key)> {
        self.deadlines.first()
    }

    pub(super) fn set_deadline(&mut self, key: Key, deadline: Instant) {
        let entry = self.entries.get_mut(&key).expect("the caller holds a key of an entry");
        self.deadlines.remove(entry.deadline, key);
        entry.deadline = deadline;
        self.deadlines.insert(deadline, key);
    }

    /// Takes note that the deadline has come of those whose deadline is not after `now`. Returns them.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Key> {
        let mut expired = Vec::new();
        while let Some((deadline, key)) = self.deadlines.first().filter(|&(deadline, _)| deadline <= now) {
            self.deadlines.remove(deadline, key);
            self.expired.insert(key);
            expired.push(key);
        }
        expired
    }

    /// Those whose deadline has come and that have no verdict yet.
    pub(super) fn expired(&self) -> impl Iterator<Item = (Key, &Entry)> {
        self.expired.iter().filter_map(|key| Some((*key, self.get(*key)?)))
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

    fn remove(&mut self, at: Instant, key: Key) {
        self.order.remove(&(self.place(at), key));
    }

    fn first(&self) -> Option<(Instant, Key)> {
        let &(nanoseconds, key) = self.order.first()?;
        Some((self.origin + Duration::from_nanos(nanoseconds), key))
    }
}
