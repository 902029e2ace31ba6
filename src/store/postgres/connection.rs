//! Connections: how one is made, and when it is made again.

use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Error, NoTls, Socket};

use super::PostgresSettings;
use super::address::{Security, read_address, read_authorities, with_credentials};
use super::errors::{is_undone, out_of_reach};
use super::migrations;
use super::rights::check_rights;
use super::sql::{Db, Schema};
use crate::backoff::BackoffPolicy;
use crate::blocking::Lane;
use crate::config::{Secret, is_local_database};
use crate::reminder::Reminder;
use crate::store::model::StoreError;
use crate::text::{error_chain, one_line};

/// How long to wait between attempts to connect.
const RECONNECT: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_millis(100),
    multiplier: 2.0,
    max: Duration::from_secs(5),
    jitter: 0.5,
};

/// How long the files with the authorities may take to be read.
const AUTHORITIES_LIMIT: Duration = Duration::from_secs(10);

/// The shortest silence after which a connection is probed: the operating system counts in whole seconds and refuses 0
/// (`TCP_KEEPIDLE` in tcp(7)).
const SHORTEST_SILENCE: Duration = Duration::from_secs(1);

/// The longest text that names the hosts, in characters.
const HOSTS_CHARS: usize = 200;

/// The longest text of the reason why the outcome of a commit is unknown, in characters.
const WHY_CHARS: usize = 300;

/// The job whose connection stands for all in the log: when one is lost, the others are too.
const LOGGED: &str = "writer";

/// The oldest version of PostgreSQL that is supported.
const OLDEST_SERVER: u32 = 14;

/// The encoding that a database must have.
const ENCODING: &str = "UTF8";

/// Begins a transaction that reads one state of the store. It writes nothing, but a standby rejects every transaction that
/// may write (src/backend/commands/variable.c in PostgreSQL 15). So a connection through a pooler does not go on reading
/// from a server after its demotion to a standby, which may lag behind the primary.
pub(super) const READ_ON_PRIMARY: &str = "REPEATABLE READ READ WRITE";

/// What all connections to the server have in common.
pub(super) struct Connector {
    config: Config,
    /// The file with the address.
    url_file: Option<PathBuf>,
    /// Why the user and the password in that file are not used, as it was logged.
    unused: Mutex<Option<String>>,
    security: Security,
    files: Lane,
    /// How many connections were made again.
    pub(super) reconnects: Counter,
    /// The name of this daemon, for `application_name`.
    name: String,
    pub(super) schema: Schema,
    /// Whether missing tables may be made.
    pub(super) migrate: bool,
    /// How long one statement may take, a lock may be waited for, and a transaction may be idle.
    pub(super) limit: Duration,
}

