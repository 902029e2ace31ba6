//! A PostgreSQL of the test's own and a standby of it, in temporary folders.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A server. It ends with this value.
pub(crate) struct Postgres {
    folder: TempDir,
    programs: PathBuf,
    pub(crate) port: u16,
}

/// The user of the server and of the daemons.
pub(crate) const USER: &str = "runwatch";

/// How a server ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// As when its machine loses power: it recovers at its next start.
    Immediate,
    /// In order, after its connections are ended.
    Fast,
}

impl Postgres {
    fn new() -> Self {
        Self {
            programs: programs(),
            folder: folder_of_server(),
            port: free_port(),
        }
    }

    /// Makes a database and starts its server on a free port of loopback.
    pub(crate) fn start() -> Self {
        let server = Self::new();
        let port = server.port;
        let data = server.data();
        let data = data.to_str().expect("a plain path");
        server.run(
            "initdb",
            &["-A", "trust", "-U", USER, "-E", "UTF8", "-N", "-D", data],
        );
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 60\n\
             synchronous_commit = on\nwal_retrieve_retry_interval = '100ms'\nlog_min_messages = fatal\n"
        );
        let path = server.data().join("postgresql.auto.conf");
        std::fs::write(path, settings).expect("the settings can be written");
        server.resume();
        server.run(
            "createdb",
            &["-h", "127.0.0.1", "-p", &port.to_string(), "-U", USER, USER],
        );
        server
    }

    /// Starts a standby on a free port of loopback, which follows this server.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self::new();
        standby.follow(self);
        standby
    }

    /// Makes this server, which does not run, a standby of `primary`, with a new copy of its data.
    pub(crate) fn follow(&self, primary: &Self) {
        let data = self.data();
        if data.exists() {
            std::fs::remove_dir_all(&data).expect("the data can be deleted");
        }
        let (data, url) = (data.to_str().expect("a plain path"), primary.url());
        let copy = ["-d", &url, "-D", data, "-R", "-c", "fast", "--no-sync"];
        self.run("pg_basebackup", &copy);
        let path = self.data().join("postgresql.auto.conf");
        let settings = std::fs::read_to_string(&path).expect("the settings can be read");
        std::fs::write(&path, format!("{settings}port = {}\n", self.port))
            .expect("the settings can be written");
        self.resume();
    }

    /// Makes a standby a primary, which waits for no standby.
    pub(crate) fn promote(&self) {
        let data = self.data();
        let data = data.to_str().expect("a plain path");
        self.run("pg_ctl", &["-D", data, "-w", "-t", "60", "promote"]);
        self.wait_for_standby(false);
    }

    /// Whether a commit waits until a standby has it on its disk.
    pub(crate) fn wait_for_standby(&self, waits: bool) {
        let names = if waits { "*" } else { "" };
        self.sql(&format!(
            "ALTER SYSTEM SET synchronous_standby_names = '{names}'"
        ));
        self.sql("SELECT pg_reload_conf()");
    }

    /// Whether a standby has all that is committed here, and commits wait for it.
    pub(crate) fn is_in_sync(&self) -> bool {
        let states = "SELECT count(*) FROM pg_stat_replication
            WHERE sync_state = 'sync' AND flush_lsn >= pg_current_wal_flush_lsn()";
        self.sql(states) != "0"
    }

    /// Whether a standby gets what is committed here.
    pub(crate) fn has_standby(&self) -> bool {
        self.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") != "0"
    }

    /// Ends the connection of this standby to its primary: it gets nothing any more.
    pub(crate) fn leave_primary(&self) {
        self.sql("ALTER SYSTEM SET primary_conninfo = ''");
        self.sql("SELECT pg_reload_conf()");
    }

    /// Lets `user` in with its password only.
    pub(crate) fn require_password(&self, user: &str) {
        let path = self.data().join("pg_hba.conf");
        let others = std::fs::read_to_string(&path).expect("the rules can be read");
        let rules = format!("host all {user} 127.0.0.1/32 scram-sha-256\n{others}");
        std::fs::write(path, rules).expect("the rules can be written");
        self.sql("SELECT pg_reload_conf()");
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Starts it again, and waits until it answers.
    pub(crate) fn resume(&self) {
        let data = self.data();
        let log = self.folder.path().join("log");
        let (data, log) = (
            data.to_str().expect("a plain path"),
            log.to_str().expect("a plain path"),
        );
        self.run(
            "pg_ctl",
            &["-D", data, "-l", log, "-w", "-t", "60", "start"],
        );
    }

    /// Ends it.
    pub(crate) fn stop(&self, how: Stop) {
        let mode = match how {
            Stop::Immediate => "immediate",
            Stop::Fast => "fast",
        };
        let data = self.data();
        let data = data.to_str().expect("a plain path");
        self.run("pg_ctl", &["-D", data, "-m", mode, "-w", "stop"]);
    }

    /// The address of its database, for clients.
    pub(crate) fn url(&self) -> String {
        url_of(self.port, USER)
    }

    /// Runs a statement, and returns what it printed.
    pub(crate) fn sql(&self, statement: &str) -> String {
        self.run("psql", &[&self.url(), "-Atc", statement])
    }

    /// As [`Postgres::sql`], where the server may be gone meanwhile.
    pub(crate) fn try_sql(&self, statement: &str) {
        drop(self.output("psql", &[&self.url(), "-Atc", statement]));
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {out}{err}"
        );
        out.trim().to_owned()
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Output {
        // What a server inherits it keeps open, so its output goes nowhere but to its log.
        let starts = program == "pg_ctl";
        let mut command = as_server_user(&self.programs.join(program));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        if starts {
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let status = command.status().expect("the program of PostgreSQL runs");
            return Output {
                status,
                stdout: Vec::new(),
                stderr: Vec::new(),
            };
        }
        command.output().expect("the program of PostgreSQL runs")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = self.data();
        let data = data.to_str().expect("a plain path");
        drop(self.output("pg_ctl", &["-D", data, "-m", "immediate", "-w", "stop"]));
    }
}

/// The address of a database on a port of loopback.
pub(crate) fn url_of(port: u16, database: &str) -> String {
    format!("postgres://{USER}@127.0.0.1:{port}/{database}?sslmode=disable")
}

/// A temporary folder that belongs to the user of the server, which refuses to run as root.
pub(crate) fn folder_of_server() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (user, group) = server_user();
    std::os::unix::fs::chown(folder.path(), Some(user), Some(group))
        .expect("the folder belongs to the server");
    folder
}

/// A program as the user of the server, where this process is root.
pub(crate) fn as_server_user(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=postgres",
        "--regid=postgres",
        "--init-groups",
        "--reset-env",
    ]);
    command.arg(program);
    command
}

/// The numbers of the user and the group of the server.
fn server_user() -> (u32, u32) {
    if !rustix::process::geteuid().is_root() {
        return (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("the users can be read");
    let line = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("the package postgresql-15 made a user");
    let mut fields = line.split(':').skip(2);
    let mut number = || {
        fields
            .next()
            .and_then(|field| field.parse().ok())
            .expect("a number")
    };
    (number(), number())
}

/// The folder of the programs of the newest PostgreSQL of this machine.
pub(crate) fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("postgresql-15 is installed");
    let mut versions: Vec<_> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|folder| folder.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().expect("a PostgreSQL with initdb")
}

/// A port of loopback that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    listener.local_addr().expect("it is bound").port()
}
