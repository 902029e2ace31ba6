//! The hang kit: each part that the program talks to hangs in turn, and everything else goes on: polls, other sinks, the
//! control interface, the watchdog of the service manager, and the end of the process.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use runwatch::domain::RunRef;
use runwatch::simulator::{Fault, Receiver, Script, Simulator};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;
use tokio::net::{UnixDatagram, UnixListener};
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::daemon::{add, program, socket};
use crate::support::{PATIENCE, Program, api, eventually, finish, received, send_signal};

/// The longest time without a poll of a run that is polled every 100 ms. A machine that is busy needs some of it.
const LONGEST_GAP: Duration = Duration::from_secs(5);

/// The longest time that an answer of the control interface may take: that of a store that is locked for 5 s.
const LONGEST_ANSWER: Duration = Duration::from_secs(15);

/// The longest time from SIGTERM to the end: 10 s for what is under way, and some for a machine that is busy.
const LONGEST_STOP: Duration = Duration::from_secs(15);

/// How long each hang is looked at, at the least.
const A_WHILE: Duration = Duration::from_secs(3);

/// How the daemon is started beside what hangs.
#[derive(Default)]
struct Setup<'a> {
    /// More configuration.
    config: &'a str,
    variables: &'a [(&'a str, &'a str)],
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    /// The service manager does not read its notifications.
    deaf_manager: bool,
}

/// A daemon that polls one run that goes on, and delivers to a receiver that works.
struct Bed {
    simulator: Simulator,
    receiver: Receiver,
    program: Program,
    daemon: Child,
    manager: Option<UnixDatagram>,
    /// Runs that were let end.
    ended: usize,
}

impl Bed {
    async fn start(setup: Setup<'_>) -> Self {
        let simulator = api([("going", Script::runs_forever())]).await;
        let receiver = Receiver::start([]).await.unwrap();
        let mut program = program(&simulator, &receiver, setup.config);
        let path = program.home().join("notify.sock");
        let manager = UnixDatagram::bind(&path).unwrap();
        if setup.deaf_manager {
            fill(|| UnixDatagram::unbound().unwrap().try_send_to(b"x", &path));
        }
        program = program
            .set("NOTIFY_SOCKET", path.to_str().unwrap())
            .set("WATCHDOG_USEC", "400000");
        for (name, value) in setup.variables {
            program = program.set(name, value);
        }
        let mut command = program.command(&["daemon"]);
        let (stdout, stderr) = (
            setup.stdout.unwrap_or_else(Stdio::null),
            setup.stderr.unwrap_or_else(Stdio::piped),
        );
        let daemon = command.stdout(stdout).stderr(stderr).spawn().unwrap();
        drop(command);
        let manager = Some(manager);
        let bed = Self {
            simulator,
            receiver,
            program,
            daemon,
            manager,
            ended: 0,
        };
        let socket = socket(&bed.program);
        eventually("the daemon listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })
        .await;
        add(&bed.program, "going").await;
        // What is new of it is stored before it is polled again; from here on there is nothing new.
        eventually("the run is polled", || bed.simulator.requests().len() > 3).await;
        bed
    }

    fn with(config: &str) -> Setup<'_> {
        Setup {
            config,
            ..Setup::default()
        }
    }

    /// Adds a run that has ended.
    async fn end_a_run(&mut self) {
        self.ended += 1;
        let run = format!("ended_{}", self.ended);
        self.simulator
            .add_run(&RunRef::new(&run).unwrap(), Script::fails("no"));
        add(&self.program, &run).await;
    }

    /// Something hangs from here on: shows that polls, the receiver, the control interface and the watchdog go on.
    async fn goes_on(&mut self) {
        let began = Instant::now();
        for _ in 0..3 {
            self.end_a_run().await;
        }
        let delivered = timeout(PATIENCE, self.receiver.wait_for(self.ended)).await;
        delivered.expect("the other sink gets its messages");
        self.polls_answers_and_pings_go_on(began).await;
    }

