//! Several daemons and one row, in simulated time: they stop, die, freeze, sleep and lose their connections.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::ready;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use super::*;
use crate::clock::{Clock, Jump};
use crate::store::{Candidate, HolderId, LeaseRow, Renewal, StoreError};

const LEASE: Duration = Duration::from_secs(15);

/// The row, which is changed at one moment of each call: between the question and its answer.
#[derive(Debug)]
struct Row {
    row: LeaseRow,
    terms: BTreeSet<i64>,
}

/// The way of one daemon to the row.
struct TestTable {
    row: Arc<Mutex<Row>>,
    random: fastrand::Rng,
    link: Arc<DaemonLink>,
}

/// What happens to the calls of one daemon.
#[derive(Debug, Default)]
struct DaemonLink {
    /// No call arrives.
    is_cut: AtomicBool,
    /// Calls arrive and their answers do not.
    loses_answers: AtomicBool,
    /// Calls take up to 24 s.
    is_slow: AtomicBool,
    /// Until when the process does nothing, as where its machine sleeps; its clock goes on.
    frozen_until: Mutex<Option<Instant>>,
}

fn set(flag: &AtomicBool, value: bool) {
    flag.store(value, Ordering::SeqCst);
}

fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

impl TestTable {
    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap()
    }

    /// One call: on its way there, `change`, and on its way back.
    async fn call<T>(&mut self, change: impl FnOnce(&mut Row) -> T) -> Result<T, StoreError> {
        let lost = || StoreError::OutOfReach {
            why: "connection reset".to_owned(),
        };
        self.travel().await;
        if is_set(&self.link.is_cut) {
            tokio::time::sleep(Duration::from_secs(2)).await;
            return Err(lost());
        }
        let answer = change(&mut self.row());
        self.travel().await;
        if is_set(&self.link.is_cut) || is_set(&self.link.loses_answers) {
            return Err(lost());
        }
        Ok(answer)
    }

    async fn travel(&mut self) {
        let most = if is_set(&self.link.is_slow) {
            12_000
        } else {
            20
        };
        tokio::time::sleep(Duration::from_millis(self.random.u64(0..=most))).await;
    }
}

impl LeaseTable for TestTable {
    async fn look(&mut self) -> Result<LeaseRow, StoreError> {
        self.call(|row| row.row.clone()).await
    }

    async fn take(
        &mut self,
        seen: &LeaseRow,
        candidate: &Candidate,
    ) -> Result<Option<Term>, StoreError> {
        self.call(|table| {
            let term = table.row.take(seen, candidate)?;
            assert!(table.terms.insert(term.epoch), "a term is given once");
            Some(term)
        })
        .await
    }

    async fn renew(&mut self, term: &Term, state: &str) -> Result<Renewal, StoreError> {
        self.call(|table| table.row.renew(term, state)).await
    }

    async fn release(&mut self, term: &Term) -> Result<bool, StoreError> {
        self.call(|table| table.row.release(term)).await
    }

    async fn ask_release(&mut self, epoch: i64) -> Result<bool, StoreError> {
        self.call(|table| table.row.request_release(epoch)).await
    }
}

/// One process.
struct Life {
    link: Arc<DaemonLink>,
    clock: Clock,
    gate: Gate,
    lease: LeaseHandle,
    holder: HolderId,
    tasks: JoinSet<()>,
}

struct Daemons {
    row: Arc<Mutex<Row>>,
    /// The row on a standby that receives no more writes.
    standby: Option<LeaseRow>,
    promoted: u32,
    lives: Vec<Life>,
    random: fastrand::Rng,
    seed: u64,
}

impl Daemons {
    fn new(seed: u64) -> Self {
        let row = Row {
            row: LeaseRow::new(LEASE, false),
            terms: BTreeSet::new(),
        };
        Self {
            row: Arc::new(Mutex::new(row)),
            standby: None,
            promoted: 0,
            lives: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            seed,
        }
    }

