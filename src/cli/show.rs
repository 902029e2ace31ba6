//! `runwatch show`: what became of a run and who was notified come first, then how that came about.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::args::RunArg;
use super::client::Printer;
use super::expectation::{left_text, usual_text};
use super::phrases::{TEXT_CHARS, cause, counted, held_until, next_poll, standing};
use super::run_names::RunNames;
use super::short_ids::watch_of;
use super::write_text;
use crate::control::{
    AttemptResponse, Client, DeliveryResponse, PollingList, RoutingEntry, WatchResponse,
};
use crate::domain::{EventType, RunEvent, SinkName, TraceContext, Verdict};
use crate::style::{Look, Sign, Style, ago, ahead, elapsed, pad, took, width};
use crate::text::one_line;

/// Columns of the labels at the left, the indent included.
const LABEL_COLUMNS: usize = 14;

/// Columns of a terminal below which texts are not aligned, so that there is room for words.
const NARROW: usize = 60;

/// Spaces before continued lines on a narrow terminal.
const NARROW_INDENT: usize = 4;

/// Longest output that is shown, in characters.
const OUTPUT_CHARS: usize = 400;

/// `runwatch show`: a part of the ID that only one watch has is enough. With `json` the answer of `GET
/// /v1/watches/{run_id}`.
///
/// # Errors
/// When the result cannot be written.
pub async fn show(
    client: &Client,
    run: &RunArg,
    names: &RunNames,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    let found = watch_of(client, names, run).await;
    if !matches!(&found, Err(failure) if failure.is_of_configuration()) {
        printer.warn_of_problems(names.problems().as_ref())?;
    }
    match found {
        Ok(watch) if printer.json => printer.json(&watch)?,
        Ok(watch) => {
            let polling = match watch.verdict {
                Some(_) => None,
                // An older daemon does not have it.
                None => client.polling().await.ok(),
            };
            let texts = Texts {
                now: Timestamp::now(),
                zone: TimeZone::system(),
                style: printer.style,
            };
            let view = View::new(&watch, polling, texts);
            write_text(printer.out, &view.text(printer.width))?;
        }
        Err(failure) => return printer.failed(failure),
    }
    Ok(0)
}

/// A line that is continued below itself where it is too wide, between its items and never inside of one.
struct ShownLine {
    label: String,
    items: Vec<String>,
    separator: String,
}

/// Everything about one watch, for people.
struct View<'a> {
    watch: &'a WatchResponse,
    /// How polls of the API go, where that is known.
    polling: Option<PollingList>,
    /// The data of the event of the verdict.
    data: Option<RunEvent>,
    texts: Texts,
    lines: Vec<ShownLine>,
}

impl<'a> View<'a> {
    fn new(watch: &'a WatchResponse, polling: Option<PollingList>, texts: Texts) -> Self {
        let data = watch.data.as_ref();
        Self {
            watch,
            data: data.and_then(|data| serde_json::from_str(data.get()).ok()),
            polling,
            texts,
            lines: Vec::new(),
        }
    }

    fn text(mut self, limit: Option<u16>) -> String {
        self.head();
        self.sinks();
        self.words("", "");
        self.background();
        self.deliveries();
        let limit = limit.map_or(usize::MAX, usize::from);
        let folded = self.lines.iter().flat_map(|line| line.folded(limit));
        folded
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect()
    }

    /// Adds a line of words.
    fn words(&mut self, label: &str, text: &str) {
        self.lines.push(ShownLine {
            label: label.to_owned(),
            items: text.split(' ').map(str::to_owned).collect(),
            separator: " ".to_owned(),
        });
    }

    /// Adds a line of items with dots between them.
    fn items(&mut self, label: &str, items: Vec<String>) {
        let items = items.into_iter().filter(|item| !item.is_empty()).collect();
        self.lines.push(ShownLine {
            label: labeled(label),
            items,
            separator: self.texts.style.separator().to_owned(),
        });
    }

