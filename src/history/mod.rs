//! What happened: one row a call, written behind the signaling, read over HTTP.

mod backlog;
mod decode;
mod keeper;
mod measured;
mod postgres;
mod recorder;
mod sqlite;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

pub use backlog::{Backlog, MAX_BACKLOG_ROWS, Refused};
pub use keeper::{Keeper, close_orphans};
pub use measured::Measured;
pub use postgres::{OpenError, Postgres};
pub use recorder::{Recorder, Writer, recorder};
pub use sqlite::Sqlite;

use crate::{
    call::{Call, CallType, EndReason, Status, Step},
    ids::{CallId, NodeId, UserId},
    time::Timestamp,
};

/// Where rows are kept.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes rows, all or none. Of two rows of one call the one with the higher version stays,
    /// in whatever order they come; of one version, one that has ended takes the place of one that
    /// has not.
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError>;

    /// A page of calls, newest first.
    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError>;

    /// The call with this id, with its timeline, if `user` is a party of it.
    async fn get(&self, id: CallId, user: &UserId) -> Result<Option<Row>, StoreError>;

    /// Up to `limit` rows, with their timelines, of calls made before this time that have not ended.
    async fn open(&self, made_before: Timestamp, limit: u32) -> Result<Vec<Row>, StoreError>;

    /// How many calls there were, and how they went, over the whole period and in each of its
    /// buckets that has any.
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

    /// Closes it after what is under way.
    async fn close(&self);
}

/// The classes of Postgres' errors that are no answer to what was asked: the connection is lost (08), others
/// are in the way (40, 55), there is no room (53), it starts or stops or gave up (57), the system or Postgres
/// itself fails (58, XX).
const TROUBLES: [&str; 7] = ["08", "40", "53", "55", "57", "58", "XX"];

/// A store that cannot be opened, reached, or understood. Displays as one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{}", plain(.0))]
pub struct StoreError(sqlx::Error);

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl StoreError {
    /// Whether the database was not there or in trouble of its own, which waiting may mend.
    fn is_away(&self) -> bool {
        match &self.0 {
            // Who is not there may come; a certificate that is not trusted stays so.
            sqlx::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
            // One that dies while it is asked breaks off in the middle of a word.
            sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
            sqlx::Error::Database(error) => error
                .code()
                .is_some_and(|code| TROUBLES.iter().any(|class| code.starts_with(class))),
            _ => false,
        }
    }

    /// Whether the database was there and did not take the rows: they will not do later either.
    fn is_refusal(&self) -> bool {
        let sqlx::Error::Database(error) = &self.0 else { return false };
        (error.is_check_violation() && !is_without_partition(&self.0))
            || error.is_unique_violation()
            // Class 22, data exceptions, of the SQL standard.
            || error.code().is_some_and(|code| code.len() == 5 && code.starts_with("22"))
    }
}

/// Whether Postgres has no partition for a row. It says so as if a check had failed, but names none.
fn is_without_partition(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().is_some_and(|code| code == "23514") && error.constraint().is_none()
}

/// What the database itself says, without the layers around it that say it again.
fn plain(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Configuration(error) => error.to_string(),
        sqlx::Error::PoolTimedOut => "it does not answer".to_owned(),
        other => other.to_string(),
    }
}

/// One call, as history tells it.
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
    /// Whole seconds from the answer to the end; null if it was never answered or goes on.
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

/// How some calls went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    pub counts: Vec<Count>,
    /// Of the answered calls: milliseconds from the attempt to the answer.
    pub ring_ms: Option<Percentiles>,
    /// Of the answered calls that have ended.
    pub duration_s: Option<Percentiles>,
}

/// So many calls were alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    pub call_type: CallType,
    pub status: Status,
    pub end_reason: Option<EndReason>,
    pub calls: u64,
}

/// Of values in order, the first at or past this share of them.
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

/// The fixed name of a value, as the wire and the database have it.
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
