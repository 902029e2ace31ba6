//! Discovery: runs that appear at the API without a request, the list that shows them, and what must come of it. The
//! rules are those of docs/finding-runs.md, and share no code with the program.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use runwatch::app::Engine;
use runwatch::clock::Clock;
use runwatch::config::{DiscoverySettings, Sources, load};
use runwatch::discovery::{Discoveries, DiscoveryPlan};
use runwatch::domain::{ProviderName, RunRef, RunState, Status, Verdict};
use runwatch::providers::{ListEntry, ListPage, ListRequest, PageRef};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::check::{Recorded, Requested, Watches, sql};
use crate::world::{
    Answered, Fate, HOUR, Listing, MINUTE, Ms, PAGE, Reported, SECOND, State, World, of_wall, wall,
};

/// How far behind a list may be, and how far a round reads back.
const OVERLAP: Ms = 10 * MINUTE;

/// How long before the newest complete round the end of an unknown run may lie.
const OLDEST_END: Ms = 24 * HOUR;

/// How long a process at peace may take to watch a run that was listed.
const WATCHED: Ms = 2 * SECOND;

/// What the times of the API may differ by from those of the process.
const PRECISION: Ms = 2 * SECOND;

/// Most runs that the list has in one seed.
const MAX_FOUND: usize = 40;

/// The deadline of each watch is stored to the millisecond.
const SAME: Ms = 2;

/// The value of an entry that tells it from others, and the one that is the label for the choosy sink.
const GENERATION: &str = "commit";
const TEAM: &str = "actor";

/// What an entry of a list showed to a process.
#[derive(Debug, Clone)]
struct Shown {
    run: RunRef,
    /// The attempt that it is about, also where the API does not number them.
    attempt: u64,
    /// When that attempt started.
    starts_at: Option<Ms>,
    at: Ms,
    /// It showed the run as ended.
    has_ended: bool,
    /// When, if it showed that.
    ended_at: Option<Ms>,
}

/// A complete round.
#[derive(Debug, Clone, Copy)]
struct Round {
    began: Ms,
    ended: Ms,
    /// All its pages were true.
    is_true: bool,
}

/// What is known of the discovery.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The API numbers attempts.
    pub(crate) numbers: bool,
    /// The list has the times of ends.
    ends: bool,
    /// The list can leave out runs that have ended, and runs that are older than a time.
    filters_active: bool,
    filters_since: bool,
    /// How long a watch lasts.
    pub(crate) deadline: Ms,
    /// Runs may appear while pages are read.
    pub(crate) shifts: bool,
    /// When the discovery began.
    began: Option<Ms>,
    rounds: Vec<Round>,
    /// When a page was untrue last.
    untrue_at: Option<Ms>,
    /// How often the rounds were begun.
    pub(crate) beginnings: u32,
    /// What this process was shown, by the label that a watch has that comes of it.
    listings: BTreeMap<u32, Shown>,
    /// Entries that the process takes in soon, if nothing disturbs it, and whether a watch must come of them.
    awaited: Vec<(Shown, bool)>,
    /// Runs that were listed as ended before the discovery began, and were not watched.
    passed_over: BTreeMap<RunRef, Ms>,
    /// The latest attempt of each run that the discovery knows for good, and must not watch again.
    known: BTreeMap<RunRef, u64>,
    /// The latest attempt of each run that had a verdict. The discovery must not watch it as long as that is stored.
    ended: BTreeMap<RunRef, u64>,
    /// Runs of which a watch ended that had observed none of their attempts, so that none is known for another one.
    unseen: BTreeSet<RunRef>,
    /// The latest attempt of each run that the discovery need not watch.
    handled: BTreeMap<RunRef, u64>,
    /// How many watches it added.
    pub(crate) added: u64,
}

