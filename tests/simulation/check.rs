//! What must hold at every moment: the books of the store, read beside the process, held against the record
//! of what really happened.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use runwatch::run::{RunId, Verdict};
use rusqlite::{Connection, OpenFlags};

use crate::world::{Answered, HOUR, MINUTE, Ms, Receipt, SECOND, Said, State, Weather};

/// How long a process at peace may take to see that a clock was set, and to store what follows.
const CLOCK_SEEN: Ms = 10 * SECOND;

/// How long after its deadline a watch may be without a verdict in a process at peace, whatever the API does;
/// and how long after its end a run, where the API answers as it should: the longest interval, and the
/// turns of all others in the smallest budget.
const LATEST: Ms = 5 * MINUTE;

/// After how long without a usable answer the API is silent: the longest interval.
const SILENCE: Ms = 30 * SECOND;

/// How long every answer must be 404 before a run is not found.
pub(crate) const GRACE: Ms = 2 * MINUTE;

/// Waits before the second and each further attempt, as documented.
pub(crate) const SCHEDULE: [Ms; 7] = [5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 10 * HOUR];

/// A watch that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The process said that it watches it.
    pub(crate) acknowledged: bool,
    /// It was asked to watch no more, and may have heard.
    pub(crate) removed: bool,
    pub(crate) deadline: Ms,
    /// The life in which its end came to be known, and how.
    verdict: Option<Verdict>,
    /// Requests about it by then.
    asked_by_then: usize,
}

impl Asked {
    pub(crate) fn until(deadline: Ms) -> Self {
        Self { acknowledged: false, removed: false, deadline, verdict: None, asked_by_then: 0 }
    }
}

/// The store as others see it, and what was seen in it.
pub(crate) struct Books {
    path: PathBuf,
    store: Option<Connection>,
    pub(crate) watches: BTreeMap<RunId, Asked>,
    /// The delivery of each event for each sink, as first seen.
    deliveries: BTreeMap<(i64, String), String>,
    /// Deliveries that were asked for again, and how many attempts they had when that was last granted.
    pub(crate) asked_again: BTreeMap<String, u32>,
    /// Until when attempts may come early: the clock was set, or the machine slept.
    pub(crate) unsteady_until: Ms,
    /// How far the wall clock was set without the process having had the time to take all marks along.
    stepped: Ms,
    /// When, and how far, the clock was set last, and the process may be at it.
    stepping: Option<(Ms, Ms)>,
    /// Sinks that every watch tells.
    pub(crate) always: BTreeSet<String>,
}

fn sql(error: rusqlite::Error) -> String {
    format!("the store cannot be read beside the process: {error}")
}

impl Books {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            store: None,
            watches: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            asked_again: BTreeMap::new(),
            unsteady_until: 0,
            stepped: 0,
            stepping: None,
            always: BTreeSet::new(),
        }
    }

    /// How many watches ended in which way.
    pub(crate) fn verdicts(&self) -> BTreeMap<&'static str, u64> {
        let mut verdicts = BTreeMap::new();
        for verdict in self.watches.values().filter_map(|asked| asked.verdict) {
            *verdicts.entry(verdict.as_str()).or_default() += 1;
        }
        verdicts
    }

    /// Lets go of the file, which the next process may find as the last one left it.
    pub(crate) fn close(&mut self) {
        (self.store, self.stepping) = (None, None);
    }

    /// Takes note that the wall clock is set `far` forward or back now.
    pub(crate) fn clock_set(&mut self, now: Ms, far: Ms) {
        self.stepped += far;
        let far = far + self.stepping.map_or(0, |(_, before)| before);
        self.stepping = Some((now, far));
    }

    fn store(&mut self) -> Result<&Connection, String> {
        if self.store.is_none() {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
            self.store = Some(Connection::open_with_flags(&self.path, flags).map_err(sql)?);
        }
        Ok(self.store.as_ref().expect("just opened"))
    }

    /// Whether a message may go out that a receiver is given now: what it tells is stored already, under this
    /// very delivery, which is not done with.
    pub(crate) fn admits(&mut self, receipt: &Receipt) -> Result<(), String> {
        let query =
            "SELECT d.sink, d.state, e.type FROM deliveries d JOIN events e ON e.seq = d.event_seq WHERE d.id = ?";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let store = self.store()?;
        let found: Result<(String, String, String), _> =
            store.prepare_cached(query).map_err(sql)?.query_row([&receipt.delivery], read);
        let told = receipt.event_type.as_str();
        match found {
            Ok((sink, state, event)) if sink == receipt.sink && event == told && state == "sending" => Ok(()),
            Ok(found) => Err(format!("{receipt:?} was sent, and the store has {found:?}")),
            // It may have been removed while the message was on its way.
            Err(rusqlite::Error::QueryReturnedNoRows)
                if receipt.run.as_ref().is_some_and(|run| self.watches.get(run).is_some_and(|asked| asked.removed)) =>
            {
                Ok(())
            }
            Err(error) => Err(format!("{receipt:?} was sent before it was stored: {error}")),
        }
    }
}