impl Connector {
    /// Of these settings. Does no I/O.
    ///
    /// # Errors
    /// When the address cannot be read.
    pub(super) fn new(settings: &PostgresSettings) -> Result<Arc<Self>, StoreError> {
        let mut config = read_address(&settings.url)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(settings.statement_limit);
        }
        // A machine that is gone sends nothing: without this, a connection to it would look open for many minutes.
        let silence = settings.statement_limit.max(SHORTEST_SILENCE);
        config.tcp_user_timeout(silence);
        config.keepalives_idle(silence);
        config.keepalives_interval(silence);
        Ok(Arc::new(Self {
            security: Security::of(&config, settings.ca_file.clone()),
            config,
            url_file: settings.url_file.clone(),
            unused: Mutex::default(),
            files: Lane::new("store-files", 1),
            reconnects: Counter::default(),
            name: settings.name.clone(),
            schema: Schema::new(&settings.schema),
            migrate: settings.migrate,
            limit: settings.statement_limit,
        }))
    }

    /// The statements that begin a transaction which writes or reads, with limits that end with it: a pooler gives the
    /// connection to others afterwards.
    pub(super) fn begin(&self, mode: &str) -> String {
        let limit = self.limit.as_millis();
        format!(
            "BEGIN ISOLATION LEVEL {mode}; SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}; \
             SET LOCAL idle_in_transaction_session_timeout = {limit}"
        )
    }

    /// Connects for a job, checks the rights of the role, and makes or checks the tables.
    async fn connect(&self, job: &str) -> Result<Link, StoreError> {
        let link = self.reach(job).await?;
        check_rights(&link, self).await?;
        migrations::settle(&link, self).await?;
        Ok(link)
    }

    /// Connects for a job. Does not look at the tables.
    ///
    /// # Errors
    /// When the server cannot be reached, or cannot hold the store.
    pub(super) async fn reach(&self, job: &str) -> Result<Link, StoreError> {
        self.open(job).await.map_err(|error| match error {
            StoreError::OutOfReach { why } => StoreError::OutOfReach {
                why: format!("{}: {why}", self.hosts()),
            },
            error => error,
        })
    }

    /// The server, the database and the schema, for people.
    pub(super) fn place(&self) -> String {
        let database = self.config.get_dbname().or(self.config.get_user());
        format!(
            "PostgreSQL at {}, database {}, schema {}",
            self.hosts(),
            one_line(database.unwrap_or("runwatch"), HOSTS_CHARS),
            self.schema.name()
        )
    }

    /// Whether connections are secured by TLS.
    pub(super) fn is_secured(&self) -> bool {
        matches!(self.security, Security::Tls(_))
    }

    /// Whether every host is this machine.
    pub(super) fn is_local(&self) -> bool {
        is_local_database(&self.config)
    }

    /// The hosts and ports, for people.
    fn hosts(&self) -> String {
        let ports = self.config.get_ports();
        let port = |index| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let shown = |(index, host): (usize, &Host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(index)),
            Host::Unix(path) => format!("{}:{}", path.display(), port(index)),
        };
        let hosts = self.config.get_hosts().iter().enumerate();
        one_line(
            &hosts.map(shown).collect::<Vec<_>>().join(", "),
            HOSTS_CHARS,
        )
    }

    /// The address with the user and the password that its file has now; with those of the start where that file cannot
    /// be used.
    async fn current(&self) -> Config {
        let Some(file) = &self.url_file else {
            return self.config.clone();
        };
        let secret = Secret::File(file.clone());
        let address = match secret.read_on(&self.files).await {
            Ok(url) => read_address(&url).map_err(|error| error_chain(&error)),
            Err(error) => Err(error_chain(&error)),
        };
        let current = address.and_then(|now| {
            with_credentials(&self.config, &now)
                .ok_or_else(|| "the file names another database, which needs a restart".to_owned())
        });
        self.note_unused(current.as_ref().err().cloned());
        current.unwrap_or_else(|_unused| self.config.clone())
    }

    /// Logs why the file with the address is not used, where that is new.
    fn note_unused(&self, why: Option<String>) {
        let mut noted = self.unused.lock().expect("no holder panics");
        if let (Some(why), true) = (&why, *noted != why) {
            tracing::warn!(
                why,
                "the file with the address of the store is not used; the user and the password are those of the start"
            );
        }
        *noted = why;
    }

    /// Opens a connection for a job.
    async fn open(&self, job: &str) -> Result<Link, StoreError> {
        let mut config = self.current().await;
        config.application_name(format!("runwatch/{}/{job}", self.name));
        match &self.security {
            Security::Plain => open(&config, NoTls, self.limit).await,
            Security::Tls(ca_file) => {
                let ca_file = ca_file.clone();
                let read = move || read_authorities(ca_file.as_deref());
                let tls = self.files.run(AUTHORITIES_LIMIT, read).await;
                let tls = tls
                    .map_err(std::io::Error::from)
                    .and_then(|read| read)
                    .map_err(|error| StoreError::OutOfReach {
                        why: format!("its certificate cannot be checked: {error}"),
                    })?;
                open(&config, tls, self.limit).await
            }
        }
    }
}

