//! The HTTP client of a provider: requests as its profile describes them.

mod connections;
#[cfg(test)]
mod fixture;
mod list;
mod probe;
mod receive;
mod refusal;
mod tags;

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, LINK, LOCATION,
};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use self::connections::{Pool, builder, poll_client};
use self::list::TaggedPage;
pub use self::probe::Probe;
use self::receive::{Answered, ROOM_KIB};
use self::tags::Tagged;
use super::answer::{
    Addition, Expected, Layout, PageLayout, Reported, RunAnswer, stands_without_parts,
};
use super::credentials::{Credentials, Keys};
use super::error::{ApiError, Transport};
use super::rate_limit::RateHeaders;
use super::reader::Reader;
use super::{
    HttpStream, ListParameters, ListReply, ListRequest, Malformed, Provider, Reply, answer,
};
use crate::config::{ApiSettings, ProviderSettings, Secret};
use crate::domain::{Observation, ProviderName, RunRef, Verdict};
use crate::http::Names;
use crate::profile::{self, Parts, Profile, Template};

/// Most bytes of the body of an answer that is no success and that a rule looks at.
const MAX_RULED_BYTES: usize = 64 * 1024;

/// Most redirects of one request that are followed.
const MAX_REDIRECTS: usize = 3;

/// How long the request may take that only adds to a verdict.
const DETAIL_LIMIT: Duration = Duration::from_secs(3);

/// Most name lookups at once.
const LOOKUPS: usize = 8;

/// Most runs of which is remembered that their last answer broke off. Of one that is forgotten, an answer more is
/// needed.
const MAX_CUT: usize = 256;

/// Longest life of an event stream. The API ends one after 30 minutes ("Stream Events" of its reference).
const STREAM_LIFE: Duration = Duration::from_secs(35 * 60);

