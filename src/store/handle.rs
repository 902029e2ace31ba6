//! The handle that the rest of the program uses: a method for each operation.

use std::sync::Arc;

use jiff::Timestamp;

use super::Store;
use super::model::{
    Added, Attempt, Claimed, Counts, Decided, DeliveryFilter, DeliverySummary, DiscoveredRun,
    DiscoveryId, Fate, GroupOfRuns, History, KnownRun, Mark, Page, PollFailure, Pruned,
    RoutedEvent, RunNote, StatusChange, StoreError, StoredDiscovery, StoredWatch, WatchFilter,
    WatchId, WatchRecord,
};
use super::operations::{
    ActiveWatches, ActiveWatchesOf, AddConfiguredWatch, AddDiscoveredWatch, AddWatch, ClaimDue,
    CountAll, Decide, DecideSome, Deliveries, Details, Durations, DurationsOf, EndRound,
    EventsAfter, FinishGroups, Gauges, HasCompleteGroup, Hold, KeepConfiguredWatches, KnownRuns,
    MoveClock, NewestEvent, NewestProviderEvents, NewestWatch, NextDue, NoteRuns, Ping, Probe,
    ProbeWrite, Prune, RecordAttempt, RecordEvent, RecordGroupStep, RecordStep, RemoveWatches,
    SetDeadlines, SetDiscoveries, SetHolds, SinksWithOpenDeliveries, StatusChangesAfter, Summarize,
    TakeMarks, TakeUp, WakeCouriers, WatchHistory, Watches,
};
use super::records::SUMMARIZED_AT_ONCE;
use crate::domain::{
    DeliveryId, Event, FoundBy, ProviderName, Routes, RunDetails, RunRef, SinkName, Step, Watch,
};
use crate::failpoint::mutant;
use crate::metrics::StoreGauges;

/// The largest number of deadlines in one transaction, so that other writes have their turn in between.
const MARKS: usize = 2_000;

