//! Requests pages of lists.

mod link;
mod position;
mod tagged;

use std::time::SystemTime;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{ETAG, HeaderMap};
use reqwest::{StatusCode, Url};

use self::link::next_link;
use self::position::{PageStart, Position};
pub(super) use self::tagged::TaggedPage;
use super::{ApiClient, ApiError, Malformed, Spent, is_same_origin};
use crate::domain::{ProviderName, RunRef};
use crate::profile::{List, ListFill, ListProblem, Next};
use crate::providers::answer::{Element, PageRead};
use crate::providers::reader::Reader;
use crate::providers::{ListEntry, ListPage, ListParameters, ListRequest};

/// How many entries of a page the next one has as well, where pages are counted by their entries: as runs end, those
/// behind them move up.
const OVERLAP: u64 = 5;

/// A page, and where the next one is.
#[derive(Debug, Clone)]
struct ReadPage {
    entries: Vec<ListEntry>,
    unreadable: usize,
    next: Option<PageStart>,
}

/// The values of `{status}` of each list that makes up a request.
fn statuses(list: &List, request: &ListRequest) -> Vec<Vec<String>> {
    if let Some(status) = request.parameters.get("status") {
        return vec![vec![status.clone()]];
    }
    if request.only_active && !list.active.is_empty() {
        return list.active.clone();
    }
    let unlisted = match request.only_active {
        true => &[],
        false => &*list.unlisted,
    };
    let unlisted = unlisted.iter().map(|status| vec![status.clone()]);
    std::iter::once(Vec::new()).chain(unlisted).collect()
}

impl ApiClient {
    /// Requests a page of a list.
    ///
    /// # Errors
    /// Those of any request; and when the answer is not a whole page.
    pub(super) async fn list_page(
        &self,
        provider: &ProviderName,
        request: &ListRequest,
        spent: &mut Spent,
    ) -> Result<ListPage, ApiError> {
        let Some(list) = &self.profile.list else {
            return Err(ApiError::List(ListProblem::None));
        };
        let no_page = || ApiError::Malformed(Malformed::Shape("it has no such page"));
        let position = match &request.page {
            Some(page) => Position::of(page).ok_or_else(no_page)?,
            None => Position::default(),
        };
        let statuses = statuses(list, request);
        let (offset, cursor) = match &position.at {
            PageStart::Offset(offset) => (*offset, None),
            PageStart::Cursor(cursor) => (0, Some(&**cursor)),
            PageStart::Start | PageStart::Link(_) => (0, None),
        };
        let target = self.profile.list_target(&ListFill {
            parameters: &request.parameters,
            statuses: statuses.get(position.list).ok_or_else(no_page)?,
            since: request.since,
            now: Timestamp::now(),
            offset,
            cursor,
        });
        let target = target.map_err(ApiError::List)?;
        let url = match &position.at {
            // It was checked when it was found; the address of the API may have changed since.
            PageStart::Link(address) => address
                .parse()
                .ok()
                .filter(|url| is_same_origin(&self.base, url))
                .ok_or_else(no_page)?,
            PageStart::Start | PageStart::Offset(_) | PageStart::Cursor(_) => {
                self.address_at(&target.path)
            }
        };
        let body = target.body.map(Bytes::from);
        let page = self
            .page_at(
                (url.clone(), body),
                (provider, &request.parameters),
                offset,
                spent,
            )
            .await?;
        let next = position.next(url.as_str(), statuses.len(), &page);
        let next = next.map_err(ApiError::Malformed)?;
        Ok(ListPage {
            next: next.map(|next| next.to_ref()),
            entries: page.entries,
            unreadable: page.unreadable,
        })
    }

