//! What must hold at every moment: the books of the store, read beside the process, held against the record
//! of what really happened. The rules are written from the documents, and share no code with the program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use runwatch::domain::{Event, JsonText, RunRef, Verdict};
use rusqlite::{Connection, OpenFlags};

use crate::discovery;
use crate::world::{
    Answered, Attempt, HOUR, MINUTE, Ms, Receipt, Reported, SECOND, State, Weather,
};

/// How long a process at peace may take to see that a clock was set, and to store what follows.
const CLOCK_SEEN: Ms = 10 * SECOND;

/// Within which time after its deadline a watch ends, whatever it still waits for.
const LAST_POLL: Ms = 5 * SECOND;

/// How long the API is tried, where no process was awake at the deadline, before a watch is unreachable.
const TRIED: Ms = MINUTE;

/// What timers, rounding and the check of the clocks may add to any of these times.
const SLACK: Ms = 2 * SECOND;

/// How long after its end a run may be without a verdict, where the process is at peace and the API answers as it
/// should: the longest interval, the longest wait after failed polls, and the turns of all others in the smallest
/// budget.
const KNOWN: Ms = 3 * MINUTE;

/// The same where a list was not true in the time before: each watch is polled by itself at least every ten minutes, or
/// as often as an eighth of the smallest budget allows, and a list that was found out is not used.
const KNOWN_IN_SPITE: Ms = 30 * MINUTE;

/// The same where a discovery reads a list beside: its pages and polls take turns in the smallest budget.
const KNOWN_BESIDE_ROUNDS: Ms = 8 * MINUTE;

/// The longest interval between two polls; jitter only makes it shorter.
const INTERVAL: Ms = 30 * SECOND;

/// The longest gap between two 404 over which the run counts as missing: two intervals.
const MISSING_GAP: Ms = 2 * INTERVAL;

/// How long every answer must be 404 before a run is not found.
pub(crate) const GRACE: Ms = 2 * MINUTE;

/// After how long without a usable answer that is an event.
const UNREACHABLE: Ms = 5 * MINUTE;

/// Waits before the second and each further attempt, as documented.
pub(crate) const SCHEDULE: [Ms; 7] = [
    5 * SECOND,
    5 * MINUTE,
    30 * MINUTE,
    2 * HOUR,
    5 * HOUR,
    10 * HOUR,
    10 * HOUR,
];

/// Most attempts of one sink under way at once, for a sink that is a program.
const AT_ONCE: usize = 4;

/// A watch that was requested.
#[derive(Debug, Clone)]
pub(crate) struct Requested {
    /// Tells the watches of one run apart.
    pub(crate) generation: u32,
    /// The process acknowledged the watch.
    pub(crate) acknowledged: bool,
    /// Its removal was requested, and may have been done.
    pub(crate) removed: bool,
    pub(crate) added: Ms,
    pub(crate) deadline: Ms,
    /// The sinks that it names, if it names any.
    pub(crate) sinks: Option<BTreeSet<String>>,
    /// The verdict, and when it was stored.
    pub(crate) verdict: Option<(Verdict, Ms)>,
    /// Requests about the run by then.
    polled_by_then: usize,
}

impl Requested {
    pub(crate) fn new(
        generation: u32,
        added: Ms,
        deadline: Ms,
        sinks: Option<BTreeSet<String>>,
    ) -> Self {
        let (acknowledged, removed) = (false, false);
        Self {
            generation,
            acknowledged,
            removed,
            added,
            deadline,
            sinks,
            verdict: None,
            polled_by_then: 0,
        }
    }
}

/// An event as first seen in the store.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) run: Option<RunRef>,
    pub(crate) kind: String,
    pub(crate) generation: u32,
    /// The sink that it is about.
    about: Option<String>,
    /// Whether it says that the run ended while no process watched it.
    pub(crate) late: bool,
}

/// A delivery as first seen in the store.
#[derive(Debug, Clone)]
struct Delivery {
    id: String,
    created: Ms,
    life: u32,
    dead: bool,
    /// It is no longer in the store.
    vanished: bool,
}

/// The store as others see it, and what was seen in it.
pub(crate) struct Books {
    path: PathBuf,
    store: Option<Connection>,
    /// The newest watch of each run that is known to be stored, or was the first to be requested.
    pub(crate) watches: BTreeMap<RunRef, Requested>,
    /// Watches that were requested of runs that had one; which of them is stored, the store shows.
    pub(crate) candidates: BTreeMap<RunRef, Vec<Requested>>,
    /// Watches that were replaced by a newer one of the same run.
    past: Vec<(RunRef, Requested)>,
    /// The run of which all watches are being removed.
    pub(crate) removing: Option<RunRef>,
    /// Watches that were requested, and entries of lists that were shown to a discovery.
    generations: u32,
    /// All whose removal was ever requested.
    pub(crate) removals: BTreeSet<(RunRef, u32)>,
    events: BTreeMap<i64, Recorded>,
    /// The newest event about the API.
    incident: Option<(i64, String)>,
    /// The delivery of each event for each sink.
    deliveries: BTreeMap<(i64, String), Delivery>,
    /// Deliveries that arrived.
    arrived: BTreeSet<String>,
    /// Deliveries that were retried by request, and how many attempts they had when that was last granted.
    pub(crate) retried: BTreeMap<String, u32>,
    /// When the clock was set last.
    last_set: Option<Ms>,
    /// Until when attempts may come early: the clock was set.
    pub(crate) unsteady_until: Ms,
    /// How far the wall clock was set without the process having had the time to take all marks along.
    stepped: Ms,
    /// When, and how far, the clock was set last, and the process may be at it.
    stepping: Option<(Ms, Ms)>,
    /// Sinks that get every verdict, unless the watch names others.
    pub(crate) always: BTreeSet<String>,
    /// The one of them that gets every event.
    pub(crate) everything: String,
    /// The sink that gets the events of some watches only.
    pub(crate) choosy: String,
    /// Runs whose watches carry the label that this sink wants.
    pub(crate) labeled: BTreeSet<(RunRef, u32)>,
    pub(crate) overdue_after: Option<Ms>,
    /// From when on which budget was in force.
    pub(crate) budgets: Vec<(Ms, usize)>,
}