impl Store {
    /// Checks whether the store can be written: its files exist, and no other process has them
    /// locked.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.run(Probe {}).await
    }

    /// Returns once the writer has finished all earlier jobs, which shows that it makes progress.
    ///
    /// # Errors
    /// When the writer has ended.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.run(Ping {}).await
    }

    /// Stores a watch unless there is one of that run already, active or finished. Returns the
    /// number of the newest watch of the run too.
    ///
    /// # Errors
    /// When the store cannot be written; nothing is stored then.
    pub async fn add_watch(&self, watch: Watch) -> Result<(Added, WatchId), StoreError> {
        self.run(AddWatch {
            watch,
            again: false,
        })
        .await
    }

    /// As [`Store::add_watch`], but adds a new watch also when the run has a finished one, which
    /// stays stored with its verdict and its deliveries.
    ///
    /// # Errors
    /// As [`Store::add_watch`].
    pub async fn add_watch_again(&self, watch: Watch) -> Result<(Added, WatchId), StoreError> {
        self.run(AddWatch { watch, again: true }).await
    }

    /// Stores a watch of the configuration, unless it was added for the configuration before or the
    /// run has a watch already. Without a watch of the run there is no number.
    ///
    /// # Errors
    /// When the store cannot be written; nothing is stored then.
    pub async fn add_configured_watch(
        &self,
        watch: Watch,
    ) -> Result<(Added, Option<WatchId>), StoreError> {
        self.run(AddConfiguredWatch { watch }).await
    }

    /// Notes a run that a discovery found, and adds a watch of it, in one transaction: unless it has a watch already, or
    /// where it is a new attempt, one that is active or has observed this attempt. Nothing is done for a discovery that
    /// is gone.
    ///
    /// # Errors
    /// When the store cannot be written; nothing is stored then.
    pub async fn add_discovered_watch(
        &self,
        watch: Watch,
        found: DiscoveredRun,
    ) -> Result<(Added, Option<WatchId>), StoreError> {
        self.run(AddDiscoveredWatch { watch, found }).await
    }

    /// Begins at `now` those of these discoveries that are new, each named by its provider and the JSON of its
    /// parameters, and forgets all others with what they noted. Returns how far each has come, in their order.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_discoveries(
        &self,
        discoveries: Vec<(ProviderName, String)>,
        now: Timestamp,
    ) -> Result<Vec<StoredDiscovery>, StoreError> {
        self.run(SetDiscoveries { discoveries, now }).await
    }

    /// Notes listed runs at `now`. Does nothing for a discovery that is gone.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn note_runs(
        &self,
        discovery: DiscoveryId,
        notes: Vec<RunNote>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let notes_of_runs = NoteRuns {
            discovery,
            notes,
            now,
        };
        self.run(notes_of_runs).await
    }

    /// Counts a round of a discovery that was complete, and began at `began_at`. Runs that began before `settled_at` need
    /// not be listed any more.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn end_round(
        &self,
        discovery: DiscoveryId,
        began_at: Timestamp,
        settled_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.run(EndRound {
            discovery,
            began_at,
            settled_at,
        })
        .await
    }

    /// What is known of these runs, in their order: what the discovery noted, and their newest watches.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn known_runs(
        &self,
        discovery: DiscoveryId,
        run_ids: Vec<RunRef>,
    ) -> Result<Vec<KnownRun>, StoreError> {
        self.run(KnownRuns { discovery, run_ids }).await
    }

    /// Forgets which watches were added for the configuration, except those that it still has: a
    /// watch that returns to the configuration later is added again.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn keep_configured_watches(&self, run_ids: Vec<RunRef>) -> Result<(), StoreError> {
        self.run(KeepConfiguredWatches { run_ids }).await
    }

    /// Writes a watch and deletes it again, in one transaction that is synced like any other, to
    /// check that a watch can be added now.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn probe_write(&self) -> Result<(), StoreError> {
        self.run(ProbeWrite {}).await
    }

    /// Deletes the watches of a run with their history and their deliveries. Returns their numbers;
    /// none when there was no watch of that run. With `force`, messages that are not delivered yet
    /// go with them.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] without `force` when one has its verdict but not all messages
    /// of that are delivered or given up; nothing is deleted then.
    pub async fn remove_watches(
        &self,
        run_id: RunRef,
        force: bool,
    ) -> Result<Vec<WatchId>, StoreError> {
        self.run(RemoveWatches { run_id, force }).await
    }

    /// Up to `limit` of the watches without a verdict, the oldest first, taken up at `now`; those
    /// that come after the watch `after`, given as the time of its adding and its run. The details
    /// of their runs stay in the store ([`Store::details`]). None of them counts as missing: there
    /// were no polls while there was no process, so the grace period begins anew.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn active_watches(
        &self,
        now: Timestamp,
        after: Option<(Timestamp, RunRef)>,
        limit: u32,
    ) -> Result<Vec<StoredWatch>, StoreError> {
        self.run(ActiveWatches { now, after, limit }).await
    }

    /// The watches without a verdict of these runs, in the order of the runs, taken up at `now` as by
    /// [`Store::active_watches`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn active_watches_of(
        &self,
        now: Timestamp,
        run_ids: Vec<RunRef>,
    ) -> Result<Vec<StoredWatch>, StoreError> {
        self.run(ActiveWatchesOf { now, run_ids }).await
    }

    /// Makes deliveries due again whose attempt was interrupted by the end of a process, as opening a store in SQLite
    /// does. Call it before couriers start, because it does so with every attempt that is under way.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn take_up(&self) -> Result<(), StoreError> {
        self.run(TakeUp {}).await
    }

    /// Wakes the couriers: another daemon made deliveries due.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn wake_couriers(&self) -> Result<(), StoreError> {
        self.run(WakeCouriers {}).await
    }

    /// Takes up to `limit` marks of what other daemons changed, each once, in the order of their first. Without a
    /// shared store there are none.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn take_marks(&self, limit: u32) -> Result<Vec<Mark>, StoreError> {
        self.run(TakeMarks { limit }).await
    }

    /// Returns the last stored details of a run; `None` when there are none, or the watch is gone.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn details(&self, watch: WatchId) -> Result<Option<RunDetails>, StoreError> {
        self.run(Details { watch }).await
    }

    /// Returns the durations of the groups of a provider in milliseconds, of each the oldest first; the group whose run
    /// ended last is at the end.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn durations_of(
        &self,
        provider: ProviderName,
    ) -> Result<Vec<(String, Vec<u64>)>, StoreError> {
        self.run(DurationsOf { provider }).await
    }

    /// As [`Store::durations_of`], of these groups in no order. Those without any are left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn durations(
        &self,
        groups: Vec<GroupOfRuns>,
    ) -> Result<Vec<(GroupOfRuns, Vec<u64>)>, StoreError> {
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        self.run(Durations { groups }).await
    }

    /// Stores a step of a watch: its new state, its events and their deliveries, all or nothing.
    /// The duration of a run that succeeded is added to those of its group. Details that the step does not know stay as
    /// they are. `routed` has the events of `step` with
    /// their sinks; `last_error` is the error of the last poll that failed; `found_by` is the
    /// reason for the poll.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] when the watch is gone or has its verdict already.
    pub async fn record_step(
        &self,
        watch: WatchId,
        step: Step,
        routed: Vec<RoutedEvent>,
        last_error: Option<PollFailure>,
        found_by: FoundBy,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (routed, later) = if mutant("apart") {
            (Vec::new(), routed)
        } else {
            (routed, Vec::new())
        };
        self.run(RecordStep {
            watch,
            step,
            routed,
            last_error,
            found_by,
            now,
        })
        .await?;
        for routed in later {
            self.run(RecordEvent {
                watch: Some(watch),
                routed,
                now,
            })
            .await?;
        }
        Ok(())
    }

    /// As [`Store::record_step`], of a step with the verdict of a watch that belongs to a group. If that finishes the
    /// group, the event about it is stored in the same transaction, with deliveries by `routes`.
    ///
    /// # Errors
    /// As [`Store::record_step`].
    #[expect(clippy::too_many_arguments, reason = "those of a step, and the routes")]
    pub async fn record_group_step(
        &self,
        watch: WatchId,
        step: Step,
        routed: Vec<RoutedEvent>,
        last_error: Option<PollFailure>,
        found_by: FoundBy,
        now: Timestamp,
        routes: Arc<Routes>,
    ) -> Result<(), StoreError> {
        let step = RecordStep {
            watch,
            step,
            routed,
            last_error,
            found_by,
            now,
        };
        self.run(RecordGroupStep { step, routes }).await
    }

    /// Finishes groups that wait for no watch any more, because the last one without a verdict was removed, or because
    /// watches that their size counts were not added until `before`: stores the events about them, with deliveries by
    /// `routes`. Returns how many; there may be further ones if that is not 0.
    ///
    /// # Errors
    /// When the store cannot be written; nothing is stored then.
    pub async fn finish_groups(
        &self,
        routes: Arc<Routes>,
        before: Timestamp,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        // A write wakes those that wait for changes.
        if !self.run(HasCompleteGroup { before }).await? {
            return Ok(0);
        }
        self.run(FinishGroups {
            routes,
            before,
            now,
        })
        .await
    }

    /// After the wall clock was set by `milliseconds`: stores the deadlines of these active
    /// watches, some at a time, begins the grace periods of their missing runs anew at `now`, and
    /// then moves the times of all next attempts.
    ///
    /// # Errors
    /// When the store rejects it. Of many deadlines some may be stored then, which does no harm
    /// when all are stored again; nothing else is.
    pub async fn shift_deadlines(
        &self,
        deadlines: Vec<(WatchId, Timestamp)>,
        milliseconds: i64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut some_at_a_time = deadlines
            .chunks(MARKS)
            .map(<[_]>::to_vec)
            .collect::<Vec<_>>();
        let last = some_at_a_time.pop().unwrap_or_default();
        for deadlines in some_at_a_time {
            self.run(SetDeadlines { deadlines, now }).await?;
        }
        let deadlines = if mutant("marks-stay") {
            Vec::new()
        } else {
            last
        };
        self.run(MoveClock {
            deadlines,
            milliseconds,
            now,
        })
        .await
    }

    /// Up to `limit` watches.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn watches(
        &self,
        filter: WatchFilter,
        limit: u32,
    ) -> Result<Page<WatchRecord>, StoreError> {
        self.run(Watches { filter, limit }).await
    }

    /// The newest watch of a run, if there is one, without its history.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn watch(&self, run_id: RunRef) -> Result<Option<WatchRecord>, StoreError> {
        self.run(NewestWatch { run_id }).await
    }

    /// Everything about the newest watch of a run, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn history(&self, run_id: RunRef) -> Result<Option<History>, StoreError> {
        self.run(WatchHistory { run_id }).await
    }

    /// The status changes after `seq`, in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn status_changes_after(&self, seq: i64) -> Result<Vec<StatusChange>, StoreError> {
        self.run(StatusChangesAfter { seq }).await
    }

    /// Claims up to `limit` deliveries of `sink` that are due at `now`, the longest due first;
    /// fewer where they are large. An input or output of more than `most_bytes`, which the sink
    /// would leave out, is not read, and named in `truncated`.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn claim_due(
        &self,
        sink: SinkName,
        now: Timestamp,
        limit: usize,
        most_bytes: usize,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.run(ClaimDue {
            sink,
            now,
            limit,
            most_bytes,
        })
        .await
    }

    /// When the next delivery of `sink` is due.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn next_due(&self, sink: SinkName) -> Result<Option<Timestamp>, StoreError> {
        self.run(NextDue { sink }).await
    }

    /// Stores an attempt and its result together.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] when the delivery is not claimed for that attempt.
    pub async fn record_attempt(&self, id: DeliveryId, attempt: Attempt) -> Result<(), StoreError> {
        self.record_attempt_with(id, attempt, None).await
    }

    /// As [`Store::record_attempt`]. Where the attempt gives the delivery up, `fallback` gets a delivery of the same
    /// event in the same transaction, which is due at once, unless it has one of that event already.
    ///
    /// # Errors
    /// As [`Store::record_attempt`].
    pub async fn record_attempt_with(
        &self,
        id: DeliveryId,
        attempt: Attempt,
        fallback: Option<SinkName>,
    ) -> Result<(), StoreError> {
        self.run(RecordAttempt {
            id,
            attempt,
            fallback,
        })
        .await
    }

    /// Holds a delivery that is claimed for an attempt until a time of the wall clock. The attempt does not count.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] when the delivery is not claimed for that attempt.
    pub async fn hold(
        &self,
        id: DeliveryId,
        attempt: u32,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        self.run(Hold { id, attempt, until }).await
    }

    /// Changes until when those deliveries of `sink` are held that are held now. With a time that has come they are due.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_holds(&self, sink: SinkName, until: Timestamp) -> Result<(), StoreError> {
        self.run(SetHolds { sink, until }).await
    }

    /// Decides about the deliveries of a sink that wait for a summary ([`RoutedEvent::held`]): with `digest`, one delivery
    /// of an event [`crate::domain::EventType::RunDigest`] takes their place. Without, or if they are fewer than three,
    /// they are due at `now`. Of very many there are several summaries.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn summarize(
        &self,
        sink: SinkName,
        digest: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        loop {
            let sink = sink.clone();
            if self.run(Summarize { sink, digest, now }).await? < SUMMARIZED_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Up to `limit` deliveries.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn deliveries(
        &self,
        filter: DeliveryFilter,
        limit: u32,
    ) -> Result<Page<DeliverySummary>, StoreError> {
        self.run(Deliveries { filter, limit }).await
    }

    /// Applies `fate` to one delivery. An unambiguous beginning of its ID is enough.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] when it has arrived or is being sent, and when several IDs
    /// begin so.
    pub async fn decide(
        &self,
        beginning: DeliveryId,
        fate: Fate,
        now: Timestamp,
    ) -> Result<Decided, StoreError> {
        self.run(Decide {
            beginning,
            fate,
            now,
        })
        .await
    }

    /// Applies `fate` to every delivery to `sink` that waits or was given up, some at a time;
    /// deliveries that are given up already are not given up again. Returns their number.
    ///
    /// # Errors
    /// When the store cannot be written; some deliveries may be changed then.
    pub async fn decide_all(
        &self,
        sink: SinkName,
        fate: Fate,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (mut done, mut after) = (0, String::new());
        loop {
            let sink = sink.clone();
            let ids = self
                .run(DecideSome {
                    sink,
                    fate,
                    now,
                    after,
                })
                .await?;
            done += ids.len() as u64;
            let Some(last) = ids.last() else {
                return Ok(done);
            };
            after = last.as_str().to_owned();
        }
    }

    /// The sinks that open deliveries are for, each with how many there are.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn sinks_with_open_deliveries(&self) -> Result<Vec<(SinkName, u64)>, StoreError> {
        self.run(SinksWithOpenDeliveries {}).await
    }

    /// Stores an event that is not about a run, with its deliveries.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn record_event(
        &self,
        routed: RoutedEvent,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.run(RecordEvent {
            watch: None,
            routed,
            now,
        })
        .await
    }

    /// Up to `limit` events after `seq`, in order, each with its number; fewer where they are
    /// large.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn events_after(
        &self,
        seq: i64,
        limit: u32,
    ) -> Result<Vec<(i64, Event)>, StoreError> {
        self.run(EventsAfter { seq, limit }).await
    }

    /// The newest event about the API of each provider of which one is kept, the oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_provider_events(&self) -> Result<Vec<Event>, StoreError> {
        self.run(NewestProviderEvents {}).await
    }

    /// The number of the newest event; 0 when there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_event(&self) -> Result<i64, StoreError> {
        self.run(NewestEvent {}).await
    }

    /// Returns how many watches and deliveries there are.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        self.run(CountAll {}).await
    }

    /// Returns the values of the store for the metrics at `now`, with a line for each of the
    /// configured `sinks`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn gauges(
        &self,
        now: Timestamp,
        sinks: Vec<SinkName>,
    ) -> Result<StoreGauges, StoreError> {
        self.run(Gauges { now, sinks }).await
    }

    /// Does one turn of pruning: gives up deliveries made before `before` to sinks that are not
    /// among `sinks`, deletes watches that had their verdict before it, and notices as old, all of
    /// whose messages are delivered or given up, deletes what discoveries noted of runs that were not
    /// listed for as long, and at least a week, before their newest complete rounds, and gives free
    /// room back to the disk. There is more to do until it did nothing. The newest notice about the API stays, because it shows
    /// whether an incident goes on.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn prune(
        &self,
        before: Timestamp,
        sinks: Vec<SinkName>,
        now: Timestamp,
    ) -> Result<Pruned, StoreError> {
        self.run(Prune { before, sinks, now }).await
    }
}
