//! Named points at which a test lets the process die, and deliberate bugs that the simulation must find. Release builds
//! have neither.

/// Ends the process as SIGKILL does, if `RUNWATCH_CRASH_AT` names this point; panics if that contains
/// `panic:` before the name.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    let Ok(wanted) = std::env::var("RUNWATCH_CRASH_AT") else {
        return;
    };
    assert_ne!(
        wanted.strip_prefix("panic:"),
        Some(name),
        "panic on purpose"
    );
    if wanted == name {
        let killed =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        unreachable!("SIGKILL cannot be caught: {killed:?}");
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &str) {}

/// Whether the deliberate bug of this name is on: where the simulation is built and `RUNWATCH_MUTANT` names it.
#[cfg(simulation)]
pub(crate) fn mutant(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("RUNWATCH_MUTANT").ok());
    CHOSEN.as_deref() == Some(name)
}

/// No.
#[cfg(not(simulation))]
pub(crate) const fn mutant(_name: &str) -> bool {
    false
}
