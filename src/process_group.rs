//! A program with a process group of its own, so that whatever it starts can be ended with it.

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;

/// The process group of a program that leads it, killed when dropped unless the program has ended by itself.
pub(crate) struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    /// That of a program which was started with `process_group(0)`.
    pub(crate) fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(Pid::from_raw),
        )
    }

    /// Lets the group go on: what a program leaves running when it ends by itself is meant to run.
    pub(crate) fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            match kill_process_group(group, Signal::KILL) {
                // It may have ended this very moment; there is nothing to do then.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => tracing::warn!(%error, "cannot end a program"),
            }
        }
    }
}
