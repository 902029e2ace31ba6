//! A PostgreSQL on a disk that can be full.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::postgres::{USER, free_port, programs, url_of};

/// A server whose tables are on a small disk of its own. It ends with this value.
pub(crate) struct SmallPostgres {
    folder: TempDir,
    port: u16,
    process: Child,
}

impl SmallPostgres {
    /// Makes a database and starts its server on a free port of loopback. Its log for recovery is on another disk, because
    /// a server without room for that ends.
    pub(crate) fn start() -> Self {
        let (folder, port) = (
            tempfile::tempdir().expect("a temporary directory"),
            free_port(),
        );
        let disk = folder.path().join("disk");
        std::fs::create_dir(&disk).expect("a folder");
        let (bin, place) = (programs(), folder.path().display());
        let (bin, disk) = (bin.display(), disk.display());
        // The disk is mounted as root of a namespace, and the server runs as another user, because it refuses root.
        let server = format!(
            "{bin}/initdb -A trust -U {USER} -E UTF8 -N -X {place}/wal -D {disk}/data >/dev/null && exec {bin}/postgres \
             -D {disk}/data -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c log_min_messages=fatal"
        );
        let script = format!(
            "mount -t tmpfs -o size=80M,mode=700 tmpfs {disk} && exec unshare --user --map-user=1000 --map-group=1000 \
             env LC_ALL=C.UTF-8 sh -c '{server}'"
        );
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
        let process = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare runs");
        Self {
            folder,
            port,
            process,
        }
    }

    /// Whether it answers.
    pub(crate) fn is_ready(&mut self) -> bool {
        let ended = self.process.try_wait().expect("it is a child");
        assert!(ended.is_none(), "the server ended: {ended:?}");
        let mut psql = Command::new(programs().join("psql"));
        let psql = psql.args([&self.url(), "-c", ""]);
        let output = psql.output().expect("the program of PostgreSQL runs");
        output.status.success()
    }

    /// The address of its database.
    pub(crate) fn url(&self) -> String {
        url_of(self.port, "postgres")
    }

    /// A file that takes all room of the disk, as the server's namespace has it.
    fn filler(&self) -> PathBuf {
        let disk = self.folder.path().join("disk/filler");
        let disk = disk.strip_prefix("/").expect("an absolute path");
        Path::new(&format!("/proc/{}/root", self.process.id())).join(disk)
    }

    /// Fills the disk.
    pub(crate) fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).expect("a file");
        let error = loop {
            if let Err(error) = std::io::Write::write_all(&mut file, &[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }

    /// Makes room again.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.filler()).expect("the file can be deleted");
    }
}

impl Drop for SmallPostgres {
    fn drop(&mut self) {
        // The server passes the signal on to its processes. It may have ended by itself.
        if let Ok(None) = self.process.try_wait() {
            let id = rustix::process::Pid::from_child(&self.process);
            rustix::process::kill_process(id, rustix::process::Signal::QUIT)
                .expect("it is a child");
        }
        drop(self.process.wait());
    }
}
