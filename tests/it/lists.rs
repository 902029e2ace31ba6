//! Lists in place of polls: what they save, and that none of their faults harms a watch. In paused time.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use runwatch::app;
use runwatch::clock::Clock;
use runwatch::config::Settings;
use runwatch::domain::{RunRef, RunState, Status, Verdict, Watch};
use runwatch::metrics::Metrics;
use runwatch::providers::{ApiError, ListEntry, ListPage, ListRequest, PageRef};
use runwatch::scheduler::{AddedBy, Policy, Scheduler, SchedulerHandle};
use runwatch::store::{Location, Store};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::provider::{Answer, FakeProvider, Listed, Listing, Poll, entry};
use crate::support::watches::{store_running, watch_of};

const MINUTE: Duration = Duration::from_secs(60);

/// The longest wait of the default settings.
const INTERVAL: Duration = Duration::from_secs(30);

/// When each run ends; `None` is never.
type Ends = Arc<dyn Fn(usize) -> Option<Duration> + Send + Sync>;

/// What a test knows of the time and the runs.
#[derive(Clone)]
struct Truth {
    began: Instant,
    ends: Ends,
}

impl Truth {
    fn now(ends: impl Fn(usize) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Self {
            began: Instant::now(),
            ends: Arc::new(ends),
        }
    }

    fn state(&self, run: usize) -> RunState {
        let over = (self.ends)(run).is_some_and(|ends| self.began.elapsed() >= ends);
        match over {
            true => RunState::Succeeded,
            false => RunState::Running,
        }
    }

    fn answer(&self, poll: &Poll) -> Answer {
        Answer::seen(self.state(number(&poll.run_id)))
    }

    /// The runs of these that go on.
    fn going(&self, runs: impl Iterator<Item = usize>) -> Vec<ListEntry> {
        runs.filter(|run| self.state(*run) == RunState::Running)
            .map(|run| entry(&id(run), RunState::Running))
            .collect()
    }
}

fn id(run: usize) -> String {
    format!("run_{run}")
}

fn number(run: &RunRef) -> usize {
    run.id()[4..].parse().unwrap()
}

fn watch(run: usize, added_at: Timestamp, deadline: Duration) -> Watch {
    watch_of(&id(run), added_at, deadline)
}

struct World {
    api: FakeProvider,
    clock: Clock,
    store: Store,
    watches: SchedulerHandle,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// A scheduler over watches of `runs` runs that were seen running an hour ago.
async fn world(api: FakeProvider, runs: usize, adjust: impl FnOnce(&mut Policy)) -> World {
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let (store, writer) = Store::open(Location::Memory).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    let long_ago = clock.now().checked_sub(MINUTE * 60).unwrap();
    let mut policy = app::policy(&Settings::default());
    adjust(&mut policy);
    for run in 0..runs {
        store_running(&store, &watch(run, long_ago, LONG), &policy.limits).await;
    }
    let active = store
        .active_watches(clock.now(), None, u32::MAX)
        .await
        .unwrap();
    let (mut scheduler, watches) = Scheduler::new(
        api.clone(),
        store.clone(),
        clock.clone(),
        policy,
        Metrics::default(),
        7,
    );
    scheduler.resume(active, runs as u64);
    let stop = CancellationToken::new();
    tasks.spawn(scheduler.run(stop.clone()));
    World {
        api,
        clock,
        store,
        watches,
        stop,
        _tasks: tasks,
    }
}

impl World {
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn verdict(&self, run: usize) -> Option<Verdict> {
        let run_id = RunRef::new(&id(run)).unwrap();
        let record = self.store.watch(run_id).await.unwrap().unwrap();
        record.verdict.map(|(verdict, _)| verdict)
    }

    /// The longest time without a poll of a run, from `from` on.
    fn longest_gap(&self, run: usize, from: Instant) -> Duration {
        let mut at: Vec<Instant> = self.api.polls_of(&id(run));
        at.retain(|at| *at >= from);
        at.insert(0, from);
        at.push(Instant::now());
        at.windows(2).map(|two| two[1] - two[0]).max().unwrap()
    }