pub(crate) fn sql(error: rusqlite::Error) -> String {
    format!("the store cannot be read beside the process: {error}")
}

/// Which watch of its run an event is about; 0 where it is about none.
pub(crate) fn generation(event: &Event) -> u32 {
    let label = event
        .run()
        .and_then(|data| data.watch.labels.get("generation"));
    label.and_then(|label| label.parse().ok()).unwrap_or(0)
}

/// Whether a message carries the whole output of its run.
pub(crate) fn whole(state: &State, event: &Event) -> Result<(), String> {
    let Some(data) = event
        .run()
        .filter(|_| event.event_type == Verdict::Succeeded.event_type())
    else {
        return Ok(());
    };
    let run = &data.run.id;
    let expected = state.fates.get(run).map(|fate| fate.output_of(run));
    let got = data.run.output.as_ref().map(JsonText::get);
    if got == expected.as_deref() {
        return Ok(());
    }
    let (got, expected) = (got.map(str::len), expected.map(|output| output.len()));
    Err(format!(
        "the output of {run} arrives with {got:?} bytes, or other ones; it has {expected:?}"
    ))
}

impl Books {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            store: None,
            watches: BTreeMap::new(),
            candidates: BTreeMap::new(),
            past: Vec::new(),
            removing: None,
            generations: 0,
            removals: BTreeSet::new(),
            events: BTreeMap::new(),
            incident: None,
            deliveries: BTreeMap::new(),
            arrived: BTreeSet::new(),
            retried: BTreeMap::new(),
            last_set: None,
            unsteady_until: 0,
            stepped: 0,
            stepping: None,
            always: BTreeSet::new(),
            everything: String::new(),
            choosy: String::new(),
            labeled: BTreeSet::new(),
            overdue_after: None,
            budgets: Vec::new(),
        }
    }

    /// The number of the next watch that is requested, or may come of what a list shows.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.generations += 1;
        self.generations
    }

    /// Whether this is a watch of the run that was requested.
    pub(crate) fn knows(&self, run: &RunRef, generation: u32) -> bool {
        let requested = self.candidates.get(run).into_iter().flatten();
        let past = self.past.iter().filter(|(of, _)| of == run);
        let mut all = requested.chain(past.map(|(_, watch)| watch));
        all.any(|watch| watch.generation == generation)
    }

    /// Whether the removal of a watch of this run was ever requested, or one may have been pruned.
    pub(crate) fn may_be_gone(&self, run: &RunRef) -> bool {
        let of_run = (run.clone(), 0)..=(run.clone(), u32::MAX);
        self.removals.range(of_run).next().is_some()
            || self.watches.get(run).is_some_and(|watch| watch.removed)
    }

    /// How many watches ended in which way.
    pub(crate) fn verdicts(&self) -> BTreeMap<&'static str, u64> {
        let mut verdicts = BTreeMap::new();
        for (verdict, _) in self.all().filter_map(|(_, watch)| watch.verdict) {
            *verdicts.entry(verdict.as_str()).or_default() += 1;
        }
        verdicts
    }

    /// All watches of all runs.
    fn all(&self) -> impl Iterator<Item = (&RunRef, &Requested)> {
        self.watches
            .iter()
            .chain(self.past.iter().map(|(run, watch)| (run, watch)))
    }

    /// How many watches were stored.
    pub(crate) fn count(&self) -> u64 {
        (self.watches.len() + self.past.len()) as u64
    }

    /// Lets go of the file, which the next process may find as the last one left it.
    pub(crate) fn close(&mut self) {
        (self.store, self.stepping) = (None, None);
    }

    /// Takes note that the wall clock is set `far` forward or back now.
    pub(crate) fn clock_set(&mut self, now: Ms, far: Ms) {
        self.last_set = Some(now);
        self.stepped += far;
        let far = far + self.stepping.map_or(0, |(_, before)| before);
        self.stepping = Some((now, far));
    }

    fn open(&self) -> Result<Connection, String> {
        Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sql)
    }

    pub(crate) fn store(&mut self) -> Result<&Connection, String> {
        if self.store.is_none() {
            self.store = Some(self.open()?);
        }
        Ok(self.store.as_ref().expect("just opened"))
    }

    /// Holds the database as another process would, until this is dropped.
    pub(crate) fn hold(&self) -> Connection {
        let other = self.open().expect("the database is there");
        other
            .execute_batch("BEGIN IMMEDIATE")
            .expect("no transaction is under way");
        other
    }

    /// Whether a message may go out that a receiver is given now: its event is stored already, under this
    /// very delivery, which is not done with.
    pub(crate) fn admits(&mut self, receipt: &Receipt) -> Result<(), String> {
        let query = "SELECT d.sink, d.state, e.type FROM deliveries d JOIN events e ON e.seq = d.event_seq WHERE d.id = ?";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        self.arrived.insert(receipt.delivery.clone());
        let store = self.store()?;
        let found: Result<(String, String, String), _> = store
            .prepare_cached(query)
            .map_err(sql)?
            .query_row([&receipt.delivery], read);
        let kind = receipt.event_type.as_str();
        match found {
            Ok((sink, state, event))
                if sink == receipt.sink && event == kind && state == "sending" =>
            {
                Ok(())
            }
            Ok(found) => Err(format!("{receipt:?} was sent, and the store has {found:?}")),
            // It may have been removed while the message was on its way.
            Err(rusqlite::Error::QueryReturnedNoRows)
                if receipt.run.as_ref().is_some_and(|run| {
                    self.removals.contains(&(run.clone(), receipt.generation))
                }) =>
            {
                Ok(())
            }
            Err(error) => Err(format!(
                "{receipt:?} was sent before it was stored: {error}"
            )),
        }
    }

    /// Takes note that what is undelivered of a run may be given up.
    pub(crate) fn may_be_given_up(&mut self, run: &RunRef) {
        let events = &self.events;
        let of_run = |seq: &i64| {
            events
                .get(seq)
                .is_some_and(|event| event.run.as_ref() == Some(run))
        };
        self.deliveries
            .iter_mut()
            .filter(|((seq, _), _)| of_run(seq))
            .for_each(|(_, delivery)| delivery.dead = true);
    }

    /// Takes note that watches that ended may be pruned.
    pub(crate) fn may_be_pruned(&mut self) {
        let all = self
            .watches
            .values_mut()
            .chain(self.past.iter_mut().map(|(_, watch)| watch));
        all.filter(|watch| watch.verdict.is_some())
            .for_each(|watch| watch.removed = true);
    }

    /// Takes note that the removal of all watches of a run was requested. Returns those whose removal had not been.
    pub(crate) fn remove(&mut self, run: &RunRef) -> Vec<u32> {
        let past = self
            .past
            .iter_mut()
            .filter(|(of, _)| of == run)
            .map(|(_, watch)| watch);
        let mut new = Vec::new();
        for watch in self.watches.get_mut(run).into_iter().chain(past) {
            self.removals.insert((run.clone(), watch.generation));
            if !std::mem::replace(&mut watch.removed, true) {
                new.push(watch.generation);
            }
        }
        new
    }

    /// Takes note that the removal of these watches of a run was rejected.
    pub(crate) fn keep(&mut self, run: &RunRef, generations: &[u32]) {
        let past = self
            .past
            .iter_mut()
            .filter(|(of, _)| of == run)
            .map(|(_, watch)| watch);
        let all = self.watches.get_mut(run).into_iter().chain(past);
        all.filter(|watch| generations.contains(&watch.generation))
            .for_each(|watch| watch.removed = false);
    }

    /// Takes in an event that is new in the store. `stored` has the watches by run.
    fn record(
        &mut self,
        seq: i64,
        event: Recorded,
        stored: &Watches,
        now: Ms,
    ) -> Result<(), String> {
        let kind = event.kind.as_str();
        if let Some(run) = &event.run {
            let newest = stored
                .get(run.as_str())
                .and_then(|watches| watches.last_key_value())
                .map(|(newest, _)| *newest);
            let ended_with_it = self.past.iter().any(|(of, watch)| {
                of == run
                    && watch.generation == event.generation
                    && watch.verdict.is_some_and(|(_, at)| at == now)
            });
            if newest != Some(event.generation) && !ended_with_it {
                let of = event.generation;
                return Err(format!(
                    "{kind} of watch {of} of {run} is stored, and its newest watch is {newest:?}"
                ));
            }
            let same = |other: &&Recorded| {
                other.run == event.run && other.kind == kind && other.generation == event.generation
            };
            if self.events.values().any(|other| same(&other)) {
                return Err(format!("{kind} of {run} is stored twice"));
            }
        }
        if kind.starts_with("api.") {
            let follows = match (self.incident.as_ref().map(|(_, kind)| kind.as_str()), kind) {
                (None | Some("api.recovered"), "api.recovered") => false,
                (_, "api.recovered") => true,
                (None | Some("api.recovered"), _) => true,
                (Some(before), _) => before == "api.unreachable" && kind == "api.unauthorized",
            };
            if !follows {
                return Err(format!("{kind} follows {:?}", self.incident));
            }
            self.incident = Some((seq, kind.to_owned()));
        }
        self.events.insert(seq, event);
        Ok(())
    }

    /// When a watch becomes overdue. That goes by the wall clock, so it cannot be known where the clock was set.
    fn overdue_at(&self, watch: &Requested) -> Option<Ms> {
        let after = self
            .overdue_after
            .filter(|_| self.last_set.is_none_or(|set| set < watch.added))?;
        Some(watch.added + after)
    }

    /// Whether an event of this kind about this watch was ever stored.
    fn has(&self, run: &RunRef, watch: &Requested, kind: &str) -> bool {
        let of_watch = |event: &Recorded| {
            event.run.as_ref() == Some(run) && event.generation == watch.generation
        };
        self.events
            .values()
            .any(|event| of_watch(event) && event.kind == kind)
    }

    /// Takes in which deliveries there are. What is no longer there must have arrived or been given up, unless its
    /// watch was removed before its end.
    fn account(
        &mut self,
        deliveries: &[(i64, String, String, bool)],
        now: Ms,
        life: u32,
    ) -> Result<(), String> {
        let mut present = BTreeSet::new();
        for (seq, sink, id, dead) in deliveries {
            let new = || Delivery {
                id: id.clone(),
                created: now,
                life,
                dead: false,
                vanished: false,
            };
            let known = self
                .deliveries
                .entry((*seq, sink.clone()))
                .or_insert_with(new);
            if known.id != *id {
                return Err(format!(
                    "event {seq} has the deliveries {} and {id} for {sink}",
                    known.id
                ));
            }
            known.dead |= dead;
            present.insert((*seq, sink.as_str()));
        }
        for ((seq, sink), delivery) in self
            .deliveries
            .iter_mut()
            .filter(|(_, delivery)| !delivery.vanished)
        {
            if present.contains(&(*seq, sink.as_str())) {
                continue;
            }
            delivery.vanished = true;
            let Some(event) = self.events.get(seq) else {
                continue;
            };
            let past = self.past.iter().map(|(run, watch)| (run, watch));
            let mut all = self.watches.iter().chain(past);
            let ended = event.run.is_some()
                && all.any(|(_, watch)| {
                    watch.generation == event.generation && watch.verdict.is_some()
                });
            let removed = event
                .run
                .as_ref()
                .is_some_and(|run| self.removals.contains(&(run.clone(), event.generation)));
            if !(delivery.dead || self.arrived.contains(&delivery.id) || (removed && !ended)) {
                return Err(format!(
                    "{} of {event:?} for {sink} is gone, and never arrived",
                    delivery.id
                ));
            }
        }
        Ok(())
    }
}

