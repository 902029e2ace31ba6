//! The program on a terminal: a pseudo-terminal, and a parser that knows what its screen shows.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::Child;

use super::{PATIENCE, Program, until};

/// A program that runs on a terminal of its own.
pub(crate) struct Terminal {
    keyboard: File,
    child: Child,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    /// Starts the program on a terminal of this size.
    pub(crate) fn start(
        program: &Program,
        (rows, columns): (u16, u16),
        arguments: &[&str],
    ) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("its owner");
        unlockpt(&master).expect("its other end");
        let path = ptsname(&master, Vec::new()).expect("its name");
        let path = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
        let other_end = || {
            let file = OpenOptions::new().read(true).write(true).open(path);
            Stdio::from(file.expect("its other end"))
        };
        let mut keyboard = File::from(master);
        set_size(&keyboard, rows, columns);
        // A session of its own, so that Ctrl-C reaches it.
        let argv = [
            &["setsid", "--ctty", env!("CARGO_BIN_EXE_runwatch")],
            arguments,
        ]
        .concat();
        let mut command = program.shell(&argv);
        let command = command
            .stdin(other_end())
            .stdout(other_end())
            .stderr(other_end());
        let child = command.spawn().expect("the program starts");
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 1000)));
        let (parser, mut output) = (Arc::clone(&screen), keyboard.try_clone().expect("a copy"));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            // Reading fails when the program has ended.
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                parser.lock().expect("no panic").process(&bytes[..length]);
            }
        });
        keyboard.flush().expect("nothing to write");
        Self {
            keyboard,
            child,
            screen,
            reader,
        }
    }

    /// Makes the terminal larger or smaller.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let mut screen = self.screen.lock().expect("no panic");
        set_size(&self.keyboard, rows, columns);
        screen.screen_mut().set_size(rows, columns);
    }

    /// Presses keys.
    pub(crate) fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a key");
    }

    /// What the screen shows, without the empty rows at its end.
    pub(crate) fn rows(&self) -> Vec<String> {
        let screen = self.screen.lock().expect("no panic");
        let text = screen.screen().contents();
        text.lines().map(|row| row.trim_end().to_owned()).collect()
    }

    /// Waits until the screen shows something, and returns its rows.
    pub(crate) async fn shows(&self, what: &str, holds: impl Fn(&[String]) -> bool) -> Vec<String> {
        let last = Mutex::new(Vec::new());
        let looking = until(what, async || {
            let rows = self.rows();
            let found = holds(&rows).then(|| rows.clone());
            *last.lock().expect("no panic") = rows;
            found
        });
        match tokio::time::timeout(PATIENCE / 2, looking).await {
            Ok(rows) => rows,
            Err(_elapsed) => panic!("waited for {what}: {:#?}", last.lock().expect("no panic")),
        }
    }

    /// Waits for the end of the program: its exit code, and the rows that it leaves.
    pub(crate) async fn ended(mut self) -> (Option<i32>, Vec<String>) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status
            .expect("it ends in time")
            .expect("it can be waited for");
        self.reader.join().expect("no panic");
        let screen = self.screen.lock().expect("no panic");
        let text = screen.screen().contents();
        let rows = text.lines().map(|row| row.trim_end().to_owned()).collect();
        (status.code(), rows)
    }
}

fn set_size(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("a size");
}