    /// Requests the page at an address, with another key where the first is refused and has been replaced meanwhile.
    async fn page_at(
        &self,
        (url, body): (Url, Option<Bytes>),
        of: (&ProviderName, &ListParameters),
        offset: u64,
        spent: &mut Spent,
    ) -> Result<ReadPage, ApiError> {
        let tagged = match body {
            None => self.tagged_page(of.0, &url),
            Some(_) => None,
        };
        let mut tried = 0;
        loop {
            let key = self.authorization(spent).await?;
            let headers = (key.as_ref(), tagged.as_ref().map(|(tag, _)| tag));
            let request = (url.clone(), body.clone());
            let limit = self.settings.request_timeout;
            let answered = self.send(request, headers, limit, spent).await?;
            let code = answered.response.status();
            let pause = self
                .rate
                .any_pause(answered.response.headers(), SystemTime::now());
            self.accept(key.as_ref(), code);
            if code == StatusCode::NOT_MODIFIED
                && let Some((_, page)) = tagged
            {
                spent.pause(pause);
                return Ok(page);
            }
            if code.is_success() {
                spent.pause(pause);
                let headers = answered.response.headers();
                let tag = headers.get(ETAG).cloned();
                let (from, headers) = (answered.response.url().clone(), headers.clone());
                let read = self.read_page(answered).await?;
                let page = self.page_of(read, (&from, &headers), offset, of)?;
                if body.is_none() {
                    self.keep_page(of.0, &url, tag, &page);
                }
                return Ok(page);
            }
            tried += 1;
            let sent = (key.as_ref(), tried);
            if let Some(refusal) = self.refused(answered, sent, pause, spent).await {
                return Err(refusal);
            }
        }
    }

    async fn read_page(&self, answered: super::Answered) -> Result<PageRead, ApiError> {
        let Some(layout) = &self.layouts.page else {
            return Err(ApiError::List(ListProblem::None));
        };
        let most = self.settings.max_response_bytes;
        let reader = |length| Reader::of_whole(layout.plan(), most, length);
        let received = self.receive_with(&reader, answered).await;
        if let Some(error) = received.broken_off {
            return Err(error);
        }
        let read = layout.read(received.reader).map_err(ApiError::Malformed);
        // Until here, the body takes memory.
        drop(received.room);
        read
    }

    /// The entries of a page, and where the next one is.
    fn page_of(
        &self,
        read: PageRead,
        (from, headers): (&Url, &HeaderMap),
        offset: u64,
        (provider, parameters): (&ProviderName, &ListParameters),
    ) -> Result<ReadPage, ApiError> {
        let list = self.profile.list.as_ref();
        let elements = read.elements.len() + read.unreadable;
        let limit = u64::from(list.map_or(0, |list| list.limit));
        let next = match list.and_then(|list| list.next.as_ref()) {
            None => None,
            Some(Next::Link) => next_link(headers).map(PageStart::Link),
            Some(Next::LinkAt(_)) => read.cursor.map(PageStart::Link),
            Some(Next::Offset) => {
                let elements = elements as u64;
                let overlap = OVERLAP.min(limit / 2);
                (elements >= limit).then(|| PageStart::Offset(offset + elements - overlap))
            }
            Some(Next::Cursor { .. }) => read.cursor.map(PageStart::Cursor),
        };
        let next = match next {
            Some(PageStart::Link(link)) => {
                let next = from.join(&link).ok();
                let next = next.filter(|next| is_same_origin(from, next));
                let elsewhere = Malformed::Shape("its next page is at another server");
                Some(PageStart::Link(
                    next.ok_or(ApiError::Malformed(elsewhere))?.into(),
                ))
            }
            next => next,
        };
        let entry = |element| self.list_entry(element, provider, parameters);
        let entries: Vec<_> = read.elements.into_iter().filter_map(entry).collect();
        Ok(ReadPage {
            unreadable: elements - entries.len(),
            entries,
            next,
        })
    }