/// Looks through the books. What is wrong is noted in the state.
pub(crate) fn look(state: &mut State) {
    if state.broken.is_some() {
        return;
    }
    let now = state.now();
    let peace = state.unrest;
    if let Err(broken) = looked(state, now, peace).and_then(|()| discovery::look(state)) {
        state.broken(broken);
    }
}

/// Looks through the books where a transaction that the disk took at `began` brought news. Before it, the process
/// had no peace until `peace`.
pub(crate) fn committed(state: &mut State, began: Ms, peace: Ms) {
    if state.broken.is_some() {
        return;
    }
    let newest = |store: &Connection| {
        let mut statement = store.prepare_cached("SELECT max(seq) FROM events")?;
        statement.query_row([], |row| row.get::<_, Option<i64>>(0))
    };
    let newest = state
        .books
        .store()
        .and_then(|store| newest(store).map_err(sql));
    let known = state.books.events.last_key_value().map(|(seq, _)| *seq);
    let result = match newest {
        Ok(newest) if newest > known => looked(state, began, peace),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    let result = result.and_then(|()| discovery::rounds(state));
    if let Err(broken) = result {
        state.broken(broken);
    }
}

/// The watches in the store with their verdicts, by run and generation.
pub(crate) type Watches = BTreeMap<String, BTreeMap<u32, Option<String>>>;

/// What is in the store.
struct Contents {
    watches: Watches,
    /// Events that were not there before.
    events: Vec<(i64, Recorded)>,
    /// Deliveries: event, sink, ID, and whether it was given up.
    deliveries: Vec<(i64, String, String, bool)>,
}

impl Contents {
    fn of(store: &Connection, known: i64) -> Result<Self, rusqlite::Error> {
        let mut statement = store.prepare_cached(
            "SELECT run_id, verdict, json_extract(labels, '$.generation') FROM watches",
        )?;
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut watches = Watches::new();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let of_run: &mut BTreeMap<_, _> = watches.entry(row.get(0)?).or_default();
            of_run.insert(number(row.get(2)?), row.get(1)?);
        }
        let mut statement = store.prepare_cached(
            "SELECT seq, run_id, type, json_extract(body, '$.data.watch.labels.generation'),
                 json_extract(body, '$.data.sink'), coalesce(json_extract(body, '$.data.watch.late'), 0)
             FROM events WHERE seq > ? ORDER BY seq",
        )?;
        let read = |row: &rusqlite::Row<'_>| {
            let run = row
                .get::<_, Option<String>>(1)?
                .and_then(|id| RunRef::new(&id).ok());
            let (kind, generation, about) = (row.get(2)?, number(row.get(3)?), row.get(4)?);
            let late = row.get(5)?;
            Ok((
                row.get(0)?,
                Recorded {
                    run,
                    kind,
                    generation,
                    about,
                    late,
                },
            ))
        };
        let events = statement
            .query_map([known], read)?
            .collect::<Result<_, _>>()?;
        let mut statement =
            store.prepare_cached("SELECT event_seq, sink, id, state = 'dead' FROM deliveries")?;
        let read =
            |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
        let deliveries = statement.query_map([], read)?.collect::<Result<_, _>>()?;
        Ok(Self {
            watches,
            events,
            deliveries,
        })
    }
}

