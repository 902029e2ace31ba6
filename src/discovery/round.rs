//! A round: pages are read, and what follows from their entries is done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::Instant;

use super::decide::{Decision, LONGEST_LAG, Moment, decide, is_settled};
use super::fill::fill;
use super::view::{PAGES_AT_MOST, WATCHES_AT_MOST};
use super::{Discoveries, DiscoveryPlan, RunLists};
use crate::config::DiscoverySettings;
use crate::domain::{RunRef, Verdict, Watch};
use crate::failpoint::{self, mutant};
use crate::providers::{ApiError, ListEntry, ListPage, ListRequest, PageRef};
use crate::scheduler::AddedBy;
use crate::store::{Added, DiscoveredRun, RunNote, StoreError, StoredDiscovery};
use crate::text::error_chain;

/// How often all pages of the runs that go on are read, where rounds are more frequent: they show new attempts of runs
/// that began long ago.
const ALL_ACTIVE_PERIOD: Duration = Duration::from_secs(60);

/// Watches that are added at once: they share syncs to the disk.
const ADDED_AT_ONCE: usize = 64;

/// How a round ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoundEnd {
    /// Whether nothing was left out.
    pub(super) is_complete: bool,
    pub(super) pages: u32,
    pub(super) watched: u64,
}

/// Why a round failed.
#[derive(Debug)]
pub(super) enum RoundFailure {
    /// The list cannot be read.
    List(ApiError),
    /// The store reported an error.
    Store(StoreError),
}

impl From<StoreError> for RoundFailure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl RoundFailure {
    /// The reason, in a line.
    pub(super) fn text(&self) -> String {
        match self {
            Self::List(error) => error_chain(error),
            Self::Store(error) => error_chain(error),
        }
    }

    /// What to do.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::List(ApiError::NotFound { .. } | ApiError::Gone { .. }) => {
                "check match, and whether the key may see these runs"
            }
            Self::List(
                ApiError::KeyMissing | ApiError::KeyUnusable(_) | ApiError::Unauthorized { .. },
            ) => "check the key of the provider",
            Self::List(ApiError::Malformed(_)) => "check `list` in the profile of the provider",
            Self::List(_) => "check the address of the provider, and match",
            Self::Store(_) => "check the disk of the store",
        }
    }
}

/// A kind of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageKind {
    /// Of runs that go on.
    Active,
    /// Of runs that are not settled.
    Recent,
}

/// How far a list has to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Its end.
    End,
    /// One page after a page whose runs were all known when the newest complete round ended.
    Settled,
    /// One page after a page whose runs are all known.
    Known,
}

/// How a list was read.
#[derive(Debug)]
enum PagesRead {
    /// As far as it had to be.
    Done,
    /// Up to a limit: the rest begins at this page, or at the first one.
    Cut(Option<PageRef>),
}

/// What a page showed.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// All its runs were known when the newest complete round ended.
    settled: bool,
    /// All its runs were known.
    known: bool,
    /// Some runs are not watched, as the limit is reached.
    cut: bool,
}

/// A discovery that is followed.
pub(super) struct Followed<'a, L> {
    all: &'a Discoveries<L>,
    settings: &'a DiscoverySettings,
    plan: &'a DiscoveryPlan,
    pub(super) title: String,
    /// How far it has come.
    pub(super) stored: StoredDiscovery,
    /// When the complete rounds began of which the next ones may settle what they read, with the monotonic time of
    /// that, the oldest first.
    complete: VecDeque<(Timestamp, Instant)>,
    /// How many pages the newest round read.
    pub(super) pages: u32,
    /// How many watches the round under way added.
    added: u64,
    /// Where the pages of each kind go on, after a round that reached a limit.
    rest_of_active: Option<PageRef>,
    rest_of_recent: Option<PageRef>,
    /// When all pages of the runs that go on were last read.
    all_active_at: Option<Instant>,
    /// Sinks that were warned about.
    warned: BTreeSet<String>,
}

impl<'a, L: RunLists> Followed<'a, L> {
    pub(super) fn new(
        all: &'a Discoveries<L>,
        settings: &'a DiscoverySettings,
        plan: &'a DiscoveryPlan,
        stored: StoredDiscovery,
    ) -> Self {
        Self {
            all,
            settings,
            plan,
            title: settings.title(),
            stored,
            complete: VecDeque::new(),
            pages: 0,
            added: 0,
            rest_of_active: None,
            rest_of_recent: None,
            all_active_at: None,
            warned: BTreeSet::new(),
        }
    }

    /// Makes a round.
    pub(super) async fn round(&mut self) -> Result<RoundEnd, RoundFailure> {
        let (began_at, began) = (self.all.clock.now(), Instant::now());
        (self.pages, self.added) = (0, 0);
        let is_complete = self.read_active().await? & self.read_recent(began_at).await?;
        if is_complete {
            self.complete.push_back((began_at, began));
            let settled_at = self.settle(began_at, began);
            let (id, store) = (self.stored.id, &self.all.store);
            store.end_round(id, began_at, settled_at).await?;
            self.stored.rounds += 1;
            self.stored.cursor_at = Some(began_at);
            self.stored.settled_at = Some(settled_at);
        }
        Ok(RoundEnd {
            is_complete,
            pages: self.pages,
            watched: self.added,
        })
    }

