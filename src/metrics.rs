//! Metrics of the daemon, for Prometheus. No run IDs and nothing else without bounds is a label.

mod process;
mod store;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::domain::{FoundBy, ProviderName, SinkName};
use crate::output;

pub use store::StoreFigures;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The Prometheus text format 0.0.4, which every tool for Prometheus reads.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Text, Self::OpenMetrics];

    /// The type of content, as the formats have it ("Basic info", "Overall Structure").
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What a request with these `Accept` headers gets: OpenMetrics where it is named, as Prometheus does,
    /// in this version or in none and without a weight of 0; the text format otherwise.
    pub fn wanted<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let names = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
            named
                && parts
                    .filter_map(|part| part.split_once('='))
                    .all(|(name, value)| match name.trim() {
                        "version" => value.trim() == "1.0.0",
                        "q" => value.trim().parse().is_ok_and(|weight: f32| weight > 0.0),
                        _ => true,
                    })
        };
        let named = accept
            .into_iter()
            .any(|accept| accept.split(',').any(names));
        if named { Self::OpenMetrics } else { Self::Text }
    }
}

/// Bounds of histograms of requests, in seconds: up to the longest time that one may be given.
const REQUEST_SECONDS: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0,
];

/// Bounds of histograms of delays, in seconds: from the moment to the day that a schedule may take.
const DELAY_SECONDS: [f64; 15] = [
    0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 7200.0, 21_600.0,
    86_400.0,
];

/// Why requests to the API are blocked, as in the label `reason`.
pub const PAUSE_REASONS: [&str; 3] = ["failing", "rate_limited", "unauthorized"];

/// What can come of a poll.
pub const POLL_RESULTS: [&str; 10] = [
    "ok",
    "not_found",
    "unauthorized",
    "throttled",
    "client_error",
    "server_error",
    "redirect",
    "no_answer",
    "unusable_answer",
    "abandoned",
];

/// What can come of an attempt to deliver.
const DELIVERY_RESULTS: [&str; 3] = ["delivered", "failed", "given_up"];

/// Why a heartbeat fails, as in the label `reason`: none was sent, or it was not accepted.
const HEARTBEAT_FAILURES: [&str; 2] = ["no_progress", "not_accepted"];

type Label = (&'static str, &'static str);
type NamedLabel = (&'static str, String);

/// The metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// The provider of what is counted of polls.
    provider: ProviderName,
    polls: Family<[NamedLabel; 2], Counter>,
    poll_duration: Family<[NamedLabel; 1], Histogram, fn() -> Histogram>,
    api_paused: Family<[NamedLabel; 2], Counter<f64, AtomicU64>>,
    list_requests: Family<[NamedLabel; 2], Counter>,
    list_entries: Family<[NamedLabel; 1], Counter>,
    detections: Family<[NamedLabel; 2], Counter>,
    detection_delay: Family<[NamedLabel; 1], Histogram, fn() -> Histogram>,
    event_streams: Family<[NamedLabel; 1], Gauge>,
    deliveries: Family<[NamedLabel; 2], Counter>,
    delivery_delay: Histogram,
    discoveries: Family<[NamedLabel; 2], Gauge>,
    discovered: Family<[NamedLabel; 1], Counter>,
    reload_successful: Gauge,
    reload_success_at: Gauge<f64, AtomicU64>,
    heartbeat_failures: Family<[Label; 1], Counter>,
    heartbeat_success_at: Gauge<f64, AtomicU64>,
    takeovers: Counter,
    takeover: Gauge<f64, AtomicU64>,
}

/// How much of a budget is used.
#[derive(Debug, Clone)]
pub struct BudgetUse {
    /// The provider whose budget it is.
    pub provider: ProviderName,
    /// Requests in the last 60 seconds.
    pub used: u64,
    /// The most in any 60 seconds.
    pub limit: u64,
}

/// What is counted in the store when the metrics are requested.
#[derive(Debug, Clone, Default)]
pub struct StoreGauges {
    /// Watches without a verdict.
    pub active: u64,
    /// Watches with one.
    pub finished: u64,
    /// What each sink has left to deliver.
    pub deliveries: Vec<SinkGauges>,
}

