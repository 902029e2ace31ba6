//! The README's figures, computed anew.

use std::time::Duration;

use runwatch::app::policy;
use runwatch::config::Settings;

use crate::streams::paused::{LATENCY, Simulation, Stream};

const README: &str = include_str!("../../README.md");

/// Watches a run that ends after `length`, each wait shorter than its interval by `jitter`. Returns
/// the number of polls and the interval in which the end falls.
fn watched(length: Duration, jitter: f64) -> (u32, Duration) {
    let growth = policy(&Settings::default()).growth;
    let (mut asked_at, mut polls, mut interval) = (Duration::ZERO, 1, None);
    while asked_at < length {
        let next = growth.next(interval).min(growth.after(asked_at));
        asked_at += next.mul_f64(1.0 - jitter);
        interval = Some(next);
        polls += 1;
    }
    (polls, interval.unwrap())
}

fn with_commas(number: u64) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}

/// The fewest and the most requests for a run of this length whose stream says something every 2 seconds,
/// in paused time: polls, and the opening of streams.
async fn followed(length: Duration) -> (u64, u64) {
    let mut counts = Vec::new();
    for seed in 0..8 {
        let simulation = Simulation::start(seed, |_| ());
        let run = simulation.add(0, length, Stream::Works { every: Duration::from_secs(2) }).await;
        let (_, delay) = simulation.verdict(&run).await;
        assert!(delay <= LATENCY * 2, "within moments: {delay:?}");
        counts.push(simulation.api.polls().len() + simulation.api.openings().len());
        simulation.end().await;
    }
    (*counts.iter().min().unwrap() as u64, *counts.iter().max().unwrap() as u64)
}

#[tokio::test(start_paused = true)]
async fn the_table_of_requests_and_delays_is_what_the_defaults_give() {
    let mut missing = Vec::new();
    let jitter = Settings::default().watch.jitter;
    for (name, seconds) in [("10 s", 10), ("1 min", 60), ("10 min", 600), ("1 h", 3600), ("8 h", 8 * 3600)] {
        let length = Duration::from_secs(seconds);
        let (least, delay) = watched(length, 0.0);
        let (most, _) = watched(length, jitter);
        let range = |least: u64, most: u64| {
            if least == most { with_commas(least) } else { format!("{}–{}", with_commas(least), with_commas(most)) }
        };
        let requests = range(least.into(), most.into());
        let per_hour = match seconds / 3600 {
            0 => "–".to_owned(),
            hours => range((u64::from(least) + hours / 2) / hours, (u64::from(most) + hours / 2) / hours),
        };
        let delay = delay.as_secs_f64();
        let delay = if delay < 30.0 { format!("{delay:.1} s") } else { "30 s".to_owned() };
        let fixed = with_commas(seconds.div_ceil(3) + 1);
        let (fewest, most) = followed(length).await;
        let followed = range(fewest, most);
        let row = format!("| {name} | {requests} | {per_hour} | {delay} | {followed} | {fixed} requests, 3 s |");
        if !README.contains(&row) {
            missing.push(row);
        }
    }
    assert!(missing.is_empty(), "the README lacks these rows:\n{}", missing.join("\n"));
}

#[test]
fn every_exit_code_and_event_is_named() {
    for code in ["| 0 |", "| 1 |", "| 2 |", "| 3 |", "| 4 |", "| 5 |", "| 6 |", "| 124 |", "| 130, 143 |"] {
        assert!(README.contains(code), "{code}");
    }
    for event in runwatch::run::EventType::ALL {
        assert!(README.contains(&format!("`{event}`")), "{event}");
    }
}
