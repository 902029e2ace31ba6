//! One run of a wait: what is known of it, and the words for it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::sentences::reason;
use super::view::Circumstances;
use crate::domain::{RunRef, RunState, Status, Verdict};
use crate::scheduler::WatchView;
use crate::style::{Style, ahead, rough};
use crate::text::{humanize, one_line};

/// Longest name or status that a line shows, in characters.
pub(super) const MAX_WORD_CHARS: usize = 60;

/// How far ahead the next poll must be to be worth a word.
const SOON: Duration = Duration::from_secs(2);

/// What is known of one run.
#[derive(Debug, Clone)]
pub(super) struct Tracked {
    pub(super) run_id: RunRef,
    pub(super) name: Option<String>,
    pub(super) added_at: Timestamp,
    pub(super) status: Option<Status>,
    /// What it was last seen doing, in few words, harmless on a terminal.
    pub(super) activity: Option<String>,
    pub(super) verdict: Option<Verdict>,
    /// What it is called in a row: its name if no other run has it, otherwise its ID.
    pub(super) label: String,
    /// The other one of name and ID, if it has both.
    pub(super) extra: Option<String>,
    /// What went wrong meanwhile and did not end it: `502 Bad Gateway`, `appeared after 3s`.
    pub(super) survived: Option<String>,
    /// Since when it is missing, and the last failure of a poll of it.
    pub(super) missing_since: Option<Timestamp>,
    pub(super) failed: Option<Failed>,
    /// When the newest failure happened that was noticed.
    pub(super) failed_at: Option<Timestamp>,
    /// Whether it was ever known how long it usually takes.
    pub(super) has_expectation: bool,
}

/// A poll of a run that failed.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    at: Timestamp,
    why: String,
    /// How many polls were made when it was noticed.
    polls: u64,
}

/// What the scheduler knows of a run that is still going.
pub(super) struct Going<'a> {
    pub(super) view: &'a WatchView,
    pub(super) now: Timestamp,
    pub(super) circumstances: &'a Circumstances,
}

impl Tracked {
    /// A run of which nothing is known yet.
    pub(super) fn new(run_id: RunRef, name: Option<String>, added_at: Timestamp) -> Self {
        Self {
            label: run_id.to_string(),
            run_id,
            name,
            added_at,
            status: None,
            activity: None,
            verdict: None,
            extra: None,
            survived: None,
            missing_since: None,
            failed: None,
            failed_at: None,
            has_expectation: false,
        }
    }

    /// Whether its ID is all that it is called.
    pub(super) fn is_called_by_id(&self) -> bool {
        self.label == self.run_id.as_str()
    }

    /// What it is called, in at most so many columns: the end of a name is cut, and the middle of an ID, since IDs
    /// differ at their ends.
    pub(super) fn label_within(&self, style: Style, columns: usize) -> String {
        if self.is_called_by_id() {
            style.cut_middle(&self.label, columns)
        } else {
            style.cut(&self.label, columns).into_owned()
        }
    }

    /// Calls each run by its name where that tells it from the others.
    pub(super) fn label_all(runs: &mut [Self]) {
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        let shown = |run: &Self| {
            let name = run
                .name
                .as_deref()
                .map(|name| one_line(name, MAX_WORD_CHARS));
            name.filter(|name| !name.is_empty())
        };
        for name in runs.iter().filter_map(shown) {
            *names.entry(name).or_default() += 1;
        }
        for run in runs {
            let (id, name) = (run.run_id.to_string(), shown(run));
            (run.label, run.extra) = match name {
                Some(name) if names[&name] == 1 => (name, Some(id)),
                name => (id, name),
            };
        }
    }

    /// The run for people where there is room: its name, and its ID in parentheses.
    pub(super) fn full_label(&self) -> String {
        match self
            .name
            .as_deref()
            .map(|name| one_line(name, MAX_WORD_CHARS))
        {
            Some(name) if !name.is_empty() => format!("{name} ({})", self.run_id),
            _ => self.run_id.to_string(),
        }
    }

    /// How the run is, in a word.
    pub(super) fn state_word(&self, view: Option<&WatchView>) -> String {
        match (&self.status, view) {
            (_, Some(view)) if view.missing_since.is_some() => "not there".to_owned(),
            (Some(status), _) => one_line(status.as_str(), MAX_WORD_CHARS),
            (None, _) => "not polled".to_owned(),
        }
    }

    /// What the run counts as: the word of its state where its provider has another one.
    pub(super) fn kind(&self, view: Option<&WatchView>) -> String {
        let known = self
            .status
            .as_ref()
            .map(Status::state)
            .filter(|state| *state != RunState::Unknown);
        match (known, view) {
            (Some(state), view) if view.is_none_or(|view| view.missing_since.is_none()) => {
                state.as_str().to_owned()
            }
            _ => self.state_word(view),
        }
    }

    /// Notes what the scheduler knows now: what was survived shows in what was before.
    pub(super) fn observe(&mut self, view: &WatchView, now: Timestamp) {
        if view.missing_since.is_none()
            && let Some(_since) = self.missing_since
            && view.status.is_some()
        {
            let after = Duration::try_from(now.duration_since(self.added_at)).unwrap_or_default();
            self.survived = Some(format!("appeared after {}", rough(after)));
        }
        self.missing_since = view.missing_since;
        self.has_expectation |= view.expected.is_some();
        match (&self.failed, &view.last_error) {
            // One poll more, and it did not fail.
            (Some(failed), Some(error)) if failed.at == error.at && view.polls > failed.polls => {
                self.survived = Some(format!("polled again after {}", failed.why));
                self.failed = None;
            }
            (_, Some(error)) if self.failed_at != Some(error.at) => {
                self.failed_at = Some(error.at);
                self.failed = Some(Failed {
                    at: error.at,
                    why: reason(&error.message),
                    polls: view.polls,
                });
            }
            _ => {}
        }
    }

    /// Takes in that a poll showed its end: a failure before that was survived.
    pub(super) fn survive(&mut self) {
        if let Some(failed) = self.failed.take() {
            self.survived = Some(format!("polled again after {}", failed.why));
        }
    }

    /// Why its last poll failed, if it did.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failed.as_ref().map(|failed| failed.why.as_str())
    }

    /// What it does, or else why it waits, or else what was survived, or else when it is polled next.
    pub(super) fn detail(&self, going: &Going<'_>) -> String {
        let Going {
            view,
            now,
            circumstances,
        } = going;
        if let Some(since) = view.missing_since {
            let missing = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            let grace = circumstances
                .grace
                .map(|grace| format!(" (grace {})", humanize(grace)))
                .unwrap_or_default();
            return format!("404 for {}{grace}", rough(missing));
        }
        if let Some(activity) = &self.activity {
            return activity.clone();
        }
        if circumstances.breaker.outage.is_some() {
            return String::new();
        }
        if let Some(why) = self.failure() {
            return why.to_owned();
        }
        if is_waiting_for_its_turn(view, *now) {
            return "waiting for its turn".to_owned();
        }
        if let Some(survived) = &self.survived {
            return survived.clone();
        }
        let wait = Duration::try_from(view.next_poll_at.duration_since(*now)).unwrap_or_default();
        if wait >= SOON && !view.polling {
            format!("next poll {}", ahead(view.next_poll_at, *now))
        } else {
            String::new()
        }
    }
}

/// Whether a run is due, and the budget or the limit of polls at once lets none out.
pub(super) fn is_waiting_for_its_turn(view: &WatchView, now: Timestamp) -> bool {
    !view.polling && view.next_poll_at <= now
}
