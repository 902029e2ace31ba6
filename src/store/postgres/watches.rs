//! Watches with their status changes and the details of their runs.

use std::borrow::Cow;

use futures_util::TryFutureExt as _;
use jiff::Timestamp;
use tokio_postgres::Row;

use super::deliveries;
use super::events::{delete_watches, read_event, read_payload};
use super::groups;
use super::rows::{RECORD_COLUMNS, get, read_change, read_record, read_stored, select_active};
use super::sql::{Combinable, CombinedReply, Db, Perform, each, parameters, payloads, stepped};
use crate::domain::{Labels, RunDetails, RunRef, TraceContext, Verdict, Watch, WatchOrigin};
use crate::store::lists::{watches_after, watches_where};
use crate::store::model::{
    Added, History, StoreError, WatchId, WatchOrder, WatchRecord, WatchState,
};
use crate::store::operations::{
    ActiveWatches, ActiveWatchesOf, AddConfiguredWatch, AddWatch, Details, KeepConfiguredWatches,
    MoveClock, NewestWatch, ProbeWrite, RemoveWatches, SetDeadlines, StatusChangesAfter,
    WatchHistory, Watches,
};
use crate::store::records::{
    OpenDelivery, REMOVABLE, from_json, open_group, page, storable, to_json,
};

/// Adds a watch, unless the run has one: any, or with `$8` one without a verdict. Returns the newest watch of the run,
/// and whether it is new; no row where another transaction adds one at the same time. With `$9` the run is marked.
pub(super) const ADD: &str = "WITH known AS (
        SELECT id, verdict IS NOT NULL AS finished FROM runwatch.watches WHERE run_id = $1 ORDER BY id DESC LIMIT 1
    ), made AS (
        INSERT INTO runwatch.watches (run_id, name, labels, sinks, added_at, deadline_at, origin, group_name, group_size,
            trace)
        SELECT $1, $2, $3, $4, $5, $6, $7, $10, $11, $12
        WHERE NOT EXISTS (SELECT 1 FROM known WHERE NOT (finished AND $8))
        ON CONFLICT (run_id) WHERE verdict IS NULL DO NOTHING
        RETURNING id
    ), marked AS (
        INSERT INTO runwatch.dirty (kind, key) SELECT 'run', $1 FROM made WHERE $9
    )
    SELECT id, true FROM made
    UNION ALL SELECT id, false FROM known WHERE NOT (finished AND $8)";

/// Adds watches of different runs as [`ADD`] does: `$1` to `$10` have a value for each, in their order, which is also that
/// of their IDs. Returns the place of each, from 1, with the newest watch of its run, and whether that is new.
pub(super) const ADD_ALL: &str = "WITH given AS (
        SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) WITH ORDINALITY AS g (run_id, name, labels,
            sinks, added_at, deadline_at, again, group_name, group_size, trace, place)
    ), known AS (
        SELECT g.place, newest.id FROM given g CROSS JOIN LATERAL (
            SELECT w.id, w.verdict IS NOT NULL AS finished FROM runwatch.watches w
            WHERE w.run_id = g.run_id ORDER BY w.id DESC LIMIT 1
        ) AS newest WHERE NOT (newest.finished AND g.again)
    ), made AS (
        INSERT INTO runwatch.watches (run_id, name, labels, sinks, added_at, deadline_at, origin, group_name, group_size,
            trace)
        SELECT run_id, name, labels, sinks, added_at, deadline_at, $11, group_name, group_size, trace
        FROM given WHERE NOT EXISTS (SELECT 1 FROM known WHERE known.place = given.place)
        ORDER BY place
        ON CONFLICT (run_id) WHERE verdict IS NULL DO NOTHING
        RETURNING id, run_id
    ), marked AS (
        INSERT INTO runwatch.dirty (kind, key) SELECT 'run', run_id FROM made WHERE $12
    )
    SELECT g.place, made.id, true FROM made JOIN given g ON g.run_id = made.run_id
    UNION ALL SELECT place, id, false FROM known";

/// The newest watch of a run, and whether it is finished.
pub(super) const NEWEST: &str = "SELECT id, verdict IS NOT NULL FROM runwatch.watches WHERE run_id = $1 ORDER BY id DESC LIMIT 1";

