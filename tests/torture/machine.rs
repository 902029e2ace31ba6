//! A machine for the daemon: a disk of its own that can be full or read-only, in a namespace of its own.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::support::{PATIENCE, Program};

/// Size of the disk: room for all that is stored in one run, and soon filled.
const DISK: &str = "size=64M,mode=700";

pub(crate) struct Machine {
    _shell: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Machine {
    pub(crate) async fn boot(program: &Program) -> Self {
        std::fs::create_dir(program.home().join("disk")).expect("a directory");
        let script = format!(
            "mount -t tmpfs -o {DISK} tmpfs disk && echo up && while read -r order; do eval \"$order\"; done"
        );
        let mut shell = program.shell(&[
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
        ]);
        let mut shell = shell
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("unshare of util-linux");
        let orders = shell.stdin.take().expect("piped");
        let answers = BufReader::new(shell.stdout.take().expect("piped")).lines();
        let mut machine = Self {
            _shell: shell,
            orders,
            answers,
        };
        assert_eq!(
            machine.answer().await,
            "up",
            "a namespace with a tmpfs is to be had"
        );
        machine
    }

    async fn answer(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.answers.next_line()).await;
        line.expect("the machine answers")
            .expect("it can be read")
            .expect("it is up")
    }

    async fn order(&mut self, order: &str) -> String {
        self.orders
            .write_all(format!("{order}\n").as_bytes())
            .await
            .expect("it is up");
        self.answer().await
    }

    /// Starts the daemon; what it says is appended to `log`.
    pub(crate) async fn start(&mut self, log: &Path) -> Pid {
        let runwatch = env!("CARGO_BIN_EXE_runwatch");
        let id = self
            .order(&format!(
                "{runwatch} daemon >>{} 2>&1 </dev/null & echo $!",
                log.display()
            ))
            .await;
        Pid::from_raw(id.parse().expect("a process ID")).expect("not zero")
    }

    /// Sends a signal that ends the daemon, and waits for that end. Returns its code as a shell has it.
    pub(crate) async fn end(&mut self, daemon: Pid, signal: Signal) -> i32 {
        // It may have ended by itself; the shell keeps its code, and no other process gets its number.
        if let Err(error) = kill_process(daemon, signal) {
            assert_eq!(error, rustix::io::Errno::SRCH);
        }
        self.reap(daemon).await
    }

    /// Waits for the end of the daemon.
    pub(crate) async fn reap(&mut self, daemon: Pid) -> i32 {
        let code = self
            .order(&format!("wait {}; echo $?", daemon.as_raw_nonzero()))
            .await;
        code.parse().expect("an exit code")
    }

    /// Leaves no block free on the disk. A daemon that runs may give some back at once.
    pub(crate) async fn fill(&mut self) {
        // Writing ends with an error where the disk is full, and without one where it is not.
        let order = "head -c 1G /dev/zero >disk/fill 2>/dev/null && echo room || echo full";
        assert_eq!(self.order(order).await, "full");
    }

    /// Gives the disk back.
    pub(crate) async fn free(&mut self) {
        assert_eq!(self.order("rm -f disk/fill; echo free").await, "free");
    }

    /// Mounts the disk read-only or writable; nothing may be open for writing on it.
    pub(crate) async fn remount(&mut self, how: &str) {
        assert_eq!(
            self.order(&format!("mount -o remount,{how} disk 2>&1; echo done"))
                .await,
            "done"
        );
    }
}
