//! Failovers behind poolers: the connections of clients stay, and lead to a server that is a standby now.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use runwatch::notify::signature;
use runwatch::simulator::{Receiver, Simulator};
use runwatch::store::{Added, Candidate, HolderId, Keeper, PostgresSettings, Renewal, StoreError};
use rustix::process::Signal;
use secrecy::SecretString;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::contract::{Place, close, watch};
use crate::daemons::{self, Node, SECRET, read_body};
use crate::history::{Runs, add, check_verdicts, rest};
use crate::pooler::Pooler;
use crate::postgres::{Postgres, Stop, USER};
use crate::server::{InSchema, SOON, Way, connect, settings};
use crate::support::{PATIENCE, until};

/// A primary and its synchronous standby.
async fn pair() -> [Postgres; 2] {
    let primary = Postgres::start();
    let standby = primary.standby();
    primary.wait_for_standby(true);
    until("the standby to be synchronous", async || {
        primary.is_in_sync().then_some(())
    })
    .await;
    [primary, standby]
}

/// Promotes the standby, and makes the primary before a standby of it that gets nothing any more.
async fn switch([old, new]: &[Postgres; 2]) {
    old.stop(Stop::Fast);
    new.promote();
    old.follow(new);
    old.leave_primary();
    until("the standby to be cut off", async || {
        (!new.has_standby()).then_some(())
    })
    .await;
}

