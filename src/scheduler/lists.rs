//! Lists in place of polls: one request that shows many runs stands for a poll of each that goes on.
//!
//! The watches whose runs one list shows are a group. When enough of them are due, the pages of the
//! list are requested one after the other: a sweep. An entry that shows that a run goes on counts
//! as a poll of it. An entry that shows an end, or a run that is missing from a complete sweep, is
//! only a reason to poll that run next: verdicts come from polls alone.
//!
//! A list need not be right. Each watch is also polled by itself now and then. One whose poll
//! contradicts the list is not left to the list for a while, and a list that is contradicted often,
//! lags, fails, or covers too few of the watches rests.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Scheduler;
use super::poll::{Pace, next_decision_at};
use super::registry::{Key, Phase, WatchEntry};
use crate::clock::Now;
use crate::domain::{Observation, PollOutcome, RunDetails, RunState, Status, Verdict};
use crate::failpoint::mutant;
use crate::providers::{
    ApiError, ListEntry, ListPage, ListParameters, ListReply, ListRequest, PageRef,
};

/// A page is requested in place of polls where at least so many watches are due for each page of a
/// sweep: each costs the API more than a poll, and shows less.
const DUE_PER_PAGE: usize = 4;

/// A watch that is due within this part of the longest interval counts as due.
const SOON: u32 = 4;

/// Most watches that are looked at to count those that are due.
const COUNTED: usize = 1024;

/// A watch that is polled more often than this is not left to a list, whose sweep takes its time;
/// one that is late by this much is.
const UNHURRIED: Duration = Duration::from_secs(10);

/// A sweep whose page has been under way for longer than this keeps no watch from its poll.
const SLOW_PAGE: Duration = Duration::from_secs(5);

/// Longest time that a page may take.
const PAGE_LIMIT: Duration = Duration::from_secs(60);

/// Most pages of a sweep.
const MAX_PAGES: u32 = 200;

/// After how many pages without any watched run a sweep ends.
const IDLE_PAGES: u32 = 2;

/// How long a list rests at first, and at most: the time doubles each time.
const FIRST_REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(30 * 60);

/// The same for a list that was not up to date. It goes on to double however good the list seems meanwhile.
const FIRST_DISTRUST: Duration = Duration::from_secs(15 * 60);
const LONGEST_DISTRUST: Duration = Duration::from_secs(4 * 3600);

/// How many watches for each page a sweep has to cover for the list to be used again.
const COVERED_PER_PAGE: usize = 2;

/// After how many contradicted entries, if they are more than the confirmed ones, a list rests.
const CONTRADICTIONS: u32 = 10;

/// For how long a watch is not left to a list that a poll contradicted.
const DOUBT: Duration = Duration::from_secs(600);

/// Each watch is polled by itself at least this often, or as often as a part of the budget allows:
/// one request in so many.
const OWN_POLL: Duration = Duration::from_secs(600);
const OWN_POLLS_SHARE: u32 = 8;

/// Number of a group, never used twice.
pub(super) type GroupId = u64;

/// What a watch has to do with its list.
pub(super) struct Listed {
    group: GroupId,
    /// The sweep under way when the watch was added.
    enrolled_in: u32,
    /// Since when its own polls count.
    enrolled_at: Instant,
    /// The last sweep that showed that it goes on; 0 is none. And as which of the entries of that sweep.
    sweep: u32,
    place: u32,
    /// When that page was requested.
    going_at: Option<Timestamp>,
    /// It is polled next because of the list.
    suspect: bool,
    /// It is not left to the list until then.
    doubted_until: Option<Instant>,
}

/// The watches whose runs one list shows.
struct Group {
    parameters: ListParameters,
    members: BTreeSet<Key>,
    /// How many sweeps began.
    sweeps: u32,
    under_way: Option<Sweep>,
    last: Option<Coverage>,
    rests_until: Option<Instant>,
    rest: Duration,
    distrust: Duration,
    /// What polls showed of the ends that the list showed.
    confirmed: u32,
    contradicted: u32,
}

/// A sweep that is under way.
struct Sweep {
    number: u32,
    /// The page to request next.
    page: Option<PageRef>,
    /// When that is due; while the page is under way, when it was requested.
    since: Instant,
    is_requested: bool,
    pages: u32,
    idle_pages: u32,
    /// How many entries were read.
    entries: u32,
    /// The members that were listed.
    found: BTreeSet<Key>,
    going: usize,
}