    /// Starts a process; `ended` is one that it knows to have ended.
    fn start(&mut self, ended: Option<HolderId>) {
        let clock = Clock::simulated(Timestamp::UNIX_EPOCH);
        let (control, gate) = Gate::closed(clock.clone());
        let (link, holder) = (Arc::new(DaemonLink::default()), HolderId::random());
        let table = TestTable {
            row: Arc::clone(&self.row),
            random: self.random.fork(),
            link: Arc::clone(&link),
        };
        let candidate = Candidate {
            holder: holder.clone(),
            name: format!("daemon-{}", self.random.u16(..)),
            version: "0".to_owned(),
            ttl: LEASE,
        };
        let state = watch::channel(String::new()).1;
        let (task, lease) = LeaseTask::new(table, clock.clone(), candidate, control, ended, state);
        let frozen = Arc::clone(&link);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut running = std::pin::pin!(task.run());
            let mut thaw: Option<Pin<Box<Sleep>>> = None;
            std::future::poll_fn(|context| {
                let until = frozen.frozen_until.lock().unwrap().take();
                if let Some(until) = until {
                    thaw = Some(Box::pin(tokio::time::sleep_until(until)));
                }
                // Whatever comes is handled when it goes on.
                if let Some(frozen) = &mut thaw {
                    ready!(frozen.as_mut().poll(context));
                    thaw = None;
                }
                running.as_mut().poll(context)
            })
            .await;
        });
        self.lives.push(Life {
            link,
            clock,
            gate,
            lease,
            holder,
            tasks,
        });
    }

    fn leaders(&self) -> usize {
        self.lives.iter().filter(|life| life.gate.is_open()).count()
    }

    /// Lets time pass, and checks that no two gates are ever open.
    async fn pass(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(40)).await;
            let terms: Vec<_> = self
                .lives
                .iter()
                .map(|life| life.lease.view.borrow().term.clone())
                .collect();
            assert!(
                self.leaders() <= 1,
                "seed {}: two daemons lead at once: {terms:?}",
                self.seed
            );
        }
    }

    /// Waits until a daemon leads; returns how long that took.
    async fn led(&self, limit: Duration) -> Duration {
        let began = Instant::now();
        while self.leaders() == 0 {
            assert!(
                began.elapsed() <= limit,
                "seed {}: no daemon leads",
                self.seed
            );
            self.pass(Duration::from_millis(10)).await;
        }
        began.elapsed()
    }

    fn leader(&self) -> usize {
        let leads = |life: &Life| life.gate.is_open();
        self.lives.iter().position(leads).expect("a daemon leads")
    }

    /// Something happens to one of the daemons.
    async fn mishap(&mut self) {
        let at = self.random.usize(..self.lives.len());
        let time = Duration::from_millis(self.random.u64(0..40_000));
        let life = &mut self.lives[at];
        let link = Arc::clone(&life.link);
        match self.random.u8(0..9) {
            0 => {
                life.tasks.abort_all();
                let died = self.lives.remove(at);
                // The restart of one process, or another machine.
                let ended = self.random.bool().then_some(died.holder);
                self.start(ended);
            }
            1 => {
                life.lease.end().await;
                self.lives.remove(at);
                self.start(None);
            }
            2 => *link.frozen_until.lock().unwrap() = Some(Instant::now() + time),
            3 => life.lease.retake().await,
            4 => drop(tokio::time::timeout(time, life.lease.request_release()).await),
            5 => match self.standby.take() {
                Some(row) => self.promote(row),
                None => self.delay_standby(),
            },
            kind => {
                let flag = |link: &DaemonLink, value| match kind {
                    6 => set(&link.is_cut, value),
                    7 => set(&link.loses_answers, value),
                    _ => set(&link.is_slow, value),
                };
                flag(&link, true);
                self.pass(time).await;
                flag(&link, false);
            }
        }
    }

    /// Lets a standby receive no more writes.
    fn delay_standby(&mut self) {
        let row = self.row.lock().unwrap().row.clone();
        self.standby = row.holder.is_some().then_some(row);
    }

    /// Promotes the standby, which may lack the newest terms and renewals.
    fn promote(&mut self, mut row: LeaseRow) {
        self.promoted += 1;
        row.promote(self.promoted.to_string());
        let table = &mut *self.row.lock().unwrap();
        table.terms.split_off(&(row.epoch + 1));
        table.row = row;
    }

    /// Daemons that are requested to yield do so, as the daemon that owns the engine would.
    async fn yield_where_requested(&self) {
        for life in &self.lives {
            if life.lease.view.borrow().is_release_requested {
                life.lease.yield_lease().await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_two_daemons_lead_at_once_and_one_leads_soon_after_every_mishap() {
    for seed in 0..100 {
        let mut world = Daemons::new(seed);
        for _ in 0..3 {
            world.start(None);
        }
        for _ in 0..12 {
            world.mishap().await;
            world.yield_where_requested().await;
            let pause = Duration::from_millis(world.random.u64(0..20_000));
            world.pass(pause).await;
        }
        world.yield_where_requested().await;
        // A call that is still slow, the lease, the time that a daemon yields, and some looks.
        world.led(Duration::from_secs(24 + 12) + LEASE).await;
        for life in &mut world.lives {
            life.tasks.abort_all();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_is_followed_within_a_second_and_a_death_after_the_lease() {
    let mut world = Daemons::new(7);
    world.start(None);
    world.led(Duration::from_secs(1)).await;
    world.start(None);
    world.start(None);
    world.pass(Duration::from_secs(60)).await;
    let leader = world.lives.remove(world.leader());
    leader.lease.end().await;
    world.led(Duration::from_secs(1)).await;

    let mut died = world.lives.remove(world.leader());
    died.tasks.abort_all();
    drop(died);
    let took = world.led(LEASE + Duration::from_secs(2)).await;
    assert!(took > LEASE / 2, "{took:?}");

    let mut died = world.lives.remove(world.leader());
    died.tasks.abort_all();
    let holder = died.holder;
    drop(died.gate);
    // A restart on the same machine, which knows that the process before has ended.
    world.start(Some(holder));
    world.led(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_the_store_does_not_confirm_waits_and_goes_on_in_its_term() {
    let mut world = Daemons::new(3);
    world.start(None);
    world.led(Duration::from_secs(1)).await;
    let term = world.lives[0].lease.view.borrow().term.clone();
    set(&world.lives[0].link.is_cut, true);
    world.pass(LEASE).await;
    assert_eq!(world.leaders(), 0, "its lease is not confirmed");
    assert_eq!(world.lives[0].lease.view.borrow().term, term);
    assert!(world.lives[0].lease.view.borrow().problem.is_some());
    set(&world.lives[0].link.is_cut, false);
    world.led(Duration::from_secs(5)).await;
    assert_eq!(
        world.lives[0].lease.view.borrow().term,
        term,
        "no other took it"
    );
    assert_eq!(world.lives[0].lease.view.borrow().problem, None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_a_promoted_standby_is_free_only_after_the_silence_of_its_holder() {
    let mut world = Daemons::new(6);
    world.start(None);
    world.led(Duration::from_secs(1)).await;
    let died = world.lives[0].holder.clone();
    world.lives[0].tasks.abort_all();
    world.delay_standby();
    world.start(None);
    world.pass(LEASE + Duration::from_secs(2)).await;
    assert_eq!(world.leader(), 1);
    // The standby lacks the second term. The restart of the first process knows only that the holder has ended.
    let row = world.standby.take().expect("a daemon leads");
    world.promote(row);
    world.start(Some(died));
    // No two gates are open meanwhile.
    world.pass(LEASE + Duration::from_secs(4)).await;
    assert_eq!(world.leaders(), 1);
    assert_eq!(world.row.lock().unwrap().row.epoch, 2);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_cut_off_past_its_lease_takes_none_of_a_promoted_standby_anew() {
    let mut world = Daemons::new(9);
    world.start(None);
    world.led(Duration::from_secs(1)).await;
    world.delay_standby();
    set(&world.lives[0].link.is_cut, true);
    world.start(None);
    world.pass(LEASE + Duration::from_secs(4)).await;
    assert_eq!(world.leader(), 1);
    // The standby lacks the second term, and a commit of the first leader has an unknown outcome.
    let row = world.standby.take().expect("a daemon leads");
    world.promote(row);
    set(&world.lives[0].link.is_cut, false);
    world.lives[0].lease.retake().await;
    world.pass(LEASE + Duration::from_secs(4)).await;
    assert_eq!(world.leaders(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_silence_of_a_holder_counts_anew_from_a_promotion_on() {
    let mut world = Daemons::new(8);
    world.start(None);
    world.led(Duration::from_secs(1)).await;
    let clock = Clock::simulated(Timestamp::UNIX_EPOCH);
    let table = TestTable {
        row: Arc::clone(&world.row),
        random: world.random.fork(),
        link: Arc::default(),
    };
    let candidate = Candidate {
        holder: HolderId::random(),
        name: String::new(),
        version: String::new(),
        ttl: LEASE,
    };
    let (control, _gate) = Gate::closed(clock.clone());
    let state = watch::channel(String::new()).1;
    let (mut task, _lease) = LeaseTask::new(table, clock.clone(), candidate, control, None, state);
    let row = world.row.lock().unwrap().row.clone();
    let mut promoted = row.clone();
    promoted.promote("1".to_owned());
    assert!(!task.may_take(&row, clock.passed()).0);
    tokio::time::advance(LEASE).await;
    // Its renewals of until then may be lost.
    assert!(!task.may_take(&promoted, clock.passed()).0);
    tokio::time::advance(LEASE - Duration::from_secs(1)).await;
    assert!(!task.may_take(&promoted, clock.passed()).0);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(task.may_take(&promoted, clock.passed()).0);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_slept_past_its_lease_lets_no_request_leave() {
    let mut world = Daemons::new(4);
    world.start(None);
    world.led(Duration::from_secs(1)).await;
    world.start(None);
    world.pass(Duration::from_secs(5)).await;
    let slept = Duration::from_secs(60);
    world.lives[0].clock.jump(Jump {
        slept,
        ..Jump::default()
    });
    assert!(
        !world.lives[0].gate.is_open(),
        "at once, before it looks at the store"
    );
}

#[tokio::test(start_paused = true)]
async fn a_requested_release_moves_the_lease_to_another_daemon() {
    let mut world = Daemons::new(5);
    world.start(None);
    world.led(Duration::from_secs(1)).await;
    world.start(None);
    world.pass(Duration::from_secs(5)).await;
    world.lives[1].lease.request_release().await.unwrap();
    world.pass(LEASE / PARTS + Duration::from_secs(1)).await;
    assert!(world.lives[0].lease.view.borrow().is_release_requested);
    world.yield_where_requested().await;
    world.led(Duration::from_secs(1)).await;
    assert_eq!(world.leader(), 1);
    // Without another daemon it leads again after a while.
    let mut other = world.lives.remove(1);
    other.tasks.abort_all();
    world.led(LEASE + Duration::from_secs(12)).await;
}