    async fn polls_answers_and_pings_go_on(&mut self, began: Instant) {
        while began.elapsed() < A_WHILE {
            let requested_at = Instant::now();
            let listed = self.program.run(&["list"]).await;
            assert_eq!(listed.code, Some(0), "{listed:?}");
            let probed = self.program.run(&["healthcheck"]).await;
            assert_eq!(probed.code, Some(0), "{probed:?}");
            assert!(
                requested_at.elapsed() < LONGEST_ANSWER,
                "the control interface answered after {:?}",
                requested_at.elapsed()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let polled = |since: Instant| {
            let polls = self
                .simulator
                .requests()
                .into_iter()
                .filter(|poll| poll.path.ends_with("/going"));
            polls
                .map(|poll| poll.at)
                .filter(|at| *at > since)
                .collect::<Vec<_>>()
        };
        let now = Instant::now();
        eventually("the run is polled", || polled(now).len() > 1).await;
        let marks: Vec<_> = [began].into_iter().chain(polled(began)).collect();
        let gap = marks
            .windows(2)
            .map(|two| two[1].duration_since(two[0]))
            .max()
            .unwrap();
        assert!(gap < LONGEST_GAP, "the run was not polled for {gap:?}");
        if let Some(manager) = &self.manager {
            // What was sent before comes first.
            let mut buffer = [0; 4096];
            while manager.try_recv(&mut buffer).is_ok() {}
            let pinged = async {
                while !buffer.starts_with(b"WATCHDOG=1") {
                    manager.recv(&mut buffer).await.unwrap();
                }
            };
            timeout(PATIENCE, pinged)
                .await
                .expect("the watchdog gets a notification");
        }
    }

    /// Ends the daemon with SIGTERM.
    async fn stops(self) {
        let requested_at = Instant::now();
        send_signal(&self.daemon, Signal::TERM);
        let ended = finish(self.daemon).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
        assert!(
            requested_at.elapsed() < LONGEST_STOP,
            "it ended after {:?}",
            requested_at.elapsed()
        );
    }
}

/// Repeats a write that does not block until it would.
fn fill(mut write: impl FnMut() -> std::io::Result<usize>) {
    loop {
        match write() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A pipe that is full, and its end to read from.
fn full_pipe() -> (Stdio, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    let before = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, before | OFlags::NONBLOCK).unwrap();
    let mut file = File::from(writer.try_clone().unwrap());
    fill(|| file.write(b"\n"));
    rustix::fs::fcntl_setfl(&writer, before).unwrap();
    (Stdio::from(writer), reader)
}

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// A FIFO that is full and not read, as long as the file is held.
fn full_fifo(path: &Path) -> File {
    make_fifo(path);
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut held = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap();
    fill(|| held.write(b"\n"));
    held
}

const RETRIES: &str = "retry_schedule = [\"100ms\", \"100ms\", \"100ms\", \"1h\"]\n";

#[tokio::test]
async fn standard_error_that_is_not_read() {
    let (stderr, _reader) = full_pipe();
    let config = format!("[log]\nlevel = \"debug\"\n[sinks.journal]\ntype = \"log\"\n{RETRIES}");
    let mut bed = Bed::start(Setup {
        stderr: Some(stderr),
        ..Bed::with(&config)
    })
    .await;
    bed.goes_on().await;
    let failed = async {
        while !bed
            .program
            .run(&["deliveries", "--failed"])
            .await
            .stdout
            .contains("standard error was not read")
        {}
    };
    timeout(PATIENCE, failed)
        .await
        .expect("the attempt of the log sink fails and says why");
    bed.stops().await;
}

#[tokio::test]
async fn standard_output_that_is_not_read() {
    let (stdout, _reader) = full_pipe();
    let config = format!("[sinks.journal]\ntype = \"log\"\npath = \"/dev/stdout\"\n{RETRIES}");
    let mut bed = Bed::start(Setup {
        stdout: Some(stdout),
        ..Bed::with(&config)
    })
    .await;
    bed.goes_on().await;
    bed.stops().await;
}

#[tokio::test]
async fn a_log_file_that_is_a_pipe_that_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let _held = full_fifo(&path);
    let config = format!("[sinks.journal]\ntype = \"log\"\npath = {path:?}\n{RETRIES}");
    let mut bed = Bed::start(Bed::with(&config)).await;
    bed.goes_on().await;
    bed.stops().await;
}

#[tokio::test]
async fn a_secret_file_that_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let other = Receiver::start([]).await.unwrap();
    let url = other.url();
    let config = format!(
        "[sinks.signed]\ntype = \"webhook\"\nurl = \"{url}\"\nsecret_file = {path:?}\n{RETRIES}"
    );
    let mut bed = Bed::start(Bed::with(&config)).await;
    std::fs::remove_file(&path).unwrap();
    make_fifo(&path);
    bed.goes_on().await;
    bed.stops().await;
    assert!(
        other.requests().is_empty(),
        "nothing is sent without its signature"
    );
}

#[tokio::test]
async fn a_key_file_that_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let simulator = api([
        ("going", Script::runs_forever()),
        ("late", Script::runs_forever()),
    ])
    .await;
    let receiver = Receiver::start([]).await.unwrap();
    std::fs::write(&path, simulator.api_key()).unwrap();
    let program = program(
        &simulator,
        &receiver,
        &format!("[api]\nkey_file = {path:?}\n"),
    )
    .unset("CREWSHIP_API_KEY");
    let manager_path = program.home().join("notify.sock");
    let manager = UnixDatagram::bind(&manager_path).unwrap();
    let program = program
        .set("NOTIFY_SOCKET", manager_path.to_str().unwrap())
        .set("WATCHDOG_USEC", "400000");
    let daemon = crate::daemon::start(&program).await;
    add(&program, "going").await;
    eventually("the run is polled", || simulator.requests().len() > 3).await;
    std::fs::remove_file(&path).unwrap();
    make_fifo(&path);
    // A refusal makes it read the file again.
    let key = simulator.api_key();
    simulator.set_api_key("another");
    let began = Instant::now();
    assert_eq!(
        program.run(&["add", "--timeout", "1s", "late"]).await.code,
        Some(0)
    );
    let ended = program.run(&["wait", "--daemon", "late"]).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(
        began.elapsed() < LONGEST_ANSWER * 2,
        "the deadline came after {:?}",
        began.elapsed()
    );
    let requested_at = Instant::now();
    for command in ["list", "healthcheck"] {
        let ended = program.run(&[command]).await;
        assert_eq!(ended.code, Some(0), "{command}: {ended:?}");
    }
    assert!(
        requested_at.elapsed() < LONGEST_ANSWER * 2,
        "the control interface answered after {:?}",
        requested_at.elapsed()
    );
    let mut buffer = [0; 4096];
    while manager.try_recv(&mut buffer).is_ok() {}
    let pinged = async {
        while !buffer.starts_with(b"WATCHDOG=1") {
            manager.recv(&mut buffer).await.unwrap();
        }
    };
    timeout(PATIENCE, pinged)
        .await
        .expect("the watchdog gets a notification");
    // A `wait` of its own does not begin, and says why.
    let ended = program.run(&["wait", "late"]).await;
    assert!(
        ended.code == Some(2) && ended.stderr.contains("it did not end within"),
        "{ended:?}"
    );
    // A file that answers again is read again.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &key).unwrap();
    simulator.set_api_key(&key);
    simulator.add_run(&RunRef::new("going").unwrap(), Script::succeeds());
    received(&receiver, 2).await;
    std::fs::remove_file(&path).unwrap();
    make_fifo(&path);
    simulator.set_api_key("another");
    simulator.add_run(&RunRef::new("stuck").unwrap(), Script::succeeds());
    add(&program, "stuck").await;
    let requested_at = Instant::now();
    send_signal(&daemon, Signal::TERM);
    let ended = finish(daemon).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    assert!(
        requested_at.elapsed() < LONGEST_STOP,
        "it ended after {:?}",
        requested_at.elapsed()
    );
}

