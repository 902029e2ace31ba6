//! Standard output and standard error, each written by a thread of its own.
//!
//! A reader that stops reading (a stalled log driver, `less`, ^S on a terminal) blocks that thread and nothing else.
//! What waits for it is bounded: diagnostics beyond [`MAX_QUEUED_BYTES`] are dropped and counted, and the count is
//! logged once there is room again. Results are not dropped: a printer of many waits for [`Output::room`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::watch;

use crate::blocking;
use crate::live_lines::LiveLines;

/// Most bytes that wait to be written before diagnostics are dropped.
pub const MAX_QUEUED_BYTES: usize = 1024 * 1024;

/// What each text costs beside its bytes, so that many empty ones are bounded as well.
const TEXT_OVERHEAD_BYTES: usize = 64;

/// Diagnostics that were dropped in this process, for the metrics.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many log records and lines of progress were dropped since the start of the process.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// One of the two standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StandardStream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A queue and the thread that writes it; clones share them. Two streams that lead to the same place share one, so that
/// their lines keep their order.
#[derive(Clone)]
pub struct Output(Arc<OutputQueue>);

struct OutputQueue {
    state: Mutex<QueueState>,
    /// There is something to do for the thread.
    work: Condvar,
    /// The thread has written something.
    done: Condvar,
    /// How many texts have been written, for those that wait for it in the runtime.
    written: watch::Sender<u64>,
    /// Whether live lines can be shown.
    live: bool,
    write: Write,
}

/// Writes all of a text, and blocks until that is done.
type Write = Box<dyn Fn(StandardStream, &[u8]) -> io::Result<()> + Send + Sync>;

#[derive(Default)]
struct QueueState {
    started: bool,
    texts: VecDeque<(StandardStream, Vec<u8>)>,
    /// Bytes that wait, those being written included.
    bytes: usize,
    queued: u64,
    written: u64,
    /// Diagnostics dropped since that was last logged.
    dropped: u64,
    /// The newest live lines, if others than those on the screen.
    lines: Option<Vec<String>>,
    /// The thread writes or draws.
    busy: bool,
    /// Why the first write of a result failed.
    out_failed: Option<io::ErrorKind>,
    /// Why the last write to standard error failed.
    err_failed: Option<io::ErrorKind>,
}

impl Output {
    /// The outputs of this process: first standard output, then standard error, with live lines on the latter if
    /// `live` is set.
    pub fn of_process(live: bool) -> (Self, Self) {
        let write = || -> Write {
            Box::new(|stream, text| match stream {
                StandardStream::Out => write_all(io::stdout().as_fd(), text),
                StandardStream::Err => write_all(io::stderr().as_fd(), text),
            })
        };
        let err = Self::new(write(), live);
        if same_file() {
            (err.clone(), err)
        } else {
            (Self::new(write(), false), err)
        }
    }

    fn new(write: Write, live: bool) -> Self {
        Self(Arc::new(OutputQueue {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            written: watch::Sender::new(0),
            live,
            write,
        }))
    }

    /// Writes diagnostics as soon as the thread comes to it, or drops and counts them where too much waits already.
    pub fn diagnose(&self, text: impl Into<Vec<u8>>) {
        self.push(StandardStream::Err, text.into(), MAX_QUEUED_BYTES);
    }

    /// As [`Output::diagnose`], with room that diagnostics do not have: for records of which the sender first looked
    /// whether there [is room](Output::has_room).
    pub fn record(&self, text: impl Into<Vec<u8>>) {
        self.push(StandardStream::Err, text.into(), 2 * MAX_QUEUED_BYTES);
    }

    /// Writes a result to standard output as soon as the thread comes to it. Never drops it.
    pub fn print(&self, text: impl Into<Vec<u8>>) {
        self.push(StandardStream::Out, text.into(), usize::MAX);
    }

