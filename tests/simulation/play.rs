//! Plays seeds, as many at once as there are processors, and reports.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use runwatch::domain::Verdict;

use crate::life::{self, Broken, Outcome};
use crate::lives;
use crate::world::HOUR;

/// How many seeds of the fixed set, and fresh ones, unless `RUNWATCH_SEEDS` says.
const SEEDS: (u64, u64) = (100, 20);

/// Each so-manieth seed is played twice: it must play the same way.
const TWICE: u64 = 20;

/// Each so-manieth seed is also played with several daemons on one store.
const SEVERAL: u64 = 5;

/// Lines of the trace of a broken seed that are shown, unless `RUNWATCH_TRACE` says.
const LINES: usize = 60;

/// From how many seeds on each fault and each verdict must have come at least once.
const MANY: usize = 500;

/// Every fault there is.
const FAULTS: [&str; 69] = [
    "401",
    "404",
    "429",
    "502",
    "503",
    "503 with a pause",
    "a clean stop of a daemon",
    "a clock of a server that is set",
    "a clock that is set",
    "a daemon that freezes",
    "a daemon that is cut off",
    "a database that another process holds",
    "a death at any moment",
    "a death of a daemon",
    "a daemon that is suspended",
    "a delivery retried by request",
    "a hang",
    "a list of other runs",
    "a list of some runs",
    "a list that does not forget",
    "a list that fails",
    "a list that hangs",
    "a list that lags",
    "a list that lies",
    "a list that loses runs",
    "a list whose later pages fail",
    "a list whose pages do not fit",
    "a list without an end",
    "a page",
    "a panic of the writer",
    "a promoted standby",
    "a promoted standby that lacks writes",
    "a pruning",
    "a receiver that asks for time",
    "a receiver that blocks for minutes",
    "a receiver that fails",
    "a receiver that hangs",
    "a receiver that is gone",
    "a release by request",
    "a reload",
    "a removal",
    "a reply to a commit that is lost",
    "a run added again",
    "a run removed and added again at once",
    "a run that appears while pages are read",
    "a run that runs again",
    "a server that is away",
    "a server whose replies are lost",
    "a slow way to the server",
    "a slow write",
    "a start without network",
    "a statement refused",
    "a stream that lies about an end",
    "a suspend",
    "a used-up limit",
    "a wake-up without network",
    "a write refused at its commit",
    "an API that fails",
    "an I/O error at a commit",
    "an answer of a receiver that is lost",
    "an answer too large",
    "an orderly stop",
    "another run",
    "death after a commit",
    "death after a message",
    "death before a commit",
    "death before a message",
    "no JSON",
    "no room within a statement",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number"))
    })
}

/// How many lines of the trace of a broken seed are shown.
pub(crate) fn lines_of_trace() -> usize {
    let lines = number("RUNWATCH_TRACE").and_then(|lines| usize::try_from(lines).ok());
    lines.unwrap_or(LINES)
}

fn seeds() -> Vec<u64> {
    if let Some(seed) = number("RUNWATCH_SEED") {
        return vec![seed];
    }
    let (fixed, fresh) = match std::env::var("RUNWATCH_SEEDS") {
        Ok(text) => {
            let (fixed, fresh) = text.split_once(',').expect("RUNWATCH_SEEDS=FIXED,FRESH");
            (
                fixed.parse().expect("a number"),
                fresh.parse().expect("a number"),
            )
        }
        Err(_) => SEEDS,
    };
    let first = fastrand::u64(1 << 20..1 << 40);
    let seeds = (0..fixed).chain(first..first + fresh);
    seeds
        .filter(|seed| !is_for_several() || seed.is_multiple_of(SEVERAL))
        .collect()
}

/// Whether `RUNWATCH_SEVERAL` is set: only what several daemons do is played.
fn is_for_several() -> bool {
    std::env::var_os("RUNWATCH_SEVERAL").is_some()
}