/// What the last complete sweep covered.
#[derive(Debug, Clone, Copy)]
struct Coverage {
    number: u32,
    pages: u32,
}

/// A page that another part of the program wants.
pub(super) struct PageWanted {
    request: ListRequest,
    reply: oneshot::Sender<Result<ListPage, ApiError>>,
}

/// For whom a page is.
enum PageFor {
    Sweep { group: GroupId, number: u32 },
    Other(oneshot::Sender<Result<ListPage, ApiError>>),
}

/// A request for a page that ended.
pub(super) struct PageDone {
    requested_for: PageFor,
    began: Instant,
    began_at: Timestamp,
    reply: ListReply,
}

/// All lists of a provider.
pub(super) struct Lists {
    groups: HashMap<GroupId, Group>,
    by_parameters: HashMap<ListParameters, GroupId>,
    next_id: GroupId,
    wanted: VecDeque<PageWanted>,
    /// The last request was for a page, so that a poll is next.
    pub(super) turn_is_over: bool,
    /// The last page was one that another part of the program wants, so that one of a sweep is next.
    others_turn_is_over: bool,
    /// When the next watch that is left to a list may be polled by itself.
    next_own_poll: Option<Instant>,
}

/// The page to request next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageTurn {
    /// The next one of the sweep of this group.
    Sweep(GroupId),
    /// One that another part of the program wants.
    Other,
}

impl Lists {
    pub(super) fn new() -> Self {
        Self {
            groups: HashMap::new(),
            by_parameters: HashMap::new(),
            next_id: 0,
            wanted: VecDeque::new(),
            turn_is_over: false,
            others_turn_is_over: false,
            next_own_poll: None,
        }
    }

    /// Forgets all groups, whose lists may be others after a reload.
    fn clear(&mut self) {
        self.groups.clear();
        self.by_parameters.clear();
    }

    /// Adds a watch to the group of its list.
    fn enroll(&mut self, key: Key, parameters: ListParameters, now: Instant) -> Listed {
        let known = self.by_parameters.get(&parameters).copied();
        let id = known.unwrap_or_else(|| {
            self.next_id += 1;
            self.by_parameters.insert(parameters.clone(), self.next_id);
            self.groups.insert(self.next_id, Group::new(parameters));
            self.next_id
        });
        let group = self.groups.get_mut(&id).expect("it was just looked up");
        group.members.insert(key);
        Listed {
            group: id,
            enrolled_in: group.sweeps,
            enrolled_at: now,
            sweep: 0,
            place: 0,
            going_at: None,
            suspect: false,
            doubted_until: None,
        }
    }

    /// Takes a watch out of its group.
    fn withdraw(&mut self, key: Key, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.members.remove(&key);
        if group.members.is_empty() {
            self.by_parameters.remove(&group.parameters);
            self.groups.remove(&id);
        }
    }

    /// The page that is due the longest, and since when.
    fn next_page(&self) -> Option<(Instant, PageTurn)> {
        let sweeps = self.groups.iter().filter_map(|(id, group)| {
            let sweep = group.under_way.as_ref()?;
            (!sweep.is_requested).then_some((sweep.since, PageTurn::Sweep(*id)))
        });
        sweeps.min_by_key(|(since, _)| *since)
    }

    /// Ends all sweeps: what they showed may be old.
    pub(super) fn end_sweeps(&mut self) {
        for group in self.groups.values_mut() {
            group.under_way = None;
        }
    }
}

impl Group {
    fn new(parameters: ListParameters) -> Self {
        Self {
            parameters,
            members: BTreeSet::new(),
            sweeps: 0,
            under_way: None,
            last: None,
            rests_until: None,
            rest: Duration::ZERO,
            distrust: Duration::ZERO,
            confirmed: 0,
            contradicted: 0,
        }
    }

    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// The list is not requested for a while, each time longer. What it covers after that is seen anew.
    fn rest(&mut self, now: Instant) {
        self.rest = (self.rest * 2).clamp(FIRST_REST, LONGEST_REST);
        self.rest_until(now + self.rest);
    }