    /// What became of the run, when, and where to read more.
    fn head(&mut self) {
        let (watch, style) = (self.watch, self.texts.style);
        let state = standing(watch);
        let name = watch.name.as_deref().map(|name| one_line(name, TEXT_CHARS));
        let run = watch.run();
        let id = run.as_str();
        let title = match name {
            Some(name) => format!("{}   {}", style.bold(&name), style.dim(id)),
            None => style.bold(id),
        };
        self.words(&format!("{} ", style.glyph(Look::of(&state))), &title);
        self.words("  ", &self.verdict_line(&state));
        self.words("  ", &self.times_line());
        let url = self.data.as_ref().and_then(|data| data.run.url.clone());
        if let Some(url) = url {
            self.words("  ", &one_line(&url, TEXT_CHARS));
        }
    }

    /// The state with its time, and the reason for it.
    fn verdict_line(&self, state: &str) -> String {
        let (watch, style) = (self.watch, self.texts.style);
        let word = style.state(state);
        let Some(verdict) = watch.known_verdict() else {
            let since = Duration::try_from(self.texts.now.duration_since(watch.added_at));
            let time = elapsed(since.unwrap_or_default());
            let next = next_poll(watch, self.polling.as_ref(), self.texts.now);
            let next = match next.as_str() {
                "" | "polling" | "waiting for its turn" => next,
                next => format!("next poll {next}"),
            };
            let mut line = format!("{word}, watched for {time}");
            if let Some(expected) = watch.expected().filter(|_| watch.is_running()) {
                line += &format!(", {}", left_text(&expected, self.texts.now));
            }
            if !next.is_empty() {
                line += &format!(", {next}");
            }
            if let Some(error) = &watch.last_error {
                let (what, when) = (cause(&error.message), ago(error.at, self.texts.now));
                line += &format!("; last error: {} ({when})", style.warning(&what));
            }
            return line;
        };
        let data = self.data.as_ref();
        let ran = data.and_then(|data| data.timing.ran_ms);
        let after = ran
            .filter(|_| ended_itself(verdict))
            .map(|ran| format!(" after {}", took(Duration::from_millis(ran))));
        let why = data.and_then(|data| {
            let reason = data.reason.as_deref().map(cause);
            let reason = reason.or_else(|| data.run.error_message.clone())?;
            Some(format!(": {}", one_line(&reason, TEXT_CHARS)))
        });
        // A watch that ended before its run did has an error of its own.
        let why = why.or_else(|| {
            let error = watch.last_error.as_ref()?;
            (!ended_itself(verdict)).then(|| format!(": {}", cause(&error.message)))
        });
        format!(
            "{word}{}{}",
            after.unwrap_or_default(),
            why.unwrap_or_default()
        )
    }

    /// When the run started and ended, and when that was seen.
    fn times_line(&self) -> String {
        let watch = self.watch;
        let zone = self.texts.zone_name();
        let Some(finished_at) = watch.finished_at else {
            return format!(
                "added {}, deadline {} ({}), times in {zone}",
                self.texts.time(watch.added_at),
                self.texts.time(watch.deadline_at),
                ahead(watch.deadline_at, self.texts.now),
            );
        };
        let run = self.data.as_ref().map(|data| &data.run);
        let mut parts = Vec::new();
        if let Some(at) = run.and_then(|run| run.started_at) {
            parts.push(format!("started {}", self.texts.time(at)));
        }
        let completed = run.and_then(|run| run.completed_at);
        if let Some(at) = completed {
            parts.push(format!("ended {}", self.texts.time(at)));
        }
        let data = self.data.as_ref();
        let delay = data
            .filter(|data| !data.watch.late)
            .and_then(|data| data.timing.detected_after_ms);
        let how = match watch.found_by.as_deref() {
            Some("stream") => " (event stream)",
            Some("poll") => " (poll)",
            _ => "",
        };
        parts.push(match delay.filter(|_| completed.is_some()) {
            Some(delay) => format!("seen {} later{how}", took(Duration::from_millis(delay))),
            None => format!("seen {}{how}", self.texts.time(finished_at)),
        });
        if data.is_some_and(|data| data.watch.late) {
            parts.push("which was late: it was not watched when it ended".to_owned());
        }
        format!("{}, times in {zone}", parts.join(", "))
    }

