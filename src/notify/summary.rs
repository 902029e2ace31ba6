//! An event in words, for a person at a glance.

use std::time::Duration;

use jiff::tz::TimeZone;

use crate::domain::{
    Event, EventData, EventType, GroupEvent, GroupRun, MessageScope, RunEvent, Verdict,
};
use crate::text::{first_lines, humanize, one_line};

/// Longest name in a title, in characters.
const MAX_NAME_CHARS: usize = 60;

/// How many runs of a group a text names: with names and IDs of the longest kind they fit into a message of every service.
const GROUP_LINES: usize = 20;

/// Lines and characters per line of an error that are shown.
const ERROR_LINES: usize = 3;
const ERROR_CHARS: usize = 200;

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Good news, or for information.
    Good,
    /// Needs somebody.
    Bad,
}

/// An event in words. All texts are harmless; none is markup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Who and what: `nightly report failed after 3s`.
    pub title: String,
    /// Why and where: the error's first lines, what is unusual.
    pub lines: Vec<String>,
    /// A link that people can open.
    pub url: Option<String>,
    /// How much it matters.
    pub weight: Severity,
}

/// Puts an event in words, with times in UTC: its readers may be anywhere.
pub fn of(event: &Event) -> Summary {
    in_zone(event, &TimeZone::UTC)
}

/// Puts an event in words, with times in a zone, which is named.
pub fn in_zone(event: &Event, zone: &TimeZone) -> Summary {
    let mut summary = of_event(event, zone);
    if let Some(sink) = event.fallback_for() {
        let why = format!("sent here because {sink} could not be reached");
        summary.lines.push(why);
    }
    summary
}

fn of_event(event: &Event, zone: &TimeZone) -> Summary {
    match &event.data {
        EventData::Run(data) => of_run(event.event_type, data, zone),
        EventData::Group(data) => of_group(data),
        EventData::Provider(notice) => {
            let what = match event.event_type {
                EventType::ApiRecovered => "answers again",
                EventType::ApiUnauthorized => "refuses the key",
                _ => "gives no usable answer",
            };
            let title = if notice.provider.is_crewship() {
                format!("The Crewship API {what}")
            } else {
                format!("The API of {} {what}", notice.provider)
            };
            let since = notice.since.to_zoned_datetime(zone.clone());
            let since = format!("since {}", since.strftime("%Y-%m-%d %H:%M %Z"));
            let weight = if event.event_type == EventType::ApiRecovered {
                Severity::Good
            } else {
                Severity::Bad
            };
            Summary {
                title,
                lines: vec![one_line(&notice.message, ERROR_CHARS), since],
                url: None,
                weight,
            }
        }
        EventData::Sink(notice) => Summary {
            title: format!("runwatch sends nothing to {} any more", notice.sink),
            lines: vec![one_line(&notice.message, ERROR_CHARS)],
            url: None,
            weight: Severity::Bad,
        },
    }
}

/// As [`verdict_counts`], of a group.
fn group_counts(data: &GroupEvent) -> String {
    let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let verdicts = data
        .counts()
        .flat_map(|(verdict, times)| std::iter::repeat_n(verdict, count(times)));
    verdict_counts(verdicts, count(data.total + data.missing))
}

fn of_group(data: &GroupEvent) -> Summary {
    let about = match &data.scope {
        MessageScope::Group(group) => one_line(group, MAX_NAME_CHARS),
        MessageScope::Sink(_) => "after downtime".to_owned(),
    };
    let mut lines = Vec::new();
    if data.missing > 0 {
        lines.push(match data.missing {
            1 => "1 more watch was not added".to_owned(),
            missing => format!("{missing} more watches were not added"),
        });
    }
    lines.extend(data.runs.iter().take(GROUP_LINES).map(group_line));
    let more = data.more + data.runs.len().saturating_sub(GROUP_LINES) as u64;
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    let weight = if data.is_good() {
        Severity::Good
    } else {
        Severity::Bad
    };
    Summary {
        title: format!("{about}: {}", group_counts(data)),
        lines,
        url: None,
        weight,
    }
}

