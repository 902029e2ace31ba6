//! `runwatch lead`: which of the daemons that share a store polls and delivers.

use std::time::Duration;

use tokio::time::Instant;

use super::args::LeadCommand;
use super::client::Printer;
use super::write_text;
use crate::control::{Client, ClientError, LeaseResponse};
use crate::style::{Sign, Style};

/// How long `lead release` waits until another daemon leads: the longest time between two renewals of the longest
/// lease, the time that deliveries under way are given, and some seconds.
const RELEASE_LIMIT: Duration = Duration::from_secs(90);

/// How often it looks meanwhile.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// `runwatch lead` and `runwatch lead release`. With `json` the answer of `GET /v1/lease`. Returns 1 when the store is out
/// of reach, or no other daemon took over.
///
/// # Errors
/// When the result cannot be written.
pub async fn lead(
    client: &Client,
    command: Option<LeadCommand>,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let done = match command {
        None => {
            let lease = client.lease().await;
            lease.map(|lease| (u8::from(lease.problem.is_some()), lease))
        }
        Some(LeadCommand::Release) => release(client).await,
    };
    let (code, lease) = match done {
        Ok(done) => done,
        Err(error) => return printer.failed(&error),
    };
    if printer.json {
        printer.json(&lease)?;
    } else {
        write_text(printer.out, &sentence(&lease, printer.style))?;
    }
    if code != 0 && lease.problem.is_none() {
        printer.remark("no other daemon took over; is there one on this store, and does it reach the database?")?;
    }
    Ok(code)
}

/// Requests the release, and waits until another term has begun.
async fn release(client: &Client) -> Result<(u8, LeaseResponse), ClientError> {
    let before = client.lease().await?;
    client.release_lease().await?;
    let term = |lease: &LeaseResponse| lease.leader.as_ref().map(|leader| leader.term);
    let process = |lease: &LeaseResponse| lease.leader.as_ref().map(|leader| leader.id.clone());
    let ends = Instant::now() + RELEASE_LIMIT;
    loop {
        tokio::time::sleep(LOOK_PERIOD).await;
        let now = client.lease().await?;
        if term(&now) > term(&before) {
            let same = process(&now) == process(&before);
            return Ok((u8::from(same), now));
        }
        if Instant::now() >= ends {
            return Ok((1, now));
        }
    }
}

/// Who leads, in one line.
fn sentence(lease: &LeaseResponse, style: Style) -> String {
    let good = style.mark(Sign::Good);
    let leader = lease
        .leader
        .as_ref()
        .map(|leader| format!("{} ({}, term {})", leader.name, leader.version, leader.term));
    match (lease, leader) {
        (
            LeaseResponse {
                problem: Some(problem),
                ..
            },
            _,
        ) => {
            format!("{} {problem}\n", style.mark(Sign::Bad))
        }
        (LeaseResponse { shared: false, .. }, _) => {
            format!("{good} this daemon leads: its store is its own\n")
        }
        (LeaseResponse { leads: true, .. }, Some(leader)) => {
            format!("{good} this daemon leads: {leader}\n")
        }
        (_, Some(leader)) => format!("{good} {leader} leads; this daemon stands by\n"),
        (_, None) => format!("{} no daemon leads\n", style.mark(Sign::Warning)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_line_says_who_leads() {
        let leader = json!({"id": "0190", "name": "web-1", "version": "0.2.0", "term": 7});
        for (shared, leads, leader, problem, expected) in [
            (
                false,
                true,
                json!(null),
                json!(null),
                "its store is its own",
            ),
            (
                true,
                true,
                leader.clone(),
                json!(null),
                "this daemon leads: web-1 (0.2.0, term 7)",
            ),
            (
                true,
                false,
                leader.clone(),
                json!(null),
                "web-1 (0.2.0, term 7) leads; this daemon stands by",
            ),
            (true, false, json!(null), json!(null), "no daemon leads"),
            (
                true,
                false,
                leader,
                json!("the store is out of reach (db:5432: connection refused)"),
                "the store is out of reach (db:5432: connection refused)",
            ),
        ] {
            let lease =
                json!({"shared": shared, "leads": leads, "leader": leader, "problem": problem});
            let line = sentence(&serde_json::from_value(lease).unwrap(), Style::PLAIN);
            assert!(line.contains(expected), "{line}");
            assert_eq!(line.lines().count(), 1);
        }
    }
}
