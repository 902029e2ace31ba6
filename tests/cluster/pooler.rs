//! A PgBouncer of the test's own, in a temporary folder, that can be killed, held and sent to another server.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::postgres::{USER, as_server_user, folder_of_server, free_port, url_of};
use crate::support::eventually;

/// PgBouncer in transaction mode before a server. It ends with this value.
pub(crate) struct Pooler {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Pooler {
    /// Starts it before the server on a port of loopback.
    pub(crate) async fn start(server: u16) -> Self {
        let mut pooler = Self {
            folder: folder_of_server(),
            port: free_port(),
            process: None,
        };
        pooler.configure(server);
        pooler.resume().await;
        pooler
    }

    /// Writes its settings.
    fn configure(&self, server: u16) {
        let (folder, port) = (self.folder.path().display(), self.port);
        let settings = format!(
            "[databases]\n{USER} = host=127.0.0.1 port={server} user={USER}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             auth_file = /dev/null\npool_mode = transaction\ndefault_pool_size = 20\nserver_login_retry = 1\n\
             logfile = {folder}/log\n"
        );
        std::fs::write(self.folder.path().join("ini"), settings)
            .expect("the settings can be written");
    }

    /// Sends what comes from now on to another server, as an operator does after a failover. Connections of clients stay.
    pub(crate) fn point_at(&self, server: u16) {
        self.configure(server);
        self.signal(Signal::HUP);
    }

    /// Holds what clients send, and closes the connections to the server once their transactions have ended
    /// (pgbouncer.org/usage, "Signals").
    pub(crate) fn hold(&self) {
        self.signal(Signal::USR1);
    }

    /// Passes on what was held, and what comes from now on.
    pub(crate) fn pass(&self) {
        self.signal(Signal::USR2);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        kill_process(Pid::from_child(process), signal).expect("it is a child");
    }

    /// The address of the database behind it, for clients.
    pub(crate) fn url(&self) -> String {
        url_of(self.port, USER)
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Starts it again, and waits until it listens.
    pub(crate) async fn resume(&mut self) {
        let mut command = as_server_user(Path::new("/usr/sbin/pgbouncer"));
        let command = command.arg("-q").arg(self.folder.path().join("ini"));
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = process.spawn().expect("pgbouncer runs");
        let address = self.address();
        eventually("pgbouncer to listen", || {
            let ended = process.try_wait().expect("it is a child");
            assert!(ended.is_none(), "pgbouncer ended: {ended:?}");
            TcpStream::connect(address).is_ok()
        })
        .await;
        self.process = Some(process);
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is a child");
            process.wait().expect("it is a child");
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.kill();
    }
}
