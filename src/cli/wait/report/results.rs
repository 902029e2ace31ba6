//! The results of a `wait` on standard output, and its exit code.

use std::io;
use std::io::IsTerminal as _;

use tokio::time::timeout_at;

use super::WaitReport;
use crate::cli::USAGE;
use crate::cli::WAITING;
use crate::cli::wait::{ResultFormat, StopCondition};
use crate::domain::{Event, RunEvent, Verdict};
use crate::notify::summary;
use crate::text::escape_json_for_terminal;

impl WaitReport {
    /// The exit code for the verdicts there are.
    pub(in crate::cli::wait) fn verdict_code(&self, until: StopCondition) -> u8 {
        let worst = Verdict::worst(self.runs.values().filter_map(|run| run.verdict));
        let code = match worst {
            Some(verdict) if verdict != Verdict::Succeeded => verdict.exit_code(),
            _ if until.waiting && self.waits() => WAITING,
            worst => worst.map_or(0, Verdict::exit_code),
        };
        match self.options.screen.out.result_failed() {
            _ if code != 0 => code,
            // A reader that has seen enough closes the pipe; anything else lost a result.
            Some(error) if error != io::ErrorKind::BrokenPipe => USAGE,
            _ if self.unread => USAGE,
            _ => code,
        }
    }

    /// Waits until standard output takes another result, but not for a reader that is late. Cancel-safe.
    pub(in crate::cli::wait) async fn room(&mut self) {
        let out = self.options.screen.out.clone();
        self.until_read(out.room()).await;
    }

    /// Whether another result can be printed without waiting.
    pub(in crate::cli::wait) fn has_room(&self) -> bool {
        self.unread || self.options.screen.out.has_room()
    }

    /// Waits until all results are written, but not for a reader that is late, and reports what went wrong. Cancel-safe.
    pub(in crate::cli::wait) async fn flush(&mut self) {
        let out = self.options.screen.out.clone();
        self.until_read(out.flush()).await;
        if self.unread {
            self.options
                .screen
                .line("error: results are lost, because standard output was not read");
        } else if let Some(error) = self.options.screen.out.result_failed() {
            self.options
                .screen
                .line(&format!("cannot write to standard output: {error}"));
        }
    }

    async fn until_read(&mut self, read: impl Future<Output = ()>) {
        match self.reader_limit {
            _ if self.unread => {}
            Some(limit) => self.unread = timeout_at(limit, read).await.is_err(),
            None => read.await,
        }
    }

    /// Prints what is known now of one run to standard output.
    pub(super) fn print_result(&self, verdict: Verdict, event: &Event, data: &RunEvent) {
        match self.options.results {
            ResultFormat::Text => self.print(&self.result_line(verdict, event)),
            ResultFormat::Json => {
                let run = &data.run.id;
                let line = serde_json::json!({
                    "provider": run.provider(), "run_id": run.id(), "verdict": verdict.as_str(),
                });
                let mut line = line.to_string();
                // The data goes in as text: a JSON value would change the run's own numbers.
                let json = serde_json::to_string(data).expect("an event has only text keys");
                line.truncate(line.len() - 1);
                self.print(&format!(
                    "{line},\"data\":{}}}",
                    escape_json_for_terminal(&json)
                ));
            }
            ResultFormat::Output => match (verdict, &data.run.output) {
                // A program gets it as the API sent it. What a terminal gets means the same.
                (Verdict::Succeeded, Some(output)) if io::stdout().is_terminal() => {
                    self.print(&escape_json_for_terminal(output.get()));
                }
                (Verdict::Succeeded, Some(output)) => self.print(output.get()),
                (Verdict::Succeeded, None)
                    if data.truncated.iter().any(|name| name == "output") =>
                {
                    let what = "is left out: it is too large, nested too deeply, or not JSON that programs can read";
                    self.options
                        .screen
                        .line(&format!("warning: the output of {} {what}", data.run.id));
                }
                _ => {}
            },
            ResultFormat::Nothing => {}
        }
    }

    fn result_line(&self, verdict: Verdict, event: &Event) -> String {
        let summary = summary::in_zone(event, &self.zone);
        let mut line = summary.title.replacen(
            verdict.as_str(),
            &self.options.result_style.state(verdict.as_str()),
            1,
        );
        for detail in &summary.lines {
            line.push_str("\n  ");
            line.push_str(detail);
        }
        line
    }

    /// Prints to standard output. One that cannot be written is no reason to stop: the messages to others matter all
    /// the same.
    pub(super) fn print(&self, text: &str) {
        if !self.unread {
            self.options.screen.out.print(format!("{text}\n"));
        }
    }
}
