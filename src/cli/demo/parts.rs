//! The runs of the demo: what each shows, how it goes, and what must come of it.

use std::time::Duration;

use crate::domain::{RunRef, Verdict};
use crate::simulator::{Fault, Script, Simulator};

/// One run.
pub(super) struct Part {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    script: fn() -> Script,
    /// The verdict that it must get.
    pub(super) verdict: Verdict,
}

impl Part {
    pub(super) fn run_id(&self) -> RunRef {
        RunRef::new(self.id).expect("the demo's IDs are valid")
    }

    /// Adds the run to the simulated API. Its time begins now, or with the first request for it.
    pub(super) fn add_to(&self, simulator: &Simulator, from_first_poll: bool) {
        let script = (self.script)();
        let script = if from_first_poll {
            script.from_first_poll()
        } else {
            script
        };
        simulator.add_run(&self.run_id(), script);
    }
}

/// Short runs with different fates, by the order of their ends: after 3, 5, 6.5, 9, 10 and 11 seconds.
pub(super) const PARTS: [Part; 6] = [
    Part {
        id: "run_demo_outreach",
        name: "outreach mails",
        script: || script(Script::canceled(), 1000, 2000),
        verdict: Verdict::Canceled,
    },
    Part {
        id: "run_demo_report",
        name: "weekly report",
        script: || script(Script::succeeds(), 1000, 4000),
        verdict: Verdict::Succeeded,
    },
    Part {
        id: "run_demo_research",
        name: "market research",
        script: || script(Script::fails("OpenAI API rate limit exceeded"), 1000, 5500),
        verdict: Verdict::Failed,
    },
    Part {
        id: "run_demo_late",
        name: "late arrival",
        script: || script(Script::succeeds(), 1000, 5000).appears_after(millis(3000)),
        verdict: Verdict::Succeeded,
    },
    Part {
        id: "run_demo_limited",
        name: "with a 429",
        script: || {
            let limited = Fault::status(429).with_retry_after("1");
            script(Script::succeeds(), 1000, 9000).fault_on(3, limited)
        },
        verdict: Verdict::Succeeded,
    },
    Part {
        id: "run_demo_gateway",
        name: "with a 502",
        script: || script(Script::succeeds(), 2000, 9000).fault_on(2, Fault::status(502)),
        verdict: Verdict::Succeeded,
    },
];

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn script(script: Script, queued_ms: u64, runs_ms: u64) -> Script {
    script
        .queued_for(millis(queued_ms))
        .runs_for(millis(runs_ms))
}
