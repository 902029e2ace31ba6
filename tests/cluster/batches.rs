//! Steps and attempts that share a statement do what they do one by one: the same are handed to a store at once and to
//! another one after the other, and have equal replies and leave equal rows behind.

use std::fmt::{Debug, Write as _};
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use runwatch::domain::{DeliveryId, FoundBy, JsonText, PollOutcome, SinkName, Watch};
use runwatch::store::{Attempt, AttemptOutcome, PollFailure, RoutedEvent, Store, WatchId};

use crate::contract::{Place, close, ended, first_step, routed_to, time, watch};
use crate::server::{InSchema, Way, connect, in_rounds, settings};

/// How many sequences are tried.
const SEQUENCES: u32 = 12;

/// How many runs there are. Some steps of a round are about one that has its verdict by then.
const RUNS: usize = 80;

const SINKS: [&str; 3] = ["ops", "desk", "log"];

/// Fills what has a limit almost: the groups of a provider, the durations of a group, and the changes of a watch.
const FILL: &str = "
    INSERT INTO schema.past_durations SELECT 'ci', 'g' || n, n, '[1]' FROM generate_series(1, 998) n;
    INSERT INTO schema.past_durations
        SELECT 'ci', 'full', 999, jsonb_agg(n)::text FROM generate_series(1, 48) n;
    INSERT INTO schema.watches (run_id, added_at, deadline_at, labels) VALUES ('ci:0', 0, 9, '{}');
    INSERT INTO schema.status_changes (watch_id, at, status) SELECT id, n, 'x'
        FROM schema.watches, generate_series(1, 998) n;
";

/// The rows in their order. What the store chose itself is left out, or named by what it belongs to: a transaction that is
/// undone, and tried again in parts, uses up numbers.
const ROWS: [&str; 6] = [
    "SELECT to_jsonb(w) - 'input_id' - 'output_id' || jsonb_build_object(
         'input', (SELECT md5(body) FROM schema.payloads p WHERE p.id = input_id),
         'output', (SELECT md5(body) FROM schema.payloads p WHERE p.id = output_id))
     FROM schema.watches w ORDER BY id",
    "SELECT to_jsonb(c) - 'seq' FROM schema.status_changes c ORDER BY seq",
    "SELECT to_jsonb(e) - 'seq' - 'input_id' - 'output_id' || jsonb_build_object(
         'input', (SELECT md5(body) FROM schema.payloads p WHERE p.id = input_id),
         'output', (SELECT md5(body) FROM schema.payloads p WHERE p.id = output_id))
     FROM schema.events e ORDER BY seq",
    "SELECT to_jsonb(d) - 'id' - 'event_seq' || jsonb_build_object(
         'event', (SELECT count(*) FROM schema.events e WHERE e.seq <= event_seq),
         'tries', (SELECT jsonb_agg(to_jsonb(a) - 'delivery_id' ORDER BY attempt)
         FROM schema.attempts a WHERE a.delivery_id = d.id))
     FROM schema.deliveries d ORDER BY event_seq, sink",
    "SELECT to_jsonb(p) FROM schema.past_durations p ORDER BY provider, run_group",
    "SELECT jsonb_build_array(watch_id, md5(body), count(*)) FROM schema.payloads p GROUP BY watch_id, body ORDER BY 1",
];

/// One step of the watch of a run.
#[derive(Debug, Clone)]
struct Seen {
    run: usize,
    status: &'static str,
    group: Option<&'static str>,
    /// How long the run went on, in milliseconds.
    ran_ms: Option<i64>,
    /// The lengths of the input and the output.
    large: (usize, usize),
    sinks: usize,
    held: bool,
    failed_before: bool,
    second: i64,
}

/// The end of an attempt of a delivery that is claimed.
#[derive(Debug, Clone)]
struct Tried {
    which: prop::sample::Index,
    outcome: usize,
    fallback: Option<&'static str>,
    is_stale: bool,
}

/// What is handed over at once: steps, and then attempts; after some runs are not watched any more.
#[derive(Debug, Clone)]
struct Round {
    removed: Vec<usize>,
    steps: Vec<Seen>,
    attempts: Vec<Tried>,
}

fn seen() -> impl Strategy<Value = Seen> {
    let statuses = vec![
        "running",
        "waiting",
        "failed",
        "succeeded",
        "succeeded",
        "succeeded",
        "odd\0",
    ];
    let groups = select(vec![
        "g1", "g2", "g900", "full", "new1", "new2", "new3", "n\0w",
    ]);
    let length = || select(vec![0_usize, 0, 20, 3_000]);
    let what = (
        0..RUNS,
        select(statuses),
        proptest::option::weighted(0.9, groups),
    );
    let values = (
        proptest::option::weighted(0.9, -5_i64..5_000),
        length(),
        length(),
    );
    (
        what,
        values,
        0..=SINKS.len(),
        any::<bool>(),
        any::<bool>(),
        10_i64..20,
    )
        .prop_map(
            |(
                (run, status, group),
                (ran_ms, input, output),
                sinks,
                held,
                failed_before,
                second,
            )| Seen {
                run,
                status,
                group,
                ran_ms,
                large: (input, output),
                sinks,
                held,
                failed_before,
                second,
            },
        )
}

