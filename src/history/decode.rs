//! Decoding rows of both databases: ids and names as text, times as Unix milliseconds.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
};

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{ColumnIndex, Decode, Type};
use tracing::warn;

use super::{Count, Percentiles, Period, Row, Stats, Tally};
use crate::{
    call::{Call, CallType, EndReason, Status, Step},
    ids::NodeId,
    time::Timestamp,
};

/// The latest time in queries: the end of the year 9999.
const LATEST_MS: i64 = 253_402_300_799_999;

/// A database row.
pub trait Source<'r> {
    fn text(&'r self, column: &str) -> Result<Option<&'r str>, sqlx::Error>;
    fn number(&'r self, column: &str) -> Result<Option<i64>, sqlx::Error>;
}

impl<'r, R> Source<'r> for R
where
    R: sqlx::Row,
    for<'c> &'c str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    fn text(&'r self, column: &str) -> Result<Option<&'r str>, sqlx::Error> {
        self.try_get(column)
    }

    fn number(&'r self, column: &str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(column)
    }
}

/// A row of a list, without its timeline.
pub fn listed<'r>(row: &'r impl Source<'r>) -> Result<Row, sqlx::Error> {
    Ok(Row {
        id: parse(row, "id")?,
        caller: parse(row, "caller")?,
        receiver: parse(row, "receiver")?,
        call_type: call_type(row)?,
        status: status(row)?,
        end_reason: end_reason(row)?,
        duration_s: natural(row, "duration")?,
        started_at: time(row, "started_at")?,
        ended_at: time(row, "ended_at")?,
        created_at: time(row, "created_at")?.ok_or(unknown("created_at"))?,
        updated_at: time(row, "updated_at")?.ok_or(unknown("updated_at"))?,
        version: natural(row, "version")?.unwrap_or_default(),
        timeline: Vec::new(),
        record: None,
    })
}

/// A row with its timeline, without steps of later builds.
pub fn whole<'r>(row: &'r impl Source<'r>) -> Result<Row, sqlx::Error> {
    let steps: Vec<&RawValue> = serde_json::from_str(row.text("timeline")?.unwrap_or("[]"))
        .map_err(|error| column_error("timeline", error))?;
    let known = |step: &RawValue| serde_json::from_str::<Step>(step.get()).ok();
    Ok(Row { timeline: steps.into_iter().filter_map(known).collect(), ..listed(row)? })
}

/// The time of a node's last heartbeat.
pub fn beat<'r>(row: &'r impl Source<'r>) -> Result<(NodeId, Timestamp), sqlx::Error> {
    Ok((parse(row, "node")?, time(row, "alive_at")?.ok_or(unknown("alive_at"))?))
}

/// A live call of the previous process, with the time at which it was last known to be live. `None` if this build cannot
/// read its record.
pub fn left_live<'r>(
    row: &'r impl Source<'r>,
    beats: &HashMap<NodeId, Timestamp>,
) -> Result<Option<(Call, Timestamp)>, sqlx::Error> {
    let record = row.text("record")?.ok_or(unknown("record"))?;
    match serde_json::from_str::<Call>(record) {
        Ok(call) => {
            let node = call.timeline.last().map(|step| step.node);
            let alive_at = node.and_then(|node| beats.get(&node).copied());
            let last_alive_at = alive_at.unwrap_or(call.updated_at);
            Ok(Some((call, last_alive_at)))
        }
        Err(error) => {
            warn!(%error, "the record of a live call cannot be read");
            Ok(None)
        }
    }
}

/// The time of day in the database.
pub fn now<'r>(row: &'r impl Source<'r>) -> Result<Timestamp, sqlx::Error> {
    time(row, "now")?.ok_or(unknown("now"))
}

fn call_type<'r>(row: &'r impl Source<'r>) -> Result<CallType, sqlx::Error> {
    named(row, "call_type", CallType::ALL, CallType::as_str)?.ok_or(unknown("call_type"))
}

fn status<'r>(row: &'r impl Source<'r>) -> Result<Status, sqlx::Error> {
    named(row, "status", Status::ALL, Status::as_str)?.ok_or(unknown("status"))
}

