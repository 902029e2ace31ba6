//! What the store does, as data: one type for each operation, with the type of its reply. An engine executes them.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::Wakes;
use super::model::{
    Added, Attempt, Claimed, Counts, Decided, DeliveryFilter, DeliverySummary, DiscoveredRun,
    DiscoveryId, Fate, GroupOfRuns, History, KnownRun, Mark, Page, PollFailure, Pruned,
    RoutedEvent, RunNote, StatusChange, StoredDiscovery, StoredWatch, WatchFilter, WatchId,
    WatchRecord,
};
use crate::domain::{
    DeliveryId, Event, FoundBy, ProviderName, Routes, RunDetails, RunRef, SinkName, Step, Watch,
};
use crate::metrics::StoreGauges;

/// Where an operation is executed, and what it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExecutionLane {
    /// In a transaction that is on disk when the reply comes.
    Write,
    /// After the transaction that is under way. It sees every write that was sent before it.
    ReadInOrder,
    /// Beside the writes, as it may take long. It sees every write that was acknowledged.
    ReadBeside,
}

/// An operation of the store.
pub(super) trait StoreOperation: fmt::Debug + Send + 'static {
    /// What it returns.
    type Reply: Send + 'static;

    /// Where it is executed.
    const PLACE: ExecutionLane;

    /// The approximate number of bytes that it writes; 0 when they are few.
    fn bytes(&self) -> usize {
        0
    }

    /// The signals that follow its commit.
    fn wakes(&self) -> Wakes {
        Wakes::default()
    }
}

/// Defines operations. In parentheses: the place, and how the signals follow from the fields.
macro_rules! operations {
    ($($(#[$doc:meta])* ($place:ident $(, $this:ident => $wakes:expr)?)
        $name:ident { $($field:ident: $type:ty),* $(,)? } -> $reply:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }

        impl StoreOperation for $name {
            type Reply = $reply;
            const PLACE: ExecutionLane = ExecutionLane::$place;
            $(fn wakes(&self) -> Wakes {
                let $this = self;
                $wakes
            })?
        }
    )*};
}

const DELIVERIES: Wakes = Wakes {
    history: false,
    deliveries: true,
    verdict: None,
};

