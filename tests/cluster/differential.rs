//! Both engines do the same: random operations, one after the other, have equal replies and leave equal stores behind.
//! The database of PostgreSQL has a collation that orders texts otherwise than by their bytes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use runwatch::domain::{
    DeliveryId, EventFilter, EventType, FoundBy, GROUP_LABEL, GROUP_SIZE_LABEL, JsonText, Labels,
    Limits, Observation, OverdueAfter, PollOutcome, ProviderName, Route, Routes, RunDetails,
    RunRef, SinkName, Status, TraceContext, Verdict, Watch,
};
use runwatch::store::{
    Attempt, AttemptOutcome, DeliveryFilter, DeliveryState, DiscoveredRun, DiscoveryId, Fate,
    Location, PollFailure, RunNote, Store, StoreError, WatchFilter, WatchOrder, WatchState,
};
use tokio::task::JoinSet;

use crate::contract::{Place, close, incident, routed_to};
use crate::server::{InSchema, Way, settings};

/// How many sequences are tried, each with so many operations.
const SEQUENCES: u32 = 48;
const OPERATIONS: usize = 40;

const SINKS: [&str; 3] = ["ops", "Desk", "a-b"];

/// Runs whose names sort otherwise in English than by their bytes.
const RUNS: [&str; 7] = [
    "run_a",
    "run_B",
    "run_b",
    "run-a",
    "ci:Äpfel",
    "ci:zebra/1",
    "ci:apfel",
];

/// Names of groups of watches.
const GROUPS: [&str; 2] = ["b", "Äpfel \0 \""];

/// One operation. Watches, deliveries and labels are chosen among those that are there.
#[derive(Debug, Clone)]
pub(crate) enum Doing {
    Add {
        run: &'static str,
        again: bool,
        name: Option<String>,
        label: (String, String),
        sinks: Option<Vec<&'static str>>,
        trace: Option<u32>,
        group: Option<(&'static str, Option<u32>)>,
    },
    AddConfigured(&'static str),
    KeepConfigured(Vec<&'static str>),
    AddDiscovered {
        run: &'static str,
        attempt: Option<u64>,
        again: bool,
    },
    SetDiscoveries(usize),
    Note(Vec<(&'static str, Option<u64>, Option<i64>)>),
    EndRound,
    Remove {
        run: &'static str,
        force: bool,
    },
    Seen {
        run: &'static str,
        status: String,
        large: Option<(usize, usize)>,
        error: String,
        attempt: Option<u64>,
        sinks: usize,
    },
    Missing(&'static str),
    FinishGroups {
        age: i64,
    },
    Shift(i64),
    Claim {
        sink: &'static str,
        limit: usize,
        most_bytes: usize,
    },
    Finish {
        which: usize,
        detail: String,
        outcome: usize,
        fallback: Option<&'static str>,
        stale: bool,
    },
    Hold {
        which: usize,
        until: i64,
        stale: bool,
    },
    SetHolds {
        sink: &'static str,
        until: i64,
    },
    Decide {
        which: usize,
        beginning: usize,
        retry: bool,
    },
    DecideAll {
        sink: &'static str,
        retry: bool,
    },
    Summarize {
        sink: &'static str,
        digest: bool,
    },
    Incident(EventType),
    Prune {
        age: i64,
        sinks: usize,
    },
    List {
        order: WatchOrder,
        state: Option<WatchState>,
        failed: bool,
        labels: usize,
        limit: u32,
    },
    Reopen,
}

/// Text as an API or a person may write it.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-zA-Z \"\\\\{}:,'%_$-]{0,12}",
        2 => proptest::collection::vec(any::<char>(), 0..12).prop_map(String::from_iter),
        1 => select(vec!["\0", "a\0b", "\"a\":\"b\"", "\\u0000", "ß\u{301}\u{202e}", "🦀\u{feff}", "\r\n\t"])
            .prop_map(str::to_owned),
        1 => (1_000_usize..4_000).prop_map(|length| "é\"".repeat(length)),
    ]
}

/// A group with or without a size: few groups, so that they get several watches, and small sizes, so that some are complete.
fn group() -> impl Strategy<Value = Option<(&'static str, Option<u32>)>> {
    let size = proptest::option::of(1_u32..3);
    proptest::option::weighted(0.8, (select(GROUPS.to_vec()), size))
}

/// The word of a state, or something else.
fn status() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(vec!["pending", "running", "waiting", "succeeded", "failed", "canceled"]).prop_map(str::to_owned),
        1 => text(),
    ]
}

fn run() -> impl Strategy<Value = &'static str> {
    select(RUNS.to_vec())
}

fn sink() -> impl Strategy<Value = &'static str> {
    select(SINKS.to_vec())
}

