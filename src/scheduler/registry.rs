//! The active watches: what is known of each, and when it is polled next. There may be a million of
//! them, so an entry is small.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::WatchView;
use super::lists::ListMark;
use crate::domain::{Labels, Progress, RunRef, SinkName, TraceContext, Watch};
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
pub(super) struct WatchEntry {
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
    /// Where a list shows its run. Boxed, as most APIs have none.
    pub(super) listed: Option<Box<ListMark>>,
}

/// Fields that most watches do not have.
struct Extras {
    name: Option<String>,
    labels: Labels,
    sinks: Option<Vec<SinkName>>,
    trace: Option<TraceContext>,
}

impl WatchEntry {
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
            trace,
        } = watch;
        let plain = name.is_none() && labels.is_empty() && sinks.is_none() && trace.is_none();
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
                    trace,
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
            listed: None,
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
            trace: extras.and_then(|extras| extras.trace.clone()),
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

    /// Whether a list showed since a time that its run goes on.
    pub(super) fn goes_on_since(&self, at: Timestamp) -> bool {
        let listed = self.listed.as_ref();
        listed.is_some_and(|mark| mark.is_going_since(at))
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
            expected: self.progress.expected(),
            polling: self.phase == Phase::Polling,
            next_poll_at: wall.checked_add(wait).unwrap_or(Timestamp::MAX),
            last_error: self.last_error.as_deref().cloned(),
        }
    }
}

