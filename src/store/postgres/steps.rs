//! Steps of watches, and events: each is one statement, so that many are sent at once. Steps of different watches are one
//! statement together.
//!
//! A statement is put together of those parts below that it needs. Its parameters are the same in every part: `$1` to `$15`
//! are of its events and their large values, `$16` to `$39` of its steps. All parts see the tables as they were before it.

use jiff::Timestamp;

use super::rows::read_places;
use super::sql::{Combinable, CombinedReply, Db, Parameter, Perform, parameter, stepped};
use crate::clock::new_delivery_id;
use crate::domain::{Event, EventData, JsonText, KEPT_DURATIONS, KEPT_GROUPS, RunRef, Verdict};
use crate::store::model::{RoutedEvent, StoreError, WatchId};
use crate::store::operations::{RecordEvent, RecordStep};
use crate::store::records::{INLINE_BYTES, KEPT_CHANGES, past_duration, storable, to_json};

/// The steps, with their places from 1.
const GIVEN: &str = "given AS (
        SELECT * FROM unnest($16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33,
            $34, $35, $36) WITH ORDINALITY AS g (id, now, status, state, polls, missing_since, seen_running,
            overdue_told, last_error, last_error_at, verdict, found_by, details, input, output, run_group, started_at,
            changed, provider, past_group, ran_ms, place)
    )";

/// The numbers that large values have or get in the table, and whether they are new.
const KNOWN: &str = "known AS (
        SELECT n, wanted.watch_id, body, found.id IS NULL AS is_new,
            coalesce(found.id, nextval('runwatch.payloads_id_seq')) AS id
        FROM unnest($14, $15) WITH ORDINALITY AS wanted (body, watch_id, n)
        LEFT JOIN LATERAL (SELECT id FROM runwatch.payloads p WHERE p.watch_id = wanted.watch_id
            AND octet_length(p.body) = octet_length(wanted.body) AND p.body = wanted.body
            ORDER BY id LIMIT 1) AS found ON true
    )";

/// Inserts the new ones.
const MAKE_VALUES: &str = "made AS (
        INSERT INTO runwatch.payloads (id, watch_id, body)
        SELECT known.id, target.id, body FROM known JOIN target ON target.id = known.watch_id WHERE is_new
    )";

/// Whether the durations of several steps can be added at once. They cannot where one by one a group would be deleted that
/// another step adds to, because a provider has too many.
const SEPARABLE: &str = "separable AS (
        SELECT NOT EXISTS (
            SELECT FROM (SELECT g.provider, count(DISTINCT g.past_group) AS groups
                FROM given g WHERE g.ran_ms IS NOT NULL AND NOT EXISTS (SELECT FROM runwatch.past_durations k
                    WHERE k.provider = g.provider AND k.run_group = g.past_group)
                GROUP BY g.provider) AS fresh
            LEFT JOIN LATERAL (SELECT run_group, newest_at FROM runwatch.past_durations o
                WHERE o.provider = fresh.provider ORDER BY newest_at DESC, run_group DESC
                OFFSET greatest($39 - fresh.groups, 0)) AS old ON true
            WHERE fresh.groups > $39
                OR old.newest_at >= (SELECT min(now) FROM given g WHERE g.provider = fresh.provider)
                OR EXISTS (SELECT FROM given g WHERE g.provider = fresh.provider AND g.past_group = old.run_group)
        ) AS yes
    )";

/// [`SEPARABLE`] of one step, or of steps without durations.
const ALWAYS_SEPARABLE: &str = "separable AS (SELECT true AS yes)";