#[tokio::test]
async fn a_template_and_a_configuration_that_do_not_answer_at_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("template");
    std::fs::write(&path, "{{ text }}").unwrap();
    let other = Receiver::start([]).await.unwrap();
    let url = other.url();
    let more = "format = \"template\"\ncontent_type = \"text/plain\"\n";
    let config = format!(
        "[sinks.own]\ntype = \"webhook\"\nurl = \"{url}\"\ntemplate_file = {path:?}\n{more}{RETRIES}"
    );
    let mut bed = Bed::start(Bed::with(&config)).await;
    std::fs::remove_file(&path).unwrap();
    make_fifo(&path);
    send_signal(&bed.daemon, Signal::HUP);
    bed.goes_on().await;
    timeout(PATIENCE, other.wait_for(bed.ended))
        .await
        .expect("the old template is in force");
    let config = bed.program.beside_config("config.toml");
    std::fs::remove_file(&config).unwrap();
    make_fifo(&config);
    send_signal(&bed.daemon, Signal::HUP);
    let requested_at = Instant::now();
    send_signal(&bed.daemon, Signal::TERM);
    assert_eq!(finish(bed.daemon).await.code, Some(0));
    assert!(
        requested_at.elapsed() < LONGEST_STOP,
        "it ended after {:?}",
        requested_at.elapsed()
    );
}