/// Looks through the books. A verdict that is new was decided at `decided`, before which the process had no peace
/// until `peace`.
fn looked(state: &mut State, decided: Ms, peace: Ms) -> Result<(), String> {
    let now = state.now();
    if let Some((_, far)) = state
        .books
        .stepping
        .filter(|(at, _)| state.alive && now >= at.max(&state.unrest) + CLOCK_SEEN)
    {
        state.books.stepped -= far;
        state.books.stepping = None;
    }
    let known = state
        .books
        .events
        .last_key_value()
        .map_or(0, |(seq, _)| *seq);
    let Contents {
        watches: stored,
        events,
        deliveries,
    } = Contents::of(state.books.store()?, known).map_err(sql)?;
    discovery::recognize(state, &stored, now)?;
    recognize(&mut state.books, &stored, now)?;
    for (run, watch) in &state.books.past {
        let verdict = stored
            .get(run.as_str())
            .and_then(|watches| watches.get(&watch.generation));
        let verdict = verdict.map(|word| word.as_deref().and_then(Verdict::from_word));
        let before = watch.verdict.map(|(verdict, _)| verdict);
        if verdict.map_or(watch.acknowledged && !watch.removed, |verdict| {
            verdict != before
        }) {
            let of = watch.generation;
            return Err(format!(
                "watch {of} of {run} has the verdict {verdict:?}, and had {before:?}"
            ));
        }
    }
    let new: Vec<_> = events
        .iter()
        .map(|(seq, event)| (*seq, event.clone()))
        .collect();
    for (seq, event) in events {
        state.books.record(seq, event, &stored, now)?;
    }
    state.books.account(&deliveries, now, state.life)?;
    new.iter()
        .try_for_each(|(seq, event)| addressed(state, *seq, event, now))?;
    new.iter()
        .try_for_each(|(_, event)| discovery::late(state, event))?;
    let is_open =
        |watch: &Requested| watch.acknowledged && !watch.removed && watch.verdict.is_none();
    if !state.books.watches.values().any(is_open) {
        // Without a watch nothing is polled, and how the API does is not known.
        state.failing_since = None;
    }
    incidents(state, now)?;
    let runs: Vec<RunRef> = state.books.watches.keys().cloned().collect();
    for run in runs {
        let watch = state.books.watches[&run].clone();
        let Some(verdict) = stored
            .get(run.as_str())
            .and_then(|watches| watches.get(&watch.generation))
        else {
            if watch.acknowledged && !watch.removed {
                return Err(format!(
                    "the watch of {run} was acknowledged, and is not in the store"
                ));
            }
            continue;
        };
        progressed(state, &run, &watch, now)?;
        let is_verdict = |event: &&Recorded| {
            let kinds = Verdict::WORST_FIRST.map(|verdict| verdict.event_type().as_str());
            event.run.as_ref() == Some(&run)
                && event.generation == watch.generation
                && kinds.contains(&&*event.kind)
        };
        let recorded: Vec<_> = state
            .books
            .events
            .values()
            .filter(is_verdict)
            .map(|event| event.kind.clone())
            .collect();
        let verdict = verdict
            .as_deref()
            .map(|word| Verdict::from_word(word).ok_or(format!("{word} is not a verdict")));
        let Some(verdict) = verdict.transpose()? else {
            if !recorded.is_empty() || watch.verdict.is_some() {
                return Err(format!(
                    "{run} has the events {recorded:?} (before: {:?}) and no verdict",
                    watch.verdict
                ));
            }
            continue;
        };
        if recorded != [verdict.event_type().as_str()]
            || watch.verdict.is_some_and(|(before, _)| before != verdict)
        {
            return Err(format!(
                "{run}: {verdict:?} is stored, {recorded:?} recorded, {:?} before",
                watch.verdict
            ));
        }
        let requests = state
            .answers
            .get(&run)
            .into_iter()
            .flatten()
            .filter(|a| a.began >= watch.added)
            .count();
        if watch.verdict.is_none() {
            justified(state, &run, verdict, decided)?;
            in_time(state, &run, verdict, decided, peace)?;
            discovery::ended(state, &run, verdict);
            let watch = state.books.watches.get_mut(&run).expect("it was looked at");
            (watch.verdict, watch.polled_by_then) = (Some((verdict, now)), requests);
        } else if requests > watch.polled_by_then {
            return Err(format!("{run} was polled after its verdict"));
        }
    }
    Ok(())
}