    /// What is settled after a complete round that begins now: what began before an earlier one, so long ago that no list
    /// lags that far behind. Both had it in reach, also where the first of them read what the daemon had missed, and the
    /// list did not show a run for a short time.
    fn settle(&mut self, now: Timestamp, began: Instant) -> Timestamp {
        let mut settled_at = self
            .stored
            .settled_at
            .or_else(|| now.checked_sub(LONGEST_LAG).ok())
            .unwrap_or(now);
        while let Some((at, earlier)) = self.complete.front().copied() {
            // Measured, as clocks are set.
            if began.duration_since(earlier) < LONGEST_LAG.unsigned_abs() {
                break;
            }
            settled_at = at;
            self.complete.pop_front();
        }
        settled_at
    }

    /// Reads the pages of the runs that go on. Returns whether nothing was left out.
    async fn read_active(&mut self) -> Result<bool, RoundFailure> {
        if !self.settings.lists_active() {
            return Ok(true);
        }
        let is_recent = self
            .all_active_at
            .is_some_and(|at| at.elapsed() < ALL_ACTIVE_PERIOD);
        let until = if is_recent {
            Until::Settled
        } else {
            Until::End
        };
        let first = self.rest_of_active.take();
        match self.read(PageKind::Active, None, first, until).await? {
            PagesRead::Done => {
                if until == Until::End {
                    self.all_active_at = Some(Instant::now());
                }
                Ok(true)
            }
            PagesRead::Cut(rest) => {
                self.rest_of_active = rest;
                Ok(false)
            }
        }
    }

    /// Reads the pages of the runs that are not settled. Returns whether nothing was left out.
    async fn read_recent(&mut self, now: Timestamp) -> Result<bool, RoundFailure> {
        let settled_at = self.stored.settled_at.unwrap_or(self.stored.began_at);
        // One in the future is one of a clock that was wrong.
        let since = now
            .checked_sub(LONGEST_LAG)
            .ok()
            .map(|at| at.min(settled_at));
        // In the first round, runs that go on may be anywhere in a list of all of them.
        let since =
            since.filter(|_| self.stored.cursor_at.is_some() || self.settings.lists_active());
        let is_limited = since.is_some() && self.settings.lists_since();
        let until = match self.stored.cursor_at {
            // What ended before is of no interest, and the runs that go on were read above.
            None if self.settings.lists_active() => Until::Settled,
            None => Until::End,
            Some(_) if is_limited => Until::End,
            Some(_) => Until::Settled,
        };
        let rest = self.rest_of_recent.take();
        let top = if rest.is_some() { Until::Known } else { until };
        let mut read = self.read(PageKind::Recent, since, None, top).await?;
        if let (PagesRead::Done, Some(rest)) = (&read, rest) {
            // What is new since the round that was cut is in front of what it had read.
            self.rest_of_recent = Some(rest.clone());
            read = self
                .read(PageKind::Recent, since, Some(rest), until)
                .await?;
            self.rest_of_recent = None;
        }
        match read {
            PagesRead::Done => Ok(true),
            // The first round of a list that has all runs ends here: what is further on is history.
            PagesRead::Cut(Some(_))
                if self.stored.cursor_at.is_none()
                    && !is_limited
                    && self.added < WATCHES_AT_MOST =>
            {
                Ok(true)
            }
            PagesRead::Cut(rest) => {
                self.rest_of_recent = rest;
                Ok(false)
            }
        }
    }

    /// Reads pages from `first` on, and does what follows from them.
    async fn read(
        &mut self,
        kind: PageKind,
        since: Option<Timestamp>,
        first: Option<PageRef>,
        until: Until,
    ) -> Result<PagesRead, RoundFailure> {
        let mut page_ref = first;
        let mut is_last = false;
        for _page in 0..PAGES_AT_MOST {
            let request = ListRequest {
                parameters: self.settings.parameters.clone(),
                only_active: kind == PageKind::Active,
                since,
                page: page_ref.clone(),
            };
            let listed = self
                .all
                .lists
                .list(&self.settings.provider, request)
                .await?;
            if listed.is_err() && page_ref.is_some() && mutant("page-forgotten") {
                return Ok(PagesRead::Done);
            }
            let ListPage { entries, next, .. } = listed.map_err(RoundFailure::List)?;
            self.pages += 1;
            // A page in another order says nothing about what is further on, and neither does one with runs so new that
            // a list that lags behind may show others beside them later.
            let is_newest_first = is_newest_first(&entries);
            let is_past = entries
                .iter()
                .filter_map(began)
                .all(|at| since.is_none_or(|since| at < since));
            let taken = self.take(entries).await?;
            if taken.cut {
                return Ok(PagesRead::Cut(page_ref));
            }
            let Some(next) = next else {
                return Ok(PagesRead::Done);
            };
            let is_enough = match until {
                Until::End => false,
                Until::Settled => taken.settled && is_newest_first && is_past,
                Until::Known => taken.known && is_newest_first,
            };
            if is_last && is_enough {
                return Ok(PagesRead::Done);
            }
            is_last = is_enough;
            page_ref = Some(next);
        }
        Ok(PagesRead::Cut(page_ref))
    }