/// All entries, and the order in which the waiting ones are polled.
pub(super) struct Registry {
    /// Boxed, because a hash table reserves twice the space that it needs.
    entries: HashMap<Key, Box<WatchEntry>>,
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
    fn of(&mut self, entry: &WatchEntry) -> &mut Times {
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
    pub(super) fn insert(&mut self, entry: WatchEntry) -> Key {
        let key = self.next_key;
        self.runs.insert((self.hasher.hash_one(&entry.run_id), key));
        self.turns.due.insert(entry.due, key);
        self.deadlines.insert(entry.deadline, key);
        self.load(entry)
    }

    /// Adds a watch that waits, without an order until [`Registry::put_in_order`].
    pub(super) fn load(&mut self, entry: WatchEntry) -> Key {
        let key = self.next_key;
        self.entries.insert(key, Box::new(entry));
        self.next_key += 1;
        key
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

    pub(super) fn get(&self, key: Key) -> Option<&WatchEntry> {
        self.entries.get(&key).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut WatchEntry> {
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

    /// Returns the watches that are due by `until` and whose deadline has not come, in their order.
    pub(super) fn due_until(&self, until: Instant) -> impl Iterator<Item = Key> {
        self.turns.due.until(until)
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
    pub(super) fn unqueue(&mut self, key: Key) -> &mut WatchEntry {
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

    fn until(&self, at: Instant) -> impl Iterator<Item = Key> {
        let until = (self.place(at), Key::MAX);
        self.order.range(..=until).map(|&(_, key)| key)
    }

    fn first(&self) -> Option<(Instant, Key)> {
        let &(nanoseconds, key) = self.order.first()?;
        Some((self.origin + Duration::from_nanos(nanoseconds), key))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What a model knows of a watch: its run, its due time while it waits, its deadline, and its end once that came.
    #[derive(Debug, Clone)]
    struct Known {
        run: u8,
        due: Instant,
        waits: bool,
        deadline: Instant,
        ends_at: Option<Instant>,
    }

    impl Known {
        fn is_patient(&self) -> bool {
            self.ends_at
                .is_some_and(|ends_at| ends_at > self.deadline + Duration::from_secs(5))
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u8, u64, u64),
        Load(u8, u64, u64),
        Remove(usize),
        Queue(usize, u64),
        Unqueue(usize),
        Deadline(usize, u64),
        End(usize, u64),
        Expire(u64),
        Overtime(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (run, at) = (0_u8..4, 0_u64..60);
        prop_oneof![
            4 => (run.clone(), at.clone(), at.clone()).prop_map(|(run, due, end)| Op::Insert(run, due, end)),
            2 => (run, at.clone(), at.clone()).prop_map(|(run, due, end)| Op::Load(run, due, end)),
            2 => any::<usize>().prop_map(Op::Remove),
            3 => (any::<usize>(), at.clone()).prop_map(|(which, due)| Op::Queue(which, due)),
            3 => any::<usize>().prop_map(Op::Unqueue),
            1 => (any::<usize>(), at.clone()).prop_map(|(which, end)| Op::Deadline(which, end)),
            2 => (any::<usize>(), at.clone()).prop_map(|(which, end)| Op::End(which, end)),
            2 => at.clone().prop_map(Op::Expire),
            1 => at.prop_map(Op::Overtime),
        ]
    }

    fn entry(run: u8, due: Instant, deadline: Instant) -> WatchEntry {
        let watch = Watch {
            run_id: run_id(run),
            name: None,
            labels: Labels::new(),
            sinks: None,
            added_at: Timestamp::UNIX_EPOCH,
            deadline_at: Timestamp::UNIX_EPOCH,
            trace: None,
        };
        let progress = Progress::begin(Timestamp::UNIX_EPOCH);
        WatchEntry::new((WatchId(1), watch), progress, due, deadline, due)
    }

    fn run_id(run: u8) -> RunRef {
        RunRef::new(&format!("run_{run}")).unwrap()
    }

    /// The watches of a registry as a plain list.
    struct PlainList {
        origin: Instant,
        watches: BTreeMap<Key, Known>,
        /// Those whose end has come.
        over: BTreeSet<Key>,
        added: u64,
    }

    impl PlainList {
        fn at(&self, seconds: u64) -> Instant {
            self.origin + Duration::from_secs(seconds)
        }

        fn nth(&self, which: usize) -> Option<Key> {
            let keys = self.watches.keys().copied();
            keys.clone().nth(which % keys.len().max(1))
        }

        fn add(&mut self, run: u8, due: Instant, deadline: Instant) {
            let known = Known {
                run,
                due,
                waits: true,
                deadline,
                ends_at: None,
            };
            self.watches.insert(self.added, known);
            self.added += 1;
        }

        /// Does one thing to the registry and to the list.
        fn apply(&mut self, registry: &mut Registry, op: Op) {
            match op {
                Op::Insert(run, due, deadline) => {
                    let (due, deadline) = (self.at(due), self.at(deadline));
                    registry.insert(entry(run, due, deadline));
                    self.add(run, due, deadline);
                }
                Op::Load(run, due, deadline) => {
                    // Loading is for a start: nothing has a turn of another kind yet.
                    let has_turns = |known: &Known| !known.waits || known.ends_at.is_some();
                    if !self.watches.values().any(has_turns) {
                        let (due, deadline) = (self.at(due), self.at(deadline));
                        registry.load(entry(run, due, deadline));
                        registry.put_in_order();
                        self.add(run, due, deadline);
                    }
                }
                Op::Expire(now) => self.expire(registry, self.at(now)),
                Op::Overtime(now) => self.overtime(registry, self.at(now)),
                Op::Remove(which)
                | Op::Queue(which, _)
                | Op::Unqueue(which)
                | Op::Deadline(which, _)
                | Op::End(which, _) => {
                    if let Some(key) = self.nth(which) {
                        self.apply_to(key, registry, op);
                    }
                }
            }
        }

        fn apply_to(&mut self, key: Key, registry: &mut Registry, op: Op) {
            let origin = self.origin;
            let at = |seconds: u64| origin + Duration::from_secs(seconds);
            let known = self.watches.get_mut(&key).unwrap();
            match op {
                Op::Remove(_) => {
                    registry.remove(key);
                    self.watches.remove(&key);
                }
                Op::Queue(_, due) => {
                    registry.queue(key, at(due));
                    (known.due, known.waits) = (at(due), true);
                }
                Op::Unqueue(_) => {
                    registry.unqueue(key);
                    known.waits = false;
                }
                Op::Deadline(_, deadline) => {
                    if known.ends_at.is_none() {
                        registry.set_deadline(key, at(deadline));
                        known.deadline = at(deadline);
                    }
                }
                Op::End(_, end) => {
                    registry.set_end(key, at(end));
                    if known.ends_at.replace(at(end)).is_none() && known.waits {
                        known.due = known.due.min(known.deadline);
                    }
                    self.over.remove(&key);
                }
                Op::Insert(..) | Op::Load(..) | Op::Expire(_) | Op::Overtime(_) => {
                    unreachable!("it is about no watch of the list")
                }
            }
        }

        fn expire(&mut self, registry: &mut Registry, now: Instant) {
            registry.expire(now);
            let has_come = |known: &&mut Known| known.ends_at.is_none() && known.deadline <= now;
            for known in self.watches.values_mut().filter(has_come) {
                known.ends_at = Some(known.deadline + Duration::from_secs(5));
                if known.waits {
                    known.due = known.due.min(known.deadline);
                }
            }
        }

        fn overtime(&mut self, registry: &mut Registry, now: Instant) {
            registry.overtime(now);
            for (key, known) in &mut self.watches {
                let has_come = known.ends_at.is_some_and(|ends_at| ends_at <= now);
                if has_come && self.over.insert(*key) && known.waits {
                    known.due = self.origin;
                }
            }
        }

        /// The first turn of the watches for which `of` holds.
        fn first(&self, of: impl Fn(&Known) -> bool) -> Option<(Instant, Key)> {
            let mut waiting = Vec::new();
            for (key, known) in &self.watches {
                if known.waits && of(known) {
                    waiting.push((known.due, *key));
                }
            }
            waiting.into_iter().min()
        }

        /// Checks that the registry has the same turns, deadlines and ends.
        fn check_times(&self, registry: &Registry) -> Result<(), TestCaseError> {
            let going = self.first(|known| known.ends_at.is_none());
            let last = self.first(|known| known.ends_at.is_some() && !known.is_patient());
            let patient = self.first(Known::is_patient);
            prop_assert_eq!(registry.first_due(), going);
            prop_assert_eq!(registry.first_turns_after_deadline(), [last, patient]);
            let sooner = match (last, patient) {
                (Some(last), Some(patient)) if patient.0 < last.0 => Some(patient),
                (last, patient) => last.or(patient),
            };
            prop_assert_eq!(registry.first_last_due(), sooner);
            let deadlines = self
                .watches
                .iter()
                .filter_map(|(key, known)| match known.ends_at {
                    None => Some(known.deadline),
                    Some(ends_at) => (!self.over.contains(key)).then_some(ends_at),
                });
            prop_assert_eq!(registry.next_deadline(), deadlines.min());
            Ok(())
        }

        /// Checks that the registry has the same watches.
        fn check_watches(&self, registry: &mut Registry) -> Result<(), TestCaseError> {
            let keys = |of: &dyn Fn(&Known) -> bool| -> Vec<_> {
                let watches = self.watches.iter().filter(|(_, known)| of(known));
                watches.map(|(key, _)| *key).collect()
            };
            prop_assert_eq!(registry.keys(), keys(&|_| true));
            prop_assert_eq!(
                (registry.len(), registry.is_empty(), registry.ever()),
                (self.watches.len(), self.watches.is_empty(), self.added)
            );
            for run in 0..4 {
                let of_run = keys(&|known| known.run == run);
                prop_assert_eq!(registry.keys_of(&run_id(run)), of_run);
            }
            let unused = self.added;
            prop_assert!(registry.get(unused).is_none() && registry.get_mut(unused).is_none());
            for (key, known) in &self.watches {
                let deadline = registry.get_mut(*key).map(|entry| entry.deadline);
                prop_assert_eq!(deadline, Some(known.deadline));
                let entry = registry.get(*key).unwrap();
                prop_assert_eq!(
                    (entry.deadline, entry.ends_at, entry.is_patient()),
                    (known.deadline, known.ends_at, known.is_patient())
                );
                prop_assert!(!known.waits || entry.due == known.due);
            }
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn the_next_turn_deadline_and_end_are_those_of_a_plain_list(ops in prop::collection::vec(op(), 1..60)) {
            let origin = Instant::now();
            let mut registry = Registry::new(origin);
            let mut list = PlainList { origin, watches: BTreeMap::new(), over: BTreeSet::new(), added: 0 };
            for op in ops {
                list.apply(&mut registry, op);
                list.check_times(&registry)?;
                list.check_watches(&mut registry)?;
            }
        }
    }

    #[test]
    fn a_time_before_the_origin_counts_as_the_origin() {
        let origin = Instant::now() + Duration::from_secs(100);
        let mut registry = Registry::new(origin);
        registry.insert(entry(1, Instant::now(), origin));
        assert_eq!(registry.first_due(), Some((origin, 0)));
    }

    #[test]
    fn only_time_in_which_polls_followed_each_other_counts() {
        let origin = Instant::now();
        let at = |seconds: u64| origin + Duration::from_secs(seconds);
        let counted = |answered: Option<u64>, began: u64, now: u64| {
            let mut entry = entry(1, origin, at(1_000));
            entry.interval = Some(Duration::from_secs(10));
            entry.answered_at = answered.map(at);
            entry.counted(at(began), at(now)).as_secs()
        };
        assert_eq!(counted(None, 10, 11), 0, "the first answer");
        assert_eq!(counted(Some(0), 10, 13), 13);
        assert_eq!(counted(Some(0), 20, 23), 23, "two intervals");
        assert_eq!(counted(Some(0), 21, 23), 0, "more than two intervals");
        assert_eq!(
            counted(Some(0), 10, 500),
            20,
            "an answer counts for one interval at most"
        );
    }

    #[test]
    fn an_answer_within_an_interval_of_the_deadline_stands() {
        let origin = Instant::now();
        let at = |seconds: u64| origin + Duration::from_secs(seconds);
        let mut entry = entry(1, origin, at(100));
        assert!(!entry.stands(), "never answered");
        entry.answered_at = Some(at(90));
        assert!(!entry.stands(), "no interval");
        entry.interval = Some(Duration::from_secs(10));
        assert!(entry.stands());
        entry.answered_at = Some(at(89));
        assert!(!entry.stands());
    }

    #[test]
    fn a_sleep_moves_what_was_before_it_and_the_view_shows_the_next_poll() {
        let origin = Instant::now() + Duration::from_secs(1_000);
        let at = |seconds: u64| origin + Duration::from_secs(seconds);
        let mut entry = entry(1, at(30), at(100));
        (entry.polled_at, entry.answered_at) = (Some(at(20)), Some(at(21)));
        entry.slept(Duration::from_secs(15));
        assert_eq!(
            (entry.changed_at, entry.polled_at, entry.answered_at),
            (at(15), Some(at(5)), Some(at(6)))
        );
        let view = entry.view(at(22), Timestamp::UNIX_EPOCH);
        assert_eq!(view.next_poll_at.as_second(), 8);
        assert!(!view.polling);
        entry.phase = Phase::Polling;
        assert!(entry.view(at(22), Timestamp::UNIX_EPOCH).polling);
    }

    #[test]
    fn the_watch_of_an_entry_is_the_one_that_was_added() {
        let now = Instant::now();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (name, label, sink, parent) in [
            (None, None, None, ""),
            (Some("report"), None, None, ""),
            (None, Some(("team", "ops")), None, ""),
            (None, None, Some("hook"), ""),
            (None, None, None, parent),
        ] {
            let watch = Watch {
                run_id: run_id(1),
                name: name.map(str::to_owned),
                labels: label
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
                sinks: sink.map(|sink| vec![SinkName::new(sink).unwrap()]),
                added_at: Timestamp::UNIX_EPOCH,
                deadline_at: Timestamp::MAX,
                trace: TraceContext::read(parent, ""),
            };
            let progress = Progress::begin(Timestamp::UNIX_EPOCH);
            let entry = WatchEntry::new((WatchId(1), watch.clone()), progress, now, now, now);
            assert_eq!(entry.watch(), watch);
        }
    }
}
