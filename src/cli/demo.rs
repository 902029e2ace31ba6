//! `runwatch demo`: the whole thing on this machine, with a simulated API and a real receiver.

use std::io::Write;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use jiff::Timestamp;

use super::wait::{OutputOptions, ResultFormat, StopCondition, follow};
use crate::app::Engine;
use crate::clock::Clock;
use crate::config::{Secret, Settings, SinkKind, SinkSettings, WebhookFormat, WebhookSettings};
use crate::domain::{Event, EventData, EventFilter, Labels, RunId, SinkName, Verdict, Watch};
use crate::notify::signature;
use crate::simulator::{Fault, Receiver, Script, Simulator};
use crate::store::Location;
use crate::text::humanize;

/// One run of the demo: what it shows, how it goes, and what must come of it.
struct Part {
    id: &'static str,
    name: &'static str,
    script: fn() -> Script,
    verdict: Verdict,
}

/// Short runs with different fates; together they take about twelve seconds.
const PARTS: [Part; 6] = [
    Part {
        id: "run_demo_report",
        name: "weekly report",
        script: || {
            Script::succeeds()
                .queued_for(seconds(1))
                .runs_for(seconds(5))
        },
        verdict: Verdict::Succeeded,
    },
    Part {
        id: "run_demo_research",
        name: "market research",
        script: || {
            Script::fails("OpenAI API rate limit exceeded")
                .queued_for(seconds(1))
                .runs_for(seconds(7))
        },
        verdict: Verdict::Failed,
    },
    Part {
        id: "run_demo_outreach",
        name: "outreach mails",
        script: || {
            Script::canceled()
                .queued_for(seconds(1))
                .runs_for(seconds(3))
        },
        verdict: Verdict::Canceled,
    },
    Part {
        id: "run_demo_late",
        name: "late arrival",
        script: || {
            Script::succeeds()
                .appears_after(seconds(3))
                .queued_for(seconds(1))
                .runs_for(seconds(4))
        },
        verdict: Verdict::Succeeded,
    },
    Part {
        id: "run_demo_limited",
        name: "with a 429",
        script: || {
            Script::succeeds()
                .queued_for(seconds(1))
                .runs_for(seconds(9))
                .fault_on(4, too_many_requests())
        },
        verdict: Verdict::Succeeded,
    },
    Part {
        id: "run_demo_gateway",
        name: "with a 502",
        script: || {
            Script::succeeds()
                .queued_for(seconds(2))
                .runs_for(seconds(9))
                .fault_on(3, bad_gateway())
        },
        verdict: Verdict::Succeeded,
    },
];

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn too_many_requests() -> Fault {
    Fault::status(429).with_retry_after("1")
}

fn bad_gateway() -> Fault {
    Fault::status(502)
}

/// Runs the demo and returns the exit code: 0 when everything came as it must.
///
/// # Errors
/// When a port cannot be opened or the engine breaks.
pub async fn demo(options: OutputOptions, out: &mut dyn Write) -> anyhow::Result<u8> {
    let secret = format!(
        "whsec_{}",
        base64::engine::general_purpose::STANDARD.encode(random_key()?)
    );
    let simulator = Simulator::start()
        .await
        .context("cannot start the simulated API")?;
    let verified = secret.clone();
    let receiver = Receiver::start_verifying(move |headers, body| {
        signature::verify(&verified, headers, body, Timestamp::now()).is_ok()
    })
    .await
    .context("cannot start the receiver")?;
    for part in &PARTS {
        simulator.add_run(&run_id(part.id), (part.script)());
    }
    options.screen.line(&format!(
        "A simulated API on {}\nand a webhook receiver on {}.\nSix runs, about 12 seconds.\n",
        simulator.base_url(),
        receiver.url(),
    ));

    let clock = Clock::system();
    let settings = settings(&simulator, &receiver, &secret);
    let engine = Engine::start(&settings, Location::Memory, clock.clone()).await?;
    let added_at = clock.now();
    let watch = |part: &Part| Watch {
        run_id: run_id(part.id),
        name: Some(part.name.to_owned()),
        labels: Labels::new(),
        sinks: None,
        added_at,
        deadline_at: added_at
            .checked_add(settings.watch.deadline)
            .unwrap_or(Timestamp::MAX),
    };
    let watches = PARTS.iter().map(watch).collect();
    let until = StopCondition {
        first: false,
        first_bad: false,
        linger: seconds(30),
        reached_within: None,
    };
    let results = options.results;
    let code = follow(
        engine,
        clock,
        watches,
        until,
        options,
        super::Signals::listen()?,
    )
    .await?;
    if code >= super::INTERRUPTED {
        return Ok(code);
    }
    let as_it_must = report(&simulator, &receiver, results, out)?;
    receiver.shutdown().await;
    simulator.shutdown().await;
    Ok(if as_it_must { 0 } else { 1 })
}

