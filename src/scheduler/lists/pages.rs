//! Requests for pages of lists, for sweeps and for other parts of the program.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::GroupId;
use crate::providers::{ApiError, ListPage, ListReply, ListRequest};
use crate::scheduler::Scheduler;

/// Longest time that a page may take.
const PAGE_LIMIT: Duration = Duration::from_secs(60);

/// A page that another part of the program wants.
pub(super) struct PageWanted {
    request: ListRequest,
    reply: oneshot::Sender<Result<ListPage, ApiError>>,
}

impl PageWanted {
    /// Whether someone waits for it still: rounds of a discovery end with a reload.
    fn is_awaited(&self) -> bool {
        !self.reply.is_closed()
    }
}

/// For whom a page is.
enum PageFor {
    Sweep { group: GroupId, number: u32 },
    Other(oneshot::Sender<Result<ListPage, ApiError>>),
}

/// A request for a page that ended.
pub(in crate::scheduler) struct PageDone {
    requested_for: PageFor,
    began: Instant,
    began_at: Timestamp,
    reply: ListReply,
}

/// The page to request next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scheduler) enum PageTurn {
    /// The next one of the sweep of this group.
    Sweep(GroupId),
    /// One that another part of the program wants.
    Other,
}

impl Scheduler {
    /// Takes the request for a page of another part of the program.
    pub(in crate::scheduler) fn want_page(
        &mut self,
        request: ListRequest,
        reply: oneshot::Sender<Result<ListPage, ApiError>>,
    ) {
        let wanted = &mut self.provider.lists.wanted;
        wanted.push_back(PageWanted { request, reply });
    }

    /// The page whose turn it is, if one is due and may be requested.
    pub(in crate::scheduler) fn page_turn(&self, now: Instant) -> Option<PageTurn> {
        let lists = &self.provider.lists;
        let breaker = &self.provider.breaker;
        let sweep = lists.next_page().filter(|_| breaker.outage().is_none());
        let other = lists
            .wanted
            .iter()
            .find(|wanted| wanted.is_awaited())
            .filter(|_| breaker.opens_at().is_none_or(|at| at <= now))
            .map(|_| PageTurn::Other);
        // A sweep keeps watches from their polls, so that it must not wait for all pages that others want.
        match lists.others_turn_is_over {
            true => sweep.or(other),
            false => other.or(sweep),
        }
    }

    /// Requests a page. The caller took the request from the budget.
    pub(in crate::scheduler) fn request_page(&mut self, turn: PageTurn, now: Instant) {
        let lists = &mut self.provider.lists;
        lists.others_turn_is_over = turn == PageTurn::Other;
        let (request, requested_for) = match turn {
            PageTurn::Other => {
                let mut wanted = std::iter::from_fn(|| lists.wanted.pop_front());
                let Some(wanted) = wanted.find(PageWanted::is_awaited) else {
                    return;
                };
                (wanted.request, PageFor::Other(wanted.reply))
            }
            PageTurn::Sweep(id) => {
                let (Some(group), Some(sweep)) = (lists.groups.get(&id), lists.sweeps.get_mut(&id))
                else {
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

    /// Goes on after a request for a page.
    pub(in crate::scheduler) fn page_done(&mut self, done: PageDone) {
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
                let sweep = lists.sweeps.get(&group);
                if sweep.is_none_or(|sweep| sweep.number != number) {
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
                        lists.rest(group, now);
                    }
                }
            }
        }
    }
}
