//! The writer: one connection, and many small writes in one transaction.
//!
//! A transaction begins with its limits and the fence: the row of the lease is locked in the term of the jobs, so that
//! no other daemon takes the lease before the transaction ends. All that and the statements of the jobs is sent at once;
//! the commit is sent when every reply was good. So it is known for each transaction whether it counts, unless the
//! connection is lost after the commit was sent.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{CommitError, Line, READ_ON_PRIMARY};
use super::errors::is_conflict;
use super::jobs::{Job, Outcome, perform_all};
use super::keeper::{FENCE, Term};
use super::sql::{Db, parameters};
use super::totals::worst_verdict;
use crate::domain::Verdict;
use crate::store::Wakes;
use crate::store::model::StoreError;
use crate::store::signals::CommitSignals;
use crate::text::error_chain;

/// The largest number of jobs in one transaction.
pub(super) const MAX_BATCH: usize = 512;

/// The largest number of bytes of run data in one transaction, unless a single job has more.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// How a transaction ended.
enum End {
    /// It is committed.
    Committed,
    /// It is undone, for this reason.
    Undone(StoreError),
    /// It is undone, because one job failed; others may succeed without it.
    Failed(StoreError),
    /// It is unknown whether it is committed, for this reason.
    Unknown(String),
}

/// The owner of the connection that writes.
pub(super) struct PostgresWriter {
    pub(super) line: Line,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) signals: CommitSignals,
}

impl PostgresWriter {
    /// Writes until every [`Store`](crate::store::Store) is gone.
    pub(super) async fn run(mut self) {
        let mut queue = VecDeque::new();
        let mut read_verdicts = false;
        while self.receive(&mut queue).await {
            let batch = next_batch(&mut queue);
            if let Err(error) = self.line.client().await {
                refuse(batch, &error);
                refuse(queue.drain(..), &error);
                continue;
            }
            if !read_verdicts {
                read_verdicts = self.read_verdicts().await;
            }
            let (reads, writes): (Vec<_>, Vec<_>) = batch.into_iter().partition(|job| job.reads);
            self.write(writes).await;
            let reads = reads.into_iter().filter(Job::is_awaited).collect();
            read(&mut self.line, reads).await;
        }
    }

    /// Waits for jobs, and connects meanwhile. Returns `false` once every [`Store`](crate::store::Store) is gone.
    async fn receive(&mut self, queue: &mut VecDeque<Job>) -> bool {
        if !queue.is_empty() {
            return true;
        }
        let mut received = Vec::new();
        loop {
            let connect_at = self.line.connect_at();
            tokio::select! {
                count = self.jobs.recv_many(&mut received, MAX_BATCH) => {
                    queue.extend(received);
                    return count > 0;
                }
                () = sleep_until(connect_at.unwrap_or_else(Instant::now)), if connect_at.is_some() => {
                    // A failure was logged, and is the reply to the jobs that come.
                    drop(self.line.client().await);
                }
            }
        }
    }

