//! Runs the built program beside simulated servers.

pub(crate) mod jobs;
pub(crate) mod log;
pub(crate) mod provider;
pub(crate) mod terminal;
pub(crate) mod watches;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use runwatch::domain::{Event, RunRef};
use runwatch::simulator::{Received, Receiver, Script, Simulator};
use runwatch::store::Store;
use tokio::io::{AsyncBufRead, AsyncWriteExt as _, Lines};
use tokio::process::{Child, ChildStderr, Command};

/// Longer than any wait takes; every wait of a test has this bound, so that a program that hangs or a message that
/// is lost fails its test instead of holding the whole run.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A builder of HTTP clients, which have the program's TLS.
#[expect(clippy::disallowed_methods, reason = "the one place of the tests")]
pub(crate) fn http_client() -> reqwest::ClientBuilder {
    // An error means that it is set already.
    drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder()
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Standard output, each line as JSON.
    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }
}

/// The program with an environment of its own: nothing of this machine's configuration reaches it.
pub(crate) struct Program {
    home: tempfile::TempDir,
    variables: BTreeMap<String, String>,
}

impl Program {
    /// Without an API to ask.
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut variables = BTreeMap::new();
        variables.insert("PATH".to_owned(), std::env::var("PATH").unwrap_or_default());
        variables.insert("HOME".to_owned(), home.path().display().to_string());
        variables.insert("TZ".to_owned(), "UTC".to_owned());
        Self { home, variables }
    }

    /// Pointed at a simulated API, with intervals short enough for a test.
    pub(crate) fn with(simulator: &Simulator) -> Self {
        Self::new()
            .set("CREWSHIP_API_KEY", &simulator.api_key())
            .set("RUNWATCH_API__BASE_URL", &simulator.base_url())
            .set("RUNWATCH_API__REQUESTS_PER_MINUTE", "60000")
            .set("RUNWATCH_WATCH__INITIAL_INTERVAL", "50ms")
            .set("RUNWATCH_WATCH__MAX_INTERVAL", "100ms")
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// Writes `toml` where the program looks for its configuration.
    pub(crate) fn configured(self, toml: &str) -> Self {
        self.with_file("config.toml", toml)
    }

    /// Writes a file beside the configuration, where relative paths in it lead.
    pub(crate) fn with_file(self, name: &str, text: &str) -> Self {
        let path = self.beside_config(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, text).expect("a file");
        self
    }

    pub(crate) fn beside_config(&self, name: &str) -> PathBuf {
        self.home.path().join(".config/runwatch").join(name)
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.shell(&[&[env!("CARGO_BIN_EXE_runwatch")], arguments].concat())
    }

    /// Another program, in the same environment and folder.
    pub(crate) fn shell(&self, argv: &[&str]) -> Command {
        let mut command = Command::new(argv[0]);
        command
            .args(&argv[1..])
            .env_clear()
            .envs(&self.variables)
            .current_dir(self.home.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        finish(self.command(arguments).spawn().expect("the program starts")).await
    }

    /// Runs it to its end with something on standard input.
    pub(crate) async fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin
            .write_all(input.as_bytes())
            .await
            .expect("it reads its input");
        drop(stdin);
        finish(child).await
    }
}

/// Reads the standard error of a program as it is written, so that the program never stands before a full pipe.
/// [`finish`] returns all of it.
pub(crate) fn collect(child: &mut Child) {
    let pipe = child
        .stderr
        .take()
        .expect("piped")
        .into_owned_fd()
        .expect("a pipe");
    collect_rest(child, std::fs::File::from(pipe), Vec::new());
}

/// As [`collect`], where a test has read some of it, `text`, already.
pub(crate) fn collect_rest(
    child: &mut Child,
    mut pipe: impl std::io::Read + Send + 'static,
    mut text: Vec<u8>,
) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let reader = std::process::ChildStderr::from(std::os::fd::OwnedFd::from(reader));
    child.stderr = Some(ChildStderr::from_std(reader).expect("a pipe"));
    std::thread::spawn(move || {
        // What could be read is passed on; a test that does not want it has dropped the other end.
        drop(pipe.read_to_end(&mut text));
        drop(std::io::Write::write_all(&mut writer, &text));
    });
}

/// Waits for the end of a program.
pub(crate) async fn finish(child: Child) -> Ended {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output
        .expect("the program ends in time")
        .expect("its output can be read");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Sends a signal to a program that runs.
pub(crate) fn send_signal(child: &Child, signal: rustix::process::Signal) {
    let id = i32::try_from(child.id().expect("it runs")).expect("a process ID");
    let id = rustix::process::Pid::from_raw(id).expect("not zero");
    rustix::process::kill_process(id, signal).expect("it can be signalled");
}

/// A simulated API with these runs.
pub(crate) async fn api(runs: impl IntoIterator<Item = (&str, Script)>) -> Simulator {
    let simulator = Simulator::start().await.expect("a port on loopback");
    for (id, script) in runs {
        simulator.add_run(&RunRef::new(id).expect("a valid ID"), script);
    }
    simulator
}

/// Waits until `check` holds, for what does not signal it: it looks again every 10 ms, for [`PATIENCE`] at the most.
pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    until(what, async || check().then_some(())).await;
}

/// Waits until `look` finds something, and returns it: it looks again every 10 ms, for [`PATIENCE`] at the most. The
/// failure says `what` was waited for.
pub(crate) async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = find_within(PATIENCE, look).await;
    found.unwrap_or_else(|| panic!("waited {PATIENCE:?} for {what}"))
}

/// Looks every 10 ms until `look` finds something, and returns it; `None` once `limit` is over.
pub(crate) async fn find_within<T>(
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, looking).await.ok()
}

/// Every event of a store, however many pages they take.
pub(crate) async fn all_events(store: &Store) -> Vec<Event> {
    let (mut events, mut seq) = (Vec::new(), 0);
    loop {
        let page = store.events_after(seq, u32::MAX).await.unwrap();
        let Some((last, _)) = page.last() else {
            return events;
        };
        seq = *last;
        events.extend(page.into_iter().map(|(_, event)| event));
    }
}

/// Waits for `what` for [`PATIENCE`] at the most.
pub(crate) async fn within<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// The next line of a program.
pub(crate) async fn next_line(lines: &mut Lines<impl AsyncBufRead + Unpin>) -> String {
    within("a line", lines.next_line())
        .await
        .expect("it can be read")
        .expect("one more line")
}

/// Waits until a receiver got `count` requests, and returns all that it got.
pub(crate) async fn received(receiver: &Receiver, count: usize) -> Vec<Received> {
    received_within(PATIENCE, receiver, count).await
}

/// As [`received`], for `limit` at the most.
pub(crate) async fn received_within(
    limit: Duration,
    receiver: &Receiver,
    count: usize,
) -> Vec<Received> {
    let waiting = tokio::time::timeout(limit, receiver.wait_for(count)).await;
    waiting.unwrap_or_else(|_| {
        panic!(
            "waited {limit:?} for {count} requests: {:?}",
            receiver.requests()
        )
    })
}

/// The program beside a daemon of its own, which accepts connections.
pub(crate) async fn with_daemon(program: Program) -> (Program, Child) {
    let run = program.home().join("run");
    std::fs::create_dir_all(&run).unwrap();
    let program = program.set("XDG_RUNTIME_DIR", run.to_str().unwrap());
    let daemon = program.command(&["daemon"]).spawn().unwrap();
    let socket = run.join("runwatch/runwatch.sock");
    eventually("the daemon", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    (program, daemon)
}