/// The watches of the steps, where they are active; with the numbers of their large values, and where these are looked up.
macro_rules! target {
    ($input:literal, $output:literal, $known:literal) => {
        concat!(
            "target AS (
        UPDATE runwatch.watches w SET status = g.status, state = g.state, polls = g.polls,
            missing_since = g.missing_since, seen_running = g.seen_running, overdue_told = g.overdue_told,
            last_error = coalesce(g.last_error, w.last_error),
            last_error_at = coalesce(g.last_error_at, w.last_error_at),
            verdict = g.verdict,
            verdict_at = CASE WHEN g.verdict IS NULL THEN w.verdict_at ELSE g.now END,
            found_by = CASE WHEN g.verdict IS NULL THEN w.found_by ELSE g.found_by END,
            details = coalesce(g.details, w.details),
            input_id = CASE WHEN g.details IS NULL THEN w.input_id ELSE ",
            $input,
            " END,
            output_id = CASE WHEN g.details IS NULL THEN w.output_id ELSE ",
            $output,
            " END,
            run_group = CASE WHEN g.details IS NULL THEN w.run_group ELSE g.run_group END,
            started_at = CASE WHEN g.details IS NULL THEN w.started_at ELSE g.started_at END
        FROM given g ",
            $known,
            " WHERE w.id = g.id AND w.verdict IS NULL AND (SELECT yes FROM separable)
        RETURNING w.id, g.place, g.now, g.status, g.state, g.changed, g.details IS NOT NULL AS observed,
            g.provider, g.past_group, g.ran_ms
    )"
        )
    };
}
const TARGET: &str = target!("NULL::bigint", "NULL::bigint", "");
const TARGET_WITH_VALUES: &str = target!(
    "input.id",
    "output.id",
    "LEFT JOIN known input ON input.n = g.input LEFT JOIN known output ON output.n = g.output"
);

/// The watch of an event, or NULL.
const TARGET_OF_EVENT: &str =
    "target AS (SELECT id, place FROM unnest($16) WITH ORDINALITY AS t (id, place))";

/// Deletes values of an earlier observation that neither the new details nor an event contains.
macro_rules! drop_values {
    ($kept:literal) => {
        concat!(
            "dropped AS (
        DELETE FROM runwatch.payloads p USING target WHERE target.observed AND p.watch_id = target.id ",
            $kept,
            " AND NOT EXISTS (SELECT FROM runwatch.events e
                WHERE e.watch_id = target.id AND p.id IN (e.input_id, e.output_id))
    )"
        )
    };
}
const DROP_VALUES: &str = drop_values!("");
const DROP_OTHER_VALUES: &str =
    drop_values!("AND NOT EXISTS (SELECT FROM known WHERE known.id = p.id)");

/// Inserts status changes, and deletes the oldest of too many. The new ones are not among those that the latter sees.
const CHANGE: &str = "changed AS (
        INSERT INTO runwatch.status_changes (watch_id, at, status, state)
        SELECT id, now, status, state FROM target WHERE changed ORDER BY place
    ), trimmed AS (
        DELETE FROM runwatch.status_changes c USING target CROSS JOIN LATERAL (
            SELECT seq FROM runwatch.status_changes o WHERE o.watch_id = target.id
            ORDER BY seq DESC LIMIT 1 OFFSET $37) AS last
        WHERE target.changed AND c.watch_id = target.id AND c.seq <= last.seq
    )";

