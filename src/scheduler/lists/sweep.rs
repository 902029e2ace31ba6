//! Sweeps: which watches are left to them, and what a page and the end of one show.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Coverage, GroupId, ListMark, ListedGroup, Sweep};
use crate::clock::Now;
use crate::failpoint::mutant;
use crate::providers::ListPage;
use crate::scheduler::Scheduler;
use crate::scheduler::poll::{Pace, next_decision_at};
use crate::scheduler::registry::{Key, Phase, WatchEntry};

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

/// Most pages of a sweep.
const MAX_PAGES: u32 = 200;

/// After how many pages without any watched run a sweep ends.
const IDLE_PAGES: u32 = 2;

/// How many watches for each page a sweep has to cover for the list to be used again.
const COVERED_PER_PAGE: usize = 2;

/// Each watch is polled by itself at least this often, or as often as a part of the budget allows:
/// one request in so many.
const OWN_POLL: Duration = Duration::from_secs(600);
const OWN_POLLS_SHARE: u32 = 8;

impl WatchEntry {
    /// Whether it is due for so long, or polled so seldom, that the time of a sweep does not matter.
    fn is_unhurried(&self, longest: Duration, now: Instant) -> bool {
        let unhurried = UNHURRIED.min(longest);
        self.interval.is_some_and(|interval| interval >= unhurried) || self.due + unhurried <= now
    }
}

impl Scheduler {
    /// Returns until when the poll of a due watch is left to its list; `None` where it is polled
    /// itself. Begins a sweep where that saves requests.
    pub(in crate::scheduler) fn left_to_list(&mut self, key: Key, now: Instant) -> Option<Instant> {
        let entry = self.registry.get(key)?;
        let listed = entry.listed.as_ref()?;
        let id = listed.group;
        let longest = self.policy.backoff.max;
        let budget_interval = self.provider.budget.interval();
        let group = self.provider.lists.groups.get(&id)?;
        let is_under_way = self.provider.lists.sweeps.contains_key(&id);
        let needed = DUE_PER_PAGE * group.pages() as usize;
        if !is_under_way && group.members.len() < needed
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
        if !is_under_way {
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
        let lists = &mut self.provider.lists;
        let group = lists.groups.get_mut(&id)?;
        let expected_pages = group.pages();
        let sweep = lists.sweeps.entry(id).or_insert_with(|| {
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
        listed: &ListMark,
        group: &ListedGroup,
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

    /// Takes in a page of a sweep, which was requested at `began`.
    pub(super) fn page_of_sweep(
        &mut self,
        id: GroupId,
        number: u32,
        page: ListPage,
        (began, began_at): (Instant, Timestamp),
        now: Instant,
    ) {
        let lists = &self.provider.lists;
        let group = lists.groups.get(&id);
        let mut place = lists.sweeps.get(&id).map_or(0, |sweep| sweep.entries);
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
        let lists = &mut self.provider.lists;
        let (Some(group), Some(sweep)) = (lists.groups.get(&id), lists.sweeps.get_mut(&id)) else {
            return;
        };
        // All of it may have been reset by what was observed.
        if sweep.number != number {
            return;
        }
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
        let is_over = is_last || has_all || sweep.idle_pages >= idle || sweep.pages >= MAX_PAGES;
        if let Some((before, between)) = before.zip(between) {
            for key in self.skipped(id, before, &between) {
                self.suspect(key, now);
            }
        }
        if is_over {
            self.sweep_done(id, is_last && page.unreadable == 0, now);
        }
    }

    /// The watches that the sweep `before` found at these places, and that the one under way has not found.
    fn skipped(&self, id: GroupId, before: u32, places: &Range<u32>) -> Vec<Key> {
        let lists = &self.provider.lists;
        let (Some(group), Some(sweep)) = (lists.groups.get(&id), lists.sweeps.get(&id)) else {
            return Vec::new();
        };
        let was_there = |key: &Key| {
            let entry = self.registry.get(*key);
            let mark = entry.and_then(|entry| entry.listed.as_ref());
            mark.is_some_and(|mark| mark.sweep == before && places.contains(&mark.place))
        };
        let missing = group.members.difference(&sweep.found).copied();
        missing.filter(was_there).collect()
    }

    /// Returns the places in the sweep `before` from that of the first run on a page up to that of the last; `None`
    /// where the list has another order now. A run that was at one of them and is not on the page is missing.
    fn places_between(&self, page: &ListPage, before: u32) -> Option<Range<u32>> {
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

    /// Ends a sweep. One that is `complete` shows that the runs which the sweep before found, and this one did not,
    /// are missing.
    fn sweep_done(&mut self, id: GroupId, complete: bool, now: Instant) {
        let lists = &mut self.provider.lists;
        let (Some(group), Some(sweep)) = (lists.groups.get_mut(&id), lists.sweeps.remove(&id))
        else {
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
        let missing: Vec<Key> = group.members.difference(&sweep.found).copied().collect();
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
}
