//! The live view of `wait`: a summary, a row per run that is still going, and why it waits. No I/O.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::sentences::{budget_sentence, counts_by_state, provider_sentence, verdict_word};
use super::tracked::{Going, Tracked};
use crate::cli::expectation::{BAR_WITH_TEXT, bar_with_text};
use crate::domain::ProviderName;
use crate::domain::Verdict;
use crate::scheduler::{BreakerView, Usage, WatchView};
use crate::style::{Look, Style, elapsed, pad, pad_left, width};
use crate::text::one_line;

/// The width of the column of states where these are the usual ones, and the most for others.
const STATE: usize = 11;
const LONGEST_STATE: usize = 24;

/// The width of the column of times: `23h 59m`.
const TIME: usize = 7;

/// The least columns for what a run does; with fewer this column is left out.
const LEAST_DETAIL: usize = 10;

/// The columns that what a run does keeps beside the last column, which is left out otherwise.
const AMPLE_DETAIL: usize = 32;

/// The most columns for what a run does, where another column follows.
const LONGEST_DETAIL: usize = 72;

/// Where the right end of the summary is on a wide terminal.
const SUMMARY: usize = 96;

/// Most lines that one sentence takes.
const SENTENCE_LINES: usize = 3;

/// What the view shows.
pub(super) struct Scene<'a> {
    pub(super) style: Style,
    pub(super) zone: &'a TimeZone,
    pub(super) now: Timestamp,
    /// The number of the frame, which moves the glyph of those that run.
    pub(super) step: usize,
    /// The time since the wait began.
    pub(super) waited: Duration,
    /// The runs in the order in which they were named.
    pub(super) runs: &'a [&'a Tracked],
    /// What the scheduler knows of those that are still going.
    pub(super) views: &'a [WatchView],
    pub(super) circumstances: &'a Circumstances,
}

/// What concerns all runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Circumstances {
    /// The provider that this is about, where that is known.
    pub(super) provider: Option<ProviderName>,
    pub(super) breaker: BreakerView,
    /// How much of the budget is used, where that is known.
    pub(super) usage: Option<Usage>,
    /// The name of the API's host, where it is known.
    pub(super) host: Option<String>,
    /// How long every answer must be 404 before a run is not found, where that is known.
    pub(super) grace: Option<Duration>,
    /// When the wait ends because the API was never reached.
    pub(super) gives_up_at: Option<Timestamp>,
    /// What is wrong with the address of the API, where every answer is 404 and its path is the likely cause.
    pub(super) wrong_path: Option<String>,
}

/// How wide the columns are; 0 leaves one out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowLayout {
    name: usize,
    state: usize,
    time: usize,
    detail: usize,
    extra: usize,
}

impl RowLayout {
    /// The columns for these runs on a terminal that is so wide. They depend on names, IDs and unusual states only, so
    /// that nothing moves from one frame to the next.
    pub(super) fn new(runs: &[&Tracked], columns: usize) -> Self {
        let longest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
        // The last column of a terminal stays free.
        let columns = columns.saturating_sub(1);
        let state = longest(&mut runs.iter().map(|run| width(&run.state_word(None))));
        let state = state.clamp(STATE, LONGEST_STATE);
        let beside = |column: usize| if column == 0 { 0 } else { column + 2 };
        let (state, time) = match columns {
            0..24 => (0, 0),
            24..34 => (STATE, 0),
            34..60 => (STATE, TIME),
            _ => (state, TIME),
        };
        // An ID is not cut where it fits without the columns after it.
        let ids = runs.iter().filter(|run| run.is_called_by_id());
        let id = longest(&mut ids.map(|run| width(&run.label)));
        let fits = |(state, time)| 2 + id + beside(state) + beside(time) <= columns;
        let fewer = [(state, time), (state, 0), (0, 0)];
        let (state, time) = fewer
            .into_iter()
            .find(|kept| fits(*kept))
            .unwrap_or((state, time));
        let fixed = 2 + beside(state) + beside(time);
        let most = if columns < 60 {
            columns.saturating_sub(fixed)
        } else {
            columns * 2 / 5
        };
        let name = longest(&mut runs.iter().map(|run| width(&run.label))).min(most);
        let left = columns.saturating_sub(fixed + name + 2);
        let extra = longest(&mut runs.iter().map(|run| run.extra.as_deref().map_or(0, width)));
        let has_bars = runs.iter().any(|run| run.has_expectation);
        let ample = AMPLE_DETAIL + if has_bars { BAR_WITH_TEXT + 2 } else { 0 };
        let extra = if extra > 0 && left >= extra + 2 + ample {
            extra
        } else {
            0
        };
        let detail = match left.saturating_sub(beside(extra)) {
            detail if extra > 0 => detail.min(LONGEST_DETAIL),
            detail => detail,
        };
        Self {
            name,
            state,
            time,
            detail: if detail < LEAST_DETAIL || time == 0 {
                0
            } else {
                detail
            },
            extra,
        }
    }

