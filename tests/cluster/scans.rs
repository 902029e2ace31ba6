//! No operation reads a table that grows as a whole, but those that count.

use std::collections::BTreeMap;

use jiff::Timestamp;
use runwatch::domain::{FoundBy, Progress, ProviderName, RunRef, SinkName, Verdict};
use runwatch::store::{
    DeliveryFilter, DeliveryState, DiscoveredRun, Fate, PostgresSettings, RunNote, Store,
    WatchFilter, WatchOrder, WatchState,
};

use crate::contract::{Place, close, ended, first_step, routed_to, step, time, watch};
use crate::server::{InSchema, Way, connect, eventually, settings};

/// Fills the tables with rows enough that PostgreSQL takes an index where there is one: 20,000 finished and 2,000 active
/// watches, each of the former with an event, a delivery that arrived and its attempt; and 20,000 noted runs.
const FILL: &str = "
    INSERT INTO schema.watches (run_id, added_at, deadline_at, verdict, verdict_at, status, labels)
        SELECT 'run_old_' || n, n, n, 'succeeded', n, 'succeeded', '{}' FROM generate_series(1, 20000) n;
    INSERT INTO schema.watches (run_id, added_at, deadline_at, labels)
        SELECT 'run_now_' || n, n, n, '{}' FROM generate_series(1, 2000) n;
    INSERT INTO schema.status_changes (watch_id, at, status, state)
        SELECT id, added_at, 'running', 'running' FROM schema.watches;
    INSERT INTO schema.payloads (watch_id, body) SELECT id, repeat('x', 30) FROM schema.watches;
    INSERT INTO schema.events (watch_id, run_id, type, at, body)
        SELECT id, run_id, 'run.succeeded', added_at, '{}' FROM schema.watches WHERE verdict IS NOT NULL;
    INSERT INTO schema.events (provider, type, at, body)
        SELECT 'crewship', 'api.recovered', n, '{\"type\":\"api.recovered\",\"timestamp\":\"2026-01-01T00:00:00Z\",
            \"data\":{\"provider\":\"crewship\",\"message\":\"\",\"since\":\"2026-01-01T00:00:00Z\"}}'
        FROM generate_series(1, 2000) n;
    INSERT INTO schema.deliveries (id, event_seq, sink, state, attempts, created_at, ended_at)
        SELECT 'msg_' || lpad(seq::text, 32, '0'), seq, 'ops', 'delivered', 1, at, at FROM schema.events;
    INSERT INTO schema.attempts SELECT id, 1, created_at, 1, true, '' FROM schema.deliveries;
    INSERT INTO schema.configured_watches SELECT run_id FROM schema.watches;
    INSERT INTO schema.discoveries (provider, parameters, began_at) VALUES ('crewship', '{}', 0);
    INSERT INTO schema.discovered_runs SELECT 1, 'run_old_' || n, 1, n, 1, CASE WHEN n <= 20 THEN n ELSE 1700000000000 END
        FROM generate_series(1, 20000) n;
    INSERT INTO schema.past_durations SELECT 'ci' || p, 'group ' || n, n, '[1]'
        FROM generate_series(1, 20) p, generate_series(1, 1000) n;
    ANALYZE schema.past_durations, schema.watches, schema.status_changes, schema.payloads, schema.events, schema.deliveries, schema.attempts,
        schema.configured_watches, schema.discovered_runs;
";