/// How often an addition is tried that another transaction prevents each time.
const TRIES: usize = 5;

/// The active watches after one, in the order of the list.
pub(super) const ACTIVE: &str = concat!(
    select_active!(),
    " AND (added_at, run_id) > ($1, $2) ORDER BY added_at, run_id LIMIT $3"
);

/// The active watches of some runs.
pub(super) const ACTIVE_OF: &str =
    concat!(select_active!(), " AND run_id = ANY($1) ORDER BY run_id");

/// The status changes after a number, and those of a watch.
pub(super) const CHANGES_AFTER: &str = "SELECT c.seq, w.run_id, c.at, c.status, c.state
    FROM runwatch.status_changes c JOIN runwatch.watches w ON w.id = c.watch_id WHERE c.seq > $1 ORDER BY c.seq";
pub(super) const CHANGES_OF: &str = "SELECT c.seq, w.run_id, c.at, c.status, c.state
    FROM runwatch.status_changes c JOIN runwatch.watches w ON w.id = c.watch_id WHERE c.watch_id = $1 ORDER BY c.seq";

impl Perform for AddWatch {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { watch, again } = self;
        add(db, watch, &WatchOrigin::Request, *again).await
    }

    fn combinable(&self) -> Option<Combinable<'_>> {
        Some(Combinable::Addition(self))
    }

    fn read_reply(reply: CombinedReply) -> Option<Result<Self::Reply, StoreError>> {
        reply.added()
    }
}

impl Perform for AddConfiguredWatch {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { watch } = self;
        let first =
            "INSERT INTO runwatch.configured_watches (run_id) VALUES ($1) ON CONFLICT DO NOTHING";
        let run_id = watch.run_id.as_str();
        let first = db.execute(first, parameters![run_id]).await?;
        if first == 1 {
            let (added, id) = add(db, watch, &WatchOrigin::Configuration, false).await?;
            return Ok((added, Some(id)));
        }
        let newest = newest_watch(db, &watch.run_id).await?;
        Ok((Added::AlreadyExists, newest.map(|(id, _)| id)))
    }
}

impl Perform for KeepConfiguredWatches {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let run_ids: Vec<_> = self.run_ids.iter().map(RunRef::as_str).collect();
        let delete = "DELETE FROM runwatch.configured_watches WHERE run_id <> ALL($1)";
        db.execute(delete, parameters![run_ids]).await.map(drop)
    }
}

impl Perform for ProbeWrite {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        // No run has this ID, and no other process uses it.
        let insert = "INSERT INTO runwatch.watches (run_id, labels, added_at, deadline_at)
             VALUES ('.' || pg_backend_pid(), '{}', 0, 0)";
        db.execute(insert, &[]).await?;
        let delete = "DELETE FROM runwatch.watches WHERE run_id = '.' || pg_backend_pid()";
        db.execute(delete, &[]).await.map(drop)
    }
}

impl Perform for RemoveWatches {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { run_id, force } = self;
        // Other transactions that change these watches end first, so that what they stored is seen.
        let lock = "SELECT id FROM runwatch.watches WHERE run_id = $1 ORDER BY id FOR UPDATE";
        let run_id = run_id.as_str();
        let ids: Vec<i64> = db
            .read_all(lock, parameters![run_id], |row| get(row, 0))
            .await?;
        if !force && let Some(what) = open_delivery(db, run_id).await? {
            return Err(StoreError::Precondition {
                what,
                wanted: REMOVABLE,
            });
        }
        groups::leave(db, &ids).await?;
        let removed = delete_watches(db, &ids).await?;
        if db.marks() && !removed.is_empty() {
            let mark = "INSERT INTO runwatch.dirty (kind, key) VALUES ('run', $1)";
            db.execute(mark, parameters![run_id]).await?;
        }
        Ok(removed.into_iter().map(WatchId).collect())
    }
}

impl Perform for ActiveWatches {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let (at, run_id) = match &self.after {
            Some((at, run_id)) => (at.as_millisecond(), run_id.as_str()),
            None => (i64::MIN, ""),
        };
        let limit = i64::from(self.limit);
        db.read_all(ACTIVE, parameters![at, run_id, limit], |row| {
            read_stored(row, self.now)
        })
        .await
    }
}