/// A discovery as the configuration has it. The API of the simulation is Crewship's, whose profile has no list; that of
/// GitHub has all filters.
static SETTINGS: LazyLock<DiscoverySettings> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("config.toml");
    let text = format!(
        "[[discover]]\nprovider = \"github\"\nmatch = {{ owner = \"acme\", repo = \"site\" }}\nname = \"{{id}} {{attempt}}\"\n\
         labels = {{ generation = \"{{{GENERATION}}}\", team = \"{{{TEAM}}}\" }}\n"
    );
    std::fs::write(&file, text).expect("the file is written");
    let sources = Sources {
        explicit: Some(file),
        ..Sources::default()
    };
    let mut settings = load(&sources).expect("it is right").settings;
    let mut discovery = settings.discoveries.pop().expect("there is one");
    discovery.provider = ProviderName::crewship();
    discovery
});

impl Ledger {
    pub(crate) fn new(random: &mut fastrand::Rng) -> Self {
        // Reading it draws random numbers of the thread, on which a life must not depend.
        LazyLock::force(&SETTINGS);
        let filters_since = random.bool();
        let deadline = random.choice([10 * MINUTE, HOUR, 6 * HOUR, 12 * HOUR]);
        Self {
            numbers: random.u32(0..4) != 0,
            ends: random.u32(0..4) != 0,
            filters_active: filters_since || random.bool(),
            filters_since,
            deadline: deadline.unwrap_or(HOUR),
            shifts: true,
            began: None,
            rounds: Vec::new(),
            untrue_at: None,
            beginnings: 0,
            listings: BTreeMap::new(),
            awaited: Vec::new(),
            passed_over: BTreeMap::new(),
            known: BTreeMap::new(),
            ended: BTreeMap::new(),
            unseen: BTreeSet::new(),
            handled: BTreeMap::new(),
            added: 0,
        }
    }

    /// The discovery of the simulation, with a round that begins after each `every`.
    fn settings(&self, every: Ms) -> DiscoverySettings {
        let mut settings = SETTINGS.clone();
        settings.every = Duration::from_millis(every);
        let list = Arc::make_mut(&mut settings.profile).list.as_mut();
        let list = list.expect("the profile has a list");
        if !self.filters_active {
            list.active.clear();
        }
        if !self.filters_since {
            list.since = None;
        }
        settings
    }

    /// Takes note that what is listed now need not be watched: the process ends, or begins its rounds anew.
    pub(crate) fn interrupt(&mut self) {
        self.beginnings += 1;
        self.awaited.clear();
    }

    /// Takes note that a process begins, which knows nothing of what an earlier one was shown.
    pub(crate) fn forget_listings(&mut self) {
        self.interrupt();
        self.listings.clear();
    }

    fn is_handled(&self, run: &RunRef, attempt: u64) -> bool {
        reaches(&self.handled, run, attempt)
    }

    /// Takes note that an attempt must not be watched again.
    fn know(&mut self, run: &RunRef, attempt: u64) {
        for attempts in [&mut self.known, &mut self.handled] {
            raise(attempts, run, attempt);
        }
    }
}

fn reaches(attempts: &BTreeMap<RunRef, u64>, run: &RunRef, attempt: u64) -> bool {
    attempts.get(run).is_some_and(|latest| *latest >= attempt)
}

fn raise(attempts: &mut BTreeMap<RunRef, u64>, run: &RunRef, attempt: u64) {
    let latest = attempts.entry(run.clone()).or_default();
    *latest = attempt.max(*latest);
}

/// Runs that the list has, in the order in which they were made.
pub(crate) fn found_runs(state: &State) -> Vec<RunRef> {
    let found = state.fates.iter().filter(|(_, fate)| fate.found);
    found.map(|(run, _)| run.clone()).collect()
}

/// The ID of the next run that the list may have.
pub(crate) fn next_run(state: &State) -> Option<RunRef> {
    let runs = found_runs(state).len();
    (runs < MAX_FOUND).then(|| RunRef::new(&format!("found_{runs:02}")).expect("an ID"))
}

/// A run appears while pages are read, so that those behind it are on later ones than they were.
fn appear_now(state: &mut State) {
    let Some(run) = next_run(state) else {
        return;
    };
    let now = state.now();
    let length = state.random.u64(2 * SECOND..20 * MINUTE);
    state.note(
        "a run that appears while pages are read",
        format!("{run}, for {length} ms"),
    );
    let fate = Fate {
        appears_at: now,
        starts_at: now,
        ends: Some((now + length, Verdict::Failed)),
        odd: false,
        output: 0,
        earlier: Vec::new(),
        found: true,
    };
    state.fates.insert(run, fate);
}