    /// The list was not up to date: it rests for longer.
    fn distrust(&mut self, now: Instant) {
        self.distrust = (self.distrust * 2).clamp(FIRST_DISTRUST, LONGEST_DISTRUST);
        self.rest_until(now + self.distrust);
        (self.confirmed, self.contradicted) = (0, 0);
    }

    fn rest_until(&mut self, until: Instant) {
        self.rests_until = Some(until);
        self.under_way = None;
        self.last = None;
    }

    /// Whether the list is expected to show a watch: it did the last time, or has not had the opportunity.
    fn expects(&self, listed: &Listed, is_late: bool) -> bool {
        match self.last {
            Some(_) if mutant("list-covers-all") => true,
            None => true,
            Some(last) if listed.sweep == last.number => true,
            Some(last) => listed.sweep == 0 && last.number <= listed.enrolled_in && is_late,
        }
    }

    fn pages(&self) -> u32 {
        self.last.map_or(1, |last| last.pages.max(1))
    }
}

impl WatchEntry {
    /// Whether it is due for so long, or polled so seldom, that the time of a sweep does not matter.
    fn is_unhurried(&self, longest: Duration, now: Instant) -> bool {
        let unhurried = UNHURRIED.min(longest);
        self.interval.is_some_and(|interval| interval >= unhurried) || self.due + unhurried <= now
    }
}

impl Scheduler {
    /// Adds a watch to the group of the list that shows its run, if there is one.
    pub(super) fn enroll_in_list(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.registry.get(key) else {
            return;
        };
        let parameters = self.provider.client.list_of(&entry.run_id);
        let listed =
            parameters.map(|parameters| Box::new(self.provider.lists.enroll(key, parameters, now)));
        if let Some(entry) = self.registry.get_mut(key) {
            entry.listed = listed;
        }
    }

    /// Takes a watch out of the group of its list.
    pub(super) fn withdraw_from_list(&mut self, key: Key) {
        let group = self
            .registry
            .get(key)
            .and_then(|entry| Some(entry.listed.as_ref()?.group));
        if let Some(group) = group {
            self.provider.lists.withdraw(key, group);
        }
    }

    /// Sorts all watches into the groups of another provider's lists.
    pub(super) fn regroup(&mut self, now: Instant) {
        self.provider.lists.clear();
        for key in self.registry.keys() {
            self.enroll_in_list(key, now);
        }
    }

    /// Takes the request for a page of another part of the program.
    pub(super) fn want_page(
        &mut self,
        request: ListRequest,
        reply: oneshot::Sender<Result<ListPage, ApiError>>,
    ) {
        let wanted = &mut self.provider.lists.wanted;
        wanted.push_back(PageWanted { request, reply });
    }

    /// The page whose turn it is, if one is due and may be requested.
    pub(super) fn page_turn(&self, now: Instant) -> Option<PageTurn> {
        let lists = &self.provider.lists;
        let breaker = &self.provider.breaker;
        let sweep = lists.next_page().filter(|_| breaker.outage().is_none());
        let other = lists
            .wanted
            .front()
            .filter(|_| breaker.opens_at().is_none_or(|at| at <= now))
            .map(|_| PageTurn::Other);
        let sweep = sweep.map(|(_, turn)| turn);
        // A sweep keeps watches from their polls, so that it must not wait for all pages that others want.
        match lists.others_turn_is_over {
            true => sweep.or(other),
            false => other.or(sweep),
        }
    }

    /// Requests a page. The caller took the request from the budget.
    pub(super) fn request_page(&mut self, turn: PageTurn, now: Instant) {
        let lists = &mut self.provider.lists;
        lists.others_turn_is_over = turn == PageTurn::Other;
        let (request, requested_for) = match turn {
            PageTurn::Other => {
                let Some(wanted) = lists.wanted.pop_front() else {
                    return;
                };
                (wanted.request, PageFor::Other(wanted.reply))
            }
            PageTurn::Sweep(id) => {
                let Some(group) = lists.groups.get_mut(&id) else {
                    return;
                };
                let Some(sweep) = &mut group.under_way else {
                    return;
                };
                sweep.is_requested = true;
                sweep.since = now;
                let request = ListRequest {
                    parameters: group.parameters.clone(),
                    only_active: true,
                    since: None,
                    page: sweep.page.take(),
                };
                let number = sweep.number;
                (request, PageFor::Sweep { group: id, number })
            }
        };
        let (client, name) = (self.provider.client.clone(), self.provider.name.clone());
        let began_at = self.reading.wall;
        self.pages.spawn(async move {
            let page = client.list(&name, &request);
            // Cancel-safe: a request that is dropped is abandoned, as intended.
            let reply = tokio::time::timeout(PAGE_LIMIT, page)
                .await
                .unwrap_or_else(|_elapsed| ListReply::of(Err(ApiError::Timeout)));
            PageDone {
                requested_for,
                began: now,
                began_at,
                reply,
            }
        });
    }

