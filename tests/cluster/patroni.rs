//! Two PostgreSQL under Patroni, with an etcd, in temporary folders.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::daemons::read_json;
use crate::postgres::{USER, as_server_user, folder_of_server, free_port, programs, url_of};
use crate::support::{find_within, http_client};

/// The name of the pair for Patroni.
const SCOPE: &str = "pair";

/// Longest wait for the pair.
const PATIENCE: Duration = Duration::from_secs(120);

/// The pair. All its programs end with this value.
pub(crate) struct Patroni {
    pub(crate) members: [Member; 2],
    http: reqwest::Client,
    etcd: Etcd,
}

/// A server and the Patroni that runs it.
pub(crate) struct Member {
    name: &'static str,
    folder: TempDir,
    port: u16,
    api: u16,
    process: Option<Child>,
}

struct Etcd {
    _folder: TempDir,
    port: u16,
    process: Child,
}

impl Etcd {
    fn start() -> Self {
        let (folder, port) = (folder_of_server(), free_port());
        let [clients, peers] = [port, free_port()].map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = as_server_user(Path::new("/usr/bin/etcd"));
        command
            .current_dir(folder.path())
            .args(["--name", "one", "--data-dir", "data"])
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("one={peers}")]);
        let process = spawn(command, &folder.path().join("log"));
        Self {
            _folder: folder,
            port,
            process,
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Starts a program whose output goes to a file.
fn spawn(mut command: std::process::Command, log: &Path) -> Child {
    let mut options = std::fs::OpenOptions::new();
    let log = options.create(true).append(true).open(log);
    let log = log.expect("a log");
    command
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("the program runs")
}

impl Patroni {
    /// Starts the pair, and waits until commits wait for the standby.
    pub(crate) async fn start() -> Self {
        let etcd = Etcd::start();
        // `first` is a word of the language of `synchronous_standby_names`.
        let members = ["left", "right"].map(|name| Member {
            name,
            folder: folder_of_server(),
            port: free_port(),
            api: free_port(),
            process: None,
        });
        let mut pair = Self {
            members,
            http: http_client().build().expect("a client"),
            etcd,
        };
        for member in &mut pair.members {
            member.configure(pair.etcd.port);
            member.start();
        }
        pair.in_sync().await;
        let primary = pair.primary().await;
        pair.members[primary].make_database();
        pair
    }

    /// The addresses of both servers.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        [0, 1].map(|index: usize| SocketAddr::from(([127, 0, 0, 1], self.members[index].port)))
    }

    /// The roles of the members that run, as one of them states them.
    async fn roles(&self) -> Option<[Option<String>; 2]> {
        for member in self
            .members
            .iter()
            .filter(|member| member.process.is_some())
        {
            let request = self
                .http
                .get(format!("http://127.0.0.1:{}/cluster", member.api))
                .timeout(Duration::from_secs(2));
            let Ok(answer) = request.send().await else {
                continue;
            };
            let Some(cluster) = read_json(answer).await else {
                continue;
            };
            return Some([0, 1].map(|index: usize| {
                let mut members = cluster["members"].as_array()?.iter();
                let found = members.find(|found| found["name"] == self.members[index].name)?;
                let runs = ["running", "streaming"].contains(&found["state"].as_str()?);
                runs.then(|| found["role"].as_str().map(str::to_owned))?
            }));
        }
        None
    }

    /// Which member is the primary, once one is.
    pub(crate) async fn primary(&self) -> usize {
        let leader = |role: &Option<String>| role.as_deref() == Some("leader");
        let found = find_within(PATIENCE, async || {
            self.roles().await?.iter().position(leader)
        });
        let primary = found.await;
        primary.unwrap_or_else(|| panic!("no primary: {}", self.logs()))
    }

    /// Waits until one member is the primary, and the other its synchronous standby, which may replace it.
    pub(crate) async fn in_sync(&self) {
        let in_sync = find_within(PATIENCE, async || {
            let mut roles = self.roles().await?;
            roles.sort();
            let roles = roles.each_ref().map(Option::as_deref);
            (roles == [Some("leader"), Some("sync_standby")]).then_some(())
        });
        let is_in_sync = in_sync.await.is_some();
        assert!(is_in_sync, "not in sync: {}", self.logs());
    }

    /// Exchanges the roles.
    pub(crate) async fn switch_over(&self) {
        let mut command = as_server_user(Path::new("/usr/bin/patronictl"));
        command
            .env("LC_ALL", "C.UTF-8")
            .arg("-c")
            .arg(self.members[0].settings())
            .args(["switchover", "--force", SCOPE])
            .stdin(Stdio::null());
        let output = tokio::process::Command::from(command).output().await;
        let output = output.expect("patronictl runs");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && shown.contains("Successfully switched over"),
            "{shown}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The ends of the logs of both members.
    fn logs(&self) -> String {
        let logs = self.members.iter().map(|member| {
            let log = std::fs::read_to_string(member.folder.path().join("log")).unwrap_or_default();
            log[log.ceil_char_boundary(log.len().saturating_sub(4000))..].to_owned()
        });
        logs.collect::<Vec<_>>().join("\n---\n")
    }
}

impl Member {
    fn settings(&self) -> PathBuf {
        self.folder.path().join("patroni.yml")
    }

    /// Writes its settings. The shortest times that Patroni allows are in force
    /// (patroni.readthedocs.io/en/latest/dynamic_configuration.html).
    fn configure(&self, etcd: u16) {
        let (name, port, api) = (self.name, self.port, self.api);
        let (folder, programs) = (self.folder.path().display(), programs());
        let programs = programs.display();
        let settings = format!(
            "scope: {SCOPE}
name: {name}
restapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'}}
etcd3: {{hosts: '127.0.0.1:{etcd}'}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 5
    synchronous_mode: true
    primary_start_timeout: 0
    postgresql:
      use_pg_rewind: true
      parameters: {{wal_log_hints: 'on', max_connections: 60, wal_keep_size: '512MB'}}
  initdb: [{{encoding: UTF8}}, {{auth: trust}}, no-sync]
postgresql:
  listen: '127.0.0.1:{port}'
  connect_address: '127.0.0.1:{port}'
  data_dir: '{folder}/data'
  bin_dir: '{programs}'
  pgpass: '{folder}/pgpass'
  remove_data_directory_on_rewind_failure: true
  remove_data_directory_on_diverged_timelines: true
  basebackup: [{{checkpoint: fast}}, no-sync]
  authentication:
    superuser: {{username: {USER}}}
    replication: {{username: replicator}}
  pg_hba: ['host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust']
  parameters: {{unix_socket_directories: '{folder}', wal_retrieve_retry_interval: '100ms'}}
"
        );
        std::fs::write(self.settings(), settings).expect("the settings can be written");
    }

    /// Starts it: it finds the place that it has now.
    pub(crate) fn start(&mut self) {
        let mut command = as_server_user(Path::new("/usr/bin/patroni"));
        command.arg(self.settings()).current_dir(self.folder.path());
        self.process = Some(spawn(command, &self.folder.path().join("log")));
    }

    fn make_database(&self) {
        let port = self.port.to_string();
        self.run(
            "createdb",
            &["-h", "127.0.0.1", "-p", &port, "-U", USER, USER],
        );
    }

    /// Runs a statement, and returns what it printed.
    pub(crate) fn sql(&self, statement: &str) -> String {
        self.run("psql", &[&url_of(self.port, USER), "-Atc", statement])
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = as_server_user(&programs().join(program));
        let output = command
            .args(arguments)
            .current_dir(self.folder.path())
            .output();
        let output = output.expect("the program of PostgreSQL runs");
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Kills the server, as a machine does that loses power; what runs it as well.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is a child");
            process.wait().expect("it is a child");
        }
        self.kill_server();
    }

    /// Kills the server only.
    pub(crate) fn kill_server(&self) {
        // The first line is the number of the process (postgresql.org/docs/15/storage-file-layout).
        let text = std::fs::read_to_string(self.folder.path().join("data/postmaster.pid"));
        let text = text.unwrap_or_default();
        let number = text.lines().next().and_then(|line| line.parse().ok());
        if let Some(id) = number.and_then(Pid::from_raw) {
            // An error means that it has ended.
            let _ended = kill_process(id, Signal::KILL);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
