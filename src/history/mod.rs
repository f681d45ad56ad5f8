//! The call history: one row per call, written asynchronously, read over HTTP.

mod backlog;
mod decode;
mod keeper;
mod measured;
mod migrated;
pub mod page;
mod plan;
mod postgres;
mod recorder;
mod sqlite;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

pub use backlog::{Backlog, MAX_BACKLOG_ROWS, Refused};
pub use keeper::{Keeper, close_left, close_orphans, close_orphans_but};
pub use measured::Measured;
pub use migrated::Migrated;
pub use plan::{Partition, Plan};
pub use postgres::{Examined, OpenError, Postgres};
pub use recorder::{Recorder, Writer, recorder};
pub use sqlite::Sqlite;

use crate::{
    call::{Call, CallType, EndReason, Status, Step},
    ids::{CallId, NodeId, UserId},
    time::Timestamp,
};

/// A database of rows.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes rows, all or none. Of two rows of one call the higher version stays, in whatever order they arrive; within one
    /// version, an ended row replaces a live one.
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError>;

    /// A page of calls, newest first.
    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError>;

    /// The call with this id, with its timeline, if `user` is a party of it.
    async fn get(&self, id: CallId, user: &UserId) -> Result<Option<Row>, StoreError>;

    /// Up to `limit` rows, with their timelines, of calls made before this time that have not ended.
    async fn open(&self, made_before: Timestamp, limit: u32) -> Result<Vec<Row>, StoreError>;

    /// Counts and distributions over the whole period, and in each of its non-empty buckets.
    async fn stats(&self, period: &Period) -> Result<Stats, StoreError>;

    /// Notes that the calls of this node were live at `at`, as far as their rows have no end.
    async fn beat(&self, node: NodeId, at: Timestamp) -> Result<(), StoreError>;

    /// When each node was last noted so.
    async fn beats(&self) -> Result<HashMap<NodeId, Timestamp>, StoreError>;

    /// The time of day in the database; None if it has no clock of its own.
    async fn now(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Makes room for the calls to come, and removes some of those made before `keep_from`, the oldest
    /// first: at most a quarter of all rows at a time, or a month where history is kept by months.
    async fn tidy(&self, now: Timestamp, keep_from: Option<Timestamp>) -> Result<(), StoreError>;

    /// Closes the store after the running operations.
    async fn close(&self);
}

/// Classes of transient Postgres errors: connection (08), rollback (40), resources (53), object state (55), operator
/// intervention (57), system and internal errors (58, XX).
const TROUBLES: [&str; 7] = ["08", "40", "53", "55", "57", "58", "XX"];

/// A failed operation of a store. Displays as one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{}", plain(.0))]
pub struct StoreError(sqlx::Error);

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl StoreError {
    /// Whether the failure is transient, so that a retry may succeed.
    pub fn is_away(&self) -> bool {
        match &self.0 {
            // An unreachable server may return; an untrusted certificate stays untrusted.
            sqlx::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
            // A dying server may truncate a message.
            sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
            sqlx::Error::Database(error) => error
                .code()
                .is_some_and(|code| TROUBLES.iter().any(|class| code.starts_with(class))),
            _ => false,
        }
    }

    /// Whether the database rejected the rows for good.
    fn is_refusal(&self) -> bool {
        let sqlx::Error::Database(error) = &self.0 else { return false };
        (error.is_check_violation() && !is_without_partition(&self.0))
            || error.is_unique_violation()
            // Class 22, data exceptions, of the SQL standard.
            || error.code().is_some_and(|code| code.len() == 5 && code.starts_with("22"))
    }
}

/// Whether Postgres has no partition for a row. It reports a check violation without a constraint name.
fn is_without_partition(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().is_some_and(|code| code == "23514") && error.constraint().is_none()
}

/// The message of the database itself, without repetitions by the layers around it.
fn plain(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Configuration(error) => error.to_string(),
        sqlx::Error::PoolTimedOut => "it does not answer".to_owned(),
        other => other.to_string(),
    }
}

