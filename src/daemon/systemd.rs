//! Notifications of the service manager (sd_notify(3)). Without one, nothing happens.
//!
//! A thread of its own sends them, since a manager that does not read its socket blocks its writers. What does
//! not fit into the queue before it is dropped: such a manager acts on nothing anyway.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::blocking;

/// Messages that wait for the service manager at most.
const QUEUED: usize = 64;

/// The service is ready, after starting or reloading.
pub(super) fn ready(status: &str) {
    let status = status.to_owned();
    send(move || sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]));
}

/// The service still starts: the service manager gives it this much time from now on.
pub(super) fn starting(limit: Duration) {
    let microseconds = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
    let states = [
        NotifyState::ExtendTimeoutUsec(microseconds),
        NotifyState::Status("opening the store"),
    ];
    send(move || sd_notify::notify(&states));
}

/// The configuration is being reloaded; [`ready`] follows.
pub(super) fn reloading() {
    send(|| sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]));
}

/// The service stops.
pub(super) fn stopping() {
    send(|| sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]));
}

/// How the service is, in one line.
pub(super) fn status(status: &str) {
    let status = status.to_owned();
    send(move || sd_notify::notify(&[NotifyState::Status(&status)]));
}

/// The service makes progress.
pub(super) fn alive() {
    send(|| sd_notify::notify(&[NotifyState::Watchdog]));
}

/// How often [`alive`] must be sent: twice in the time the service manager allows. `None` when it does
/// not watch.
pub(super) fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

type Notice = Box<dyn FnOnce() -> io::Result<()> + Send>;

fn send(message: impl FnOnce() -> io::Result<()> + Send + 'static) {
    static QUEUE: OnceLock<SyncSender<Notice>> = OnceLock::new();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let queue = QUEUE.get_or_init(|| {
        let (queue, messages) = sync_channel::<Notice>(QUEUED);
        let serve = move || {
            for message in messages {
                if let Err(error) = message() {
                    tracing::warn!(%error, "cannot notify the service manager");
                }
            }
        };
        if let Err(error) = blocking::spawn("service", serve) {
            tracing::warn!(%error, "cannot notify the service manager");
        }
        queue
    });
    if queue.try_send(Box::new(message)).is_err() {
        tracing::debug!("the service manager does not read its notifications");
    }
}