/// Runs the simulated API until a signal, and prints how to use it from another terminal.
///
/// # Errors
/// When a port cannot be opened.
pub async fn serve(out: &mut dyn Write) -> anyhow::Result<u8> {
    let simulator = Simulator::start()
        .await
        .context("cannot start the simulated API")?;
    for part in &PARTS {
        simulator.add_run(&run_id(part.id), (part.script)());
    }
    let ids: Vec<_> = PARTS.iter().map(|part| part.id).collect();
    writeln!(
        out,
        "export CREWSHIP_API_KEY={} RUNWATCH_API__BASE_URL={}\nrunwatch wait {}",
        simulator.api_key(),
        simulator.base_url(),
        ids.join(" "),
    )?;
    out.flush()?;
    let mut signals = super::Signals::listen()?;
    let code = signals.next().await;
    simulator.shutdown().await;
    Ok(code)
}

fn run_id(text: &str) -> RunId {
    RunId::new(text).expect("the demo's IDs are valid")
}

fn random_key() -> anyhow::Result<[u8; 32]> {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key)
        .map_err(|_unspecified| anyhow::anyhow!("no random numbers to be had"))?;
    Ok(key)
}

fn settings(simulator: &Simulator, receiver: &Receiver, secret: &str) -> Settings {
    let mut settings = Settings::default();
    settings.api.base_url = simulator.base_url();
    settings.api.key = Some(Secret::value(simulator.api_key()));
    settings.api.requests_per_minute = 600;
    settings.watch.initial_interval = Duration::from_millis(250);
    settings.watch.max_interval = seconds(1);
    let webhook = WebhookSettings {
        url: Secret::value(receiver.url()),
        secret: Some(Secret::value(secret)),
        format: WebhookFormat::Standard,
        headers: std::collections::BTreeMap::new(),
    };
    let sink = SinkSettings {
        kind: SinkKind::Webhook(Box::new(webhook)),
        events: EventFilter::verdicts(),
        labels: Labels::new(),
        retry_schedule: vec![seconds(1); 5],
    };
    settings
        .sinks
        .insert(SinkName::new("demo").expect("a valid name"), sink);
    settings
}

/// Prints what the receiver got, and whether it is what it must be.
fn report(
    simulator: &Simulator,
    receiver: &Receiver,
    results: ResultFormat,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let mut received = Vec::new();
    for request in receiver.requests() {
        let event = Event::from_json(&String::from_utf8_lossy(&request.body))
            .context("the receiver got no event")?;
        received.push((event, request.verified == Some(true), request.at));
    }
    let arrived = |part: &Part| {
        let of_run: Vec<_> = received
            .iter()
            .filter(|(event, _, _)| event.run_id().is_some_and(|id| id.as_str() == part.id))
            .collect();
        matches!(of_run.as_slice(), [(event, true, _)] if event.event_type == part.verdict.event_type())
    };
    let as_it_must = received.len() == PARTS.len() && PARTS.iter().all(arrived);
    let (runs, messages, requests) = (PARTS.len(), received.len(), simulator.requests().len());
    if results == ResultFormat::Json {
        let summary = serde_json::json!({
            "runs": runs, "messages": messages, "requests": requests, "as_it_must_be": as_it_must,
        });
        writeln!(out, "{summary}")?;
        return Ok(as_it_must);
    }
    writeln!(out, "\nThe receiver got:")?;
    for (event, verified, at) in &received {
        let EventData::Run(data) = &event.data else {
            continue;
        };
        let signed = if *verified {
            "signature verified"
        } else {
            "SIGNATURE NOT VERIFIED"
        };
        // Not the delay of the event: the API gives times in whole seconds.
        let delay = simulator
            .ends_at(&data.run.id)
            .map(|end| humanize(at.saturating_duration_since(end)));
        let delay = delay
            .map(|delay| format!(", {delay} after the end"))
            .unwrap_or_default();
        writeln!(
            out,
            "  {:<14} {:<18} {signed}{delay}",
            event.event_type.as_str(),
            data.run.id
        )?;
    }
    let outcome = if as_it_must {
        "every verdict right, nothing lost."
    } else {
        "NOT AS IT MUST BE."
    };
    writeln!(
        out,
        "\n{runs} runs, {messages} messages, {requests} requests: {outcome}"
    )?;
    out.flush()?;
    Ok(as_it_must)
}
