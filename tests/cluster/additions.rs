//! Additions that share a statement do what they do one by one: the same are handed to a store at once and to another one
//! after the other, and have equal replies and leave equal rows behind.

use std::fmt::Write as _;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use runwatch::domain::{FoundBy, Labels, RunRef, SinkName, TraceContext, Watch};
use runwatch::store::{Added, Store, StoreError, WatchId};

use crate::contract::{Place, close, ended, first_step, time, watch};
use crate::server::{InSchema, Way, connect, in_rounds, settings};

/// How many sequences are tried.
const SEQUENCES: u32 = 12;

/// How many runs there are.
const RUNS: usize = 20;

/// A watch that is about to be added, and whether also where a finished one is there.
type Addition = (Watch, bool);

/// Additions that are handed over at once, after some runs ended.
#[derive(Debug, Clone)]
struct Round {
    ended: Vec<RunRef>,
    additions: Vec<Addition>,
}

fn run() -> impl Strategy<Value = RunRef> {
    // Two runs differ in case alone, which their order in the database's collation does not show.
    (0..RUNS).prop_map(|number| match number {
        0 => RunRef::new("RUN_1").unwrap(),
        _ => RunRef::new(&format!("run_{number}")).unwrap(),
    })
}

fn labels() -> impl Strategy<Value = Labels> {
    let group = (select(vec!["", "night", "\"a\0{}"]), select(vec!["2", "x"]));
    let group = proptest::option::of(group).prop_map(|group| match group {
        Some((name, size)) => vec![("group", name), ("group_size", size)],
        None => Vec::new(),
    });
    (group, "[,{}\"\\\\ a-c]{0,6}").prop_map(|(group, text)| {
        let group = group
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        group.chain([("key".to_owned(), text)]).collect()
    })
}

fn addition() -> impl Strategy<Value = Addition> {
    let name = proptest::option::of(select(vec!["", "NULL", "é\0\"", "{a,b}"]));
    let sinks = proptest::option::of(proptest::collection::vec(select(vec!["ops", "a-b"]), 0..3));
    let trace = proptest::option::of(1_u32..);
    (run(), name, labels(), sinks, trace, 0_i64..9, any::<bool>()).prop_map(
        |(run_id, name, labels, sinks, trace, second, again)| {
            let sink = |name| SinkName::new(name).unwrap();
            let watch = Watch {
                run_id,
                name: name.map(ToOwned::to_owned),
                labels,
                sinks: sinks.map(|sinks| sinks.into_iter().map(sink).collect()),
                added_at: time(second),
                deadline_at: time(100 - second),
                trace: trace.map(|number| {
                    let parent = format!("00-{number:032x}-{number:016x}-01");
                    TraceContext::read(&parent, "").unwrap()
                }),
            };
            (watch, again)
        },
    )
}

fn round() -> impl Strategy<Value = Round> {
    let ended = proptest::collection::vec(run(), 0..RUNS);
    let additions = proptest::collection::vec(addition(), 1..60);
    (ended, additions).prop_map(|(ended, additions)| Round { ended, additions })
}

async fn add(store: &Store, (watch, again): Addition) -> Result<(Added, WatchId), StoreError> {
    if again {
        store.add_watch_again(watch).await
    } else {
        store.add_watch(watch).await
    }
}

/// Stores the ends of runs that are watched.
async fn end(store: &Store, runs: &[RunRef]) {
    for stored in store
        .active_watches_of(time(0), runs.to_vec())
        .await
        .unwrap()
    {
        let step = first_step(&stored.watch, ended("succeeded", None, None), time(200));
        store
            .record_step(stored.id, step, Vec::new(), None, FoundBy::Poll, time(200))
            .await
            .unwrap();
    }
}

/// The rows of the watches in the order of their IDs, and of the marks.
async fn rows(place: &InSchema) -> String {
    let schema = &place.0.schema;
    let (client, _connection) = connect(&place.0).await;
    let watches = format!("SELECT w::text FROM {schema}.watches w ORDER BY id");
    let marks = format!("SELECT kind || ' ' || key FROM {schema}.dirty ORDER BY id");
    let mut text = String::new();
    for sql in [watches, marks] {
        for row in client.query_typed(&sql, &[]).await.unwrap() {
            writeln!(text, "{}", row.get::<_, String>(0)).unwrap();
        }
    }
    text
}

