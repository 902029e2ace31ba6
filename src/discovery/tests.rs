use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::round::Followed;
use super::*;
use crate::clock::Clock;
use crate::config::{Settings, Sources, load};
use crate::domain::{
    FoundBy, Limits, Observation, OverdueAfter, PollOutcome, Progress, RunDetails, RunRef,
    RunState, Status, Verdict,
};
use crate::providers::{ListEntry, PageRef};
use crate::store::{Location, WatchId};

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

/// A run of the fake provider, at its current attempt.
#[derive(Debug, Clone)]
struct Run {
    number: u64,
    attempt: u64,
    created_at: i64,
    started_at: i64,
    ends_at: i64,
    /// Not listed before this.
    listed_at: i64,
    /// Not listed while this is later than now.
    hidden_until: i64,
}

impl Run {
    fn id(&self) -> RunRef {
        RunRef::new(&format!("github:acme/site/{}", self.number)).unwrap()
    }

    fn state(&self, now: i64) -> RunState {
        if now >= self.ends_at {
            RunState::Failed
        } else {
            RunState::Running
        }
    }
}

/// What the API is like.
#[derive(Debug, Clone, Copy)]
struct ApiTraits {
    page: usize,
    filters_active: bool,
    filters_since: bool,
    has_attempts: bool,
    has_ends: bool,
    /// A run is created and listed between the first page and the second.
    shifts: bool,
}

const GITHUB: ApiTraits = ApiTraits {
    page: 3,
    filters_active: true,
    filters_since: true,
    has_attempts: true,
    has_ends: true,
    shifts: false,
};

/// A provider, and the watches that its runs have.
struct World {
    api: ApiTraits,
    now: i64,
    runs: Vec<Run>,
    /// How many requests are answered before one fails; `None` for all.
    fails_after: Option<u32>,
    requests: u32,
    /// Each watch that was added: its number, its run, and how far it has come.
    watches: Vec<(WatchId, Watch, Progress)>,
}

#[derive(Clone)]
struct Fake {
    world: Arc<Mutex<World>>,
    store: Store,
}

impl World {
    fn listed(&mut self, request: &ListRequest) -> Result<ListPage, ApiError> {
        self.requests += 1;
        if let Some(left) = &mut self.fails_after {
            if *left == 0 {
                return Err(ApiError::Timeout);
            }
            *left -= 1;
        }
        let at: usize = request
            .page
            .as_ref()
            .map_or(0, |page| page.as_str().parse().unwrap());
        if self.api.shifts && at == self.api.page {
            self.create(1_000);
        }
        let now = self.now;
        let since = request
            .since
            .map_or(i64::MIN, |at| at.as_second() - 1_700_000_000);
        let is_listed = |run: &&Run| {
            run.listed_at <= now
                && run.hidden_until <= now
                && !(request.only_active && self.api.filters_active && now >= run.ends_at)
                && !(self.api.filters_since && run.created_at < since)
        };
        let mut listed: Vec<&Run> = self.runs.iter().filter(is_listed).collect();
        listed.sort_by_key(|run| std::cmp::Reverse((run.created_at, run.number)));
        let more = listed.len() > at + self.api.page;
        let entry = |run: &&Run| {
            let has_ended = now >= run.ends_at;
            ListEntry {
                attempt: self.api.has_attempts.then_some(run.attempt),
                created_at: Some(time(run.created_at)),
                started_at: Some(time(run.started_at)),
                completed_at: (has_ended && self.api.has_ends).then(|| time(run.ends_at)),
                values: BTreeMap::from([("branch".to_owned(), "main".to_owned())]),
                ..ListEntry::new(run.id(), Status::new(run.state(now), "status"))
            }
        };
        Ok(ListPage {
            entries: listed
                .iter()
                .skip(at)
                .take(self.api.page)
                .map(entry)
                .collect(),
            next: more.then(|| PageRef::new((at + self.api.page).to_string())),
            unreadable: 0,
        })
    }