/// The watch of a run after which a newer one is stored, with its verdict.
fn replaced(
    run: &RunRef,
    mut before: Requested,
    of_run: Option<&BTreeMap<u32, Option<String>>>,
    now: Ms,
) -> Result<Requested, String> {
    // One transaction may hold both its verdict and the watch after it.
    let word = of_run.and_then(|watches| watches.get(&before.generation)?.as_deref());
    if let Some(verdict) = word.and_then(Verdict::from_word) {
        before.verdict.get_or_insert((verdict, now));
    }
    if before.acknowledged && !before.removed && before.verdict.is_none() {
        return Err(format!(
            "watch {} of {run} was replaced, and had not ended",
            before.generation
        ));
    }
    Ok(before)
}

impl Books {
    /// Takes in a watch that is stored, though it was not requested. One that was requested of a run without any, and
    /// is not stored, may be stored later.
    pub(crate) fn found(
        &mut self,
        run: &RunRef,
        watch: Requested,
        of_run: &BTreeMap<u32, Option<String>>,
        now: Ms,
    ) -> Result<(), String> {
        let Some(before) = self.watches.insert(run.clone(), watch) else {
            return Ok(());
        };
        let was_stored = before.acknowledged || of_run.contains_key(&before.generation);
        if was_stored {
            let before = replaced(run, before, Some(of_run), now)?;
            self.past.push((run.clone(), before));
        } else {
            self.candidates.entry(run.clone()).or_default().push(before);
        }
        Ok(())
    }
}

/// Finds out which of the watches that were requested of a run is the one that is stored.
fn recognize(books: &mut Books, stored: &Watches, now: Ms) -> Result<(), String> {
    for (run, candidates) in &mut books.candidates {
        let of_run = stored.get(run.as_str());
        let Some(newest) = of_run
            .and_then(|watches| watches.last_key_value())
            .map(|(newest, _)| *newest)
        else {
            continue;
        };
        let current = books.watches.get(run).map(|watch| watch.generation);
        if current.is_some_and(|current| current >= newest) {
            continue;
        }
        let Some(index) = candidates
            .iter()
            .position(|watch| watch.generation == newest)
        else {
            return Err(format!(
                "watch {newest} of {run} is stored, and {current:?} was before"
            ));
        };
        let next = candidates.swap_remove(index);
        // What was requested before the one that is stored now will never be.
        candidates.retain(|watch| watch.generation > newest);
        if let Some(before) = books.watches.insert(run.clone(), next) {
            books
                .past
                .push((run.clone(), replaced(run, before, of_run, now)?));
        }
    }
    Ok(())
}

/// Whether a new event has a delivery for each sink that must get it, and for no other.
fn addressed(state: &State, seq: i64, event: &Recorded, now: Ms) -> Result<(), String> {
    let books = &state.books;
    let of_event = |(run, watch): &(&RunRef, &Requested)| {
        Some(*run) == event.run.as_ref() && watch.generation == event.generation
    };
    let watch = books.all().find(of_event);
    let is_verdict = Verdict::WORST_FIRST
        .iter()
        .any(|verdict| verdict.event_type().as_str() == event.kind);
    let has = |sink: &String| books.deliveries.contains_key(&(seq, sink.clone()));
    let chosen = |sink: &String| {
        watch
            .and_then(|(_, watch)| watch.sinks.as_ref())
            .is_none_or(|all| all.contains(sink))
    };
    for sink in &books.always {
        let wants = is_verdict || *sink == books.everything;
        let must = wants && chosen(sink) && event.about.as_ref() != Some(sink);
        if must != has(sink) {
            let found = if must { "no delivery" } else { "a delivery" };
            return Err(format!("event {seq} ({event:?}) has {found} for {sink}"));
        }
    }
    let labeled =
        watch.is_some_and(|(run, watch)| books.labeled.contains(&(run.clone(), watch.generation)));
    if has(&books.choosy) && !(is_verdict && labeled && chosen(&books.choosy)) {
        return Err(format!(
            "event {seq} ({event:?}) has a delivery for {}",
            books.choosy
        ));
    }
    if let Some((run, watch)) = watch.filter(|_| event.kind == "watch.overdue")
        && (books.overdue_after.is_none()
            || books
                .overdue_at(watch)
                .is_some_and(|due| now + SECOND < due))
    {
        return Err(format!(
            "{run} is overdue at {} s, and was added at {} s",
            now / SECOND,
            watch.added / SECOND
        ));
    }
    Ok(())
}

