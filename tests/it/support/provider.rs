//! A provider that answers as a test says: without HTTP, and with no time but that of tokio.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwatch::domain::{Observation, ProviderName, RunDetails, RunRef, RunState, Status};
use runwatch::providers::{
    ApiError, EventStream, ListEntry, ListPage, ListParameters, ListReply, ListRequest, NoStream,
    Provider, Reply,
};
use tokio::time::Instant;

/// How long an answer takes where the provider has no other delay.
pub(crate) const LATENCY: Duration = Duration::from_millis(20);

/// A request about a run.
#[derive(Debug, Clone)]
pub(crate) struct Poll {
    pub(crate) run_id: RunRef,
    /// 1 for the first of this run.
    pub(crate) number: usize,
    pub(crate) at: Instant,
}

/// What comes of a request, and after how long.
pub(crate) struct Answer {
    pub(crate) after: Duration,
    pub(crate) reply: Reply,
}

impl Answer {
    /// The run has this status.
    pub(crate) fn seen(status: impl Into<Status>) -> Self {
        Self::of(Ok(Observation {
            status: status.into(),
            details: RunDetails::default(),
        }))
    }

    /// The run is running until `ends_at`, and then has succeeded.
    pub(crate) fn until(ends_at: Instant) -> Self {
        Self::seen(if Instant::now() + LATENCY >= ends_at {
            RunState::Succeeded
        } else {
            RunState::Running
        })
    }

    /// The run is running, and no requests are left for so long.
    pub(crate) fn used_up(pause: Duration) -> Self {
        Self::seen(RunState::Running).pausing(pause)
    }

    /// The same answer, which also requests a pause.
    pub(crate) fn pausing(mut self, pause: Duration) -> Self {
        self.reply.pause = Some(pause);
        self
    }

    pub(crate) fn missing() -> Self {
        Self::of(Err(ApiError::NotFound {
            message: String::new(),
        }))
    }

    pub(crate) fn refused_key() -> Self {
        Self::of(Err(ApiError::Unauthorized {
            status: 401,
            message: "Invalid API key".to_owned(),
        }))
    }

    /// An error of the server, with the pause that it asks for.
    pub(crate) fn status(status: u16, retry_after: Option<Duration>) -> Self {
        Self::of(Err(ApiError::Status {
            status,
            message: String::new(),
            retry_after,
        }))
    }

    pub(crate) fn timeout(after: Duration) -> Self {
        Self::of(Err(ApiError::Timeout)).after(after)
    }

    pub(crate) fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    fn of(result: Result<Observation, ApiError>) -> Self {
        Self {
            after: LATENCY,
            reply: Reply::of(result),
        }
    }
}

/// The event streams of a provider.
pub(crate) trait Streams: Send + Sync + 'static {
    type Events: EventStream;

    fn open(
        &self,
        id: &RunRef,
        last_id: Option<&str>,
    ) -> impl Future<Output = Result<Self::Events, ApiError>> + Send;
}

/// There are none.
pub(crate) struct NoStreams;

impl Streams for NoStreams {
    type Events = NoStream;

    async fn open(&self, _: &RunRef, _: Option<&str>) -> Result<NoStream, ApiError> {
        Err(ApiError::NotFound {
            message: String::new(),
        })
    }
}

/// A request for a page of a list.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) request: ListRequest,
    /// 1 for the first of all.
    pub(crate) number: usize,
    pub(crate) at: Instant,
}

/// What comes of a request for a page, and after how long.
pub(crate) struct Listed {
    pub(crate) after: Duration,
    pub(crate) reply: ListReply,
}

impl Listed {
    pub(crate) fn page(entries: Vec<ListEntry>) -> Self {
        Self::of(Ok(ListPage {
            entries,
            ..ListPage::default()
        }))
    }

    pub(crate) fn of(result: Result<ListPage, ApiError>) -> Self {
        Self {
            after: LATENCY,
            reply: ListReply::of(result),
        }
    }
}

/// An entry of a list, which shows a run in this status.
pub(crate) fn entry(id: &str, status: impl Into<Status>) -> ListEntry {
    let run_id = RunRef::new(id).expect("the ID of a test");
    ListEntry::new(run_id, status.into())
}

type Lister = Box<dyn Fn(&Listing) -> Listed + Send + Sync>;

/// Answers as its script says, and remembers every request. Clones share all of it but the account.
pub(crate) struct FakeProvider<S = NoStreams> {
    shared: Arc<Shared<S>>,
    /// Two with different ones are different accounts.
    account: &'static str,
}

impl<S> Clone for FakeProvider<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            account: self.account,
        }
    }
}