/// What a server reports through a pooler; `None` while there is none.
async fn value(pooler: &Pooler, sql: &str) -> Option<String> {
    let (client, connection) = tokio_postgres::connect(&pooler.url(), NoTls).await.ok()?;
    let mut serving = JoinSet::new();
    serving.spawn(connection);
    let messages = client.simple_query(sql).await.ok()?;
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// Waits until the server behind a pooler answers as a standby.
async fn is_standby(pooler: &Pooler) {
    until("the pooler to reach the standby", async || {
        let answer = value(pooler, "SELECT pg_is_in_recovery()").await?;
        (answer == "t").then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_connection_leaves_a_pooler_whose_server_became_a_standby() {
    let servers = pair().await;
    let poolers = [
        Pooler::start(servers[0].port).await,
        Pooler::start(servers[1].port).await,
    ];
    let [first, second] = poolers.each_ref().map(Pooler::address);
    let settings = PostgresSettings {
        url: SecretString::from(format!(
            "postgres://{USER}@{first},{second}/{USER}?sslmode=disable"
        )),
        ..settings(Way::Direct, "switch")
    };
    let (store, tasks) = InSchema(settings.clone()).open().await;
    let mut keeper = Keeper::new(&settings).unwrap();
    let candidate = Candidate {
        holder: HolderId::random(),
        name: "a".to_owned(),
        version: "1".to_owned(),
        ttl: Duration::from_secs(15),
    };
    let seen = keeper.look().await.unwrap();
    let term = keeper.take(&seen, &candidate).await.unwrap().unwrap();
    for number in 0..20 {
        let run = watch(&format!("run_{number}"));
        assert_eq!(store.add_watch(run).await.unwrap().0, Added::New);
    }
    assert_eq!(store.counts().await.unwrap().active, 20);
    let mut history = store.history_changed();

    poolers[0].hold();
    switch(&servers).await;
    poolers[0].pass();
    is_standby(&poolers[0]).await;
    let reconnects = store.figures().reconnects.get();
    let run = watch("run_20");
    // The connection is still there, and the server behind it refuses.
    let refused = store.add_watch(run.clone()).await.unwrap_err();
    let StoreError::OutOfReach { why } = &refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("read-only"), "{refused:?}");
    let renewed = keeper.renew(&term, "").await.unwrap_err();
    assert!(
        matches!(renewed, StoreError::OutOfReach { .. }),
        "{renewed:?}"
    );

    // Each of them finds the other pooler, and nothing that was acknowledged is lost.
    until("the new primary", async || store.probe().await.ok()).await;
    assert_eq!(store.add_watch(run).await.unwrap().0, Added::New);
    assert_eq!(store.counts().await.unwrap().active, 21);
    for number in 0..=20 {
        let run = watch(&format!("run_{number}")).run_id;
        assert!(store.watch(run.clone()).await.unwrap().is_some(), "{run}");
    }
    assert!(store.figures().reconnects.get() > reconnects);
    let renewed = until("the lease", async || keeper.renew(&term, "").await.ok()).await;
    assert_eq!(renewed, Renewal::Superseded);
    let seen = keeper.look().await.unwrap();
    let next = keeper.take(&seen, &candidate).await.unwrap().unwrap();
    assert_eq!(next.epoch, term.epoch + 1);

    // What another daemon stores is noticed.
    let there = PostgresSettings {
        url: SecretString::from(servers[1].url()),
        ..settings.clone()
    };
    let (client, _connection) = connect(&there).await;
    let event = format!(
        "INSERT INTO {}.events (type, at, body) VALUES ('', 0, '')",
        settings.schema
    );
    history.mark_unchanged();
    // The first number that the tail finds after a break is where it begins.
    until("the event to be noticed", async || {
        client.batch_execute(&event).await.unwrap();
        timeout(Duration::from_secs(2), history.changed())
            .await
            .ok()
    })
    .await
    .unwrap();

    // The server is on its second timeline. A term of two timelines before leaves out numbers for both.
    let numbered = format!("{event} RETURNING seq");
    let number = async || -> i64 { client.query_one(&numbered, &[]).await.unwrap().get(0) };
    let before = number().await;
    let older = format!(
        "UPDATE {}.leases SET timeline = '00000000'",
        settings.schema
    );
    client.batch_execute(&older).await.unwrap();
    let seen = keeper.look().await.unwrap();
    assert!(seen.is_promoted);
    keeper.take(&seen, &candidate).await.unwrap().unwrap();
    assert!(number().await > before + 2_000_000);
    timeout(SOON, close(store, tasks)).await.unwrap();
}

/// Status and body of an answer; `None` where there is none.
async fn answer(request: reqwest::RequestBuilder) -> Option<(StatusCode, String)> {
    let answer = request.send().await.ok()?;
    let status = answer.status();
    let body = String::from_utf8(read_body(answer).await?).unwrap();
    Some((status, body))
}

/// Requests the liveness of a daemon again and again, and counts the answers. Each must be good.
async fn stay_alive(http: reqwest::Client, answers: Arc<AtomicU64>) {
    // The pace of a probe.
    let mut probes = interval(Duration::from_millis(50));
    loop {
        probes.tick().await;
        let healthy = answer(http.get("http://localhost/healthz")).await;
        let (status, body) = healthy.expect("the daemon answers");
        assert_eq!(status, StatusCode::OK, "{body}");
        answers.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until so many more probes of liveness were good.
async fn lives(living: &mut JoinSet<()>, answers: &AtomicU64, count: u64) {
    let before = answers.load(Ordering::SeqCst);
    until("probes of liveness", async || {
        if let Some(ended) = living.try_join_next() {
            ended.unwrap();
        }
        (answers.load(Ordering::SeqCst) >= before + count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_daemon_goes_on_when_its_pooler_is_sent_from_a_standby_to_the_new_primary() {
    let servers = pair().await;
    let pooler = Pooler::start(servers[0].port).await;
    let simulator = Arc::new(Simulator::start_on_ports(1).await.unwrap());
    let verify = |headers: &reqwest::header::HeaderMap, body: &[u8]| {
        signature::verify(SECRET, headers, body, jiff::Timestamp::now()).is_ok()
    };
    let receiver = Receiver::start_verifying(verify).await.unwrap();
    let mut node = Node::new(0, &simulator, &receiver, [pooler.address(); 2]).await;
    node.start();
    let http = node.http.clone();
    let mut nodes = [node];
    let (_, term) = daemons::leader(&mut nodes, None, 0, PATIENCE).await;
    let (answers, mut living) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    living.spawn(stay_alive(http.clone(), Arc::clone(&answers)));
    let (runs, mut adding) = (Runs::default(), JoinSet::new());
    let random = fastrand::Rng::with_seed(7);
    let clients = vec![http.clone()];
    adding.spawn(add(
        Arc::clone(&simulator),
        clients,
        Arc::clone(&runs),
        random,
    ));
    let acknowledged = || {
        let runs = runs.lock().unwrap();
        runs.values()
            .filter(|run| run.acknowledged.is_some())
            .count()
    };
    until("acknowledged runs", async || {
        (acknowledged() >= 20).then_some(())
    })
    .await;

    pooler.hold();
    switch(&servers).await;
    pooler.pass();
    is_standby(&pooler).await;
    // Writes are refused although the server answers, and the daemon knows which of both counts for what.
    until("readiness to end", async || {
        let (status, _body) = answer(http.get("http://localhost/readyz")).await?;
        (status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    for number in 0..20 {
        assert_eq!(value(&pooler, "SELECT 1").await.as_deref(), Some("1"));
        let (status, body) = answer(http.get("http://localhost/readyz")).await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        let body = json!({"run_id": format!("refused_{number}")}).to_string();
        let request = http.post("http://localhost/v1/watches").body(body);
        let (status, body) = answer(request).await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert!(body.contains("out of reach"), "{body}");
        // No list shows what the standby has instead.
        let (status, body) = answer(http.get("http://localhost/v1/watches"))
            .await
            .unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    }
    lives(&mut living, &answers, 20).await;

    let before = acknowledged();
    pooler.point_at(servers[1].port);
    until("readiness", async || {
        let (status, _body) = answer(http.get("http://localhost/readyz")).await?;
        (status == StatusCode::OK).then_some(())
    })
    .await;
    daemons::leader(&mut nodes, None, term, PATIENCE).await;
    until("acknowledged runs", async || {
        (acknowledged() >= before + 20).then_some(())
    })
    .await;
    adding.shutdown().await;
    lives(&mut living, &answers, 20).await;
    living.shutdown().await;
    let [mut node] = nodes;
    rest(&node).await;
    let runs = runs.lock().unwrap().clone();
    let checked = check_verdicts(&node, &simulator, &receiver, &runs).await;
    assert!(checked >= 30, "{checked}");
    node.check_alive();
    let log = node.log();
    assert!(!log.contains("PostgreSQL rejected a write"), "{log}");
    node.end(Signal::TERM).await;
}