/// Name lookups below `.hang` never end.
const RESOLVER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (name && strstr(name, ".hang")) for (;;) pause();
    if (!real) real = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(name, service, hints, found);
}
"#;

/// Syncs of a file hang as long as the file `HANG_AT` exists.
pub(crate) const DISK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static int sync_with(const char *name, int file) {
    const char *hang = getenv("HANG_AT");
    while (hang && access(hang, F_OK) == 0) usleep(10000);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}
int fsync(int file) { return sync_with("fsync", file); }
int fdatasync(int file) { return sync_with("fdatasync", file); }
"#;

/// Compiles a library that makes calls hang, for `LD_PRELOAD`.
pub(crate) fn hanging(calls: &str, folder: &Path) -> String {
    let (source, library) = (folder.join("hanging.c"), folder.join("hanging.so"));
    std::fs::write(&source, calls).unwrap();
    let mut compile = std::process::Command::new("cc");
    let compiled = compile
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .status();
    assert!(
        compiled
            .expect("a C compiler, which linking needs as well")
            .success()
    );
    library.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn name_servers_that_do_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let resolver = hanging(RESOLVER, folder.path());
    let sink = |number| {
        format!(
            "[sinks.dead{number}]\ntype = \"webhook\"\nurl = \"http://d{number}.hang/\"\n{RETRIES}"
        )
    };
    let config: String = (1..=9).map(sink).collect();
    let mut bed = Bed::start(Setup {
        variables: &[("LD_PRELOAD", &resolver)],
        ..Bed::with(&config)
    })
    .await;
    for _ in 0..20 {
        bed.end_a_run().await;
    }
    bed.goes_on().await;
    bed.stops().await;
}

#[tokio::test]
async fn a_store_that_another_process_locks() {
    let mut bed = Bed::start(Setup::default()).await;
    let path = bed.program.home().join(".local/state/runwatch/runwatch.db");
    let began = Instant::now();
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    bed.simulator
        .add_run(&RunRef::new("refused").unwrap(), Script::succeeds());
    let refused = bed.program.run(&["add", "refused"]).await;
    assert!(
        refused.code == Some(1) && refused.stdout.is_empty(),
        "{refused:?}"
    );
    bed.polls_answers_and_pings_go_on(began).await;
    other.execute_batch("ROLLBACK").unwrap();
    bed.goes_on().await;
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    bed.stops().await;
}

#[tokio::test]
async fn a_disk_that_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, hang) = (hanging(DISK, folder.path()), folder.path().join("hang"));
    let variables = [
        ("LD_PRELOAD", disk.as_str()),
        ("HANG_AT", hang.to_str().unwrap()),
    ];
    let mut bed = Bed::start(Setup {
        variables: &variables,
        ..Setup::default()
    })
    .await;
    bed.goes_on().await;
    std::fs::write(&hang, "").unwrap();
    let began = Instant::now();
    bed.simulator
        .add_run(&RunRef::new("hung").unwrap(), Script::succeeds());
    let mut adding = bed.program.command(&["add", "hung"]).spawn().unwrap();
    let polls = bed.simulator.requests().len();
    eventually("polls go on", || {
        bed.simulator.requests().len() > polls + 20
    })
    .await;
    assert!(
        adding.try_wait().unwrap().is_none(),
        "what is not on the disk is not acknowledged"
    );
    assert!(began.elapsed() < PATIENCE);
    bed.stops().await;
    assert_ne!(
        finish(adding).await.code,
        Some(0),
        "nothing was acknowledged"
    );
}

