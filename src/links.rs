//! Addresses of the page.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

use crate::domain::RunRef;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ProviderName;

    #[test]
    fn a_path_names_the_provider_and_encodes_the_id() {
        assert_eq!(
            run_path(&RunRef::new("run_1").unwrap()),
            "runs/crewship:run_1"
        );
        let github = ProviderName::new("github").unwrap();
        let run = RunRef::checked_elsewhere(&github, "acme/site/1?<é>");
        assert_eq!(run_path(&run), "runs/github:acme%2Fsite%2F1%3F%3C%C3%A9%3E");
    }
}
