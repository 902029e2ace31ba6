//! What people see of discoveries.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::DiscoverySettings;
use crate::domain::ProviderName;
use crate::store::{PollFailure, StoredDiscovery};

/// Most pages of a kind, of runs that go on and of new ones, that a round reads: with 100 runs to a page, 2,000 of each.
pub const PAGES_AT_MOST: u32 = 20;

/// Most watches that a round adds, so that a list that invents runs does not fill the store at once.
pub const WATCHES_AT_MOST: u64 = 1_000;

/// How a discovery goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryState {
    /// No round was complete since the process started.
    Starting,
    /// The newest round was complete.
    Following,
    /// The newest round reached a limit; the next one goes on.
    Behind,
    /// The newest round failed.
    Failing,
}

impl DiscoveryState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Following, Self::Behind, Self::Failing];

    /// The word in JSON and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Following => "following",
            Self::Behind => "behind",
            Self::Failing => "failing",
        }
    }
}

/// A discovery as it is now.
#[derive(Debug, Clone)]
pub struct DiscoveryView {
    /// What it is called.
    pub title: String,
    /// The provider.
    pub provider: ProviderName,
    /// The parameters of the list.
    pub parameters: BTreeMap<String, String>,
    /// The time from the beginning of a round to that of the next.
    pub every: Duration,
    /// How it goes.
    pub state: DiscoveryState,
    /// When it began.
    pub began_at: Timestamp,
    /// When the newest complete round began.
    pub last_round_at: Option<Timestamp>,
    /// When the next one begins; `None` while one is under way for the first time.
    pub next_round_at: Option<Timestamp>,
    /// How many runs it found since it began.
    pub found: u64,
    /// How many watches it added since it began.
    pub watched: u64,
    /// How many pages the newest round read.
    pub pages: u32,
    /// The last failure of a round in this process.
    pub last_error: Option<PollFailure>,
}

impl DiscoveryView {
    pub(super) fn new(settings: &DiscoverySettings, stored: &StoredDiscovery) -> Self {
        Self {
            title: settings.title(),
            provider: settings.provider.clone(),
            parameters: settings.parameters.clone(),
            every: settings.every,
            state: DiscoveryState::Starting,
            began_at: stored.began_at,
            last_round_at: stored.cursor_at,
            next_round_at: None,
            found: stored.found,
            watched: stored.watched,
            pages: 0,
            last_error: None,
        }
    }
}