/// A client that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// TLS cannot be set up.
    #[error("cannot set up HTTPS (are certificates of authorities installed?)")]
    Https(#[source] reqwest::Error),
    /// The address of the API is none; a configuration that was loaded has none like that.
    #[error("the address of the API is not a URL")]
    Address(#[source] <Url as FromStr>::Err),
}

/// Polls runs over HTTP.
///
/// HTTP/2 where the server offers it, connections kept alive, TLS by rustls with the system's
/// authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` replace them), proxies as `HTTPS_PROXY`,
/// `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` specify, but none for loopback addresses. Redirects are followed only to the
/// same scheme, host and port.
pub struct ApiClient {
    profile: Arc<Profile>,
    layouts: Layouts,
    settings: ApiSettings,
    /// Where the pages for people are, if not at the address of the API.
    web: Option<String>,
    names: Arc<Names>,
    /// Held only to copy in and out.
    polls: Mutex<Pool>,
    /// The client that takes the place of that of `polls` when its connections are let go. Made on a thread of its own,
    /// as it reads the certificates of authorities.
    spare: Arc<Mutex<Option<Client>>>,
    /// For event streams, each with a connection of its own: one that is not read fast enough would
    /// hold up all that share its connection.
    streams: Client,
    /// Where the API is, without a slash at the end of its path.
    base: Url,
    /// What stands before the path of each request: the path of `base`.
    base_path: String,
    /// Headers of each request of the profile.
    headers: HeaderMap,
    rate: RateHeaders,
    keys: Keys,
    /// The runs whose last answer had a status and broke off after it. Held only to look and to change.
    cut: Mutex<VecDeque<RunRef>>,
    /// The last answers that had a tag, the newest last. Held only to look and to change.
    tagged: Mutex<VecDeque<Tagged>>,
    /// The last pages of lists that had a tag, the newest last. Held only to look and to change.
    pages: Mutex<VecDeque<TaggedPage>>,
    /// Room for large answers in KiB, which each takes until what it leads to is stored.
    room: Arc<Semaphore>,
}

/// What is read of the answers to each request of a profile.
struct Layouts {
    run: Layout,
    parts: Option<Layout>,
    confirm: Option<Layout>,
    detail: Option<Layout>,
    page: Option<PageLayout>,
}

impl Layouts {
    fn of(profile: &Profile) -> Self {
        let second = profile.each.as_ref().filter(|each| each.get.is_some());
        Self {
            run: Layout::of_run(profile),
            parts: second.map(|each| Layout::of_parts(each, profile.exact)),
            confirm: profile
                .confirm
                .as_ref()
                .map(|confirm| Layout::of_confirm(confirm, profile.exact)),
            detail: profile.detail.as_ref().map(Layout::of_detail),
            page: PageLayout::of(profile),
        }
    }
}

/// What a poll took so far, also where it fails.
#[derive(Debug, Default)]
pub(super) struct Spent {
    /// How many requests were sent.
    pub(super) requests: u32,
    /// The longest pause that an answer requested; that of a rejection is in its error.
    pause: Option<Duration>,
}

impl Spent {
    fn pause(&mut self, pause: Option<Duration>) {
        self.pause = self.pause.max(pause);
    }
}

impl ApiClient {
    /// A client of Crewship for these settings. Sends nothing yet.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the address of the API is not a URL.
    pub fn new(settings: &ApiSettings) -> Result<Self, BuildError> {
        let credentials = Credentials::of_key(settings.key.clone());
        Self::of_profile(profile::crewship(), settings, credentials)
    }

    /// A client for a configured account. Sends nothing yet.
    ///
    /// # Errors
    /// As [`ApiClient::of_profile`].
    pub fn of_account(account: &ProviderSettings) -> Result<Self, BuildError> {
        let credentials = Credentials {
            key: account.api.key.clone(),
            user: account.user.clone().map(Secret::value),
            password: account.password.clone(),
            command: account.key_command.clone(),
        };
        let profile = Arc::clone(&account.profile);
        let mut client = Self::of_profile(profile, &account.api, credentials)?;
        client.web.clone_from(&account.web);
        Ok(client)
    }

    /// A client for an account at a provider. Sends nothing yet.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the address of the API is not a URL.
    pub fn of_profile(
        profile: Arc<Profile>,
        settings: &ApiSettings,
        credentials: Credentials,
    ) -> Result<Self, BuildError> {
        let names = Names::new(LOOKUPS);
        let streams = builder(settings, &names)
            .timeout(STREAM_LIFE)
            .http1_only()
            .pool_max_idle_per_host(0);
        let base: Url = settings
            .base_url
            .trim_end_matches('/')
            .parse()
            .map_err(BuildError::Address)?;
        let http = poll_client(settings, &names).map_err(BuildError::Https)?;
        let client = Self {
            polls: Mutex::new(Pool {
                http,
                number: 0,
                answered_at: None,
                large: 0,
            }),
            spare: Arc::default(),
            settings: settings.clone(),
            names,
            streams: streams.build().map_err(BuildError::Https)?,
            base_path: base.path().trim_end_matches('/').to_owned(),
            base,
            headers: headers_of(&profile),
            rate: RateHeaders::of(&profile.rate),
            keys: Keys::new(credentials, &profile.auth, login_of(&profile, settings)),
            web: profile.web.clone(),
            layouts: Layouts::of(&profile),
            profile,
            cut: Mutex::new(VecDeque::new()),
            tagged: Mutex::new(VecDeque::new()),
            pages: Mutex::new(VecDeque::new()),
            room: Arc::new(Semaphore::new(ROOM_KIB as usize)),
        };
        client.make_spare();
        Ok(client)
    }

    /// Reads the key, for [`Provider::is_same_account`]. One that cannot be read shows at the first request.
    pub async fn read_key(&self) {
        let _unreadable = self.authorization(&mut Spent::default()).await;
    }

    /// The header with the key, if requests have one.
    async fn authorization(&self, spent: &mut Spent) -> Result<Option<HeaderValue>, ApiError> {
        let http = self.pool().http;
        self.keys.authorization(&http, spent).await
    }

    /// The parts of a run's ID.
    fn parts(&self, id: &RunRef) -> Result<Parts, ApiError> {
        let parts = self.profile.read_id(id.id());
        parts.map_err(|problem| ApiError::NotAnId(problem.to_string()))
    }

    /// Where a request goes. Nothing of an ID leads to another host or to another folder of this one.
    fn address_of(&self, template: &Template, parts: &Parts) -> Result<Url, ApiError> {
        if template.is_url() {
            let url = self
                .profile
                .request_url(template, parts, &self.settings.base_url);
            return url.ok_or_else(|| {
                let what = "its address is not one of the configured base_url".to_owned();
                ApiError::NotAnId(what)
            });
        }
        // What is the same for all requests is not read again each time.
        Ok(self.address_at(&self.profile.path(template, parts)))
    }

    /// The address of a path of the API with its query.
    fn address_at(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        url.set_path(&format!("{}{path}", self.base_path));
        url.set_query(query);
        url
    }

    /// Sends a GET, as [`ApiClient::send`].
    async fn fetch(
        &self,
        url: Url,
        headers: (Option<&HeaderValue>, Option<&HeaderValue>),
        limit: Duration,
        spent: &mut Spent,
    ) -> Result<Answered, ApiError> {
        self.send((url, None), headers, limit, spent).await
    }

    /// Sends a GET, or a POST where there is a body, with a key and the tag of the last answer where there are any, and
    /// waits for the head of its answer for `limit`. Follows redirects to the same origin; of a POST, only those that
    /// keep it one (RFC 9110, section 15.4).
    async fn send(
        &self,
        (mut url, body): (Url, Option<Bytes>),
        (key, tag): (Option<&HeaderValue>, Option<&HeaderValue>),
        limit: Duration,
        spent: &mut Spent,
    ) -> Result<Answered, ApiError> {
        let ends = Instant::now() + limit;
        let mut redirects = 0;
        loop {
            let request = |http: &Client| {
                let mut request = match &body {
                    Some(body) => http.post(url.clone()).body(body.clone()),
                    None => http.get(url.clone()),
                };
                if body.is_some() && !self.headers.contains_key(CONTENT_TYPE) {
                    let json = HeaderValue::from_static("application/json");
                    request = request.header(CONTENT_TYPE, json);
                }
                if let Some(key) = key {
                    request = request.header(self.keys.name(), key.clone());
                }
                if !self.headers.contains_key(ACCEPT) {
                    request = request.header(ACCEPT, HeaderValue::from_static("application/json"));
                }
                if let Some(tag) = tag {
                    request = request.header(IF_NONE_MATCH, tag.clone());
                }
                match self.headers.is_empty() {
                    true => request,
                    false => request.headers(self.headers.clone()),
                }
            };
            spent.requests += 1;
            let (response, pool) = self.send_poll(ends, request).await?;
            let stays = body.is_none() || matches!(response.status().as_u16(), 307 | 308);
            let next = (redirects < MAX_REDIRECTS && stays)
                .then(|| redirected(&url, &response))
                .flatten();
            match next {
                Some(next) => {
                    redirects += 1;
                    url = next;
                }
                None => {
                    return Ok(Answered {
                        response,
                        pool,
                        ends,
                    });
                }
            }
        }
    }

    fn transport(&self, error: reqwest::Error) -> ApiError {
        ApiError::Transport(Transport::new(error, &self.keys.redactor()))
    }

    /// Reads the answer about the run `id`.
    ///
    /// An answer that breaks off is an error the first time, since the next may be whole; the second in a row is
    /// used up to the point where it broke.
    async fn observation(
        &self,
        answered: Answered,
        id: &RunRef,
        expected: Expected<'_>,
    ) -> Result<Reported, ApiError> {
        let received = self.receive(&self.layouts.run, answered).await;
        let again = {
            let mut cut = self.cut.lock().expect("no holder panics");
            let before = cut.iter().position(|other| other == id);
            before.and_then(|at| cut.remove(at)).is_some()
        };
        let answer = answer::answer(&self.layouts.run, received.reader, expected, received.room);
        match (received.broken_off, answer) {
            (None, Ok(answer)) if answer.whole || again => Ok(taken(answer, id)),
            // It is our waiting that broke it off.
            (Some(error), Ok(_)) if received.waited => Err(error),
            (Some(_), Ok(answer)) if again => Ok(taken(answer, id)),
            (broken_off, Ok(_)) => {
                let mut cut = self.cut.lock().expect("no holder panics");
                if cut.len() == MAX_CUT {
                    cut.pop_front();
                }
                cut.push_back(id.clone());
                Err(broken_off.unwrap_or(ApiError::Malformed(Malformed::Shape("it breaks off"))))
            }
            (Some(error), Err(_)) => Err(error),
            (None, Err(error)) => Err(ApiError::Malformed(error)),
        }
    }

    /// Makes a second request and reads what it adds.
    ///
    /// # Errors
    /// Those of any request; that there is no such thing does not mean that there is no such run.
    async fn second(
        &self,
        layout: &Layout,
        template: &Template,
        first: &FirstRequest<'_>,
        limit: Duration,
        spent: &mut Spent,
    ) -> Result<Addition, ApiError> {
        let url = self.address_of(template, first.parts)?;
        let answered = self.fetch(url, (first.key, None), limit, spent).await?;
        let code = answered.response.status();
        let headers = answered.response.headers();
        let pause = self.rate.any_pause(headers, SystemTime::now());
        if !code.is_success() {
            return Err(match self.refusal(answered.response, answered.ends).await {
                ApiError::NotFound { message } | ApiError::Gone { message } => ApiError::Status {
                    status: code.as_u16(),
                    message,
                    retry_after: pause,
                },
                error => error,
            });
        }
        spent.pause(pause);
        let more = has_next_link(headers);
        let received = self.receive(layout, answered).await;
        if let Some(error) = received.broken_off {
            return Err(error);
        }
        answer::addition(layout, received.reader, code.as_u16(), more, received.room)
            .map_err(ApiError::Malformed)
    }

    /// What an answer that is no success reports by a rule that looks at its status code; otherwise its error.
    async fn ruled(
        &self,
        answered: Answered,
        expected: Expected<'_>,
    ) -> Result<Reported, ApiError> {
        let Answered { response, ends, .. } = answered;
        let (code, headers) = (response.status(), response.headers().clone());
        let read = self.read_body(response, MAX_RULED_BYTES);
        let body = match timeout_at(ends, read).await {
            Ok(Ok(Some(body))) => body,
            Ok(Ok(None)) => Vec::new(),
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => return Err(ApiError::Timeout),
        };
        let layout = &self.layouts.run;
        // A value of it may be kept beside the whole.
        let mut reader = Reader::new(layout.plan(), 2 * MAX_RULED_BYTES as u64, None);
        let _all = reader.push(&body);
        reader.redact(self.keys.redactor());
        match answer::answer(layout, reader, expected, None) {
            Ok(answer) if answer.whole => Ok(answer.reported),
            Ok(_) | Err(_) => Err(self.refusal_of(code, &headers, &body)),
        }
    }

    /// Requests the run, with another key where the first is refused and has been replaced meanwhile.
    ///
    /// # Errors
    /// Those of any request.
    async fn first(
        &self,
        id: &RunRef,
        parts: &Parts,
        template: &Template,
        spent: &mut Spent,
    ) -> Result<First, ApiError> {
        let url = self.address_of(template, parts)?;
        let last = last_part(&self.profile, parts).unwrap_or(id.id());
        let tag = self.tag(id);
        let mut tried = 0;
        let limit = self.settings.request_timeout;
        loop {
            let key = self.authorization(spent).await?;
            let headers = (key.as_ref(), tag.as_ref());
            let answered = self.fetch(url.clone(), headers, limit, spent).await?;
            let code = answered.response.status();
            let headers = answered.response.headers();
            let expected = Expected {
                id: id.id(),
                last,
                code: code.as_u16(),
                more: has_next_link(headers),
            };
            let pause = self.rate.any_pause(headers, SystemTime::now());
            let seen = |reported| First {
                reported,
                key: key.clone(),
            };
            self.accept(key.as_ref(), code);
            if code == StatusCode::NOT_MODIFIED && tag.is_some() {
                let observation = self.of_tag(id).ok_or(ApiError::Malformed(Malformed::Shape(
                    "it has not changed, but is not known",
                )))?;
                spent.pause(pause);
                return Ok(seen(Reported::Run(Box::new(observation))));
            }
            if code.is_success() {
                spent.pause(pause);
                let tag = headers
                    .get(ETAG)
                    .filter(|_| self.profile.rate.etag_free)
                    .cloned();
                let reported = self.observation(answered, id, expected).await?;
                self.keep_tag(id, tag, &reported);
                return Ok(seen(reported));
            }
            if self.layouts.run.tests_code(code.as_u16()) && !is_about_us(code) {
                spent.pause(pause);
                return Ok(seen(self.ruled(answered, expected).await?));
            }
            tried += 1;
            let sent = (key.as_ref(), tried);
            if let Some(refusal) = self.refused(answered, sent, pause, spent).await {
                return Err(refusal);
            }
        }
    }

    /// Makes all requests of a poll.
    ///
    /// # Errors
    /// Those of any request.
    async fn poll(&self, id: &RunRef, spent: &mut Spent) -> Result<Observation, ApiError> {
        let parts = self.parts(id)?;
        let mut first = self.first(id, &parts, &self.profile.get, spent).await;
        if let Some(fallback) = &self.profile.fallback_get
            && let Some(not_found) = not_found(&first)
        {
            first = match self.first(id, &parts, fallback, spent).await {
                // One that shows no run means what the first answer meant.
                Err(ApiError::Malformed(_)) => Err(not_found),
                other => other,
            };
        }
        if let Some(not_found) = not_found(&first) {
            return Err(not_found);
        }
        let First { reported, key } = first?;
        let Reported::Run(mut observation) = reported else {
            return Err(ApiError::NotFound {
                message: String::new(),
            });
        };
        let first = FirstRequest {
            parts: &parts,
            key: key.as_ref(),
        };
        self.complete(&mut observation, &first, spent).await?;
        if observation.details.url.is_none() {
            observation.details.url =
                self.profile
                    .page(&parts, &self.settings.base_url, self.web.as_deref());
        }
        Ok(*observation)
    }

    /// Makes the second requests that the profile wants after this outcome.
    ///
    /// # Errors
    /// When the state rests on one that failed: no verdict is given on half of the evidence.
    async fn complete(
        &self,
        observation: &mut Observation,
        first: &FirstRequest<'_>,
        spent: &mut Spent,
    ) -> Result<(), ApiError> {
        let limit = self.settings.request_timeout;
        let Profile {
            each,
            confirm,
            detail,
            ..
        } = &*self.profile;
        if let (Some(layout), Some(get)) = (
            &self.layouts.parts,
            each.as_ref().and_then(|each| each.get.as_ref()),
        ) && !stands_without_parts(&observation.status)
        {
            let addition = self.second(layout, get, first, limit, spent).await?;
            addition.add_to(observation);
        }
        if let (Some(layout), Some(confirm)) = (&self.layouts.confirm, confirm)
            && confirm.on.contains(&observation.status.state())
        {
            let addition = self
                .second(layout, &confirm.get, first, limit, spent)
                .await?;
            addition.add_to(observation);
        }
        if let (Some(layout), Some(detail)) = (&self.layouts.detail, detail)
            && Verdict::of_status(&observation.status).is_some()
            && detail.on.contains(&observation.status.state())
        {
            let limit = limit.min(DETAIL_LIMIT);
            let second = self.second(layout, &detail.get, first, limit, spent);
            match tokio::time::timeout(limit, second).await {
                Ok(Ok(addition)) => addition.add_to(observation),
                Ok(Err(error)) => {
                    // The verdict stands without them, and the pause holds all the same.
                    spent.pause(error.retry_after());
                    tracing::debug!(
                        error = error.describe(),
                        "the details of the run are left out"
                    );
                }
                Err(_elapsed) => {
                    tracing::debug!("the details of the run are left out: no answer in time");
                }
            }
        }
        Ok(())
    }
}

/// What a second request needs of the first.
struct FirstRequest<'a> {
    parts: &'a Parts,
    key: Option<&'a HeaderValue>,
}

