//! Summaries of what ended while nothing watched.

use super::groups::read_member;
use super::rows::get;
use super::sql::{Db, Perform, parameters, stepped};
use crate::domain::GroupMember;
use crate::store::model::StoreError;
use crate::store::operations::{RecordEvent, Summarize};
use crate::store::records::{SUMMARIZED_AT_ONCE, Summarized, summarized};

/// The deliveries of a sink that wait for a summary, some of them, with their watches. Another daemon may decide about
/// one of them at the same time.
pub(super) const WAITING: &str =
    "SELECT w.run_id, w.name, w.labels, w.sinks, w.verdict, w.group_size, d.id
    FROM runwatch.deliveries d JOIN runwatch.events e ON e.seq = d.event_seq
    JOIN runwatch.watches w ON w.id = e.watch_id
    WHERE d.sink = $1 AND d.state = 'pending' AND d.next_attempt_at IS NULL
    ORDER BY d.id LIMIT $2 FOR UPDATE OF d";

/// Makes deliveries due at a time.
const RELEASE: &str = concat!(
    "UPDATE runwatch.deliveries SET next_attempt_at = $1 - ",
    stepped!(),
    " WHERE id = ANY($2)"
);

/// Includes deliveries in the one that was made with the last event.
const INCLUDE: &str =
    "UPDATE runwatch.deliveries d SET state = 'delivered', ended_at = $1, included_in = summary.id
    FROM (SELECT id FROM runwatch.deliveries WHERE event_seq = currval('runwatch.events_seq_seq')) AS summary
    WHERE d.id = ANY($2)";

impl Perform for Summarize {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { sink, digest, now } = self;
        let most = SUMMARIZED_AT_ONCE as i64;
        let waiting: Vec<(GroupMember, String)> = db
            .read_all(WAITING, parameters![sink.as_str(), most], |row| {
                Ok((read_member(row)?, get(row, 6)?))
            })
            .await?;
        let (members, ids): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        if ids.is_empty() {
            return Ok(0);
        }
        let at = now.as_millisecond();
        match summarized(sink, *digest, &members, *now) {
            Summarized::Released => {
                db.execute(RELEASE, parameters![at, ids]).await?;
            }
            Summarized::Included(routed) => {
                let (watch, now) = (None, *now);
                RecordEvent { watch, routed, now }.perform(db).await?;
                db.execute(INCLUDE, parameters![at, ids]).await?;
            }
        }
        Ok(ids.len())
    }
}
