//! Reads for people and programs, on connections of their own: a long list does not delay writes.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::connection::{Connector, Line};
use super::jobs::Job;
use super::writer::read;

/// The number of connections, and of reads that run at the same time. Further reads wait.
const CONNECTIONS: usize = 2;

/// The number of reads that wait for a connection. The callers of further reads wait for a place.
pub(super) const QUEUED: usize = 64;

/// The owner of the connections that only read.
pub(super) struct Readers {
    idle: Vec<Line>,
    jobs: mpsc::Receiver<Job>,
}

impl Readers {
    /// Connections that are not made yet, for `jobs`.
    pub(super) fn new(connector: &Arc<Connector>, jobs: mpsc::Receiver<Job>) -> Self {
        let idle = (0..CONNECTIONS)
            .map(|_| Line::new(connector.clone(), "reader"))
            .collect();
        Self { idle, jobs }
    }

    /// Reads until every [`Store`](crate::store::Store) is gone.
    pub(super) async fn run(mut self) {
        let mut busy = FuturesUnordered::new();
        loop {
            // Both arms are cancel-safe: an item that is not taken stays in the channel or in the set.
            tokio::select! {
                Some(line) = busy.next() => self.idle.push(line),
                job = self.jobs.recv(), if !self.idle.is_empty() => {
                    let Some((job, mut line)) = job.zip(self.idle.pop()) else { break };
                    busy.push(async move {
                        // The caller may have stopped waiting: then nothing is read.
                        if job.is_awaited() {
                            read(&mut line, vec![job]).await;
                        }
                        line
                    });
                }
            }
        }
        while busy.next().await.is_some() {}
    }
}