/// Plays a seed in a folder of its own: in memory where that can be, as nothing here depends on a real disk.
fn play(seed: u64) -> Result<Outcome, Broken> {
    let shared = std::path::Path::new("/dev/shm");
    let folder = if shared.is_dir() {
        tempfile::tempdir_in(shared)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.expect("a temporary folder");
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut outcome = match is_for_several() {
            true => Outcome::default(),
            false => life::simulate(seed, folder.path())?,
        };
        if seed.is_multiple_of(SEVERAL) {
            let several = lives::simulate(seed, folder.path())?;
            outcome.digest ^= several.digest;
            outcome.add(several);
        }
        Ok(outcome)
    }));
    played.unwrap_or_else(|_| {
        Err(Broken {
            what: "a panic, shown above".to_owned(),
            trace: String::new(),
        })
    })
}

fn checked(seed: u64) -> Result<Outcome, Broken> {
    let outcome = play(seed)?;
    if seed.is_multiple_of(TWICE) && play(seed)?.digest != outcome.digest {
        return Err(Broken {
            what: "it does not play the same way twice".to_owned(),
            trace: String::new(),
        });
    }
    Ok(outcome)
}

pub(crate) fn all() -> ExitCode {
    let seeds = seeds();
    if seeds.is_empty() {
        println!("no seed to play: RUNWATCH_SEEDS=FIXED,FRESH gives the numbers of seeds");
        return ExitCode::from(2);
    }
    let workers = number("RUNWATCH_THREADS").and_then(|threads| usize::try_from(threads).ok());
    let workers = workers
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .max(1);
    let (next, total, broken) = (
        AtomicUsize::new(0),
        Mutex::new(Outcome::default()),
        Mutex::new(BTreeMap::new()),
    );
    std::thread::scope(|scope| {
        for _ in 0..workers.min(seeds.len()) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match checked(*seed) {
                        Ok(outcome) => total.lock().unwrap().add(outcome),
                        Err(error) => {
                            println!("seed {seed}: {}", error.what);
                            broken.lock().unwrap().insert(*seed, error);
                            // One is enough to look at.
                            next.store(seeds.len(), Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (total, broken) = (total.into_inner().unwrap(), broken.into_inner().unwrap());
    if let Some((seed, error)) = broken.first_key_value() {
        println!(
            "\n{}\n\nRUNWATCH_SEED={seed} tests/simulation/run plays it again",
            error.trace
        );
        return ExitCode::FAILURE;
    }
    println!(
        "{} seeds, {} days simulated, {} lives of the process",
        seeds.len(),
        total.simulated / HOUR / 24,
        total.lives
    );
    println!(
        "{} watches, {} of them by discovery, {} requests; verdicts: {:?}",
        total.watches, total.found, total.requests, total.verdicts
    );
    println!(
        "{} messages arrived, {} were given up, in {} receipts",
        total.delivered, total.dead, total.receipts
    );
    for (fault, times) in &total.faults {
        println!("{times:>8} × {fault}");
    }
    let missing = total.missing();
    if seeds.len() >= MANY && !missing.is_empty() {
        println!(
            "what never came, or is not in the list of faults: {}",
            missing.join(", ")
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

impl Outcome {
    /// Faults and verdicts that never came, and faults that are not in the list.
    fn missing(&self) -> Vec<&str> {
        let verdicts = Verdict::WORST_FIRST.map(Verdict::as_str);
        let never = FAULTS
            .into_iter()
            .filter(|fault| !self.faults.contains_key(fault));
        let never = never.chain(
            verdicts
                .into_iter()
                .filter(|verdict| !self.verdicts.contains_key(verdict)),
        );
        never
            .chain(
                self.faults
                    .keys()
                    .copied()
                    .filter(|fault| !FAULTS.contains(fault)),
            )
            .collect()
    }

    fn add(&mut self, other: Self) {
        self.simulated += other.simulated;
        self.lives += other.lives;
        self.watches += other.watches;
        self.found += other.found;
        self.requests += other.requests;
        self.receipts += other.receipts;
        self.delivered += other.delivered;
        self.dead += other.dead;
        for (counts, more) in [
            (&mut self.verdicts, other.verdicts),
            (&mut self.faults, other.faults),
        ] {
            for (name, count) in more {
                *counts.entry(name).or_default() += count;
            }
        }
    }
}