/// How the first request for a run went.
struct First {
    reported: Reported,
    key: Option<HeaderValue>,
}

/// The error of an answer by which there is no such run, if it is one.
fn not_found(first: &Result<First, ApiError>) -> Option<ApiError> {
    let message = match first {
        Ok(First {
            reported: Reported::NotFound,
            ..
        }) => String::new(),
        Err(ApiError::NotFound { message }) => message.clone(),
        Err(ApiError::Gone { message }) => {
            let message = message.clone();
            return Some(ApiError::Gone { message });
        }
        _ => return None,
    };
    Some(ApiError::NotFound { message })
}

/// Whether an answer is about who polls rather than about the run: no rule looks at it.
fn is_about_us(code: StatusCode) -> bool {
    matches!(
        code,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
    )
}

/// The last part of a run's ID.
fn last_part<'a>(profile: &Profile, parts: &'a Parts) -> Option<&'a str> {
    parts.get(profile.id.names().last()?)
}

/// Where a redirect goes, if it stays at the same scheme, host and port: the key never travels.
fn redirected(from: &Url, response: &Response) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let to = from.join(location).ok()?;
    is_same_origin(from, &to).then_some(to)
}

/// Whether an address has the scheme, host and port of another, and no user.
fn is_same_origin(from: &Url, to: &Url) -> bool {
    to.origin() == from.origin()
        && to.origin().is_tuple()
        && to.username().is_empty()
        && to.password().is_none()
}