    /// A row of cells, which may be colored: none is wider than its column.
    fn row(
        self,
        style: Style,
        glyph: &str,
        run: &Tracked,
        (look, state): (Look, &str),
        time: &str,
        detail: &str,
    ) -> String {
        let cell = |text: &str, columns| style.cut(text, columns).into_owned();
        let label = run.label_within(style, self.name);
        let mut row = format!("{glyph} {}", pad(&label, self.name));
        if self.state > 0 {
            let state = style.as_look(look, &cell(state, self.state));
            row.push_str(&format!("  {}", pad(&state, self.state)));
        }
        if self.time > 0 {
            row.push_str(&format!("  {}", pad_left(time, self.time)));
        }
        if self.detail > 0 {
            row.push_str(&format!(
                "  {}",
                pad(&cell(detail, self.detail), self.detail)
            ));
        }
        if self.extra > 0 {
            let extra = run.extra.as_deref().unwrap_or_default();
            row.push_str(&format!("  {}", style.dim(extra)));
        }
        row.trim_end().to_owned()
    }
}

/// The row of a run that has ended, and whether its detail was cut.
pub(super) fn ended_row(
    style: Style,
    layout: RowLayout,
    run: &Tracked,
    verdict: Verdict,
    took: Duration,
    detail: &str,
) -> (String, bool) {
    let word = verdict_word(verdict);
    let look = Look::of(verdict.as_str());
    let row = layout.row(
        style,
        &style.glyph(look),
        run,
        (look, word),
        &elapsed(took),
        detail,
    );
    (row, width(detail) > layout.detail)
}

/// The lines of the view on a terminal of this size, at most one less than it has rows.
pub(super) fn live_lines(scene: &Scene<'_>, columns: usize, rows: usize) -> Vec<String> {
    let most = rows.saturating_sub(1);
    let layout = RowLayout::new(scene.runs, columns);
    let mut notes = notes(scene, columns.saturating_sub(1));
    notes.truncate(most.saturating_sub(1).div_ceil(3));
    let going: Vec<_> = scene
        .runs
        .iter()
        .filter(|run| run.verdict.is_none())
        .collect();
    let room = most.saturating_sub(1 + notes.len());
    let shown = if going.len() > room {
        room.saturating_sub(1)
    } else {
        going.len()
    };
    let mut lines = vec![summary(scene, columns.saturating_sub(1))];
    lines.extend(
        going[..shown]
            .iter()
            .map(|run| live_row(scene, layout, run)),
    );
    if going.len() > shown && room > 0 {
        let rest = &going[shown..];
        let counts = counts(
            scene.style,
            &rest.iter().map(|run| **run).collect::<Vec<_>>(),
            scene.views,
        );
        let ellipsis = if scene.style.unicode { "…" } else { "..." };
        let line = format!("{ellipsis} and {} more: {counts}", rest.len());
        lines.push(
            scene
                .style
                .cut(&line, columns.saturating_sub(1))
                .into_owned(),
        );
    }
    lines.extend(notes);
    lines.truncate(most);
    lines
}

/// Counts by state, then the time and the requests, as far as they fit.
fn summary(scene: &Scene<'_>, columns: usize) -> String {
    let style = scene.style;
    let glyph = style.moving_glyph(Look::Running, scene.step);
    let left = format!("{glyph} {}", counts(style, scene.runs, scene.views));
    let time = pad_left(&elapsed(scene.waited), TIME);
    let usage = scene.circumstances.usage.map(|usage| {
        let limit = usage.per_minute.to_string();
        let used = pad_left(&usage.last_minute.to_string(), limit.len());
        format!("   {used} of {limit} req/min")
    });
    let end = columns.min(SUMMARY);
    for right in [usage.map(|usage| format!("{time}{usage}")), Some(time)]
        .into_iter()
        .flatten()
    {
        if width(&left) + 2 + width(&right) <= end {
            return format!("{left}{}", pad_left(&style.dim(&right), end - width(&left)));
        }
    }
    style.cut(&left, columns).into_owned()
}