/// Adds the durations of runs that succeeded to those of their groups, and deletes the oldest groups of too many. New
/// groups are not among those that the latter sees.
const ADD_DURATIONS: &str = "added AS (
        INSERT INTO runwatch.past_durations AS p (provider, run_group, newest_at, ran_ms)
        SELECT provider, past_group, (array_agg(now ORDER BY place DESC))[1], jsonb_agg(ran_ms ORDER BY place)::text
        FROM (SELECT *, row_number() OVER (PARTITION BY provider, past_group ORDER BY place DESC) AS nth
            FROM target WHERE ran_ms IS NOT NULL) AS ended
        WHERE nth <= $38 GROUP BY provider, past_group
        ON CONFLICT (provider, run_group) DO UPDATE SET newest_at = excluded.newest_at, ran_ms = (
            SELECT jsonb_agg(kept.value ORDER BY kept.n)::text
            FROM jsonb_array_elements(p.ran_ms::jsonb || excluded.ran_ms::jsonb) WITH ORDINALITY AS kept (value, n)
            WHERE kept.n > jsonb_array_length(p.ran_ms::jsonb) + jsonb_array_length(excluded.ran_ms::jsonb) - $38)
    ), forgotten AS (
        DELETE FROM runwatch.past_durations p USING (
            SELECT t.provider, count(DISTINCT t.past_group) AS groups FROM target t
            WHERE t.ran_ms IS NOT NULL AND NOT EXISTS (SELECT FROM runwatch.past_durations k
                WHERE k.provider = t.provider AND k.run_group = t.past_group)
            GROUP BY t.provider) AS fresh CROSS JOIN LATERAL (
            SELECT run_group FROM runwatch.past_durations o WHERE o.provider = fresh.provider
            ORDER BY newest_at DESC, run_group DESC OFFSET greatest($39 - fresh.groups, 0)) AS old
        WHERE p.provider = fresh.provider AND p.run_group = old.run_group
    )";

/// Inserts events, numbered in their order; with the numbers of their large values, and where these are looked up.
macro_rules! record_events {
    ($input:literal, $output:literal, $known:literal) => {
        concat!(
            "numbered AS (
        SELECT nextval('runwatch.events_seq_seq') AS seq, ordered.* FROM (
            SELECT e.*, target.id FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) WITH ORDINALITY
                AS e (place, type, run_id, provider, at, input, output, body, n)
            JOIN target ON target.place = e.place ORDER BY e.n) AS ordered
    ), recorded AS (
        INSERT INTO runwatch.events (seq, watch_id, run_id, provider, type, at, input_id, output_id, body)
        SELECT e.seq, e.id, e.run_id, e.provider, e.type, e.at, ",
            $input,
            ", ",
            $output,
            ", e.body FROM numbered e ",
            $known,
            ")"
        )
    };
}
const RECORD_EVENTS: &str = record_events!("NULL::bigint", "NULL::bigint", "");
const RECORD_EVENTS_WITH_VALUES: &str = record_events!(
    "input.id",
    "output.id",
    "LEFT JOIN known input ON input.n = e.input LEFT JOIN known output ON output.n = e.output"
);

/// Inserts the deliveries of events.
const ROUTE: &str = concat!(
    "routed AS (
        INSERT INTO runwatch.deliveries (id, event_seq, sink, state, next_attempt_at, created_at)
        SELECT d.id, e.seq, d.sink, 'pending', CASE WHEN d.held THEN NULL ELSE d.now - ",
    stepped!(),
    " END, d.now
        FROM unnest($9, $10, $11, $12, $13) AS d (id, n, sink, held, now) JOIN numbered e ON e.n = d.n
    )"
);

/// The places of the steps that are stored; NULL where several cannot be stored at once.
const STORED: &str = "SELECT place FROM target UNION ALL SELECT NULL FROM separable WHERE NOT yes";

/// `$37` to `$39`: after how many status changes the others of a watch are deleted, and how many durations and groups are
/// kept.
const KEPT: [i64; 3] = [
    KEPT_CHANGES as i64 - 1,
    KEPT_DURATIONS as i64,
    KEPT_GROUPS as i64,
];

impl Perform for RecordStep {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let replies = record_all(db, &[self]).await?;
        replies.into_iter().collect()
    }

    fn combinable(&self) -> Option<Combinable<'_>> {
        Some(Combinable::Step(self))
    }

    fn read_reply(reply: CombinedReply) -> Option<Result<Self::Reply, StoreError>> {
        reply.done()
    }
}

impl Perform for RecordEvent {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { watch, routed, now } = self;
        let mut large = LargeValues::default();
        let mut events = EventColumns::default();
        let values = watch.map(|watch| large.of_watch(watch));
        events.add(1, std::slice::from_ref(routed), *now, values);
        let targets = vec![watch.map(|WatchId(id)| id)];
        let mut parameters = events.parameters(&large);
        parameters.push(parameter(&targets));
        let mut parts = vec![TARGET_OF_EVENT];
        parts.extend(large.unless_empty(KNOWN));
        parts.extend(large.unless_empty(MAKE_VALUES));
        parts.extend(events.parts(large.is_empty()));
        let sql = statement(&parts, "SELECT 1");
        db.rows(&sql, &parameters).await.map(drop)
    }
}

