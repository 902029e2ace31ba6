//! What others on the machine can see of the process, and what its children get.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use rustix::process::Signal;
use tokio::process::{Child, Command};

use crate::support::{PATIENCE, Program, eventually, send_signal};

/// A user that owns nothing: root may read everything, so that its eyes show nothing.
const NOBODY: &str = "65534";

/// A command that runs as an ordinary user: this one, unless this is root.
fn as_ordinary(program: &Program, argv: &[&str]) -> Command {
    if !rustix::process::geteuid().is_root() {
        return program.shell(argv);
    }
    let setpriv = [
        "setpriv",
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
        "--inh-caps=-all",
        "--",
    ];
    program.shell(&[&setpriv, argv].concat())
}

/// The built program where an ordinary user may run it.
fn installed(program: &Program) -> String {
    let path = program.home().join("runwatch");
    std::fs::copy(env!("CARGO_BIN_EXE_runwatch"), &path).unwrap();
    for (path, mode) in [(path.as_path(), 0o755), (program.home(), 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    path.to_str().unwrap().to_owned()
}

fn program() -> Program {
    let program = Program::new().set("CREWSHIP_API_KEY", "ck_of_the_environment");
    let home = program.home().to_owned();
    program
        .set(
            "RUNWATCH_STORE__PATH",
            home.join("runwatch.db").to_str().unwrap(),
        )
        .set(
            "RUNWATCH_CONTROL__SOCKET",
            home.join("runwatch.sock").to_str().unwrap(),
        )
}

async fn daemon(program: &Program, wrap: &[&str]) -> Child {
    let runwatch = installed(program);
    let argv = [wrap, &[runwatch.as_str(), "daemon"]].concat();
    let child = as_ordinary(program, &argv).spawn().unwrap();
    let socket = program.home().join("runwatch.sock");
    eventually("the daemon listens", || socket.exists()).await;
    child
}

#[tokio::test]
async fn no_other_process_of_the_user_reads_the_environment_with_the_key() {
    let program = program();
    let watched = daemon(&program, &[]).await;
    let other = as_ordinary(&program, &["sleep", "600"]).spawn().unwrap();
    let environment = |child: &Child| format!("/proc/{}/environ", child.id().unwrap());
    let read = async |path: String| {
        as_ordinary(&program, &["cat", &path])
            .output()
            .await
            .unwrap()
    };
    let name = |child: &Child| {
        std::fs::read_to_string(format!("/proc/{}/comm", child.id().unwrap())).unwrap()
    };
    eventually("setpriv has run it", || name(&other) == "sleep\n").await;
    let of_other = read(environment(&other)).await;
    assert!(
        String::from_utf8_lossy(&of_other.stdout).contains("ck_of_the_environment"),
        "any other program's can"
    );
    let of_ours = read(environment(&watched)).await;
    assert_eq!(String::from_utf8_lossy(&of_ours.stdout), "");
    assert!(
        String::from_utf8_lossy(&of_ours.stderr).contains("denied"),
        "{of_ours:?}"
    );
}

#[tokio::test]
async fn a_crash_leaves_no_core_with_secrets_in_it() {
    let program = program();
    let unlimited = ["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"];
    let mut watched = daemon(&program, &unlimited).await;
    // Not QUIT: a shell has programs in its background ignore that.
    send_signal(&watched, Signal::ABORT);
    let ended = tokio::time::timeout(PATIENCE, watched.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (ended.signal(), ended.core_dumped()),
        (Some(6), false),
        "{ended:?}"
    );
    // That another program leaves one where it is allowed to shows that the check can fail. Two things it takes.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
    assert_ne!(
        limit.maximum,
        Some(0),
        "the hard limit of cores must not be 0 (ulimit -H -c) for this test"
    );
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if let Some(handler) = pattern
        .strip_prefix('|')
        .and_then(|line| line.split_whitespace().next())
    {
        assert!(
            std::path::Path::new(handler).exists(),
            "kernel.core_pattern names {handler}, which is not there"
        );
    }
    let argv = [&unlimited[..], &["sh", "-c", "kill -ABRT $$"]].concat();
    let other = as_ordinary(&program, &argv)
        .stdout(Stdio::null())
        .status()
        .await
        .unwrap();
    assert_eq!(
        (other.signal(), other.core_dumped()),
        (Some(6), true),
        "{other:?}"
    );
}