/// The row of a call.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CallRecord)]
pub struct Row {
    pub id: CallId,
    pub caller: UserId,
    pub receiver: UserId,
    #[serde(serialize_with = "name_of")]
    pub call_type: CallType,
    #[serde(serialize_with = "name_of")]
    pub status: Status,
    #[serde(serialize_with = "name_of")]
    #[schema(required)]
    pub end_reason: Option<EndReason>,
    /// Whole seconds from the answer to the end; null if it was never answered or is live.
    #[serde(rename = "duration")]
    #[schema(required)]
    pub duration_s: Option<u64>,
    #[schema(required)]
    pub started_at: Option<Timestamp>,
    #[schema(required)]
    pub ended_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[serde(skip)]
    pub version: u64,
    /// Empty in a list.
    #[serde(skip)]
    pub timeline: Vec<Step>,
    /// The whole call, if it is live and this history is all that outlives the process.
    #[serde(skip)]
    pub record: Option<Arc<Call>>,
}

/// Which calls to list.
#[derive(Debug, Clone)]
pub struct Query {
    /// Calls that this user made or got.
    pub user: UserId,
    /// Only those with this user as the other party.
    pub with: Option<UserId>,
    pub status: Option<Status>,
    pub call_type: Option<CallType>,
    /// Only calls made at this time or later.
    pub since: Option<Timestamp>,
    /// Only calls made before this time.
    pub until: Option<Timestamp>,
    /// Only calls that stand after this place.
    pub after: Option<Place>,
    pub limit: u32,
}

/// Which calls to count, all users' together.
#[derive(Debug, Clone, Copy)]
pub struct Period {
    pub since: Timestamp,
    pub until: Timestamp,
    /// Buckets begin at whole multiples of this since the Unix epoch.
    pub bucket: Duration,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    pub total: Tally,
    /// By when they begin, in order; those without a call are left out.
    pub buckets: Vec<(Timestamp, Tally)>,
}

/// Counts and distributions of some calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    pub counts: Vec<Count>,
    /// Of the answered calls: milliseconds from the attempt to the answer.
    pub ring_ms: Option<Percentiles>,
    /// Of the answered calls that have ended.
    pub duration_s: Option<Percentiles>,
}

/// The number of calls with the same outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    pub call_type: CallType,
    pub status: Status,
    pub end_reason: Option<EndReason>,
    pub calls: u64,
}

/// Percentiles by the nearest-rank method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Percentiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
}

/// A place in the order of calls, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub created_at: Timestamp,
    pub id: CallId,
}

impl From<&Call> for Row {
    fn from(call: &Call) -> Self {
        Self {
            id: call.id,
            caller: call.caller.user.clone(),
            receiver: call.callee.user.clone(),
            call_type: call.call_type,
            status: call.status(),
            end_reason: call.end_reason(),
            duration_s: call.duration_s(),
            started_at: call.answered_at(),
            ended_at: call.ended_at(),
            created_at: call.created_at,
            updated_at: call.updated_at,
            version: call.version,
            timeline: call.timeline.clone(),
            record: None,
        }
    }
}

impl Row {
    /// The node that made its newest version.
    pub fn node(&self) -> Option<NodeId> {
        self.timeline.last().map(|step| step.node)
    }

    pub fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id }
    }
}

/// The fixed name of a value on the wire and in the database.
trait Named: Copy {
    fn name(self) -> Option<&'static str>;
}

impl Named for CallType {
    fn name(self) -> Option<&'static str> {
        Some(self.as_str())
    }
}

impl Named for Status {
    fn name(self) -> Option<&'static str> {
        Some(self.as_str())
    }
}

impl Named for Option<EndReason> {
    fn name(self) -> Option<&'static str> {
        self.map(EndReason::as_str)
    }
}

fn name_of<S: Serializer>(value: &impl Named, serializer: S) -> Result<S::Ok, S::Error> {
    value.name().serialize(serializer)
}