    /// Reads the worst verdict that is stored. Returns whether it is known now.
    async fn read_verdicts(&mut self) -> bool {
        let limit = self.line.connector().limit;
        let Ok(db) = self.line.db(false).await else {
            return false;
        };
        match timeout(limit, worst_verdict(&db)).await {
            Ok(Ok(verdict)) => {
                self.signals.send(Wakes {
                    verdict,
                    ..Wakes::default()
                });
                true
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Runs writes of one term as one transaction, or each in its own where one of them fails.
    async fn write(&mut self, mut jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let end = self.transact_measured(&mut jobs).await;
        match end {
            End::Failed(_) if jobs.len() > 1 => {
                for job in jobs {
                    let mut alone = vec![job];
                    let end = self.transact_measured(&mut alone).await;
                    self.finish(alone, end);
                }
            }
            end => self.finish(jobs, end),
        }
    }

    /// Replies to the callers of a transaction, and signals what it changed.
    fn finish(&self, jobs: Vec<Job>, end: End) {
        let end = match end {
            End::Committed => Ok(()),
            End::Unknown(_) => Err(StoreError::Unknown),
            End::Undone(error) => Err(error),
            End::Failed(error) if is_conflict(&error) => Err(StoreError::OutOfReach {
                why: error_chain(&error),
            }),
            End::Failed(error) => {
                let shown = error_chain(&error);
                tracing::error!(error = shown, "PostgreSQL rejected a write");
                Err(error)
            }
        };
        if matches!(end, Err(StoreError::Unknown)) {
            self.signals.count_unknown_commit();
        }
        let may_be_kept = matches!(end, Ok(()) | Err(StoreError::Unknown));
        let wakes = jobs.iter().map(|job| job.wakes).collect::<Vec<_>>();
        for job in jobs {
            job.reply(end.clone());
        }
        if may_be_kept {
            self.signals.send(Wakes {
                history: wakes.iter().any(|wakes| wakes.history),
                deliveries: wakes.iter().any(|wakes| wakes.deliveries),
                verdict: Verdict::worst(wakes.iter().filter_map(|wakes| wakes.verdict)),
            });
        }
    }

    /// Runs jobs of one term as one transaction, and measures it where it is committed.
    async fn transact_measured(&mut self, jobs: &mut [Job]) -> End {
        let began = Instant::now();
        let end = self.transact(jobs).await;
        if matches!(end, End::Committed) {
            let figures = &self.signals.figures;
            figures.count_commit(began.elapsed(), jobs.len());
        }
        end
    }

    /// Runs jobs of one term as one transaction.
    async fn transact(&mut self, jobs: &mut [Job]) -> End {
        let term = jobs.first().and_then(|job| job.term.clone());
        let connector = self.line.connector().clone();
        let db = match self.line.db(term.is_none()).await {
            Ok(db) => db,
            Err(error) => return End::Undone(error),
        };
        let begin = connector.begin("READ COMMITTED READ WRITE");
        let began = begin_in(db, &begin, term.as_ref());
        let performed = timeout(connector.limit * 2, perform_all(began, jobs, db)).await;
        let failure = match performed {
            Ok(Ok(outcomes)) => outcomes.into_iter().find_map(|outcome| match outcome {
                Outcome::Failed(error) => Some(error),
                Outcome::Kept | Outcome::Refused => None,
            }),
            Ok(Err(error)) => Some(error),
            Err(_elapsed) => Some(StoreError::OutOfReach {
                why: "the server did not answer in time".to_owned(),
            }),
        };
        let end = match failure {
            None => commit(db, connector.limit).await,
            Some(
                error @ (StoreError::OutOfReach { .. }
                | StoreError::Unusable(_)
                | StoreError::OldTables { .. }),
            ) => End::Undone(error),
            Some(error) => match timeout(connector.limit, db.batch("ROLLBACK")).await {
                Ok(Ok(())) if matches!(error, StoreError::Superseded) => return End::Undone(error),
                Ok(Ok(())) => return End::Failed(error),
                _ => End::Undone(StoreError::OutOfReach {
                    why: error_chain(&error),
                }),
            },
        };
        match &end {
            End::Committed | End::Failed(_) => {}
            End::Undone(error) => self.line.close(error),
            End::Unknown(why) => {
                tracing::error!(why, "the outcome of a commit is not known");
                self.line
                    .close(&StoreError::OutOfReach { why: why.clone() });
            }
        }
        end
    }
}

/// Begins a transaction in a term.
async fn begin_in(db: Db<'_>, begin: &str, term: Option<&Term>) -> Result<(), StoreError> {
    let Some(term) = term else {
        return db.batch(begin).await;
    };
    let (epoch, holder) = (term.epoch, term.holder.as_str());
    let parameters = parameters![epoch, holder];
    // The first poll sends both.
    let (began, fenced) =
        futures_util::future::join(db.batch(begin), db.row(FENCE, parameters)).await;
    began?;
    match fenced? {
        Some(_) => Ok(()),
        None => Err(StoreError::Superseded),
    }
}

/// Commits the transaction that is under way, in which all statements were good.
async fn commit(db: Db<'_>, limit: std::time::Duration) -> End {
    crate::failpoint::point("before-postgres-commit");
    match timeout(limit, db.commit()).await {
        Ok(Ok(())) => End::Committed,
        Ok(Err(CommitError::Undone(error))) => match StoreError::from(error) {
            error @ StoreError::OutOfReach { .. } => End::Undone(error),
            error => End::Failed(error),
        },
        Ok(Err(CommitError::Unknown(why))) => End::Unknown(why),
        Err(_elapsed) => End::Unknown("the server did not answer in time".to_owned()),
    }
}

/// Runs reads in one transaction, which sees one state of the store. A connection that is lost is made again once.
pub(super) async fn read(line: &mut Line, mut jobs: Vec<Job>) {
    if jobs.is_empty() {
        return;
    }
    let mut end = try_read(line, &mut jobs).await;
    if matches!(end, Err(StoreError::OutOfReach { .. })) {
        end = try_read(line, &mut jobs).await;
    }
    for job in jobs {
        job.reply(end.clone());
    }
}

async fn try_read(line: &mut Line, jobs: &mut [Job]) -> Result<(), StoreError> {
    let connector = line.connector().clone();
    let begin = connector.begin(READ_ON_PRIMARY);
    let db = line.db(false).await?;
    let reading = async {
        let outcomes = perform_all(db.batch(&begin), jobs, db).await?;
        let failure = outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Failed(error) => Some(error),
            Outcome::Kept | Outcome::Refused => None,
        });
        db.batch("ROLLBACK").await?;
        failure.map_or(Ok(()), Err)
    };
    let end = timeout(connector.limit * 2, reading)
        .await
        .unwrap_or_else(|_elapsed| {
            Err(StoreError::OutOfReach {
                why: "the server did not answer in time".to_owned(),
            })
        });
    if let Err(error @ StoreError::OutOfReach { .. }) = &end {
        line.close(error);
    }
    end
}

/// Takes the jobs of the next transaction from the queue: their writes are of one term.
fn next_batch(queue: &mut VecDeque<Job>) -> Vec<Job> {
    let mut batch: Vec<Job> = Vec::new();
    let mut bytes = 0_usize;
    let mut term: Option<Option<Term>> = None;
    while let Some(job) = queue.pop_front_if(|job: &mut Job| {
        bytes = bytes.saturating_add(job.bytes);
        let fits = batch.is_empty() || bytes <= MAX_BATCH_BYTES;
        fits && (job.reads || term.as_ref().is_none_or(|term| *term == job.term))
    }) {
        if !job.reads {
            term = Some(job.term.clone());
        }
        batch.push(job);
    }
    batch
}

/// Replies to jobs that were not run.
fn refuse(jobs: impl IntoIterator<Item = Job>, error: &StoreError) {
    for job in jobs {
        job.reply(Err(error.clone()));
    }
}