    /// Returns until when the poll of a due watch is left to its list; `None` where it is polled
    /// itself. Begins a sweep where that saves requests.
    pub(super) fn left_to_list(&mut self, key: Key, now: Instant) -> Option<Instant> {
        let entry = self.registry.get(key)?;
        let listed = entry.listed.as_ref()?;
        let id = listed.group;
        let longest = self.policy.backoff.max;
        let budget_interval = self.provider.budget.interval();
        let group = self.provider.lists.groups.get(&id)?;
        let needed = DUE_PER_PAGE * group.pages() as usize;
        if group.under_way.is_none() && group.members.len() < needed
            || group.rests(now)
            || self.provider.breaker.outage().is_some()
            || !self.may_be_left(entry, listed, group, now)
        {
            return None;
        }
        let eligible = self.provider.lists.next_own_poll.is_none_or(|at| at <= now);
        if eligible {
            let watches = u32::try_from(self.registry.len()).unwrap_or(u32::MAX);
            let own_poll = OWN_POLL.max(
                budget_interval
                    .saturating_mul(OWN_POLLS_SHARE)
                    .saturating_mul(watches),
            );
            let last_own = entry.polled_at.unwrap_or(listed.enrolled_at);
            if now.saturating_duration_since(last_own) >= own_poll {
                self.provider.lists.next_own_poll = Some(now + budget_interval * OWN_POLLS_SHARE);
                return None;
            }
        }
        if group.under_way.is_none() {
            let soon = now + longest / SOON;
            let is_due = |&key: &Key| {
                self.registry.get(key).is_some_and(|entry| {
                    entry.listed.as_ref().is_some_and(|listed| {
                        listed.group == id && self.may_be_left(entry, listed, group, now)
                    })
                })
            };
            let due = self.registry.due_until(soon).take(COUNTED);
            if due.filter(is_due).take(needed).count() < needed {
                return None;
            }
        }
        let since = entry.due;
        let group = self.provider.lists.groups.get_mut(&id)?;
        let expected_pages = group.pages();
        let sweep = group.under_way.get_or_insert_with(|| {
            group.sweeps += 1;
            Sweep::new(group.sweeps, since)
        });
        if sweep.is_requested && now.saturating_duration_since(sweep.since) > SLOW_PAGE {
            return None;
        }
        let pages = expected_pages.saturating_sub(sweep.pages) + 1;
        let ends = budget_interval.saturating_mul(2 * pages);
        Some(now + ends.clamp(Duration::from_secs(1), longest.max(Duration::from_secs(1))))
    }

    /// Whether the list of a watch may stand for its next poll.
    fn may_be_left(
        &self,
        entry: &WatchEntry,
        listed: &Listed,
        group: &Group,
        now: Instant,
    ) -> bool {
        let unhurried = UNHURRIED.min(self.policy.backoff.max);
        let is_late = entry.due + unhurried <= now;
        let (wall, limits) = (self.reading.wall, &self.policy.limits);
        let decision = next_decision_at(entry, limits, Now { instant: now, wall });
        !entry.hinted
            && !listed.suspect
            && entry.ends_at.is_none()
            && !entry.refused
            && entry.progress.missing_since.is_none()
            && listed.doubted_until.is_none_or(|until| until <= now)
            && decision.is_none_or(|at| at > now)
            && entry.is_unhurried(self.policy.backoff.max, now)
            && group.expects(listed, is_late)
    }

