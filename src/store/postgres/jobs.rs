//! Jobs: operations with the callers that wait for them.

use std::pin::Pin;

use futures_util::future::{MaybeDone, maybe_done};
use tokio::sync::oneshot;

use super::keeper::Term;
use super::sql::{Db, Perform};
use crate::store::Wakes;
use crate::store::model::StoreError;
use crate::store::operations::ExecutionLane;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What came of a job in a transaction.
pub(super) enum Outcome {
    /// It is to be committed.
    Kept,
    /// A precondition did not hold, so that it changed nothing.
    Refused,
    /// It failed, and with it the transaction.
    Failed(StoreError),
}

/// The operation of a job. It may be performed several times, until a transaction with it is committed.
trait Work: Send {
    fn perform<'a>(&'a mut self, db: Db<'a>) -> Boxed<'a, Outcome>;
    fn is_awaited(&self) -> bool;
    fn reply(self: Box<Self>, end: Result<(), StoreError>);
}

/// A job for a connection.
pub(super) struct Job {
    /// Whether it only reads.
    pub(super) reads: bool,
    /// Whether it is one statement.
    pipelined: bool,
    /// The approximate number of bytes that it writes.
    pub(super) bytes: usize,
    /// The signals for its changes.
    pub(super) wakes: Wakes,
    /// The term in which it counts; any without one.
    pub(super) term: Option<Term>,
    work: Box<dyn Work>,
}

struct Operation<O: Perform> {
    operation: O,
    result: Option<Result<O::Reply, StoreError>>,
    reply: oneshot::Sender<Result<O::Reply, StoreError>>,
}

impl<O: Perform> Work for Operation<O> {
    fn perform<'a>(&'a mut self, db: Db<'a>) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let result = self.operation.perform(&db).await;
            let outcome = match &result {
                Ok(_) => Outcome::Kept,
                Err(StoreError::Precondition { .. }) => Outcome::Refused,
                Err(error) => Outcome::Failed(error.clone()),
            };
            self.result = Some(result);
            outcome
        })
    }

    fn is_awaited(&self) -> bool {
        !self.reply.is_closed()
    }

    fn reply(self: Box<Self>, end: Result<(), StoreError>) {
        let Self { result, reply, .. } = *self;
        // The caller may have stopped waiting.
        drop(reply.send(end.and_then(|()| result.unwrap_or(Err(StoreError::Closed)))));
    }
}

impl Job {
    /// A job for an operation that counts in `term`, and where its reply comes.
    pub(super) fn new<O: Perform>(
        operation: O,
        term: Option<Term>,
    ) -> (Self, oneshot::Receiver<Result<O::Reply, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let job = Self {
            reads: O::PLACE != ExecutionLane::Write,
            pipelined: O::PIPELINED,
            bytes: operation.bytes(),
            wakes: operation.wakes(),
            term,
            work: Box::new(Operation {
                operation,
                result: None,
                reply,
            }),
        };
        (job, answer)
    }

    /// Whether its caller still waits.
    pub(super) fn is_awaited(&self) -> bool {
        self.work.is_awaited()
    }

    /// Replies to the caller: with the result of the operation, or the error with which its transaction ended.
    pub(super) fn reply(self, end: Result<(), StoreError>) {
        self.work.reply(end);
    }
}

/// Performs jobs in order, after the statements of `begin`, each of which was sent when it was polled once. Consecutive
/// jobs of one statement each are sent together, without waiting for the replies in between.
///
/// # Errors
/// That of `begin`. Statements that were sent with it ran in the transaction nevertheless, which must be rolled back.
pub(super) async fn perform_all<B>(
    begin: B,
    jobs: &mut [Job],
    db: Db<'_>,
) -> Result<Vec<Outcome>, StoreError>
where
    B: Future<Output = Result<(), StoreError>> + Send,
{
    let mut begin = std::pin::pin!(maybe_done(begin));
    send(begin.as_mut()).await;
    let mut outcomes = Vec::with_capacity(jobs.len());
    for group in jobs.chunk_by_mut(|one, next| one.pipelined && next.pipelined) {
        let mut sent = Vec::with_capacity(group.len());
        for job in group {
            let mut performed = maybe_done(job.work.perform(db));
            send(Pin::new(&mut performed)).await;
            sent.push(performed);
        }
        // Replies come in the order of the statements.
        begin.as_mut().await;
        if begin
            .as_mut()
            .output_mut()
            .is_some_and(|begun| begun.is_err())
        {
            break;
        }
        for mut performed in sent {
            Pin::new(&mut performed).await;
            if let Some(outcome) = Pin::new(&mut performed).take_output() {
                outcomes.push(outcome);
            }
        }
        if outcomes
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Failed(_)))
        {
            break;
        }
    }
    begin.as_mut().await;
    begin.take_output().unwrap_or(Ok(()))?;
    Ok(outcomes)
}

/// Polls a future once, so that it sends its statement.
async fn send<F: Future>(mut future: Pin<&mut MaybeDone<F>>) {
    std::future::poll_fn(|context| {
        let _is_done = future.as_mut().poll(context).is_ready();
        std::task::Poll::Ready(())
    })
    .await;
}
