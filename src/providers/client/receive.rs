//! Receives answers: within the time of their requests, and within the memory for all of them.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::ApiClient;
use crate::memory;
use crate::providers::answer::{Layout, Room};
use crate::providers::error::{ApiError, Transport};
use crate::providers::reader::Reader;

/// Most KiB of large answers that are kept at once, all together, from when they are read until they are stored. The
/// next one is not read meanwhile, and its time stands still. Where `max_response_bytes` is more, one answer at a time takes all.
pub(super) const ROOM_KIB: u32 = 16 * 1024;

/// Most bytes of an answer that waits for no room.
const SMALL_BYTES: u64 = 64 * 1024;

/// A body that was read as far as it came.
pub(super) struct ReceivedBody<'p> {
    pub(super) reader: Reader<'p>,
    pub(super) room: Option<Room>,
    /// Why it did not come to its end.
    pub(super) broken_off: Option<ApiError>,
    /// It waited for room.
    pub(super) waited: bool,
}

/// An answer with the number of the pool that it came from, and the time until which its body is read.
pub(super) struct Answered {
    pub(super) response: Response,
    pub(super) pool: u64,
    pub(super) ends: Instant,
}

impl ApiClient {
    /// Reads a body, decompressed, up to `limit` bytes; `None` when there are more.
    pub(super) async fn read_body(
        &self,
        mut response: Response,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, ApiError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.transport(error))?
        {
            if body.len() + chunk.len() > limit {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    }

    /// Takes room for `kib` KiB of a large answer; returns with it how long that waited, if it did.
    async fn take_room(&self, kib: u32) -> (OwnedSemaphorePermit, Option<Duration>) {
        if let Ok(taken) = Arc::clone(&self.room).try_acquire_many_owned(kib) {
            return (taken, None);
        }
        let began = Instant::now();
        let room = Arc::clone(&self.room).acquire_many_owned(kib);
        (
            room.await.expect("it is never closed"),
            Some(began.elapsed()),
        )
    }

    /// Reads a body as far as it can be read until `ends`, which moves on while it waits for room.
    pub(super) async fn receive<'p>(
        &self,
        layout: &'p Layout,
        answered: Answered,
    ) -> ReceivedBody<'p> {
        let most = self.settings.max_response_bytes;
        let reader = |length| Reader::new(layout.plan(), most, length);
        self.receive_with(&reader, answered).await
    }

    /// As [`ApiClient::receive`], with the reader of a body of this length where that is known.
    pub(super) async fn receive_with<'p>(
        &self,
        reader: &(dyn Fn(Option<u64>) -> Reader<'p> + Sync),
        answered: Answered,
    ) -> ReceivedBody<'p> {
        let Answered {
            mut response,
            pool,
            mut ends,
            ..
        } = answered;
        let most = self.settings.max_response_bytes;
        // Absent where the body is compressed or comes in chunks.
        let announced = response.content_length();
        let mut reader = reader(announced);
        let (mut room, mut waited) = (None, false);
        let broken_off = loop {
            // Before the first byte where that can be known: what is received and not read takes memory, too.
            if room.is_none() && announced.unwrap_or(reader.kept()) > SMALL_BYTES {
                let kib = u32::try_from(announced.unwrap_or(most).min(most).div_ceil(1024))
                    .unwrap_or(ROOM_KIB)
                    .min(ROOM_KIB);
                let (taken, wait) = self.take_room(kib).await;
                room = Some(taken);
                waited = wait.is_some();
                ends += wait.unwrap_or_default();
            }
            match timeout_at(ends, response.chunk()).await {
                Ok(Ok(Some(bytes))) if reader.push(&bytes).is_continue() => {}
                Ok(Ok(_)) => break None,
                Ok(Err(error)) => break Some(self.transport(error)),
                Err(_elapsed) => break Some(ApiError::Transport(Transport::late())),
            }
        };
        if let Some(room) = &mut room {
            drop(room.split(room.num_permits().saturating_sub(
                usize::try_from(reader.kept().div_ceil(1024)).unwrap_or(usize::MAX),
            )));
        }
        if memory::is_large(usize::try_from(reader.kept()).unwrap_or(usize::MAX)) {
            self.count_large(pool);
        }
        reader.redact(self.keys.redactor());
        ReceivedBody {
            reader,
            room: room.map(Arc::new),
            broken_off,
            waited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Observation, RunState, Status};
    use crate::providers::answer::{Expected, Reported};
    use crate::providers::client::Spent;
    use crate::providers::client::fixture::{LARGE_BYTES, LIMIT, api_with, client, large, run};

    /// What a poll observes whose answer waits for room ten times as long as a
    /// request may take.
    async fn after_a_wait_for_room(client: &ApiClient) -> Result<Observation, ApiError> {
        let room = Arc::clone(&client.room);
        let all = room.acquire_many_owned(ROOM_KIB).await.unwrap();
        let parts = client.parts(&run()).unwrap();
        let url = client.address_of(&client.profile.get, &parts).unwrap();
        let mut answered = client
            .fetch(url, (None, None), LIMIT, &mut Spent::default())
            .await
            .unwrap();
        tokio::time::pause();
        answered.ends = Instant::now() + LIMIT;
        let wait = async {
            tokio::time::advance(10 * LIMIT).await;
            tokio::time::resume();
            drop(all);
        };
        let id = run();
        // The first is polled first, and finds no room.
        let expected = Expected {
            id: id.id(),
            last: id.id(),
            code: 200,
            more: false,
        };
        match tokio::join!(biased; client.observation(answered, &id, expected), wait).0? {
            Reported::Run(observation) => Ok(*observation),
            Reported::NotFound => panic!("there is such a run"),
        }
    }

    #[tokio::test]
    async fn the_time_of_a_poll_stands_still_while_its_answer_waits_for_room() {
        let body = large(LARGE_BYTES);
        let length = body.len();
        let api = api_with(1, body, length).await;
        let client = client(&api, "key");
        let observation = after_a_wait_for_room(&client).await.unwrap();
        assert_eq!(observation.status, Status::from(RunState::Succeeded));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_while_it_waits_for_room_is_not_counted_as_broken() {
        let api = api_with(1, large(LARGE_BYTES), 2 * LARGE_BYTES).await;
        let client = client(&api, "key");
        let error = after_a_wait_for_room(&client).await.unwrap_err();
        assert!(matches!(error, ApiError::Transport(_)), "{error}");
        assert_eq!(client.cut.lock().unwrap().len(), 0);
    }
}
