//! What the demo needs around it: a folder, a simulated API, a receiver that can be down, a daemon that can be killed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::config::SIGNING_PREFIX;
use crate::control::Client;
use crate::notify::signature;
use crate::simulator::{Received, Receiver, Simulator};

/// How long a daemon may take until it is ready.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a daemon may take to end by itself before it is killed.
const END_LIMIT: Duration = Duration::from_secs(3);

/// How often a start is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Longest path of the folder of temporary files, in bytes, in which there is room for the path of a socket.
const MAX_TEMPORARY_BYTES: usize = 60;

/// Variables of this process that the daemon gets; no other reaches it.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "RUST_BACKTRACE"];

/// A folder for this user alone, removed with all that is in it when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn create() -> io::Result<Self> {
        let place = std::env::temp_dir();
        let place = if place.as_os_str().len() > MAX_TEMPORARY_BYTES {
            PathBuf::from("/tmp")
        } else {
            place
        };
        let name = format!("runwatch-demo-{}", uuid::Uuid::now_v7().simple());
        let path = place.join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "cannot remove the folder of the demo");
        }
    }
}

/// Everything around the demo. Dropping it kills the daemon and removes the folder.
pub(super) struct DemoWorld {
    pub(super) simulator: Simulator,
    pub(super) receiver: ReceiverPost,
    pub(super) client: Client,
    daemon: Option<Child>,
    folder: Folder,
}

impl DemoWorld {
    /// Starts all of it, and waits until the daemon is ready.
    ///
    /// # Errors
    /// When a port cannot be opened, the folder cannot be made, or the daemon does not start.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let simulator = Simulator::start()
            .await
            .context("cannot start the simulated API")?;
        let secret = signing_secret()?;
        let receiver = ReceiverPost::start(secret.clone())
            .await
            .context("cannot start the receiver")?;
        let folder = Folder::create().context("cannot make a temporary folder")?;
        let client = Client::new(&folder.0.join("socket"))?;
        let config = config(&simulator, &receiver.url(), &secret);
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(folder.0.join("config.toml"));
        file.and_then(|mut file| io::Write::write_all(&mut file, config.as_bytes()))
            .context("cannot write the configuration of the demo")?;
        let mut world = Self {
            simulator,
            receiver,
            client,
            daemon: None,
            folder,
        };
        world.start_daemon().await?;
        Ok(world)
    }

    /// Starts the daemon, which finds what an earlier one left, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time, with the end of its log.
    pub(super) async fn start_daemon(&mut self) -> anyhow::Result<()> {
        let log = self.folder.0.join("daemon.log");
        let mut daemon = spawn_daemon(&self.folder.0, &log).context("cannot start the daemon")?;
        let ends = Instant::now() + START_LIMIT;
        loop {
            if self.client.readiness().await.is_ok() {
                self.daemon = Some(daemon);
                return Ok(());
            }
            let ended = daemon.try_wait().context("cannot wait for the daemon")?;
            if ended.is_some() || Instant::now() >= ends {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("its log is empty");
                anyhow::bail!("the daemon did not start: {last}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The process ID of the daemon, while there is one.
    pub(super) fn daemon_id(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(Child::id)
    }

    /// Ends the daemon with SIGKILL, as the kernel does when memory is short. Returns whether that is how it ended.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub(super) async fn kill_daemon(&mut self) -> anyhow::Result<bool> {
        use std::os::unix::process::ExitStatusExt as _;
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(false);
        };
        daemon.start_kill().context("cannot kill the daemon")?;
        let status = daemon.wait().await.context("cannot wait for the daemon")?;
        Ok(status.signal() == Some(rustix::process::Signal::KILL.as_raw()))
    }

    /// Ends the daemon, by force where a request is not enough, and removes the folder.
    pub(super) async fn end(mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        let id = daemon.id().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id.and_then(rustix::process::Pid::from_raw) {
            // One that has ended already needs no signal.
            let _ended = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(END_LIMIT, daemon.wait())
            .await
            .is_err()
        {
            drop(daemon.kill().await);
        }
    }
}

/// Starts this same program as the daemon, in a process group of its own: Ctrl-C is for the demo, which ends it.
fn spawn_daemon(folder: &Path, log: &Path) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("runwatch")
        .arg("--config")
        .arg(folder.join("config.toml"))
        .arg("daemon")
        .env_clear()
        .env("HOME", folder)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true);
    for name in KEPT_VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.spawn()
}

fn signing_secret() -> anyhow::Result<String> {
    let mut key = [0; 32];
    SystemRandom::new()
        .fill(&mut key)
        .map_err(|_unspecified| anyhow::anyhow!("the system has no random numbers"))?;
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    Ok(format!("{SIGNING_PREFIX}{key}"))
}

/// The configuration of the daemon: as that of a user, with intervals that suit a quarter of a minute.
fn config(simulator: &Simulator, receiver: &str, secret: &str) -> String {
    let (base_url, key) = (simulator.base_url(), simulator.api_key());
    let waits = vec!["\"500ms\""; 40].join(", ");
    format!(
        "[api]\nbase_url = \"{base_url}\"\nkey = \"{key}\"\nrequests_per_minute = 600\n\
         [watch]\ninitial_interval = \"250ms\"\nmax_interval = \"1s\"\n\
         [store]\npath = \"runwatch.db\"\n\
         [control]\nsocket = \"socket\"\n\
         [sinks.receiver]\ntype = \"webhook\"\nurl = \"{receiver}\"\nsecret = \"{secret}\"\nretry_schedule = [{waits}]\n"
    )
}

/// A receiver that verifies signatures, and can be down: its port refuses connections then.
pub(super) struct ReceiverPost {
    address: SocketAddr,
    secret: String,
    up: Option<Receiver>,
    /// What it received before it was last down.
    before: Vec<Received>,
}

impl ReceiverPost {
    async fn start(secret: String) -> io::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let receiver = Self::listen(any, &secret).await?;
        Ok(Self {
            address: receiver.address(),
            secret,
            up: Some(receiver),
            before: Vec::new(),
        })
    }

    async fn listen(address: SocketAddr, secret: &str) -> io::Result<Receiver> {
        let secret = secret.to_owned();
        let verify = move |headers: &hyper::HeaderMap, body: &[u8]| {
            signature::verify(&secret, headers, body, Timestamp::now()).is_ok()
        };
        Receiver::start_on(address, [], Some(Box::new(verify))).await
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Closes the port and its connections.
    pub(super) async fn go_down(&mut self) {
        if let Some(receiver) = self.up.take() {
            self.before.extend(receiver.requests());
            receiver.shutdown().await;
        }
    }

    /// Opens the same port again.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) async fn come_back(&mut self) -> anyhow::Result<()> {
        let receiver = Self::listen(self.address, &self.secret).await;
        self.up = Some(receiver.context("cannot start the receiver again")?);
        Ok(())
    }

    /// Whether it is up.
    pub(super) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// Everything it received, in order.
    pub(super) fn requests(&self) -> Vec<Received> {
        let now = self.up.as_ref().map(Receiver::requests);
        let before = self.before.iter().cloned();
        before.chain(now.into_iter().flatten()).collect()
    }
}
