//! Steps of watches, and events: each is one statement, so that many are sent at once.

use jiff::Timestamp;

use super::sql::{Db, Parameter, Perform, Value, parameter, stepped};
use crate::clock::new_delivery_id;
use crate::domain::{Event, EventData, JsonText, KEPT_DURATIONS, KEPT_GROUPS, RunRef, Verdict};
use crate::store::model::{RoutedEvent, StoreError, WatchId};
use crate::store::operations::{RecordEvent, RecordStep};
use crate::store::records::{
    INLINE_BYTES, KEPT_CHANGES, PastRow, past_duration, storable, to_json,
};

impl Perform for RecordStep {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self {
            watch,
            step,
            routed,
            last_error,
            found_by,
            now,
        } = self;
        let next = &step.progress;
        let mut large = LargeValues::default();
        let details = match &next.details {
            Some(details) => {
                let mut details = details.clone();
                let input = large.take(&mut details.input);
                let output = large.take(&mut details.output);
                Some(DetailColumns {
                    json: to_json("details", &details)?,
                    input,
                    output,
                    group: details
                        .group
                        .as_deref()
                        .map(|group| storable(group).into_owned()),
                    started_at: details.started_at.map(Timestamp::as_millisecond),
                })
            }
            None => None,
        };
        let events = EventColumns::of(routed, Some(&mut large));
        let status = next.status.as_ref();
        let columns = StepColumns {
            id: watch.0,
            now: now.as_millisecond(),
            status: status.map(|status| storable(status.as_str()).into_owned()),
            state: status.map(|status| status.state().as_str()),
            polls: next.polls.cast_signed(),
            missing_since: next.missing_since.map(Timestamp::as_millisecond),
            seen_running: next.seen_running,
            overdue_told: next.overdue_told,
            last_error: last_error
                .as_ref()
                .map(|failure| storable(&failure.message).into_owned()),
            last_error_at: last_error
                .as_ref()
                .map(|failure| failure.at.as_millisecond()),
            verdict: next.verdict.map(Verdict::as_str),
            verdict_at: next.verdict.map(|_| now.as_millisecond()),
            found_by: next.verdict.map(|_| found_by.as_str()),
            details,
        };
        let past_run = past_duration(step);
        let status_changed = step.status_changed && status.is_some();
        let mut statement = Statement::default();
        statement.find_values(&large, Some(&columns.id));
        statement.update_watch(&columns);
        statement.insert_values(&large);
        if columns.details.is_some() {
            statement.delete_values(&large);
        }
        if status_changed {
            statement.insert_change(&columns);
        }
        if let Some(run) = &past_run {
            statement.add_duration(run, &columns.now);
        }
        statement.insert_events(&events, &columns.now);
        let row = db
            .row(
                &statement.finish("SELECT 1 FROM target"),
                &statement.parameters,
            )
            .await?;
        match row {
            Some(_) => Ok(()),
            None => Err(StoreError::Precondition {
                what: format!("watch {}", watch.0),
                wanted: "active",
            }),
        }
    }
}

impl Perform for RecordEvent {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let Self { watch, routed, now } = self;
        let mut large = LargeValues::default();
        let events = EventColumns::of(
            std::slice::from_ref(routed),
            watch.is_some().then_some(&mut large),
        );
        let (id, now) = (watch.map(|WatchId(id)| id), now.as_millisecond());
        let mut statement = Statement::default();
        statement.target_of(&id);
        if let Some(id) = &id {
            statement.find_values(&large, Some(id));
        }
        statement.insert_values(&large);
        statement.insert_events(&events, &now);
        db.rows(&statement.finish("SELECT 1"), &statement.parameters)
            .await
            .map(drop)
    }
}

/// The columns of a step.
struct StepColumns {
    id: i64,
    now: i64,
    status: Option<String>,
    state: Option<&'static str>,
    polls: i64,
    missing_since: Option<i64>,
    seen_running: bool,
    overdue_told: bool,
    last_error: Option<String>,
    last_error_at: Option<i64>,
    verdict: Option<&'static str>,
    verdict_at: Option<i64>,
    found_by: Option<&'static str>,
    details: Option<DetailColumns>,
}

