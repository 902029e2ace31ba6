//! The last pages that had a tag, which stand as long as the API answers that they have not changed.

use reqwest::Url;
use reqwest::header::HeaderValue;

use super::ReadPage;
use crate::domain::ProviderName;
use crate::providers::client::ApiClient;
use crate::providers::client::tags::MAX_TAG_BYTES;

/// Most addresses of which the last page and its tag are kept.
const MAX_TAGGED_PAGES: usize = 64;

/// Most entries of all these pages together: about a kilobyte each.
const MAX_TAGGED_ENTRIES: usize = 2048;

/// The last page at an address, which stands as long as the API answers that its tag has not changed.
pub(in crate::providers::client) struct TaggedPage {
    provider: ProviderName,
    address: Box<str>,
    tag: HeaderValue,
    page: ReadPage,
}

impl ApiClient {
    /// The tag of the last page at an address, and that page.
    pub(super) fn tagged_page(
        &self,
        provider: &ProviderName,
        url: &Url,
    ) -> Option<(HeaderValue, ReadPage)> {
        let pages = self.pages.lock().expect("no holder panics");
        let known = pages
            .iter()
            .find(|page| *page.address == *url.as_str() && page.provider == *provider)?;
        Some((known.tag.clone(), known.page.clone()))
    }

    /// Keeps a page with its tag, in place of the one before.
    pub(super) fn keep_page(
        &self,
        provider: &ProviderName,
        url: &Url,
        tag: Option<HeaderValue>,
        page: &ReadPage,
    ) {
        if !self.profile.rate.etag_free {
            return;
        }
        let mut pages = self.pages.lock().expect("no holder panics");
        pages.retain(|page| *page.address != *url.as_str() || page.provider != *provider);
        let Some(tag) = tag.filter(|tag| tag.len() <= MAX_TAG_BYTES) else {
            return;
        };
        pages.push_back(TaggedPage {
            provider: provider.clone(),
            address: url.as_str().into(),
            tag,
            page: page.clone(),
        });
        let entries = |page: &TaggedPage| page.page.entries.len();
        while pages.len() > MAX_TAGGED_PAGES
            || pages.iter().map(entries).sum::<usize>() > MAX_TAGGED_ENTRIES
        {
            pages.pop_front();
        }
    }
}