    /// Creates a run that ends after so many seconds. Returns its index.
    fn create(&mut self, lasts: i64) -> usize {
        self.runs.push(Run {
            number: self.runs.len() as u64,
            attempt: 1,
            created_at: self.now,
            started_at: self.now,
            ends_at: self.now + lasts,
            listed_at: self.now,
            hidden_until: 0,
        });
        self.runs.len() - 1
    }

    /// Runs it again, if it has ended.
    fn rerun(&mut self, index: usize, lasts: i64) {
        let now = self.now;
        let run = &mut self.runs[index];
        if now > run.ends_at {
            run.attempt += 1;
            run.started_at = now;
            run.ends_at = now + lasts;
        }
    }

    /// The verdicts and the active watches of a run, with the attempts that they observed.
    fn watches_of(&self, index: usize) -> Vec<(Option<Verdict>, Option<u64>)> {
        let id = self.runs[index].id();
        let of_run = self
            .watches
            .iter()
            .filter(|(_, watch, _)| watch.run_id == id);
        of_run
            .map(|(_, _, progress)| {
                let details = progress.details.as_ref();
                (
                    progress.verdict,
                    details.and_then(|details| details.attempt),
                )
            })
            .collect()
    }
}

impl RunLists for Fake {
    async fn list(
        &self,
        _: &ProviderName,
        request: ListRequest,
    ) -> Result<Result<ListPage, ApiError>, StoreError> {
        Ok(self.world.lock().unwrap().listed(&request))
    }

    async fn add(&self, watch: Watch, origin: AddedBy) -> Result<Added, StoreError> {
        let AddedBy::Discovery(found) = origin else {
            unreachable!("only discoveries add here");
        };
        let (added, id) = self
            .store
            .add_discovered_watch(watch.clone(), *found)
            .await?;
        if let (Added::New, Some(id)) = (added, id) {
            let progress = Progress::begin(watch.added_at);
            self.world
                .lock()
                .unwrap()
                .watches
                .push((id, watch, progress));
        }
        Ok(added)
    }
}

/// A provider, a store, and a discovery of it.
struct Stage {
    discoveries: Discoveries<Fake>,
    settings: DiscoverySettings,
    plan: DiscoveryPlan,
    clock: Clock,
    _writer: JoinSet<()>,
}

/// Settings with this configuration.
fn settings(text: &str) -> Settings {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let sources = Sources {
        explicit: Some(path),
        ..Sources::default()
    };
    load(&sources).unwrap().settings
}

const DISCOVERY: &str =
    "[[discover]]\nprovider = \"github\"\nmatch = { owner = \"acme\", repo = \"site\" }\n";