    /// Does what follows from the entries of a page.
    async fn take(&mut self, entries: Vec<ListEntry>) -> Result<Taken, RoundFailure> {
        let by_run = latest_attempts(entries, self.settings.provider.as_str());
        let (all, id) = (self.all, self.stored.id);
        let runs = by_run.keys().cloned().collect();
        let known = all.store.known_runs(id, runs).await?;
        let now = all.clock.now();
        let moment = Moment {
            began_at: self.stored.began_at,
            cursor_at: self.stored.cursor_at,
            settled_at: self.stored.settled_at,
            now,
        };
        let mut taken = Taken {
            settled: true,
            known: true,
            cut: false,
        };
        let (mut notes, mut watches): (Vec<RunNote>, Vec<(Watch, DiscoveredRun)>) =
            Default::default();
        let mut found = 0;
        for (entry, known) in by_run.values().zip(&known) {
            let is_old =
                self.stored.cursor_at.is_none() && Verdict::of_status(&entry.status).is_some();
            taken.settled &= is_settled(known.noted.as_ref(), self.stored.rounds) || is_old;
            taken.known &= known.noted.is_some();
            let decision = decide(entry, known, &moment);
            let is_watched = matches!(decision, Decision::Watch { .. });
            if is_watched && self.added + watches.len() as u64 >= WATCHES_AT_MOST {
                taken.cut = true;
                continue;
            }
            found += u64::from(known.noted.is_none());
            match decision {
                Decision::Nothing => {}
                Decision::Note(note) => notes.push(note),
                Decision::Watch { note, again } => {
                    let found = DiscoveredRun {
                        discovery: id,
                        title: self.title.clone(),
                        note,
                        again,
                    };
                    watches.push((self.watch(entry, now), found));
                }
            }
        }
        if !notes.is_empty() {
            all.store.note_runs(id, notes, now).await?;
        }
        failpoint::point("listed");
        self.add_all(watches).await?;
        self.stored.found += found;
        Ok(taken)
    }

    /// Adds the watches of runs that were found.
    async fn add_all(&mut self, watches: Vec<(Watch, DiscoveredRun)>) -> Result<(), RoundFailure> {
        let all = self.all;
        let adding = stream::iter(watches).map(|(watch, found)| {
            let run_id = watch.run_id.clone();
            let added = all.lists.add(watch, AddedBy::Discovery(Box::new(found)));
            async move { added.await.map(|added| (run_id, added)) }
        });
        let mut adding = adding.buffered(ADDED_AT_ONCE);
        while let Some((run_id, added)) = adding.try_next().await? {
            failpoint::point("discovered");
            if added == Added::New {
                tracing::info!(%run_id, discovery = self.title, "watching, as discovered");
                self.added += 1;
                self.stored.watched += 1;
                all.metrics.discovered(&self.settings.provider);
            }
        }
        Ok(())
    }

    /// The watch of a run.
    fn watch(&mut self, entry: &ListEntry, now: Timestamp) -> Watch {
        let filled = fill(self.settings, entry, &self.plan.routes, &mut self.warned);
        Watch {
            run_id: entry.run_id.clone(),
            name: filled.name,
            labels: filled.labels,
            sinks: filled.sinks,
            added_at: now,
            deadline_at: now
                .checked_add(self.plan.deadline)
                .unwrap_or(Timestamp::MAX),
            trace: None,
        }
    }
}

/// When a run was created, or else started.
fn began(entry: &ListEntry) -> Option<Timestamp> {
    entry.created_at.or(entry.started_at)
}

/// Whether a page has its newest runs first, as far as their times show that.
fn is_newest_first(entries: &[ListEntry]) -> bool {
    let mut times = entries.iter().filter_map(began);
    let first = times.next();
    first
        .zip(times.next_back())
        .is_none_or(|(first, last)| first >= last)
}

/// The entries of this provider by their run. Of a run that is listed twice, as pages shift, the latest attempt counts.
fn latest_attempts(entries: Vec<ListEntry>, provider: &str) -> BTreeMap<RunRef, ListEntry> {
    let mut by_run: BTreeMap<RunRef, ListEntry> = BTreeMap::new();
    for entry in entries {
        let is_newer = |known: &ListEntry| known.attempt < entry.attempt;
        let is_own = entry.run_id.provider() == provider;
        if is_own && by_run.get(&entry.run_id).is_none_or(is_newer) {
            by_run.insert(entry.run_id.clone(), entry);
        }
    }
    by_run
}