    /// Who was notified of the verdict, or will be, and who is not and why.
    fn sinks(&mut self) {
        let watch = self.watch;
        let event = watch.known_verdict().map(Verdict::event_type);
        let deliveries = watch.deliveries.as_deref().unwrap_or_default();
        let routing = watch.routing.as_deref().unwrap_or_default();
        let columns = deliveries.iter().map(|delivery| &delivery.sink);
        let columns = columns.chain(routing.iter().map(|entry| &entry.sink));
        let columns = columns.map(|sink| sink.as_str().len()).max().unwrap_or(0);
        let mut label = if event.is_some() {
            "notified"
        } else {
            "notifies"
        };
        // What the verdict led to comes first.
        let is_other = |delivery: &&DeliveryResponse| Some(delivery.event) != event;
        let mut ordered: Vec<_> = deliveries.iter().collect();
        ordered.sort_by_key(is_other);
        for delivery in ordered {
            let text = self.texts.delivery(delivery, event);
            self.sink(&mut label, &delivery.sink, columns, &text);
        }
        let is_done = |entry: &RoutingEntry| {
            let of_sink = deliveries.iter().filter(|known| known.sink == entry.sink);
            of_sink.into_iter().any(|known| Some(known.event) == event)
        };
        let open = routing.iter().filter(|entry| !is_done(entry));
        let (gets, misses): (Vec<_>, Vec<_>) =
            open.partition(|entry| event.is_none() && !entry.events.is_empty());
        for entry in gets {
            let text = events_text(&entry.events);
            self.sink(&mut label, &entry.sink, columns, &text);
        }
        if !label.is_empty() {
            self.words(&labeled(label), "no sink");
        }
        let mut label = "not";
        for entry in misses {
            let why = entry.why_not.as_deref();
            let why = one_line(why.unwrap_or("it was not configured then"), TEXT_CHARS);
            self.sink(&mut label, &entry.sink, columns, &why);
        }
    }

    /// Adds a line about a sink, whose name takes so many columns. Only the first of several has the label.
    fn sink(&mut self, label: &mut &str, sink: &SinkName, columns: usize, text: &str) {
        let sink = pad(sink.as_str(), columns);
        self.words(&format!("{}{sink} ", labeled(label)), text);
        *label = "";
    }

    /// What led there: the changes of status, the watch itself, and the run's output.
    fn background(&mut self) {
        let (watch, style) = (self.watch, self.texts.style);
        let changes = watch.history.iter().flatten();
        let changes: Vec<_> = changes
            .map(|change| {
                let status = style.state(&one_line(&change.status, TEXT_CHARS));
                format!("{} {status}", self.texts.time(change.at))
            })
            .collect();
        if !changes.is_empty() {
            self.items("HISTORY", changes);
        }
        let labels: Vec<_> = watch
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let labels = one_line(&labels.join(" "), TEXT_CHARS);
        let sinks: Vec<_> = watch
            .sinks
            .iter()
            .flatten()
            .map(ToString::to_string)
            .collect();
        let trace = watch.trace();
        let missing = watch.missing_since.filter(|_| watch.verdict.is_none());
        let error = watch
            .last_error
            .as_ref()
            .filter(|_| watch.verdict.is_some());
        let facts = vec![
            added_text(watch, &self.texts.time(watch.added_at)),
            counted(
                watch.polls.try_into().unwrap_or(usize::MAX),
                "poll",
                "polls",
            ),
            group_text(watch),
            prefixed("labels ", &labels),
            prefixed("only to ", &sinks.join(", ")),
            prefixed("trace ", trace.as_ref().map_or("", TraceContext::trace_id)),
            missing.map_or(String::new(), |since| {
                format!("not found since {}", self.texts.time(since))
            }),
            error.map_or(String::new(), |error| {
                format!(
                    "last error {} ({})",
                    cause(&error.message),
                    self.texts.time(error.at)
                )
            }),
        ];
        self.items("WATCH", facts);
        let output = self.data.as_ref().and_then(|data| data.run.output.as_ref());
        if let Some(output) = output {
            let output = one_line(output.get(), OUTPUT_CHARS);
            self.words(&labeled("OUTPUT"), &output);
        }
    }