impl Stage {
    fn new(api: ApiTraits) -> Self {
        let (store, writer) = Store::open(Location::Memory).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run());
        let world = World {
            api,
            now: 0,
            runs: Vec::new(),
            fails_after: None,
            requests: 0,
            watches: Vec::new(),
        };
        let clock = Clock::simulated(time(0));
        let lists = Fake {
            world: Arc::new(Mutex::new(world)),
            store: store.clone(),
        };
        let discoveries = Discoveries {
            lists,
            store,
            clock: clock.clone(),
            metrics: Metrics::default(),
            views: watch::Sender::new(Vec::new()),
        };
        let mut settings = settings(DISCOVERY).discoveries.pop().unwrap();
        settings.ignore_filters(!api.filters_active, !api.filters_since);
        let plan = DiscoveryPlan {
            discoveries: vec![settings.clone()].into(),
            routes: Arc::default(),
            deadline: Duration::from_secs(24 * 3600),
        };
        Self {
            discoveries,
            settings,
            plan,
            clock,
            _writer: tasks,
        }
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.discoveries.lists.world.lock().unwrap()
    }

    /// A discovery as a process begins it, or goes on with it.
    async fn start(&self) -> Followed<'_, Fake> {
        let begun = self.discoveries.begin(&self.plan).await.remove(0);
        Followed::new(&self.discoveries, &self.settings, &self.plan, begun)
    }

    /// Lets time pass, and all watches be polled.
    async fn pass(&self, seconds: i64) {
        tokio::time::advance(Duration::from_secs(seconds.cast_unsigned())).await;
        let now = self.clock.now();
        let polled = {
            let mut world = self.world();
            world.now = now.as_second() - 1_700_000_000;
            let (now_seconds, runs) = (world.now, world.runs.clone());
            let has_attempts = world.api.has_attempts;
            let mut steps = Vec::new();
            for (id, watch, progress) in &mut world.watches {
                if progress.verdict.is_some() {
                    continue;
                }
                let run = runs.iter().find(|run| run.id() == watch.run_id).unwrap();
                let details = RunDetails {
                    attempt: has_attempts.then_some(run.attempt),
                    started_at: Some(time(run.started_at)),
                    completed_at: (now_seconds >= run.ends_at).then(|| time(run.ends_at)),
                    ..RunDetails::default()
                };
                let status = Status::new(run.state(now_seconds), "status");
                let seen = PollOutcome::Seen(Box::new(Observation { status, details }));
                let limits = Limits {
                    not_found_grace: Duration::from_secs(120),
                    overdue_after: OverdueAfter::Never,
                    run_url: None,
                };
                let step = progress.step(watch, seen, now, &limits).unwrap();
                *progress = step.progress.clone();
                steps.push((*id, step));
            }
            steps
        };
        for (id, step) in polled {
            let store = &self.discoveries.store;
            let stored = store.record_step(id, step, Vec::new(), None, FoundBy::Poll, now);
            stored.await.unwrap();
        }
    }
}