/// Starts the rounds, as the daemon does.
pub(crate) fn start(world: &World, engine: &Engine, clock: &Clock, every: Ms) -> JoinSet<()> {
    let (settings, deadline) = {
        let state = world.lock();
        let ledger = state.discovery.as_ref().expect("there is a discovery");
        (ledger.settings(every), ledger.deadline)
    };
    let discoveries = Discoveries {
        lists: engine.watches.clone(),
        store: engine.store.clone(),
        clock: clock.clone(),
        metrics: engine.metrics.clone(),
        views: watch::Sender::new(Vec::new()),
    };
    let plan = DiscoveryPlan {
        discoveries: vec![settings].into(),
        routes: Arc::default(),
        deadline: Duration::from_millis(deadline),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { discoveries.run(plan).await });
    tasks
}

/// One page of the list, the newest runs first. Its entries have the numbers of attempts and the times of ends in any
/// case.
pub(crate) fn page(state: &mut State, request: &ListRequest, from: usize) -> ListPage {
    let (now, listing) = (state.now(), state.listing);
    let shifts = state.discovery.as_ref().is_some_and(|ledger| ledger.shifts);
    if from > 0 && shifts && state.random.u32(0..4) == 0 {
        appear_now(state);
    }
    let seen_at = listing.seen_at(now);
    let (random, fates) = (&mut state.random, &state.fates);
    let mut shown = Vec::new();
    for (run, fate) in fates.iter().filter(|(_, fate)| fate.found) {
        let Some(mut status) = fate.status(seen_at) else {
            continue;
        };
        if listing == Listing::Forever {
            status = Status::from(RunState::Running);
        }
        if listing == Listing::Lying && random.u32(0..3) == 0 {
            status = Status::from(random.choice(RunState::ALL).unwrap_or(RunState::Unknown));
        }
        let is_over = request.only_active && Verdict::of_status(&status).is_some();
        let is_old = request
            .since
            .is_some_and(|since| wall(fate.appears_at) < since);
        if listing.loses(run, random) || is_over || is_old {
            continue;
        }
        shown.push((fate.appears_at, fate.entry(run, status, seen_at, true)));
    }
    shown.sort_by(|(a, one), (b, other)| b.cmp(a).then_with(|| other.run_id.cmp(&one.run_id)));
    let mut entries: Vec<ListEntry> = shown.into_iter().map(|(_, entry)| entry).collect();
    match listing {
        Listing::Shuffled => random.shuffle(&mut entries),
        Listing::Foreign => {
            entries = ["github:acme/site/1", "ghost_0", "ghost_1"]
                .map(|id| {
                    let run = RunRef::new(id).expect("an ID");
                    ListEntry::new(run, Status::from(RunState::Running))
                })
                .into();
        }
        _ => {}
    }
    if let Some(word) = listing.word() {
        *state.faults.entry(word).or_default() += 1;
        let ledger = state.discovery.as_mut().expect("there is a discovery");
        ledger.untrue_at = Some(now);
    }
    let more = entries.len() > from + PAGE || listing == Listing::Endless;
    let entries: Vec<_> = entries.into_iter().skip(from).take(PAGE).collect();
    state.trace(format!("the list shows {} runs from {from}", entries.len()));
    ListPage {
        entries,
        next: more.then(|| PageRef::new((from + PAGE).to_string())),
        unreadable: 0,
    }
}