#[tokio::test]
async fn a_disk_that_does_not_answer_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, hang) = (hanging(DISK, folder.path()), folder.path().join("hang"));
    std::fs::write(&hang, "").unwrap();
    let (simulator, receiver) = (api([]).await, Receiver::start([]).await.unwrap());
    let program = program(&simulator, &receiver, "");
    let path = program.home().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    let program = program.set("NOTIFY_SOCKET", path.to_str().unwrap());
    let program = program
        .set("LD_PRELOAD", &disk)
        .set("HANG_AT", hang.to_str().unwrap());
    let daemon = program.command(&["daemon"]).spawn().unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(PATIENCE, manager.recv(&mut buffer))
        .await
        .expect("it says that it starts")
        .unwrap();
    let notification = String::from_utf8_lossy(&buffer[..length]);
    assert!(
        notification.contains("EXTEND_TIMEOUT_USEC=")
            && notification.contains("STATUS=opening the store"),
        "{notification}"
    );
    let requested_at = Instant::now();
    send_signal(&daemon, Signal::TERM);
    let ended = finish(daemon).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("ended by a signal while it started"),
        "{ended:?}"
    );
    assert!(
        requested_at.elapsed() < LONGEST_STOP,
        "it ended after {:?}",
        requested_at.elapsed()
    );
}

#[tokio::test]
async fn a_desktop_bus_that_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus");
    let bus = UnixListener::bind(&path).unwrap();
    let mut callers = JoinSet::new();
    callers.spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = bus.accept().await {
            held.push(stream);
        }
    });
    let address = format!("unix:path={}", path.display());
    let config = format!("[sinks.desktop]\ntype = \"desktop\"\n{RETRIES}");
    let variables = [("DBUS_SESSION_BUS_ADDRESS", address.as_str())];
    let mut bed = Bed::start(Setup {
        variables: &variables,
        ..Bed::with(&config)
    })
    .await;
    bed.goes_on().await;
    bed.stops().await;
}

#[tokio::test]
async fn a_program_that_hangs_and_ignores_sigterm() {
    let argv = "[\"/bin/sh\", \"-c\", \"trap '' TERM; sleep 600 & wait\"]";
    let config =
        format!("[sinks.program]\ntype = \"command\"\nargv = {argv}\ntimeout = \"10m\"\n{RETRIES}");
    let mut bed = Bed::start(Bed::with(&config)).await;
    for _ in 0..5 {
        bed.end_a_run().await;
    }
    bed.goes_on().await;
    bed.stops().await;
}

#[tokio::test]
async fn a_receiver_that_hangs() {
    let hung = Receiver::start((0..99).map(|_| Fault::Hang)).await.unwrap();
    let config = format!(
        "[sinks.a_hung]\ntype = \"webhook\"\nurl = \"{}\"\n{RETRIES}",
        hung.url()
    );
    let mut bed = Bed::start(Bed::with(&config)).await;
    for _ in 0..20 {
        bed.end_a_run().await;
    }
    bed.goes_on().await;
    assert!(
        hung.requests().iter().all(|request| !request.accepted),
        "it still hangs"
    );
    bed.stops().await;
}

#[tokio::test]
async fn a_service_manager_that_does_not_read() {
    let mut bed = Bed::start(Setup {
        deaf_manager: true,
        ..Setup::default()
    })
    .await;
    let deaf = bed.manager.take();
    bed.goes_on().await;
    bed.stops().await;
    drop(deaf);
}

#[tokio::test]
async fn a_wait_whose_outputs_are_not_read_ends_by_a_signal_and_soon_after_its_deadline() {
    for (signal, code) in [
        (Some(Signal::INT), 130),
        (Some(Signal::TERM), 143),
        (None, 124),
    ] {
        let simulator = api([
            ("going", Script::runs_forever()),
            ("over", Script::succeeds()),
        ])
        .await;
        let receiver = Receiver::start([]).await.unwrap();
        let program = program(&simulator, &receiver, "");
        let (stdout, _out) = full_pipe();
        let (stderr, _err) = full_pipe();
        let timeout = if signal.is_some() { "1h" } else { "1s" };
        let mut command =
            program.command(&["wait", "--json", "--timeout", timeout, "going", "over"]);
        let child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
        drop(command);
        received(&receiver, 1).await;
        let requested_at = Instant::now();
        if let Some(signal) = signal {
            send_signal(&child, signal);
        }
        let ended = finish(child).await;
        assert_eq!(ended.code, Some(code), "{signal:?}: {ended:?}");
        assert!(
            requested_at.elapsed() < Duration::from_secs(40),
            "{signal:?}: it ended after {:?}",
            requested_at.elapsed()
        );
    }
}