fn tried() -> impl Strategy<Value = Tried> {
    let fallback = proptest::option::of(select(vec!["desk", "last", "last"]));
    // Several deliveries of an event may be given up at once.
    let outcome = select(vec![0_usize, 1, 2, 2, 2]);
    let is_stale = proptest::bool::weighted(0.1);
    (any::<prop::sample::Index>(), outcome, fallback, is_stale).prop_map(
        |(which, outcome, fallback, is_stale)| Tried {
            which,
            outcome,
            fallback,
            is_stale,
        },
    )
}

fn round() -> impl Strategy<Value = Round> {
    let removed = proptest::collection::vec(0..RUNS, 0..3);
    let steps = proptest::collection::vec(seen(), 1..90);
    let attempts = proptest::collection::vec(tried(), 0..120);
    (removed, steps, attempts).prop_map(|(removed, steps, attempts)| Round {
        removed,
        steps,
        attempts,
    })
}

/// The run with this number: most are of one provider.
fn numbered(run: usize) -> Watch {
    watch(&match run % 6 {
        5 => format!("run_{run}"),
        _ => format!("ci:{run}"),
    })
}

/// One of the stores.
struct Side {
    place: InSchema,
    store: Store,
}

impl Side {
    async fn rows(&self, sql: &str) -> Vec<tokio_postgres::Row> {
        let (client, _connection) = connect(&self.place.0).await;
        let sql = sql.replace("schema.", &format!("{}.", self.place.0.schema));
        client.query_typed(&sql, &[]).await.unwrap()
    }

    async fn fill(&self) {
        let (client, _connection) = connect(&self.place.0).await;
        let fill = FILL.replace("schema.", &format!("{}.", self.place.0.schema));
        client.batch_execute(&fill).await.unwrap();
    }

    /// All rows, one a line.
    async fn dump(&self) -> String {
        let mut text = String::new();
        for sql in ROWS {
            let sql = format!("SELECT r::text FROM ({sql}) AS rows (r)");
            for row in self.rows(&sql).await {
                writeln!(text, "{}", row.get::<_, String>(0)).unwrap();
            }
        }
        text
    }

    /// The largest number of rows in `table` that one statement inserted.
    async fn most_of_a_statement(&self, table: &str) -> i64 {
        // The transaction and the number of the statement in it (postgresql.org/docs/15/ddl-system-columns).
        let sql = format!(
            "SELECT max(made) FROM (SELECT count(*) AS made FROM schema.{table}
                 WHERE to_jsonb({table}) ->> 'status' IS DISTINCT FROM 'x'
                 GROUP BY xmin::text, cmin::text) AS statements"
        );
        self.rows(&sql).await[0]
            .get::<_, Option<i64>>(0)
            .unwrap_or(0)
    }

    /// Watches all runs but some. Returns the newest watch of each.
    async fn watch_all(&self, removed: &[usize]) -> Vec<WatchId> {
        let mut ids = Vec::new();
        for run in 0..RUNS {
            ids.push(self.store.add_watch_again(numbered(run)).await.unwrap().1);
        }
        for run in removed {
            let removed = self.store.remove_watches(numbered(*run).run_id, true).await;
            removed.unwrap();
        }
        ids
    }

    async fn step(&self, ids: &[WatchId], seen: Seen) -> String {
        let (watch, now) = (numbered(seen.run), time(seen.second));
        let mut outcome = ended(seen.status, seen.group, seen.ran_ms);
        if let PollOutcome::Seen(observation) = &mut outcome {
            let value = |letter: &str, length| {
                let text = letter.repeat(length);
                (length > 0)
                    .then(|| JsonText::from(serde_json::value::to_raw_value(&text).unwrap()))
            };
            // A run may return what it was given.
            observation.details.input = value("v", seen.large.0);
            observation.details.output = value("v", seen.large.1);
        }
        let step = first_step(&watch, outcome, now);
        let mut routed = routed_to(&step, &SINKS[..seen.sinks]);
        for RoutedEvent { sinks, held, .. } in &mut routed {
            held.extend(sinks.pop().filter(|_| seen.held));
        }
        let error = seen.failed_before.then(|| PollFailure {
            at: now,
            message: format!("no answer\0 {}", seen.run),
        });
        let id = ids[seen.run];
        shown(
            self.store
                .record_step(id, step, routed, error, FoundBy::Poll, now)
                .await,
        )
    }

    /// Claims what is due. Returns it in the order of its events.
    async fn claim(&self, now: i64) -> Vec<(DeliveryId, u32)> {
        for sink in SINKS.iter().chain(&["last"]) {
            let sink = SinkName::new(sink).unwrap();
            let claimed = self.store.claim_due(sink, time(now), 1_000, usize::MAX);
            claimed.await.unwrap();
        }
        let sql = "SELECT id, attempts FROM schema.deliveries WHERE state = 'sending' ORDER BY event_seq, sink";
        let claimed = self.rows(sql).await;
        let read = |row: &tokio_postgres::Row| {
            let attempt = u32::try_from(row.get::<_, i64>(1)).unwrap();
            (DeliveryId::new(row.get::<_, &str>(0)).unwrap(), attempt)
        };
        claimed.iter().map(read).collect()
    }

    /// Stores the end of an attempt.
    async fn attempt(&self, claimed: &[(DeliveryId, u32)], number: usize, tried: Tried) -> String {
        let (id, attempt) = tried.which.get(claimed).clone();
        let attempt = Attempt {
            attempt: attempt + u32::from(tried.is_stale),
            at: time(30),
            took: Duration::from_millis(7),
            detail: format!("reply\0 {number}"),
            outcome: [
                AttemptOutcome::Delivered,
                AttemptOutcome::Retry(time(31)),
                AttemptOutcome::Dead,
            ][tried.outcome],
        };
        let fallback = tried.fallback.map(|name| SinkName::new(name).unwrap());
        let reply = self
            .store
            .record_attempt_with(id.clone(), attempt, fallback)
            .await;
        shown(reply).replace(id.as_str(), "ID")
    }
}

