//! The trace that a command belongs to.

use crate::domain::{TRACE_PARENT_VARIABLE, TRACE_STATE_VARIABLE, TraceContext};

/// The trace that the environment names, for the watches that a command adds. One that is invalid is ignored.
pub(super) fn trace_of_process() -> Option<TraceContext> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let parent = variable(TRACE_PARENT_VARIABLE);
    let trace = TraceContext::read(&parent, &variable(TRACE_STATE_VARIABLE));
    if trace.is_none() && !parent.is_empty() {
        tracing::debug!("{TRACE_PARENT_VARIABLE} is not valid, and is ignored");
    }
    trace
}