#[tokio::test]
async fn a_wait_whose_name_servers_do_not_answer_ends_at_its_deadline_and_by_two_signals() {
    let folder = tempfile::tempdir().unwrap();
    let resolver = hanging(RESOLVER, folder.path());
    let program = Program::new()
        .set("LD_PRELOAD", &resolver)
        .set("CREWSHIP_API_KEY", "key")
        .set("RUNWATCH_API__BASE_URL", "http://api.hang");
    let began = Instant::now();
    let ended = program.run(&["wait", "--timeout", "1s", "run_1"]).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "it ended after {:?}",
        began.elapsed()
    );
    let child = program.command(&["wait", "run_1"]).spawn().unwrap();
    let handled = format!("/proc/{}/status", child.id().unwrap());
    // The second bit of the mask is SIGINT (proc_pid_status(5)).
    let handles = |status: &str| {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .unwrap_or("0");
        u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 2 != 0)
    };
    eventually("it handles signals", || {
        std::fs::read_to_string(&handled).is_ok_and(|status| handles(&status))
    })
    .await;
    let requested_at = Instant::now();
    send_signal(&child, Signal::INT);
    send_signal(&child, Signal::INT);
    let ended = finish(child).await;
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(
        requested_at.elapsed() < Duration::from_secs(12),
        "it ended after {:?}",
        requested_at.elapsed()
    );
}

#[tokio::test]
async fn a_file_size_limit_is_an_error_like_a_full_disk() {
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, "");
    // In KiB: twice as much as a store needs whose tables were just made.
    let limited = format!(
        "ulimit -f 400; exec {} daemon",
        env!("CARGO_BIN_EXE_runwatch")
    );
    let mut daemon = program
        .shell(&["/bin/bash", "-c", &limited])
        .spawn()
        .unwrap();
    let socket = socket(&program);
    eventually("the daemon listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    let mut refused = false;
    for number in 0..2_000 {
        let run = format!("run_{number}");
        let ended = program
            .run(&["add", "--name", &"n".repeat(200), &run])
            .await;
        assert!(
            daemon.try_wait().unwrap().is_none(),
            "the daemon was killed"
        );
        if ended.code != Some(0) {
            assert!(
                ended.stderr.contains("the database reported an error"),
                "{ended:?}"
            );
            refused = true;
            break;
        }
    }
    assert!(refused, "the limit was reached");
    send_signal(&daemon, Signal::TERM);
    let ended = finish(daemon).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("the store cannot be written"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn the_first_process_of_a_container_reaps_what_it_inherits_and_hears_signals() {
    let config = "[sinks.program]\ntype = \"command\"\nargv = [\"/bin/sh\", \"-c\", \"(sleep 0.1 &); exit 0\"]\n";
    let runs: Vec<_> = (1..=9).map(|number| format!("run_{number}")).collect();
    let simulator = api(runs.iter().map(|id| (id.as_str(), Script::succeeds()))).await;
    let receiver = Receiver::start([]).await.unwrap();
    let program = program(&simulator, &receiver, config);
    let mut argv = vec!["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !rustix::process::geteuid().is_root() {
        argv.extend(["--user", "--map-root-user"]);
    }
    argv.extend([env!("CARGO_BIN_EXE_runwatch"), "daemon"]);
    let outer = program.shell(&argv).spawn().unwrap();
    let children = |id: &str| -> Vec<String> {
        let children =
            std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().map(ToOwned::to_owned).collect()
    };
    let socket = socket(&program);
    eventually("the daemon listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    let outer_id = outer.id().unwrap().to_string();
    let first = children(&outer_id).remove(0);
    for run in &runs {
        add(&program, run).await;
    }
    received(&receiver, runs.len()).await;
    let attempted = async {
        while program
            .run(&["deliveries"])
            .await
            .stdout
            .matches("delivered")
            .count()
            < 2 * runs.len()
        {}
    };
    timeout(PATIENCE, attempted)
        .await
        .expect("no end of a program was taken from the sink that waits for it");
    eventually("no zombie is left", || children(&first).is_empty()).await;
    let first = rustix::process::Pid::from_raw(first.parse().unwrap()).unwrap();
    rustix::process::kill_process(first, Signal::TERM).unwrap();
    assert_eq!(finish(outer).await.code, Some(0));
}