operations! {
    /// Writes nothing.
    (Write) Probe {} -> ();

    /// Writes a watch and deletes it again.
    (Write) ProbeWrite {} -> ();

    /// Makes deliveries due again whose attempt was interrupted by the end of a process.
    (Write, _this => DELIVERIES) TakeUp {} -> ();

    /// Wakes the couriers.
    (Write, _this => DELIVERIES) WakeCouriers {} -> ();

    /// Takes some of the marks of what other daemons changed, the oldest first.
    (Write) TakeMarks { limit: u32 } -> Vec<Mark>;

    /// Adds a watch, unless the run has one: any, or with `again` one without a verdict.
    (Write) AddWatch { watch: Watch, again: bool } -> (Added, WatchId);

    /// Adds a watch of the configuration once.
    (Write) AddConfiguredWatch { watch: Watch } -> (Added, Option<WatchId>);

    /// Forgets which watches were added for the configuration, except these.
    (Write) KeepConfiguredWatches { run_ids: Vec<RunRef> } -> ();

    /// Adds a watch of a run that a discovery found, and notes the run.
    (Write) AddDiscoveredWatch { watch: Watch, found: DiscoveredRun } -> (Added, Option<WatchId>);

    /// Begins those of these discoveries that are new, and forgets all others.
    (Write)
    SetDiscoveries { discoveries: Vec<(ProviderName, String)>, now: Timestamp } -> Vec<StoredDiscovery>;

    /// Notes listed runs.
    (Write) NoteRuns { discovery: DiscoveryId, notes: Vec<RunNote>, now: Timestamp } -> ();

    /// Counts a round that was complete.
    (Write)
    EndRound { discovery: DiscoveryId, began_at: Timestamp, settled_at: Timestamp } -> ();

    /// Deletes the watches of a run.
    (Write, _this => Wakes { history: true, deliveries: true, verdict: None })
    RemoveWatches { run_id: RunRef, force: bool } -> Vec<WatchId>;

    /// Stores deadlines, and begins the grace periods of missing runs anew.
    (Write) SetDeadlines { deadlines: Vec<(WatchId, Timestamp)>, now: Timestamp } -> ();

    /// Moves the times of all next attempts, after the last deadlines were stored.
    (Write, _this => DELIVERIES)
    MoveClock { deadlines: Vec<(WatchId, Timestamp)>, milliseconds: i64, now: Timestamp } -> ();

    /// Stores an event with its deliveries; `watch` is the watch that it is about.
    (Write, this => Wakes {
        history: true,
        deliveries: !this.routed.sinks.is_empty(),
        verdict: None,
    })
    RecordEvent { watch: Option<WatchId>, routed: RoutedEvent, now: Timestamp } -> ();

    /// Claims due deliveries of a sink.
    (Write) ClaimDue { sink: SinkName, now: Timestamp, limit: usize, most_bytes: usize } -> Vec<Claimed>;

    /// Stores an attempt with its result. Where the delivery is given up, `fallback` gets one of the same event, unless
    /// it has one.
    (Write, _this => DELIVERIES)
    RecordAttempt { id: DeliveryId, attempt: Attempt, fallback: Option<SinkName> } -> ();

    /// Holds a claimed delivery, whose attempt is not made.
    (Write, _this => DELIVERIES) Hold { id: DeliveryId, attempt: u32, until: Timestamp } -> ();

    /// Holds the deliveries of a sink that are held until another time.
    (Write, _this => DELIVERIES) SetHolds { sink: SinkName, until: Timestamp } -> ();

    /// Decides about some of the deliveries of a sink that wait for a summary: with `digest` they are included in one,
    /// and else, or if they are few, they are due at once. Returns how many they were.
    (Write, _this => Wakes { history: true, deliveries: true, verdict: None })
    Summarize { sink: SinkName, digest: bool, now: Timestamp } -> usize;

    /// Finishes some of the groups that wait for no watch any more. Returns how many.
    (Write, _this => Wakes { history: true, deliveries: true, verdict: None })
    FinishGroups { routes: Arc<Routes>, before: Timestamp, now: Timestamp } -> usize;

    /// Whether there is such a group.
    (ReadBeside) HasCompleteGroup { before: Timestamp } -> bool;

    /// Decides about one delivery.
    (Write, _this => DELIVERIES)
    Decide { beginning: DeliveryId, fate: Fate, now: Timestamp } -> Decided;

    /// Decides about some deliveries of a sink, those after an ID, in the order of their IDs. Returns their IDs.
    (Write, _this => DELIVERIES)
    DecideSome { sink: SinkName, fate: Fate, now: Timestamp, after: String } -> Vec<DeliveryId>;

    /// Deletes some of what is older than the retention.
    (Write) Prune { before: Timestamp, sinks: Vec<SinkName>, now: Timestamp } -> Pruned;

    /// Reads nothing.
    (ReadInOrder) Ping {} -> ();

    /// The watches without a verdict.
    (ReadInOrder)
    ActiveWatches { now: Timestamp, after: Option<(Timestamp, RunRef)>, limit: u32 } -> Vec<StoredWatch>;

    /// The watches without a verdict of some runs.
    (ReadInOrder) ActiveWatchesOf { now: Timestamp, run_ids: Vec<RunRef> } -> Vec<StoredWatch>;

    /// The details of a run.
    (ReadInOrder) Details { watch: WatchId } -> Option<RunDetails>;

    /// The durations of the groups of a provider, the group whose run ended last at the end.
    (ReadInOrder) DurationsOf { provider: ProviderName } -> Vec<(String, Vec<u64>)>;

    /// What is known of listed runs, in their order.
    (ReadInOrder) KnownRuns { discovery: DiscoveryId, run_ids: Vec<RunRef> } -> Vec<KnownRun>;

    /// When the next delivery of a sink is due.
    (ReadInOrder) NextDue { sink: SinkName } -> Option<Timestamp>;

    /// A page of watches.
    (ReadBeside) Watches { filter: WatchFilter, limit: u32 } -> Page<WatchRecord>;

    /// The newest watch of a run.
    (ReadBeside) NewestWatch { run_id: RunRef } -> Option<WatchRecord>;

    /// Everything about the newest watch of a run.
    (ReadBeside) WatchHistory { run_id: RunRef } -> Option<History>;

    /// The status changes after a number.
    (ReadBeside) StatusChangesAfter { seq: i64 } -> Vec<StatusChange>;

    /// A page of deliveries.
    (ReadBeside) Deliveries { filter: DeliveryFilter, limit: u32 } -> Page<DeliverySummary>;

    /// The number of open deliveries of each sink that has any.
    (ReadBeside) SinksWithOpenDeliveries {} -> Vec<(SinkName, u64)>;

    /// Events after a number.
    (ReadBeside) EventsAfter { seq: i64, limit: u32 } -> Vec<(i64, Event)>;

    /// The newest event about the API.
    (ReadBeside) NewestProviderEvents {} -> Vec<Event>;

    /// The number of the newest event.
    (ReadBeside) NewestEvent {} -> i64;

    /// The durations of some groups, each with its provider; those without any are left out.
    (ReadBeside)
    Durations { groups: Vec<GroupOfRuns> } -> Vec<(GroupOfRuns, Vec<u64>)>;

    /// How many watches and deliveries there are.
    (ReadBeside) CountAll {} -> Counts;

    /// The values for the metrics.
    (ReadBeside) Gauges { now: Timestamp, sinks: Vec<SinkName> } -> StoreGauges;
}

/// Stores the step with the verdict of a watch that belongs to a group, and if that finishes the group, the event about
/// it, with the deliveries to the sinks of the routes.
#[derive(Debug)]
pub(super) struct RecordGroupStep {
    pub(super) step: RecordStep,
    pub(super) routes: Arc<Routes>,
}

impl StoreOperation for RecordGroupStep {
    type Reply = ();
    const PLACE: ExecutionLane = ExecutionLane::Write;

    fn bytes(&self) -> usize {
        self.step.bytes()
    }

    fn wakes(&self) -> Wakes {
        Wakes {
            deliveries: true,
            ..self.step.wakes()
        }
    }
}

/// Stores a step of a watch, with its events and their deliveries.
#[derive(Debug)]
pub(super) struct RecordStep {
    pub(super) watch: WatchId,
    pub(super) step: Step,
    pub(super) routed: Vec<RoutedEvent>,
    pub(super) last_error: Option<PollFailure>,
    pub(super) found_by: FoundBy,
    pub(super) now: Timestamp,
}

impl StoreOperation for RecordStep {
    type Reply = ();
    const PLACE: ExecutionLane = ExecutionLane::Write;

    fn bytes(&self) -> usize {
        self.step.bytes()
    }

    fn wakes(&self) -> Wakes {
        Wakes {
            history: true,
            deliveries: self.routed.iter().any(|routed| !routed.sinks.is_empty()),
            verdict: self.step.progress.verdict,
        }
    }
}
