//! Leaders whose lease the store does not confirm although it answers.

use std::os::unix::fs::PermissionsExt as _;

use runwatch::simulator::{Receiver, Simulator};
use runwatch::store::PostgresSettings;
use rustix::process::Signal;
use secrecy::SecretString;

use crate::daemons::{Node, read_body};
use crate::postgres::Postgres;
use crate::server::{WORKER, Way, granted, settings};
use crate::support::{PATIENCE, until};

/// A server whose tables belong to another role than [`WORKER`].
async fn server() -> Postgres {
    let server = Postgres::start();
    server.sql(&format!("CREATE ROLE {WORKER} LOGIN"));
    let owner = PostgresSettings {
        url: SecretString::from(server.url()),
        schema: "runwatch".to_owned(),
        ..settings(Way::Direct, "")
    };
    granted(&owner).await;
    server
}

/// A daemon that does not run yet, whose role is [`WORKER`].
async fn worker(simulator: &Simulator, receiver: &Receiver, server: &Postgres) -> Node {
    let mut node = Node::new(0, simulator, receiver, [server.address(); 2]).await;
    let url = format!(
        "postgres://{WORKER}@{}/runwatch?sslmode=disable",
        node.links[0].address
    );
    node.program = node.program.set("RUNWATCH_STORE__URL", &url);
    node
}

/// The value of a metric without labels; `None` where there is none.
async fn metric(node: &Node, name: &str) -> Option<String> {
    let request = node.http.get("http://localhost/metrics");
    let body = read_body(request.send().await.ok()?).await?;
    let text = String::from_utf8(body).unwrap();
    let mut values = text.lines().filter_map(|line| line.split_once(' '));
    values
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value.to_owned())
}

/// Waits until a daemon shows whether it leads.
async fn shows(node: &Node, leads: &str) {
    until("a daemon to show whether it leads", async || {
        let shown = metric(node, "runwatch_leading").await;
        (shown.as_deref() == Some(leads)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_may_not_renew_shows_that_it_does_not_lead_before_the_next_does() {
    const COUNTED: &str = "runwatch_watches{state=\"active\"}";
    let (server, simulator) = (server().await, Simulator::start_on_ports(2).await.unwrap());
    let receiver = Receiver::start([]).await.unwrap();
    let mut first = worker(&simulator, &receiver, &server).await;
    first.start();
    shows(&first, "1").await;
    let mut second = Node::new(1, &simulator, &receiver, [server.address(); 2]).await;
    second.start();
    shows(&second, "0").await;
    assert_eq!(metric(&first, COUNTED).await.as_deref(), Some("0"));

    let renewing = |verb: &str, to: &str| {
        server.sql(&format!("{verb} UPDATE ON runwatch.leases {to} {WORKER}"));
    };
    renewing("REVOKE", "FROM");
    shows(&second, "1").await;
    assert_eq!(
        metric(&first, "runwatch_leading").await.as_deref(),
        Some("0")
    );
    // What is stored is counted once over all daemons.
    assert_eq!(metric(&second, COUNTED).await.as_deref(), Some("0"));
    assert_eq!(metric(&first, COUNTED).await, None);
    let lease = first.get("/v1/lease").await.unwrap();
    assert_eq!(lease["leads"], false, "{lease}");
    let shown = first.program.run(&["lead"]).await;
    assert_eq!(shown.code, Some(1), "{shown:?}");
    assert!(
        shown.stdout.contains("UPDATE ON runwatch.leases"),
        "{shown:?}"
    );
    assert!(
        first.get("/healthz").await.is_some(),
        "a restart changes nothing"
    );

    renewing("GRANT", "TO");
    until("the first daemon to stand by", async || {
        let lease = first.get("/v1/lease").await?;
        lease["problem"].is_null().then_some(())
    })
    .await;
    shows(&first, "0").await;
    shows(&second, "1").await;
    for node in [&mut first, &mut second] {
        node.check_alive();
        node.end(Signal::TERM).await;
    }
}

#[tokio::test]
async fn a_leader_whose_lease_is_not_confirmed_sends_no_heartbeat_although_the_store_answers() {
    const WITHHELD: &str = "runwatch_heartbeat_failures_total{reason=\"no_progress\"}";
    let (server, simulator) = (server().await, Simulator::start_on_ports(1).await.unwrap());
    let receiver = Receiver::start([]).await.unwrap();
    let switch = Receiver::start([]).await.unwrap();
    let mut node = worker(&simulator, &receiver, &server).await;
    let file = node.program.home().join("beat");
    std::fs::write(&file, format!("http://{}/beat", switch.address())).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = file.to_str().unwrap();
    node.program = node
        .program
        .set("RUNWATCH_HEARTBEAT__URL_FILE", file)
        .set("RUNWATCH_HEARTBEAT__INTERVAL", "10s");
    node.start();
    switch.wait_for(1).await;
    // The connection of the lease alone is lost, and there is no room for another one.
    server.sql(&format!("ALTER ROLE {WORKER} CONNECTION LIMIT 0"));
    let cut = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE application_name LIKE '%/keeper'";
    assert_eq!(server.sql(cut), "1");
    let withheld = async |count: u32| {
        let wanted = count.to_string();
        until("heartbeats that are withheld", async || {
            let shown = metric(&node, WITHHELD).await;
            (shown.as_ref() == Some(&wanted)).then_some(())
        })
        .await;
    };
    withheld(1).await;
    let before = switch.requests().len();
    withheld(2).await;
    assert_eq!(switch.requests().len(), before);
    server.sql(&format!("ALTER ROLE {WORKER} CONNECTION LIMIT -1"));
    let again = tokio::time::timeout(PATIENCE, switch.wait_for(before + 1));
    again.await.expect("heartbeats go on");
    node.end(Signal::TERM).await;
}
