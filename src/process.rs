//! What others on this machine can see of this process, and what its children get of its environment.

use tokio::process::Command;

/// Keeps other processes of the same user, the programs of `command` sinks among them, from reading the
/// memory and the environment of this one, where secrets are, and has a crash leave no core. Linux only
/// (prctl(2), `PR_SET_DUMPABLE`; proc(5)); root still can.
pub fn hide() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user may read this one's memory");
    }
}

/// Takes from the environment of a program that is about to be run what is ours alone: the key, where
/// secrets are, and whatever would configure a runwatch that the program runs.
pub(crate) fn keep_private(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if is_private(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
}

fn is_private(name: &str) -> bool {
    name.starts_with("RUNWATCH_") || ["CREWSHIP_API_KEY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"].contains(&name)
}
