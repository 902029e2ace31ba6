//! What is measured of the transactions that write.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

/// Bounds of the histogram of transactions, in seconds: from a fast disk to a server that hardly answers.
const COMMIT_SECONDS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// Bounds of the histogram of jobs in a transaction: up to the most that one has.
const BATCH_JOBS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The figures of one store since the start of the process; clones share them.
#[derive(Debug, Clone)]
pub struct StoreFigures {
    /// How long transactions took that were committed, in seconds, from their begin to the end of the commit.
    pub commit_seconds: Histogram,
    /// How many writes these transactions had.
    pub batch_jobs: Histogram,
    /// How many connections to the server were made again; 0 in SQLite.
    pub reconnects: Counter,
}

impl Default for StoreFigures {
    fn default() -> Self {
        Self {
            commit_seconds: Histogram::new(COMMIT_SECONDS),
            batch_jobs: Histogram::new(BATCH_JOBS),
            reconnects: Counter::default(),
        }
    }
}

impl StoreFigures {
    /// Counts a transaction of `jobs` writes that was committed after `took`.
    pub fn count_commit(&self, took: Duration, jobs: usize) {
        self.commit_seconds.observe(took.as_secs_f64());
        // Exact: a transaction has 512 jobs at most.
        self.batch_jobs
            .observe(u32::try_from(jobs).unwrap_or(u32::MAX).into());
    }
}