/// Hands a page out: what it shows is what the process knows from now on, if its rounds are those that requested it.
pub(crate) fn deliver(state: &mut State, page: &mut ListPage, beginnings: u32) {
    let now = state.now();
    for entry in &mut page.entries {
        if entry.run_id.provider_name() != ProviderName::crewship() {
            continue;
        }
        let generation = state.books.next_generation();
        entry
            .values
            .insert(GENERATION.to_owned(), generation.to_string());
        if is_labeled(&entry.run_id) {
            entry.values.insert(TEAM.to_owned(), "night".to_owned());
        }
        let ledger = state.discovery.as_mut().expect("there is a discovery");
        if !ledger.ends {
            entry.completed_at = None;
        }
        let of_world = |at: Option<jiff::Timestamp>| at.map(|at| of_wall(at.as_millisecond()));
        let listing = Shown {
            run: entry.run_id.clone(),
            attempt: entry.attempt.unwrap_or(1),
            starts_at: of_world(entry.started_at),
            at: now,
            has_ended: Verdict::of_status(&entry.status).is_some(),
            ended_at: of_world(entry.completed_at),
        };
        if !ledger.numbers {
            entry.attempt = None;
        }
        ledger.listings.insert(generation, listing.clone());
        let must = must_be_watched(state, &listing);
        let ledger = state.discovery.as_mut().expect("there is a discovery");
        if ledger.beginnings == beginnings {
            ledger.awaited.push((listing, must));
        }
    }
}

/// Whether watches of this run carry the label for the choosy sink.
fn is_labeled(run: &RunRef) -> bool {
    run.as_str().ends_with(['1', '4', '5', '8'])
}

/// Whether a watch must come of an entry. Takes note of runs that are passed over.
fn must_be_watched(state: &mut State, listing: &Shown) -> bool {
    let run = &listing.run;
    let has_watch = state
        .books
        .watches
        .get(run)
        .is_some_and(|watch| watch.acknowledged);
    let last_verdict = state.books.watches.get(run).and_then(|watch| watch.verdict);
    let created = state
        .fates
        .get(run)
        .map_or(listing.at, |fate| fate.appears_at);
    let ledger = state.discovery.as_mut().expect("there is a discovery");
    // Its first page comes after that was stored.
    let began = ledger.began.unwrap_or(0);
    let cursor = ledger.rounds.last().map(|round| round.began);
    let oldest = cursor.map_or(began, |at| at.saturating_sub(OLDEST_END).max(began));
    let is_first_look = cursor.is_none() && listing.at <= began + OVERLAP;
    let is_news = match listing.ended_at {
        _ if !listing.has_ended => true,
        _ if is_first_look => false,
        Some(end) => end >= oldest,
        None => cursor.is_some() && created >= oldest,
    };
    if !is_news {
        if !has_watch {
            ledger.passed_over.entry(run.clone()).or_insert(listing.at);
        }
        return false;
    }
    // Where no attempt is known by its number, another one is one that goes on and started after the last end.
    let has_number = ledger.known.contains_key(run) || ledger.ended.contains_key(run);
    let started_since =
        last_verdict.is_some_and(|(_, at)| listing.starts_at.is_some_and(|from| from > at));
    let is_distinct = (ledger.numbers && has_number) || (!listing.has_ended && started_since);
    let shows_next = !has_watch || (is_distinct && !ledger.unseen.contains(run));
    shows_next
        && !ledger.passed_over.contains_key(run)
        && !ledger.is_handled(run, listing.attempt)
        && !state.books.may_be_gone(run)
}

/// Recognizes watches that came of what a list showed.
pub(crate) fn recognize(state: &mut State, stored: &Watches, now: Ms) -> Result<(), String> {
    if state.discovery.is_none() {
        return Ok(());
    }
    for (id, of_run) in stored {
        let run = RunRef::new(id).map_err(|error| format!("{id}: {error}"))?;
        let Some((newest, _)) = of_run.last_key_value() else {
            continue;
        };
        let current = state.books.watches.get(&run);
        if current.is_some_and(|watch| watch.generation == *newest) {
            continue;
        }
        // Also an earlier one, where a later watch of the run was pruned and this one has deliveries that are pending.
        if state.books.knows(&run, *newest) {
            continue;
        }
        let ledger = state.discovery.as_mut().expect("there is one");
        let Some(listing) = ledger.listings.get(newest).cloned() else {
            return Err(format!(
                "watch {newest} of {run} is stored, and was neither requested nor listed"
            ));
        };
        justified(state, &run, &listing)?;
        let watch = read_watch(state, &run, *newest, &listing, now)?;
        let ledger = state.discovery.as_mut().expect("there is one");
        ledger.know(&run, listing.attempt);
        ledger.added += 1;
        if is_labeled(&run) {
            state.books.labeled.insert((run.clone(), *newest));
        }
        if watch.removed {
            state.books.removals.insert((run.clone(), *newest));
        }
        state.trace(format!("{run} is watched, as watch {newest}"));
        state.books.found(&run, watch, of_run, now)?;
    }
    Ok(())
}