/// Whether a list goes on on another page, by its header (RFC 8288).
fn has_next_link(headers: &HeaderMap) -> bool {
    headers.get_all(LINK).iter().any(|link| {
        let link = String::from_utf8_lossy(link.as_bytes()).to_ascii_lowercase();
        ["rel=\"next\"", "rel=next"]
            .iter()
            .any(|next| link.contains(next))
    })
}

/// Where an account logs in, if its profile does that. The path has no parts of an ID.
fn login_of(profile: &Profile, settings: &ApiSettings) -> Option<Url> {
    let login = profile.auth.login.as_ref()?;
    let path = login.post.to_string();
    let base = settings.base_url.trim_end_matches('/');
    let url: Url = format!("{base}{path}").parse().ok()?;
    let base: Url = base.parse().ok()?;
    (url.origin() == base.origin()).then_some(url)
}

/// The headers of a profile. One that cannot be sent is left out; a profile that was checked has none.
fn headers_of(profile: &Profile) -> HeaderMap {
    let header = |(name, value): &(String, String)| {
        Some((
            HeaderName::try_from(name.as_str()).ok()?,
            HeaderValue::try_from(value.as_str()).ok()?,
        ))
    };
    profile.headers.iter().filter_map(header).collect()
}

/// Returns what `answer` reports, and logs once which fields of it were left out.
fn taken(answer: RunAnswer, id: &RunRef) -> Reported {
    if let Reported::Run(observation) = &answer.reported
        && Verdict::of_status(&observation.status).is_some()
    {
        for (name, why) in &answer.left_out {
            tracing::warn!(run_id = %id, "the {name} of the run is left out: {why}");
        }
    }
    answer.reported
}