/// One round that does not fail.
async fn complete(followed: &mut Followed<'_, Fake>) {
    let end = followed.round().await.unwrap();
    assert!(end.is_complete, "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn what_ended_before_is_not_watched_and_all_that_goes_on_or_ends_later_is_once() {
    let stage = Stage::new(GITHUB);
    let (old, going) = {
        let mut world = stage.world();
        (world.create(60), world.create(10_000))
    };
    stage.pass(3600).await;
    let mut followed = stage.start().await;
    complete(&mut followed).await;
    assert_eq!(stage.world().watches_of(old), []);
    assert_eq!(stage.world().watches_of(going).len(), 1);
    stage.pass(30).await;
    let short = stage.world().create(10);
    stage.pass(30).await;
    for _ in 0..3 {
        complete(&mut followed).await;
        assert_eq!(stage.world().watches_of(short).len(), 1);
        assert_eq!(stage.world().watches_of(old), []);
        stage.pass(60).await;
    }
    // The old one is too old for the list.
    assert_eq!((followed.stored.found, followed.stored.watched), (2, 2));

    // After hours without a process, what ended meanwhile is watched, and nothing twice.
    drop(followed);
    stage.pass(1800).await;
    let meanwhile = stage.world().create(60);
    stage.pass(7200).await;
    let mut followed = stage.start().await;
    complete(&mut followed).await;
    stage.pass(1).await;
    let world = stage.world();
    assert_eq!(
        world.watches_of(meanwhile),
        [(Some(Verdict::Failed), Some(1))]
    );
    assert_eq!(world.watches_of(going).len(), 1);
    assert_eq!(world.watches_of(old), []);
    let stored = (followed.stored.found, followed.stored.watched);
    assert_eq!(stored, (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_new_attempt_is_watched_with_and_without_numbers() {
    for has_attempts in [true, false] {
        let stage = Stage::new(ApiTraits {
            has_attempts,
            ..GITHUB
        });
        let (known, ended) = {
            let mut world = stage.world();
            (world.create(600), world.create(10))
        };
        stage.pass(300).await;
        let mut followed = stage.start().await;
        complete(&mut followed).await;
        stage.pass(600).await;
        complete(&mut followed).await;
        stage.pass(100).await;
        stage.world().rerun(known, 1000);
        stage.world().rerun(ended, 1000);
        stage.pass(10).await;
        for _ in 0..3 {
            complete(&mut followed).await;
            assert_eq!(stage.world().watches_of(known).len(), 2, "{has_attempts}");
            assert_eq!(stage.world().watches_of(ended).len(), 1, "{has_attempts}");
            stage.pass(60).await;
        }
        stage.pass(2000).await;
        let verdicts = stage.world().watches_of(known);
        assert!(
            verdicts
                .iter()
                .all(|(verdict, _)| *verdict == Some(Verdict::Failed))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_is_not_taken_for_known_until_a_watch_has_observed_it() {
    let stage = Stage::new(GITHUB);
    let run = stage.world().create(100);
    let mut followed = stage.start().await;
    complete(&mut followed).await;
    stage.pass(50).await;
    // The watch does not see the next attempt before its poll that was under way brings the end of the first.
    {
        let mut world = stage.world();
        world.runs[run].attempt = 2;
        world.runs[run].ends_at = 10_000;
    }
    complete(&mut followed).await;
    assert_eq!(stage.world().watches_of(run).len(), 1);
    let (id, watch, progress) = stage.world().watches[0].clone();
    let details = RunDetails {
        attempt: Some(1),
        completed_at: Some(time(49)),
        ..RunDetails::default()
    };
    let status = Status::new(RunState::Failed, "status");
    let seen = PollOutcome::Seen(Box::new(Observation { status, details }));
    let limits = Limits {
        not_found_grace: Duration::from_secs(120),
        overdue_after: OverdueAfter::Never,
        run_url: None,
    };
    let step = progress
        .step(&watch, seen, stage.clock.now(), &limits)
        .unwrap();
    stage.world().watches[0].2 = step.progress.clone();
    let store = &stage.discoveries.store;
    let stored = store.record_step(id, step, Vec::new(), None, FoundBy::Poll, stage.clock.now());
    stored.await.unwrap();
    complete(&mut followed).await;
    assert_eq!(stage.world().watches_of(run).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_round_that_reaches_a_limit_goes_on_in_the_next() {
    let stage = Stage::new(GITHUB);
    let runs = 3 * 20 * 3 + 5;
    for _ in 0..runs {
        stage.world().create(100_000);
    }
    let mut followed = stage.start().await;
    let mut rounds = 0;
    while !followed.round().await.unwrap().is_complete {
        rounds += 1;
        assert!(rounds < 10, "it ends");
        stage.pass(60).await;
        stage.world().create(100_000);
    }
    assert_eq!(rounds, 3);
    let world = stage.world();
    assert!((0..world.runs.len()).all(|run| world.watches_of(run).len() == 1));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_invents_runs_adds_no_more_than_the_limit_in_a_round() {
    let stage = Stage::new(ApiTraits {
        page: 700,
        ..GITHUB
    });
    for _ in 0..2_500 {
        stage.world().create(100_000);
    }
    let mut followed = stage.start().await;
    for (watches, is_complete) in [(1_000, false), (2_000, false), (2_500, true)] {
        assert_eq!(followed.round().await.unwrap().is_complete, is_complete);
        assert_eq!(stage.world().watches.len(), watches);
        stage.pass(60).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_that_fails_is_read_again_and_the_cursor_waits_for_it() {
    let stage = Stage::new(ApiTraits {
        filters_active: false,
        filters_since: false,
        ..GITHUB
    });
    stage.world().create(10);
    stage.pass(100).await;
    let mut followed = stage.start().await;
    complete(&mut followed).await;
    let cursor = followed.stored.cursor_at;
    for _ in 0..12 {
        stage.pass(1).await;
        stage.world().create(100_000);
    }
    // The first two of four pages with new runs are read, over and over.
    for _ in 0..3 {
        stage.world().fails_after = Some(2);
        let failed = followed.round().await.unwrap_err();
        assert!(
            failed.text().contains("no answer in time"),
            "{}",
            failed.text()
        );
        assert_eq!(stage.world().watches.len(), 6);
        assert_eq!(followed.stored.cursor_at, cursor);
        stage.pass(60).await;
    }
    stage.world().fails_after = None;
    complete(&mut followed).await;
    assert_eq!(stage.world().watches.len(), 12);
    // What is settled is not read again, as soon as no list can lag that far behind.
    stage.pass(700).await;
    complete(&mut followed).await;
    stage.pass(60).await;
    let before = stage.world().requests;
    complete(&mut followed).await;
    assert_eq!(stage.world().requests - before, 2);
}

#[tokio::test(start_paused = true)]
async fn failures_are_seen_and_rounds_grow_rarer_until_one_succeeds() {
    let stage = Stage::new(GITHUB);
    stage.world().fails_after = Some(0);
    let mut views = stage.discoveries.views.subscribe();
    let running = stage.discoveries.clone();
    let plan = stage.plan.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { running.run(plan).await });
    let failing = views.wait_for(|views| {
        views
            .iter()
            .any(|view| view.state == DiscoveryState::Failing)
    });
    let view = failing.await.unwrap()[0].clone();
    assert_eq!(view.title, "github owner=acme repo=site");
    assert!(
        view.last_error
            .unwrap()
            .message
            .contains("no answer in time")
    );
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let requests = stage.world().requests;
    assert!((6..=10).contains(&requests), "{requests} in an hour");
    stage.world().fails_after = None;
    let following = views.wait_for(|views| views[0].state == DiscoveryState::Following);
    let view = following.await.unwrap()[0].clone();
    assert!(view.last_round_at.is_some() && view.next_round_at > view.last_round_at);
    let scraped = crate::metrics::Scraped::default();
    let text = stage
        .discoveries
        .metrics
        .to_text(&scraped, crate::metrics::Format::Text);
    let line = "runwatch_discoveries{provider=\"github\",state=\"following\"} 1";
    assert!(text.contains(line), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_not_listed_when_missed_time_is_read_is_found_later() {
    for (filters_active, has_ends, days) in [(true, true, 0), (false, false, 0), (false, true, 3)] {
        let stage = Stage::new(ApiTraits {
            filters_active,
            has_ends,
            ..GITHUB
        });
        let mut followed = stage.start().await;
        complete(&mut followed).await;
        drop(followed);
        stage.pass(60).await;
        let run = stage.world().create(3000);
        stage.pass(28_000 + days * 24 * 3600).await;
        let hidden_until = stage.world().now + 300;
        stage.world().runs[run].hidden_until = hidden_until;
        let mut followed = stage.start().await;
        for round in 0..8 {
            complete(&mut followed).await;
            let watches = stage.world().watches_of(run).len();
            assert_eq!(watches, usize::from(round > 4), "{round}");
            stage.pass(60).await;
            // The daemon starts again meanwhile.
            followed = stage.start().await;
        }
    }
}

/// What happens next.
#[derive(Debug, Clone, Copy)]
enum ApiAct {
    Create { lasts: i64, lag: i64 },
    Rerun { of: usize, lasts: i64 },
    Hide { of: usize, seconds: i64 },
    Wait(i64),
    Round,
    FailedRound(u32),
    Restart { down: i64 },
}

fn acts() -> impl Strategy<Value = Vec<ApiAct>> {
    let act = prop_oneof![
        4 => (1..4000_i64, 0..200_i64).prop_map(|(lasts, lag)| ApiAct::Create { lasts, lag }),
        2 => (0..50_usize, 200..4000_i64).prop_map(|(of, lasts)| ApiAct::Rerun { of, lasts }),
        1 => (0..50_usize, 1..300_i64).prop_map(|(of, seconds)| ApiAct::Hide { of, seconds }),
        3 => (1..300_i64).prop_map(ApiAct::Wait),
        6 => Just(ApiAct::Round),
        2 => (0..6_u32).prop_map(ApiAct::FailedRound),
        1 => (0..30_000_i64).prop_map(|down| ApiAct::Restart { down }),
    ];
    proptest::collection::vec(act, 1..60)
}

fn apis() -> impl Strategy<Value = ApiTraits> {
    (5..9_usize, any::<[bool; 4]>()).prop_map(|(page, [active, since, ends, shifts])| ApiTraits {
        page,
        filters_active: active || since,
        filters_since: since,
        has_attempts: true,
        has_ends: ends,
        shifts,
    })
}

/// Plays a history, and checks that each attempt was watched as often as it has to be.
async fn play(api: ApiTraits, acts: Vec<ApiAct>) {
    let stage = Stage::new(ApiTraits {
        shifts: false,
        ..api
    });
    for lasts in [10, 50, 100_000] {
        stage.world().create(lasts);
    }
    stage.pass(1000).await;
    let mut followed = stage.start().await;
    complete(&mut followed).await;
    stage.world().api = api;
    for act in acts {
        match act {
            ApiAct::Create { lasts, lag } => {
                let mut world = stage.world();
                let index = world.create(lasts);
                world.runs[index].listed_at += lag;
            }
            ApiAct::Rerun { of, lasts } => {
                let mut world = stage.world();
                let of = of % world.runs.len();
                // The old ones are history.
                if of > 1 {
                    world.rerun(of, lasts);
                }
            }
            ApiAct::Hide { of, seconds } => {
                let mut world = stage.world();
                let (of, until) = (of % world.runs.len(), world.now + seconds);
                world.runs[of].hidden_until = until;
            }
            ApiAct::Wait(seconds) => stage.pass(seconds).await,
            ApiAct::Round => {
                followed.round().await.unwrap();
                stage.pass(1).await;
            }
            ApiAct::FailedRound(pages) => {
                stage.world().fails_after = Some(pages);
                drop(followed.round().await);
                stage.world().fails_after = None;
                stage.pass(1).await;
            }
            ApiAct::Restart { down } => {
                drop(followed);
                // Watches are not polled meanwhile, which only makes their verdicts later.
                stage.pass(down).await;
                followed = stage.start().await;
            }
        }
    }
    stage.world().api.shifts = false;
    for _ in 0..6 {
        stage.pass(120).await;
        followed.round().await.unwrap();
    }
    stage.pass(1).await;
    let world = stage.world();
    for (index, run) in world.runs.iter().enumerate() {
        let watches = world.watches_of(index);
        if index < 2 {
            assert_eq!(watches, [], "what ended before is not watched: {run:?}");
            continue;
        }
        let last = Some(run.attempt);
        let of_last = watches
            .iter()
            .filter(|(_, attempt)| *attempt == last)
            .count();
        // Another attempt of an old run is too deep in the list, unless the list has it among those that go on.
        let is_first = run.attempt == 1;
        let goes_on = world.now < run.ends_at;
        if is_first || (goes_on && api.filters_active) {
            assert_eq!(of_last, 1, "{run:?}: {watches:?} at {}", world.now);
        }
        for attempt in 1..=run.attempt {
            let times = watches
                .iter()
                .filter(|(_, seen)| *seen == Some(attempt))
                .count();
            assert!(times <= 1, "{run:?}: {watches:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_attempt_is_watched_once(api in apis(), acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(api, acts));
    }
}

#[test]
fn waits_double_up_to_a_quarter_of_an_hour() {
    let minutes = |failures| retry_after(Duration::from_secs(60), failures).as_secs() / 60;
    let waits: Vec<_> = [1, 2, 3, 4, 5, 6, 100].into_iter().map(minutes).collect();
    assert_eq!(waits, [1, 2, 4, 8, 15, 15, 15]);
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(retry_after(day, 9), day);
    assert!(SignedDuration::try_from(LONGEST_RETRY).is_ok());
}