fn end_reason<'r>(row: &'r impl Source<'r>) -> Result<Option<EndReason>, sqlx::Error> {
    named(row, "end_reason", EndReason::ALL, EndReason::as_str)
}

/// Combines the counts and percentiles of a period; `whole` is the period as one bucket.
pub fn stats<'r, S: Source<'r>>(
    counts: &'r [S],
    percentiles: &'r [S],
    whole: &'r [S],
) -> Result<Stats, sqlx::Error> {
    let mut buckets: BTreeMap<Timestamp, Tally> = BTreeMap::new();
    let mut total: Vec<Count> = Vec::new();
    for row in counts {
        let count = Count {
            call_type: call_type(row)?,
            status: status(row)?,
            end_reason: end_reason(row)?,
            calls: natural(row, "calls")?.unwrap_or_default(),
        };
        let is_alike = |other: &&mut Count| Count { calls: count.calls, ..**other } == count;
        match total.iter_mut().find(is_alike) {
            Some(known) => known.calls += count.calls,
            None => total.push(count),
        }
        buckets.entry(bucket(row)?).or_default().counts.push(count);
    }
    for row in percentiles {
        let tally = buckets.entry(bucket(row)?).or_default();
        (tally.ring_ms, tally.duration_s) = (spread(row, "ring")?, spread(row, "lasted")?);
    }
    let (ring_ms, duration_s) = match whole.first() {
        Some(row) => (spread(row, "ring")?, spread(row, "lasted")?),
        None => (None, None),
    };
    let total = Tally { counts: total, ring_ms, duration_s };
    Ok(Stats { total, buckets: buckets.into_iter().collect() })
}

fn bucket<'r>(row: &'r impl Source<'r>) -> Result<Timestamp, sqlx::Error> {
    time(row, "bucket")?.ok_or(unknown("bucket"))
}

fn spread<'r>(row: &'r impl Source<'r>, of: &str) -> Result<Option<Percentiles>, sqlx::Error> {
    let value = |share: &str| natural(row, &format!("{of}_{share}"));
    let values = (value("p50")?, value("p90")?, value("p99")?);
    let (Some(p50), Some(p90), Some(p99)) = values else { return Ok(None) };
    Ok(Some(Percentiles { p50, p90, p99 }))
}

impl Period {
    /// The length of a bucket that holds the whole period.
    pub(super) fn in_one() -> i64 {
        LATEST_MS + 1
    }

    pub(super) fn bucket_ms(&self) -> i64 {
        i64::try_from(self.bucket.as_millis()).unwrap_or(LATEST_MS).max(1)
    }
}

fn parse<'r, T>(row: &'r impl Source<'r>, column: &'static str) -> Result<T, sqlx::Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text = row.text(column)?.ok_or(unknown(column))?;
    text.parse().map_err(|error| column_error(column, error))
}

/// The value of `all` named in `column`.
fn named<'r, T: Copy>(
    row: &'r impl Source<'r>,
    column: &'static str,
    all: impl IntoIterator<Item = T>,
    name: impl Fn(T) -> &'static str,
) -> Result<Option<T>, sqlx::Error> {
    let Some(text) = row.text(column)? else {
        return Ok(None);
    };
    all.into_iter().find(|value| name(*value) == text).map(Some).ok_or(unknown(column))
}

fn natural<'r>(row: &'r impl Source<'r>, column: &str) -> Result<Option<u64>, sqlx::Error> {
    Ok(row.number(column)?.map(|number| number.try_into().unwrap_or(0)))
}

fn time<'r>(row: &'r impl Source<'r>, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(natural(row, column)?.map(Timestamp::from_millis))
}

fn unknown(column: &str) -> sqlx::Error {
    column_error(column, format!("{column} holds a value that this version does not know"))
}

fn column_error(
    column: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.into(), source: source.into() }
}

/// Database integers are signed. Larger values are far in the future, so the maximum is sufficient.
pub fn number(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// A time that every database can hold.
pub fn millis(time: Timestamp) -> i64 {
    number(time.as_millis()).min(LATEST_MS)
}

/// A row's timeline as JSON.
pub fn timeline(row: &Row) -> String {
    serde_json::to_string(&row.timeline).expect("steps are plain data")
}

/// A call, or its id, as JSON.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("calls and ids are plain data")
}