/// How often each table was read as a whole. The names of the tables that have one row or few are left out.
async fn scans(settings: &PostgresSettings) -> BTreeMap<String, i64> {
    let (client, _connection) = connect(settings).await;
    let sql = format!(
        "SELECT relname::text, seq_scan FROM pg_stat_user_tables WHERE schemaname = '{}' AND relname NOT IN
         ('clock', 'deleted_events', 'discoveries', 'leases', 'schema', 'dirty')",
        settings.schema
    );
    let rows = client.query_typed(&sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Every operation of the engine and of the lists, once.
async fn work(store: &Store) {
    let run = watch("run_new");
    let ops = SinkName::new("ops").unwrap();
    let now = time(9);
    let (_, id) = store.add_watch(run.clone()).await.unwrap();
    store.add_configured_watch(watch("run_conf")).await.unwrap();
    let mut progress = Progress::begin(time(0));
    for status in ["running", "failed"] {
        let step = step(&run, &progress, status, now);
        progress = step.progress.clone();
        let routed = routed_to(&step, &["ops"]);
        store
            .record_step(id, step, routed, None, FoundBy::Poll, now)
            .await
            .unwrap();
    }
    let past = watch("ci1:1");
    let (_, past_id) = store.add_watch(past.clone()).await.unwrap();
    let end = first_step(&past, ended("succeeded", Some("new"), Some(1)), now);
    store
        .record_step(past_id, end, Vec::new(), None, FoundBy::Poll, now)
        .await
        .unwrap();
    let ci = ProviderName::new("ci1").unwrap();
    let group = (ci.clone(), "group 7".to_owned());
    assert_eq!(store.durations(vec![group]).await.unwrap().len(), 1);
    assert_eq!(store.durations_of(ci).await.unwrap().len(), 1_000);
    store.details(id).await.unwrap();
    store.next_due(ops.clone()).await.unwrap();
    let claimed = store
        .claim_due(ops.clone(), now, 10, usize::MAX)
        .await
        .unwrap();
    assert_eq!(claimed.len(), 2);
    for claimed in claimed {
        let attempt = runwatch::store::Attempt {
            attempt: claimed.attempt,
            at: now,
            took: std::time::Duration::ZERO,
            detail: String::new(),
            outcome: runwatch::store::AttemptOutcome::Dead,
        };
        store.record_attempt(claimed.id, attempt).await.unwrap();
    }
    store
        .decide_all(ops.clone(), Fate::Retry, now)
        .await
        .unwrap();
    store.summarize(ops.clone(), true, now).await.unwrap();
    store.active_watches(now, None, 100).await.unwrap();
    let middle = RunRef::new("run_now_7").unwrap();
    store
        .active_watches(now, Some((Timestamp::UNIX_EPOCH, middle.clone())), 100)
        .await
        .unwrap();
    store
        .active_watches_of(now, vec![middle.clone()])
        .await
        .unwrap();
    store.watch(middle.clone()).await.unwrap();
    store.history(run.run_id.clone()).await.unwrap();
    store.events_after(20_000, 100).await.unwrap();
    store.newest_event().await.unwrap();
    store.status_changes_after(21_990).await.unwrap();
    store.take_marks(100).await.unwrap();
    store.take_up().await.unwrap();
    store.probe_write().await.unwrap();
    for order in WatchOrder::ALL {
        for state in [None, Some(WatchState::Active), Some(WatchState::Finished)] {
            for verdict in [None, Some(Verdict::Failed)] {
                // These sort what has the verdict, as in SQLite.
                if order == WatchOrder::Ended && verdict.is_some() {
                    continue;
                }
                let filter = WatchFilter {
                    state,
                    verdict,
                    order,
                    ..WatchFilter::default()
                };
                store.watches(filter, 50).await.unwrap();
            }
        }
    }
    for states in [vec![], vec![DeliveryState::Pending, DeliveryState::Dead]] {
        for sink in [None, Some(ops.clone())] {
            for newest_first in [false, true] {
                let filter = DeliveryFilter {
                    states: states.clone(),
                    sink: sink.clone(),
                    newest_first,
                    after: None,
                };
                store.deliveries(filter, 50).await.unwrap();
            }
        }
    }
    store.sinks_with_open_deliveries().await.unwrap();
    let discovery = store
        .set_discoveries(vec![(ProviderName::crewship(), "{}".to_owned())], now)
        .await
        .unwrap()[0]
        .id;
    let note = RunNote {
        run_id: RunRef::new("run_found").unwrap(),
        attempt: Some(1),
        ended_at: None,
    };
    store
        .note_runs(discovery, vec![note.clone()], now)
        .await
        .unwrap();
    store.known_runs(discovery, vec![middle]).await.unwrap();
    let found = DiscoveredRun {
        discovery,
        title: "crewship".to_owned(),
        note,
        again: false,
    };
    store
        .add_discovered_watch(watch("run_found"), found)
        .await
        .unwrap();
    store.end_round(discovery, now, now).await.unwrap();
    store
        .shift_deadlines(vec![(id, time(99))], 5, now)
        .await
        .unwrap();
    // Some old watches and notices at a time.
    let before = Timestamp::from_millisecond(900).unwrap();
    while !store
        .prune(before, vec![ops.clone()], now)
        .await
        .unwrap()
        .is_nothing()
    {}
    store.remove_watches(run.run_id, true).await.unwrap();
}

#[tokio::test]
async fn no_question_reads_all_that_is_stored() {
    let settings = settings(Way::Direct, "scans");
    let (store, tasks) = InSchema(settings.clone()).open().await;
    let fill = FILL.replace("schema.", &format!("{}.", settings.schema));
    {
        let (client, _connection) = connect(&settings).await;
        let name = format!("SET application_name = 'runwatch/{}/fill'", settings.name);
        client.batch_execute(&name).await.unwrap();
        client.batch_execute(&fill).await.unwrap();
    }
    close(store, tasks).await;
    let before = counted(&settings).await;
    let (store, tasks) = InSchema(settings.clone()).open().await;
    work(&store).await;
    close(store, tasks).await;
    let after = counted(&settings).await;
    assert_eq!(before, after, "tables that were read as a whole");
}

/// The counts of [`scans`], once every session of the store has ended: what a session did is counted by then.
async fn counted(settings: &PostgresSettings) -> BTreeMap<String, i64> {
    let (client, _connection) = connect(settings).await;
    let sessions = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'runwatch/{}/%'",
        settings.name
    );
    eventually(async || {
        let rows = client.query_typed(&sessions, &[]).await.unwrap();
        (rows[0].get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    scans(settings).await
}
