//! Lists in place of polls: one request that shows many runs stands for a poll of each that goes on.
//!
//! The watches whose runs one list shows are a group. When enough of them are due, the pages of the
//! list are requested one after the other: a sweep. An entry that shows that a run goes on counts
//! as a poll of it. An entry that shows an end is only a reason to poll that run next, and so is a
//! run that is missing: verdicts come from polls alone. A run that the sweep before showed between
//! two others is missing as soon as a page shows these without it; any other at the end of a
//! complete sweep.
//!
//! A list need not be right. Each watch is also polled by itself now and then. One whose poll
//! contradicts the list is not left to the list for a while, and a list that is contradicted often,
//! lags, fails, or covers too few of the watches rests.

mod entries;
mod pages;
mod sweep;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use self::pages::PageWanted;
pub(super) use self::pages::{PageDone, PageTurn};
use super::Scheduler;
use super::registry::Key;
use crate::failpoint::mutant;
use crate::providers::{ListParameters, PageRef};

/// How long a list rests at first, and at most: the time doubles each time.
const FIRST_REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(30 * 60);

/// The same for a list that was not up to date. It goes on to double however good the list seems meanwhile.
const FIRST_DISTRUST: Duration = Duration::from_secs(15 * 60);
const LONGEST_DISTRUST: Duration = Duration::from_secs(4 * 3600);

/// Number of a group, never used twice.
pub(super) type GroupId = u64;

/// What a watch has to do with its list.
pub(super) struct ListMark {
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

impl ListMark {
    /// Whether a list that was requested after a time showed that the run goes on.
    pub(super) fn is_going_since(&self, at: Timestamp) -> bool {
        self.going_at.is_some_and(|going_at| going_at >= at)
    }
}

/// The watches whose runs one list shows.
struct ListedGroup {
    parameters: ListParameters,
    members: BTreeSet<Key>,
    /// How many sweeps began.
    sweeps: u32,
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

/// All lists of a provider.
pub(super) struct Lists {
    groups: HashMap<GroupId, ListedGroup>,
    /// The sweeps that are under way, by the group whose list they read.
    sweeps: BTreeMap<GroupId, Sweep>,
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

impl Lists {
    pub(super) fn new() -> Self {
        Self {
            groups: HashMap::new(),
            sweeps: BTreeMap::new(),
            by_parameters: HashMap::new(),
            next_id: 0,
            wanted: VecDeque::new(),
            turn_is_over: false,
            others_turn_is_over: false,
            next_own_poll: None,
        }
    }

    /// Forgets all groups, whose lists are others after a reload.
    fn clear(&mut self) {
        self.groups.clear();
        self.sweeps.clear();
        self.by_parameters.clear();
    }

    /// Adds a watch to the group of its list.
    fn enroll(&mut self, key: Key, parameters: ListParameters, now: Instant) -> ListMark {
        let known = self.by_parameters.get(&parameters).copied();
        let id = known.unwrap_or_else(|| {
            self.next_id += 1;
            self.by_parameters.insert(parameters.clone(), self.next_id);
            self.groups
                .insert(self.next_id, ListedGroup::new(parameters));
            self.next_id
        });
        let group = self.groups.get_mut(&id).expect("it was just looked up");
        group.members.insert(key);
        ListMark {
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
            self.sweeps.remove(&id);
        }
    }

    /// The page of a sweep that is due the longest.
    fn next_page(&self) -> Option<PageTurn> {
        let due = self.sweeps.iter().filter(|(_, sweep)| !sweep.is_requested);
        let longest = due.min_by_key(|(_, sweep)| sweep.since);
        longest.map(|(id, _)| PageTurn::Sweep(*id))
    }

    /// Ends all sweeps: what they showed may be old.
    pub(super) fn end_sweeps(&mut self) {
        self.sweeps.clear();
    }

    /// Ends the sweep of a group, whose list is not requested for a while, each time longer.
    fn rest(&mut self, id: GroupId, now: Instant) {
        self.sweeps.remove(&id);
        if let Some(group) = self.groups.get_mut(&id) {
            group.rest(now);
        }
    }
}

impl ListedGroup {
    fn new(parameters: ListParameters) -> Self {
        Self {
            parameters,
            members: BTreeSet::new(),
            sweeps: 0,
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
        self.last = None;
    }

    /// Whether the list is expected to show a watch: it did the last time, or has not had the opportunity.
    fn expects(&self, listed: &ListMark, is_late: bool) -> bool {
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
}
