//! Runs the built program beside simulated servers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use runwatch::run::RunId;
use runwatch::simulator::{Script, Simulator};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

/// Longer than any test takes; a program that hangs fails its test instead of the whole run.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

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
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
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
        command.args(&argv[1..]).env_clear().envs(&self.variables).current_dir(self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        finish(self.command(arguments).spawn().expect("the program starts")).await
    }

    /// Runs it to its end with something on standard input.
    pub(crate) async fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).await.expect("it reads its input");
        drop(stdin);
        finish(child).await
    }
}

/// Waits for the end of a program.
pub(crate) async fn finish(child: Child) -> Ended {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("the program ends in time").expect("its output can be read");
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
        simulator.add_run(&RunId::new(id).expect("a valid ID"), script);
    }
    simulator
}

/// Waits until `check` holds, for what nobody tells of: it looks again every 10 ms.
pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let looking = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what}"));
}