    /// Goes on after a request for a page.
    pub(super) fn page_done(&mut self, done: PageDone) {
        let now = self.look_at_clock();
        let PageDone {
            requested_for,
            began,
            began_at,
            reply,
        } = done;
        let ListReply {
            result,
            pause,
            requests,
        } = reply;
        let further = requests.saturating_sub(1);
        self.provider.budget.charge(further, now);
        let of_error = result.as_ref().err().and_then(ApiError::retry_after);
        if let Some(pause) = pause.max(of_error) {
            self.provider.breaker.pause(pause, now);
        }
        self.metrics.listed(match &result {
            Ok(_) => "ok",
            Err(error) => error.kind(),
        });
        match requested_for {
            PageFor::Other(reply) => {
                if let Ok(page) = &result {
                    for entry in &page.entries {
                        self.observe_listed(entry, None, began, began_at);
                    }
                }
                // The caller may have left.
                let _left = reply.send(result);
            }
            PageFor::Sweep { group, number } => {
                let lists = &mut self.provider.lists;
                let Some(list) = lists.groups.get_mut(&group) else {
                    return;
                };
                if list
                    .under_way
                    .as_ref()
                    .is_none_or(|sweep| sweep.number != number)
                {
                    return;
                }
                match result {
                    Ok(page) => self.page_of_sweep(group, number, page, (began, began_at), now),
                    Err(error) => {
                        let what = error.describe();
                        tracing::debug!(
                            error = what,
                            "a list of runs cannot be read; runs are polled one by one"
                        );
                        list.rest(now);
                    }
                }
            }
        }
    }

    fn page_of_sweep(
        &mut self,
        id: GroupId,
        number: u32,
        page: ListPage,
        (began, began_at): (Instant, Timestamp),
        now: Instant,
    ) {
        let lists = &self.provider.lists;
        let group = lists.groups.get(&id);
        let sweep = group.and_then(|group| group.under_way.as_ref());
        let mut place = sweep.map_or(0, |sweep| sweep.entries);
        let before = group.and_then(|group| group.last).map(|last| last.number);
        let between = before.and_then(|before| self.places_between(&page, before));
        let (mut found, mut going) = (BTreeSet::new(), 0);
        for entry in &page.entries {
            place += 1;
            let of_sweep = Some((number, place));
            let (keys, goes_on) = self.observe_listed(entry, of_sweep, began, began_at);
            going += if goes_on { keys.len() } else { 0 };
            found.extend(keys);
        }
        let Some(group) = self.provider.lists.groups.get_mut(&id) else {
            return;
        };
        // All of it may have been reset by what was observed.
        let Some(sweep) = group
            .under_way
            .as_mut()
            .filter(|sweep| sweep.number == number)
        else {
            return;
        };
        sweep.pages += 1;
        sweep.idle_pages = if found.is_empty() {
            sweep.idle_pages + 1
        } else {
            0
        };
        sweep.found.extend(found);
        sweep.going += going;
        sweep.entries = place;
        sweep.is_requested = false;
        sweep.since = now;
        let has_all = group.members.iter().all(|key| sweep.found.contains(key));
        let idle = if group.last.is_some() { IDLE_PAGES } else { 1 };
        let is_last = page.next.is_none();
        if mutant("list-page-forgotten") {
            for key in group.members.clone() {
                self.count_as_listed(key, number);
            }
            return self.sweep_done(id, true, now);
        }
        sweep.page = page.next;
        let skipped = |key: &Key| {
            let mark = self
                .registry
                .get(*key)
                .and_then(|entry| entry.listed.as_ref());
            !sweep.found.contains(key)
                && mark.zip(between.as_ref()).is_some_and(|(mark, between)| {
                    Some(mark.sweep) == before && between.contains(&mark.place)
                })
        };
        let skipped: Vec<Key> = match between {
            Some(_) => group.members.iter().copied().filter(skipped).collect(),
            None => Vec::new(),
        };
        let is_over = is_last || has_all || sweep.idle_pages >= idle || sweep.pages >= MAX_PAGES;
        for key in skipped {
            self.suspect(key, now);
        }
        if is_over {
            self.sweep_done(id, is_last && page.unreadable == 0, now);
        }
    }