/// Opens a connection to the first host that takes writes.
async fn open<T>(config: &Config, tls: T, limit: Duration) -> Result<Link, StoreError>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    // The limit in the configuration is for the connection alone; a server may also be silent afterwards.
    let hosts = config.get_hosts().len().max(1);
    let limit = limit.saturating_mul(2 * u32::try_from(hosts).unwrap_or(u32::MAX));
    let connected = timeout(limit, config.connect(tls)).await;
    let (client, connection) = connected
        .map_err(|_elapsed| StoreError::OutOfReach {
            why: "the server did not answer in time".to_owned(),
        })?
        .map_err(|error| out_of_reach(&error))?;
    check_server(&connection)?;
    let warned = Arc::new(AtomicBool::new(false));
    let mut task = JoinSet::new();
    task.spawn(serve(connection, Arc::clone(&warned)));
    Ok(Link {
        client,
        warned,
        _task: task,
    })
}

/// Sends and receives for a connection until it ends, and notes warnings of the server in `warned`.
async fn serve<T>(mut connection: Connection<Socket, T>, warned: Arc<AtomicBool>)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            // A warning comes before the reply to the statement that it is about.
            Ok(AsyncMessage::Notice(notice)) if *notice.code() == SqlState::WARNING => {
                warned.store(true, Ordering::Release);
            }
            Ok(_) => {}
            Err(error) => {
                let error = one_line(&error_chain(&error), 300);
                tracing::debug!(error, "a connection to PostgreSQL has ended");
                return;
            }
        }
    }
}

/// Checks what the server reported about itself.
fn check_server<T>(connection: &Connection<Socket, T>) -> Result<(), StoreError>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let version = connection.parameter("server_version").unwrap_or_default();
    let major = version.split(|c: char| !c.is_ascii_digit()).next();
    if let Some(major) = major.and_then(|major| major.parse::<u32>().ok())
        && major < OLDEST_SERVER
    {
        return Err(StoreError::Unusable(format!(
            "the server has version {}; version {OLDEST_SERVER} or newer is needed",
            one_line(version, 40)
        )));
    }
    match connection.parameter("server_encoding") {
        Some(encoding) if encoding != ENCODING => Err(StoreError::Unusable(format!(
            "the database has the encoding {}; make one with the encoding {ENCODING}",
            one_line(encoding, 40)
        ))),
        _ => Ok(()),
    }
}

/// An open connection. It is closed when this is dropped.
pub(super) struct Link {
    client: Client,
    /// Whether the server has sent a warning.
    warned: Arc<AtomicBool>,
    _task: JoinSet<()>,
}

/// Why it is not known that a transaction is kept.
pub(super) enum CommitError {
    /// It is surely undone.
    Undone(Error),
    /// It may be kept, and may be lost; why that is not known.
    Unknown(String),
}

impl Link {
    /// The connection.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Commits the transaction that is under way. Sent when this is polled first.
    ///
    /// # Errors
    /// When the server does not confirm that the transaction is kept.
    pub(super) async fn commit(&self) -> Result<(), CommitError> {
        self.warned.store(false, Ordering::Release);
        match self.client.batch_execute("COMMIT").await {
            // Where the wait for a synchronous standby is canceled, as by `pg_cancel_backend`, the transaction is on the
            // disk of this server alone, and the reply is success after a warning (SyncRepWaitForLSN in PostgreSQL 15,
            // src/backend/replication/syncrep.c).
            Ok(()) if self.warned.load(Ordering::Acquire) => {
                let why = "the wait for the synchronous standby was canceled".to_owned();
                Err(CommitError::Unknown(why))
            }
            Ok(()) => Ok(()),
            Err(error) if is_undone(&error) => Err(CommitError::Undone(error)),
            Err(error) => Err(CommitError::Unknown(one_line(
                &error_chain(&error),
                WHY_CHARS,
            ))),
        }
    }
}

/// One connection, made again after it was lost.
pub(super) struct Line {
    connector: Arc<Connector>,
    job: &'static str,
    link: Option<Link>,
    /// Whether there was a connection before.
    was_connected: bool,
    /// After how long the next attempt to connect follows the last one, and when that is.
    interval: Option<Duration>,
    next_at: Instant,
    /// Why there is no connection.
    why: StoreError,
    reminder: Reminder,
    /// Whether a line was logged that the store is out of reach.
    is_reported: bool,
}