struct Shared<S> {
    script: Box<dyn Fn(&Poll) -> Answer + Send + Sync>,
    /// One list shows all runs, if there is any.
    lister: Option<Lister>,
    listings: Mutex<Vec<Listing>>,
    streams: S,
    polls: Mutex<Vec<Poll>>,
    numbers: Mutex<HashMap<RunRef, usize>>,
    in_flight: AtomicUsize,
    most_repeated: AtomicUsize,
    reconnects: AtomicUsize,
}

impl FakeProvider {
    /// A provider without event streams.
    pub(crate) fn new(script: impl Fn(&Poll) -> Answer + Send + Sync + 'static) -> Self {
        Self::with_streams(NoStreams, script)
    }

    /// A provider without event streams whose runs are all shown by one list.
    pub(crate) fn with_list(
        lister: impl Fn(&Listing) -> Listed + Send + Sync + 'static,
        script: impl Fn(&Poll) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::with(Some(Box::new(lister)), NoStreams, script)
    }
}

impl<S> FakeProvider<S> {
    pub(crate) fn with_streams(
        streams: S,
        script: impl Fn(&Poll) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::with(None, streams, script)
    }

    fn with(
        lister: Option<Lister>,
        streams: S,
        script: impl Fn(&Poll) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            script: Box::new(script),
            lister,
            listings: Mutex::default(),
            streams,
            polls: Mutex::default(),
            numbers: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_repeated: AtomicUsize::new(0),
            reconnects: AtomicUsize::new(0),
        };
        Self {
            shared: Arc::new(shared),
            account: "first",
        }
    }

    /// The same provider with another account.
    pub(crate) fn with_account(&self, account: &'static str) -> Self {
        Self {
            account,
            ..self.clone()
        }
    }

    pub(crate) fn streams(&self) -> &S {
        &self.shared.streams
    }

    /// Every request so far, in order.
    pub(crate) fn polls(&self) -> Vec<Poll> {
        self.shared.polls.lock().expect("no holder panics").clone()
    }

    /// Every request for a page so far, in order.
    pub(crate) fn listings(&self) -> Vec<Listing> {
        let listings = self.shared.listings.lock().expect("no holder panics");
        listings.clone()
    }

    /// When a run was polled.
    pub(crate) fn polls_of(&self, id: &str) -> Vec<Instant> {
        let polls = self.shared.polls.lock().expect("no holder panics");
        let of_run = polls.iter().filter(|poll| poll.run_id.as_str() == id);
        of_run.map(|poll| poll.at).collect()
    }

    /// The most requests that were in flight at once when one came that was not the first of its run.
    pub(crate) fn most_repeated(&self) -> usize {
        self.shared.most_repeated.load(Ordering::Relaxed)
    }

    /// How often all connections were let go.
    pub(crate) fn reconnects(&self) -> usize {
        self.shared.reconnects.load(Ordering::Relaxed)
    }
}

impl<S: Streams> Provider for FakeProvider<S> {
    type Events = S::Events;

    async fn get_run(&self, id: &RunRef) -> Reply {
        let shared = &self.shared;
        let number = {
            let mut numbers = shared.numbers.lock().expect("no holder panics");
            let number = numbers.entry(id.clone()).or_default();
            *number += 1;
            *number
        };
        let poll = Poll {
            run_id: id.clone(),
            number,
            at: Instant::now(),
        };
        let Answer { after, reply } = (shared.script)(&poll);
        shared.polls.lock().expect("no holder panics").push(poll);
        let in_flight = shared.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        if number > 1 {
            shared.most_repeated.fetch_max(in_flight, Ordering::Relaxed);
        }
        // Simulated: every test and benchmark with this provider runs in paused time.
        tokio::time::sleep(after).await;
        shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        reply
    }

    async fn open_events(&self, id: &RunRef, last_id: Option<&str>) -> Result<S::Events, ApiError> {
        self.shared.streams.open(id, last_id).await
    }

    fn list_of(&self, _: &RunRef) -> Option<ListParameters> {
        self.shared.lister.as_ref().map(|_| ListParameters::new())
    }

    async fn list(&self, _: &ProviderName, request: &ListRequest) -> ListReply {
        let lister = self.shared.lister.as_ref().expect("it has a list");
        let listing = {
            let mut listings = self.shared.listings.lock().expect("no holder panics");
            let listing = Listing {
                request: request.clone(),
                number: listings.len() + 1,
                at: Instant::now(),
            };
            listings.push(listing.clone());
            listing
        };
        let Listed { after, reply } = lister(&listing);
        // Simulated, as for polls.
        tokio::time::sleep(after).await;
        reply
    }

    fn reconnect(&self) {
        self.shared.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    fn is_same_account(&self, other: &Self) -> bool {
        self.account == other.account
    }
}
