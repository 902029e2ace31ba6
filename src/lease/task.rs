//! The task that takes, renews and releases the lease.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

use super::{GateControl, LOOK_PERIOD, Leader, LeaseView, PARTS};
use crate::clock::Clock;
use crate::failpoint::mutant;
use crate::reminder::Reminder;
use crate::store::{Candidate, HolderId, Keeper, LeaseRow, Renewal, StoreError, Term};
use crate::text::{error_chain, humanize};

/// How far the clock of this machine may be from that of the store without a warning: receivers refuse signatures whose
/// time is minutes away.
const CLOCK_WARNING: SignedDuration = SignedDuration::from_secs(2);

/// How long a daemon that was requested to release the lease leaves it to others.
const YIELDED: Duration = Duration::from_secs(10);

/// Commands that wait.
const COMMANDS: usize = 4;

/// The row of the lease. Each call is one transaction, and ends within some seconds.
pub trait LeaseTable: Send + 'static {
    /// Reads the row, and the time of the store.
    fn look(&mut self) -> impl Future<Output = Result<LeaseRow, StoreError>> + Send;

    /// Takes the lease if its row is still `seen`. `None` when it is not.
    fn take(
        &mut self,
        seen: &LeaseRow,
        candidate: &Candidate,
    ) -> impl Future<Output = Result<Option<Term>, StoreError>> + Send;

    /// Renews the lease, and publishes `state` beside it.
    fn renew(
        &mut self,
        term: &Term,
        state: &str,
    ) -> impl Future<Output = Result<Renewal, StoreError>> + Send;

    /// Releases the lease, so that another daemon takes it at once. Returns whether the term went on until then.
    fn release(&mut self, term: &Term) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Requests the leader of a term to release the lease. Returns whether the term goes on.
    fn ask_release(&mut self, epoch: i64) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// Reaches the task.
#[derive(Debug, Clone)]
pub struct LeaseHandle {
    /// Who leads.
    pub view: watch::Receiver<LeaseView>,
    commands: mpsc::Sender<LeaseCommand>,
}

#[derive(Debug)]
enum LeaseCommand {
    /// Releases the lease, and takes no other.
    End(oneshot::Sender<()>),
    /// Takes the lease anew: another term, in which everything is read from the store.
    Retake,
    /// Releases the lease, and takes it again only when no other daemon does.
    Yield(oneshot::Sender<()>),
    /// Requests the leader to release the lease.
    RequestRelease(oneshot::Sender<Result<(), StoreError>>),
}

impl LeaseHandle {
    /// Releases the lease, if this daemon has it, and ends the task. Nothing of the engine may be left. Where the store
    /// does not answer, the lease ends by itself.
    pub async fn end(&self) {
        let (reply, ended) = oneshot::channel();
        if self.commands.send(LeaseCommand::End(reply)).await.is_ok() {
            // An error shows that the task has ended.
            let _ended = ended.await;
        }
    }

    /// Releases the lease, and takes it again only when no other daemon does for a while. Nothing of the engine may be
    /// left.
    pub async fn yield_lease(&self) {
        let (reply, ended) = oneshot::channel();
        if self.commands.send(LeaseCommand::Yield(reply)).await.is_ok() {
            // An error shows that the task has ended.
            let _ended = ended.await;
        }
    }

    /// Requests the leader, whichever daemon it is, to let another one lead.
    ///
    /// # Errors
    /// When the store is out of reach, or this daemon stops.
    pub async fn request_release(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let request = LeaseCommand::RequestRelease(reply);
        let sent = self.commands.send(request).await;
        sent.map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)?
    }

    /// Begins another term, if this daemon leads: it does not know what the store holds.
    pub async fn retake(&self) {
        // An error shows that the task has ended.
        let _closed = self.commands.send(LeaseCommand::Retake).await;
    }
}

/// The owner of the lease of this process.
pub struct LeaseTask<T> {
    table: T,
    clock: Clock,
    candidate: Candidate,
    gate: GateControl,
    /// A process that is known to have ended.
    ended: Option<HolderId>,
    /// What is published with each renewal.
    state: watch::Receiver<String>,
    view: watch::Sender<LeaseView>,
    commands: mpsc::Receiver<LeaseCommand>,
    /// The row as it has been seen without a change, and since when.
    seen: Option<(LeaseRow, Duration)>,
    /// When the lease was last renewed, as [`Clock::passed`] counts.
    renewed_at: Duration,
    /// The term whose lease was released on request, and until when others may take it first.
    yielded: Option<(i64, Duration)>,
    outage_lines: Reminder,
    is_unreachable: bool,
    clock_warned: bool,
    is_suspended: bool,
}

