//! Connections to an API: which are used again, and which are let go.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, RequestBuilder, Response};
use tokio::time::{Instant, timeout_at};

use super::ApiClient;
use crate::config::ApiSettings;
use crate::http::{Names, connection_ended};
use crate::providers::error::ApiError;
use crate::text::error_chain;
use crate::{blocking, http};

/// After how long without traffic a connection is checked, so that one that a router forgot is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long a connection without a request is kept. A request within this time of an answer may use one again.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// After how many large answers the connections of polls are let go, as each keeps its read buffer: about
/// 400 KiB (hyper, the default of `http1_max_buf_size`).
const LARGE_ANSWERS: u32 = 4;

/// The connections of polls, which are let go all together.
#[derive(Clone)]
pub(super) struct Pool {
    pub(super) http: Client,
    /// How many there were before it.
    pub(super) number: u64,
    /// When it last had an answer: since then it may have a connection that is kept alive.
    pub(super) answered_at: Option<Instant>,
    /// How many large answers came over it.
    pub(super) large: u32,
}

impl Pool {
    /// Whether a request may have gone over a connection that was kept alive.
    fn reuses(&self) -> bool {
        self.answered_at
            .is_some_and(|answered_at| answered_at.elapsed() < IDLE_LIMIT)
    }
}

impl ApiClient {
    pub(super) fn make_spare(&self) {
        let (settings, names, spare) = (
            self.settings.clone(),
            Arc::clone(&self.names),
            Arc::clone(&self.spare),
        );
        let make = move || match poll_client(&settings, &names) {
            Ok(http) => *spare.lock().expect("no holder panics") = Some(http),
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                "cannot make new connections to the API"
            ),
        };
        // Without it, connections that may be dead stay in use.
        if let Err(error) = blocking::spawn("connections", make) {
            tracing::warn!(%error, "cannot make new connections to the API");
        }
    }

    pub(super) fn pool(&self) -> Pool {
        self.polls.lock().expect("no holder panics").clone()
    }

    /// Lets go of all connections of polls, unless that was done since `before`.
    pub(super) fn renew_since(&self, before: u64) {
        let mut pool = self.polls.lock().expect("no holder panics");
        if pool.number != before {
            return;
        }
        let Some(http) = self.spare.lock().expect("no holder panics").take() else {
            return;
        };
        *pool = Pool {
            http,
            number: before + 1,
            answered_at: None,
            large: 0,
        };
        drop(pool);
        self.make_spare();
    }

    /// Counts a large answer over a connection of the pool `number`, and lets all of them go when these were enough.
    pub(super) fn count_large(&self, number: u64) {
        let mut pool = self.polls.lock().expect("no holder panics");
        if pool.number != number {
            return;
        }
        pool.large += 1;
        let enough = pool.large >= LARGE_ANSWERS;
        drop(pool);
        if enough {
            self.renew_since(number);
        }
    }

    /// Sends a poll and waits for the head of its answer until `ends`; returns it with the number of its pool. One whose connection was kept alive and turns
    /// out to be dead is sent again at once on a fresh one: it shows nothing about the API, and reading twice does no
    /// harm.
    pub(super) async fn send_poll(
        &self,
        ends: Instant,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<(Response, u64), ApiError> {
        let send = |pool: &Pool| timeout_at(ends, request(&pool.http).send());
        let mut pool = self.pool();
        let mut sent = send(&pool).await;
        let ended = matches!(&sent, Ok(Err(error)) if connection_ended(error));
        if ended
            || matches!(&sent, Err(_elapsed))
            || matches!(&sent, Ok(Err(error)) if error.is_timeout())
        {
            // Others of its time are as dead, most likely.
            self.renew_since(pool.number);
        }
        if ended && pool.reuses() {
            pool = self.pool();
            sent = send(&pool).await;
        }
        let response = sent
            .map_err(|_elapsed| ApiError::Timeout)?
            .map_err(|error| self.transport(error))?;
        let mut current = self.polls.lock().expect("no holder panics");
        if current.number == pool.number {
            current.answered_at = Some(Instant::now());
        }
        Ok((response, pool.number))
    }
}

pub(super) fn poll_client(settings: &ApiSettings, names: &Arc<Names>) -> reqwest::Result<Client> {
    // HTTP/2 carries all polls on one connection, and a poll that gets no answer does not end it. Pings do, by the
    // time that poll is given up: else all polls fail until the kernel gives the connection up, also when the API has
    // moved to another address meanwhile.
    let half = settings.request_timeout / 2;
    // Without a limit in time of its own: the time of a poll stands still while its answer waits for room.
    builder(settings, names)
        .pool_idle_timeout(IDLE_LIMIT)
        .http2_keep_alive_interval(half)
        .http2_keep_alive_timeout(half)
        .build()
}

pub(super) fn builder(settings: &ApiSettings, names: &Arc<Names>) -> ClientBuilder {
    http::client()
        .dns_resolver(Arc::clone(names))
        .connect_timeout(settings.connect_timeout)
        .tcp_keepalive(KEEPALIVE)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::providers::Provider as _;
    use crate::providers::client::fixture::{
        LARGE_BYTES, LIMIT, api, api_with, client, large, run,
    };

    /// The spare is made on a thread of its own.
    async fn has_spare(client: &ApiClient) {
        let made = async {
            while client.spare.lock().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, made).await.unwrap();
    }

    #[tokio::test]
    async fn a_poll_on_a_dead_connection_is_sent_again_at_once_on_a_fresh_one() {
        let api = api(1).await;
        let client = client(&api, "key");
        for polls in 1..=5 {
            has_spare(&client).await;
            client.get_run(&run()).await.result.unwrap();
            assert_eq!(api.connections.load(Ordering::SeqCst), polls);
        }
    }

    #[tokio::test]
    async fn an_api_that_answers_nothing_is_polled_once_each_time() {
        let api = api(0).await;
        let client = client(&api, "key");
        for polls in 1..=3 {
            has_spare(&client).await;
            assert!(matches!(
                client.get_run(&run()).await.result,
                Err(ApiError::Transport(_))
            ));
            assert_eq!(api.requests.load(Ordering::SeqCst), polls);
        }
    }

    #[tokio::test]
    async fn connections_that_are_let_go_are_not_used_again() {
        let api = api(100).await;
        let client = client(&api, "key");
        for connections in 1..=3 {
            for _ in 0..3 {
                client.get_run(&run()).await.result.unwrap();
                assert_eq!(api.connections.load(Ordering::SeqCst), connections);
            }
            has_spare(&client).await;
            client.reconnect();
        }
    }

    #[tokio::test]
    async fn connections_whose_buffers_grew_are_let_go() {
        let body = large(LARGE_BYTES);
        let length = body.len();
        let api = api_with(100, body, length).await;
        let client = client(&api, "key");
        for connections in 1..=3 {
            has_spare(&client).await;
            for _ in 0..LARGE_ANSWERS {
                client.get_run(&run()).await.result.unwrap();
                assert_eq!(api.connections.load(Ordering::SeqCst), connections);
            }
        }
    }
}
