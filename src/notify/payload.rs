//! The event as sinks send it: JSON that leaves out what is too large for a message.

use crate::domain::{Event, EventData, JsonText, RunEvent, RunSummary};

type Text = fn(&mut RunSummary) -> &mut Option<String>;

/// The texts of the API that a message can go without, and how each is reached. The documented ones except the error
/// are short.
const TEXTS: [(&str, Text); 7] = [
    ("error_message", |run| &mut run.error_message),
    ("status", |run| &mut run.status),
    ("version_id", |run| &mut run.version_id),
    ("deployment_id", |run| &mut run.deployment_id),
    ("project", |run| &mut run.project),
    ("name", |run| &mut run.name),
    ("group", |run| &mut run.group),
];

/// Returns the event as JSON of at most `max_bytes`: the larger of `input` and `output`, then the other, then the tails
/// of the texts are left out until it fits, and `truncated` names them. Of a group, the last runs that are named are left
/// out, and counted in `more`. Other events are always whole.
pub fn json_within(event: &Event, max_bytes: usize) -> String {
    let whole = event.to_json();
    if whole.len() <= max_bytes || (event.run().is_none() && event.group().is_none()) {
        return whole;
    }
    let mut event = event.clone();
    if let EventData::Group(group) = &mut event.data {
        let mut group = group.clone();
        while group.name_fewer() {
            event.data = EventData::Group(group.clone());
            if let Some(json) = fitting(&event, max_bytes) {
                return json;
            }
        }
        return event.to_json();
    }
    without_values(&mut event, max_bytes)
        .or_else(|| with_shorter_texts(&mut event, max_bytes))
        .unwrap_or_else(|| event.to_json())
}

/// The JSON of the event, if it is small enough.
fn fitting(event: &Event, max_bytes: usize) -> Option<String> {
    Some(event.to_json()).filter(|json| json.len() <= max_bytes)
}

/// Leaves out the larger of `input` and `output`, then the other. Returns the first JSON that fits.
fn without_values(event: &mut Event, max_bytes: usize) -> Option<String> {
    type Value = fn(&mut RunEvent) -> &mut Option<JsonText>;
    let input: (_, Value) = ("input", |data| &mut data.run.input);
    let output: (_, Value) = ("output", |data| &mut data.run.output);
    let size = |value: &Option<JsonText>| value.as_ref().map_or(0, |value| value.get().len());
    let run = &event.run()?.run;
    let larger_first = match size(&run.output) > size(&run.input) {
        true => [output, input],
        false => [input, output],
    };
    for (name, value) in larger_first {
        let data = event.run_mut()?;
        if value(data).take().is_some() {
            data.truncated.push(name.to_owned());
            if let Some(json) = fitting(event, max_bytes) {
                return Some(json);
            }
        }
    }
    None
}

/// Shortens one text after the other. Returns the first JSON that fits.
fn with_shorter_texts(event: &mut Event, max_bytes: usize) -> Option<String> {
    for (name, text) in TEXTS {
        let data = event.run_mut()?;
        let Some(full) = text(&mut data.run).clone() else {
            continue;
        };
        data.truncated.push(name.to_owned());
        let mut keep = full.len();
        while keep > 0 {
            // JSON escapes make a character up to six bytes long: halve until it fits.
            keep /= 2;
            let shorter = format!("{}…", &full[..full.floor_char_boundary(keep)]);
            *text(&mut event.run_mut()?.run) = Some(shorter);
            if let Some(json) = fitting(event, max_bytes) {
                return Some(json);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::EventType;

    fn big_event(input: usize, output: usize, error: usize) -> Event {
        let mut event = Event::sample("2024-01-15T10:35:05.412Z".parse().unwrap());
        event.event_type = EventType::RunFailed;
        let data = event.run_mut().unwrap();
        let text = |n: usize| JsonText::new(format!("{:?}", "x".repeat(n))).unwrap();
        data.run.input = Some(text(input));
        data.run.output = Some(text(output));
        data.run.error_message = Some("\n".repeat(error));
        event
    }

    #[test]
    fn a_large_group_names_fewer_runs() {
        let now = "2024-01-15T10:35:05.412Z".parse().unwrap();
        let mut event = Event::sample_of(EventType::GroupFinished, now);
        let EventData::Group(group) = &mut event.data else {
            panic!("about a group")
        };
        let mut run = group.runs[0].clone();
        run.name = Some("\n".repeat(150));
        group.runs = vec![run; 100];
        group.more = 7;
        let json = json_within(&event, 20_000);
        assert!(
            json.len() <= 20_000 && json.len() > 19_000,
            "{}",
            json.len()
        );
        let read = Event::from_json(&json).unwrap();
        let read = read.group().unwrap();
        assert_eq!(read.runs.len() as u64 + read.more, 107);
    }

    #[test]
    fn a_large_message_leaves_out_just_what_it_must_and_says_so() {
        let truncated = |event: &Event| {
            let json = json_within(event, 20_000);
            assert!(json.len() <= 20_000, "{}", json.len());
            let read = Event::from_json(&json).unwrap();
            let EventData::Run(data) = read.data else {
                panic!("about a run")
            };
            assert_eq!(
                data.run.input.is_none(),
                data.truncated.contains(&"input".to_owned())
            );
            assert_eq!(
                data.run.output.is_none(),
                data.truncated.contains(&"output".to_owned())
            );
            data.truncated
        };
        assert_eq!(truncated(&big_event(10, 10, 10)), [""; 0]);
        assert_eq!(truncated(&big_event(30_000, 10, 10)), ["input"]);
        assert_eq!(truncated(&big_event(10, 30_000, 10)), ["output"]);
        assert_eq!(
            truncated(&big_event(30_000, 30_000, 10)),
            ["input", "output"]
        );
        assert_eq!(
            truncated(&big_event(10, 10, 30_000)),
            ["input", "output", "error_message"]
        );
        // Each line feed takes two bytes of JSON.
        let json = json_within(&big_event(10, 10, 30_000), 20_000);
        let kept = Event::from_json(&json).unwrap();
        let kept = kept.run().unwrap().run.error_message.clone().unwrap();
        assert_eq!(kept.chars().count(), 7_501, "the first quarter and …");
        let mut strange = big_event(10, 10, 10);
        let data = strange.run_mut().unwrap();
        data.run.status = Some("\u{1}".repeat(30_000));
        data.run.deployment_id = Some("ü".repeat(30_000));
        let all = [
            "input",
            "output",
            "error_message",
            "status",
            "deployment_id",
        ];
        assert_eq!(truncated(&strange), all);
    }
}
