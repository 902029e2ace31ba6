//! Answers that are a list of parts: a run is as its worst part.

use super::layout::Layout;
use super::{Answer, Found};
use crate::domain::{RunState, Status, Verdict};
use crate::providers::error::Malformed;
use crate::providers::reader::{Ending, Reader};
use crate::providers::value::{Seen, each_element};

/// Most parts of a run that an error names.
const NAMED_PARTS: usize = 5;

/// Where list answers say that there is another page.
pub(super) const NEXT_PAGE: [&str; 6] = [
    "next_page_token",
    "nextPageToken",
    "next_cursor",
    "nextCursor",
    "next",
    "has_more",
];

/// The state of a run, of the states of its parts.
#[derive(Debug)]
pub(super) struct PartsState {
    pub(super) status: Status,
    /// Names the parts that failed.
    pub(super) error: Option<String>,
}

impl Answer<'_> {
    /// The state of the run by its parts: not final as long as one of them is not, then the worst.
    pub(super) fn parts(&self, more: bool) -> Result<PartsState, Malformed> {
        let (Some(items), Some(part)) = (self.layout.items, &self.layout.part) else {
            return Err(Malformed::Shape("it has no list of parts"));
        };
        let items = match self.found(items) {
            Found::Json(json) if json.first() == Some(&b'[') => json,
            Found::TooLarge => return Err(self.malformed("its list of parts is too large")),
            _ => return Err(self.malformed("it has no list of parts")),
        };
        self.check_values()?;
        let mut seen = Vec::new();
        let mut problem = None;
        let read = each_element(items, &mut |json| match one_part(part, json) {
            Ok(part) => {
                seen.push(part);
                true
            }
            Err(error) => {
                problem = Some(error);
                false
            }
        });
        if let Some(problem) = problem {
            return Err(problem);
        }
        if read.is_err() || self.is_cut() {
            return Err(self.malformed("its list of parts is not JSON"));
        }
        Ok(of_parts(&seen, more || self.has_next_page()))
    }

    /// Whether the list goes on on another page.
    fn has_next_page(&self) -> bool {
        self.layout.next_page.iter().any(|place| {
            let Some(json) = self.json(*place) else {
                return false;
            };
            match Seen::of(json) {
                Seen::Absent | Seen::Bool(false) => false,
                Seen::Number(number) => number > 0.0,
                Seen::Text(_) | Seen::Bool(true) | Seen::Array(_) | Seen::Object => true,
                Seen::Unknown => true,
            }
        })
    }

    /// Whether the body ended before its document did, where that matters.
    pub(super) fn is_cut(&self) -> bool {
        self.ending == Ending::Cut && !self.layout.plan.is_whole_only()
    }
}

/// The state and the name of a part of a run.
fn one_part(layout: &Layout, json: &[u8]) -> Result<(Status, Option<String>), Malformed> {
    let mut reader = Reader::new(&layout.plan, json.len() as u64, None);
    let _all = reader.push(json);
    let answer = Answer::of(layout, reader);
    let code = 200;
    let concluded = answer.outcome(code)?;
    answer.check_values()?;
    let status = answer.status(concluded, code);
    // A part that the API does not know any more is not final.
    let status = status.unwrap_or_else(|| RunState::Unknown.into());
    Ok((status, answer.name(&layout.fields.name)))
}

/// The state of a run whose parts are like this, and there may be `more`.
pub(super) fn of_parts(parts: &[(Status, Option<String>)], more: bool) -> PartsState {
    let going: Vec<&Status> = parts
        .iter()
        .map(|(status, _)| status)
        .filter(|status| Verdict::of_status(status).is_none())
        .collect();
    let one = |state: RunState| going.iter().find(|status| status.state() == state);
    let not_final = |status: Status| PartsState {
        status,
        error: None,
    };
    if let Some(waiting) = one(RunState::Waiting) {
        return not_final((*waiting).clone());
    }
    let all_pending = parts
        .iter()
        .all(|(status, _)| status.state() == RunState::Pending);
    if all_pending && !more {
        return not_final(
            one(RunState::Pending).map_or(RunState::Pending.into(), |it| (*it).clone()),
        );
    }
    // A text that no rule knows is not final either.
    if more || !going.is_empty() {
        return not_final(RunState::Running.into());
    }
    let worst = Verdict::worst(
        parts
            .iter()
            .filter_map(|(status, _)| Verdict::of_status(status)),
    );
    let of_worst = |(status, _): &&(Status, Option<String>)| Verdict::of_status(status) == worst;
    let status = parts
        .iter()
        .find(of_worst)
        .map(|(status, _)| status.clone());
    let failed: Vec<&str> = parts
        .iter()
        .filter(|(status, _)| status.state() == RunState::Failed)
        .filter_map(|(_, name)| name.as_deref())
        .collect();
    let error = (!failed.is_empty()).then(|| {
        let mut text = failed[..failed.len().min(NAMED_PARTS)].join(", ");
        if failed.len() > NAMED_PARTS {
            text.push_str(&format!(" and {} more", failed.len() - NAMED_PARTS));
        }
        format!("failed: {text}")
    });
    PartsState {
        status: status.unwrap_or(RunState::Pending.into()),
        error,
    }
}