    /// Every delivery with its attempts.
    fn deliveries(&mut self) {
        let texts = self.texts.clone();
        let mut label = "DELIVERIES";
        for delivery in self.watch.deliveries.iter().flatten() {
            let title = format!(
                "{} {} to {}",
                texts.style.dim(delivery.id.as_str()),
                delivery.event,
                delivery.sink
            );
            self.words(&labeled(label), &title);
            label = "";
            for attempt in delivery.attempt_log.iter().flatten() {
                self.words(&format!("{}  ", labeled("")), &texts.attempt(attempt));
            }
        }
    }
}

impl ShownLine {
    /// The line as lines of at most `limit` columns, as far as no item is wider.
    fn folded(&self, limit: usize) -> Vec<String> {
        let (label, columns) = if limit < NARROW && width(&self.label) > 2 {
            let words: Vec<_> = self.label.split_whitespace().collect();
            let space = if words.is_empty() { "" } else { " " };
            (format!("  {}{space}", words.join(" ")), NARROW_INDENT)
        } else {
            (self.label.clone(), width(&self.label))
        };
        let indent = " ".repeat(columns);
        let mut lines = vec![label];
        let mut separator = "";
        for item in &self.items {
            let line = lines.last_mut().expect("there is one");
            let is_too_wide = width(line) + width(separator) + width(item) > limit;
            if is_too_wide && width(line) > columns {
                lines.push(format!("{indent}{item}"));
            } else {
                line.push_str(separator);
                line.push_str(item);
            }
            separator = &self.separator;
        }
        lines
    }
}

/// When the watch was added, and where it comes from unless a request added it.
fn added_text(watch: &WatchResponse, time: &str) -> String {
    let origin = match (watch.origin.as_deref(), watch.discovery.as_deref()) {
        (_, Some(discovery)) => format!(" by discovery of {}", one_line(discovery, TEXT_CHARS)),
        (Some("configuration"), None) => " by the configuration".to_owned(),
        (_, None) => String::new(),
    };
    format!("added {time}{origin}")
}

/// What the run belongs to, and how long the runs of that usually take.
fn group_text(watch: &WatchResponse) -> String {
    let Some(group) = &watch.group else {
        return String::new();
    };
    let usual = watch
        .usual()
        .map(|usual| format!(", {}", usual_text(&usual)));
    format!(
        "group {}{}",
        one_line(group, TEXT_CHARS),
        usual.unwrap_or_default()
    )
}

/// How times and deliveries are written.
#[derive(Clone)]
struct Texts {
    now: Timestamp,
    zone: TimeZone,
    style: Style,
}

impl Texts {
    /// The time of day, with the date in front unless it is that of now.
    fn time(&self, at: Timestamp) -> String {
        let in_zone = |at: Timestamp| at.to_zoned_datetime(self.zone.clone());
        let is_today = in_zone(at).date() == in_zone(self.now).date();
        let format = if is_today {
            "%H:%M:%S"
        } else {
            "%Y-%m-%d %H:%M:%S"
        };
        in_zone(at).strftime(format).to_string()
    }

    /// The name of the time zone in which all times are shown, such as `UTC` or `CET`.
    fn zone_name(&self) -> String {
        let zoned = self.now.to_zoned_datetime(self.zone.clone());
        zoned.strftime("%Z").to_string()
    }

