//! The gate: requests to providers and receivers leave only while the lease of this daemon is confirmed.
//!
//! Writes of a daemon whose lease has ended are refused by the store. Requests cannot be refused there, so each waits
//! here, last of all, until the lease is confirmed; where it never is again, the engine ends with the requests that
//! wait. Schedulers make none while the gate is closed: a request that waits has been counted in the budget when it was
//! made, and would leave in a later minute. A daemon with a store of its own has no gate.

use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::domain::{ProviderName, RunRef};
use crate::notify::{Deliver, Message, SendError, Sent};
use crate::providers::{
    AnyProvider, AnyStream, ApiError, ListParameters, ListReply, ListRequest, Provider, Reply,
};

/// Lets requests through while the lease is confirmed; clones share it.
#[derive(Debug, Clone)]
pub struct Gate {
    clock: Clock,
    /// Until when it is open, as [`Clock::passed`] counts.
    open_until: watch::Receiver<Duration>,
}

/// Opens and closes a gate.
#[derive(Debug)]
pub struct GateControl(watch::Sender<Duration>);

impl Gate {
    /// A gate that is closed, with what opens it.
    pub fn closed(clock: Clock) -> (GateControl, Self) {
        let (control, open_until) = watch::channel(Duration::ZERO);
        (GateControl(control), Self { clock, open_until })
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.clock.passed() < *self.open_until.borrow()
    }

    /// Returns once it is open. Cancel-safe.
    async fn pass(&self) {
        let mut open_until = self.open_until.clone();
        while !self.is_open() {
            // Where nothing can open it any more, the engine is about to end.
            if open_until.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

impl GateControl {
    /// Opens it until `until`, as [`Clock::passed`] counts.
    pub fn open_until(&self, until: Duration) {
        self.0.send_replace(until);
    }

    /// Closes it.
    pub fn close(&self) {
        self.0.send_replace(Duration::ZERO);
    }
}

/// A provider behind a gate.
#[derive(Debug)]
struct GatedProvider {
    inner: AnyProvider,
    gate: Gate,
}

/// A sink behind a gate, if there is one.
#[derive(Debug)]
pub struct GatedSink<D> {
    /// The sink.
    pub inner: D,
    /// The gate.
    pub gate: Option<Gate>,
}

/// Puts a provider behind a gate, if there is one.
pub fn gated(inner: AnyProvider, gate: Option<&Gate>) -> AnyProvider {
    match gate.cloned() {
        Some(gate) => AnyProvider::new(GatedProvider { inner, gate }),
        None => inner,
    }
}

impl Provider for GatedProvider {
    type Events = AnyStream;

    async fn get_run(&self, id: &RunRef) -> Reply {
        self.gate.pass().await;
        self.inner.get_run(id).await
    }

    fn is_open(&self) -> bool {
        self.gate.is_open() && self.inner.is_open()
    }

    async fn opened(&self) {
        self.gate.pass().await;
        self.inner.opened().await;
    }

    fn address(&self, id: &RunRef) -> Option<String> {
        self.inner.address(id)
    }

    fn reconnect(&self) {
        self.inner.reconnect();
    }

    fn is_same_account(&self, other: &Self) -> bool {
        self.inner.is_same_account(&other.inner)
    }

    async fn open_events(&self, id: &RunRef, last_id: Option<&str>) -> Result<AnyStream, ApiError> {
        self.gate.pass().await;
        self.inner.open_events(id, last_id).await
    }

    fn list_of(&self, id: &RunRef) -> Option<ListParameters> {
        self.inner.list_of(id)
    }

    fn has_same_lists(&self, other: &Self) -> bool {
        self.inner.has_same_lists(&other.inner)
    }

    async fn list(&self, provider: &ProviderName, request: &ListRequest) -> ListReply {
        self.gate.pass().await;
        self.inner.list(provider, request).await
    }
}

impl<D: Deliver> Deliver for GatedSink<D> {
    async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        if let Some(gate) = &self.gate {
            gate.pass().await;
        }
        self.inner.send(message).await
    }

    fn most_bytes(&self) -> usize {
        self.inner.most_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Jump;

    #[tokio::test(start_paused = true)]
    async fn requests_wait_until_the_gate_opens_and_a_sleep_of_the_machine_closes_it() {
        let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
        let (control, gate) = Gate::closed(clock.clone());
        assert!(!gate.is_open());
        let mut passing = std::pin::pin!(gate.pass());
        let minute = Duration::from_secs(60);
        assert!(
            tokio::time::timeout(minute, passing.as_mut())
                .await
                .is_err()
        );
        control.open_until(clock.passed() + Duration::from_secs(10));
        passing.await;
        assert!(gate.is_open());
        clock.jump(Jump {
            slept: Duration::from_secs(11),
            ..Jump::default()
        });
        assert!(!gate.is_open(), "time passed while the machine slept");
        control.open_until(clock.passed() + Duration::from_secs(10));
        assert!(gate.is_open());
        control.close();
        assert!(!gate.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn where_nothing_opens_the_gate_any_more_no_request_leaves() {
        let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
        let (control, gate) = Gate::closed(clock);
        drop(control);
        let passed = tokio::time::timeout(Duration::from_secs(3600), gate.pass()).await;
        assert!(passed.is_err());
    }
}