    /// The run that an element is about; `None` where its ID is none, or that of a run which was not requested.
    fn list_entry(
        &self,
        element: Element,
        provider: &ProviderName,
        parameters: &ListParameters,
    ) -> Option<ListEntry> {
        let is_other = |(name, value): &(String, String)| {
            parameters.get(name).is_some_and(|wanted| wanted != value)
        };
        if element.ids.iter().any(is_other) {
            return None;
        }
        let given = parameters.iter().map(|(name, value)| (&**name, &**value));
        let own = element.ids.iter().map(|(name, value)| (&**name, &**value));
        let parts = self.profile.make_parts(given.chain(own)).ok()?;
        let run_id = RunRef::of(provider, &self.profile.write_id(&parts)).ok()?;
        Some(ListEntry {
            run_id,
            status: element.status,
            attempt: element.attempt,
            name: element.name,
            group: element.group,
            url: element.url.or_else(|| {
                self.profile
                    .page(&parts, &self.settings.base_url, self.web.as_deref())
            }),
            created_at: element.created_at,
            started_at: element.started_at,
            completed_at: element.completed_at,
            values: element.values.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::position::MAX_PAGES;
    use super::*;
    use crate::config::{ApiSettings, Settings};
    use crate::profile;
    use crate::providers::{Credentials, ListReply, PageRef, Provider as _};

    /// An API that answers each request by its first line and its body, with headers and a body, and counts the requests.
    struct ListApi {
        base_url: String,
        requests: Arc<Mutex<Vec<String>>>,
        _serving: JoinSet<()>,
    }

    /// A header section without the status line, and a body.
    type HeadAndBody = (String, String);

    async fn api(answer: impl Fn(&str) -> HeadAndBody + Send + 'static) -> ListApi {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut read = Vec::new();
                let whole = |read: &[u8]| {
                    let text = String::from_utf8_lossy(read).into_owned();
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "));
                    let length: usize = length.map_or(0, |length| length.parse().unwrap());
                    let tag = head
                        .lines()
                        .find_map(|line| line.strip_prefix("if-none-match: "));
                    let first = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
                    (body.len() >= length)
                        .then(|| format!("{first} {body}{}", tag.unwrap_or_default()))
                };
                let request = loop {
                    if let Some(request) = whole(&read) {
                        break request;
                    }
                    if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                        break String::new();
                    }
                };
                let request = request.trim().to_owned();
                let (headers, body) = answer(&request);
                seen.lock().unwrap().push(request);
                let status = match headers.contains("status:") {
                    true => headers
                        .split("status:")
                        .nth(1)
                        .unwrap()
                        .lines()
                        .next()
                        .unwrap()
                        .trim()
                        .to_owned(),
                    false => "200 OK".to_owned(),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _gone = stream.write_all(answer.as_bytes()).await;
            }
        });
        ListApi {
            base_url,
            requests,
            _serving: serving,
        }
    }

    impl ListApi {
        fn seen(&self) -> Vec<String> {
            std::mem::take(&mut *self.requests.lock().unwrap())
        }

        fn client(&self, profile: &str) -> ApiClient {
            let profile = profile::parse(profile, "jobs").unwrap();
            let settings = ApiSettings {
                base_url: self.base_url.clone(),
                max_response_bytes: 64 * 1024,
                ..Settings::default().api
            };
            ApiClient::of_profile(profile.into(), &settings, Credentials::default()).unwrap()
        }
    }

    fn profile(list: &str) -> String {
        format!(
            r#"
            auth = {{ scheme = "none" }}
            id = "{{scope}}/{{run}}"
            parts = {{ run = "number" }}
            get = "/{{scope}}/{{run}}"
            rules = [
                {{ when = {{ "/state" = "on" }}, is = "running" }},
                {{ when = {{ "/state" = "off" }}, is = "succeeded" }},
            ]
            roots = ["/run"]
            name = "/title"
            attempt = "/try"
            created = "/at"
            finished = "/end"
            list = {{ items = "/runs", id = {{ run = "/id" }}, {list} }}"#
        )
    }