/// The largest number of watches that one statement added, of those that did not change since.
async fn most_of_a_statement(place: &InSchema) -> i64 {
    let (client, _connection) = connect(&place.0).await;
    // The transaction and the number of the statement in it (postgresql.org/docs/15/ddl-system-columns).
    let sql = format!(
        "SELECT max(watches) FROM (SELECT count(*) AS watches FROM {}.watches
             GROUP BY xmin::text, cmin::text) AS statements",
        place.0.schema
    );
    let rows = client.query_typed(&sql, &[]).await.unwrap();
    rows[0].get::<_, Option<i64>>(0).unwrap_or(0)
}

/// Does the same in both ways, and compares. Returns the largest number of watches that one statement added.
async fn compare(rounds: &[Round]) -> Result<i64, TestCaseError> {
    let [at_once, one_by_one] =
        ["at_once", "one_by_one"].map(|name| InSchema(settings(Way::English, name)));
    let (first, first_tasks) = at_once.open().await;
    let (second, second_tasks) = one_by_one.open().await;
    let mut most = 0;
    for Round {
        ended: runs,
        additions,
    } in rounds
    {
        end(&first, runs).await;
        end(&second, runs).await;
        let replies = join_all(
            additions
                .iter()
                .map(|addition| add(&first, addition.clone())),
        )
        .await;
        most = most.max(most_of_a_statement(&at_once).await);
        for (number, (addition, reply)) in additions.iter().zip(replies).enumerate() {
            let alone = add(&second, addition.clone()).await.unwrap();
            prop_assert_eq!(reply.unwrap(), alone, "{}: {:?}", number, addition);
        }
        prop_assert_eq!(most_of_a_statement(&one_by_one).await, 1);
        prop_assert_eq!(rows(&at_once).await, rows(&one_by_one).await);
    }
    close(first, first_tasks).await;
    close(second, second_tasks).await;
    Ok(most)
}

#[test]
fn additions_of_a_statement_are_those_one_by_one() {
    let (runtime, mut runner) = in_rounds(SEQUENCES);
    let most = std::cell::Cell::new(0);
    let sequences = proptest::collection::vec(round(), 1..5);
    let compared = runner.run(&sequences, |rounds| {
        most.set(most.get().max(runtime.block_on(compare(&rounds))?));
        Ok(())
    });
    compared.unwrap();
    assert!(most.get() > 5, "one statement added {} watches", most.get());
}

/// Where another transaction adds the watch of a run at the same time, that addition alone is tried again.
#[tokio::test]
async fn an_addition_that_another_prevents_is_tried_again_alone() {
    let place = InSchema(settings(Way::Direct, "prevented"));
    let (store, tasks) = place.open().await;
    let (client, _connection) = connect(&place.0).await;
    let schema = &place.0.schema;
    let insert = format!(
        "BEGIN; INSERT INTO {schema}.watches (run_id, added_at, deadline_at, labels) VALUES ('run_2', 0, 9, '{{}}')"
    );
    client.batch_execute(&insert).await.unwrap();
    let additions = ["run_1", "run_2", "run_3"].map(|run| add(&store, (watch(run), false)));
    let commit = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'
            AND transactionid = (SELECT backend_xid FROM pg_stat_activity WHERE pid = pg_backend_pid())";
        crate::server::eventually(async || {
            let rows = client.query_typed(waits, &[]).await.unwrap();
            (rows[0].get::<_, i64>(0) == 1).then_some(())
        })
        .await;
        client.batch_execute("COMMIT").await.unwrap();
    };
    let (replies, ()) = futures_util::future::join(join_all(additions), commit).await;
    let replies: Vec<_> = replies.into_iter().map(Result::unwrap).collect();
    let added: Vec<_> = replies.iter().map(|(added, _)| *added).collect();
    assert_eq!(added, [Added::New, Added::AlreadyExists, Added::New]);
    let known = store
        .active_watches_of(time(0), vec![RunRef::new("run_2").unwrap()])
        .await
        .unwrap();
    assert_eq!(replies[1].1, known[0].id);
    assert_eq!(most_of_a_statement(&place).await, 2);
    close(store, tasks).await;
}