    /// How a delivery went: a mark, its time or what went wrong, and what comes next. Its event is named unless it is
    /// that of the verdict.
    fn delivery(&self, delivery: &DeliveryResponse, verdict: Option<EventType>) -> String {
        let style = self.style;
        let result = delivery.last_result.as_deref().map(cause);
        let attempts = counted(delivery.attempts as usize, "attempt", "attempts");
        let text = match (delivery.state.as_str(), result) {
            ("delivered", _) => {
                let ended = delivery.ended_at.unwrap_or(delivery.created_at);
                let times = match delivery.attempts {
                    0 | 1 => String::new(),
                    _ => format!(", {attempts}"),
                };
                format!("{} {}{times}", style.mark(Sign::Good), self.time(ended))
            }
            ("dead", result) => format!(
                "{} {}, given up after {attempts}",
                style.mark(Sign::Bad),
                result.unwrap_or_else(|| "not attempted".to_owned())
            ),
            ("pending", _) if let Some(until) = delivery.held_until => {
                format!(
                    "{} {}",
                    style.glyph(Look::Pending),
                    held_until(until, &self.zone)
                )
            }
            ("pending", Some(result)) => {
                let next = delivery
                    .next_attempt_at
                    .map_or("now".to_owned(), |next| ahead(next, self.now));
                let attempt = match delivery.most_attempts {
                    Some(most) => format!("attempt {} of {most}", delivery.attempts),
                    None => attempts,
                };
                format!("{} {result}, {attempt}, next {next}", style.mark(Sign::Bad))
            }
            ("sending", _) => format!("{} being sent", style.glyph(Look::Pending)),
            ("pending", None) if delivery.next_attempt_at.is_none() => {
                format!("{} waits for the summary", style.glyph(Look::Pending))
            }
            _ if let Some(summary) = &delivery.included_in => {
                format!("{} in the summary {summary}", style.mark(Sign::Good))
            }
            _ => format!("{} waiting", style.glyph(Look::Pending)),
        };
        let text = match &delivery.fallback_for {
            Some(sink) => format!("{text}, for {sink}"),
            None => text,
        };
        if verdict == Some(delivery.event) {
            text
        } else {
            format!("{text} ({})", delivery.event)
        }
    }

    fn attempt(&self, attempt: &AttemptResponse) -> String {
        let mark = if attempt.delivered {
            Sign::Good
        } else {
            Sign::Bad
        };
        format!(
            "{} {} attempt {} {} after {}: {}",
            self.time(attempt.at),
            self.style.mark(mark),
            attempt.attempt,
            if attempt.delivered {
                "arrived"
            } else {
                "failed"
            },
            took(Duration::from_millis(attempt.took_ms)),
            cause(&attempt.result)
        )
    }
}

/// Whether a verdict is the end of the run, and not only that of its watch.
fn ended_itself(verdict: Verdict) -> bool {
    matches!(
        verdict,
        Verdict::Succeeded | Verdict::Failed | Verdict::Canceled | Verdict::Skipped
    )
}

fn labeled(label: &str) -> String {
    pad(&format!("  {label}"), LABEL_COLUMNS)
}

/// `text` after a word, unless there is none.
fn prefixed(word: &str, text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("{word}{text}")
    }
}

/// Which events a sink gets, for people.
fn events_text(events: &[EventType]) -> String {
    let (verdicts, others): (Vec<_>, Vec<_>) =
        events.iter().partition(|event| event.verdict().is_some());
    let mut words: Vec<_> = if verdicts.len() == Verdict::WORST_FIRST.len() {
        vec!["every verdict"]
    } else {
        verdicts
            .into_iter()
            .map(|event: &EventType| event.as_str())
            .collect()
    };
    words.extend(others.into_iter().map(|event: &EventType| event.as_str()));
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples;

    fn shown(watch: &WatchResponse, width: u16) -> String {
        let texts = Texts {
            now: samples::now(),
            zone: TimeZone::UTC,
            style: Style::PLAIN,
        };
        View::new(watch, Some(samples::polling()), texts).text(Some(width))
    }

    #[test]
    fn show_answers_why_at_every_width() {
        let failed = samples::failed();
        insta::assert_snapshot!(shown(&failed, 40));
        insta::assert_snapshot!(shown(&failed, 80));
        insta::assert_snapshot!(shown(&failed, 120));
        insta::assert_snapshot!(shown(&failed, 200));
    }

    #[test]
    fn show_says_how_an_active_watch_goes_on() {
        for watch in samples::watches()
            .iter()
            .filter(|watch| watch.verdict.is_none())
        {
            insta::assert_snapshot!(watch.run().as_str(), shown(watch, 80));
        }
    }

    #[test]
    fn lines_are_folded_between_words_and_ids_stay_whole() {
        let text = shown(&samples::failed(), 40);
        assert!(
            text.contains("msg_01a21bcccaa870459cf46039cfe2efa6"),
            "{text}"
        );
        for line in text.lines().filter(|line| width(line) > 40) {
            let words = line.split_whitespace().count();
            assert_eq!(words, 1, "only a word alone is too wide: {line}");
        }
    }
}