impl Provider for ApiClient {
    type Events = HttpStream;

    async fn get_run(&self, id: &RunRef) -> Reply {
        let mut spent = Spent::default();
        let result = self.poll(id, &mut spent).await;
        Reply {
            result,
            pause: spent.pause,
            requests: spent.requests,
        }
    }

    fn address(&self, id: &RunRef) -> Option<String> {
        let parts = self.parts(id).ok()?;
        let mut url = self.address_of(&self.profile.get, &parts).ok()?;
        // They fail for addresses that cannot have any.
        let _none = url.set_username("");
        let _none = url.set_password(None);
        Some(url.into())
    }

    fn reconnect(&self) {
        let number = self.pool().number;
        self.renew_since(number);
    }

    fn is_same_account(&self, other: &Self) -> bool {
        self.base == other.base
            && self.profile.name == other.profile.name
            && self.keys.same_as(&other.keys)
    }

    fn list_of(&self, id: &RunRef) -> Option<ListParameters> {
        self.profile.list.as_ref()?;
        let parts = self.parts(id).ok()?;
        let needs = self.profile.list_needs().into_iter();
        needs
            .map(|name| Some((name.to_owned(), parts.get(name)?.to_owned())))
            .collect()
    }

    fn has_same_lists(&self, other: &Self) -> bool {
        self.is_same_account(other)
            && self.profile == other.profile
            && self.settings.max_response_bytes == other.settings.max_response_bytes
    }

