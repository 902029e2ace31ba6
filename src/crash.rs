//! Named points at which a test lets the process die. Release builds have none.

/// Ends the process as SIGKILL does, if `RUNWATCH_CRASH_AT` names this point.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    if std::env::var_os("RUNWATCH_CRASH_AT").is_some_and(|wanted| wanted == name) {
        let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        unreachable!("SIGKILL cannot be caught: {killed:?}");
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &str) {}
