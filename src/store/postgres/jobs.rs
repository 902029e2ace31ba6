//! Jobs: operations with the callers that wait for them.

use std::collections::HashSet;
use std::mem::discriminant;
use std::pin::Pin;

use futures_util::future::{BoxFuture, MaybeDone, maybe_done};
use tokio::sync::oneshot;

use super::keeper::Term;
use super::sql::{Combinable, CombinedReply, Db, Perform};
use super::watches::add_all;
use super::{deliveries, steps};
use crate::domain::{DeliveryId, RunRef};
use crate::store::Wakes;
use crate::store::model::{StoreError, WatchId};
use crate::store::operations::ExecutionLane;

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
    fn perform<'a>(&'a mut self, db: Db<'a>) -> BoxFuture<'a, Outcome>;
    /// What it is, where one statement may do it together with others.
    fn combinable(&self) -> Option<Combinable<'_>>;
    /// Notes the reply to it, where it was done together with others.
    fn note(&mut self, reply: CombinedReply) -> Outcome;
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

impl<O: Perform> Operation<O> {
    /// Keeps the result for the caller. Returns what came of it in the transaction.
    fn keep(&mut self, result: Result<O::Reply, StoreError>) -> Outcome {
        let outcome = match &result {
            Ok(_) => Outcome::Kept,
            Err(StoreError::Precondition { .. }) => Outcome::Refused,
            Err(error) => Outcome::Failed(error.clone()),
        };
        self.result = Some(result);
        outcome
    }
}

impl<O: Perform> Work for Operation<O> {
    fn perform<'a>(&'a mut self, db: Db<'a>) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let result = self.operation.perform(&db).await;
            self.keep(result)
        })
    }

    fn combinable(&self) -> Option<Combinable<'_>> {
        self.operation.combinable()
    }

    fn note(&mut self, reply: CombinedReply) -> Outcome {
        self.keep(O::read_reply(reply).unwrap_or(Err(StoreError::Closed)))
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
/// jobs of one statement each are sent together, without waiting for the replies in between; consecutive additions, steps and
/// attempts are one statement.
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
    for mut group in jobs.chunk_by_mut(|one, next| one.pipelined && next.pipelined) {
        let mut sent = Vec::new();
        while !group.is_empty() {
            let count = count_together(group);
            let (together, rest) = group.split_at_mut(count);
            group = rest;
            let mut performed = maybe_done(perform_together(together, db));
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
            outcomes.extend(Pin::new(&mut performed).take_output().into_iter().flatten());
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

/// What an operation is about. A second one about the same must see the first.
#[derive(PartialEq, Eq, Hash)]
enum Subject<'a> {
    Run(&'a RunRef),
    Watch(WatchId),
    Delivery(&'a DeliveryId),
}

impl<'a> Subject<'a> {
    fn of(combinable: &Combinable<'a>) -> Self {
        match combinable {
            Combinable::Addition(addition) => Self::Run(&addition.watch.run_id),
            Combinable::Step(step) => Self::Watch(step.watch),
            Combinable::Attempt(attempt) => Self::Delivery(&attempt.id),
        }
    }
}

/// The number of jobs at the beginning that are performed together: those of one kind about different subjects, or one job.
fn count_together(jobs: &[Job]) -> usize {
    let mut subjects = HashSet::new();
    let mut kind = None;
    let combinable = jobs.iter().map_while(|job| job.work.combinable());
    let together = combinable.take_while(|combinable| {
        let this = discriminant(combinable);
        *kind.get_or_insert(this) == this && subjects.insert(Subject::of(combinable))
    });
    together.count().max(1)
}

/// Performs a job, or several of one kind about different subjects in one statement.
fn perform_together<'a>(jobs: &'a mut [Job], db: Db<'a>) -> BoxFuture<'a, Vec<Outcome>> {
    Box::pin(async move {
        if let [job] = jobs {
            return vec![job.work.perform(db).await];
        }
        let combinable = jobs
            .iter()
            .filter_map(|job| job.work.combinable())
            .collect();
        let replies = match perform_combined(combinable, db).await {
            Ok(replies) => replies,
            Err(error) => return vec![Outcome::Failed(error)],
        };
        let mut outcomes = Vec::with_capacity(jobs.len());
        for (job, reply) in jobs.iter_mut().zip(replies) {
            outcomes.push(match reply {
                Some(reply) => job.work.note(reply),
                // Another transaction prevented it. A statement that follows sees what that one did.
                None => job.work.perform(db).await,
            });
        }
        outcomes
    })
}

/// Performs several operations of one kind in one statement. Returns the reply to each; `None` where another transaction
/// prevented it.
///
/// # Errors
/// When the statement fails. It has done nothing.
async fn perform_combined(
    all: Vec<Combinable<'_>>,
    db: Db<'_>,
) -> Result<Vec<Option<CombinedReply>>, StoreError> {
    let (mut additions, mut steps, mut attempts) = (Vec::new(), Vec::new(), Vec::new());
    for combinable in all {
        match combinable {
            Combinable::Addition(addition) => additions.push(addition),
            Combinable::Step(step) => steps.push(step),
            Combinable::Attempt(attempt) => attempts.push(attempt),
        }
    }
    if !additions.is_empty() {
        let replies = add_all(&db, &additions).await?;
        let added = |reply: Option<_>| reply.map(CombinedReply::Added);
        return Ok(replies.into_iter().map(added).collect());
    }
    let replies = match steps.is_empty() {
        false => steps::record_all(&db, &steps).await?,
        true => deliveries::record_all(&db, &attempts).await?,
    };
    let done = |reply| Some(CombinedReply::Done(reply));
    Ok(replies.into_iter().map(done).collect())
}

/// Polls a future once, so that it sends its statement.
async fn send<F: Future>(mut future: Pin<&mut MaybeDone<F>>) {
    std::future::poll_fn(|context| {
        let _is_done = future.as_mut().poll(context).is_ready();
        std::task::Poll::Ready(())
    })
    .await;
}
