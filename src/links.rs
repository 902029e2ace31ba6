//! Addresses of the page.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use reqwest::Url;

use crate::domain::{Event, EventData, EventType, RunRef};

/// What stays as it is in a segment of a path: the characters that RFC 3986, 2.3 reserves for nothing, and colons.
const ENCODED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

/// A text as one segment of a path: the IDs of some providers have slashes.
pub(crate) fn segment(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, &ENCODED)
}

/// The view of a run, relative to the page: `runs/crewship:run_1`. The provider is always named, as the default one may
/// change.
pub(crate) fn run_path(run: &RunRef) -> String {
    let named = format!("{}:{}", run.provider(), run.id());
    format!("runs/{}", segment(&named))
}

/// The address of the view of a run, on a page at `base`, whose path ends in a slash.
pub(crate) fn run_address(base: &Url, run: &RunRef) -> String {
    format!("{base}{}", run_path(run))
}

/// An event whose run has a link that people can open: its own, or else its view on the page.
pub(crate) fn with_page<'a>(event: &'a Event, page: Option<&Url>) -> Cow<'a, Event> {
    let (Some(page), EventData::Run(data)) = (page, &event.data) else {
        return Cow::Borrowed(event);
    };
    // The run of a test does not exist.
    if data.run.url.is_some() || event.event_type == EventType::SinkTest {
        return Cow::Borrowed(event);
    }
    let mut linked = event.clone();
    if let EventData::Run(data) = &mut linked.data {
        data.run.url = Some(run_address(page, &data.run.id));
    }
    Cow::Owned(linked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ProviderName;

    #[test]
    fn an_address_names_the_provider_and_encodes_the_id() {
        let base = Url::parse("https://runwatch.example.com/at/").unwrap();
        let address = |run: &RunRef| run_address(&base, run);
        assert_eq!(
            address(&RunRef::new("run_1").unwrap()),
            "https://runwatch.example.com/at/runs/crewship:run_1"
        );
        let github = ProviderName::new("github").unwrap();
        let run = RunRef::checked_elsewhere(&github, "acme/site/1?<é>");
        assert_eq!(
            address(&run),
            "https://runwatch.example.com/at/runs/github:acme%2Fsite%2F1%3F%3C%C3%A9%3E"
        );
    }
}