impl Perform for ActiveWatchesOf {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let run_ids: Vec<_> = self.run_ids.iter().map(RunRef::as_str).collect();
        db.read_all(ACTIVE_OF, parameters![run_ids], |row| {
            read_stored(row, self.now)
        })
        .await
    }
}

impl Perform for Details {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let sql = concat!(
            "SELECT details, ",
            payloads!("w"),
            " FROM runwatch.watches w WHERE id = $1 AND details IS NOT NULL"
        );
        let row = db.row(sql, parameters![self.watch.0]).await?;
        row.as_ref()
            .map(|row| {
                let mut details: RunDetails = from_json("details", get(row, 0)?)?;
                read_payload(row, 1, &mut details.input)?;
                read_payload(row, 2, &mut details.output)?;
                Ok(details)
            })
            .transpose()
    }
}

impl Perform for SetDeadlines {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        set_deadlines(db, &self.deadlines, self.now).await
    }
}

impl Perform for MoveClock {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        set_deadlines(db, &self.deadlines, self.now).await?;
        deliveries::keep_holds(db, self.milliseconds).await?;
        let step = "UPDATE runwatch.clock SET stepped_ms = stepped_ms + $1";
        db.execute(step, parameters![self.milliseconds])
            .await
            .map(drop)
    }
}

impl Perform for Watches {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { filter, limit } = self;
        let Some(sql) = watches_sql(filter.state, filter.verdict, filter.order) else {
            return Ok(page(Vec::new(), *limit));
        };
        let wanted: Vec<_> = filter
            .labels
            .iter()
            .map(label_text)
            .collect::<Result<_, _>>()?;
        let verdict = filter.verdict.map(Verdict::as_str);
        let read = i64::from(*limit) + 1;
        let (at, run_id) = watches_after(filter);
        let mut after = (at, run_id.to_owned());
        let mut items: Vec<WatchRecord> = Vec::new();
        loop {
            let parameters = parameters![after.0, after.1, verdict, wanted, read];
            let found = db.read_all(&sql, parameters, read_record).await?;
            let all = i64::try_from(found.len()).unwrap_or(i64::MAX) < read;
            if let Some(last) = found.last() {
                let at = filter.order.time_of(last).as_millisecond();
                after = (at, last.watch.run_id.as_str().to_owned());
            }
            let matching = |record: &WatchRecord| has_all(&record.watch.labels, &filter.labels);
            items.extend(found.into_iter().filter(matching));
            if all || items.len() > *limit as usize {
                return Ok(page(items, *limit));
            }
        }
    }
}

impl Perform for NewestWatch {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let newest = newest_record(db, &self.run_id).await?;
        Ok(newest.map(|(_, record)| record))
    }
}

impl Perform for WatchHistory {
    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Some((id, record)) = newest_record(db, &self.run_id).await? else {
            return Ok(None);
        };
        let verdict_event = match record.verdict {
            Some((verdict, _)) => {
                let sql = concat!(
                    "SELECT body, ",
                    payloads!("e"),
                    " FROM runwatch.events e WHERE watch_id = $1 AND type = $2 ORDER BY seq DESC LIMIT 1"
                );
                let event_type = verdict.event_type().as_str();
                let row = db.row(sql, parameters![id, event_type]).await?;
                row.as_ref().map(|row| read_event(row, 0)).transpose()?
            }
            None => None,
        };
        let changes = db
            .read_all(CHANGES_OF, parameters![id], read_change)
            .await?;
        let deliveries = deliveries::of_watch(db, id).await?;
        Ok(Some(History {
            record,
            changes,
            deliveries,
            verdict_event,
        }))
    }
}

impl Perform for StatusChangesAfter {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        db.read_all(CHANGES_AFTER, parameters![self.seq], read_change)
            .await
    }
}

/// The columns of a watch that is about to be added.
struct NewColumns<'a> {
    run_id: &'a str,
    name: Option<Cow<'a, str>>,
    labels: String,
    sinks: Option<String>,
    added_at: i64,
    deadline_at: i64,
    group: Option<Cow<'a, str>>,
    group_size: Option<i64>,
    trace: Option<&'a str>,
}