/// Looks through the books. What is wrong is noted in the state.
pub(crate) fn look(state: &mut State) {
    if let Err(broken) = looked(state) {
        state.broken(broken);
    }
}

/// What is in the store.
struct Contents {
    /// Watches by run, with their verdicts.
    watches: BTreeMap<String, Option<String>>,
    /// Events about runs: number, run and type.
    events: Vec<(i64, String, String)>,
    /// Deliveries: event, sink and ID.
    deliveries: Vec<(i64, String, String)>,
}

impl Contents {
    fn of(store: &Connection) -> Result<Self, rusqlite::Error> {
        let triples = |query: &str| {
            let mut statement = store.prepare_cached(query)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect::<Result<Vec<(i64, String, String)>, _>>()
        };
        let mut statement = store.prepare_cached("SELECT run_id, verdict FROM watches")?;
        let watches = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(Self {
            watches,
            events: triples("SELECT seq, run_id, type FROM events WHERE run_id IS NOT NULL ORDER BY seq")?,
            deliveries: triples("SELECT event_seq, sink, id FROM deliveries")?,
        })
    }
}

fn looked(state: &mut State) -> Result<(), String> {
    let now = state.now();
    if let Some((_, far)) =
        state.books.stepping.filter(|(at, _)| state.alive && now >= at.max(&state.unrest) + CLOCK_SEEN)
    {
        state.books.stepped -= far;
        state.books.stepping = None;
    }
    let Contents { watches: stored, events, deliveries } = Contents::of(state.books.store()?).map_err(sql)?;
    for (seq, sink, id) in &deliveries {
        let first = state.books.deliveries.entry((*seq, sink.clone())).or_insert_with(|| id.clone());
        if first != id {
            return Err(format!("event {seq} has the deliveries {first} and {id} for {sink}"));
        }
    }
    let verdict_events = |run: &str| -> Vec<(i64, Verdict)> {
        let of_run = events.iter().filter(|(_, id, _)| id == run);
        let verdicts = Verdict::WORST_FIRST.map(|verdict| (verdict.event_type().as_str(), verdict));
        of_run.filter_map(|(seq, _, word)| Some((*seq, verdicts.iter().find(|(name, _)| name == word)?.1))).collect()
    };
    let runs: Vec<RunId> = state.books.watches.keys().cloned().collect();
    for run in runs {
        let asked = state.books.watches[&run].clone();
        let Some(verdict) = stored.get(run.as_str()) else {
            if asked.acknowledged && !asked.removed {
                return Err(format!("the watch of {run} was acknowledged, and is not in the store"));
            }
            continue;
        };
        let told = verdict_events(run.as_str());
        let verdict = verdict.as_deref().map(|word| Verdict::from_word(word).ok_or(format!("{word} is no verdict")));
        let Some(verdict) = verdict.transpose()? else {
            if !told.is_empty() || asked.verdict.is_some() {
                return Err(format!("{run} is told of as {told:?} (before: {:?}) and has no verdict", asked.verdict));
            }
            continue;
        };
        let [(seq, event)] = told[..] else { return Err(format!("{run} has the verdict events {told:?}")) };
        if event != verdict || asked.verdict.is_some_and(|before| before != verdict) {
            return Err(format!("{run}: {verdict:?} is stored, {event:?} told, {:?} before", asked.verdict));
        }
        for sink in &state.books.always {
            if !deliveries.iter().any(|(of, to, _)| *of == seq && to == sink) {
                return Err(format!("the verdict of {run} has no message for {sink}"));
            }
        }
        let requests = state.answers.get(&run).map_or(0, Vec::len);
        if asked.verdict.is_none() {
            justified(state, &run, verdict, now)?;
            let asked = state.books.watches.get_mut(&run).expect("looked at");
            (asked.verdict, asked.asked_by_then) = (Some(verdict), requests);
        } else if requests > asked.asked_by_then {
            return Err(format!("{run} was asked for after its verdict"));
        }
    }
    Ok(())
}