/// How many of `total` runs succeeded, and how the others ended: `5 of 6 succeeded, 1 failed`.
pub fn verdict_counts(verdicts: impl IntoIterator<Item = Verdict>, total: usize) -> String {
    let verdicts: Vec<_> = verdicts.into_iter().collect();
    let count = |wanted| {
        verdicts
            .iter()
            .filter(|verdict| **verdict == wanted)
            .count()
    };
    let good = count(Verdict::Succeeded);
    if good == total {
        return match total {
            1 => "1 run succeeded".to_owned(),
            _ => format!("all {total} succeeded"),
        };
    }
    let mut text = format!("{good} of {total} succeeded");
    for verdict in Verdict::WORST_FIRST {
        let others = count(verdict);
        if verdict != Verdict::Succeeded && others > 0 {
            text += &format!(", {others} {verdict}");
        }
    }
    text
}

/// A run of a group: its verdict, its name if it has one, and its ID.
fn group_line(run: &GroupRun) -> String {
    let id = if run.provider.is_crewship() {
        run.id.clone()
    } else {
        format!("{}:{}", run.provider, run.id)
    };
    let id = one_line(&id, MAX_NAME_CHARS);
    match &run.name {
        Some(name) => format!("{}: {} ({id})", run.verdict, one_line(name, MAX_NAME_CHARS)),
        None => format!("{}: {id}", run.verdict),
    }
}

fn of_run(event_type: EventType, data: &RunEvent, zone: &TimeZone) -> Summary {
    let who = match &data.watch.name {
        Some(name) => one_line(name, MAX_NAME_CHARS),
        None => data.run.id.to_string(),
    };
    let ran = data
        .timing
        .ran_ms
        .filter(|ms| *ms > 0)
        .map(|ms| humanize(Duration::from_millis(ms)));
    let after = ran.map(|ran| format!(" after {ran}")).unwrap_or_default();
    let (title, weight) = title_of(event_type, data, &who, &after);
    let mut lines = match &data.run.error_message {
        Some(error) => first_lines(error, ERROR_LINES, ERROR_CHARS),
        None => Vec::new(),
    };
    if let Some(reason) = &data.reason {
        lines.push(one_line(reason, ERROR_CHARS));
    }
    lines.extend(usual_line(event_type, data));
    if data.watch.name.is_some() && event_type != EventType::SinkTest {
        lines.push(data.run.id.to_string());
    }
    if data.watch.late && event_type.verdict().is_some() {
        let ended = data.run.completed_at.map(|at| {
            let at = at.to_zoned_datetime(zone.clone());
            format!(" on {}", at.strftime("%Y-%m-%d at %H:%M %Z"))
        });
        lines.push(format!(
            "ended{} while it was not watched",
            ended.unwrap_or_default()
        ));
    }
    Summary {
        title,
        lines,
        url: data.run.url.clone(),
        weight,
    }
}

/// How long a run took that ended or is overdue, beside what is usual: `ran 12m, usually 8m`.
fn usual_line(event_type: EventType, data: &RunEvent) -> Option<String> {
    let usual = data.timing.usual()?.text();
    match event_type {
        EventType::RunSucceeded | EventType::RunFailed | EventType::RunCanceled => {
            let ran = Duration::from_millis(data.timing.ran_ms?);
            Some(format!("ran {}, usually {usual}", humanize(ran)))
        }
        EventType::WatchOverdue => Some(format!("usually it takes {usual}")),
        EventType::RunSkipped
        | EventType::WatchNotFound
        | EventType::WatchUnreachable
        | EventType::WatchTimedOut
        | EventType::RunStarted
        | EventType::RunWaiting
        | EventType::ApiUnreachable
        | EventType::ApiUnauthorized
        | EventType::ApiRecovered
        | EventType::SinkDisabled
        | EventType::GroupFinished
        | EventType::RunDigest
        | EventType::SinkTest => None,
    }
}

