//! What others on this machine can see of this process, what its children get of its environment, and the duties of the
//! first process of a container.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, WaitOptions, waitpid};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Keeps other processes of the same user, the programs of `command` sinks among them, from reading the
/// memory and the environment of this one, where secrets are, and has a crash leave no core. Linux only
/// (prctl(2), `PR_SET_DUMPABLE`; proc(5)); root still can.
pub fn forbid_core_dumps() {
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "other processes of this user may read this one's memory");
    }
}

/// Takes from the environment of a program that is about to be run what is ours alone: the key, where
/// secrets are, and whatever would configure a runwatch that the program runs.
pub(crate) fn clear_secret_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if is_private(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
}

/// Makes a write beyond the limit of a file's size (`ulimit -f`) an ordinary error, like that of a full disk: unless it
/// is handled, SIGXFSZ ends the process (setrlimit(2), `RLIMIT_FSIZE`). Holds for the rest of the process, and not for
/// the programs that it runs.
///
/// # Errors
/// When the system refuses.
pub fn survive_file_size_limit() -> io::Result<Signal> {
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))
}

/// Open files that are enough for all connections, polls, streams and the store together.
const OPEN_FILES: u64 = 4096;

/// Raises the soft limit of open files to `OPEN_FILES`, as far as the hard limit allows: 1,024, the usual one, is less
/// than two full listeners with their polls and streams take. Programs of `command` sinks get the same limit.
pub fn raise_open_files_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES));
    if limit.current.is_none_or(|soft| soft >= wanted) {
        return;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// How long an ended process that nothing here waits for is left alone: long enough for what waits for a program to do
/// so first.
const ORPHAN_AGE: Duration = Duration::from_secs(1);

/// Takes in the ends of processes that the system handed over to this one as the first of a container: else they would
/// stay as zombies until no process can be made (wait(2)). Does nothing where this is not the first process.
///
/// # Errors
/// When no signals can be had.
pub async fn reap_orphans() -> io::Result<Infallible> {
    if rustix::process::getpid() != Pid::INIT {
        return std::future::pending().await;
    }
    let mut child_ended = signal(SignalKind::child())?;
    let mut before = HashSet::new();
    loop {
        let zombies = zombies();
        for zombie in zombies.intersection(&before) {
            // Something else may have waited for it meanwhile.
            let reaped = waitpid(Some(zombie.pid), WaitOptions::NOHANG);
            tracing::debug!(?reaped, "reaped an orphan");
        }
        let more_to_do = zombies.iter().any(|zombie| !before.contains(zombie));
        before = zombies;
        if more_to_do {
            tokio::time::sleep(ORPHAN_AGE).await;
        } else {
            child_ended.recv().await;
        }
    }
}

/// A child of the first process that has ended, and was not waited for.
#[derive(PartialEq, Eq, Hash)]
struct Zombie {
    /// When it began, in ticks since the start of the machine: an ID may be given again.
    began: u64,
    pid: Pid,
}

/// The zombies below the first process, by the process file system; none where that is not there.
fn zombies() -> HashSet<Zombie> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return HashSet::new();
    };
    let stats =
        entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    stats.filter_map(|stat| zombie(&stat)).collect()
}

/// Reads `/proc/PID/stat` (proc_pid_stat(5)): the ID, the name in brackets, the state, the parent; the 22nd is when it
/// began.
fn zombie(stat: &str) -> Option<Zombie> {
    let (pid, rest) = stat.split_once(' ')?;
    let fields: Vec<_> = rest.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let pid = Pid::from_raw(pid.parse().ok()?)?;
    let is_ours = fields.first() == Some(&"Z") && fields.get(1) == Some(&"1");
    is_ours.then_some(Zombie {
        began: fields.get(19)?.parse().ok()?,
        pid,
    })
}

fn is_private(name: &str) -> bool {
    name.starts_with("RUNWATCH_")
        || ["CREWSHIP_API_KEY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zombies_of_the_first_process_are_known() {
        let stat = |pid: u32, state: &str, parent: u32| {
            format!(
                "{pid} (a) Z 1 (b) {state} {parent} 1 1 0 -1 4228364 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n"
            )
        };
        let found = zombie(&stat(17, "Z", 1)).unwrap();
        assert_eq!((found.pid.as_raw_pid(), found.began), (17, 4711));
        assert!(zombie(&stat(17, "S", 1)).is_none());
        assert!(zombie(&stat(17, "Z", 16)).is_none());
        assert!(zombie("").is_none());
    }
}