/// Stores steps of different watches in one statement. Returns a reply for each, in order.
///
/// # Errors
/// When the statement fails, or the steps cannot be stored at once. It has stored none.
pub(super) async fn record_all(
    db: &Db<'_>,
    steps: &[&RecordStep],
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let mut large = LargeValues::default();
    let mut events = EventColumns::default();
    let mut columns = StepColumns::default();
    for (place, step) in (1..).zip(steps) {
        let mut values = large.of_watch(step.watch);
        columns.add(step, &mut values)?;
        events.add(place, &step.routed, step.now, Some(values));
    }
    let mut parts = vec![GIVEN];
    parts.extend(large.unless_empty(KNOWN));
    parts.extend(columns.parts(large.is_empty()));
    parts.extend(large.unless_empty(MAKE_VALUES));
    parts.extend(events.parts(large.is_empty()));
    let mut parameters = events.parameters(&large);
    parameters.extend(columns.parameters());
    let rows = db.rows(&statement(&parts, STORED), &parameters).await?;
    read_places(&rows, steps, |step| StoreError::Precondition {
        what: format!("watch {}", step.watch.0),
        wanted: "active",
    })
}

/// The text of a statement of these parts, which ends with `select`.
fn statement(parts: &[&str], select: &str) -> String {
    format!("WITH {} {select}", parts.join(", "))
}

/// The columns of steps.
#[derive(Default)]
struct StepColumns {
    ids: Vec<i64>,
    times: Vec<i64>,
    statuses: Vec<Option<String>>,
    states: Vec<Option<&'static str>>,
    polls: Vec<i64>,
    missing_since: Vec<Option<i64>>,
    seen_running: Vec<bool>,
    overdue_told: Vec<bool>,
    last_errors: Vec<Option<String>>,
    last_errors_at: Vec<Option<i64>>,
    verdicts: Vec<Option<&'static str>>,
    found_by: Vec<&'static str>,
    details: Vec<Option<String>>,
    /// The numbers of inputs and outputs among the large values.
    inputs: Vec<Option<i64>>,
    outputs: Vec<Option<i64>>,
    groups: Vec<Option<String>>,
    started_at: Vec<Option<i64>>,
    /// Whether the status is another one than before.
    changed: Vec<bool>,
    /// Of runs that succeeded: whose durations are added to, and what.
    providers: Vec<Option<String>>,
    past_groups: Vec<Option<String>>,
    ran_ms: Vec<Option<i64>>,
}

impl StepColumns {
    /// Adds those of a step, with large values put into `large`.
    fn add(&mut self, step: &RecordStep, large: &mut ValuesOfWatch<'_>) -> Result<(), StoreError> {
        let next = &step.step.progress;
        let mut details = next.details.clone();
        let (mut input, mut output) = (None, None);
        if let Some(details) = &mut details {
            input = large.take(&mut details.input);
            output = large.take(&mut details.output);
        }
        let json = details.as_ref().map(|details| to_json("details", details));
        self.details.push(json.transpose()?);
        self.inputs.push(input);
        self.outputs.push(output);
        let group = details
            .as_ref()
            .and_then(|details| details.group.as_deref());
        self.groups.push(group.map(owned));
        let started_at = details.as_ref().and_then(|details| details.started_at);
        self.started_at
            .push(started_at.map(Timestamp::as_millisecond));
        let status = next.status.as_ref();
        self.ids.push(step.watch.0);
        self.times.push(step.now.as_millisecond());
        self.statuses
            .push(status.map(|status| owned(status.as_str())));
        self.states
            .push(status.map(|status| status.state().as_str()));
        self.polls.push(next.polls.cast_signed());
        let missing_since = next.missing_since.map(Timestamp::as_millisecond);
        self.missing_since.push(missing_since);
        self.seen_running.push(next.seen_running);
        self.overdue_told.push(next.overdue_told);
        let error = step.last_error.as_ref();
        self.last_errors
            .push(error.map(|error| owned(&error.message)));
        self.last_errors_at
            .push(error.map(|error| error.at.as_millisecond()));
        self.verdicts.push(next.verdict.map(Verdict::as_str));
        self.found_by.push(step.found_by.as_str());
        self.changed
            .push(step.step.status_changed && status.is_some());
        let past = past_duration(&step.step);
        self.ran_ms.push(past.as_ref().map(|past| past.ran_ms));
        let (provider, group) = past.map(|past| (past.provider, past.group)).unzip();
        self.providers.push(provider);
        self.past_groups.push(group);
        Ok(())
    }

