//! What people do with deliveries: have them tried again, or give them up.

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::queries::{read_all, read_id, stepped};
use super::{Store, StoreError, Wakes};
use crate::domain::{DeliveryId, SinkName};

/// Most deliveries of a sink that are changed in one transaction.
const ROWS: usize = 500;

/// What is done with a delivery that has not arrived and is not being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is due at once, and its schedule begins anew.
    Retry,
    /// It is given up. One that was given up before stays as it is.
    Drop,
}

impl Fate {
    /// The word in the control interface and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Drop => "drop",
        }
    }

    /// The statement for the delivery with the ID `?2`, where it is not delivered and not being sent: at the time `?1`.
    fn statement(self) -> &'static str {
        match self {
            Self::Retry => {
                concat!(
                    "UPDATE deliveries SET state = 'pending', next_attempt_at = ?1 - ",
                    stepped!(),
                    ", ended_at = NULL, earlier_tries = attempts WHERE id = ?2 AND state IN ('pending', 'dead')"
                )
            }
            Self::Drop => {
                "UPDATE deliveries SET state = 'dead', next_attempt_at = NULL, ended_at = coalesce(ended_at, ?1)
                 WHERE id = ?2 AND state IN ('pending', 'dead')"
            }
        }
    }
}

/// What came of deciding the fate of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// It is done.
    Done,
    /// There is no delivery whose ID begins so.
    Unknown,
}

impl Store {
    /// Does with one delivery what `fate` says. An unambiguous beginning of its ID will do.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] when it has arrived or is being sent, and when several IDs begin so.
    pub async fn decide(
        &self,
        beginning: DeliveryId,
        fate: Fate,
        now: Timestamp,
    ) -> Result<Decided, StoreError> {
        self.write(
            Wakes {
                history: false,
                deliveries: true,
                verdict: None,
            },
            move |db| {
                let Some(id) = whole_id(db, &beginning)? else {
                    return Ok(Decided::Unknown);
                };
                let rows = db
                    .prepare_cached(fate.statement())?
                    .execute(params![now.as_millisecond(), id.as_str()])?;
                if rows == 1 {
                    return Ok(Decided::Done);
                }
                let what = format!("delivery {id}");
                Err(StoreError::Precondition {
                    what,
                    wanted: "waiting or given up; it has arrived or is being sent",
                })
            },
        )
        .await
    }

    /// Does with every delivery to `sink` that waits or was given up what `fate` says, some at a time; those that are
    /// given up already are not given up again. Returns how many that were.
    ///
    /// # Errors
    /// When the store refuses; some may be done then.
    pub async fn decide_all(
        &self,
        sink: SinkName,
        fate: Fate,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (mut done, mut after) = (0, String::new());
        loop {
            let sink = sink.clone();
            let wakes = Wakes {
                history: false,
                deliveries: true,
                verdict: None,
            };
            let ids = self.write(wakes, move |db| {
                let select = "SELECT id FROM deliveries WHERE sink = ?1 AND id > ?2
                         AND state != 'delivered' AND (state = 'pending' OR (state = 'dead' AND ?3))
                     ORDER BY id LIMIT ?4";
                let parameters = params![sink.as_str(), after, fate == Fate::Retry, ROWS as i64];
                let ids = read_all(db, select, parameters, read_delivery_id)?;
                let mut decide = db.prepare_cached(fate.statement())?;
                for id in &ids {
                    decide.execute(params![now.as_millisecond(), id.as_str()])?;
                }
                Ok(ids)
            });
            let ids = ids.await?;
            done += ids.len() as u64;
            let Some(last) = ids.last().filter(|_| ids.len() == ROWS) else {
                return Ok(done);
            };
            after = last.as_str().to_owned();
        }
    }
}

/// The ID that begins so, if there is one.
fn whole_id(db: &Connection, beginning: &DeliveryId) -> Result<Option<DeliveryId>, StoreError> {
    // In the order of the index, all that begin so come before the beginning followed by what follows all letters.
    let select = "SELECT id FROM deliveries WHERE id >= ?1 AND id < ?1 || '{' ORDER BY id LIMIT 2";
    let mut ids = read_all(db, select, [beginning.as_str()], read_delivery_id)?;
    if ids.len() > 1 && ids[0] != *beginning {
        let what = format!("{beginning} as the beginning of a delivery's ID");
        return Err(StoreError::Precondition {
            what,
            wanted: "unambiguous; give more of it",
        });
    }
    Ok(if ids.is_empty() {
        None
    } else {
        Some(ids.swap_remove(0))
    })
}

fn read_delivery_id(row: &Row<'_>) -> Result<DeliveryId, StoreError> {
    read_id(row, 0, DeliveryId::new)
}