    async fn list(&self, provider: &ProviderName, request: &ListRequest) -> ListReply {
        let mut spent = Spent::default();
        let result = self.list_page(provider, request, &mut spent).await;
        ListReply {
            result,
            pause: spent.pause,
            requests: spent.requests,
        }
    }

    async fn open_events(
        &self,
        id: &RunRef,
        last_id: Option<&str>,
    ) -> Result<HttpStream, ApiError> {
        let Some(stream) = &self.profile.stream else {
            return Err(ApiError::NotFound {
                message: "this API has no event streams".to_owned(),
            });
        };
        let url = self.address_of(&stream.sse, &self.parts(id)?)?;
        let mut request = self.streams.get(url);
        if let Some(key) = self.authorization(&mut Spent::default()).await? {
            request = request.header(self.keys.name(), key);
        }
        request = request.header(ACCEPT, HeaderValue::from_static(EVENT_STREAM));
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != ACCEPT) {
            request = request.header(name, value);
        }
        if let Some(last_id) = last_id.and_then(|last_id| HeaderValue::from_str(last_id).ok()) {
            request = request.header("last-event-id", last_id);
        }
        let ends = Instant::now() + self.settings.request_timeout;
        let response = timeout_at(ends, request.send())
            .await
            .map_err(|_elapsed| ApiError::Timeout)?;
        let response = response.map_err(|error| self.transport(error))?;
        if !response.status().is_success() {
            return Err(self.refusal(response, ends).await);
        }
        if !is_event_stream(response.headers()) {
            return Err(ApiError::Malformed(Malformed::Shape(
                "it is not an event stream",
            )));
        }
        let profile = Arc::clone(&self.profile);
        Ok(HttpStream::new(response, self.keys.redactor(), profile))
    }
}

