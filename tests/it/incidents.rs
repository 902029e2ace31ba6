//! What the operator is told when things go wrong for long, and how a restart treats the API: in
//! paused time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use runwatch::api::{ApiError, NoStream, Reply, RunSource};
use runwatch::app;
use runwatch::clock::Clock;
use runwatch::config::Settings;
use runwatch::metrics::Metrics;
use runwatch::run::{Answer, EventType, FoundBy, Labels, Observation, Progress, RunDetails, RunId, Status, Watch};
use runwatch::store::{Place, Store};
use runwatch::watch::{AddedBy, Policy, Scheduler, Watches};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
enum Mood {
    Running,
    BadGateway,
    Refusing,
}

/// An API in some mood, whose runs never end.
#[derive(Clone)]
struct Api {
    mood: Arc<Mutex<Mood>>,
    requests: Arc<Mutex<Vec<(Instant, RunId)>>>,
}

impl RunSource for Api {
    type Events = NoStream;

    async fn open_events(&self, _: &RunId, _: Option<&str>) -> Result<NoStream, ApiError> {
        Err(ApiError::NotFound { message: String::new() })
    }

    async fn get_run(&self, id: &RunId) -> Result<Reply, ApiError> {
        self.requests.lock().unwrap().push((Instant::now(), id.clone()));
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Running => {
                let observation = Observation { status: Status::Running, details: RunDetails::default() };
                Ok(Reply { observation, pause: None })
            }
            Mood::BadGateway => Err(ApiError::Status { status: 502, message: String::new(), retry_after: None }),
            Mood::Refusing => Err(ApiError::Unauthorized { status: 401, message: "Invalid API key".to_owned() }),
        }
    }
}

struct World {
    api: Api,
    clock: Clock,
    store: Store,
    watches: Watches<Api>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

fn watch(index: usize, added_at: Timestamp) -> Watch {
    Watch {
        run_id: RunId::new(&format!("run_{index}")).unwrap(),
        name: None,
        labels: Labels::new(),
        sinks: None,
        added_at,
        deadline_at: added_at.checked_add(MINUTE * 60 * 24 * 30).unwrap(),
    }
}

/// A scheduler over a store that holds `stored` watches already, of runs seen running an hour ago.
async fn world(stored: usize, adjust: impl FnOnce(&mut Policy)) -> World {
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let api = Api { mood: Arc::new(Mutex::new(Mood::Running)), requests: Arc::default() };
    let (store, writer) = Store::open(Place::Memory).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    let long_ago = clock.now().checked_sub(MINUTE * 60).unwrap();
    let mut policy = app::policy(&Settings::default());
    adjust(&mut policy);
    for index in 0..stored {
        let watch = watch(index, long_ago);
        store.add_watch(watch.clone()).await.unwrap();
        let running = Observation { status: Status::Running, details: RunDetails::default() };
        let begun = Progress::begin(long_ago);
        let step = begun.step(&watch, Answer::Seen(Box::new(running)), long_ago, &policy.limits).unwrap();
        store.record_step(watch.run_id, step, Vec::new(), None, FoundBy::Poll, long_ago).await.unwrap();
    }
    let active = store.active_watches(clock.now()).await.unwrap();
    let (scheduler, watches) =
        Scheduler::new(api.clone(), store.clone(), clock.clone(), policy, active, Metrics::default(), 7);
    let stop = CancellationToken::new();
    tasks.spawn(scheduler.run(stop.clone()));
    World { api, clock, store, watches, tasks, stop }
}

impl World {
    async fn live(&self, mood: Mood, time: Duration) {
        *self.api.mood.lock().unwrap() = mood;
        tokio::time::sleep(time).await;
    }

    async fn told(&self) -> Vec<EventType> {
        let events = self.store.events_after(0, u32::MAX).await.unwrap();
        events.into_iter().map(|(_, event)| event.event_type).collect()
    }

    fn requests(&self) -> usize {
        self.api.requests.lock().unwrap().len()
    }

    async fn end(mut self) -> Vec<(Instant, RunId)> {
        self.stop.cancel();
        drop((self.store, self.watches));
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.api.requests.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn each_incident_is_told_once() {
    let world = world(3, |_| ()).await;
    world.live(Mood::Running, MINUTE).await;
    // Four minutes are no incident.
    world.live(Mood::BadGateway, MINUTE * 4).await;
    world.live(Mood::Running, MINUTE * 2).await;
    assert_eq!(world.told().await, []);
    for _ in 0..2 {
        world.live(Mood::BadGateway, MINUTE * 180).await;
        world.live(Mood::Running, MINUTE * 5).await;
    }
    let incident = [EventType::ApiUnreachable, EventType::ApiRecovered];
    assert_eq!(world.told().await, [incident, incident].concat());
    // A refused key: one probe a minute for all watches together, told once.
    let before = world.requests();
    world.live(Mood::Refusing, MINUTE * 60).await;
    let probes = world.requests() - before;
    assert!((58..=64).contains(&probes), "{probes} probes in an hour");
    world.live(Mood::Running, MINUTE * 2).await;
    let refusal = [EventType::ApiUnauthorized, EventType::ApiRecovered];
    assert_eq!(world.told().await[4..], refusal);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_overdue_run_is_told_once() {
    let world = world(0, |policy| policy.limits.overdue_after = Some(MINUTE * 10)).await;
    for index in 0..2 {
        world.watches.add(watch(index, world.clock.now()), AddedBy::Request).await.unwrap();
    }
    world.live(Mood::Running, MINUTE * 9).await;
    assert_eq!(world.told().await, [EventType::RunStarted; 2]);
    world.live(Mood::Running, MINUTE * 60).await;
    assert_eq!(world.told().await[2..], [EventType::WatchOverdue; 2]);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_polls_are_spread_and_go_on_at_the_pace_they_had() {
    let start = Instant::now();
    let world = world(1000, |policy| policy.requests_per_minute = 1_000_000).await;
    world.live(Mood::Running, MINUTE * 5).await;
    let requests = world.end().await;
    let within = |span: Duration| requests.iter().filter(|(at, _)| *at - start <= span).count();
    let second = within(Duration::from_secs(1));
    assert!((40..=60).contains(&second), "{second} requests in the first second");
    let first_round = within(Duration::from_secs(20));
    assert!((950..=1100).contains(&first_round), "{first_round} requests until all were asked once");
    // Running for an hour, each is asked at the longest interval: 10 or 11 times in five minutes.
    assert!((9_000..=11_500).contains(&requests.len()), "{} requests in five minutes", requests.len());
    let asked: std::collections::HashSet<_> = requests.iter().map(|(_, id)| id).collect();
    assert_eq!(asked.len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_every_watch_and_takes_up_the_new_limits() {
    let world = world(20, |_| ()).await;
    world.live(Mood::Running, MINUTE * 20).await;
    let before = world.requests();
    let mut policy = app::policy(&Settings::default());
    policy.growth.max = Duration::from_secs(5);
    policy.requests_per_minute = 6000;
    world.watches.reload(world.api.clone(), policy).await.unwrap();
    world.live(Mood::Running, MINUTE).await;
    let views = world.watches.view(None).await.unwrap();
    assert_eq!(views.len(), 20);
    // Every watch is asked at least once in each five seconds and a bit.
    let asked = world.requests() - before;
    assert!((20 * 11..=20 * 15).contains(&asked), "{asked} polls in a minute");
    world.end().await;
}
