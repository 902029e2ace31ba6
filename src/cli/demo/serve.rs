//! `runwatch demo --serve`: the simulated API for experiments.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Context as _;

use super::parts::PARTS;
use crate::cli::{Signals, write_text};
use crate::screen::Screen;
use crate::simulator::Simulator;

/// Runs the simulated API until a signal, and prints how to use it from another terminal: to `out` what a shell can
/// take, to the screen the rest. Each run begins with the first request for it.
///
/// # Errors
/// When a port cannot be opened, or `out` cannot be written to.
pub async fn serve(screen: &Screen, progress: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let simulator = Simulator::start()
        .await
        .context("cannot start the simulated API")?;
    for part in &PARTS {
        part.add_to(&simulator, true);
    }
    let (key, base_url) = (simulator.api_key(), simulator.base_url());
    if progress {
        screen.line(&format!(
            "The simulated API is at {base_url} until Ctrl-C. In another terminal:\n"
        ));
    }
    write_text(out, &commands(&key, &base_url))?;
    if progress {
        screen.line("\nEach run begins with its first poll. More to try: docs/try.md");
    }
    let code = signals.next().await;
    simulator.shutdown().await;
    Ok(code)
}

/// The commands to try, each a line that a shell takes.
fn commands(key: &str, base_url: &str) -> String {
    let ids: Vec<_> = PARTS.iter().map(|part| part.id).collect();
    let mut text = format!(
        "export CREWSHIP_API_KEY={key} RUNWATCH_API__BASE_URL={base_url}\nrunwatch wait {}\n",
        ids.join(" ")
    );
    let create = "curl -s \"$RUNWATCH_API__BASE_URL/v1/runs\" -H \"Authorization: Bearer $CREWSHIP_API_KEY\" \\\n  \
                -d '{\"deployment_id\":\"dep_abc123xyz\"}' | runwatch wait -";
    for (line, what) in [
        (
            "runwatch wait -f run_demo_report",
            "shows what the run does",
        ),
        (create, "makes another run"),
        ("runwatch daemon &", "watches runs in the background"),
        ("runwatch add run_demo_late", "hands a run to the daemon"),
        ("runwatch list", "its watches"),
        ("runwatch show run_demo_late", "everything about one"),
        ("runwatch deliveries", "its notifications"),
        ("runwatch doctor", "checks all of it"),
    ] {
        write!(text, "\n# {what}:\n{line}\n").expect("a String takes all text");
    }
    text
}