/// The media type of Server-Sent Events.
const EVENT_STREAM: &str = "text/event-stream";

fn is_event_stream(headers: &HeaderMap) -> bool {
    let given = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    given
        .split(';')
        .next()
        .is_some_and(|given| given.trim().eq_ignore_ascii_case(EVENT_STREAM))
}

#[cfg(test)]
mod tests {
    use super::fixture::{api, client};
    use super::*;

    #[tokio::test]
    async fn an_account_is_an_address_and_a_key() {
        let (one, other) = (api(0).await, api(0).await);
        let of = async |api, key| {
            let client = client(api, key);
            client.read_key().await;
            client
        };
        let first = of(&one, "key").await;
        assert!(first.is_same_account(&of(&one, "key").await));
        assert!(!first.is_same_account(&of(&one, "another").await));
        assert!(!first.is_same_account(&of(&other, "key").await));
    }

    #[tokio::test]
    async fn lists_are_the_same_with_the_account_and_the_profile() {
        let api = api(0).await;
        let of = async |key, adjust: fn(&mut ApiClient)| {
            let mut client = client(&api, key);
            adjust(&mut client);
            client.read_key().await;
            client
        };
        let first = of("key", |_| {}).await;
        assert!(first.has_same_lists(&of("key", |_| {}).await));
        assert!(!first.has_same_lists(&of("another", |_| {}).await));
        let profile = |client: &mut ApiClient| Arc::make_mut(&mut client.profile).exact ^= true;
        assert!(!first.has_same_lists(&of("key", profile).await));
        let limit = |client: &mut ApiClient| client.settings.max_response_bytes += 1;
        assert!(!first.has_same_lists(&of("key", limit).await));
    }
}