/// What a sink has left to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkGauges {
    /// The sink.
    pub sink: SinkName,
    /// Deliveries that wait or are being sent.
    pub pending: u64,
    /// Deliveries that were given up.
    pub dead: u64,
    /// Age of the oldest delivery that waits or is being sent. One that is held has an age from the end of its hold.
    pub oldest_pending: Option<Duration>,
}

impl SinkGauges {
    /// A sink with nothing left to deliver.
    pub fn idle(sink: SinkName) -> Self {
        Self {
            sink,
            pending: 0,
            dead: 0,
            oldest_pending: None,
        }
    }
}

impl StoreGauges {
    /// Age of the oldest delivery of all sinks that waits or is being sent.
    pub fn oldest_pending(&self) -> Option<Duration> {
        self.deliveries
            .iter()
            .filter_map(|sink| sink.oldest_pending)
            .max()
    }
}

/// What is known besides when the metrics are requested.
#[derive(Debug, Clone, Default)]
pub struct Scraped {
    /// What is counted in the store, where that is known and no other daemon counts it.
    pub stored: Option<StoreGauges>,
    /// Who leads, where the store is shared.
    pub lease: Option<LeaseGauges>,
    /// How the budgets are used.
    pub budgets: Vec<BudgetUse>,
    /// What is measured of the transactions of the store.
    pub store: StoreFigures,
}

/// What is known of a store that several daemons share, when the metrics are requested.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeaseGauges {
    /// Whether this daemon leads: its engine runs, and its lease is confirmed.
    pub leads: bool,
    /// The number of the term of the leader last seen.
    pub term: i64,
    /// How long the lease of this daemon lasts without a further renewal.
    pub left: Duration,
    /// Whether the store answered the last request about the lease.
    pub store_up: bool,
    /// How far the clock of this machine is ahead of the one of the store, in seconds.
    pub clock_ahead_seconds: f64,
    /// Whether the settings of this daemon differ from those of the leader.
    pub settings_differ: bool,
    /// How many commits had an outcome that is not known.
    pub unknown_commits: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            provider: ProviderName::crewship(),
            polls: Family::default(),
            poll_duration: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
            api_paused: Family::default(),
            list_requests: Family::default(),
            list_entries: Family::default(),
            detections: Family::default(),
            detection_delay: Family::new_with_constructor(|| Histogram::new(DELAY_SECONDS)),
            event_streams: Family::default(),
            deliveries: Family::default(),
            delivery_delay: Histogram::new(DELAY_SECONDS),
            discoveries: Family::default(),
            discovered: Family::default(),
            reload_successful: Gauge::default(),
            reload_success_at: Gauge::default(),
            heartbeat_failures: Family::default(),
            heartbeat_success_at: Gauge::default(),
            takeovers: Counter::default(),
            takeover: Gauge::default(),
        };
        for reason in HEARTBEAT_FAILURES {
            drop(
                metrics
                    .heartbeat_failures
                    .get_or_create(&[("reason", reason)]),
            );
        }
        metrics.of(&ProviderName::crewship())
    }
}

impl Metrics {
    /// The metrics of polls of `provider`, which are counted from 0: a value that was never counted is 0 and not
    /// absent, as rates need it.
    #[must_use]
    pub fn of(&self, provider: &ProviderName) -> Self {
        let metrics = Self {
            provider: provider.clone(),
            ..self.clone()
        };
        for result in POLL_RESULTS {
            drop(
                metrics
                    .polls
                    .get_or_create(&metrics.labels("result", result)),
            );
        }
        for result in POLL_RESULTS {
            drop(
                metrics
                    .list_requests
                    .get_or_create(&metrics.labels("result", result)),
            );
        }
        drop(metrics.list_entries.get_or_create(&metrics.label()));
        for reason in PAUSE_REASONS {
            drop(
                metrics
                    .api_paused
                    .get_or_create(&metrics.labels("reason", reason)),
            );
        }
        for via in FoundBy::ALL {
            drop(
                metrics
                    .detections
                    .get_or_create(&metrics.labels("via", via.as_str())),
            );
        }
        drop(metrics.poll_duration.get_or_create(&metrics.label()));
        drop(metrics.detection_delay.get_or_create(&metrics.label()));
        drop(metrics.event_streams.get_or_create(&metrics.label()));
        metrics
    }