/// How many runs are in each state, each count in the color of the state.
fn counts(style: Style, runs: &[&Tracked], views: &[WatchView]) -> String {
    let parts: Vec<_> = counts_by_state(runs, views)
        .iter()
        .map(|(word, count)| style.as_look(Look::of(word), &format!("{count} {word}")))
        .collect();
    parts.join(style.separator())
}

fn live_row(scene: &Scene<'_>, layout: RowLayout, run: &Tracked) -> String {
    let style = scene.style;
    let view = scene.views.iter().find(|view| view.run_id == run.run_id);
    let state = run.state_word(view);
    let look = Look::of(&run.kind(view));
    let time = scene.now.duration_since(run.added_at);
    let time = elapsed(Duration::try_from(time).unwrap_or_default());
    let detail = view
        .map(|view| {
            run.detail(&Going {
                view,
                now: scene.now,
                circumstances: scene.circumstances,
            })
        })
        .or_else(|| run.activity.clone())
        .unwrap_or_default();
    let detail = style.dim(&one_line(&detail, usize::MAX));
    let expected = view.and_then(|view| view.expected.as_ref());
    let detail = match expected.filter(|_| look == Look::Running) {
        Some(expected) => {
            let bar = bar_with_text(style, expected, scene.now, layout.detail);
            if width(&bar) + 2 + LEAST_DETAIL <= layout.detail {
                format!("{bar}  {detail}")
            } else {
                bar
            }
        }
        None => detail,
    };
    layout.row(
        style,
        &style.moving_glyph(look, scene.step),
        run,
        (look, &state),
        &time,
        &detail,
    )
}

/// Why the runs wait, in sentences that are folded at words.
fn notes(scene: &Scene<'_>, columns: usize) -> Vec<String> {
    let circumstances = scene.circumstances;
    let sentence = provider_sentence(circumstances, scene.now, scene.zone)
        .or_else(|| budget_sentence(circumstances, scene.views, scene.now));
    let lines = sentence
        .map(|sentence| fold(&sentence, columns))
        .unwrap_or_default();
    lines.iter().map(|line| scene.style.warning(line)).collect()
}