/// Whether the API said what the verdict says, or, at a deadline, whether that had come.
fn justified(state: &State, run: &RunId, verdict: Verdict, now: Ms) -> Result<(), String> {
    let none = Vec::new();
    let answers: &Vec<Answered> = state.answers.get(run).unwrap_or(&none);
    // An answer that came to a dead process was not heard.
    let heard: Vec<&Answered> = answers.iter().filter(|answered| answered.said != Said::Orphaned).collect();
    let asked = &state.books.watches[run];
    let deadline_came = now + state.books.stepped + SECOND >= asked.deadline;
    // What a process before was told, this one must not go by; but a run that ended has ended.
    let told_now: Vec<&&Answered> = heard.iter().filter(|answered| answered.life == state.life).collect();
    let said = told_now.last().map(|answered| answered.said);
    let known_end = told_now.iter().any(|answered| matches!(answered.said, Said::Ended(_)));
    let right = match verdict {
        Verdict::Succeeded | Verdict::Failed | Verdict::Canceled => {
            let truth = state.fates.get(run).and_then(|fate| fate.ends);
            said == Some(Said::Ended(verdict)) && truth.is_some_and(|(at, truth)| at <= now && truth == verdict)
        }
        Verdict::NotFound => {
            let missing = told_now.iter().rev().take_while(|answered| answered.said == Said::Missing);
            let span = missing.last().map_or(0, |first| now - first.at);
            !known_end && span + state.books.stepped + SECOND >= GRACE
        }
        Verdict::TimedOut => !known_end && deadline_came && said == Some(Said::Going),
        Verdict::Unreachable => {
            let silent = silent_between(&state.usable, asked.deadline, now);
            !known_end && deadline_came && (said != Some(Said::Going) || silent)
        }
    };
    if right {
        return Ok(());
    }
    let said: Vec<String> =
        answers.iter().rev().take(8).map(|a| format!("{:?} at {} s", a.said, a.at / SECOND)).collect();
    Err(format!("{run} is {verdict:?} at {} s (deadline {} s) after {said:?}", now / SECOND, asked.deadline / SECOND))
}

/// Whether at some moment from `deadline` until `now` the API had been silent for so long that an answer from before
/// says nothing any more.
fn silent_between(usable: &[Ms], deadline: Ms, now: Ms) -> bool {
    let since = usable.iter().rposition(|at| *at <= deadline).map_or(0, |index| usable[index]);
    let answers = usable.iter().copied().filter(|at| *at > deadline).chain([now]);
    answers.fold((since, false), |(since, silent), at| (at, silent || at - since > SILENCE)).1
}