impl Line {
    /// A connection for a job that is not made yet.
    pub(super) fn new(connector: Arc<Connector>, job: &'static str) -> Self {
        Self {
            connector,
            job,
            link: None,
            was_connected: false,
            interval: None,
            next_at: Instant::now(),
            why: StoreError::OutOfReach {
                why: "it is not connected yet".to_owned(),
            },
            reminder: Reminder::default(),
            is_reported: false,
        }
    }

    /// What all connections have in common.
    pub(super) fn connector(&self) -> &Arc<Connector> {
        &self.connector
    }

    /// Returns when to try to connect, without a connection; `None` with one.
    pub(super) fn connect_at(&self) -> Option<Instant> {
        (!self.is_open()).then_some(self.next_at)
    }

    fn is_open(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| !link.client.is_closed())
    }

    /// The open connection, made if it is time to try that.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn client(&mut self) -> Result<&Client, StoreError> {
        if !self.is_open() {
            self.link = None;
            if Instant::now() < self.next_at {
                return Err(self.why.clone());
            }
            match self.connector.connect(self.job).await {
                Ok(link) => self.connected(link),
                Err(error) => {
                    self.failed(&error);
                    return Err(error);
                }
            }
        }
        let link = self.link.as_ref();
        link.map(|link| &link.client).ok_or(StoreError::Closed)
    }

    /// The open connection for statements, as [`Line::client`].
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn db(&mut self, marks: bool) -> Result<Db<'_>, StoreError> {
        self.client().await?;
        let link = self.link.as_ref().ok_or(StoreError::Closed)?;
        Ok(Db::new(link, &self.connector.schema, marks))
    }

    /// Closes the connection, after an error that leaves its state unknown.
    pub(super) fn close(&mut self, why: &StoreError) {
        self.link = None;
        self.why = why.clone();
        // At once: another host may have taken over.
        self.next_at = Instant::now();
    }

    fn connected(&mut self, link: Link) {
        self.link = Some(link);
        self.interval = None;
        if std::mem::replace(&mut self.was_connected, true) {
            self.connector.reconnects.inc();
        }
        if std::mem::take(&mut self.is_reported) {
            tracing::info!("the store is within reach again");
        } else {
            tracing::debug!(job = self.job, "connected to PostgreSQL");
        }
    }

    fn failed(&mut self, error: &StoreError) {
        let interval = RECONNECT.next(self.interval);
        self.interval = Some(interval);
        self.why = error.clone();
        let now = Instant::now();
        self.next_at = now + RECONNECT.wait(interval, &mut fastrand::Rng::new());
        if self.job == LOGGED && self.reminder.is_due(now) {
            self.is_reported = true;
            let is_outage = matches!(error, StoreError::OutOfReach { .. });
            let error = error_chain(error);
            match is_outage {
                true => tracing::error!(error, "cannot connect to the store; it is tried again"),
                false => tracing::error!(error, "cannot use the store"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_limit_of_statements_leaves_socket_options_that_the_system_takes() {
        for (limit, silence) in [(1, 1_000), (999, 1_000), (1_000, 1_000), (5_000, 5_000)] {
            let connector = Connector::new(&PostgresSettings {
                url: "postgres://runwatch@localhost/runwatch".to_owned().into(),
                url_file: None,
                schema: "runwatch".to_owned(),
                ca_file: None,
                migrate: false,
                statement_limit: Duration::from_millis(limit),
                name: "test".to_owned(),
            })
            .unwrap();
            let silence = Duration::from_millis(silence);
            let config = &connector.config;
            assert_eq!(config.get_keepalives_idle(), silence);
            assert_eq!(config.get_keepalives_interval(), Some(silence));
            assert_eq!(config.get_tcp_user_timeout(), Some(&silence));
            assert_eq!(connector.limit, Duration::from_millis(limit));
        }
    }
}
