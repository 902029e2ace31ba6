//! The domain: what a run is, what a watch of it knows, and which verdicts may follow.
//!
//! Nothing here does I/O, reads a clock or knows tokio: every function receives the time it
//! works with. [`Progress::step`] owns every legal transition of a watch; the scheduler acts on what
//! it returns.

// A new variant must be looked at everywhere in here.
#![warn(clippy::wildcard_enum_match_arm)]

mod activity;
mod durations;
mod event;
mod group;
mod id;
mod json;
mod observation;
mod quiet;
mod route;
mod sample;
mod status;
mod trace;
mod transition;
mod verdict;
mod watch;

pub use activity::{Activity, Hint};
pub use durations::{
    Expectation, KEPT_DURATIONS, KEPT_GROUPS, PastDurations, PastRun, TimeLeft, UsualDuration,
};
pub use event::{
    Event, EventData, EventType, ProviderNotice, RunEvent, RunSummary, SinkNotice, WatchSummary,
};
pub use group::{
    GROUP_LABEL, GROUP_SIZE_LABEL, GroupEvent, GroupMember, GroupRun, MOST_GROUP_SIZE,
    MessageScope, NAMED_RUNS, read_group_size,
};
pub use id::{DeliveryId, InvalidId, ProviderName, RunRef, SinkName};
pub use json::JsonText;
pub use observation::{Observation, RunDetails, Timing};
pub use quiet::QuietHours;
pub use route::{EventFilter, Explained, InvalidFilter, Route, Routes};
pub use status::{RunState, Status};
pub use trace::{
    TRACE_PARENT, TRACE_PARENT_VARIABLE, TRACE_STATE, TRACE_STATE_VARIABLE, TraceContext,
};
pub use transition::{IllegalTransition, Limits, OverdueAfter, PollOutcome, Progress, Step};
pub use verdict::{FoundBy, Verdict};
pub use watch::{Labels, Watch, WatchOrigin};