/// Whether a watch may come of what a list showed.
fn justified(state: &State, run: &RunRef, listing: &Shown) -> Result<(), String> {
    let ledger = state.discovery.as_ref().expect("there is one");
    let began = ledger.began.unwrap_or(0);
    let is_known = reaches(&ledger.known, run, listing.attempt);
    let has_ended = reaches(&ledger.ended, run, listing.attempt);
    if listing.run != *run || is_known || (has_ended && !state.books.may_be_gone(run)) {
        return Err(format!("{run} is watched again after {listing:?}"));
    }
    let mut tries = state.fates.get(run).into_iter().flat_map(Fate::tries);
    let shown = tries.find(|attempt| attempt.number == listing.attempt);
    let end = shown.and_then(|attempt| attempt.ends).map(|(end, _)| end);
    if listing.has_ended && end.is_some_and(|end| end < began) {
        return Err(format!(
            "{run} is watched after {listing:?}; it ended at {end:?} ms, and the discovery began at {began} ms"
        ));
    }
    Ok(())
}

/// Reads when a watch was added, and its deadline.
fn read_watch(
    state: &mut State,
    run: &RunRef,
    generation: u32,
    listing: &Shown,
    now: Ms,
) -> Result<Requested, String> {
    let deadline = state.discovery.as_ref().map_or(0, |ledger| ledger.deadline);
    let is_being_removed = state.books.removing.as_ref() == Some(run);
    let query =
        "SELECT added_at, deadline_at FROM watches WHERE run_id = ? ORDER BY id DESC LIMIT 1";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let store = state.books.store()?;
    let mut statement = store.prepare_cached(query).map_err(sql)?;
    let times = statement.query_row([run.as_str()], read).map_err(sql)?;
    let (added, ends) = (of_wall(times.0), of_wall(times.1));
    if added < listing.at || added > now || ends.abs_diff(added + deadline) > SAME {
        return Err(format!(
            "{run} is watched from {added} ms until {ends} ms, after {listing:?}"
        ));
    }
    let mut watch = Requested::new(generation, added, ends, None);
    (watch.acknowledged, watch.removed) = (true, is_being_removed);
    Ok(watch)
}

/// Takes note of a verdict.
pub(crate) fn ended(state: &mut State, run: &RunRef, verdict: Verdict) {
    let now = state.now();
    let current = state
        .fates
        .get(run)
        .map_or(1, |fate| fate.try_at(now).number);
    let attempt = last_end(state, run).filter(|answer| answer.reported == Reported::Ended(verdict));
    let attempt = attempt.map(|answer| answer.attempt);
    let added = state.books.watches.get(run).map_or(0, |watch| watch.added);
    let mut answers = state.answers.get(run).into_iter().flatten();
    let was_seen = answers.any(|answer| answer.began >= added && answer.attempt > 0);
    let Some(ledger) = &mut state.discovery else {
        return;
    };
    if !was_seen {
        ledger.unseen.insert(run.clone());
    }
    if let Some(attempt) = attempt {
        raise(&mut ledger.ended, run, attempt);
    }
    // What a watch has observed without such an answer also depends on lists.
    raise(&mut ledger.handled, run, attempt.unwrap_or(current));
}

/// The last answer that showed a run as ended.
fn last_end<'a>(state: &'a State, run: &RunRef) -> Option<&'a Answered> {
    let answers = state.answers.get(run)?;
    answers
        .iter()
        .rfind(|answer| matches!(answer.reported, Reported::Ended(_)))
}

