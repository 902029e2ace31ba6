//! What a wait shows, and when it is over.

use std::time::Duration;

use crate::cli::args::WaitArgs;
use crate::cli::failure::CommandFailure;
use crate::screen::Screen;
use crate::style::Style;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultFormat {
    /// A readable line per run.
    Text,
    /// A JSON object per run.
    Json,
    /// The output of each run that succeeded, and nothing else.
    Output,
    /// Nothing.
    Nothing,
}

/// How `wait` talks to people.
#[derive(Debug, Clone)]
pub struct OutputOptions {
    /// Where progress goes.
    pub screen: Screen,
    /// Whether progress is shown.
    pub progress: bool,
    /// How it looks.
    pub style: Style,
    /// How results look.
    pub result_style: Style,
    /// How results are printed.
    pub results: ResultFormat,
    /// Whether the events of runs are shown as they come.
    pub follow: bool,
    /// Whether each change of state is a line of JSON.
    pub changes: bool,
    /// The group of the runs, about which there is one line at the end.
    pub group: Option<String>,
}

impl OutputOptions {
    /// Shows why the command ends and returns the exit code for that.
    pub(super) fn fail(&self, failure: &CommandFailure) -> u8 {
        let json = self.results == ResultFormat::Json;
        let columns = self.screen.error_columns();
        self.screen.whole_line(&failure.text(json, columns));
        failure.exit_code()
    }
}

/// When a wait is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct StopCondition {
    /// At the first verdict.
    pub(super) first: bool,
    /// At the first verdict that is not `succeeded`.
    pub(super) first_bad: bool,
    /// When a run waits for a person.
    pub(super) waiting: bool,
    /// How long after that undelivered messages are tried again.
    pub(super) linger: Duration,
    /// How long an API is tried that was never reached; `None` means until the deadline.
    pub(super) reached_within: Option<Duration>,
}

impl StopCondition {
    pub(super) fn of(args: &WaitArgs) -> Self {
        Self {
            first: args.any,
            first_bad: args.fail_fast,
            waiting: args.exit_on_waiting,
            linger: args.linger,
            reached_within: None,
        }
    }
}
