//! Who leads: the lease, and the fence that keeps writes of an earlier term out.

use std::time::Duration;

use runwatch::domain::{EventType, FoundBy, Progress, RunRef, SinkName};
use runwatch::store::{
    Added, Candidate, Fate, HolderId, Keeper, LeaseRow, Mark, PostgresSettings, Renewal, Store,
    StoreError, Term,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::contract::{Place, close, incident, routed_to, step, time, watch};
use crate::server::{InSchema, SOON, WORKER, Way, connect, granted, settings};

/// The ways to the server, each with settings of their own; the last one as a role that owns nothing.
async fn all_ways(name: &str) -> [PostgresSettings; 3] {
    let [direct, pooled, unowned] =
        [Way::Direct, Way::Pooled, Way::Direct].map(|way| settings(way, name));
    [direct, pooled, granted(&unowned).await]
}

fn candidate(name: &str) -> Candidate {
    Candidate {
        holder: HolderId::random(),
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        ttl: Duration::from_secs(15),
    }
}

/// Takes the lease as it is.
async fn take(keeper: &mut Keeper, name: &str) -> Term {
    let seen = keeper.look().await.unwrap();
    let taken = keeper.take(&seen, &candidate(name)).await;
    taken.unwrap().expect("no other daemon takes it")
}

/// A store and its tasks, a second handle to the same tables, and a keeper.
async fn opened(settings: &PostgresSettings) -> (Store, JoinSet<()>, Keeper) {
    let (store, tasks) = InSchema(settings.clone()).open().await;
    (store, tasks, Keeper::new(settings).unwrap())
}

#[tokio::test]
async fn a_lease_is_taken_once_renewed_released_and_taken_by_the_next() {
    for settings in all_ways("lease").await {
        let (store, tasks, mut keeper) = opened(&settings).await;
        let never = keeper.look().await.unwrap();
        assert!(never.released && never.holder.is_none() && never.epoch == 0);
        let (one, two) = (candidate("one"), candidate("two"));
        let first = keeper.take(&never, &one).await.unwrap().unwrap();
        assert_eq!((first.epoch, &first.holder), (1, &one.holder));
        assert_eq!(keeper.take(&never, &two).await.unwrap(), None);
        let unrenewed = keeper.look().await.unwrap();

        let renewed = keeper.renew(&first, "watching").await.unwrap();
        assert!(
            matches!(
                renewed,
                Renewal::Confirmed {
                    release_requested: false,
                    ..
                }
            ),
            "{renewed:?}"
        );
        let held = keeper.look().await.unwrap();
        assert_eq!((held.epoch, held.renewals), (1, 1));
        assert_eq!(
            (
                held.holder_name.as_str(),
                held.state.as_str(),
                held.released
            ),
            ("one", "watching", false)
        );
        assert_eq!((held.holder.unwrap(), held.ttl), (one.holder, one.ttl));
        assert_eq!(
            keeper.take(&unrenewed, &two).await.unwrap(),
            None,
            "it was renewed since it was seen"
        );
        assert!(keeper.ask_release(1).await.unwrap());
        let renewal = keeper.renew(&first, "").await.unwrap();
        assert!(
            matches!(
                renewal,
                Renewal::Confirmed {
                    release_requested: true,
                    ..
                }
            ),
            "{renewal:?}"
        );
        assert!(keeper.release(&first).await.unwrap());
        assert!(!keeper.ask_release(1).await.unwrap());

        let seen = keeper.look().await.unwrap();
        assert!(seen.released && seen.epoch == 1);
        let second = keeper.take(&seen, &two).await.unwrap().unwrap();
        assert_eq!(second.epoch, 2);
        assert_eq!(keeper.renew(&first, "").await.unwrap(), Renewal::Superseded);
        assert!(!keeper.release(&first).await.unwrap());
        let renewed = keeper.renew(&second, "").await.unwrap();
        assert!(matches!(
            renewed,
            Renewal::Confirmed {
                release_requested: false,
                ..
            }
        ));
        close(store, tasks).await;
    }
}

#[tokio::test]
async fn of_many_that_take_the_lease_at_once_one_gets_it() {
    let settings = settings(Way::Direct, "many");
    let (store, tasks, mut keeper) = opened(&settings).await;
    let first = take(&mut keeper, "first").await;
    for next in [first.epoch + 1, first.epoch + 2] {
        let seen = keeper.look().await.unwrap();
        let mut taking = JoinSet::new();
        for number in 0..8 {
            let mut keeper = Keeper::new(&settings).unwrap();
            let seen = seen.clone();
            taking.spawn(async move { keeper.take(&seen, &candidate(&format!("{number}"))).await });
        }
        let mut taken = Vec::new();
        while let Some(result) = taking.join_next().await {
            taken.extend(result.unwrap().unwrap());
        }
        assert_eq!(taken.len(), 1, "{taken:?}");
        assert_eq!(taken[0].epoch, next);
    }
    assert_eq!(keeper.renew(&first, "").await.unwrap(), Renewal::Superseded);
    close(store, tasks).await;
}

#[tokio::test]
async fn a_lease_of_another_holder_with_the_same_numbers_is_not_taken() {
    for settings in all_ways("rolled_back").await {
        let (store, tasks, mut keeper) = opened(&settings).await;
        let first = take(&mut keeper, "first").await;
        keeper.renew(&first, "").await.unwrap();
        let seen = keeper.look().await.unwrap();
        // As after a failover to a server that had lost this term, on which another daemon took and renewed the lease.
        let (client, _connection) = connect(&settings).await;
        let other = HolderId::random();
        let rewrite = format!("UPDATE {}.leases SET holder = $1", settings.schema);
        let rewritten = client.execute(&rewrite, &[&other.as_str()]).await;
        assert_eq!(rewritten.unwrap(), 1);
        let next = candidate("second");
        assert_eq!(keeper.take(&seen, &next).await.unwrap(), None);
        let now = keeper.look().await.unwrap();
        assert_eq!((now.epoch, now.renewals), (seen.epoch, seen.renewals));
        assert_eq!(now.holder, Some(other));
        let second = keeper.take(&now, &next).await.unwrap().unwrap();
        assert_eq!(second.epoch, first.epoch + 1);
        close(store, tasks).await;
    }
}

#[tokio::test]
async fn no_write_of_an_earlier_term_counts() {
    for settings in all_ways("fence").await {
        let (store, tasks, mut keeper) = opened(&settings).await;
        let run = watch("run_1");
        let ops = SinkName::new("ops").unwrap();
        let first = store.fenced(take(&mut keeper, "first").await);
        let (added, id) = first.add_watch(run.clone()).await.unwrap();
        assert_eq!(added, Added::New);
        let running = step(&run, &Progress::begin(time(0)), "running", time(1));
        let record = |store: Store, step: runwatch::domain::Step| async move {
            let routed = routed_to(&step, &["ops"]);
            store
                .record_step(id, step, routed, None, FoundBy::Poll, time(1))
                .await
        };
        record(first.clone(), running.clone()).await.unwrap();

        let second = store.fenced(take(&mut keeper, "second").await);
        let failed = step(&run, &running.progress, "failed", time(2));
        let late = record(first.clone(), failed.clone()).await;
        assert!(matches!(late, Err(StoreError::Superseded)), "{late:?}");
        for late in [
            first.add_watch(watch("run_2")).await.map(drop),
            first
                .claim_due(ops.clone(), time(9), 10, usize::MAX)
                .await
                .map(drop),
            first.take_marks(10).await.map(drop),
            first.probe().await,
        ] {
            assert!(matches!(late, Err(StoreError::Superseded)), "{late:?}");
        }
        // Of jobs that come together, those of the earlier term fail and no others.
        let (late, good, plain) = tokio::join!(
            record(first.clone(), failed.clone()),
            record(second.clone(), failed),
            store.add_watch(watch("run_3"))
        );
        assert!(matches!(late, Err(StoreError::Superseded)), "{late:?}");
        good.unwrap();
        assert_eq!(plain.unwrap().0, Added::New);
        assert_eq!(store.counts().await.unwrap().active, 1);
        // Reads need no term.
        assert_eq!(first.counts().await.unwrap().active, 1);
        drop((first, second));
        close(store, tasks).await;
    }
}

#[tokio::test]
async fn a_term_ends_with_the_timeline_of_the_server_and_the_next_gives_out_new_numbers() {
    for settings in all_ways("timeline").await {
        let (store, tasks, mut keeper) = opened(&settings).await;
        let (client, _connection) = connect(&settings).await;
        let schema = &settings.schema;
        let add_event = format!(
            "INSERT INTO {schema}.events (type, at, body) VALUES ('', 0, '') RETURNING seq"
        );
        let next = async || -> i64 { client.query_one(&add_event, &[]).await.unwrap().get(0) };
        let first = take(&mut keeper, "first").await;
        let second = take(&mut keeper, "second").await;
        let before = next().await;
        assert!(
            before < 100,
            "on one timeline no numbers are left out: {before}"
        );
        assert_eq!(first.epoch + 1, second.epoch);

        // As after a failover: the row is of the timeline before.
        let promoted = format!("UPDATE {schema}.leases SET timeline = '00000000'");
        let seen = keeper.look().await.unwrap();
        assert!(!seen.is_promoted);
        client.batch_execute(&promoted).await.unwrap();
        assert!(keeper.look().await.unwrap().is_promoted);
        let before_it = LeaseRow {
            timeline: "00000000".to_owned(),
            ..seen
        };
        let late = keeper.take(&before_it, &candidate("late")).await;
        assert_eq!(late.unwrap(), None, "it was seen on another timeline");
        assert_eq!(
            keeper.renew(&second, "").await.unwrap(),
            Renewal::Superseded
        );
        let fenced = store.fenced(second);
        let late = fenced.add_watch(watch("run_1")).await;
        assert!(matches!(late, Err(StoreError::Superseded)), "{late:?}");

        let third = take(&mut keeper, "third").await;
        let renewed = keeper.renew(&third, "").await.unwrap();
        assert!(matches!(renewed, Renewal::Confirmed { .. }), "{renewed:?}");
        assert!(next().await > before + 1_000_000);
        drop(fenced);
        close(store, tasks).await;
    }
}

#[tokio::test]
async fn a_role_that_lost_its_rights_on_sequences_takes_the_lease_on_another_timeline() {
    let owner = settings(Way::Direct, "unowned");
    let mut keeper = Keeper::new(&granted(&owner).await).unwrap();
    take(&mut keeper, "first").await;
    let (client, _connection) = connect(&owner).await;
    let schema = &owner.schema;
    let revoke = format!(
        "REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM {WORKER};
         UPDATE {schema}.leases SET timeline = '00000000'"
    );
    client.batch_execute(&revoke).await.unwrap();
    assert_eq!(take(&mut keeper, "second").await.epoch, 2);
}

#[tokio::test]
async fn a_write_under_way_delays_the_next_term_but_no_renewal() {
    let settings = settings(Way::Direct, "held");
    let (store, tasks, mut keeper) = opened(&settings).await;
    let first = take(&mut keeper, "first").await;
    // A transaction of the first term, as the writer makes it, that does not end yet.
    let (client, _connection) = connect(&settings).await;
    let fence = format!(
        "BEGIN; SELECT 1 FROM {}.leases WHERE epoch = {} FOR KEY SHARE",
        settings.schema, first.epoch
    );
    client.batch_execute(&fence).await.unwrap();
    let renewed = timeout(SOON, keeper.renew(&first, "")).await.unwrap();
    assert!(
        matches!(renewed, Ok(Renewal::Confirmed { .. })),
        "{renewed:?}"
    );

    let seen = keeper.look().await.unwrap();
    let mut other = Keeper::new(&settings).unwrap();
    other.look().await.unwrap();
    let next = candidate("second");
    let mut taking = std::pin::pin!(other.take(&seen, &next));
    let early = timeout(Duration::from_secs(1), &mut taking).await;
    assert!(early.is_err(), "the write has not ended: {early:?}");
    client.batch_execute("COMMIT").await.unwrap();
    let second = timeout(SOON, taking).await.unwrap().unwrap().unwrap();
    assert_eq!(second.epoch, 2);
    close(store, tasks).await;
}

#[tokio::test]
async fn a_transaction_that_was_frozen_is_ended_and_its_commit_fails() {
    let mut settings = settings(Way::Direct, "frozen");
    settings.statement_limit = Duration::from_secs(2);
    let (store, tasks, mut keeper) = opened(&settings).await;
    let first = take(&mut keeper, "first").await;
    // As a process that is stopped in the middle of a transaction of the writer.
    let (client, _connection) = connect(&settings).await;
    let begin = format!(
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 2000;
         SELECT 1 FROM {schema}.leases WHERE epoch = {} FOR KEY SHARE;
         INSERT INTO {schema}.configured_watches VALUES ('run_1')",
        first.epoch,
        schema = settings.schema
    );
    client.batch_execute(&begin).await.unwrap();
    let taken = async {
        loop {
            let seen = keeper.look().await.unwrap();
            let taken = keeper.take(&seen, &candidate("second")).await;
            match taken {
                Ok(Some(term)) => return term,
                Ok(None) | Err(StoreError::OutOfReach { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    assert_eq!(timeout(SOON, taken).await.unwrap().epoch, 2);
    assert!(client.batch_execute("COMMIT").await.is_err());
    assert_eq!(InSchema(settings).rows_of("configured_watches").await, 0);
    close(store, tasks).await;
}

#[tokio::test]
async fn what_a_daemon_that_does_not_lead_changes_is_marked_once() {
    for settings in all_ways("marks").await {
        let (store, tasks, mut keeper) = opened(&settings).await;
        let leader = store.fenced(take(&mut keeper, "leader").await);
        let run = |id: &str| Mark::Run(RunRef::new(id).unwrap());
        store.add_watch(watch("run_1")).await.unwrap();
        store.add_watch(watch("run_1")).await.unwrap();
        store.add_watch(watch("run_2")).await.unwrap();
        let removed = watch("run_1").run_id;
        store.remove_watches(removed.clone(), false).await.unwrap();
        store.remove_watches(removed, false).await.unwrap();
        assert_eq!(leader.take_marks(1).await.unwrap(), [run("run_1")]);
        assert_eq!(
            leader.take_marks(10).await.unwrap(),
            [run("run_2"), run("run_1")]
        );
        assert_eq!(leader.take_marks(10).await.unwrap(), []);
        let runs = ["run_2", "run_1"].map(|id| RunRef::new(id).unwrap());
        let there = leader.active_watches_of(time(5), runs.to_vec()).await;
        let there: Vec<_> = there
            .unwrap()
            .into_iter()
            .map(|stored| stored.watch)
            .collect();
        assert_eq!(there, [watch("run_2")]);

        // The leader itself marks nothing.
        let failing = watch("run_3");
        let (_, id) = leader.add_watch(failing.clone()).await.unwrap();
        let failed = step(&failing, &Progress::begin(time(0)), "failed", time(2));
        let routed = routed_to(&failed, &["ops"]);
        leader
            .record_step(id, failed, routed, None, FoundBy::Poll, time(2))
            .await
            .unwrap();
        let ops = SinkName::new("ops").unwrap();
        leader
            .decide_all(ops.clone(), Fate::Drop, time(3))
            .await
            .unwrap();
        assert_eq!(leader.take_marks(10).await.unwrap(), []);
        let retried = store.decide_all(ops.clone(), Fate::Retry, time(4)).await;
        assert_eq!(retried.unwrap(), 1);
        assert_eq!(leader.take_marks(10).await.unwrap(), [Mark::Sink(ops)]);
        drop(leader);
        close(store, tasks).await;
    }
}

#[tokio::test]
async fn a_mark_of_a_write_that_is_not_committed_yet_is_not_taken_with_an_earlier_one() {
    let settings = settings(Way::Direct, "apart");
    let (store, tasks, mut keeper) = opened(&settings).await;
    let leader = store.fenced(take(&mut keeper, "leader").await);
    let run = watch("run_1");
    store.add_watch(run.clone()).await.unwrap();
    store
        .remove_watches(run.run_id.clone(), false)
        .await
        .unwrap();
    // Another daemon is about to add it again.
    let (client, _connection) = connect(&settings).await;
    let add = format!(
        "BEGIN; INSERT INTO {schema}.watches (run_id, labels, added_at, deadline_at) VALUES ('run_1', '{{}}', 5, 9);
         INSERT INTO {schema}.dirty (kind, key) VALUES ('run', 'run_1')",
        schema = settings.schema
    );
    client.batch_execute(&add).await.unwrap();
    let mark = [Mark::Run(run.run_id.clone())];
    assert_eq!(leader.take_marks(10).await.unwrap(), mark);
    let there = leader
        .active_watches_of(time(5), vec![run.run_id.clone()])
        .await;
    assert!(there.unwrap().is_empty());
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(leader.take_marks(10).await.unwrap(), mark);
    drop(leader);
    close(store, tasks).await;
}

#[tokio::test]
async fn events_that_another_daemon_stores_are_signaled() {
    let settings = settings(Way::Pooled, "tail");
    let (store, tasks, mut keeper) = opened(&settings).await;
    let (other, others) = InSchema(settings.clone()).open().await;
    let (mut history, mut deliveries) = (other.history_changed(), other.deliveries_changed());
    let leader = store.fenced(take(&mut keeper, "leader").await);
    let run = watch("run_1");
    let (_, id) = leader.add_watch(run.clone()).await.unwrap();
    let failed = step(&run, &Progress::begin(time(0)), "failed", time(2));
    let routed = routed_to(&failed, &["ops"]);
    leader
        .record_step(id, failed, routed, None, FoundBy::Poll, time(2))
        .await
        .unwrap();
    // The tail signals what comes after its first look: one event after another is stored until it has looked.
    let signaled = async {
        let (history, deliveries) = tokio::join!(history.changed(), deliveries.changed());
        history.and(deliveries).unwrap();
    };
    let storing = async {
        for seconds in 3.. {
            let event = incident(EventType::ApiUnreachable, time(seconds));
            leader.record_event(event, time(seconds)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let raced = async {
        tokio::select! {
            () = signaled => {}
            () = storing => {}
        }
    };
    timeout(SOON, raced).await.unwrap();
    let seen = other.events_after(0, 1).await.unwrap();
    assert_eq!(seen[0].1.event_type, EventType::RunFailed);
    drop(leader);
    close(store, tasks).await;
    close(other, others).await;
}

#[tokio::test]
async fn two_daemons_that_add_and_remove_the_same_runs_agree() {
    let settings = settings(Way::Pooled, "two");
    let (one, tasks_of_one) = InSchema(settings.clone()).open().await;
    let (two, tasks_of_two) = InSchema(settings.clone()).open().await;
    let mut working = JoinSet::new();
    for number in 0..400 {
        let store = [&one, &two][number % 2].clone();
        working.spawn(async move {
            let run = watch(&format!("run_{}", number / 4));
            let added = store.add_watch(run.clone()).await.unwrap().0;
            let removed = match number % 4 {
                3 => store.remove_watches(run.run_id, false).await.unwrap(),
                _ => Vec::new(),
            };
            (usize::from(added == Added::New), removed.len())
        });
    }
    let (mut added, mut removed) = (0, 0);
    while let Some(done) = working.join_next().await {
        let (new, gone) = done.unwrap();
        (added, removed) = (added + new, removed + gone);
    }
    let left = one.active_watches(time(1), None, 1_000).await.unwrap();
    assert_eq!(added - removed, left.len());
    let runs: std::collections::BTreeSet<_> =
        left.iter().map(|stored| &stored.watch.run_id).collect();
    assert_eq!(runs.len(), left.len(), "each run has one watch");
    close(one, tasks_of_one).await;
    close(two, tasks_of_two).await;
}