fn attempt() -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(prop_oneof![0_u64..4, Just(u64::MAX), Just(1 << 63)])
}

pub(crate) fn doing() -> impl Strategy<Value = Doing> {
    let label = ("[a-z,:\"]{1,2}", text());
    let sinks = proptest::option::of(proptest::collection::vec(sink(), 0..3));
    let note = (run(), attempt(), proptest::option::of(-5_000_i64..5_000));
    prop_oneof![
        6 => (run(), any::<bool>(), proptest::option::of(text()), label, sinks, proptest::option::of(1_u32..), group())
            .prop_map(|(run, again, name, label, sinks, trace, group)| {
                Doing::Add { run, again, name, label, sinks, trace, group }
            }),
        1 => run().prop_map(Doing::AddConfigured),
        1 => proptest::collection::vec(run(), 0..4).prop_map(Doing::KeepConfigured),
        2 => (run(), attempt(), any::<bool>())
            .prop_map(|(run, attempt, again)| Doing::AddDiscovered { run, attempt, again }),
        1 => (0_usize..3).prop_map(Doing::SetDiscoveries),
        1 => proptest::collection::vec(note, 0..5).prop_map(Doing::Note),
        1 => Just(Doing::EndRound),
        2 => (run(), any::<bool>()).prop_map(|(run, force)| Doing::Remove { run, force }),
        10 => (run(), status(), proptest::option::of((0_usize..3, 0_usize..3)), text(), attempt(), 0_usize..4)
            .prop_map(|(run, status, large, error, attempt, sinks)| Doing::Seen { run, status, large, error, attempt, sinks }),
        1 => run().prop_map(Doing::Missing),
        2 => (-2_000_i64..40_000).prop_map(|age| Doing::FinishGroups { age }),
        1 => (-5_000_i64..5_000).prop_map(Doing::Shift),
        5 => (sink(), 1_usize..5, select(vec![usize::MAX, 2_000, 0]))
            .prop_map(|(sink, limit, most_bytes)| Doing::Claim { sink, limit, most_bytes }),
        5 => (any::<usize>(), text(), 0_usize..3, proptest::option::of(sink()), proptest::bool::weighted(0.1))
            .prop_map(|(which, detail, outcome, fallback, stale)| {
                Doing::Finish { which, detail, outcome, fallback, stale }
            }),
        2 => (any::<usize>(), -2_i64..9, proptest::bool::weighted(0.1))
            .prop_map(|(which, until, stale)| Doing::Hold { which, until, stale }),
        1 => (sink(), -2_i64..9).prop_map(|(sink, until)| Doing::SetHolds { sink, until }),
        2 => (any::<usize>(), 4_usize..37, any::<bool>())
            .prop_map(|(which, beginning, retry)| Doing::Decide { which, beginning, retry }),
        1 => (sink(), any::<bool>()).prop_map(|(sink, retry)| Doing::DecideAll { sink, retry }),
        2 => (sink(), any::<bool>()).prop_map(|(sink, digest)| Doing::Summarize { sink, digest }),
        1 => select(vec![EventType::ApiUnreachable, EventType::ApiUnauthorized, EventType::ApiRecovered])
            .prop_map(Doing::Incident),
        2 => (0_i64..20_000, 0_usize..4).prop_map(|(age, sinks)| Doing::Prune { age, sinks }),
        3 => (select(WatchOrder::ALL.to_vec()), proptest::option::of(select(WatchState::ALL.to_vec())),
              any::<bool>(), 0_usize..3, 1_u32..6)
            .prop_map(|(order, state, failed, labels, limit)| Doing::List { order, state, failed, labels, limit }),
        1 => Just(Doing::Reopen),
    ]
}