/// Whether the events about the API and about sinks are there that must be.
fn incidents(state: &State, now: Ms) -> Result<(), String> {
    let books = &state.books;
    if let Some(since) = state
        .failing_since
        .filter(|since| state.alive && state.peaceful(*since, now))
        && now >= since + UNREACHABLE + CLOCK_SEEN
        && books
            .incident
            .as_ref()
            .is_none_or(|(_, kind)| kind == "api.recovered")
    {
        return Err(format!(
            "the API has given no usable answer since {} s, and no event says so",
            since / SECOND
        ));
    }
    for (at, life, sink) in &state.farewells {
        let seen = *life == state.life
            && state.alive
            && now >= at + CLOCK_SEEN
            && state.peaceful(*at, now);
        if seen
            && !books
                .events
                .values()
                .any(|event| event.about.as_ref() == Some(sink))
        {
            return Err(format!(
                "{sink} was disabled at {} s, and no event says so",
                at / SECOND
            ));
        }
    }
    Ok(())
}

/// Answers that this life of the process got about a watch, in order.
fn answers_about<'a>(state: &'a State, run: &RunRef, watch: &Requested) -> Vec<&'a Answered> {
    let added = watch.added;
    let of_watch = |a: &&Answered| {
        a.reported != Reported::Orphaned && a.life == state.life && a.began >= added
    };
    state
        .answers
        .get(run)
        .into_iter()
        .flatten()
        .filter(of_watch)
        .collect()
}

/// Whether the events are there that answers about a watch give reason to.
fn progressed(state: &State, run: &RunRef, watch: &Requested, now: Ms) -> Result<(), String> {
    let until = watch.verdict.map_or(now, |(_, at)| at);
    let counts =
        |a: &&&Answered| state.alive && a.at + SLACK <= until && state.peaceful(a.at, a.at + SLACK);
    let counted = answers_about(state, run, watch);
    let expects = |kind: &str, reason: Option<&&Answered>| match reason {
        Some(answer) if !state.books.has(run, watch, kind) => Err(format!(
            "{run} has no {kind}, for which the answer at {} s gives reason",
            answer.at / SECOND
        )),
        _ => Ok(()),
    };
    expects(
        "run.started",
        counted.iter().filter(counts).find(|a| a.running),
    )?;
    let Some(overdue) = state.books.overdue_at(watch) else {
        return Ok(());
    };
    let overdue = |a: &&&Answered| a.reported == Reported::Going && a.at >= overdue + SECOND;
    expects("watch.overdue", counted.iter().filter(counts).find(overdue))
}

/// Whether the API reported what the verdict says, or, at a deadline, whether that had come, and what is known was known.
fn justified(state: &State, run: &RunRef, verdict: Verdict, now: Ms) -> Result<(), String> {
    let watch = &state.books.watches[run];
    let tolerance = state.books.stepped + SECOND;
    let deadline_came = now + tolerance >= watch.deadline;
    // Answers to a process before do not count; but a run that ended has ended.
    let counted: Vec<&Answered> = answers_about(state, run, watch)
        .into_iter()
        .filter(|answered| answered.at <= now)
        .collect();
    let last = counted.last();
    let reported = last.map(|answered| answered.reported);
    let known_end = counted
        .iter()
        .any(|answered| matches!(answered.reported, Reported::Ended(_)));
    let going = last.filter(|answered| answered.reported == Reported::Going);
    let age = going.map(|answered| now - answered.at);
    // An observation after the deadline decides, whatever followed it while the store rejected the verdict.
    let going_at = |from: Ms| {
        counted
            .iter()
            .any(|answered| answered.reported == Reported::Going && answered.at >= from)
    };
    let after = going_at(watch.deadline.saturating_sub(tolerance));
    let right = match verdict {
        Verdict::Succeeded | Verdict::Failed | Verdict::Canceled | Verdict::Skipped => {
            let truth = state.fates.get(run).is_some_and(|fate| {
                let mut ends = fate.tries().filter_map(|attempt| attempt.ends);
                ends.any(|(at, truth)| at <= now && truth == verdict)
            });
            reported == Some(Reported::Ended(verdict)) && truth
        }
        Verdict::NotFound => !known_end && missing_for(state, &counted) + tolerance >= GRACE,
        // Whether the run is active, only its own last answer shows, and only while it is recent.
        Verdict::TimedOut => {
            let given = given_at(state, watch, now);
            let age = going.map(|answered| given.saturating_sub(answered.at));
            let fresh = after || age.is_some_and(|age| age <= INTERVAL + LAST_POLL + tolerance);
            !known_end && deadline_came && fresh
        }
        Verdict::Unreachable => {
            // An answer is fresh for as long as the shortest interval at least.
            let since = watch.deadline + state.books.stepped;
            let fresh = going_at(since + 1) || age.is_some_and(|age| age * 2 < SECOND);
            !known_end && deadline_came && !fresh && tried(state, watch, now)
        }
    };
    if right {
        return Ok(());
    }
    let answers = state
        .answers
        .get(run)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let reported: Vec<String> = answers
        .iter()
        .rev()
        .take(8)
        .map(|a| format!("{:?} at {} s", a.reported, a.at / SECOND))
        .collect();
    let (deadline, awake) = (watch.deadline / SECOND, state.awake_since() / SECOND);
    let at = now / SECOND;
    Err(format!(
        "{run} is {verdict:?} at {at} s (deadline {deadline} s, awake since {awake} s) after {reported:?}"
    ))
}

/// When a verdict that is in the store at `now` was given. One that the store rejected is stored later, and counts from
/// its term where the process was awake all the time.
fn given_at(state: &State, watch: &Requested, now: Ms) -> Ms {
    let term = watch.deadline + state.books.stepped + LAST_POLL;
    let awake = state.life_began().max(state.awake_since()) <= watch.deadline;
    if awake && term < now && !state.peaceful(term, now) {
        term
    } else {
        now
    }
}