    /// The parts that store them; with `no_values`, none of their values is large.
    fn parts(&self, no_values: bool) -> Vec<&'static str> {
        let ended = self.ran_ms.iter().any(Option::is_some);
        let (target, drop_values) = match no_values {
            true => (TARGET, DROP_VALUES),
            false => (TARGET_WITH_VALUES, DROP_OTHER_VALUES),
        };
        let separable = match ended && self.ids.len() > 1 {
            true => SEPARABLE,
            false => ALWAYS_SEPARABLE,
        };
        let mut parts = vec![separable, target];
        if self.details.iter().any(Option::is_some) {
            parts.push(drop_values);
        }
        if self.changed.contains(&true) {
            parts.push(CHANGE);
        }
        if ended {
            parts.push(ADD_DURATIONS);
        }
        parts
    }

    /// The parameters from `$16`.
    fn parameters(&self) -> [Parameter<'_>; 24] {
        [
            parameter(&self.ids),
            parameter(&self.times),
            parameter(&self.statuses),
            parameter(&self.states),
            parameter(&self.polls),
            parameter(&self.missing_since),
            parameter(&self.seen_running),
            parameter(&self.overdue_told),
            parameter(&self.last_errors),
            parameter(&self.last_errors_at),
            parameter(&self.verdicts),
            parameter(&self.found_by),
            parameter(&self.details),
            parameter(&self.inputs),
            parameter(&self.outputs),
            parameter(&self.groups),
            parameter(&self.started_at),
            parameter(&self.changed),
            parameter(&self.providers),
            parameter(&self.past_groups),
            parameter(&self.ran_ms),
            parameter(&KEPT[0]),
            parameter(&KEPT[1]),
            parameter(&KEPT[2]),
        ]
    }
}

/// A text as PostgreSQL can store it.
fn owned(text: &str) -> String {
    storable(text).into_owned()
}

/// Large values with their watches, of each watch once. Details and events name them by their number, from 1.
#[derive(Default)]
struct LargeValues {
    bodies: Vec<String>,
    watches: Vec<i64>,
}

impl LargeValues {
    /// Begins with those of another watch.
    fn of_watch(&mut self, WatchId(watch): WatchId) -> ValuesOfWatch<'_> {
        let first = self.bodies.len();
        ValuesOfWatch {
            values: self,
            watch,
            first,
        }
    }

    fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// A part that is needed where there are some.
    fn unless_empty(&self, part: &'static str) -> Option<&'static str> {
        (!self.is_empty()).then_some(part)
    }
}

/// The large values of one watch, which come last.
struct ValuesOfWatch<'a> {
    values: &'a mut LargeValues,
    watch: i64,
    first: usize,
}