/// Whether a verdict is late where the run ended before it was watched, and not where it ended after that.
pub(crate) fn late(state: &State, event: &Recorded) -> Result<(), String> {
    let Some(run) = event.run.as_ref().filter(|_| state.discovery.is_some()) else {
        return Ok(());
    };
    let Some(fate) = state.fates.get(run).filter(|fate| fate.found) else {
        return Ok(());
    };
    let verdicts = [
        Verdict::Succeeded,
        Verdict::Failed,
        Verdict::Canceled,
        Verdict::Skipped,
    ];
    let is_end = verdicts
        .iter()
        .any(|verdict| verdict.event_type().as_str() == event.kind);
    let watch = state
        .books
        .watches
        .get(run)
        .filter(|watch| watch.generation == event.generation);
    let end = last_end(state, run).and_then(|answer| {
        fate.tries()
            .find(|attempt| attempt.number == answer.attempt)
    });
    let (Some(watch), Some((end, _)), true) = (watch, end.and_then(|end| end.ends), is_end) else {
        return Ok(());
    };
    // What a list shows counts as polls of runs that go on, also where it is not true.
    let untrue_at = state.discovery.as_ref().and_then(|ledger| ledger.untrue_at);
    let was_true = state.list_trouble == 0 && untrue_at.is_none_or(|at| at + SECOND < watch.added);
    let must = end + PRECISION < watch.added && was_true;
    let must_not = end > watch.added.max(state.life_began()) + PRECISION;
    if (must && !event.late) || (must_not && event.late) {
        return Err(format!(
            "{event:?}: the run ended at {end} ms, and was watched from {} ms",
            watch.added
        ));
    }
    Ok(())
}

/// Takes note of how far the discovery has come, as the store has it.
pub(crate) fn rounds(state: &mut State) -> Result<(), String> {
    let now = state.now();
    if state.discovery.is_none() {
        return Ok(());
    }
    let store = state.books.store()?;
    let query = "SELECT began_at, rounds, cursor_at FROM discoveries";
    let read = |row: &rusqlite::Row<'_>| {
        Ok((
            row.get::<_, i64>(0)?,
            row.get::<_, u32>(1)?,
            row.get::<_, Option<i64>>(2)?,
        ))
    };
    let mut statement = store.prepare_cached(query).map_err(sql)?;
    let rows: Result<Vec<_>, _> = statement.query_map([], read).map_err(sql)?.collect();
    let rows = rows.map_err(sql)?;
    drop(statement);
    let ledger = state.discovery.as_mut().expect("there is one");
    let [(began, rounds, cursor)] = rows[..] else {
        return match rows.len() {
            0 if ledger.began.is_none() => Ok(()),
            rows => Err(format!("there are {rows} discoveries")),
        };
    };
    let (began, rounds) = (of_wall(began), rounds as usize);
    if *ledger.began.get_or_insert(began) != began || rounds < ledger.rounds.len() {
        return Err(format!("the discovery began anew at {began} ms"));
    }
    if rounds > ledger.rounds.len() {
        let began = cursor.map(of_wall).ok_or("a round has no cursor")?;
        let round = Round {
            began,
            ended: now,
            is_true: ledger.untrue_at.is_none_or(|at| at < began),
        };
        ledger.rounds.push(round);
        if rounds != ledger.rounds.len() {
            return Err(format!("{rounds} rounds were complete at once"));
        }
        state.trace(format!("a round is complete that began at {began} ms"));
    }
    Ok(())
}

/// Whether what was listed long enough ago is watched, or known.
pub(crate) fn look(state: &mut State) -> Result<(), String> {
    rounds(state)?;
    let now = state.now();
    let Some(ledger) = &mut state.discovery else {
        return Ok(());
    };
    let awaited = std::mem::take(&mut ledger.awaited).into_iter();
    let (due, rest): (Vec<_>, Vec<_>) =
        awaited.partition(|(listing, _)| listing.at + WATCHED <= now);
    ledger.awaited = rest;
    for (listing, must) in due {
        let (run, attempt) = (&listing.run, listing.attempt);
        let (at, until) = (listing.at, listing.at + WATCHED);
        if !state.peaceful(at, until) || state.awake_between(at, until) < until - at {
            continue;
        }
        let watch = state
            .books
            .watches
            .get(run)
            .filter(|watch| watch.acknowledged);
        let active = watch.filter(|watch| watch.verdict.is_none());
        let is_known = match active {
            // A later attempt is not known before the watch has observed it.
            Some(watch) => observed(state, run, watch, at) >= attempt,
            None => reaches(
                &state.discovery.as_ref().expect("there is one").handled,
                run,
                attempt,
            ),
        };
        if must && active.is_none() && !is_known && !state.books.may_be_gone(run) {
            return Err(format!("no watch came of {listing:?}"));
        }
        if is_known && let Some(ledger) = &mut state.discovery {
            ledger.know(run, attempt);
        }
    }
    Ok(())
}

