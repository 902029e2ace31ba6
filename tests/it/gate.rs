//! What a leader does while its lease is not confirmed: in paused time.

use std::sync::Arc;
use std::time::Duration;

use runwatch::app;
use runwatch::clock::Clock;
use runwatch::config::Settings;
use runwatch::domain::{EventType, RunState};
use runwatch::lease::{Gate, gated};
use runwatch::metrics::Metrics;
use runwatch::providers::AnyProvider;
use runwatch::scheduler::{Account, AddedBy, SchedulerGroup};
use runwatch::store::{Location, Store};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::all_events;
use crate::support::provider::{Answer, FakeProvider};
use crate::support::watches::watch_of;

const MINUTE: Duration = Duration::from_secs(60);
const BUDGET: usize = 20;

/// The watch whose deadline comes, and the end of whose run, while the lease is not confirmed.
const ENDS_MEANWHILE: &str = "run_0";

#[tokio::test(start_paused = true)]
async fn without_a_confirmed_lease_no_request_is_made_and_no_watch_ends() {
    let start = Instant::now();
    let clock = Clock::simulated("2026-01-01T10:20:00Z".parse().unwrap());
    let api = FakeProvider::new(move |poll| {
        let has_ended = poll.run_id.as_str() == ENDS_MEANWHILE && start.elapsed() > MINUTE * 11;
        Answer::seen(if has_ended {
            RunState::Succeeded
        } else {
            RunState::Running
        })
    });
    let (store, writer) = Store::open(Location::Memory).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    let mut settings = Settings::default();
    settings.api.requests_per_minute = u32::try_from(BUDGET).unwrap();
    let (control, gate) = Gate::closed(clock.clone());
    control.open_until(clock.passed() + MINUTE * 60);
    let account = Account {
        client: gated(AnyProvider::new(api.clone()), Some(&gate)),
        policy: app::policy(&settings),
        base_url: String::new(),
    };
    let (group, schedulers) = SchedulerGroup::new(
        Arc::new(move |_| Box::pin(std::future::ready(account.clone()))),
        store.clone(),
        clock.clone(),
        Metrics::default(),
    );
    let stop = CancellationToken::new();
    tasks.spawn(group.run(stop.clone()));
    for index in 0..40 {
        let id = format!("run_{index}");
        let deadline = match id.as_str() {
            ENDS_MEANWHILE => MINUTE * 12,
            _ => MINUTE * 600,
        };
        let watch = watch_of(&id, clock.now(), deadline);
        schedulers.add(watch, AddedBy::Request).await.unwrap();
    }
    tokio::time::sleep(MINUTE * 10).await;
    control.close();
    let before = api.polls().len();
    tokio::time::sleep(MINUTE * 7).await;
    assert_eq!(api.polls().len(), before);
    assert_eq!(all_events(&store).await.len(), 40, "only starts");
    control.open_until(clock.passed() + MINUTE * 60);
    tokio::time::sleep(MINUTE * 10).await;
    let polls = api.polls();
    assert!(polls.len() > before + 100, "{} polls", polls.len() - before);
    for window in polls.windows(BUDGET + 1) {
        let apart = window[BUDGET].at - window[0].at;
        assert!(apart >= MINUTE, "{} in {apart:?}", BUDGET + 1);
    }
    let events = all_events(&store).await;
    let ends: Vec<_> = events[40..].iter().map(|event| event.event_type).collect();
    assert_eq!(ends, [EventType::RunSucceeded], "{events:#?}");
    stop.cancel();
    drop((store, schedulers));
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}