/// The columns of the details of a run.
struct DetailColumns {
    json: String,
    /// The numbers of their input and output among the large values.
    input: Option<i64>,
    output: Option<i64>,
    group: Option<String>,
    started_at: Option<i64>,
}

/// The large values of a step, each once. Details and events name them by their number, from 1.
#[derive(Default)]
struct LargeValues(Vec<String>);

impl LargeValues {
    /// Takes a value out of its place, if it is large. Returns its number.
    fn take(&mut self, value: &mut Option<JsonText>) -> Option<i64> {
        let large = value.take_if(|value| value.get().len() > INLINE_BYTES)?;
        let known = self.0.iter().position(|known| known == large.get());
        let index = known.unwrap_or_else(|| {
            self.0.push(large.get().to_owned());
            self.0.len() - 1
        });
        Some(index as i64 + 1)
    }
}

/// The columns of events and of their deliveries. Events are named by their number, from 1.
#[derive(Default)]
struct EventColumns {
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
}

impl EventColumns {
    /// Those of `routed`, with large values put into `large` where they belong to a watch.
    fn of(routed: &[RoutedEvent], mut large: Option<&mut LargeValues>) -> Self {
        let mut columns = Self::default();
        for RoutedEvent { event, sinks, held } in routed {
            let (input, output, body) = match (&event.data, large.as_deref_mut()) {
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
            columns.types.push(event.event_type.as_str());
            columns.run_ids.push(
                event
                    .run_id()
                    .map(|run_id: &RunRef| run_id.as_str().to_owned()),
            );
            columns.providers.push(match &event.data {
                EventData::Provider(notice) => Some(notice.provider.as_str().to_owned()),
                EventData::Run(_) | EventData::Group(_) | EventData::Sink(_) => None,
            });
            columns.times.push(event.timestamp.as_millisecond());
            columns.inputs.push(input);
            columns.outputs.push(output);
            columns.bodies.push(body);
            let sinks = sinks.iter().map(|sink| (sink, false));
            for (sink, is_held) in sinks.chain(held.iter().map(|sink| (sink, true))) {
                columns
                    .deliveries
                    .push(new_delivery_id().as_str().to_owned());
                columns.delivered_events.push(columns.types.len() as i64);
                columns.sinks.push(sink.as_str().to_owned());
                columns.holds.push(is_held);
            }
        }
        columns
    }
}

/// A statement that is put together of the parts that a step needs. All parts see the tables as they were before it.
#[derive(Default)]
struct Statement<'a> {
    parts: Vec<String>,
    parameters: Vec<Parameter<'a>>,
}

impl<'a> Statement<'a> {
    /// Adds a parameter. Returns how the text names it.
    fn bind<T: Value>(&mut self, value: &'a T) -> String {
        self.parameters.push(parameter(value));
        format!("${}", self.parameters.len())
    }

    fn part(&mut self, name: &str, sql: &str) {
        self.parts.push(format!("{name} AS ({sql})"));
    }

    /// The text, which ends with `select`.
    fn finish(&self, select: &str) -> String {
        format!("WITH {} {select}", self.parts.join(", "))
    }

    /// `target` is one row with the number of a watch, or NULL.
    fn target_of(&mut self, id: &'a Option<i64>) {
        let id = self.bind(id);
        self.part("target", &format!("SELECT {id}::bigint AS id"));
    }

    /// `known` has the numbers that large values have or get in the table, and whether they are new.
    fn find_values(&mut self, large: &'a LargeValues, id: Option<&'a i64>) {
        let Some(id) = id.filter(|_| !large.0.is_empty()) else {
            return;
        };
        let (id, bodies) = (self.bind(id), self.bind(&large.0));
        self.part(
            "known",
            &format!(
                "SELECT n, body, found.id IS NULL AS is_new,
                     coalesce(found.id, nextval('runwatch.payloads_id_seq')) AS id
                 FROM unnest({bodies}::text[]) WITH ORDINALITY AS wanted (body, n)
                 LEFT JOIN LATERAL (SELECT id FROM runwatch.payloads p WHERE p.watch_id = {id}
                     AND octet_length(p.body) = octet_length(wanted.body) AND p.body = wanted.body
                     ORDER BY id LIMIT 1) AS found ON true"
            ),
        );
    }