impl<'a> NewColumns<'a> {
    fn of(watch: &'a Watch) -> Result<Self, StoreError> {
        let sinks = watch.sinks.as_ref();
        Ok(Self {
            run_id: watch.run_id.as_str(),
            name: watch.name.as_deref().map(storable),
            labels: to_json("labels", &watch.labels)?,
            sinks: sinks.map(|sinks| to_json("sinks", sinks)).transpose()?,
            added_at: watch.added_at.as_millisecond(),
            deadline_at: watch.deadline_at.as_millisecond(),
            group: watch.group().map(storable),
            group_size: watch.group_size().map(i64::from),
            trace: watch.trace.as_ref().map(TraceContext::as_str),
        })
    }
}

/// Adds a watch as [`ADD`] does.
pub(super) async fn add(
    db: &Db<'_>,
    watch: &Watch,
    origin: &WatchOrigin,
    again: bool,
) -> Result<(Added, WatchId), StoreError> {
    let columns = NewColumns::of(watch)?;
    let origin = origin.to_string();
    let (origin, marks) = (storable(&origin), db.marks());
    for _ in 0..TRIES {
        let parameters = parameters![
            columns.run_id,
            columns.name,
            columns.labels,
            columns.sinks,
            columns.added_at,
            columns.deadline_at,
            origin,
            again,
            marks,
            columns.group,
            columns.group_size,
            columns.trace
        ];
        if let Some(row) = db.row(ADD, parameters).await? {
            return read_added(&row, 0);
        }
    }
    Err(StoreError::OutOfReach {
        why: "other daemons add and remove the same watch".to_owned(),
    })
}

/// Adds watches of different runs in one statement. Returns a reply for each, in order; `None` where another transaction
/// adds a watch of the run at the same time.
///
/// # Errors
/// When the statement fails. It has added none.
pub(super) async fn add_all(
    db: &Db<'_>,
    additions: &[&AddWatch],
) -> Result<Vec<Option<(Added, WatchId)>>, StoreError> {
    let columns: Vec<_> = additions
        .iter()
        .map(|addition| NewColumns::of(&addition.watch))
        .collect::<Result<_, _>>()?;
    let origin = WatchOrigin::Request.to_string();
    let rows = db
        .rows(
            ADD_ALL,
            parameters![
                each(&columns, |watch| watch.run_id),
                each(&columns, |watch| watch.name.as_deref()),
                each(&columns, |watch| watch.labels.as_str()),
                each(&columns, |watch| watch.sinks.as_deref()),
                each(&columns, |watch| watch.added_at),
                each(&columns, |watch| watch.deadline_at),
                each(additions, |addition| addition.again),
                each(&columns, |watch| watch.group.as_deref()),
                each(&columns, |watch| watch.group_size),
                each(&columns, |watch| watch.trace),
                origin,
                db.marks()
            ],
        )
        .await?;
    let mut replies = vec![None; additions.len()];
    for row in &rows {
        let place: i64 = get(row, 0)?;
        let place = usize::try_from(place - 1).ok();
        if let Some(reply) = place.and_then(|place| replies.get_mut(place)) {
            *reply = Some(read_added(row, 1)?);
        }
    }
    Ok(replies)
}

/// Reads the ID of a watch, and after it whether the watch is new.
fn read_added(row: &Row, first: usize) -> Result<(Added, WatchId), StoreError> {
    let added = match get(row, first + 1)? {
        true => Added::New,
        false => Added::AlreadyExists,
    };
    Ok((added, WatchId(get(row, first)?)))
}

/// The newest watch of a run, and whether it is finished.
async fn newest_watch(db: &Db<'_>, run_id: &RunRef) -> Result<Option<(WatchId, bool)>, StoreError> {
    let run_id = run_id.as_str();
    let row = db.row(NEWEST, parameters![run_id]).await?;
    row.as_ref()
        .map(|row| Ok((WatchId(get(row, 0)?), get(row, 1)?)))
        .transpose()
}