/// One of the stores, and what is known of it.
pub(crate) struct Side {
    place: Box<dyn Reopen>,
    pub(crate) store: Option<Store>,
    pub(crate) tasks: JoinSet<()>,
    /// The deliveries that were ever listed, in the order of their IDs.
    pub(crate) deliveries: Vec<DeliveryId>,
    /// Those that are claimed, with their attempts.
    claimed: Vec<(DeliveryId, u32)>,
    pub(crate) discoveries: Vec<DiscoveryId>,
}

/// A place as an object.
trait Reopen {
    fn reopen(&self) -> std::pin::Pin<Box<dyn Future<Output = (Store, JoinSet<()>)> + '_>>;
}

impl<P: Place> Reopen for P {
    fn reopen(&self) -> std::pin::Pin<Box<dyn Future<Output = (Store, JoinSet<()>)> + '_>> {
        Box::pin(self.open())
    }
}

/// SQLite in a file.
pub(crate) struct InFile(pub(crate) std::path::PathBuf);

impl Place for InFile {
    async fn open(&self) -> (Store, JoinSet<()>) {
        let (store, writer) = Store::open(Location::File(&self.0)).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run());
        (store, tasks)
    }

    async fn rows_of(&self, _table: &str) -> i64 {
        unreachable!("the stores are compared by what they reply")
    }
}

fn run_ref(text: &str) -> RunRef {
    RunRef::new(text).unwrap()
}

fn sink_name(text: &str) -> SinkName {
    SinkName::new(text).unwrap()
}

/// A trace, every other one with a state.
fn trace_context(number: u32) -> TraceContext {
    let parent = format!("00-{number:032x}-{number:016x}-01");
    let state = match number % 2 {
        0 => format!("rojo={number}, congo= 1"),
        _ => String::new(),
    };
    TraceContext::read(&parent, &state).unwrap()
}

/// Every sink gets the events about groups: two of them one message for a group, the other each verdict as well.
fn routes() -> Arc<Routes> {
    let route = |(number, sink): (usize, &str)| Route {
        sink: sink_name(sink),
        events: EventFilter::parse(["*"]).unwrap(),
        labels: Labels::new(),
        one_per_group: number > 0,
        digest: number > 1,
    };
    Arc::new(SINKS.into_iter().enumerate().map(route).collect())
}

fn fate(retry: bool) -> Fate {
    if retry { Fate::Retry } else { Fate::Drop }
}

/// The time of an operation: each is a second after the one before.
fn at(number: usize) -> Timestamp {
    crate::contract::time(i64::try_from(number).unwrap())
}