impl<T: LeaseTable> LeaseTask<T> {
    /// Returns a task that stands by, and its handle. `ended` is a process that is known to have ended; `state` is
    /// published while this daemon leads.
    pub fn new(
        table: T,
        clock: Clock,
        candidate: Candidate,
        gate: GateControl,
        ended: Option<HolderId>,
        state: watch::Receiver<String>,
    ) -> (Self, LeaseHandle) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (view, view_receiver) = watch::channel(LeaseView::default());
        let task = Self {
            table,
            clock,
            candidate,
            gate,
            ended,
            state,
            view,
            commands: receiver,
            seen: None,
            renewed_at: Duration::ZERO,
            yielded: None,
            outage_lines: Reminder::default(),
            is_unreachable: false,
            clock_warned: false,
            is_suspended: false,
        };
        let handle = LeaseHandle {
            view: view_receiver,
            commands,
        };
        (task, handle)
    }

    /// Runs until [`LeaseHandle::end`] or until no handle is left.
    pub async fn run(mut self) {
        loop {
            let term = self.view.borrow().term.clone();
            match &term {
                Some(term) => self.renew(term).await,
                None => self.stand_by().await,
            }
            let period = if self.view.borrow().term.is_some() {
                self.renewal_period()
            } else {
                LOOK_PERIOD.min(self.candidate.ttl / PARTS)
            };
            // Both arms are cancel-safe.
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(LeaseCommand::Retake) => self.retake().await,
                    Some(LeaseCommand::Yield(reply)) => {
                        let epoch = self.view.borrow().term.as_ref().map(|term| term.epoch);
                        self.release().await;
                        self.yielded = epoch.map(|epoch| (epoch, self.clock.passed() + YIELDED));
                        let _left = reply.send(());
                    }
                    Some(LeaseCommand::RequestRelease(reply)) => {
                        let _left = reply.send(self.request_release().await);
                    }
                    Some(LeaseCommand::End(reply)) => {
                        self.release().await;
                        let _left = reply.send(());
                        return;
                    }
                    None => return,
                },
                () = tokio::time::sleep(period) => {}
            }
        }
    }

    /// How long until the lease is renewed again: sooner while the store does not answer.
    fn renewal_period(&self) -> Duration {
        let period = self.candidate.ttl / PARTS;
        if self.is_unreachable {
            period / 3
        } else {
            period
        }
    }

    /// Looks at the lease, and takes it where that is allowed.
    async fn stand_by(&mut self) {
        let looked_at = self.clock.passed();
        let row = match self.table.look().await {
            Ok(row) => row,
            Err(error) => {
                // What happened meanwhile is not known: the silence of the leader counts from the next look on.
                self.seen = None;
                return self.unreachable(&error);
            }
        };
        self.reachable(row.now, looked_at);
        let leader = row.holder.as_ref().map(|holder| Leader {
            id: holder.as_str().to_owned(),
            name: row.holder_name.clone(),
            version: row.version.clone(),
            term: row.epoch,
        });
        let is_new = self.view.borrow().leader != leader;
        self.view.send_modify(|view| {
            view.leader.clone_from(&leader);
            view.published.clone_from(&row.state);
            view.problem = None;
        });
        let (may_take, silent) = self.may_take(&row, looked_at);
        if !may_take {
            if is_new && let Some(leader) = leader {
                tracing::info!(
                    leader = leader.name,
                    version = leader.version,
                    term = leader.term,
                    "standing by"
                );
            }
            return;
        }
        let sent_at = self.clock.passed();
        match self.table.take(&row, &self.candidate).await {
            Ok(Some(term)) => self.taken(term, sent_at, leader, silent),
            // Another one was faster.
            Ok(None) => self.seen = None,
            Err(error) => {
                self.seen = None;
                self.unreachable(&error);
            }
        }
    }

    /// Whether the lease may be taken, and for how long its holder was silent.
    pub(super) fn may_take(&mut self, row: &LeaseRow, looked_at: Duration) -> (bool, Duration) {
        // Where the database lost terms, another holder may have the same numbers, and a holder whose renewals are lost
        // may have renewed until a standby was promoted.
        let same = |seen: &LeaseRow| {
            (seen.epoch, seen.renewals, &seen.holder, &seen.timeline)
                == (row.epoch, row.renewals, &row.holder, &row.timeline)
        };
        let since = match &self.seen {
            Some((seen, since)) if same(seen) => *since,
            _ => {
                // A renewal that came after the answer was sent is seen by the next look.
                let now = self.clock.passed();
                self.seen = Some((row.clone(), now));
                now
            }
        };
        let silent = match &self.seen {
            Some((seen, _)) if mutant("wall-clock-lease") => {
                row.now.duration_since(seen.now).unsigned_abs()
            }
            _ => looked_at.saturating_sub(since),
        };
        let yields = |(epoch, until): (i64, Duration)| epoch == row.epoch && looked_at < until;
        if self.yielded.is_some_and(yields) {
            return (false, silent);
        }
        let Some(holder) = &row.holder else {
            return (true, silent);
        };
        let has_ended = self.ended.as_ref() == Some(holder);
        let limit = if mutant("ttl-of-the-observer") {
            self.candidate.ttl
        } else {
            row.ttl
        };
        // Where a standby was promoted, it may lack that another daemon took the lease after this holder.
        let is_current = !row.is_promoted || mutant("promotion-unseen");
        let is_free = (row.released || has_ended) && is_current;
        (is_free || silent >= limit, silent)
    }

    fn taken(&mut self, term: Term, sent_at: Duration, before: Option<Leader>, silent: Duration) {
        self.seen = None;
        self.ended = None;
        self.yielded = None;
        self.is_suspended = false;
        let from = before.filter(|before| before.term > 0);
        tracing::info!(
            term = term.epoch,
            from = from.map(|before| before.name),
            silent = (!silent.is_zero()).then(|| humanize(silent)),
            "leading"
        );
        self.confirm(sent_at);
        let leader = Leader {
            id: term.holder.as_str().to_owned(),
            name: self.candidate.name.clone(),
            version: self.candidate.version.clone(),
            term: term.epoch,
        };
        self.view.send_modify(|view| {
            view.term = Some(term);
            view.leader = Some(leader);
            view.problem = None;
        });
    }

    /// Opens the gate for two thirds of the lease, from when the request was sent: others count from when it arrived.
    fn confirm(&mut self, sent_at: Duration) {
        self.renewed_at = sent_at;
        let until = sent_at + self.candidate.ttl * 2 / 3;
        self.gate.open_until(until);
        self.view.send_if_modified(|view| {
            view.confirmed_until = until;
            false
        });
    }

    async fn renew(&mut self, term: &Term) {
        let sent_at = self.clock.passed();
        let state = self.state.borrow_and_update().clone();
        match self.table.renew(term, &state).await {
            Ok(Renewal::Confirmed {
                release_requested,
                now,
            }) => {
                let counted_from = if mutant("trust-from-answer") {
                    self.clock.passed()
                } else {
                    sent_at
                };
                self.confirm(counted_from);
                self.reachable(now, sent_at);
                if std::mem::take(&mut self.is_suspended) {
                    tracing::info!(
                        term = term.epoch,
                        "the lease is confirmed again; polling goes on"
                    );
                }
                if release_requested && !self.view.borrow().is_release_requested {
                    tracing::info!(term = term.epoch, "another daemon is to lead, as requested");
                    self.view
                        .send_modify(|view| view.is_release_requested = true);
                }
            }
            Ok(Renewal::Superseded) => {
                tracing::warn!(
                    term = term.epoch,
                    "this term has ended, as another daemon leads or a standby of the database was promoted; what was \
                     under way here is dropped"
                );
                self.retake().await;
            }
            Err(error) => {
                if mutant("belief-on-error") {
                    self.confirm(sent_at);
                }
                self.unreachable(&error);
                let unconfirmed = self.clock.passed().saturating_sub(self.renewed_at);
                if unconfirmed >= self.candidate.ttl * 2 / 3 && !self.is_suspended {
                    self.is_suspended = true;
                    tracing::warn!(
                        term = term.epoch,
                        unconfirmed = humanize(unconfirmed),
                        "the store has not confirmed the lease: no polls and no deliveries until it does"
                    );
                }
            }
        }
    }

    /// Ends the term of this daemon here; the engine ends with it.
    fn step_down(&mut self) {
        self.gate.close();
        self.seen = None;
        self.view.send_modify(|view| {
            view.term = None;
            view.is_release_requested = false;
        });
    }

    async fn release(&mut self) {
        let term = self.view.borrow().term.clone();
        if let Some(term) = term {
            self.gate.close();
            if let Err(error) = self.table.release(&term).await {
                tracing::warn!(
                    error = error_chain(&error),
                    lease = humanize(self.candidate.ttl),
                    "the lease cannot be released; it ends by itself"
                );
            }
            self.step_down();
        }
    }

    /// Requests the leader to release the lease.
    async fn request_release(&mut self) -> Result<(), StoreError> {
        let epoch = self.table.look().await?.epoch;
        self.table.ask_release(epoch).await.map(drop)
    }

    /// Takes the own lease anew.
    async fn retake(&mut self) {
        let Some(term) = self.view.borrow().term.clone() else {
            return;
        };
        self.step_down();
        let looked = self.table.look().await;
        // Where a standby was promoted while the lease lasted, no other daemon can have led.
        let lasts = self.clock.passed().saturating_sub(self.renewed_at) < self.candidate.ttl;
        let is_own = |row: &LeaseRow| {
            row.holder.as_ref() == Some(&term.holder)
                && row.epoch == term.epoch
                && (lasts || !row.is_promoted)
        };
        let row = match looked {
            Ok(row) if is_own(&row) => row,
            Ok(_) => return,
            Err(error) => {
                // The own lease is taken like one that another holds, or at once when the store answers.
                self.ended = Some(term.holder);
                return self.unreachable(&error);
            }
        };
        let sent_at = self.clock.passed();
        match self.table.take(&row, &self.candidate).await {
            Ok(Some(term)) => self.taken(term, sent_at, None, Duration::ZERO),
            Ok(None) => {}
            Err(error) => {
                self.ended = Some(term.holder);
                self.unreachable(&error);
            }
        }
    }

    fn unreachable(&mut self, error: &StoreError) {
        let problem = error_chain(error);
        self.is_unreachable = true;
        if self.outage_lines.is_due(tokio::time::Instant::now()) {
            match error {
                StoreError::Unusable(_) | StoreError::OldTables { .. } => tracing::error!(
                    error = problem,
                    "the store cannot be used, and nothing is polled until that is corrected; `runwatch store check` \
                     says what is missing"
                ),
                _ => tracing::error!(
                    error = problem,
                    "the store is out of reach: watches are safe, and requests to add some get status 503; \
                     `runwatch store check` looks for the cause"
                ),
            }
        }
        self.view.send_if_modified(|view| {
            let is_new = view.problem.as_ref() != Some(&problem);
            view.problem = Some(problem);
            is_new
        });
    }

    fn reachable(&mut self, now: Timestamp, looked_at: Duration) {
        if std::mem::take(&mut self.is_unreachable) {
            self.outage_lines = Reminder::default();
            tracing::info!("the store answers again");
            self.view.send_modify(|view| view.problem = None);
        }
        let ahead = self.clock.follow(now, looked_at);
        self.view.send_if_modified(|view| {
            view.clock_ahead = ahead;
            false
        });
        if ahead.abs() <= CLOCK_WARNING {
            self.clock_warned = false;
        } else if !std::mem::replace(&mut self.clock_warned, true) {
            tracing::warn!(
                ahead_s = ahead.as_secs_f64(),
                "the clock of this machine differs from the one of the store, which counts; is it synchronized?"
            );
        }
    }
}

impl LeaseTable for Keeper {
    async fn look(&mut self) -> Result<LeaseRow, StoreError> {
        Self::look(self).await
    }

    async fn take(
        &mut self,
        seen: &LeaseRow,
        candidate: &Candidate,
    ) -> Result<Option<Term>, StoreError> {
        Self::take(self, seen, candidate).await
    }

    async fn renew(&mut self, term: &Term, state: &str) -> Result<Renewal, StoreError> {
        Self::renew(self, term, state).await
    }

    async fn release(&mut self, term: &Term) -> Result<bool, StoreError> {
        Self::release(self, term).await
    }

    async fn ask_release(&mut self, epoch: i64) -> Result<bool, StoreError> {
        Self::ask_release(self, epoch).await
    }
}