    fn label(&self) -> [NamedLabel; 1] {
        [("provider", self.provider.to_string())]
    }

    fn labels(&self, name: &'static str, value: &str) -> [NamedLabel; 2] {
        [
            (name, value.to_owned()),
            ("provider", self.provider.to_string()),
        ]
    }

    /// Counts a poll; `result` is one of [`POLL_RESULTS`].
    pub fn polled(&self, result: &'static str, took: Duration) {
        self.polls
            .get_or_create(&self.labels("result", result))
            .inc();
        self.poll_duration
            .get_or_create(&self.label())
            .observe(took.as_secs_f64());
    }

    /// Counts a request for a page of a list; `result` is one of [`POLL_RESULTS`].
    pub fn listed(&self, result: &'static str) {
        self.list_requests
            .get_or_create(&self.labels("result", result))
            .inc();
    }

    /// Counts an entry of a list that stood for the poll of a run.
    pub fn listed_going(&self) {
        self.list_entries.get_or_create(&self.label()).inc();
    }

    /// Counts time in which requests to the API were blocked; `reason` is one of [`PAUSE_REASONS`].
    pub fn paused(&self, reason: &'static str, time: Duration) {
        self.api_paused
            .get_or_create(&self.labels("reason", reason))
            .inc_by(time.as_secs_f64());
    }

    /// Counts the time from the end of a run to its verdict.
    pub fn detected(&self, after: Duration) {
        self.detection_delay
            .get_or_create(&self.label())
            .observe(after.as_secs_f64());
    }

    /// Counts a verdict by what caused the poll that found it.
    pub fn found_by(&self, via: FoundBy) {
        self.detections
            .get_or_create(&self.labels("via", via.as_str()))
            .inc();
    }