/// Whether a process at peace has given the verdicts that it must have by now.
pub(crate) fn nobody_waits(state: &mut State) {
    let now = state.now();
    if now < state.unrest + LATEST {
        return;
    }
    if state.weather != Weather::Fine {
        state.api_trouble = state.api_trouble.max(now);
    }
    let told = now >= state.api_trouble + LATEST;
    let waits = state.books.watches.iter().find(|(run, asked)| {
        let over = state.fates.get(*run).and_then(|fate| fate.ends).is_some_and(|(at, _)| at + LATEST <= now);
        let open = asked.acknowledged && !asked.removed && asked.verdict.is_none();
        open && ((told && over) || asked.deadline + state.books.stepped + LATEST <= now)
    });
    if let Some((run, asked)) = waits {
        let (deadline, peace) = (asked.deadline / SECOND, state.unrest / SECOND);
        let broken =
            format!("{run} has no verdict yet (deadline {deadline} s), nothing having gone wrong since {peace} s");
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
        .filter(|(_, asked)| asked.acknowledged && !asked.removed && asked.verdict.is_none())
        .filter(|(run, asked)| {
            let ended = state.fates.get(*run).and_then(|fate| fate.ends).is_some_and(|(at, _)| at <= calm_since);
            ended || asked.deadline + state.books.stepped <= calm_since
        })
        .map(|(run, _)| run.to_string())
        .collect();
    if !overdue.is_empty() {
        state.broken(format!("starved: {overdue:?} are over since {} s at least", calm_since / SECOND));
    }
}

/// How much is still to be done: watches without a verdict, messages on their way.
pub(crate) fn open(state: &mut State) -> Result<(i64, i64), String> {
    let store = state.books.store()?;
    let count = |query: &str| store.query_row(query, [], |row| row.get::<_, i64>(0)).map_err(sql);
    Ok((
        count("SELECT count(*) FROM watches WHERE verdict IS NULL")?,
        count("SELECT count(*) FROM deliveries WHERE state IN ('pending', 'sending')")?,
    ))
}

/// What must hold once all is done: every message arrived, or was given up after its whole schedule.
pub(crate) fn settled(state: &mut State) -> Result<(u64, u64), String> {
    let gone = state.gone.clone();
    let got: BTreeSet<String> = state.receipts.iter().map(|receipt| receipt.delivery.clone()).collect();
    let asked_again = state.books.asked_again.clone();
    let store = state.books.store()?;
    // An attempt in whose midst the process died counts, and nobody wrote down how it went.
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
        let (id, sink, word, attempts, arrived) = row.map_err(sql)?;
        match word.as_str() {
            "delivered" if !got.contains(&id) => {
                return Err(format!("{id} for {sink} is delivered, and nobody got it"));
            }
            "delivered" if arrived != 1 => return Err(format!("{id} for {sink} arrived in {arrived} attempts")),
            "delivered" => delivered += 1,
            "dead" => {
                let before = asked_again.get(&id).copied().unwrap_or(0);
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

/// Whether each message had one ID on all its attempts, and none came early.
pub(crate) fn receipts(state: &State) -> Result<(), String> {
    let mut ids: BTreeMap<_, &str> = BTreeMap::new();
    let mut last: BTreeMap<&str, &Receipt> = BTreeMap::new();
    for receipt in &state.receipts {
        if let Some(run) = &receipt.run {
            let message = (run, receipt.sink.as_str(), receipt.event_type.as_str());
            let first = ids.entry(message).or_insert(&receipt.delivery);
            if *first != receipt.delivery {
                return Err(format!("{message:?} was sent as {first} and as {}", receipt.delivery));
            }
        }
        if let Some(before) = last.insert(&receipt.delivery, receipt)
            && before.life == receipt.life
            && !state.books.asked_again.contains_key(&receipt.delivery)
            && state.books.unsteady_until < before.at
            && let Some(planned) = SCHEDULE.get(before.attempt as usize - 1)
            && receipt.attempt == before.attempt + 1
            && receipt.at + SECOND < before.at + planned * 8 / 10
        {
            return Err(format!("{receipt:?} came early after {before:?}"));
        }
    }
    Ok(())
}

/// Whether no window of a minute has more requests than the largest budget that was in force.
pub(crate) fn within_budget(requests: &[Ms], budget: usize) -> Result<(), String> {
    for window in requests.windows(budget + 1) {
        if window[budget] - window[0] < MINUTE {
            return Err(format!("{} requests from {} ms to {} ms", budget + 1, window[0], window[budget]));
        }
    }
    Ok(())
}

/// Deliveries that were given up, to be asked for again.
pub(crate) fn dead(state: &mut State) -> Result<Vec<(String, u32)>, String> {
    let store = state.books.store()?;
    let query = "SELECT id, attempts FROM deliveries WHERE state = 'dead' ORDER BY event_seq, sink";
    let mut statement = store.prepare_cached(query).map_err(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(sql)?;
    rows.collect::<Result<_, _>>().map_err(sql)
}