    fn push(&self, stream: StandardStream, text: Vec<u8>, most: usize) {
        let mut state = self.0.lock();
        if state.bytes >= most {
            state.dropped += 1;
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += text.len() + TEXT_OVERHEAD_BYTES;
        state.queued += 1;
        state.texts.push_back((stream, text));
        self.wake(state);
    }

    /// Shows `lines` at the bottom of the terminal in place of those shown before.
    fn show(&self, lines: Vec<String>) {
        let mut state = self.0.lock();
        state.lines = Some(lines);
        self.wake(state);
    }

    fn wake(&self, mut state: MutexGuard<'_, QueueState>) {
        if !state.started {
            let shared = Arc::clone(&self.0);
            // Where the system has no thread left, the next text tries again.
            state.started = blocking::spawn("output", move || shared.serve()).is_ok();
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// Whether little enough waits for more to be queued.
    pub fn has_room(&self) -> bool {
        self.0.lock().bytes < MAX_QUEUED_BYTES
    }

    /// Waits until there is room. Cancel-safe.
    pub async fn room(&self) {
        self.until(|state| state.bytes < MAX_QUEUED_BYTES).await;
    }

    /// Waits until all that is queued now has been written, or could not be. Cancel-safe.
    pub async fn flush(&self) {
        let queued = self.0.lock().queued;
        self.until(|state| state.written >= queued).await;
    }

    async fn until(&self, holds: impl Fn(&QueueState) -> bool) {
        let mut written = self.0.written.subscribe();
        while !holds(&self.0.lock()) {
            // The sender lives as long as this handle.
            drop(written.changed().await);
        }
    }

    /// As [`Output::flush`], for at most `limit`, and blocks.
    pub fn flush_within(&self, limit: Duration) {
        let state = self.0.lock();
        let queued = state.queued;
        let waits =
            |state: &mut QueueState| state.written < queued || state.lines.is_some() || state.busy;
        drop(self.0.done.wait_timeout_while(state, limit, waits));
    }

    /// Whether both are the same queue.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Why a result could not be written, the first of them if there are several: it is lost.
    pub fn result_failed(&self) -> Option<io::ErrorKind> {
        self.0.lock().out_failed
    }

    /// Why the last write to standard error failed; `None` when it did not.
    pub fn diagnostics_failed(&self) -> Option<io::ErrorKind> {
        self.0.lock().err_failed
    }

    /// A place for live lines, which are gone when it is dropped; `None` where they cannot be shown.
    pub fn live_area(&self) -> Option<LiveArea> {
        self.0.live.then(|| LiveArea(self.clone()))
    }

    /// Whether live lines can be shown.
    pub fn is_live(&self) -> bool {
        self.0.live
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("live", &self.0.live)
            .finish_non_exhaustive()
    }
}

impl OutputQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().expect("no holder panics")
    }

    /// Writes what draws the live lines. Where that fails, so will the next text, which is noticed.
    fn write_to_terminal(&self, bytes: &str) {
        if !bytes.is_empty() {
            drop((self.write)(StandardStream::Err, bytes.as_bytes()));
        }
    }

    /// Writes what is queued until the process ends.
    fn serve(&self) {
        let mut area = self.live.then(LiveLines::of_process);
        let mut lines = Vec::new();
        let mut state = self.lock();
        loop {
            let idle = |state: &mut QueueState| state.texts.is_empty() && state.lines.is_none();
            state = self.work.wait_while(state, idle).expect("no holder panics");
            state.busy = true;
            let text = state.texts.pop_front();
            lines = state.lines.take().unwrap_or(lines);
            let is_last = state.texts.is_empty();
            let dropped = if state.bytes < MAX_QUEUED_BYTES / 2 {
                std::mem::take(&mut state.dropped)
            } else {
                0
            };
            drop(state);
            if dropped > 0 {
                tracing::warn!(
                    dropped,
                    "log records were dropped, because standard error was not read"
                );
            }
            let written = text.as_ref().map(|(stream, text)| {
                if let Some(area) = &mut area {
                    self.write_to_terminal(&area.erase(columns()));
                }
                (*stream, (self.write)(*stream, text))
            });
            if let Some(area) = area.as_mut().filter(|_| is_last) {
                self.write_to_terminal(&area.draw(&lines, columns()));
            }
            state = self.lock();
            if let (Some((_, text)), Some((stream, result))) = (text, written) {
                state.bytes -= text.len() + TEXT_OVERHEAD_BYTES;
                state.written += 1;
                let failed = result.err().map(|error| error.kind());
                match stream {
                    StandardStream::Out => state.out_failed = state.out_failed.or(failed),
                    StandardStream::Err => state.err_failed = failed,
                }
            }
            state.busy = false;
            self.done.notify_all();
            self.written.send_replace(state.written);
        }
    }
}

/// Columns of the terminal; 80 where that cannot be known.
fn columns() -> usize {
    usize::from(console::Term::stderr().size().1)
}

/// Live lines at the bottom of the terminal.
#[derive(Debug)]
pub struct LiveArea(Output);

impl LiveArea {
    /// Shows `lines`, in place of those shown before. Each is cut to what fits.
    pub fn show(&mut self, lines: Vec<String>) {
        self.0.show(lines);
    }
}

impl Drop for LiveArea {
    fn drop(&mut self) {
        self.0.show(Vec::new());
    }
}

/// Writes all of a text. The descriptor may have been set not to block by another program that shares it.
fn write_all(to: BorrowedFd<'_>, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match rustix::io::write(to, text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&to, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether both standard streams lead to the same file, pipe or terminal.
fn same_file() -> bool {
    match (
        rustix::fs::fstat(io::stdout()),
        rustix::fs::fstat(io::stderr()),
    ) {
        (Ok(out), Ok(err)) => (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    /// An output whose reader takes a text each time that something is sent to it, and what it took.
    fn stalled() -> (Output, mpsc::Sender<()>, Arc<Mutex<Vec<String>>>) {
        let (read, reads) = mpsc::channel();
        let (reads, taken) = (Mutex::new(reads), Arc::new(Mutex::new(Vec::new())));
        let took = Arc::clone(&taken);
        let write = move |_stream, text: &[u8]| {
            let read = reads.lock().unwrap().recv();
            took.lock()
                .unwrap()
                .push(String::from_utf8_lossy(text).into_owned());
            read.map_err(|_gone| io::ErrorKind::BrokenPipe.into())
        };
        (Output::new(Box::new(write), false), read, taken)
    }

    #[tokio::test]
    async fn diagnostics_that_are_not_read_are_dropped_and_counted_and_results_are_kept() {
        let (output, read, taken) = stalled();
        let line = "x".repeat(1024);
        let before = dropped();
        for _ in 0..2 * MAX_QUEUED_BYTES / line.len() {
            output.diagnose(line.clone());
        }
        assert!(!output.has_room());
        let kept = output.0.lock().queued;
        assert!(
            (dropped() - before).abs_diff(2 * MAX_QUEUED_BYTES as u64 / 1024 - kept) < 3,
            "{kept} were kept"
        );
        output.record("a record");
        output.print("a result");
        assert_eq!(output.0.lock().queued, kept + 2, "these have room");
        assert!(tokio::time::timeout(SHORT, output.flush()).await.is_err());
        assert!(tokio::time::timeout(SHORT, output.room()).await.is_err());
        for _ in 0..kept + 2 {
            read.send(()).unwrap();
        }
        output.room().await;
        output.flush().await;
        assert_eq!(taken.lock().unwrap().last().unwrap(), "a result");
        assert_eq!(output.0.lock().dropped, 0, "that was logged");
        assert_eq!(
            (output.result_failed(), output.diagnostics_failed()),
            (None, None)
        );
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_shows() {
        let (output, read, _taken) = stalled();
        drop(read);
        output.print("a result");
        output.flush().await;
        assert_eq!(output.result_failed(), Some(io::ErrorKind::BrokenPipe));
        assert_eq!(output.diagnostics_failed(), None);
    }

    #[test]
    fn the_end_waits_for_a_limited_time() {
        let (output, _read, _taken) = stalled();
        output.diagnose("a line");
        output.flush_within(SHORT);
        assert_eq!(output.0.lock().written, 0);
    }
}