    /// Sets how many event streams are followed.
    pub fn streams(&self, open: usize) {
        self.event_streams
            .get_or_create(&self.label())
            .set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// Counts that this daemon began to lead, and took up the watches in this time.
    pub fn took_over(&self, took: Duration) {
        self.takeovers.inc();
        self.takeover.set(took.as_secs_f64());
    }

    /// Sets how many discoveries there are, by provider and state. Those that are not given are gone.
    pub fn discoveries(
        &self,
        counts: impl IntoIterator<Item = ((ProviderName, &'static str), u64)>,
    ) {
        self.discoveries.clear();
        for ((provider, state), count) in counts {
            let labels = [
                ("provider", provider.to_string()),
                ("state", state.to_owned()),
            ];
            self.discoveries
                .get_or_create(&labels)
                .set(gauge_value(count));
            drop(
                self.discovered
                    .get_or_create(&[("provider", provider.to_string())]),
            );
        }
    }

    /// Counts a watch that a discovery added.
    pub fn discovered(&self, provider: &ProviderName) {
        self.discovered
            .get_or_create(&[("provider", provider.to_string())])
            .inc();
    }

    /// Notes that the configuration was read at `now`, whether at the start or by a reload.
    pub fn configured(&self, now: Timestamp) {
        self.reload_successful.set(1);
        self.reload_success_at.set(now.as_duration().as_secs_f64());
    }

    /// Notes that a reload failed, so that the configuration before it stays in force.
    pub fn not_reloaded(&self) {
        self.reload_successful.set(0);
    }

    /// Notes that a heartbeat was accepted at `now`.
    pub fn heartbeat_accepted(&self, now: Timestamp) {
        self.heartbeat_success_at
            .set(now.as_duration().as_secs_f64());
    }

    /// Counts a heartbeat that was not accepted.
    pub fn heartbeat_not_accepted(&self) {
        self.heartbeat_failures
            .get_or_create(&[("reason", "not_accepted")])
            .inc();
    }

    /// Counts a heartbeat that was not sent, for lack of progress.
    pub fn heartbeat_withheld(&self) {
        self.heartbeat_failures
            .get_or_create(&[("reason", "no_progress")])
            .inc();
    }

    /// Makes a sink known, so that it is counted from 0.
    pub fn introduce(&self, sink: &SinkName) {
        for result in DELIVERY_RESULTS {
            drop(
                self.deliveries
                    .get_or_create(&[("sink", sink.to_string()), ("result", result.to_owned())]),
            );
        }
    }

    /// Counts a delivery that arrived, so long after its event.
    pub fn delivered(&self, sink: &SinkName, after: Duration) {
        self.attempted(sink, "delivered");
        self.delivery_delay.observe(after.as_secs_f64());
    }

    /// Counts an attempt that failed; `dead` is one after which no more are made.
    pub fn failed(&self, sink: &SinkName, dead: bool) {
        self.attempted(sink, if dead { "given_up" } else { "failed" });
    }

    /// Counts deliveries that are given up without an attempt.
    pub fn given_up(&self, sink: &SinkName, deliveries: u64) {
        let given_up = [
            ("sink", sink.to_string()),
            ("result", "given_up".to_owned()),
        ];
        self.deliveries.get_or_create(&given_up).inc_by(deliveries);
    }

    fn attempted(&self, sink: &SinkName, result: &str) {
        self.deliveries
            .get_or_create(&[("sink", sink.to_string()), ("result", result.to_owned())])
            .inc();
    }

    /// Everything as text, with what is known besides.
    pub fn to_text(&self, scraped: &Scraped, format: Format) -> String {
        let mut registry = Registry::default();
        process::register(&mut registry);
        let own = registry.sub_registry_with_prefix("runwatch");
        self.register_polls(own);
        register_budgets(own, &scraped.budgets);
        self.register_deliveries(own);
        if let Some(stored) = &scraped.stored {
            register_stored(own, stored);
        }
        register_store(own, &scraped.store);
        self.register_lease(own, scraped);
        self.register_configuration(own);
        self.register_heartbeats(own);
        register_program(own);
        let mut written = String::new();
        let encoded = match format {
            Format::OpenMetrics => text::encode(&mut written, &registry),
            Format::Text => prometheus_text::encode(&mut written, &registry),
        };
        encoded.expect("a String takes all text");
        written
    }

    /// Registers what is known of polls and streams.
    fn register_polls(&self, registry: &mut Registry) {
        registry.register("polls", "Polls by what came of them", self.polls.clone());
        registry.register(
            "poll_duration_seconds",
            "How long polls took",
            self.poll_duration.clone(),
        );
        registry.register(
            "list_requests",
            "Requests for pages of lists of runs by what came of them",
            self.list_requests.clone(),
        );
        registry.register(
            "list_entries",
            "Entries of lists that stood for polls of runs that go on",
            self.list_entries.clone(),
        );
        let help = "Time in which requests to the API were blocked";
        registry.register("api_paused_seconds", help, self.api_paused.clone());
        registry.register(
            "detection",
            "Verdicts by what caused the poll that found them",
            self.detections.clone(),
        );
        let help = "From the end of a run to its verdict";
        registry.register(
            "detection_delay_seconds",
            help,
            self.detection_delay.clone(),
        );
        registry.register(
            "event_streams",
            "Open event streams",
            self.event_streams.clone(),
        );
        registry.register(
            "discoveries",
            "Discoveries by how they go",
            self.discoveries.clone(),
        );
        registry.register(
            "discovered_runs",
            "Watches that discoveries added",
            self.discovered.clone(),
        );
    }

    /// Registers how the configuration was read last.
    fn register_configuration(&self, registry: &mut Registry) {
        registry.register(
            "config_last_reload_successful",
            "Whether the configuration could be used when it was read last",
            self.reload_successful.clone(),
        );
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read, in seconds since 1970",
            self.reload_success_at.clone(),
        );
    }

    /// Registers how the heartbeats go.
    fn register_heartbeats(&self, registry: &mut Registry) {
        registry.register(
            "heartbeat_failures",
            "Heartbeats that were not sent or not accepted",
            self.heartbeat_failures.clone(),
        );
        registry.register(
            "heartbeat_last_success_timestamp_seconds",
            "When a heartbeat was last accepted, in seconds since 1970, or 0",
            self.heartbeat_success_at.clone(),
        );
    }

    /// Registers what is known of deliveries.
    fn register_deliveries(&self, registry: &mut Registry) {
        registry.register(
            "deliveries",
            "Attempts to deliver by what came of them",
            self.deliveries.clone(),
        );
        let help = "From an event to its arrival";
        registry.register("delivery_delay_seconds", help, self.delivery_delay.clone());
    }

    /// Registers who leads. A daemon with a store of its own always does.
    fn register_lease(&self, registry: &mut Registry, scraped: &Scraped) {
        let lease = scraped.lease.as_ref();
        let leading = gauge(i64::from(lease.is_none_or(|lease| lease.leads)));
        registry.register("leading", "Whether this daemon polls and delivers", leading);
        let Some(lease) = lease else {
            return;
        };
        registry.register("term", "Number of the leader's term", gauge(lease.term));
        let help = "How often this daemon began to lead";
        registry.register("takeovers", help, self.takeovers.clone());
        let help = "How long it took to take up the watches when this daemon last began to lead";
        registry.register("takeover_seconds", help, self.takeover.clone());
        let help = "How long the lease of this daemon lasts without a further renewal";
        registry.register(
            "lease_left_seconds",
            help,
            float_gauge(lease.left.as_secs_f64()),
        );
        let help = "Whether the shared store answers";
        registry.register("store_up", help, gauge(i64::from(lease.store_up)));
        let help = "How far the clock of this machine is ahead of the one of the store";
        registry.register(
            "clock_offset_seconds",
            help,
            float_gauge(lease.clock_ahead_seconds),
        );
        let help = "Whether the settings of this daemon differ from those of the leader";
        registry.register(
            "config_differs",
            help,
            gauge(i64::from(lease.settings_differ)),
        );
        let unknown = Counter::<u64>::default();
        unknown.inc_by(lease.unknown_commits);
        let help = "Commits of the shared store whose outcome was not known";
        registry.register("store_unknown_commits", help, unknown);
        let help = "Connections to the shared store that were made again";
        registry.register("store_reconnects", help, scraped.store.reconnects.clone());
    }
}

/// Registers what is measured of the transactions of the store.
fn register_store(registry: &mut Registry, store: &StoreFigures) {
    let help = "How long transactions that wrote to the store took until they were committed";
    registry.register("store_commit_seconds", help, store.commit_seconds.clone());
    let help = "How many writes a transaction of the store had";
    registry.register("store_batch_jobs", help, store.batch_jobs.clone());
}

/// Registers what is counted in the store.
fn register_stored(registry: &mut Registry, stored: &StoreGauges) {
    let watches = Family::<[Label; 1], Gauge>::default();
    for (state, count) in [("active", stored.active), ("finished", stored.finished)] {
        watches
            .get_or_create(&[("state", state)])
            .set(gauge_value(count));
    }
    registry.register("watches", "Watches in the store", watches);
    let [pending, dead, ages] = [(); 3].map(|()| Family::<[NamedLabel; 1], Gauge>::default());
    let seconds = |age: Option<Duration>| gauge_value(age.unwrap_or_default().as_secs());
    for of_sink in &stored.deliveries {
        let label = [("sink", of_sink.sink.to_string())];
        pending
            .get_or_create(&label)
            .set(gauge_value(of_sink.pending));
        dead.get_or_create(&label).set(gauge_value(of_sink.dead));
        ages.get_or_create(&label)
            .set(seconds(of_sink.oldest_pending));
    }
    registry.register(
        "deliveries_pending",
        "Messages that wait or are being sent",
        pending,
    );
    let help = "Age of the oldest message of a sink that waits or is being sent";
    registry.register("oldest_pending_delivery_age_seconds", help, ages);
    let oldest = seconds(stored.oldest_pending());
    let help = "Age of the oldest message that waits or is being sent";
    registry.register("delivery_oldest_pending_seconds", help, gauge(oldest));
    registry.register("deliveries_dead", "Messages given up", dead);
}

/// A gauge with a value.
fn gauge(value: i64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

/// A gauge with a value that is not a whole number.
fn float_gauge(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

/// Registers how much of each budget is used.
fn register_budgets(registry: &mut Registry, budgets: &[BudgetUse]) {
    let (used, limit) = (
        Family::<[NamedLabel; 1], Gauge>::default(),
        Family::<[NamedLabel; 1], Gauge>::default(),
    );
    for budget in budgets {
        let label = [("provider", budget.provider.to_string())];
        used.get_or_create(&label).set(gauge_value(budget.used));
        limit.get_or_create(&label).set(gauge_value(budget.limit));
    }
    let help = "Requests to the API in the last 60 seconds";
    registry.register("budget_used_requests", help, used);
    let help = "The most requests to the API in any 60 seconds";
    registry.register("budget_limit_requests", help, limit);
}

/// Registers what is known of the program.
fn register_program(registry: &mut Registry) {
    let dropped = Counter::<u64>::default();
    dropped.inc_by(output::dropped());
    let help = "Log records that were dropped because standard error was not read";
    registry.register("log_records_dropped", help, dropped);
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The program", build);
}

/// A count as the value of a gauge.
fn gauge_value(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn scraped(stored: StoreGauges) -> Scraped {
        Scraped {
            stored: Some(stored),
            lease: None,
            budgets: vec![BudgetUse {
                provider: ProviderName::crewship(),
                used: 12,
                limit: 60,
            }],
            store: StoreFigures::default(),
        }
    }

    #[test]
    fn every_metric_is_there_from_the_start() {
        let metrics = Metrics::default();
        let ops = SinkName::new("ops").unwrap();
        metrics.introduce(&ops);
        metrics.configured("2024-01-15T10:35:05Z".parse().unwrap());
        metrics.not_reloaded();
        metrics.heartbeat_accepted("2024-01-15T10:35:06Z".parse().unwrap());
        metrics.heartbeat_withheld();
        let stored = StoreGauges {
            deliveries: vec![SinkGauges::idle(ops.clone())],
            ..StoreGauges::default()
        };
        let text = metrics.to_text(&scraped(stored.clone()), Format::Text);
        for line in [
            "runwatch_watches{state=\"active\"} 0",
            "runwatch_polls_total{result=\"ok\",provider=\"crewship\"} 0",
            "runwatch_polls_total{result=\"unusable_answer\",provider=\"crewship\"} 0",
            "runwatch_poll_duration_seconds_count{provider=\"crewship\"} 0",
            "runwatch_api_paused_seconds_total{reason=\"rate_limited\",provider=\"crewship\"} 0",
            "runwatch_detection_total{via=\"poll\",provider=\"crewship\"} 0",
            "runwatch_detection_total{via=\"stream\",provider=\"crewship\"} 0",
            "runwatch_detection_delay_seconds_count{provider=\"crewship\"} 0",
            "runwatch_event_streams{provider=\"crewship\"} 0",
            "runwatch_deliveries_total{sink=\"ops\",result=\"given_up\"} 0",
            "runwatch_delivery_delay_seconds_count 0",
            "runwatch_deliveries_pending{sink=\"ops\"} 0",
            "runwatch_delivery_oldest_pending_seconds 0",
            "runwatch_oldest_pending_delivery_age_seconds{sink=\"ops\"} 0",
            "runwatch_deliveries_dead{sink=\"ops\"} 0",
            "runwatch_store_commit_seconds_count 0",
            "runwatch_store_batch_jobs_count 0",
            "runwatch_leading 1",
            "runwatch_log_records_dropped_total ",
            "runwatch_budget_used_requests{provider=\"crewship\"} 12",
            "runwatch_budget_limit_requests{provider=\"crewship\"} 60",
            "runwatch_config_last_reload_successful 0",
            "runwatch_config_last_reload_success_timestamp_seconds 1705314905",
            "runwatch_heartbeat_failures_total{reason=\"no_progress\"} 1",
            "runwatch_heartbeat_failures_total{reason=\"not_accepted\"} 0",
            "runwatch_heartbeat_last_success_timestamp_seconds 1705314906",
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_virtual_memory_bytes ",
            "process_open_fds ",
            "process_max_fds ",
            "process_start_time_seconds ",
            concat!(
                "runwatch_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
        ] {
            assert!(
                text.lines().any(|found| found.starts_with(line)),
                "{line}\n{text}"
            );
        }
        metrics.polled("ok", Duration::from_millis(20));
        metrics.paused("rate_limited", Duration::from_millis(1500));
        metrics.delivered(&ops, Duration::from_secs(2));
        let text = metrics.to_text(&scraped(stored), Format::OpenMetrics);
        assert!(
            text.contains("runwatch_polls_total{result=\"ok\",provider=\"crewship\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("reason=\"rate_limited\",provider=\"crewship\"} 1.5"),
            "{text}"
        );
        assert!(
            text.contains("runwatch_deliveries_total{sink=\"ops\",result=\"delivered\"} 1"),
            "{text}"
        );
    }
    #[test]
    fn both_formats_have_the_same_samples_and_each_its_own_descriptions() {
        let metrics = Metrics::default();
        let stored = StoreGauges::default();
        let scraped = scraped(stored);
        let [text, open] = Format::ALL.map(|format| metrics.to_text(&scraped, format));
        // Each metric has its samples and their labels in an order of its own. A bound of a histogram is a number, which
        // Go writes without `.0` in the text format and with it in OpenMetrics; so does the library.
        let label = |label: &str| match label.strip_prefix("le=\"") {
            Some(bound) => format!("le={}", bound.trim_end_matches('"').parse::<f64>().unwrap()),
            None => label.to_owned(),
        };
        let sample = |line: &str| {
            // Figures of the process change all the time.
            let line = match line.split_once(' ') {
                Some((name, _)) if name.starts_with("process_") => name,
                _ => line,
            };
            let (name, rest) = line.split_once('{').unwrap_or((line, ""));
            let (labels, value) = rest.rsplit_once("} ").unwrap_or(("", rest));
            let labels: BTreeSet<_> = labels.split(',').map(label).collect();
            (name.to_owned(), labels, value.to_owned())
        };
        let samples = |text: &str| -> BTreeSet<_> {
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .map(sample)
                .collect()
        };
        assert_eq!(samples(&text), samples(&open));
        assert!(text.contains("le=\"1\""), "{text}");
        assert!(open.contains("le=\"1.0\""), "{open}");
        for (format, line, there) in [
            (&text, "# TYPE runwatch_polls_total counter", true),
            (
                &text,
                "# TYPE runwatch_poll_duration_seconds histogram",
                true,
            ),
            (&text, "# TYPE runwatch_build_info gauge", true),
            (&text, "# EOF", false),
            (&open, "# TYPE runwatch_polls counter", true),
            (&open, "# TYPE runwatch_build info", true),
            (&open, "# EOF", true),
        ] {
            assert_eq!(
                format.lines().any(|found| found == line),
                there,
                "{line}\n{format}"
            );
        }
    }

    #[test]
    fn the_format_is_the_requested_one() {
        // What Prometheus 2.42 sends (scrape/scrape.go, acceptHeader).
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (vec![], Format::Text),
            (vec!["*/*"], Format::Text),
            (vec!["text/plain"], Format::Text),
            (vec![prometheus], Format::OpenMetrics),
            (
                vec!["text/plain", "application/openmetrics-text"],
                Format::OpenMetrics,
            ),
            (
                vec!["application/openmetrics-text;version=0.0.1"],
                Format::Text,
            ),
            (vec!["application/openmetrics-text; q=0"], Format::Text),
        ] {
            assert_eq!(Format::wanted(accept.iter().copied()), format, "{accept:?}");
        }
    }
}