/// The title of an event about a run or a sink, and how grave it is.
fn title_of(event_type: EventType, data: &RunEvent, who: &str, after: &str) -> (String, Severity) {
    match event_type {
        EventType::RunSucceeded => (format!("{who} succeeded{after}"), Severity::Good),
        EventType::RunFailed => (format!("{who} failed{after}"), Severity::Bad),
        EventType::RunCanceled => (format!("{who} canceled{after}"), Severity::Bad),
        EventType::RunSkipped => (format!("{who} was skipped"), Severity::Bad),
        EventType::WatchNotFound => (
            format!("{who} not_found: the API knows no such run"),
            Severity::Bad,
        ),
        EventType::WatchUnreachable => (
            match &data.reason {
                Some(_) => format!("{who} unreachable"),
                None => format!("{who} unreachable: the API gave no usable answer"),
            },
            Severity::Bad,
        ),
        EventType::WatchTimedOut => (
            format!("{who} timed_out: still going at the deadline"),
            Severity::Bad,
        ),
        EventType::RunStarted => (format!("{who} is running"), Severity::Good),
        EventType::RunWaiting => (format!("{who} waits for a person"), Severity::Bad),
        EventType::WatchOverdue => (format!("{who} is overdue"), Severity::Bad),
        EventType::SinkTest
        | EventType::GroupFinished
        | EventType::RunDigest
        | EventType::ApiUnreachable
        | EventType::ApiUnauthorized
        | EventType::ApiRecovered
        | EventType::SinkDisabled => (
            "This is a test message from runwatch".to_owned(),
            Severity::Good,
        ),
    }
}