/// Describes what is still to be delivered about a run that has its verdict; `None` if there is nothing.
async fn open_delivery(db: &Db<'_>, run_id: &str) -> Result<Option<String>, StoreError> {
    let select = concat!(
        "SELECT d.id, e.type, d.sink, CASE WHEN d.state = 'pending' THEN d.next_attempt_at + ",
        stepped!(),
        " END, count(*) OVER () - 1, d.state = 'sending'
             FROM runwatch.watches w JOIN runwatch.events e ON e.watch_id = w.id
             JOIN runwatch.deliveries d ON d.event_seq = e.seq
             WHERE w.run_id = $1 AND w.verdict IS NOT NULL AND d.state IN ('pending', 'sending')
             ORDER BY d.next_attempt_at NULLS FIRST, d.id LIMIT 1"
    );
    let row = db.row(select, parameters![run_id]).await?;
    let describe = |row: &Row| {
        let open = OpenDelivery {
            id: get(row, 0)?,
            event: get(row, 1)?,
            sink: get(row, 2)?,
            next_at: get(row, 3)?,
            others: get(row, 4)?,
            is_sending: get(row, 5)?,
        };
        open.describe()
    };
    if let Some(row) = &row {
        return describe(row).map(Some);
    }
    let in_group = "SELECT group_name FROM runwatch.watches
        WHERE run_id = $1 AND verdict IS NOT NULL AND group_name IS NOT NULL AND NOT group_done LIMIT 1";
    let row = db.row(in_group, parameters![run_id]).await?;
    row.as_ref()
        .map(|row| get(row, 0).map(open_group))
        .transpose()
}

async fn set_deadlines(
    db: &Db<'_>,
    deadlines: &[(WatchId, Timestamp)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let (ids, times): (Vec<_>, Vec<_>) = deadlines
        .iter()
        .map(|(watch, deadline_at)| (watch.0, deadline_at.as_millisecond()))
        .unzip();
    let set = "UPDATE runwatch.watches w SET deadline_at = d.deadline_at,
             missing_since = CASE WHEN missing_since IS NULL THEN NULL ELSE $3 END
         FROM unnest($1::bigint[], $2::bigint[]) AS d (id, deadline_at)
         WHERE w.id = d.id AND w.verdict IS NULL";
    db.execute(set, parameters![ids, times, now.as_millisecond()])
        .map_ok(drop)
        .await
}

/// Returns the statement that lists watches. `None` when no watch can match.
///
/// `$4` has texts that the labels must contain; a text can also be found across several labels, so that each watch must
/// be looked at again ([`has_all`]).
pub(super) fn watches_sql(
    state: Option<WatchState>,
    verdict: Option<Verdict>,
    order: WatchOrder,
) -> Option<String> {
    let (which, by) = watches_where(state, verdict, order)?;
    Some(format!(
        "SELECT {RECORD_COLUMNS} FROM runwatch.watches w WHERE {which}
           AND NOT EXISTS (SELECT 1 FROM unnest($4) AS wanted (label) WHERE strpos(w.labels, label) = 0)
         ORDER BY {by} LIMIT $5"
    ))
}

/// A label as it stands in the JSON of all labels.
fn label_text((key, value): &(String, String)) -> Result<String, StoreError> {
    Ok(format!(
        "{}:{}",
        to_json("labels", key)?,
        to_json("labels", value)?
    ))
}

/// Whether a watch carries all of these labels.
fn has_all(labels: &Labels, wanted: &[(String, String)]) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// The newest watch of a run with its number.
async fn newest_record(
    db: &Db<'_>,
    run_id: &RunRef,
) -> Result<Option<(i64, WatchRecord)>, StoreError> {
    let run_id = run_id.as_str();
    let row = db.row(&newest_record_sql(), parameters![run_id]).await?;
    row.as_ref()
        .map(|row| Ok((get(row, 0)?, read_record(row)?)))
        .transpose()
}

/// The statement that reads the newest watch of a run.
pub(super) fn newest_record_sql() -> String {
    format!(
        "SELECT {RECORD_COLUMNS} FROM runwatch.watches WHERE run_id = $1 ORDER BY id DESC LIMIT 1"
    )
}