fn shown<T: Debug, E: std::fmt::Display>(result: Result<T, E>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => error.to_string(),
    }
}

/// Hands a round to both stores, and compares the replies and the rows.
async fn play(
    at_once: &Side,
    one_by_one: &Side,
    number: usize,
    round: &Round,
) -> Result<(), TestCaseError> {
    let ids = at_once.watch_all(&round.removed).await;
    prop_assert_eq!(&ids, &one_by_one.watch_all(&round.removed).await);
    let steps = round.steps.iter().cloned();
    let replies = join_all(steps.map(|seen| at_once.step(&ids, seen))).await;
    for (seen, reply) in round.steps.iter().zip(replies) {
        let alone = one_by_one.step(&ids, seen.clone()).await;
        prop_assert_eq!(reply, alone, "{:?}", seen);
    }
    prop_assert_eq!(at_once.dump().await, one_by_one.dump().await);
    let now = 100 * (i64::try_from(number).unwrap() + 1);
    let (claimed, others) = (at_once.claim(now).await, one_by_one.claim(now).await);
    prop_assert_eq!(claimed.len(), others.len());
    if claimed.is_empty() {
        return Ok(());
    }
    let attempts = round.attempts.iter().cloned().enumerate();
    let attempts = attempts.map(|(number, tried)| at_once.attempt(&claimed, number, tried));
    let replies = join_all(attempts).await;
    for (number, (tried, reply)) in round.attempts.iter().zip(replies).enumerate() {
        let alone = one_by_one.attempt(&others, number, tried.clone()).await;
        prop_assert_eq!(reply, alone, "{:?}", tried);
    }
    prop_assert_eq!(at_once.dump().await, one_by_one.dump().await);
    Ok(())
}

/// Does the same in both ways, and compares. Returns the largest numbers of steps and of attempts that one statement stored.
async fn compare(rounds: &[Round]) -> Result<[i64; 2], TestCaseError> {
    let places = ["at_once", "one_by_one"].map(|name| InSchema(settings(Way::English, name)));
    let [at_once, one_by_one] = places;
    let ((first, first_tasks), (second, second_tasks)) =
        (at_once.open().await, one_by_one.open().await);
    let at_once = Side {
        place: at_once,
        store: first,
    };
    let one_by_one = Side {
        place: one_by_one,
        store: second,
    };
    at_once.fill().await;
    one_by_one.fill().await;
    for (number, round) in rounds.iter().enumerate() {
        play(&at_once, &one_by_one, number, round).await?;
    }
    let mut most = [0; 2];
    for (table, most) in ["status_changes", "attempts"].iter().zip(&mut most) {
        *most = at_once.most_of_a_statement(table).await;
        prop_assert!(one_by_one.most_of_a_statement(table).await <= 1);
    }
    close(at_once.store, first_tasks).await;
    close(one_by_one.store, second_tasks).await;
    Ok(most)
}

#[test]
fn steps_and_attempts_of_a_statement_are_those_one_by_one() {
    let (runtime, mut runner) = in_rounds(SEQUENCES);
    let most = std::cell::Cell::new([0; 2]);
    let sequences = proptest::collection::vec(round(), 1..5);
    let compared = runner.run(&sequences, |rounds| {
        let [steps, attempts] = runtime.block_on(compare(&rounds))?;
        let [most_steps, most_attempts] = most.get();
        most.set([steps.max(most_steps), attempts.max(most_attempts)]);
        Ok(())
    });
    compared.unwrap();
    let [steps, attempts] = most.get();
    assert!(steps > 5, "one statement stored {steps} steps");
    assert!(attempts > 3, "one statement stored {attempts} attempts");
}