/// `text` in lines of at most so many columns, broken at spaces; the last is cut when there would be too many.
fn fold(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let is_last = lines.len() == SENTENCE_LINES;
        match lines.last_mut() {
            Some(line) if is_last || width(line) + 1 + width(word) <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
        .iter()
        .map(|line| Style::PLAIN.cut(line, columns).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Expectation, RunRef, RunState, Status, UsualDuration};
    use crate::scheduler::Outage;
    use crate::store::PollFailure;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn now() -> Timestamp {
        time("2026-01-01T00:00:47Z")
    }

    fn run(id: &str, name: &str, status: Option<Status>) -> Tracked {
        let name = (!name.is_empty()).then(|| name.to_owned());
        Tracked {
            status,
            ..Tracked::new(RunRef::new(id).unwrap(), name, time("2026-01-01T00:00:00Z"))
        }
    }

    fn view(run: &Tracked, next_poll_at: &str) -> WatchView {
        WatchView {
            run_id: run.run_id.clone(),
            status: run.status.clone(),
            polls: 3,
            missing_since: None,
            expected: None,
            polling: false,
            next_poll_at: time(next_poll_at),
            last_error: None,
        }
    }

    /// Seven runs in every state that the view knows, and what the scheduler knows of them.
    fn scene_of_all() -> (Vec<Tracked>, Vec<WatchView>) {
        let status = |word: &str| Some(Status::read(None, word));
        let mut runs = vec![
            run("run_demo_report", "weekly report", status("running")),
            run("run_demo_research", "market research", status("running")),
            run("run_demo_deploy", "site deploy", status("waiting")),
            run("run_demo_late", "", None),
            run("run_demo_wide", "日本語の名前です", status("pending")),
            run("run_demo_odd", "odd\x1b[31m one", status("re\x1b]0;queued")),
            run("run_demo_done", "outreach mails", status("canceled")),
        ];
        runs[0].activity =
            Some("agent.action: researcher reads 3 pages about AI agents".to_owned());
        runs[6].verdict = Some(Verdict::Canceled);
        Tracked::label_all(&mut runs);
        let mut views: Vec<_> = runs
            .iter()
            .map(|run| view(run, "2026-01-01T00:00:55.200Z"))
            .collect();
        views.pop();
        views[1].last_error = Some(PollFailure {
            at: now(),
            message: "502 Bad Gateway".to_owned(),
        });
        views[3].missing_since = Some(time("2026-01-01T00:00:44Z"));
        views[4].next_poll_at = now();
        for polls in [3, 4] {
            for (run, view) in runs.iter_mut().zip(&mut views) {
                view.polls = polls;
                run.observe(view, now());
            }
        }
        (runs, views)
    }

    fn drawn(about: &Circumstances, style: Style, columns: usize, rows: usize) -> String {
        let (runs, views) = scene_of_all();
        let runs: Vec<_> = runs.iter().collect();
        let scene = Scene {
            style,
            zone: &TimeZone::UTC,
            now: now(),
            step: 2,
            waited: Duration::from_secs(47),
            runs: &runs,
            views: &views,
            circumstances: about,
        };
        let lines = live_lines(&scene, columns, rows);
        assert!(lines.len() < rows, "{lines:?}");
        for line in &lines {
            assert!(width(line) < columns, "{columns}: {line:?}");
        }
        lines.join("\n")
    }

    fn about() -> Circumstances {
        Circumstances {
            usage: Some(Usage {
                last_minute: 31,
                per_minute: 60,
                total: 38,
                watches: 6,
            }),
            host: Some("api.crewship.dev".to_owned()),
            grace: Some(Duration::from_secs(120)),
            ..Circumstances::default()
        }
    }

    #[test]
    fn columns_are_dropped_whole_as_it_gets_narrow() {
        insta::assert_snapshot!(drawn(&about(), Style::PLAIN, 200, 40), @r"
        ⠹ 2 running · 1 waiting · 1 pending · 1 not there · 1 re]0;queued · 1 canceled              0:47
        ⠹ weekly report     running         0:47  agent.action: researcher reads 3 pages about AI agents                    run_demo_report
        ⠹ market research   running         0:47  polled again after 502 Bad Gateway                                        run_demo_research
        ⏸ site deploy       waiting         0:47  next poll in 9s                                                           run_demo_deploy
        · run_demo_late     not there       0:47  404 for 3s (grace 2m)
        · 日本語の名前です  pending         0:47  waiting for its turn                                                      run_demo_wide
        · odd[31m one       re]0;queued     0:47  next poll in 9s                                                           run_demo_odd
        6 runs share 60 requests a minute: each is polled about every 8 s (api.requests_per_minute)
        ");
        insta::assert_snapshot!(drawn(&about(), Style::PLAIN, 120, 40), @r"
        ⠹ 2 running · 1 waiting · 1 pending · 1 not there · 1 re]0;queued · 1 canceled              0:47
        ⠹ weekly report     running         0:47  agent.action: researcher reads 3 pages about AI agents      run_demo_report
        ⠹ market research   running         0:47  polled again after 502 Bad Gateway                          run_demo_research
        ⏸ site deploy       waiting         0:47  next poll in 9s                                             run_demo_deploy
        · run_demo_late     not there       0:47  404 for 3s (grace 2m)
        · 日本語の名前です  pending         0:47  waiting for its turn                                        run_demo_wide
        · odd[31m one       re]0;queued     0:47  next poll in 9s                                             run_demo_odd
        6 runs share 60 requests a minute: each is polled about every 8 s (api.requests_per_minute)
        ");
        insta::assert_snapshot!(drawn(&about(), Style::PLAIN, 80, 40), @r"
        ⠹ 2 running · 1 waiting · 1 pending · 1 not there · 1 re]0;queued · 1 canceled
        ⠹ weekly report     running         0:47  agent.action: researcher reads 3 pag…
        ⠹ market research   running         0:47  polled again after 502 Bad Gateway
        ⏸ site deploy       waiting         0:47  next poll in 9s
        · run_demo_late     not there       0:47  404 for 3s (grace 2m)
        · 日本語の名前です  pending         0:47  waiting for its turn
        · odd[31m one       re]0;queued     0:47  next poll in 9s
        6 runs share 60 requests a minute: each is polled about every 8 s
        (api.requests_per_minute)
        ");
        insta::assert_snapshot!(drawn(&about(), Style::PLAIN, 40, 40), @r"
        ⠹ 2 running · 1 waiting · 1 pending · …
        ⠹ weekly report    running         0:47
        ⠹ market research  running         0:47
        ⏸ site deploy      waiting         0:47
        · run_demo_late    not there       0:47
        · 日本語の名前で…  pending         0:47
        · odd[31m one      re]0;queued     0:47
        6 runs share 60 requests a minute: each
        is polled about every 8 s
        (api.requests_per_minute)
        ");
        for columns in 2..220 {
            drawn(&about(), Style::PLAIN, columns, 40);
        }
    }

    #[test]
    fn a_small_terminal_shows_counts_for_the_rest_and_an_outage_says_why() {
        insta::assert_snapshot!(drawn(&about(), Style::PLAIN, 80, 5), @r"
        ⠹ 2 running · 1 waiting · 1 pending · 1 not there · 1 re]0;queued · 1 canceled
        ⠹ weekly report     running         0:47  agent.action: researcher reads 3 pag…
        … and 5 more: 1 running · 1 waiting · 1 pending · 1 not there · 1 re]0;queued
        6 runs share 60 requests a minute: each is polled about every 8 s
        ");
        let mut failing = about();
        failing.breaker = BreakerView {
            outage: Some(Outage::Failing),
            message: "no connection: client error (Connect): tcp connect error: Connection refused (os error 111)".to_owned(),
            retry_at: Some(time("2026-01-01T00:00:55Z")),
            ever_answered: false,
            reached: false,
            failures: 3,
        };
        failing.gives_up_at = Some(time("2026-01-01T00:01:11Z"));
        let ascii = Style {
            unicode: false,
            ..Style::PLAIN
        };
        insta::assert_snapshot!(drawn(&failing, ascii, 60, 9), @r"
        * 2 running - 1 waiting - 1 pending - 1 not there - 1 re...
        * weekly report     running         0:47  agent.action: ...
        * market research   running         0:47
        ! site deploy       waiting         0:47
        . run_demo_late     not there       0:47  404 for 3s (gr...
        ... and 2 more: 1 pending - 1 re]0;queued
        cannot reach api.crewship.dev: connection refused; giving
        up in 24 s
        ");
        for rows in 1..12 {
            let shown = drawn(&failing, ascii, 60, rows);
            assert!(shown.lines().count() < rows);
        }
    }

    /// The rows of runs in groups with different histories, at 80 columns.
    fn expected_rows(style: Style, after: i64) -> String {
        let status = |word: &str| Some(Status::read(None, word));
        let mut runs = vec![
            run("run_1", "outreach mails", status("running")),
            run("run_2", "nightly sync", status("running")),
            run("run_3", "two kinds", status("running")),
            run("run_4", "site deploy", status("waiting")),
            run("run_5", "no history", status("running")),
        ];
        runs[0].activity = Some("researcher: web_search".to_owned());
        Tracked::label_all(&mut runs);
        let histories = [
            Some([60, 69, 70]),
            Some([20, 21, 22]),
            Some([60, 70, 1200]),
            Some([60, 69, 70]),
            None,
        ];
        let now = now() + jiff::SignedDuration::from_secs(after);
        let views: Vec<_> = runs
            .iter()
            .zip(histories)
            .map(|(run, history)| WatchView {
                expected: history.map(|seconds| Expectation {
                    started_at: time("2026-01-01T00:00:00Z"),
                    usual: UsualDuration::of(seconds.map(|seconds| seconds * 1000)).unwrap(),
                }),
                ..view(run, "2026-01-01T01:00:00Z")
            })
            .collect();
        for (run, view) in runs.iter_mut().zip(&views) {
            run.observe(view, now);
        }
        let runs: Vec<_> = runs.iter().collect();
        let circumstances = Circumstances::default();
        let scene = Scene {
            style,
            zone: &TimeZone::UTC,
            now,
            step: 2,
            waited: Duration::from_secs(47),
            runs: &runs,
            views: &views,
            circumstances: &circumstances,
        };
        live_lines(&scene, 80, 40).join("\n")
    }

    #[test]
    fn a_run_with_a_history_has_a_bar_and_the_time_left() {
        insta::assert_snapshot!(expected_rows(Style::PLAIN, 0), @r"
        ⠹ 4 running · 1 waiting                                                    0:47
        ⠹ outreach mails  running         0:47  ██████░░░░ 0:23 left   researcher: web…
        ⠹ nightly sync    running         0:47  longer than usual      next poll in 59…
        ⠹ two kinds       running         0:47  ░░░░░░░░░░ up to 19:13 left  next poll…
        ⏸ site deploy     waiting         0:47  next poll in 59 min
        ⠹ no history      running         0:47  next poll in 59 min
        ");
        insta::assert_snapshot!(expected_rows(Style::PLAIN, 30), @r"
        ⠹ 4 running · 1 waiting                                                    0:47
        ⠹ outreach mails  running         1:17  longer than usual      researcher: web…
        ⠹ nightly sync    running         1:17  longer than usual      next poll in 58…
        ⠹ two kinds       running         1:17  ░░░░░░░░░░ up to 18:43 left  next poll…
        ⏸ site deploy     waiting         1:17  next poll in 58 min
        ⠹ no history      running         1:17  next poll in 58 min
        ");
        let ascii = Style {
            unicode: false,
            ..Style::PLAIN
        };
        insta::assert_snapshot!(expected_rows(ascii, 0), @r"
        * 4 running - 1 waiting                                                    0:47
        * outreach mails  running         0:47  ######---- 0:23 left   researcher: w...
        * nightly sync    running         0:47  longer than usual      next poll in ...
        * two kinds       running         0:47  ---------- up to 19:13 left  next po...
        ! site deploy     waiting         0:47  next poll in 59 min
        * no history      running         0:47  next poll in 59 min
        ");
    }

    #[test]
    fn nothing_moves_when_states_change() {
        let (mut runs, _) = scene_of_all();
        let layout = |runs: &[Tracked]| RowLayout::new(&runs.iter().collect::<Vec<_>>(), 80);
        let before = layout(&runs);
        for run in &mut runs {
            run.status = Some(Status::from(RunState::Succeeded));
            run.activity = Some("another".to_owned());
        }
        assert_eq!(layout(&runs), before);
    }

    #[test]
    fn an_id_is_not_cut_where_it_fits_without_other_columns() {
        let runs = [
            run("run_demo_outreach", "", None),
            run("run_2", "a long name of a run", None),
        ];
        let runs: Vec<_> = runs.iter().collect();
        let kept = |columns| {
            let layout = RowLayout::new(&runs, columns);
            (layout.name, layout.state > 0, layout.time > 0)
        };
        assert_eq!(kept(80), (17, true, true));
        assert_eq!(kept(40), (17, true, false));
        assert_eq!(kept(24), (17, false, false));
        // It fits nowhere.
        assert_eq!(kept(16), (13, false, false));
    }

    #[test]
    fn an_id_without_room_loses_its_middle_and_a_name_its_end() {
        let mut runs = [
            run("airflow:nightly_load/manual__2026-11-27T09:00:00", "", None),
            run("run_2", &"a long name of a run ".repeat(3), None),
        ];
        Tracked::label_all(&mut runs);
        let runs: Vec<_> = runs.iter().collect();
        let row = |run: &Tracked, columns| {
            let layout = RowLayout::new(&runs, columns);
            layout.row(
                Style::PLAIN,
                "·",
                run,
                (Look::Pending, "pending"),
                "0:47",
                "",
            )
        };
        assert_eq!(
            row(runs[0], 46),
            "· airflow:ni…7T09:00:00  pending         0:47"
        );
        assert_eq!(
            row(runs[1], 46),
            "· a long name of a run…  pending         0:47"
        );
    }

    #[test]
    fn an_end_is_a_row_like_the_others() {
        let (runs, _) = scene_of_all();
        let refs: Vec<_> = runs.iter().collect();
        let layout = RowLayout::new(&refs, 80);
        let ended = |verdict, detail| {
            ended_row(
                Style::PLAIN,
                layout,
                &runs[1],
                verdict,
                Duration::from_secs(31),
                detail,
            )
        };
        let (row, is_cut) = ended(Verdict::Failed, "OpenAI API rate limit exceeded");
        insta::assert_snapshot!(row, @r"✗ market research   failed          0:31  OpenAI API rate limit exceeded");
        assert!(!is_cut);
        assert!(ended(Verdict::NotFound, &"long ".repeat(20)).1);
    }
}