/// The latest attempt that a watch is certain to have observed, and to have stored, before a time.
fn observed(state: &State, run: &RunRef, watch: &Requested, before: Ms) -> u64 {
    let answers = state.answers.get(run).into_iter().flatten();
    let counts = |a: &&Answered| {
        let stored = a.at + WATCHED;
        a.began >= watch.added && stored <= before && state.peaceful(a.at, stored)
    };
    answers.filter(counts).map(|a| a.attempt).max().unwrap_or(0)
}

/// Whether every run was watched that had to be, once all is done.
pub(crate) fn settled(state: &State) -> Result<(), String> {
    let Some(ledger) = &state.discovery else {
        return Ok(());
    };
    let calm = state.life_began();
    let in_calm: Vec<&Round> = ledger
        .rounds
        .iter()
        .filter(|round| round.began >= calm)
        .collect();
    let [.., before, last] = in_calm[..] else {
        return Err(format!("{} rounds were complete in calm", in_calm.len()));
    };
    for (run, fate) in state.fates.iter().filter(|(_, fate)| fate.found) {
        let owed = owed(ledger, run, fate, (before, last));
        let Some(attempt) = owed.filter(|_| !state.books.may_be_gone(run)) else {
            continue;
        };
        let watch = state.books.watches.get(run);
        let is_active = watch.is_some_and(|watch| watch.acknowledged && watch.verdict.is_none());
        if !is_active && !ledger.is_handled(run, attempt) {
            return Err(format!(
                "attempt {attempt} of {run} was never watched: {fate:?}; the discovery began at {:?} ms, the last \
                 rounds were {before:?} and {last:?}",
                ledger.began
            ));
        }
    }
    Ok(())
}

/// The attempt of a run that had to be watched, after these last two rounds.
fn owed(ledger: &Ledger, run: &RunRef, fate: &Fate, rounds: (&Round, &Round)) -> Option<u64> {
    let (before, last) = rounds;
    let current = fate.try_at(before.began);
    let goes_on = fate.appears_at < before.began
        && current.ends.is_none_or(|(end, _)| end > last.ended)
        && fate.try_at(last.ended).number == current.number;
    // Without its number, an attempt that began before the verdict about the last one cannot be distinguished from that.
    let has_number =
        ledger.numbers && ledger.known.contains_key(run) && !ledger.unseen.contains(run);
    if ledger.filters_active && goes_on && (has_number || current.number == 1) {
        return Some(current.number);
    }
    let first = fate.tries().next()?;
    let end = first.ends.map(|(end, _)| end);
    was_in_reach(ledger, run, fate.appears_at, end).then_some(1)
}

/// Whether the first true round after a run was created had to read as far back as that.
fn was_in_reach(ledger: &Ledger, run: &RunRef, created: Ms, end: Option<Ms>) -> bool {
    let first = ledger
        .rounds
        .iter()
        .position(|round| round.is_true && round.began >= created);
    let (Some(first), Some(began)) = (first, ledger.began) else {
        return false;
    };
    if created < began || ledger.passed_over.contains_key(run) {
        return false;
    }
    let Some(previous) = first.checked_sub(1).map(|index| ledger.rounds[index].began) else {
        // What had ended when the discovery looked first does not count.
        return end.is_none_or(|end| end > ledger.rounds[first].ended);
    };
    let oldest = previous.saturating_sub(OLDEST_END);
    let is_news = match (end, ledger.ends) {
        (Some(end), true) => end >= oldest,
        _ => created >= oldest,
    };
    created + OVERLAP >= previous && is_news
}