/// For how long a run has been missing: the gaps between 404 that followed each other, in which the process was awake
/// and polls were made. A gap ends where the next request begins; the time of its answer counts with it.
fn missing_for(state: &State, counted: &[&Answered]) -> Ms {
    let unbroken: Vec<&Answered> = counted
        .iter()
        .rev()
        .take_while(|a| a.reported == Reported::Missing)
        .copied()
        .collect();
    let gaps = unbroken.windows(2).map(|pair| (pair[1].at, pair[0]));
    let counts = |(from, next): &(Ms, &Answered)| {
        next.began - from <= MISSING_GAP && state.awake_between(*from, next.at) == next.at - from
    };
    gaps.filter(counts).map(|(from, next)| next.at - from).sum()
}

/// Whether the API was tried for long enough that a watch may be unreachable: its deadline came to a process that was
/// awake, or the API answered at all since there was one, or was tried for a minute.
fn tried(state: &State, watch: &Requested, now: Ms) -> bool {
    let awake = state.awake_since();
    let deadline = watch.deadline + state.books.stepped;
    let answered = state.usable.last().is_some_and(|at| *at >= awake);
    let life = state.life_began();
    deadline > awake
        || answered
        || state.awake_between(life.max(watch.deadline), now) + SECOND >= TRIED
}

/// Until when a watch has its verdict, where the process has peace from `peace` on.
fn ends_by(state: &State, watch: &Requested, peace: Ms) -> Ms {
    let (awake, deadline) = (state.awake_since(), watch.deadline + state.books.stepped);
    // Where no process was awake at the deadline, the API is tried for a while.
    let decides = if watch.deadline > awake.saturating_add(state.books.stepped) {
        deadline
    } else {
        deadline.max(awake).saturating_add(TRIED)
    };
    decides
        .saturating_add(LAST_POLL)
        .max(peace)
        .saturating_add(SLACK)
}

/// Whether a verdict that is new was given as soon as was promised.
fn in_time(
    state: &State,
    run: &RunRef,
    verdict: Verdict,
    decided: Ms,
    peace: Ms,
) -> Result<(), String> {
    let watch = &state.books.watches[run];
    let by = ends_by(state, watch, peace);
    if decided > by {
        let (at, by, deadline) = (
            decided as f64 / 1000.0,
            by as f64 / 1000.0,
            watch.deadline as f64 / 1000.0,
        );
        return Err(format!(
            "{run} is {verdict:?} at {at} s, which its deadline at {deadline} s has by {by} s"
        ));
    }
    Ok(())
}

/// Whether a process at peace has given the verdicts that it must have given by now.
pub(crate) fn nobody_waits(state: &mut State) {
    let now = state.now();
    if state.weather != Weather::Fine || now < state.offline.0 {
        state.api_trouble = state.api_trouble.max(now);
    }
    let usual = match state.discovery {
        Some(_) => KNOWN_BESIDE_ROUNDS,
        None => KNOWN,
    };
    let known = now >= state.api_trouble.max(state.unrest) + usual;
    // That may have begun before it showed.
    let lists_were_true = now >= state.list_trouble + KNOWN_IN_SPITE || state.list_trouble == 0;
    let after_end = if lists_were_true {
        usual
    } else {
        KNOWN_IN_SPITE
    };
    let waits = state.books.watches.iter().find(|(run, watch)| {
        let over = state
            .fates
            .get(*run)
            .and_then(|fate| fate.ends)
            .is_some_and(|(at, _)| at.max(watch.added) + after_end <= now);
        let open = watch.acknowledged && !watch.removed && watch.verdict.is_none();
        open && ((known && over) || ends_by(state, watch, state.unrest) < now)
    });
    if let Some((run, watch)) = waits {
        let (deadline, peace, trouble) = (
            watch.deadline / SECOND,
            state.unrest / SECOND,
            state.api_trouble / SECOND,
        );
        let broken = format!(
            "{run} has no verdict yet (deadline {deadline} s); peace since {peace} s, the API fine since {trouble} s"
        );
        state.broken(broken);
    }
}

/// Whether every run that is over, or past its deadline, for so long that it must be known has its verdict.
pub(crate) fn nothing_starves(state: &mut State, calm_since: Ms) {
    look(state);
    let overdue: Vec<_> = state
        .books
        .watches
        .iter()
        .filter(|(_, watch)| watch.acknowledged && !watch.removed && watch.verdict.is_none())
        .filter(|(run, watch)| {
            let ended = state
                .fates
                .get(*run)
                .and_then(|fate| fate.ends)
                .is_some_and(|(at, _)| at <= calm_since);
            ended || watch.deadline + state.books.stepped <= calm_since
        })
        .map(|(run, _)| run.to_string())
        .collect();
    if !overdue.is_empty() {
        state.broken(format!(
            "starved: {overdue:?} are over since {} s at least",
            calm_since / SECOND
        ));
    }
}

/// How much is still to be done: watches without a verdict, messages on their way.
pub(crate) fn open(state: &mut State) -> Result<(i64, i64), String> {
    let store = state.books.store()?;
    let count = |query: &str| {
        store
            .query_row(query, [], |row| row.get::<_, i64>(0))
            .map_err(sql)
    };
    Ok((
        count("SELECT count(*) FROM watches WHERE verdict IS NULL")?,
        count("SELECT count(*) FROM deliveries WHERE state IN ('pending', 'sending')")?,
    ))
}