    fn insert_values(&mut self, large: &LargeValues) {
        if !large.0.is_empty() {
            self.part(
                "made",
                "INSERT INTO runwatch.payloads (id, watch_id, body)
                 SELECT known.id, target.id, body FROM known, target WHERE is_new",
            );
        }
    }

    /// `target` is the watch, where it is active.
    fn update_watch(&mut self, columns: &'a StepColumns) {
        let mut set = Vec::new();
        let mut assign = |column: &str, value: String| set.push(format!("{column} = {value}"));
        assign("status", self.bind(&columns.status));
        assign("state", self.bind(&columns.state));
        assign("polls", self.bind(&columns.polls));
        assign("missing_since", self.bind(&columns.missing_since));
        assign("seen_running", self.bind(&columns.seen_running));
        assign("overdue_told", self.bind(&columns.overdue_told));
        if columns.last_error.is_some() {
            assign("last_error", self.bind(&columns.last_error));
            assign("last_error_at", self.bind(&columns.last_error_at));
        }
        if columns.verdict.is_some() {
            assign("verdict", self.bind(&columns.verdict));
            assign("verdict_at", self.bind(&columns.verdict_at));
            assign("found_by", self.bind(&columns.found_by));
        }
        if let Some(details) = &columns.details {
            let number = |statement: &mut Self, n: &'a Option<i64>| match n {
                Some(_) => {
                    let n = statement.bind(n);
                    format!("(SELECT id FROM known WHERE n = {n})")
                }
                None => "NULL".to_owned(),
            };
            assign("details", self.bind(&details.json));
            assign("input_id", number(self, &details.input));
            assign("output_id", number(self, &details.output));
            assign("run_group", self.bind(&details.group));
            assign("started_at", self.bind(&details.started_at));
        }
        let id = self.bind(&columns.id);
        self.part(
            "target",
            &format!(
                "UPDATE runwatch.watches SET {} WHERE id = {id} AND verdict IS NULL RETURNING id",
                set.join(", ")
            ),
        );
    }

    /// Deletes values of an earlier observation that neither the new details nor an event contains.
    fn delete_values(&mut self, large: &LargeValues) {
        let kept = match large.0.is_empty() {
            true => "",
            false => "AND p.id NOT IN (SELECT id FROM known)",
        };
        self.part(
            "dropped",
            &format!(
                "DELETE FROM runwatch.payloads p USING target WHERE p.watch_id = target.id {kept}
                 AND NOT EXISTS (SELECT 1 FROM runwatch.events e
                     WHERE e.watch_id = target.id AND p.id IN (e.input_id, e.output_id))"
            ),
        );
    }

    /// Inserts a status change, and deletes the oldest of too many.
    fn insert_change(&mut self, columns: &'a StepColumns) {
        let (at, status, state) = (
            self.bind(&columns.now),
            self.bind(&columns.status),
            self.bind(&columns.state),
        );
        self.part(
            "changed",
            &format!(
                "INSERT INTO runwatch.status_changes (watch_id, at, status, state)
                 SELECT id, {at}::bigint, {status}::text, {state}::text FROM target"
            ),
        );
        // The new one is not among those that this part sees.
        self.part(
            "trimmed",
            &format!(
                "DELETE FROM runwatch.status_changes c USING target WHERE c.watch_id = target.id AND c.seq <= (
                     SELECT seq FROM runwatch.status_changes o WHERE o.watch_id = target.id
                     ORDER BY seq DESC LIMIT 1 OFFSET {})",
                KEPT_CHANGES - 1
            ),
        );
    }

    /// Adds the duration of a run that succeeded to those of its group, and deletes the oldest group of too many.
    fn add_duration(&mut self, run: &'a PastRow, now: &'a i64) {
        let (provider, group, ran_ms, now) = (
            self.bind(&run.provider),
            self.bind(&run.group),
            self.bind(&run.ran_ms),
            self.bind(now),
        );
        self.part(
            "added",
            &format!(
                "INSERT INTO runwatch.past_durations AS p (provider, run_group, newest_at, ran_ms)
                 SELECT {provider}::text, {group}::text, {now}::bigint, jsonb_build_array({ran_ms}::bigint)::text FROM target
                 ON CONFLICT (provider, run_group) DO UPDATE SET newest_at = excluded.newest_at, ran_ms = (
                     CASE WHEN jsonb_array_length(p.ran_ms::jsonb) >= {KEPT_DURATIONS} THEN p.ran_ms::jsonb - 0
                         ELSE p.ran_ms::jsonb END || excluded.ran_ms::jsonb)::text"
            ),
        );
        // A new group is not among those that this part sees.
        self.part(
            "forgotten",
            &format!(
                "DELETE FROM runwatch.past_durations p USING target WHERE p.provider = {provider} AND NOT EXISTS (
                     SELECT 1 FROM runwatch.past_durations k WHERE k.provider = {provider} AND k.run_group = {group})
                 AND p.run_group IN (SELECT run_group FROM runwatch.past_durations o WHERE o.provider = {provider}
                     ORDER BY newest_at DESC, run_group DESC OFFSET {})",
                KEPT_GROUPS - 1
            ),
        );
    }

    /// Inserts events in order, and their deliveries.
    fn insert_events(&mut self, events: &'a EventColumns, now: &'a i64) {
        if events.types.is_empty() {
            return;
        }
        let columns = [
            self.bind(&events.types),
            self.bind(&events.run_ids),
            self.bind(&events.providers),
            self.bind(&events.times),
            self.bind(&events.inputs),
            self.bind(&events.outputs),
            self.bind(&events.bodies),
        ];
        let has_values = events
            .inputs
            .iter()
            .chain(&events.outputs)
            .any(Option::is_some);
        let value = |n: &str| match has_values {
            true => format!("(SELECT id FROM known WHERE known.n = e.{n})"),
            false => "NULL::bigint".to_owned(),
        };
        self.part(
            "recorded",
            &format!(
                "INSERT INTO runwatch.events (watch_id, run_id, provider, type, at, input_id, output_id, body)
                 SELECT target.id, e.run_id, e.provider, e.type, e.at, {}, {}, e.body
                 FROM target, unnest({}::text[], {}::text[], {}::text[], {}::bigint[], {}::bigint[], {}::bigint[],
                     {}::text[]) WITH ORDINALITY AS e (type, run_id, provider, at, input, output, body, n)
                 ORDER BY e.n RETURNING seq",
                value("input"),
                value("output"),
                columns[0],
                columns[1],
                columns[2],
                columns[3],
                columns[4],
                columns[5],
                columns[6],
            ),
        );
        if events.deliveries.is_empty() {
            return;
        }
        let (ids, numbers, sinks, holds, now) = (
            self.bind(&events.deliveries),
            self.bind(&events.delivered_events),
            self.bind(&events.sinks),
            self.bind(&events.holds),
            self.bind(now),
        );
        self.part(
            "routed",
            &format!(
                concat!(
                    "INSERT INTO runwatch.deliveries (id, event_seq, sink, state, next_attempt_at, created_at)
                     SELECT d.id, t.seq, d.sink, 'pending', CASE WHEN d.held THEN NULL ELSE {now}::bigint - ",
                    stepped!(),
                    " END, {now}::bigint
                     FROM unnest({ids}::text[], {numbers}::bigint[], {sinks}::text[], {holds}::boolean[])
                         AS d (id, n, sink, held)
                     JOIN (SELECT seq, row_number() OVER (ORDER BY seq) AS n FROM recorded) AS t ON t.n = d.n"
                ),
                now = now,
                ids = ids,
                numbers = numbers,
                sinks = sinks,
                holds = holds,
            ),
        );
    }
}
