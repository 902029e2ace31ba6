//! `runwatch demo`: a day of trouble in a quarter of a minute, with a simulated API, a receiver and a real daemon.

mod parts;
mod report;
mod serve;
mod story;
mod world;

use std::io::Write;

use self::report::DemoReport;
pub use self::serve::serve;
use self::story::Story;
use self::world::DemoWorld;
use super::{Signals, write_text};
use crate::screen::Screen;
use crate::style::{Style, fold, width};

/// How the demo prints.
pub struct DemoOptions {
    /// Where lines about what happens go.
    pub screen: Screen,
    /// Whether there are lines about what happens, as it happens.
    pub progress: bool,
    /// How standard error looks.
    pub style: Style,
    /// How standard output looks.
    pub out_style: Style,
    /// The result as JSON.
    pub json: bool,
    /// Columns of the terminal that results go to, if they go to one.
    pub columns: Option<u16>,
}

/// Runs the demo and returns the exit code: 0 when every run's end was delivered and right, and all trouble was
/// met; 1 otherwise; that of a signal which ended it. The daemon and its folder are gone afterwards in each case.
///
/// # Errors
/// When a port cannot be opened, or the daemon cannot be started.
pub async fn demo(options: &DemoOptions, out: &mut dyn Write) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let mut world = tokio::select! {
        world = DemoWorld::start() => world?,
        code = signals.next() => return Ok(code),
    };
    let played = tokio::select! {
        played = Story::new(options).play(&mut world) => Ok(played),
        code = signals.next() => Err(code),
    };
    // Ended before its folder is removed, which it would otherwise write to.
    world.end().await;
    let report = match played {
        Ok(report) => report?,
        Err(code) => return Ok(code),
    };
    write_text(out, &text(&report, options))?;
    Ok(u8::from(!report.is_as_it_must_be()))
}

fn text(report: &DemoReport, options: &DemoOptions) -> String {
    if options.json {
        return report.json();
    }
    let columns = options.columns.map_or(DEFAULT_COLUMNS, usize::from);
    let mut text = format!("\n{}", report.text(options.out_style, columns));
    if options.progress {
        text.push_str(&next(columns));
    }
    text
}

/// Columns where results do not go to a terminal.
const DEFAULT_COLUMNS: usize = 80;

/// What to try after the demo: commands, each with what it is for.
const NEXT: [(&str, &str); 3] = [
    (
        "runwatch demo --serve",
        "the simulated API, for experiments of your own",
    ),
    (
        "runwatch config init",
        "a configuration for your own runs and receivers",
    ),
    (
        "runwatch wait RUN_ID",
        "waits for a run; the exit code is its verdict",
    ),
];

/// [`NEXT`] as a table, or as a list where that would be wider than the terminal.
fn next(columns: usize) -> String {
    let table: Vec<_> = NEXT
        .iter()
        .enumerate()
        .map(|(at, (command, what))| {
            let head = if at == 0 { "Next:" } else { "" };
            format!("{head:5} {command:24}  {what}\n")
        })
        .collect();
    if table.iter().all(|line| width(line) <= columns) {
        return format!("\n{}", table.concat());
    }
    let list = NEXT
        .map(|(command, what)| format!("  {command}\n{}\n", fold(&format!("    {what}"), columns)));
    format!("\nNext:\n{}", list.concat())
}