impl ValuesOfWatch<'_> {
    /// Takes a value out of its place, if it is large. Returns its number.
    fn take(&mut self, value: &mut Option<JsonText>) -> Option<i64> {
        let large = value.take_if(|value| value.get().len() > INLINE_BYTES)?;
        let LargeValues { bodies, watches } = self.values;
        let mut known = bodies.iter().skip(self.first);
        let index = known.position(|known| known == large.get());
        let index = index.map_or(bodies.len(), |index| self.first + index);
        if index == bodies.len() {
            bodies.push(large.get().to_owned());
            watches.push(self.watch);
        }
        Some(index as i64 + 1)
    }
}

/// The columns of events and of their deliveries. Events are named by their number, from 1.
#[derive(Default)]
struct EventColumns {
    /// The places of the steps that they belong to, from 1.
    places: Vec<i64>,
    types: Vec<&'static str>,
    run_ids: Vec<Option<String>>,
    providers: Vec<Option<String>>,
    times: Vec<i64>,
    inputs: Vec<Option<i64>>,
    outputs: Vec<Option<i64>>,
    bodies: Vec<String>,
    deliveries: Vec<String>,
    delivered_events: Vec<i64>,
    sinks: Vec<String>,
    /// Whether a delivery waits for a summary, so that it has no time of an attempt.
    holds: Vec<bool>,
    created_at: Vec<i64>,
}

impl EventColumns {
    /// Adds those of a step, with large values put into `large` where they belong to a watch.
    fn add(
        &mut self,
        place: i64,
        routed: &[RoutedEvent],
        now: Timestamp,
        mut large: Option<ValuesOfWatch<'_>>,
    ) {
        for RoutedEvent { event, sinks, held } in routed {
            let (input, output, body) = match (&event.data, &mut large) {
                (EventData::Run(data), Some(large)) => {
                    let mut data = data.clone();
                    let input = large.take(&mut data.run.input);
                    let output = large.take(&mut data.run.output);
                    let event = Event {
                        event_type: event.event_type,
                        timestamp: event.timestamp,
                        data: EventData::Run(data),
                    };
                    (input, output, event.to_json())
                }
                _ => (None, None, event.to_json()),
            };
            self.places.push(place);
            self.types.push(event.event_type.as_str());
            let run_id = event.run_id();
            self.run_ids
                .push(run_id.map(|run_id: &RunRef| run_id.as_str().to_owned()));
            self.providers.push(match &event.data {
                EventData::Provider(notice) => Some(notice.provider.as_str().to_owned()),
                EventData::Run(_) | EventData::Group(_) | EventData::Sink(_) => None,
            });
            self.times.push(event.timestamp.as_millisecond());
            self.inputs.push(input);
            self.outputs.push(output);
            self.bodies.push(body);
            let sinks = sinks.iter().map(|sink| (sink, false));
            for (sink, is_held) in sinks.chain(held.iter().map(|sink| (sink, true))) {
                self.deliveries.push(new_delivery_id().as_str().to_owned());
                self.delivered_events.push(self.types.len() as i64);
                self.sinks.push(sink.as_str().to_owned());
                self.holds.push(is_held);
                self.created_at.push(now.as_millisecond());
            }
        }
    }

    /// The parts that store them; with `no_values`, none of their values is large.
    fn parts(&self, no_values: bool) -> Vec<&'static str> {
        let record = match no_values {
            true => RECORD_EVENTS,
            false => RECORD_EVENTS_WITH_VALUES,
        };
        match (self.types.is_empty(), self.deliveries.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => vec![record],
            (false, false) => vec![record, ROUTE],
        }
    }

    /// The parameters up to `$15`.
    fn parameters<'a>(&'a self, large: &'a LargeValues) -> Vec<Parameter<'a>> {
        vec![
            parameter(&self.places),
            parameter(&self.types),
            parameter(&self.run_ids),
            parameter(&self.providers),
            parameter(&self.times),
            parameter(&self.inputs),
            parameter(&self.outputs),
            parameter(&self.bodies),
            parameter(&self.deliveries),
            parameter(&self.delivered_events),
            parameter(&self.sinks),
            parameter(&self.holds),
            parameter(&self.created_at),
            parameter(&large.bodies),
            parameter(&large.watches),
        ]
    }
}