/// What must hold once all is done: every message arrived, or was given up after its whole schedule; and what was
/// wrong with the API is reported to be over.
pub(crate) fn settled(state: &mut State) -> Result<(u64, u64), String> {
    let calm = state.life_began();
    let answers = state.usable.iter().any(|at| *at > calm);
    if let Some((seq, kind)) = state
        .books
        .incident
        .as_ref()
        .filter(|(_, kind)| answers && kind != "api.recovered")
    {
        return Err(format!(
            "the API answers, and {kind} (event {seq}) is the last event about it"
        ));
    }
    let gone = state.gone.clone();
    let arrived = state.books.arrived.clone();
    let retried = state.books.retried.clone();
    let store = state.books.store()?;
    // An attempt in whose midst the process died counts, and has no record of how it went.
    let query = "SELECT id, sink, state, attempts,
                     (SELECT count(*) FROM attempts a WHERE a.delivery_id = d.id AND delivered) FROM deliveries d";
    let mut statement = store.prepare(query).map_err(sql)?;
    let rows = statement.query_map([], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, String>(2)?,
            row.get::<_, u32>(3)?,
            row.get::<_, u32>(4)?,
        ))
    });
    let (mut delivered, mut dead) = (0, 0);
    for row in rows.map_err(sql)? {
        let (id, sink, word, attempts, successes) = row.map_err(sql)?;
        match word.as_str() {
            "delivered" if !arrived.contains(&id) => {
                return Err(format!("{id} for {sink} is delivered, and never arrived"));
            }
            "delivered" if successes != 1 => {
                return Err(format!("{id} for {sink} arrived in {successes} attempts"));
            }
            "delivered" => delivered += 1,
            "dead" => {
                let before = retried.get(&id).copied().unwrap_or(0);
                let whole = u32::try_from(SCHEDULE.len()).unwrap_or(u32::MAX) + 1;
                if attempts < before + whole && !gone.contains(&sink) {
                    return Err(format!(
                        "{id} for {sink} was given up after {attempts} attempts, {before} of them before"
                    ));
                }
                dead += 1;
            }
            other => return Err(format!("{id} for {sink} is {other} when all is done")),
        }
    }
    Ok((delivered, dead))
}

/// Whether each message had one ID on all its attempts.
pub(crate) fn receipts(state: &State) -> Result<(), String> {
    let mut ids: BTreeMap<_, &str> = BTreeMap::new();
    for receipt in &state.receipts {
        if let Some(run) = &receipt.run {
            let message = (
                run,
                receipt.generation,
                receipt.sink.as_str(),
                receipt.event_type.as_str(),
            );
            let first = ids.entry(message).or_insert(&receipt.delivery);
            if *first != receipt.delivery {
                return Err(format!(
                    "{message:?} was sent as {first} and as {}",
                    receipt.delivery
                ));
            }
        }
    }
    Ok(())
}

/// Whether each attempt was made neither early nor late.
pub(crate) fn attempts(state: &State) -> Result<(), String> {
    let mut of_sink: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
    for attempt in &state.attempts {
        of_sink.entry(&attempt.sink).or_default().push(attempt);
    }
    // Whether the process had peace, and the sink was there and had room for another attempt.
    let free = |sink: &str, from: Ms, until: Ms| {
        let under_way = |a: &&&Attempt| a.at <= until && a.ended.is_none_or(|ended| ended >= from);
        let others = of_sink
            .get(sink)
            .into_iter()
            .flatten()
            .filter(under_way)
            .count();
        sink != state.books.choosy
            && others < AT_ONCE
            && !state.gone.contains(sink)
            && state.peaceful(from, until)
    };
    let created: BTreeMap<&str, &Delivery> = state
        .books
        .deliveries
        .values()
        .map(|delivery| (delivery.id.as_str(), delivery))
        .collect();
    let mut last: BTreeMap<&str, &Attempt> = BTreeMap::new();
    for attempt in &state.attempts {
        let before = last.insert(&attempt.delivery, attempt);
        if state.books.retried.contains_key(&attempt.delivery) {
            continue;
        }
        let Some((before, ended)) = before.and_then(|before| Some((before, before.ended?))) else {
            let delivery = created
                .get(attempt.delivery.as_str())
                .filter(|_| attempt.number == 1);
            if let Some(delivery) = delivery.filter(|delivery| delivery.life == attempt.life)
                && attempt.at > delivery.created + SLACK
                && free(&attempt.sink, delivery.created, attempt.at)
            {
                return Err(format!(
                    "{attempt:?} is the first, and came late after {delivery:?}"
                ));
            }
            continue;
        };
        let Some(planned) = SCHEDULE.get(before.number as usize - 1) else {
            continue;
        };
        if before.life != attempt.life || attempt.number != before.number + 1 {
            continue;
        }
        let requested = before.retry_after.min(planned * 2);
        let (earliest, latest) = (
            (planned * 8 / 10).max(requested),
            (planned * 12 / 10).max(requested),
        );
        // A clock that is set moves the times of attempts that wait, once that is seen.
        let steady = state.books.unsteady_until < before.at;
        if steady && attempt.at + SECOND < ended + earliest {
            return Err(format!("{attempt:?} came early after {before:?}"));
        }
        if steady
            && attempt.at > ended + latest + SLACK
            && free(&attempt.sink, ended + SECOND, attempt.at)
        {
            return Err(format!("{attempt:?} came late after {before:?}"));
        }
    }
    Ok(())
}

/// Whether no window of a minute has more requests than the largest budget that was in force in it.
pub(crate) fn within_budget(state: &State) -> Result<(), String> {
    let (requests, budgets) = (&state.requests, &state.books.budgets);
    for (index, began) in requests.iter().enumerate() {
        let first = budgets
            .partition_point(|(from, _)| from <= began)
            .saturating_sub(1);
        let live_config = budgets[first..]
            .iter()
            .take_while(|(from, _)| *from < began + MINUTE);
        let budget = live_config.map(|(_, budget)| *budget).max().unwrap_or(0);
        if let Some(ends) = requests
            .get(index + budget)
            .filter(|ends| *ends - began < MINUTE)
        {
            return Err(format!(
                "{} requests from {began} ms to {ends} ms, with a budget of {budget}",
                budget + 1
            ));
        }
    }
    Ok(())
}

/// Deliveries that were given up, to be retried by request.
pub(crate) fn dead(state: &mut State) -> Result<Vec<(String, u32)>, String> {
    let store = state.books.store()?;
    let query = "SELECT id, attempts FROM deliveries WHERE state = 'dead' ORDER BY event_seq, sink";
    let mut statement = store.prepare_cached(query).map_err(sql)?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(sql)?;
    rows.collect::<Result<_, _>>().map_err(sql)
}
