//! The last answers that had a tag, which stand as long as the API answers that they have not changed.

use reqwest::header::HeaderValue;

use super::ApiClient;
use crate::domain::{Observation, RunRef};
use crate::providers::answer::Reported;

/// Most runs of which the last answer and its tag are kept.
const MAX_TAGGED: usize = 1024;

/// Most bytes of an answer that is kept with its tag.
const MAX_TAGGED_BYTES: u64 = 16 * 1024;

/// The last answer about a run, which stands as long as the API answers that its tag has not changed.
pub(super) struct Tagged {
    pub(super) run: RunRef,
    pub(super) tag: HeaderValue,
    pub(super) observation: Observation,
}

impl ApiClient {
    /// The tag of the last answer about a run.
    pub(super) fn tag(&self, id: &RunRef) -> Option<HeaderValue> {
        if !self.profile.rate.etag_free {
            return None;
        }
        let tagged = self.tagged.lock().expect("no holder panics");
        let known = tagged.iter().find(|tagged| tagged.run == *id);
        known.map(|tagged| tagged.tag.clone())
    }

    /// The last answer about a run, which has not changed.
    pub(super) fn of_tag(&self, id: &RunRef) -> Option<Observation> {
        let tagged = self.tagged.lock().expect("no holder panics");
        let known = tagged.iter().find(|tagged| tagged.run == *id);
        known.map(|tagged| tagged.observation.clone())
    }

    /// Keeps an answer with its tag, in place of the one before.
    pub(super) fn keep_tag(&self, id: &RunRef, tag: Option<HeaderValue>, reported: &Reported) {
        if !self.profile.rate.etag_free {
            return;
        }
        let mut tagged = self.tagged.lock().expect("no holder panics");
        if let Some(known) = tagged.iter().position(|tagged| tagged.run == *id) {
            tagged.remove(known);
        }
        let (Some(tag), Reported::Run(observation)) = (tag, reported) else {
            return;
        };
        // One that has ended is not polled again, and a large one would take much memory.
        let large = |observation: &Observation| {
            let details = &observation.details;
            let values = [&details.input, &details.output].into_iter().flatten();
            let bytes: usize = values.map(|json| json.get().len()).sum();
            (bytes + details.error_message.as_ref().map_or(0, String::len)) as u64
                > MAX_TAGGED_BYTES
        };
        if tag.len() > MAX_TAG_BYTES || large(observation) {
            return;
        }
        if tagged.len() == MAX_TAGGED {
            tagged.pop_front();
        }
        tagged.push_back(Tagged {
            run: id.clone(),
            tag,
            observation: (**observation).clone(),
        });
    }
}

/// Longest tag that is kept, in bytes.
pub(super) const MAX_TAG_BYTES: usize = 256;