    /// The places in the sweep `before` that lie between those of the first and the last run on a page. None where the
    /// list has another order than then. A run that was there and is not on the page is missing: that need not wait for
    /// the end of the sweep.
    fn places_between(&self, page: &ListPage, before: u32) -> Option<std::ops::Range<u32>> {
        let keys = page
            .entries
            .iter()
            .flat_map(|entry| self.registry.keys_of(&entry.run_id));
        let marks = keys.filter_map(|key| self.registry.get(key)?.listed.as_ref());
        let places: Vec<u32> = marks
            .filter(|mark| mark.sweep == before)
            .map(|mark| mark.place)
            .collect();
        let in_order = places.windows(2).all(|two| two[0] < two[1]);
        let (first, last) = (*places.first()?, *places.last()?);
        in_order.then_some(first..last)
    }

    /// A deliberate bug: what no page shows counts as going on.
    fn count_as_listed(&mut self, key: Key, number: u32) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        if let Some(mark) = entry.listed.as_mut() {
            mark.sweep = number;
        }
        if entry.phase == Phase::Waiting && entry.ends_at.is_none() {
            self.reschedule(key, Pace::Onward);
        }
    }

    /// Ends a sweep. One that is `complete` shows which runs are missing.
    fn sweep_done(&mut self, id: GroupId, complete: bool, now: Instant) {
        let Some(group) = self.provider.lists.groups.get_mut(&id) else {
            return;
        };
        let Some(sweep) = group.under_way.take() else {
            return;
        };
        let before = group.last.map(|last| last.number);
        group.last = Some(Coverage {
            number: sweep.number,
            pages: sweep.pages,
        });
        let covered = sweep.going;
        if covered < COVERED_PER_PAGE * sweep.pages as usize {
            tracing::debug!(
                pages = sweep.pages,
                covered,
                "a list of runs shows too few of those that are watched; it rests"
            );
            group.rest(now);
        } else {
            group.rest = Duration::ZERO;
        }
        if !complete {
            return;
        }
        let missing: Vec<Key> = group
            .members
            .iter()
            .copied()
            .filter(|key| !sweep.found.contains(key))
            .collect();
        for key in missing {
            let listed = self
                .registry
                .get(key)
                .and_then(|entry| entry.listed.as_ref());
            if listed.is_some_and(|listed| Some(listed.sweep) == before && listed.sweep > 0) {
                self.suspect(key, now);
            }
        }
    }

    /// Takes in what a list shows of a run. Returns its watches of the group, and whether it shows that the run goes on.
    fn observe_listed(
        &mut self,
        listed: &ListEntry,
        of_sweep: Option<(u32, u32)>,
        began: Instant,
        began_at: Timestamp,
    ) -> (Vec<Key>, bool) {
        let keys = self.registry.keys_of(&listed.run_id);
        let ended = Verdict::of_status(&listed.status).is_some();
        let goes_on = !ended && listed.status.state() != RunState::Unknown;
        for &key in &keys {
            let Some(entry) = self.registry.get_mut(key) else {
                continue;
            };
            let Some(mark) = entry.listed.as_mut() else {
                continue;
            };
            if goes_on && let Some((number, place)) = of_sweep {
                mark.sweep = number;
                mark.place = place;
                mark.going_at = Some(began_at);
            }
            // A poll that began later shows more, and what it leads to is being stored.
            let newer = entry.polled_at.is_some_and(|at| at >= began);
            if entry.phase != Phase::Waiting || entry.ends_at.is_some() || entry.hinted || newer {
                continue;
            }
            if ended {
                if mutant("list-is-believed") {
                    self.take_step(key, PollOutcome::Seen(Box::new(observation_of(listed))));
                    continue;
                }
                self.suspect(key, Instant::now());
            } else if goes_on {
                self.goes_on(key, listed);
            }
        }
        (keys, goes_on)
    }

    /// Counts an entry that shows that a run goes on as a poll of it.
    fn goes_on(&mut self, key: Key, listed: &ListEntry) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        // A run that polls do not find is decided by polls.
        if entry.progress.missing_since.is_some() || entry.refused {
            return;
        }
        let state = listed.status.state();
        let known = entry.progress.status.as_ref().map(Status::state);
        match (known, state) {
            (Some(known), state) if known == state => {
                if let Some(mark) = entry.listed.as_mut() {
                    // It was missing from an inconsistent page.
                    mark.suspect = false;
                }
                // Lists come less often than polls would: the interval grows with the age of the run all the same, or
                // the watch would be polled as if it were new.
                let age = Instant::now().duration_since(entry.changed_at);
                entry.interval = Some(self.policy.backoff.interval_after(age));
                self.metrics.listed_going();
                self.reschedule(key, Pace::Onward);
            }
            (None, RunState::Pending | RunState::Running)
            | (Some(RunState::Pending), RunState::Running) => {
                self.metrics.listed_going();
                let seen = PollOutcome::Seen(Box::new(observation_of(listed)));
                self.take_step(key, seen);
            }
            // That it waits for a person, or goes back, is news that a poll confirms.
            _ => self.poll_next(key),
        }
    }

    /// Polls a watch next because its list does not show that it goes on.
    fn suspect(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let Some(mark) = entry.listed.as_mut() else {
            return;
        };
        if mark.doubted_until.is_some_and(|until| now < until) {
            return;
        }
        mark.suspect = true;
        self.poll_next(key);
    }

    fn poll_next(&mut self, key: Key) {
        let waits = |entry: &WatchEntry| entry.phase == Phase::Waiting && entry.ends_at.is_none();
        if self.registry.get(key).is_some_and(waits) {
            self.registry.queue(key, self.earliest);
        }
    }

    /// Compares what a poll found with what the list of the watch showed. Called before the step.
    pub(super) fn check_list(&mut self, key: Key, outcome: &PollOutcome, now: Instant) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let Some(mark) = entry.listed.as_mut() else {
            return;
        };
        let (goes_on, completed_at) = match outcome {
            PollOutcome::Seen(observation) => (
                Verdict::of_status(&observation.status).is_none(),
                observation.details.completed_at,
            ),
            PollOutcome::Missing { .. } => (false, None),
            // It shows nothing about the run.
            PollOutcome::Failed { .. } | PollOutcome::NotPolled { .. } => return,
        };
        let was_suspect = std::mem::take(&mut mark.suspect);
        let lag =
            mark.going_at
                .zip(completed_at.filter(|_| !goes_on))
                .map(|(going_at, completed_at)| {
                    Duration::try_from(going_at.duration_since(completed_at)).unwrap_or_default()
                });
        let id = mark.group;
        if was_suspect && goes_on {
            mark.doubted_until = Some(now + DOUBT);
        }
        let Some(group) = self.provider.lists.groups.get_mut(&id) else {
            return;
        };
        if was_suspect && goes_on {
            group.contradicted += 1;
        } else if was_suspect {
            group.confirmed += 1;
        }
        let lags = lag.is_some_and(|lag| lag > self.policy.backoff.max);
        let lies = group.contradicted >= CONTRADICTIONS && group.contradicted > group.confirmed;
        if lags || lies {
            tracing::debug!(
                ?lag,
                contradicted = group.contradicted,
                "a list of runs is not up to date; it rests"
            );
            group.distrust(now);
            let members: Vec<Key> = group.members.iter().copied().collect();
            for member in members.into_iter().filter(|member| *member != key) {
                self.trust_polls(member, now);
            }
        }
    }

    /// Lets a watch wait as others do that was to be polled next because of its list.
    fn trust_polls(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let Some(mark) = entry.listed.as_mut() else {
            return;
        };
        if std::mem::take(&mut mark.suspect) && entry.phase == Phase::Waiting && !entry.hinted {
            self.registry.queue(key, now);
        }
    }
}

impl Sweep {
    fn new(number: u32, since: Instant) -> Self {
        Self {
            number,
            page: None,
            since,
            is_requested: false,
            pages: 0,
            idle_pages: 0,
            entries: 0,
            found: BTreeSet::new(),
            going: 0,
        }
    }
}

/// What a list shows of a run, as an observation. Further details come with a poll of its own.
fn observation_of(listed: &ListEntry) -> Observation {
    Observation {
        status: listed.status.clone(),
        details: RunDetails {
            attempt: listed.attempt,
            name: listed.name.clone(),
            group: listed.group.clone(),
            created_at: listed.created_at,
            started_at: listed.started_at,
            completed_at: listed.completed_at,
            url: listed.url.clone(),
            ..RunDetails::default()
        },
    }
}
