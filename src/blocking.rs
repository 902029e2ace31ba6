//! Calls that can block without end: name lookups, files on a disk that is gone, pipes that are not read.
//!
//! Each kind of call has a [`Lane`] of its own: a few detached threads and a limit in time. So one kind never takes the
//! threads of another, nor those of the store, and the process ends without waiting for any of them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use crate::text::decoded;

/// How long one file may take to be read. A file of a few kilobytes on a disk that works takes milliseconds.
pub(crate) const FILE_LIMIT: Duration = Duration::from_secs(5);

/// A few threads for calls of one kind; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    name: &'static str,
    places: Arc<Semaphore>,
}

/// Why a call gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stuck {
    /// The call did not end in time. Its thread goes on and keeps its place until it ends.
    #[error("it did not end within {} s", .0.as_secs_f64())]
    Late(Duration),
    /// All threads of the lane were busy with earlier calls for the whole time.
    #[error("earlier ones have not ended")]
    Full,
    /// The system gave no thread.
    #[error("the system has no thread for it")]
    NoThread,
    /// The call panicked.
    #[error("it failed")]
    Panicked,
}

impl From<Stuck> for io::Error {
    fn from(stuck: Stuck) -> Self {
        Self::new(io::ErrorKind::TimedOut, stuck)
    }
}

impl Lane {
    /// A lane of at most `threads` threads, each named `name` (15 bytes at most, so that the system shows all of it).
    pub(crate) fn new(name: &'static str, threads: usize) -> Self {
        Self {
            name,
            places: Arc::new(Semaphore::new(threads)),
        }
    }

    /// Makes a call on a thread of this lane and waits for its result at most for `limit`, a wait for a free thread
    /// included. Cancel-safe: a call that has begun runs to its end, and its result is dropped.
    ///
    /// # Errors
    /// When there was no result in time.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        let mut begun = false;
        let made = async {
            let place = Arc::clone(&self.places)
                .acquire_owned()
                .await
                .expect("it is never closed");
            begun = true;
            let (reply, answer) = oneshot::channel();
            let work = move || {
                let result = call();
                drop(place);
                // The caller may have given up.
                drop(reply.send(result));
            };
            spawn(self.name, work).map_err(|_no_thread| Stuck::NoThread)?;
            answer.await.map_err(|_dropped| Stuck::Panicked)
        };
        match tokio::time::timeout(limit, made).await {
            Ok(result) => result,
            Err(_elapsed) if begun => Err(Stuck::Late(limit)),
            Err(_elapsed) => Err(Stuck::Full),
        }
    }
}

/// Makes a call on a thread of its own, without a limit in time. Cancel-safe as [`Lane::run`].
///
/// # Errors
/// When the system has no thread, or the call panicked.
pub(crate) async fn run<T: Send + 'static>(
    name: &'static str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stuck> {
    let (reply, answer) = oneshot::channel();
    spawn(name, move || drop(reply.send(call()))).map_err(|_no_thread| Stuck::NoThread)?;
    answer.await.map_err(|_dropped| Stuck::Panicked)
}

/// Reads a file of at most `most` bytes; a larger one gives one byte more. Blocks for [`FILE_LIMIT`] at most, also
/// where the path is a pipe or a disk that does not answer.
///
/// # Errors
/// When the file cannot be read, or not in time.
pub(crate) fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    within_file_limit(move || read_file_within_limit(&path, most))
}

/// Makes a call that looks at a file, on a thread of its own. Blocks for [`FILE_LIMIT`] at most.
///
/// # Errors
/// As the call, or when it did not end in time.
pub(crate) fn within_file_limit<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (reply, answer) = mpsc::sync_channel(1);
    // The caller may have given up.
    spawn("files", move || drop(reply.send(call())))?;
    answer
        .recv_timeout(FILE_LIMIT)
        .unwrap_or_else(|_late| Err(Stuck::Late(FILE_LIMIT).into()))
}

/// As [`read_file`], on a thread of `lane`.
///
/// # Errors
/// When the file cannot be read, or not in time.
pub(crate) async fn read_file_on(lane: &Lane, path: PathBuf, most: u64) -> io::Result<Vec<u8>> {
    lane.run(FILE_LIMIT, move || read_file_within_limit(&path, most))
        .await?
}

/// Reads a file, a pipe in [`FILE_LIMIT`] at most: a thread that waited for the writer of a pipe without a limit would
/// never give its place back. Only a disk that does not answer holds it for longer.
fn read_file_within_limit(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let ends = Instant::now() + FILE_LIMIT;
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    let mut rest = (&file).take(most.saturating_add(1));
    loop {
        wait_until_readable(&file, ends)?;
        match rest.read_to_end(&mut bytes) {
            // What was read before is in `bytes`.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) => return Ok(bytes),
            Err(error) => return Err(error),
        }
    }
}

/// Waits until there is something to read, or the end of the file.
fn wait_until_readable(file: &File, ends: Instant) -> io::Result<()> {
    loop {
        let left = ends.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(Stuck::Late(FILE_LIMIT).into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Bytes of a file as text.
///
/// # Errors
/// When they are neither UTF-8, nor UTF-16 that begins with a byte order mark.
pub(crate) fn text(bytes: Vec<u8>) -> io::Result<String> {
    decoded(bytes).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Starts a thread that is waited for by no one.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_call_that_hangs_holds_up_its_own_lane_only() {
        let lane = Lane::new("test", 1);
        let (release, hold) = mpsc::channel::<()>();
        let hang = move || hold.recv().is_ok();
        assert_eq!(lane.run(SHORT, hang).await, Err(Stuck::Late(SHORT)));
        assert_eq!(lane.run(SHORT, || true).await, Err(Stuck::Full));
        assert_eq!(Lane::new("test", 1).run(LONG, || true).await, Ok(true));
        drop(release);
        assert_eq!(
            lane.run(LONG, || true).await,
            Ok(true),
            "the place is free again"
        );
    }

    #[tokio::test]
    async fn a_call_that_panics_is_an_error() {
        let lane = Lane::new("test", 1);
        assert_eq!(
            lane.run(LONG, || panic!("on purpose")).await,
            Err::<(), _>(Stuck::Panicked)
        );
        assert_eq!(lane.run(LONG, || 1).await, Ok(1), "its place is free");
    }

    #[tokio::test]
    async fn a_pipe_that_is_not_written_to_is_an_error_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let lane = Lane::new("test", 1);
        let late = read_file_on(&lane, pipe.clone(), 10).await.unwrap_err();
        assert!(
            late.to_string().contains("did not end within 5 s"),
            "{late}"
        );
        assert_eq!(
            read_file(&pipe, 10).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        // No thread waits for the writer any more: the only place of the lane is free.
        let file = folder.path().join("file");
        std::fs::write(&file, "key").unwrap();
        assert_eq!(read_file_on(&lane, file, 10).await.unwrap(), b"key");
    }

    #[tokio::test]
    async fn a_pipe_that_is_written_to_piece_by_piece_is_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let lane = Lane::new("test", 1);
        let reading = read_file_on(&lane, path.clone(), 10);
        let writing = run("writer", move || {
            // It opens as soon as the other end is open.
            let mut writer = File::options().write(true).open(path).unwrap();
            for piece in ["k", "e", "y"] {
                std::io::Write::write_all(&mut writer, piece.as_bytes()).unwrap();
            }
        });
        let (read, written) = tokio::join!(reading, writing);
        written.unwrap();
        assert_eq!(read.unwrap(), b"key");
    }
}