    /// How many polls there were since.
    fn polls_since(&self, since: Instant) -> usize {
        self.api
            .polls()
            .iter()
            .filter(|poll| poll.at >= since)
            .count()
    }

    fn pages_since(&self, since: Instant) -> usize {
        self.api
            .listings()
            .iter()
            .filter(|page| page.at >= since)
            .count()
    }
}

/// The page of `all` that a request is for, of 20 entries.
fn page_of(all: Vec<ListEntry>, request: &ListRequest) -> Listed {
    let from: usize = request
        .page
        .as_ref()
        .map_or(0, |page| page.as_str().parse().unwrap());
    let next = (all.len() > from + 20).then(|| PageRef::new((from + 20).to_string()));
    Listed::of(Ok(ListPage {
        entries: all.into_iter().skip(from).take(20).collect(),
        next,
        unreadable: 0,
    }))
}

fn server_error() -> Listed {
    Listed::of(Err(ApiError::Status {
        status: 500,
        message: String::new(),
        retry_after: None,
    }))
}

#[tokio::test(start_paused = true)]
async fn one_list_stands_for_the_polls_of_all_that_it_shows() {
    let truth = Truth::now(|run| (run == 33).then_some(MINUTE * 10 + Duration::from_secs(7)));
    let (of_list, of_polls) = (truth.clone(), truth.clone());
    let api = FakeProvider::with_list(
        move |listing| page_of(of_list.going(0..60), &listing.request),
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 60, |_| {}).await;
    world.pass(MINUTE * 5).await;
    let since = Instant::now();
    world.pass(MINUTE * 5).await;
    let (polls, pages) = (world.polls_since(since), world.pages_since(since));
    // Polled one by one, they would take all of the budget: 46 each minute.
    assert!(pages <= 45 && polls <= 35, "{polls} polls, {pages} pages");
    world.pass(INTERVAL + Duration::from_secs(20)).await;
    assert_eq!(world.verdict(33).await, Some(Verdict::Succeeded));
    assert_eq!(world.verdict(34).await, None);
}

#[tokio::test(start_paused = true)]
async fn what_a_list_shows_as_an_end_is_no_end() {
    // It shows every third run as ended, and none of them has.
    let truth = Truth::now(|_| None);
    let api = FakeProvider::with_list(
        |listing| {
            let state = |run: usize| match run % 3 {
                0 => RunState::Succeeded,
                _ => RunState::Running,
            };
            let all = (0..60).map(|run| entry(&id(run), state(run)));
            page_of(all.collect(), &listing.request)
        },
        move |poll| truth.answer(poll),
    );
    let world = world(api, 60, |_| {}).await;
    world.pass(MINUTE * 60).await;
    for run in 0..60 {
        assert_eq!(world.verdict(run).await, None, "run_{run}");
    }
    // Polled on suspicion once or twice in ten minutes each, and not again and again.
    let polls = world.polls_since(Instant::now() - MINUTE * 30);
    assert!(polls < 46 * 30, "{polls} polls");
    let each = (0..60).map(|run| world.api.polls_of(&id(run)).len());
    assert!(
        each.clone().min() >= Some(2),
        "{:?}",
        each.collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_that_a_list_loses_is_polled_and_goes_on() {
    // Each answer loses a run, another one each time.
    let truth = Truth::now(|_| None);
    let (of_list, of_polls) = (truth.clone(), truth);
    let api = FakeProvider::with_list(
        move |listing| {
            let lost = listing.number % 60;
            let all = of_list.going((0..60).filter(|run| *run != lost));
            page_of(all, &listing.request)
        },
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 60, |_| {}).await;
    world.pass(MINUTE * 30).await;
    for run in 0..60 {
        assert_eq!(world.verdict(run).await, None, "run_{run}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_rests_longer_each_time_and_polls_go_on() {
    let truth = Truth::now(|run| (run == 5).then_some(MINUTE * 30));
    let api = FakeProvider::with_list(|_| server_error(), move |poll| truth.answer(poll));
    let world = world(api, 40, |_| {}).await;
    world.pass(MINUTE * 60).await;
    let listings: Vec<Instant> = world
        .api
        .listings()
        .iter()
        .map(|listing| listing.at)
        .collect();
    let gaps: Vec<_> = listings.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(gaps.len() >= 3, "{gaps:?}");
    assert!(gaps.is_sorted(), "{gaps:?}");
    assert!(gaps[0] >= MINUTE, "{gaps:?}");
    assert_eq!(world.verdict(5).await, Some(Verdict::Succeeded));
    // 40 runs share 46 requests a minute.
    for run in [0, 17, 39] {
        let gap = world.longest_gap(run, Instant::now() - MINUTE * 50);
        assert!(gap <= MINUTE * 2, "{gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_was_learned_of_the_lists_of_the_same_account() {
    let truth = Truth::now(|_| None);
    let api = FakeProvider::with_list(|_| server_error(), move |poll| truth.answer(poll));
    let world = world(api, 40, |_| {}).await;
    let policy = app::policy(&Settings::default());
    for _ in 0..60 {
        world.pass(MINUTE).await;
        let reloaded = world.watches.reload(world.api.clone(), policy.clone());
        reloaded.await.unwrap();
    }
    // It rests for 1, 2, 4, 8, 16 and 30 minutes; after each reload, it would be requested anew.
    let pages = world.api.listings().len();
    assert!((4..=7).contains(&pages), "{pages} pages in an hour");
    // The lists of another account are others.
    let since = Instant::now();
    let other = world.api.with_account("second");
    world.watches.reload(other, policy).await.unwrap();
    world.pass(MINUTE * 2).await;
    assert!(world.pages_since(since) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_hangs_keeps_no_run_from_its_polls() {
    let truth = Truth::now(|run| (run == 5).then_some(MINUTE * 12));
    let api = FakeProvider::with_list(
        |_| Listed {
            after: Duration::from_secs(24 * 3600),
            ..Listed::page(Vec::new())
        },
        move |poll| truth.answer(poll),
    );
    let world = world(api, 20, |policy| policy.requests_per_minute = 300).await;
    world.pass(MINUTE * 5).await;
    let from = Instant::now();
    world.pass(MINUTE * 20).await;
    assert_eq!(world.verdict(5).await, Some(Verdict::Succeeded));
    for run in [0, 7, 19] {
        let gap = world.longest_gap(run, from);
        assert!(gap <= INTERVAL * 2, "{gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_a_list_requests_holds_for_all_requests() {
    let truth = Truth::now(|_| None);
    let (of_list, of_polls) = (truth.clone(), truth);
    let api = FakeProvider::with_list(
        move |listing| {
            let mut listed = page_of(of_list.going(0..20), &listing.request);
            if listing.number == 3 {
                listed.reply.pause = Some(MINUTE * 10);
            }
            listed
        },
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 20, |_| {}).await;
    world.pass(MINUTE * 20).await;
    let paused = world.api.listings()[2].at + Duration::from_secs(1);
    let within = |at: Instant| at > paused && at < paused + MINUTE * 10 - Duration::from_secs(2);
    assert_eq!(
        world
            .api
            .polls()
            .iter()
            .filter(|poll| within(poll.at))
            .count(),
        0
    );
    assert_eq!(
        world
            .api
            .listings()
            .iter()
            .filter(|page| within(page.at))
            .count(),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn a_list_that_shows_few_of_the_watched_runs_is_seldom_requested() {
    let truth = Truth::now(|_| None);
    let (of_list, of_polls) = (truth.clone(), truth);
    // A hundred runs of others before one that is watched.
    let api = FakeProvider::with_list(
        move |listing| page_of(of_list.going((1000..1100).chain(0..1)), &listing.request),
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 40, |_| {}).await;
    world.pass(MINUTE * 120).await;
    let pages = world.pages_since(Instant::now() - MINUTE * 60);
    assert!(pages <= 12, "{pages} pages in an hour");
}

#[tokio::test(start_paused = true)]
async fn runs_that_no_list_shows_are_polled_as_often_as_the_budget_allows() {
    let truth = Truth::now(|_| None);
    let (of_list, of_polls) = (truth.clone(), truth);
    let api = FakeProvider::with_list(
        move |listing| page_of(of_list.going(20..400), &listing.request),
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 400, |_| {}).await;
    world.pass(MINUTE * 30).await;
    let from = Instant::now();
    world.pass(MINUTE * 60).await;
    for run in 0..20 {
        let gap = world.longest_gap(run, from);
        // Half of the budget, for 20 runs: one a minute, and their turns.
        assert!(gap <= MINUTE * 3, "run_{run}: {gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_a_list_shows_for_ever_is_found_by_its_own_poll() {
    let truth = Truth::now(|run| (run == 3).then_some(MINUTE * 20));
    let of_polls = truth.clone();
    let api = FakeProvider::with_list(
        |listing| {
            let all = (0..40).map(|run| entry(&id(run), RunState::Running));
            page_of(all.collect(), &listing.request)
        },
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 40, |_| {}).await;
    world.pass(MINUTE * 45).await;
    assert_eq!(world.verdict(3).await, Some(Verdict::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_lags_rests() {
    let clock: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let lag = MINUTE * 3;
    let truth = Truth::now(|run| Some(MINUTE * 10 + MINUTE * u32::try_from(run).unwrap()));
    let (of_list, of_polls) = (truth.clone(), truth);
    let api = FakeProvider::with_list(
        move |listing| {
            let shown = |run: &usize| of_list.began.elapsed() < (of_list.ends)(*run).unwrap() + lag;
            let all = (0..40)
                .filter(shown)
                .map(|run| entry(&id(run), RunState::Running));
            page_of(all.collect(), &listing.request)
        },
        move |poll| {
            let run = number(&poll.run_id);
            let mut answer = of_polls.answer(poll);
            if of_polls.state(run) == RunState::Succeeded
                && let Ok(observation) = &mut answer.reply.result
            {
                let ended = (of_polls.ends)(run).unwrap();
                observation.details.completed_at = Some(clock.checked_add(ended).unwrap());
            }
            answer
        },
    );
    let world = world(api, 40, |_| {}).await;
    world.pass(MINUTE * 50).await;
    // The first ones show the lag. From then on, most are found by polls before the list knows.
    let began = Instant::now() - MINUTE * 50;
    let found_late = |run: &usize| {
        let known = began + MINUTE * 10 + MINUTE * u32::try_from(*run).unwrap() + lag;
        world
            .api
            .polls_of(&id(*run))
            .last()
            .is_none_or(|found| *found >= known)
    };
    let late: Vec<usize> = (0..38).filter(found_late).collect();
    assert!(late.len() <= 4, "{late:?}");
    let pages = world.pages_since(Instant::now() - MINUTE * 30);
    assert!(pages <= 30, "{pages} pages in half an hour");
}

#[tokio::test(start_paused = true)]
async fn that_a_run_waits_for_a_person_is_confirmed_by_a_poll() {
    let truth = Truth::now(|_| None);
    let waits = move |run: usize, truth: &Truth| {
        run == 7 && truth.began.elapsed() >= MINUTE * 10 && run < 20
    };
    let (of_list, of_polls) = (truth.clone(), truth);
    let api = FakeProvider::with_list(
        move |listing| {
            let state = |run| match waits(run, &of_list) || run == 8 {
                true => RunState::Waiting,
                false => RunState::Running,
            };
            let all = (0..20).map(|run| entry(&id(run), state(run)));
            page_of(all.collect(), &listing.request)
        },
        move |poll| match waits(number(&poll.run_id), &of_polls) {
            true => Answer::seen(RunState::Waiting),
            false => of_polls.answer(poll),
        },
    );
    let world = world(api, 20, |_| {}).await;
    world.pass(MINUTE * 12).await;
    let views = world.watches.view(None).await.unwrap();
    let state = |run: usize| {
        let name = id(run);
        let view = views.iter().find(|view| view.run_id.as_str() == name);
        view.unwrap().status.as_ref().map(Status::state)
    };
    assert_eq!(state(7), Some(RunState::Waiting));
    // The list is alone with that.
    assert_eq!(state(8), Some(RunState::Running));
}

#[tokio::test(start_paused = true)]
async fn a_list_does_not_keep_a_run_that_is_gone() {
    let truth = Truth::now(|_| None);
    let of_polls = truth.clone();
    let api = FakeProvider::with_list(
        |listing| {
            let all = (0..20).map(|run| entry(&id(run), RunState::Running));
            page_of(all.collect(), &listing.request)
        },
        move |poll| match number(&poll.run_id) {
            4 => Answer::missing(),
            _ => of_polls.answer(poll),
        },
    );
    let world = world(api, 20, |_| {}).await;
    world.pass(MINUTE * 30).await;
    assert_eq!(world.verdict(4).await, Some(Verdict::NotFound));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_decided_by_a_poll_whatever_the_list_shows() {
    let truth = Truth::now(|run| (run == 20).then_some(MINUTE * 9));
    let of_polls = truth.clone();
    let api = FakeProvider::with_list(
        |listing| {
            let all = (0..23).map(|run| entry(&id(run), RunState::Running));
            page_of(all.collect(), &listing.request)
        },
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 20, |_| {}).await;
    for run in [20, 21] {
        let watch = watch(run, world.clock.now(), MINUTE * 10);
        world.watches.add(watch, AddedBy::Request).await.unwrap();
    }
    world.pass(MINUTE * 10 + Duration::from_secs(6)).await;
    assert_eq!(world.verdict(20).await, Some(Verdict::Succeeded));
    assert_eq!(world.verdict(21).await, Some(Verdict::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn many_new_watches_are_seen_by_one_list() {
    let truth = Truth::now(|run| (run == 150).then_some(MINUTE * 2));
    let (of_list, of_polls) = (truth.clone(), truth);
    let api = FakeProvider::with_list(
        move |listing| page_of(of_list.going(0..300), &listing.request),
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 0, |_| {}).await;
    for run in 0..300 {
        let watch = watch(run, world.clock.now(), LONG);
        world.watches.add(watch, AddedBy::Request).await.unwrap();
    }
    world.pass(MINUTE * 2).await;
    let views = world.watches.view(None).await.unwrap();
    let unseen = views.iter().filter(|view| view.status.is_none()).count();
    assert_eq!(unseen, 0);
    world.pass(MINUTE * 2).await;
    assert_eq!(world.verdict(150).await, Some(Verdict::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn pages_that_others_request_share_the_budget_with_polls() {
    let truth = Truth::now(|_| None);
    let of_polls = truth.clone();
    let api = FakeProvider::with_list(
        |_: &Listing| Listed::page(vec![entry("run_0", RunState::Running)]),
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 100, |_| {}).await;
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let watches = world.watches.clone();
        requests.spawn(async move { watches.list(ListRequest::default()).await });
    }
    while let Some(reply) = requests.join_next().await {
        let page = reply.unwrap().unwrap().unwrap();
        assert_eq!(page.entries.len(), 1);
    }
    let polls = world.api.polls().into_iter().map(|poll| poll.at);
    let mut all: Vec<Instant> = polls
        .chain(world.api.listings().iter().map(|page| page.at))
        .collect();
    all.sort();
    for window in all.windows(61) {
        assert!(window[60] - window[0] >= MINUTE, "61 requests in a minute");
    }
    // They took turns.
    assert!(world.api.polls().len() >= 75, "{}", world.api.polls().len());
    world.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_page_whose_requester_has_left_is_not_requested() {
    let truth = Truth::now(|_| None);
    let api = FakeProvider::with_list(
        |_: &Listing| Listed::page(Vec::new()),
        move |poll| truth.answer(poll),
    );
    let world = world(api, 0, |_| {}).await;
    let page = |who: &str| ListRequest {
        parameters: [("who".to_owned(), who.to_owned())].into(),
        ..ListRequest::default()
    };
    // More than the budget lets through at once.
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let (watches, request) = (world.watches.clone(), page("left"));
        requests.spawn(async move { watches.list(request).await });
    }
    requests
        .join_next()
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .unwrap();
    let of_those_who_left = || {
        let listings = world.api.listings();
        let left = listings
            .iter()
            .filter(|page| page.request.parameters["who"] == "left");
        left.count()
    };
    requests.shutdown().await;
    let before = of_those_who_left();
    assert!((1..100).contains(&before), "{before}");
    world.watches.list(page("stays")).await.unwrap().unwrap();
    world.pass(MINUTE * 5).await;
    assert_eq!(of_those_who_left(), before);
    world.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_list_of_lies_costs_few_polls() {
    // It shows every run as ended from minute 20 on.
    let truth = Truth::now(|_| None);
    let (of_list, of_polls) = (truth.clone(), truth.clone());
    let api = FakeProvider::with_list(
        move |listing| {
            let state = match of_list.began.elapsed() >= MINUTE * 20 {
                true => RunState::Failed,
                false => RunState::Running,
            };
            let all = (0..500).map(|run| entry(&id(run), state));
            page_of(all.collect(), &listing.request)
        },
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 500, |_| {}).await;
    let late = watch(999, world.clock.now(), LONG);
    world.pass(MINUTE * 25).await;
    let since = Instant::now();
    world.watches.add(late, AddedBy::Request).await.unwrap();
    world.pass(MINUTE * 15).await;
    // One that is added waits for its turn, and not for a poll of each that the list lies about.
    let first = world.api.polls_of(&id(999)).first().copied();
    assert!(
        first.is_some_and(|first| first - since <= MINUTE * 11),
        "{first:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_interval_of_a_new_watch_grows_with_lists_as_it_does_with_polls() {
    let truth = Truth::now(|_| None);
    let (of_list, of_polls) = (truth.clone(), truth);
    let api = FakeProvider::with_list(
        move |listing| page_of(of_list.going(0..300), &listing.request),
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 0, |_| {}).await;
    for run in 0..300 {
        let watch = watch(run, world.clock.now(), LONG);
        world.watches.add(watch, AddedBy::Request).await.unwrap();
    }
    world.pass(MINUTE * 3).await;
    // Fifteen pages show all of them: there is no reason for polls but that each is polled by itself now and then.
    let since = Instant::now();
    world.pass(MINUTE * 4).await;
    let (polls, pages) = (world.polls_since(since), world.pages_since(since));
    assert!(
        polls <= 4 * 12 && pages >= 4 * 25,
        "{polls} polls, {pages} pages"
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_missing_between_two_others_is_polled_before_the_sweep_is_over() {
    let ends_at = MINUTE * 20 + Duration::from_secs(11);
    let truth = Truth::now(move |run| (run == 3).then_some(ends_at));
    let (of_list, of_polls) = (truth.clone(), truth.clone());
    // Twenty pages, each of which takes two seconds.
    let api = FakeProvider::with_list(
        move |listing| Listed {
            after: Duration::from_secs(2),
            ..page_of(of_list.going(0..400), &listing.request)
        },
        move |poll| of_polls.answer(poll),
    );
    let world = world(api, 400, |_| {}).await;
    world.pass(MINUTE * 25).await;
    assert_eq!(world.verdict(3).await, Some(Verdict::Succeeded));
    let found = world.api.polls_of("run_3").last().copied().unwrap();
    let first_page_after = world
        .api
        .listings()
        .iter()
        .filter(|page| page.request.page.is_none() && page.at >= truth.began + ends_at)
        .map(|page| page.at)
        .min()
        .unwrap();
    let after = found.duration_since(first_page_after);
    assert!(after <= Duration::from_secs(4), "{after:?}");
}