    fn request(parameters: &[(&str, &str)]) -> ListRequest {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        ListRequest {
            parameters: parameters.iter().map(own).collect(),
            ..ListRequest::default()
        }
    }

    async fn list(client: &ApiClient, request: &ListRequest) -> ListReply {
        client
            .list(&ProviderName::new("jobs").unwrap(), request)
            .await
    }

    /// The IDs of all pages, and how often each page was followed; at most 50 pages.
    async fn all(client: &ApiClient, mut request: ListRequest) -> Result<Vec<String>, ApiError> {
        let mut ids = Vec::new();
        for _ in 0..50 {
            let page = list(client, &request).await.result?;
            ids.extend(
                page.entries
                    .iter()
                    .map(|entry| entry.run_id.id().to_owned()),
            );
            request.page = page.next;
            if request.page.is_none() {
                return Ok(ids);
            }
        }
        panic!("the list does not end: {ids:?}");
    }

    fn runs(ids: impl IntoIterator<Item = u64>) -> String {
        let runs: Vec<_> = ids
            .into_iter()
            .map(|id| format!(r#"{{"id":{id},"state":"on"}}"#))
            .collect();
        format!(r#"{{"runs":[{}]}}"#, runs.join(","))
    }

    #[tokio::test]
    async fn entries_are_read_as_single_runs_are() {
        let body = r#"{"runs":[
            {"id":7,"state":"on","title":"A \n b","try":2,"at":"2026-11-28T08:00:00Z","branch":"main","n":3,"end":"2026-11-28T08:01:00Z"},
            {"id":"8","state":"off","end":"2026-11-28T08:01:00Z","branch":null},
            {"id":9,"run":{"state":"off"}},
            {"id":10,"state":"asleep"},
            {"id":11},
            {"id":"x","state":"on"},
            {"id":"../12","state":"on"},
            {"id":13,"id":14,"state":"on"},
            {"state":"on"}, 7, null, [], {"id":{"a":1}}
        ]}"#;
        let api = api(move |_| (String::new(), body.to_owned())).await;
        let client = api.client(&profile(
            r#"get = "/{scope}/runs?branch={branch}", values = { branch = "/branch", n = "/n" }"#,
        ));
        let reply = list(&client, &request(&[("scope", "a b"), ("branch", "x&y=z")])).await;
        assert_eq!(api.seen(), ["GET /a%20b/runs?branch=x%26y%3Dz"]);
        assert_eq!(reply.requests, 1);
        let page = reply.result.unwrap();
        assert_eq!((page.unreadable, page.next), (8, None));
        let shown: Vec<_> = page
            .entries
            .iter()
            .map(|entry| {
                format!(
                    "{} {} {}",
                    entry.run_id,
                    entry.status.state().as_str(),
                    entry.status
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "jobs:a b/7 running on",
                "jobs:a b/8 succeeded off",
                "jobs:a b/9 succeeded off",
                "jobs:a b/10 unknown asleep",
                "jobs:a b/11 unknown unknown"
            ]
        );
        let first = &page.entries[0];
        assert_eq!(
            (first.name.as_deref(), first.attempt),
            (Some("A b"), Some(2))
        );
        let at = |time: &str| Some(time.parse().unwrap());
        assert_eq!(
            (first.created_at, first.completed_at),
            (at("2026-11-28T08:00:00Z"), None)
        );
        assert_eq!(page.entries[1].completed_at, at("2026-11-28T08:01:00Z"));
        let values = [("branch", "main"), ("n", "3")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(first.values, BTreeMap::from(values));
        assert_eq!(page.entries[1].values, BTreeMap::new());
    }

    #[tokio::test]
    async fn a_list_that_cannot_be_requested_makes_no_request() {
        let api = api(|_| (String::new(), runs([]))).await;
        let client = api.client(&profile(r#"get = "/{scope}/runs""#));
        for (parameters, why) in [
            (vec![], "the list needs the parameter scope"),
            (vec![("scope", "")], "the parameter scope is \"\""),
            (vec![("scope", "..")], "the parameter scope is \"..\""),
            (vec![("scope", "a/../b")], "the parameter scope is"),
            (
                vec![("scope", "a"), ("branch", "b")],
                "the list has no parameter \"branch\"; it has scope",
            ),
        ] {
            let reply = list(&client, &request(&parameters)).await;
            let error = reply.result.unwrap_err();
            assert!(error.describe().contains(why), "{}", error.describe());
            assert!(matches!(error, ApiError::List(_)));
            assert_eq!(reply.requests, 0);
        }
        assert_eq!(api.seen(), [""; 0]);
        let of = |id: &str| client.list_of(&RunRef::new(id).unwrap());
        assert_eq!(of("jobs:a/7"), Some(request(&[("scope", "a")]).parameters));
        assert_eq!(of("jobs:a"), None);
    }

    #[tokio::test]
    async fn links_are_followed_to_the_same_server_only() {
        let api = api(|request| {
            let next = |to: &str| {
                format!("link: <{to}>; rel=\"last\", <{to}>; title=\"a,<b>\"; REL=\"x next\"\r\n")
            };
            match request {
                "GET /a/runs" => (next("/elsewhere?page=2"), runs([1, 2])),
                "GET /elsewhere?page=2" => (next("?page=3"), runs([2, 3])),
                "GET /elsewhere?page=3" => (next("/a/runs"), runs([4])),
                "GET /b/runs" => (next("http://evil.example/b"), runs([1])),
                "GET /c/runs" => (next("http://user@127.0.0.1/"), runs([1])),
                _ => (
                    "link: <x>; rel=prev, </y>;rel=\"nextish\"\r\n".to_owned(),
                    runs([5]),
                ),
            }
        })
        .await;
        let client = api.client(&profile(r#"get = "/{scope}/runs", next = "link""#));
        let of = |scope| all(&client, request(&[("scope", scope)]));
        assert_eq!(of("a").await.unwrap(), ["a/1", "a/2", "a/2", "a/3", "a/4"]);
        assert_eq!(of("d").await.unwrap(), ["d/5"]);
        let text = profile(r#"get = "/{scope}/runs", next = { link = "/next" }"#);
        let in_body = self::api(|request| {
            let next = match request {
                "GET /a/runs" => r#""?page=2""#,
                "GET /a/runs?page=2" => "null",
                _ => r#""https://evil.example/""#,
            };
            (
                String::new(),
                format!(r#"{{"runs":[{{"id":1}}],"next":{next}}}"#),
            )
        })
        .await;
        let other = in_body.client(&text);
        assert_eq!(
            all(&other, request(&[("scope", "a")])).await.unwrap().len(),
            2
        );
        assert!(all(&other, request(&[("scope", "b")])).await.is_err());
        for scope in ["b", "c"] {
            let error = of(scope).await.unwrap_err();
            assert!(
                error.describe().contains("at another server"),
                "{}",
                error.describe()
            );
        }
    }

    #[tokio::test]
    async fn pages_by_offset_overlap_so_that_runs_which_move_up_are_not_missed() {
        // Between two pages, three runs of the first one end and leave the list.
        let ended = Mutex::new(0);
        let api = api(move |request| {
            let offset: usize = request.rsplit('=').next().unwrap().parse().unwrap();
            let going: Vec<u64> = (*ended.lock().unwrap()..25).collect();
            *ended.lock().unwrap() += 3;
            (String::new(), runs(going.into_iter().skip(offset).take(10)))
        })
        .await;
        let client = api.client(&profile(
            r#"get = "/{scope}/runs?limit={limit}&offset={offset}", limit = 10, next = "offset""#,
        ));
        let mut ids = all(&client, request(&[("scope", "a")])).await.unwrap();
        ids.dedup();
        let missing: Vec<_> = (0..25)
            .filter(|id| !ids.contains(&format!("a/{id}")))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        let seen = api.seen();
        assert_eq!(
            seen[..2],
            [
                "GET /a/runs?limit=10&offset=0",
                "GET /a/runs?limit=10&offset=5"
            ]
        );
    }

    #[tokio::test]
    async fn an_api_that_knows_no_offset_has_one_page() {
        let api = api(|_| (String::new(), runs(0..10))).await;
        let client = api.client(&profile(
            r#"get = "/{scope}/runs?limit={limit}&offset={offset}", limit = 10, next = "offset""#,
        ));
        assert_eq!(
            all(&client, request(&[("scope", "a")]))
                .await
                .unwrap()
                .len(),
            20
        );
        assert_eq!(api.seen().len(), 2);
    }

    #[tokio::test]
    async fn a_cursor_that_comes_again_ends_the_list() {
        let api = api(|request| {
            let cursor = |cursor: &str| {
                (
                    String::new(),
                    format!(r#"{{"runs":[{{"id":1,"state":"on"}}],"page":{{"next":{cursor}}}}}"#),
                )
            };
            match request {
                "GET /a/runs" => cursor(r#""b&c""#),
                "GET /a/runs?after%5Bid%5D=b%26c" => cursor("17"),
                "GET /a/runs?after%5Bid%5D=17" => cursor(r#""b&c""#),
                "GET /b/runs" => cursor("null"),
                "GET /c/runs" => cursor(r#""""#),
                "GET /d/runs" => cursor("false"),
                "GET /e/runs" => (
                    String::new(),
                    r#"{"runs":[],"page":{"next":"x","more":false}}"#.to_owned(),
                ),
                "GET /f/runs" => cursor("{\"a\":1}"),
                other => panic!("{other}"),
            }
        })
        .await;
        let client = api.client(&profile(
            r#"get = "/{scope}/runs", next = { cursor = "/page/next", param = "after[id]", more = "/page/more" }"#,
        ));
        let of = |scope| all(&client, request(&[("scope", scope)]));
        assert_eq!(of("a").await.unwrap().len(), 3);
        for scope in ["b", "c", "d"] {
            assert_eq!(of(scope).await.unwrap().len(), 1, "{scope}");
        }
        assert_eq!(of("e").await.unwrap().len(), 0);
        assert!(of("f").await.is_err());
    }

    #[tokio::test]
    async fn a_list_with_ever_new_cursors_is_an_error_in_the_end() {
        let count = Mutex::new(0);
        let api = api(move |_| {
            *count.lock().unwrap() += 1;
            let next = count.lock().unwrap();
            (String::new(), format!(r#"{{"runs":[],"next":{next}}}"#))
        })
        .await;
        let client = api.client(&profile(
            r#"get = "/{scope}/runs", next = { cursor = "/next", param = "after" }"#,
        ));
        let mut request = request(&[("scope", "a")]);
        let position = Position {
            at: PageStart::Cursor("x".to_owned()),
            pages: MAX_PAGES - 2,
            ..Position::default()
        };
        request.page = Some(position.to_ref());
        request.page = list(&client, &request).await.result.unwrap().next;
        let error = list(&client, &request).await.result.unwrap_err();
        assert!(
            error.describe().contains("more than 1,000 pages"),
            "{}",
            error.describe()
        );
        request.page = Some(PageRef::new("{}"));
        assert!(list(&client, &request).await.result.is_err());
    }

    #[tokio::test]
    async fn the_list_of_each_status_is_requested_after_the_other() {
        let api = api(|request| {
            let last = match request.contains("after=2") {
                true => "null",
                false => "2",
            };
            (
                String::new(),
                format!(r#"{{"runs":[{{"id":1}}],"next":{last}}}"#),
            )
        })
        .await;
        let client = api.client(&profile(
            r#"get = "/{scope}/runs?state={status}", active = [["on", "up"], "wait"], unlisted = ["new"],
               next = { cursor = "/next", param = "after" }"#,
        ));
        let mut wanted = request(&[("scope", "a")]);
        wanted.only_active = true;
        assert_eq!(all(&client, wanted.clone()).await.unwrap().len(), 4);
        assert_eq!(
            api.seen(),
            [
                "GET /a/runs?state=on&state=up",
                "GET /a/runs?state=on&state=up&after=2",
                "GET /a/runs?state=wait",
                "GET /a/runs?state=wait&after=2"
            ]
        );
        wanted
            .parameters
            .insert("status".to_owned(), "off".to_owned());
        wanted.page = list(&client, &wanted).await.result.unwrap().next;
        assert!(!wanted.page.as_ref().unwrap().begins_list());
        assert_eq!(api.seen(), ["GET /a/runs?state=off"]);
        let mut plain = request(&[("scope", "a")]);
        let mut begins = Vec::new();
        for _ in 0..4 {
            plain.page = list(&client, &plain).await.result.unwrap().next;
            begins.extend(plain.page.as_ref().map(PageRef::begins_list));
        }
        assert_eq!(begins, [false, true, false]);
        assert_eq!(
            api.seen(),
            [
                "GET /a/runs",
                "GET /a/runs?after=2",
                "GET /a/runs?state=new",
                "GET /a/runs?state=new&after=2"
            ]
        );
    }

    #[tokio::test]
    async fn a_list_may_be_requested_by_post() {
        let api = api(|_| (String::new(), runs([1]))).await;
        let client = api.client(&profile(
            r#"post = "/{scope}/filter", next = "offset", limit = 20, since = "{ms}", active = [["on", "up"]], body = '''{
                "limit": "{limit}", "offset": "{offset}", "sort": "new", "flows": {"any": ["{flow}"]},
                "states": {"type": {"any": ["{status}"]}}, "after": "t{since}", "empty": {}, "text": "a {flow}"
            }'''"#,
        ));
        let mut wanted = request(&[("scope", "a")]);
        list(&client, &wanted).await.result.unwrap();
        wanted.only_active = true;
        wanted.since = Some("2026-11-28T08:00:00.5Z".parse().unwrap());
        wanted
            .parameters
            .insert("flow".to_owned(), "x\"}".to_owned());
        list(&client, &wanted).await.result.unwrap();
        let seen = api.seen();
        let body = |text: &str| {
            serde_json::from_str::<serde_json::Value>(text.strip_prefix("POST /a/filter ").unwrap())
                .unwrap()
        };
        assert_eq!(
            body(&seen[0]),
            serde_json::json!({"limit": 20, "offset": 0, "sort": "new", "empty": {}})
        );
        assert_eq!(
            body(&seen[1]),
            serde_json::json!({
                "limit": 20, "offset": 0, "sort": "new", "empty": {}, "flows": {"any": ["x\"}"]},
                "states": {"type": {"any": ["on", "up"]}}, "after": "t1795852800500", "text": "a x\"}"
            })
        );
    }

    #[tokio::test]
    async fn what_is_not_a_whole_list_is_never_an_empty_one() {
        let large = format!(r#"{{"runs":[{}1]}}"#, "1,".repeat(40_000));
        let bodies = [
            ("", "it is empty"),
            ("{}", "it has no list of runs"),
            ("[]", "it is not JSON"),
            ("<html>", "it is not JSON"),
            (r#"{"runs":{}}"#, "it has no list of runs"),
            (r#"{"runs":null}"#, "it has no list of runs"),
            (r#"{"runs":[{"id":1}"#, "it is not JSON"),
            (r#"{"runs":[{"id":1},]}"#, "its list is not JSON"),
            (r#"{"runs":[{"id":NaN}]}"#, "its list is not JSON"),
            (&large, "larger than max_response_bytes"),
        ];
        for (body, why) in bodies {
            let body = body.to_owned();
            let api = api(move |_| (String::new(), body.clone())).await;
            let client = api.client(&profile(r#"get = "/{scope}/runs""#));
            let error = list(&client, &request(&[("scope", "a")]))
                .await
                .result
                .unwrap_err();
            assert!(error.describe().contains(why), "{}", error.describe());
        }
    }

    #[tokio::test]
    async fn an_absent_array_is_an_empty_one_where_the_profile_says_so() {
        for (body, is_list) in [
            ("{}", true),
            (r#"{"runs":null}"#, true),
            (r#"{"runs":7}"#, false),
            ("[]", false),
            ("7", false),
        ] {
            let api = api(move |_| (String::new(), body.to_owned())).await;
            let client = api.client(&profile(r#"get = "/{scope}/runs", omits_empty = true"#));
            let reply = list(&client, &request(&[("scope", "a")])).await;
            assert_eq!(reply.result.is_ok(), is_list, "{body}");
        }
    }

    #[tokio::test]
    async fn an_array_alone_and_elements_of_another_shape_are_read() {
        let api = api(|_| {
            let body = "\u{feff} [{\"id\":1,\"state\":\"off\"}] ";
            (String::new(), body.to_owned())
        })
        .await;
        let text = profile(r#"get = "/{scope}/runs", entry = "/run""#)
            .replace("\"/state\"", "\"/run/state\"")
            .replace("\"/runs\"", "[\"/runs\", \"\"]");
        let client = api.client(&text);
        let page = list(&client, &request(&[("scope", "a")]))
            .await
            .result
            .unwrap();
        assert_eq!(page.entries[0].status.as_str(), "off");
        assert_eq!(
            page.entries[0].status.state(),
            crate::domain::RunState::Succeeded
        );
    }

    #[tokio::test]
    async fn a_page_that_has_not_changed_is_not_sent_again() {
        let api = api(|request| match request.ends_with("\"t1\"") {
            true => ("status: 304 Not Modified\r\n".to_owned(), String::new()),
            false => (
                "etag: \"t1\"\r\nlink: <?page=2>; rel=\"next\"\r\n".to_owned(),
                runs([1]),
            ),
        })
        .await;
        let text = profile(r#"get = "/{scope}/runs", next = "link""#);
        for (rate, requests) in [
            (
                "rate = { etag_free = true }",
                ["GET /a/runs", "GET /a/runs \"t1\""],
            ),
            ("", ["GET /a/runs", "GET /a/runs"]),
        ] {
            let client = api.client(&format!("{rate}\n{text}"));
            let first = list(&client, &request(&[("scope", "a")]))
                .await
                .result
                .unwrap();
            let again = list(&client, &request(&[("scope", "a")]))
                .await
                .result
                .unwrap();
            assert_eq!(first, again);
            assert!(first.next.is_some());
            assert_eq!(api.seen(), requests);
        }
    }

    #[tokio::test]
    async fn a_run_of_another_scope_is_not_taken() {
        let api = api(|_| {
            (
                String::new(),
                r#"{"runs":[{"id":1,"scope":"a"},{"id":2,"scope":"b"},{"id":3,"scope":"a/../b"}]}"#
                    .to_owned(),
            )
        })
        .await;
        let text = profile(r#"get = "/runs?scope={scope}""#)
            .replace("id = { run", "id = { scope = \"/scope\", run");
        let client = api.client(&text);
        assert_eq!(
            all(&client, request(&[("scope", "a")])).await.unwrap(),
            ["a/1"]
        );
        assert_eq!(all(&client, request(&[])).await.unwrap(), ["a/1", "b/2"]);
        assert_eq!(
            client.list_of(&RunRef::new("jobs:a/7").unwrap()),
            Some(BTreeMap::new())
        );
    }
}
