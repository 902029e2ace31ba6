//! Where a page is in the lists that make up a request, and which one follows it.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::ReadPage;
use crate::providers::PageRef;
use crate::providers::client::Malformed;

/// Most pages of a list.
pub(super) const MAX_PAGES: usize = 1000;

/// Where a page is: what a [`PageRef`] contains.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Position {
    /// Which of the lists that make up the request.
    pub(super) list: usize,
    pub(super) at: PageStart,
    /// How many pages of this list were before.
    pub(super) pages: usize,
    /// Hashes of where the pages before were, or of the runs of the page before where pages are counted by runs.
    pub(super) seen: Vec<u64>,
}

/// Where a page of a list begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum PageStart {
    #[default]
    Start,
    /// Behind so many entries.
    Offset(u64),
    Cursor(String),
    /// At this address.
    Link(String),
}

impl PageRef {
    /// Whether it is the first page of another list, where several make up what is requested: one for each status.
    pub fn begins_list(&self) -> bool {
        Position::of(self).is_some_and(|position| position.at == PageStart::Start)
    }
}

impl Position {
    pub(super) fn of(page: &PageRef) -> Option<Self> {
        serde_json::from_str(page.as_str()).ok()
    }

    /// The page after this one, which is at `url`, of as many `lists`.
    pub(super) fn next(
        self,
        url: &str,
        lists: usize,
        page: &ReadPage,
    ) -> Result<Option<Self>, Malformed> {
        let here = match &self.at {
            PageStart::Start => hash(&PageStart::Link(url.to_owned())),
            at => hash(at),
        };
        let next = page.next.clone().and_then(|at| match at {
            PageStart::Offset(_) => {
                let runs: Vec<u64> = page
                    .entries
                    .iter()
                    .map(|entry| hash(&entry.run_id))
                    .collect();
                let is_new = runs.iter().any(|run| !self.seen.contains(run));
                is_new.then_some((at, runs))
            }
            at => {
                let mut seen = self.seen.clone();
                seen.push(here);
                (!seen.contains(&hash(&at))).then_some((at, seen))
            }
        });
        if let Some((at, seen)) = next {
            if self.pages + 1 == MAX_PAGES {
                return Err(Malformed::Shape("its list has more than 1,000 pages"));
            }
            return Ok(Some(Self {
                list: self.list,
                at,
                pages: self.pages + 1,
                seen,
            }));
        }
        let following = Self {
            list: self.list + 1,
            ..Self::default()
        };
        Ok((following.list < lists).then_some(following))
    }

    pub(super) fn to_ref(&self) -> PageRef {
        let text = serde_json::to_string(self).expect("it has names and numbers only");
        PageRef::new(text)
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