/// Values of so many kinds, of which the first are small: an escape that stands for U+0000, half a surrogate pair, and
/// much text.
fn value(kind: usize) -> JsonText {
    let text = match kind {
        0 => r#"{"n":"\u0000"}"#.to_owned(),
        1 => format!(r#"["\ud800","{}"]"#, "x".repeat(1_500)),
        _ => format!(r#""{}""#, "é".repeat(150_000)),
    };
    JsonText::new(text).unwrap()
}

impl Side {
    pub(crate) async fn open(place: impl Place + 'static) -> Self {
        let place: Box<dyn Reopen> = Box::new(place);
        let (store, tasks) = place.reopen().await;
        Self {
            place,
            store: Some(store),
            tasks,
            deliveries: Vec::new(),
            claimed: Vec::new(),
            discoveries: Vec::new(),
        }
    }

    fn store(&self) -> Store {
        self.store.clone().unwrap()
    }

    /// What an operation replied, in a form that does not depend on the engine: IDs of deliveries are random, so they
    /// are named by their place, and errors by their kind.
    fn shown<T: Debug>(&self, reply: Result<T, StoreError>) -> String {
        let text = match reply {
            Ok(reply) => format!("{reply:?}"),
            Err(StoreError::Precondition { what, wanted }) => format!("{what} is not {wanted}"),
            Err(error) => panic!("{error:?}"),
        };
        self.deliveries
            .iter()
            .enumerate()
            .fold(text, |text, (number, id)| {
                text.replace(id.as_str(), &format!("delivery {number}"))
            })
    }

    /// Takes one of the deliveries that are claimed, with its attempt.
    fn take_claimed(&mut self, which: usize) -> Option<(DeliveryId, u32)> {
        let number = which.checked_rem(self.claimed.len())?;
        Some(self.claimed.remove(number))
    }

    /// Lists all deliveries, and notes those that are new.
    async fn note_deliveries(&mut self) {
        let store = self.store();
        let all = store.deliveries(DeliveryFilter::default(), 10_000).await;
        for delivery in all.unwrap().items {
            if !self.deliveries.contains(&delivery.id) {
                self.deliveries.push(delivery.id);
            }
        }
    }

    async fn see(
        &self,
        run: &str,
        number: usize,
        outcome: PollOutcome,
        sinks: usize,
        error: Option<String>,
    ) -> String {
        let (store, now) = (self.store(), at(number));
        let found = store.active_watches_of(now, vec![run_ref(run)]).await;
        let Some(stored) = found.unwrap().pop() else {
            return "no such watch".to_owned();
        };
        let limits = Limits {
            not_found_grace: Duration::from_secs(1),
            overdue_after: OverdueAfter::Watched(Duration::from_secs(3)),
            run_url: None,
        };
        let Ok(step) = stored.progress.step(&stored.watch, outcome, now, &limits) else {
            return "no step".to_owned();
        };
        let mut routed = routed_to(&step, &SINKS[..sinks]);
        for routed in &mut routed {
            let is_end = routed.event.event_type.verdict().is_some();
            if is_end && !number.is_multiple_of(3) {
                routed.held = std::mem::take(&mut routed.sinks);
            }
        }
        let failure = error.map(|message| PollFailure { at: now, message });
        let (id, found_by) = (stored.id, FoundBy::Stream);
        // As the scheduler does.
        let recorded = match step.progress.verdict.is_some() && stored.watch.group().is_some() {
            true => {
                store
                    .record_group_step(id, step, routed, failure, found_by, now, routes())
                    .await
            }
            false => {
                store
                    .record_step(id, step, routed, failure, found_by, now)
                    .await
            }
        };
        format!("{:?} {}", stored.id, self.shown(recorded))
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each operation")]
    pub(crate) async fn perform(&mut self, doing: &Doing, number: usize) -> String {
        self.note_deliveries().await;
        let (store, now) = (self.store(), at(number));
        let watch = |run: &str| Watch {
            run_id: run_ref(run),
            name: None,
            labels: Labels::new(),
            sinks: None,
            // Several have the same time, so that their IDs decide where they stand.
            added_at: at(number / 10 * 10),
            deadline_at: at(number + 100),
            trace: None,
        };
        match doing.clone() {
            Doing::Add {
                run,
                again,
                name,
                label,
                sinks,
                trace,
                group,
            } => {
                let mut labels = Labels::from([label]);
                if let Some((name, size)) = group {
                    labels.insert(GROUP_LABEL.to_owned(), name.to_owned());
                    let size = size.map(|size| (GROUP_SIZE_LABEL.to_owned(), size.to_string()));
                    labels.extend(size);
                }
                let watch = Watch {
                    name,
                    labels,
                    sinks: sinks.map(|sinks| sinks.into_iter().map(sink_name).collect()),
                    trace: trace.map(trace_context),
                    ..watch(run)
                };
                let added = match again {
                    true => store.add_watch_again(watch).await,
                    false => store.add_watch(watch).await,
                };
                self.shown(added)
            }
            Doing::AddConfigured(run) => self.shown(store.add_configured_watch(watch(run)).await),
            Doing::KeepConfigured(runs) => {
                let runs = runs.into_iter().map(run_ref).collect();
                self.shown(store.keep_configured_watches(runs).await)
            }
            Doing::AddDiscovered {
                run,
                attempt,
                again,
            } => {
                let Some(discovery) = self.discoveries.first() else {
                    return "no discovery".to_owned();
                };
                let found = DiscoveredRun {
                    discovery: *discovery,
                    title: "ci \0 list".to_owned(),
                    note: RunNote {
                        run_id: run_ref(run),
                        attempt,
                        ended_at: None,
                    },
                    again,
                };
                self.shown(store.add_discovered_watch(watch(run), found).await)
            }
            Doing::SetDiscoveries(count) => {
                let all = ["{}", r#"{"a":"\u0000"}"#]
                    .map(|parameters| (ProviderName::new("ci").unwrap(), parameters.to_owned()));
                let set = store.set_discoveries(all[..count].to_vec(), now).await;
                if let Ok(set) = &set {
                    self.discoveries = set.iter().map(|discovery| discovery.id).collect();
                }
                self.shown(set)
            }
            Doing::Note(notes) => {
                let Some(discovery) = self.discoveries.last() else {
                    return "no discovery".to_owned();
                };
                let notes = notes.into_iter().map(|(run, attempt, ended_at)| RunNote {
                    run_id: run_ref(run),
                    attempt,
                    ended_at: ended_at.map(crate::contract::time),
                });
                self.shown(store.note_runs(*discovery, notes.collect(), now).await)
            }
            Doing::EndRound => {
                let Some(discovery) = self.discoveries.first() else {
                    return "no discovery".to_owned();
                };
                self.shown(store.end_round(*discovery, now, now).await)
            }
            Doing::Remove { run, force } => {
                self.shown(store.remove_watches(run_ref(run), force).await)
            }
            Doing::Seen {
                run,
                status,
                large,
                error,
                attempt,
                sinks,
            } => {
                let details = RunDetails {
                    input: large.map(|(input, _)| value(input)),
                    output: large.map(|(_, output)| value(output)),
                    error_message: Some(error.clone()),
                    attempt,
                    group: Some(["Ä b", "a"][number % 2].to_owned()),
                    started_at: Some(now),
                    completed_at: Some(at(number + sinks)),
                    ..RunDetails::default()
                };
                let observation = Observation {
                    status: Status::read(None, &status),
                    details,
                };
                let outcome = PollOutcome::Seen(Box::new(observation));
                self.see(run, number, outcome, sinks, Some(error)).await
            }
            Doing::Missing(run) => {
                let counted = Duration::from_secs(1);
                let outcome = PollOutcome::Missing { counted };
                self.see(run, number, outcome, 2, None).await
            }
            Doing::FinishGroups { age } => {
                let before = now - jiff::SignedDuration::from_millis(age);
                let mut shown = String::new();
                // As the daemon does: until none is left.
                loop {
                    let finished = store.finish_groups(routes(), before, now).await;
                    let is_last = matches!(finished, Ok(0));
                    shown += &self.shown(finished);
                    if is_last {
                        break shown;
                    }
                }
            }
            Doing::Shift(milliseconds) => {
                let active = store.active_watches(now, None, 3).await.unwrap();
                let moved = active
                    .into_iter()
                    .map(|stored| (stored.id, stored.watch.deadline_at + Duration::from_secs(1)));
                self.shown(
                    store
                        .shift_deadlines(moved.collect(), milliseconds, now)
                        .await,
                )
            }
            Doing::Claim {
                sink,
                limit,
                most_bytes,
            } => {
                let claimed = store
                    .claim_due(sink_name(sink), now, limit, most_bytes)
                    .await;
                for claimed in claimed.as_ref().unwrap() {
                    self.claimed.push((claimed.id.clone(), claimed.attempt));
                }
                self.shown(claimed)
            }
            Doing::Finish {
                which,
                detail,
                outcome,
                fallback,
                stale,
            } => {
                let Some((id, attempt)) = self.take_claimed(which) else {
                    return "nothing is claimed".to_owned();
                };
                let attempt = Attempt {
                    attempt: attempt + u32::from(stale),
                    at: now,
                    took: Duration::from_millis(7),
                    detail,
                    outcome: [
                        AttemptOutcome::Delivered,
                        AttemptOutcome::Retry(at(number + 3)),
                        AttemptOutcome::Dead,
                    ][outcome],
                };
                let fallback = fallback.map(sink_name);
                self.shown(store.record_attempt_with(id, attempt, fallback).await)
            }
            Doing::Hold {
                which,
                until,
                stale,
            } => {
                let Some((id, attempt)) = self.take_claimed(which) else {
                    return "nothing is claimed".to_owned();
                };
                let until = now + jiff::SignedDuration::from_secs(until);
                self.shown(store.hold(id, attempt + u32::from(stale), until).await)
            }
            Doing::SetHolds { sink, until } => {
                let until = now + jiff::SignedDuration::from_secs(until);
                self.shown(store.set_holds(sink_name(sink), until).await)
            }
            Doing::Decide {
                which,
                beginning,
                retry,
            } => {
                if self.deliveries.is_empty() {
                    return "no deliveries".to_owned();
                }
                // Which IDs begin so depends on their random part, so a whole one is named, or one that is not there.
                let id = match beginning {
                    36 => DeliveryId::of(7),
                    _ => self.deliveries[which % self.deliveries.len()].clone(),
                };
                self.shown(store.decide(id, fate(retry), now).await)
            }
            Doing::DecideAll { sink, retry } => {
                self.shown(store.decide_all(sink_name(sink), fate(retry), now).await)
            }
            Doing::Summarize { sink, digest } => {
                self.shown(store.summarize(sink_name(sink), digest, now).await)
            }
            Doing::Incident(event_type) => {
                self.shown(store.record_event(incident(event_type, now), now).await)
            }
            Doing::Prune { age, sinks } => {
                let before = now - Duration::from_millis(age.unsigned_abs());
                let sinks = SINKS[..sinks.min(SINKS.len())]
                    .iter()
                    .map(|sink| sink_name(sink));
                let mut pruned = store.prune(before, sinks.collect(), now).await;
                if let Ok(pruned) = &mut pruned {
                    // Pages of a file, which PostgreSQL has not.
                    pruned.freed = 0;
                    pruned.given_up.sort();
                }
                self.shown(pruned)
            }
            Doing::List {
                order,
                state,
                failed,
                labels,
                limit,
            } => {
                let all = store.watches(WatchFilter::default(), 1_000).await.unwrap();
                let known = all.items.iter().flat_map(|record| {
                    let labels = &record.watch.labels;
                    labels
                        .iter()
                        .map(|(key, value)| (key.clone(), value.clone()))
                });
                let mut filter = WatchFilter {
                    state,
                    verdict: failed.then_some(Verdict::Failed),
                    labels: known.take(labels).collect(),
                    order,
                    after: None,
                };
                let mut pages = String::new();
                for _ in 0..3 {
                    let page = store.watches(filter.clone(), limit).await;
                    let last = page.as_ref().unwrap().items.last().cloned();
                    pages += &self.shown(page);
                    let Some(last) = last else { break };
                    filter.after = Some((order.time_of(&last), last.watch.run_id));
                }
                pages
            }
            Doing::Reopen => {
                drop(store);
                close(self.store.take().unwrap(), std::mem::take(&mut self.tasks)).await;
                let (store, tasks) = self.place.reopen().await;
                (self.store, self.tasks) = (Some(store), tasks);
                self.claimed.clear();
                format!("{:?}", self.store().worst_verdict())
            }
        }
    }

    /// All that the store holds, as it can be read.
    pub(crate) async fn dump(&mut self, number: usize) -> BTreeMap<String, String> {
        self.note_deliveries().await;
        let (store, now) = (self.store(), at(number));
        let mut dump = BTreeMap::new();
        let mut add = |name: &str, text: String| dump.insert(name.to_owned(), text);
        for order in WatchOrder::ALL {
            let filter = WatchFilter {
                order,
                ..WatchFilter::default()
            };
            let watches = store.watches(filter, 1_000).await;
            add(&format!("watches {order:?}"), self.shown(watches));
        }
        for run in RUNS {
            let history = store.history(run_ref(run)).await;
            add(&format!("history {run}"), self.shown(history));
        }
        let active = store.active_watches(now, None, 1_000).await;
        for stored in active.as_ref().unwrap() {
            let details = store.details(stored.id).await;
            add(&format!("details {:?}", stored.id), self.shown(details));
        }
        add("active", self.shown(active));
        for newest_first in [false, true] {
            for states in [vec![], vec![DeliveryState::Dead, DeliveryState::Pending]] {
                let filter = DeliveryFilter {
                    states,
                    newest_first,
                    ..DeliveryFilter::default()
                };
                let name = format!("deliveries {filter:?}");
                let deliveries = store.deliveries(filter, 1_000).await;
                add(&name, self.shown(deliveries));
            }
        }
        let (mut seq, mut pages) = (0, 0);
        loop {
            let events = store.events_after(seq, 7).await;
            let Some((last, _)) = events.as_ref().unwrap().last() else {
                break;
            };
            (seq, pages) = (*last, pages + 1);
            add(&format!("events {pages}"), self.shown(events));
        }
        add("changes", self.shown(store.status_changes_after(0).await));
        add(
            "incidents",
            self.shown(store.newest_provider_events().await),
        );
        add("newest", self.shown(store.newest_event().await));
        add("counts", self.shown(store.counts().await));
        add("open", self.shown(store.sinks_with_open_deliveries().await));
        let gauges = store.gauges(now, SINKS.map(sink_name).to_vec()).await;
        add("gauges", self.shown(gauges));
        for sink in SINKS {
            add(sink, self.shown(store.next_due(sink_name(sink)).await));
        }
        for provider in ["crewship", "ci"] {
            let provider = ProviderName::new(provider).unwrap();
            let past = store.durations_of(provider.clone()).await;
            add(&format!("durations of {provider}"), self.shown(past));
            let groups = ["Ä b", "none"].map(|group| (provider.clone(), group.to_owned()));
            let past = store.durations(groups.to_vec()).await;
            add(&format!("durations {provider}"), self.shown(past));
        }
        for discovery in self.discoveries.clone() {
            let runs = RUNS.map(run_ref).to_vec();
            let known = store.known_runs(discovery, runs).await;
            add(&format!("known {discovery:?}"), self.shown(known));
        }
        dump
    }
}

/// Performs the same on both, and compares.
async fn compare(all: &[Doing]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let mut file = Side::open(InFile(folder.path().join("runwatch.db"))).await;
    let mut server = Side::open(InSchema(settings(Way::English, "differential"))).await;
    for (number, doing) in all.iter().enumerate() {
        let (one, other) = (
            file.perform(doing, number).await,
            server.perform(doing, number).await,
        );
        prop_assert_eq!(
            one,
            other,
            "SQLite, then PostgreSQL: {}: {:?}",
            number,
            doing
        );
    }
    let (one, other) = (file.dump(all.len()).await, server.dump(all.len()).await);
    for (name, one) in &one {
        prop_assert_eq!(
            Some(one),
            other.get(name),
            "SQLite, then PostgreSQL: {}",
            name
        );
    }
    prop_assert_eq!(one.len(), other.len());
    for side in [file, server] {
        close(side.store.unwrap(), side.tasks).await;
    }
    Ok(())
}

#[test]
fn both_engines_do_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(SEQUENCES);
    let mut runner = TestRunner::new(Config {
        max_shrink_iters: 300,
        failure_persistence: None,
        ..Config::with_cases(cases)
    });
    let sequences = proptest::collection::vec(doing(), 1..OPERATIONS);
    let compared = runner.run(&sequences, |all| runtime.block_on(compare(&all)));
    compared.unwrap();
}