impl Summary {
    /// All of it as lines of text, the link last.
    pub fn text(&self) -> String {
        let lines = std::iter::once(&self.title)
            .chain(&self.lines)
            .chain(&self.url);
        lines.map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::{ProviderName, ProviderNotice, RunRef, SinkName};

    /// An event as users meet it, for the tests of every sink.
    pub(crate) fn event(event_type: EventType, error: Option<&str>) -> Event {
        let mut event = Event::sample("2024-01-15T10:35:05.412Z".parse().unwrap());
        event.event_type = event_type;
        let data = event.run_mut().expect("it is about a run");
        data.run.id = RunRef::new("run_xyz789abc").unwrap();
        data.watch.name = None;
        data.timing.ran_ms = Some(3_000);
        data.run.error_message = error.map(ToOwned::to_owned);
        data.run.url = Some("https://console.crewship.dev/runs/run_xyz789abc".to_owned());
        event
    }

    #[test]
    fn a_failure_says_who_what_and_why() {
        let mut event = event(
            EventType::RunFailed,
            Some("OpenAI API rate limit exceeded\n\n\x1b[31mat line 3"),
        );
        insta::assert_snapshot!(of(&event).text(), @r"
        run_xyz789abc failed after 3s
        OpenAI API rate limit exceeded
        [31mat line 3
        https://console.crewship.dev/runs/run_xyz789abc
        ");
        let data = event.run_mut().expect("it is about a run");
        data.watch.name = Some("nightly\u{202e} report".to_owned());
        data.watch.late = true;
        data.run.completed_at = Some("2024-01-15T08:00:00Z".parse().unwrap());
        insta::assert_snapshot!(of(&event).text(), @r"
        nightly report failed after 3s
        OpenAI API rate limit exceeded
        [31mat line 3
        run_xyz789abc
        ended on 2024-01-15 at 08:00 UTC while it was not watched
        https://console.crewship.dev/runs/run_xyz789abc
        ");
        let zone = TimeZone::posix("EST5").unwrap();
        assert!(
            in_zone(&event, &zone)
                .text()
                .contains("ended on 2024-01-15 at 03:00 EST while"),
        );
    }

    #[test]
    fn a_fallback_names_the_sink_that_could_not_be_reached() {
        let now = "2024-01-15T10:35:05Z".parse().unwrap();
        for event_type in EventType::ALL {
            let mut event = Event::sample_of(event_type, now);
            let before = of(&event);
            event.set_fallback_for(Some(SinkName::new("ops").unwrap()));
            let after = of(&event);
            let (last, others) = after.lines.split_last().unwrap();
            assert_eq!(last, "sent here because ops could not be reached");
            assert_eq!((others, &after.title), (&*before.lines, &before.title));
            let read = Event::from_json(&event.to_json()).unwrap();
            assert_eq!(read.fallback_for(), event.fallback_for());
        }
    }

    #[test]
    fn an_end_stands_beside_what_is_usual() {
        let lines = |event_type, ran_ms, usual: [u64; 3]| {
            let mut event = event(event_type, None);
            let timing = &mut event.run_mut().unwrap().timing;
            timing.ran_ms = ran_ms;
            timing.usual_p10_ms = Some(usual[0]);
            timing.usual_ms = Some(usual[1]);
            timing.usual_p90_ms = Some(usual[2]);
            of(&event).lines
        };
        let alike = [420_000, 480_000, 500_000];
        let ran = Some(720_000);
        let ended = [
            EventType::RunSucceeded,
            EventType::RunFailed,
            EventType::RunCanceled,
        ];
        for event_type in ended {
            assert_eq!(lines(event_type, ran, alike), ["ran 12m, usually 8m"]);
            assert!(lines(event_type, None, alike).is_empty());
        }
        let apart = [120_000, 480_000, 1_200_000];
        assert_eq!(
            lines(EventType::RunSucceeded, ran, apart),
            ["ran 12m, usually 2m to 20m"]
        );
        assert_eq!(
            lines(EventType::WatchOverdue, None, alike),
            ["usually it takes 8m"]
        );
        assert!(lines(EventType::RunStarted, None, alike).is_empty());
    }

    #[test]
    fn a_group_says_how_many_succeeded_and_names_the_others_first() {
        let event = Event::sample_of(
            EventType::GroupFinished,
            "2024-01-15T10:35:05Z".parse().unwrap(),
        );
        assert_eq!(of(&event).weight, Severity::Bad);
        insta::assert_snapshot!(of(&event).text(), @r"
        nightly: 2 of 3 succeeded, 1 failed
        failed: run_other
        succeeded: nightly report (run_sample)
        succeeded: run_third
        ");
        let mut data = event.group().unwrap().clone();
        data.verdicts = [("succeeded".to_owned(), 3)].into();
        assert_eq!(group_counts(&data), "all 3 succeeded");
        data.missing = 2;
        assert_eq!(group_counts(&data), "3 of 5 succeeded");
        data.missing = 0;
        assert_eq!(of_group(&data).weight, Severity::Good);
        (data.more, data.missing) = (20, 2);
        let summary = of_group(&data);
        assert_eq!(summary.weight, Severity::Bad);
        assert_eq!(
            (summary.lines[0].as_str(), summary.lines[4].as_str()),
            ("2 more watches were not added", "and 20 more")
        );
        data.runs = vec![data.runs[0].clone(); crate::domain::NAMED_RUNS];
        let lines = of_group(&data).lines;
        assert_eq!(lines.len(), 1 + GROUP_LINES + 1);
        assert_eq!(lines[21], "and 100 more");
    }

    #[test]
    fn a_summary_after_downtime_names_failures_first() {
        let now = "2024-01-15T10:35:05Z".parse().unwrap();
        let event = Event::sample_of(EventType::RunDigest, now);
        assert_eq!(of(&event).weight, Severity::Bad);
        assert!(!event.can_wait());
        insta::assert_snapshot!(of(&event).text(), @r"
        after downtime: 2 of 3 succeeded, 1 failed
        failed: run_other
        succeeded: nightly report (run_sample)
        succeeded: run_third
        ");
    }

    #[test]
    fn a_notice_names_its_provider() {
        let mut event = event(EventType::RunFailed, None);
        event.event_type = EventType::ApiUnauthorized;
        let mut text_of = |provider: &str| {
            event.data = EventData::Provider(ProviderNotice {
                provider: ProviderName::new(provider).unwrap(),
                message: "401 Unauthorized".to_owned(),
                since: "2024-01-15T08:00:00Z".parse().unwrap(),
                fallback_for: None,
            });
            of(&event).text()
        };
        let rest = "\n401 Unauthorized\nsince 2024-01-15 08:00 UTC";
        assert_eq!(
            text_of("crewship"),
            format!("The Crewship API refuses the key{rest}")
        );
        assert_eq!(
            text_of("github"),
            format!("The API of github refuses the key{rest}")
        );
    }

    #[test]
    fn only_success_and_information_are_good() {
        let good: Vec<_> = EventType::ALL
            .into_iter()
            .filter(|event_type| matches!(event(*event_type, None).data, EventData::Run(_)))
            .filter(|event_type| of(&event(*event_type, None)).weight == Severity::Good)
            .filter(|event_type| event_type.verdict().is_some())
            .collect();
        assert_eq!(good, [EventType::RunSucceeded]);
    }
}
