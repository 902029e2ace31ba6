//! What a `wait` shows while runs go on: live lines on a terminal, else a sentence now and then.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::WaitReport;
use crate::cli::wait::sentences::{budget_sentence, life_line, provider_sentence};
use crate::cli::wait::view::{Circumstances, Scene, live_lines};
use crate::control::PollingResponse;
use crate::scheduler::{BreakerView, Outage, WatchView};
use crate::style::time_of_day;

/// What was last shown about the API.
#[derive(Default)]
pub(super) struct ProviderLine {
    pub(super) outage: Option<Outage>,
    pub(super) message: String,
    wrong_path: bool,
    /// When it is repeated, and after how long the time after that.
    pub(super) again: Option<(Instant, Duration)>,
}

/// How long nothing is shown without a terminal before a line shows life.
pub(super) const LIFE: Duration = Duration::from_secs(60);

/// When a failure that goes on is shown again, at first; twice as long each time after that, up to the longest.
const REPEAT: Duration = Duration::from_secs(15);

const LONGEST_REPEAT: Duration = Duration::from_secs(600);

/// How the failure of a poll begins for which there was no key.
const NO_KEY: &str = "no API key is configured";

impl WaitReport {
    /// What a daemon shows of the API: its own report, or else, from one that gives none, polls that fail, for the
    /// reason of the first run whose last poll did.
    pub(in crate::cli::wait) fn circumstances_of(
        &mut self,
        views: &[WatchView],
        polling: Option<&PollingResponse>,
        now: Timestamp,
    ) -> Circumstances {
        let mut failing = None;
        for view in views {
            if let Some(run) = self.runs.get_mut(&view.run_id) {
                run.observe(view, now);
                failing = failing.or_else(|| Some((run.failure()?.to_owned(), view.next_poll_at)));
            }
        }
        let of_runs = || {
            failing.map(|(message, retry_at)| BreakerView {
                outage: Some(match message.starts_with(NO_KEY) {
                    true => Outage::Refused,
                    false => Outage::Failing,
                }),
                message,
                retry_at: Some(retry_at),
                ever_answered: true,
                reached: true,
                failures: 1,
            })
        };
        let mut breaker = match polling {
            Some(polling) => polling.breaker(),
            None => of_runs().unwrap_or_default(),
        };
        breaker.message = breaker.message.replace(NO_KEY, "no API key in the daemon");
        Circumstances {
            breaker,
            usage: polling.map(PollingResponse::usage),
            ..Circumstances::default()
        }
    }

    /// Shows how things are: live lines, or a plain line when that changes or nothing changes for long.
    pub(in crate::cli::wait) fn show(
        &mut self,
        now: Timestamp,
        views: &[WatchView],
        about: &Circumstances,
    ) {
        for view in views {
            if let Some(run) = self.runs.get_mut(&view.run_id) {
                run.observe(view, now);
            }
        }
        let before = self.provider.outage;
        if before != about.breaker.outage && about.breaker.outage != Some(Outage::Failing) {
            match before {
                Some(Outage::Paused) => self.survived.0 += 1,
                Some(Outage::Failing | Outage::Refused) => self.survived.1 += 1,
                None => {}
            }
        }
        if self.is_live() {
            self.draw(now, views, about);
        } else if self.options.progress {
            self.provider_line(now, about);
            if self.life_at <= Instant::now() && !views.is_empty() {
                self.show_life(now, views, about);
            }
        }
        self.provider.outage = about.breaker.outage;
        self.provider.message.clone_from(&about.breaker.message);
        self.provider.wrong_path = about.wrong_path.is_some();
    }

    fn draw(&mut self, now: Timestamp, views: &[WatchView], about: &Circumstances) {
        self.step += 1;
        let runs = self.runs_in_order();
        let scene = Scene {
            style: self.style(),
            zone: &self.zone,
            now,
            step: self.step,
            waited: self.began.elapsed(),
            runs: &runs,
            views,
            circumstances: about,
        };
        let screen = &self.options.screen;
        let lines = live_lines(&scene, screen.columns(), screen.rows());
        if let Some(area) = &mut self.area {
            area.show(lines);
        }
    }

    /// A line when the API's state is another one, and at growing intervals while a failure goes on.
    fn provider_line(&mut self, now: Timestamp, about: &Circumstances) {
        let changed = (self.provider.outage, &self.provider.message)
            != (about.breaker.outage, &about.breaker.message)
            || self.provider.wrong_path != about.wrong_path.is_some();
        let due = self
            .provider
            .again
            .is_some_and(|(at, _)| at <= Instant::now());
        let what = match provider_sentence(about, now, &self.zone) {
            Some(sentence) if changed || due => {
                let after = match self.provider.again {
                    Some((_, after)) if !changed => (after * 2).min(LONGEST_REPEAT),
                    _ => REPEAT,
                };
                self.provider.again = Some((Instant::now() + after, after));
                self.style().warning(&sentence)
            }
            None if self.provider.again.take().is_some() => {
                let host = about.host.as_deref().unwrap_or("the API");
                format!("{host} answers again")
            }
            _ => return,
        };
        let clock = self.style().dim(&time_of_day(now, &self.zone));
        self.say(&format!("{clock}  {what}"));
    }

    /// A line that shows life, and why the runs wait.
    fn show_life(&mut self, now: Timestamp, views: &[WatchView], about: &Circumstances) {
        let (style, runs) = (self.style(), self.runs_in_order());
        let times = (now, about.breaker.retry_at);
        let mut line = life_line(style, times, &self.zone, self.began.elapsed(), &runs, views);
        if let Some(why) = budget_sentence(about, views, now) {
            line.push_str("; ");
            line.push_str(&why);
        }
        self.say(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::wait::tracked::Tracked;
    use crate::cli::wait::{OutputOptions, ResultFormat};
    use crate::domain::RunRef;
    use crate::screen::Screen;
    use crate::style::Style;

    fn report() -> WaitReport {
        let options = OutputOptions {
            screen: Screen::plain(),
            progress: true,
            style: Style::PLAIN,
            result_style: Style::PLAIN,
            results: ResultFormat::Nothing,
            follow: false,
            changes: false,
            group: None,
        };
        let run_id = RunRef::new("run_1").unwrap();
        let run = Tracked::new(run_id, None, Timestamp::UNIX_EPOCH);
        WaitReport::new(options, vec![run], None)
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_terminal_quiet_shows_life_and_failures_come_again_less_and_less_often() {
        let (mut report, began) = (report(), Instant::now());
        let wakes_after = |report: &WaitReport| report.wakes_at().unwrap().duration_since(began);
        assert_eq!(wakes_after(&report), LIFE);
        let failing = Circumstances {
            breaker: BreakerView {
                outage: Some(Outage::Failing),
                message: "502 Bad Gateway".to_owned(),
                reached: true,
                ..BreakerView::default()
            },
            ..Circumstances::default()
        };
        let (mut shown, now) = (Vec::new(), Timestamp::UNIX_EPOCH);
        for second in 0..120 {
            let before = report.provider.again;
            report.show(now, &[], &failing);
            if report.provider.again != before {
                shown.push(second);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(shown, [0, 15, 45, 105]);
        report.show(now, &[], &Circumstances::default());
        assert_eq!(report.provider.again, None);
        assert_eq!(report.survived, (0, 1));
        assert_eq!(wakes_after(&report), LIFE + Duration::from_secs(120));
    }
}
