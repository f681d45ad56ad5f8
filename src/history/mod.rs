//! What happened: one row a call, written behind the signaling, read over HTTP.

mod recorder;
mod sqlite;

use async_trait::async_trait;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

pub use recorder::{Recorder, Writer, close_orphans, recorder};
pub use sqlite::Sqlite;

use crate::{
    call::{Call, CallType, EndReason, Status},
    ids::{CallId, UserId},
    time::Timestamp,
};

/// Where rows are kept.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes rows, all or none. Of two rows of one call the one with the higher version stays,
    /// in whatever order they come.
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError>;

    /// A page of calls, newest first.
    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError>;

    /// The call with this id, if `user` is a party of it.
    async fn get(&self, id: CallId, user: &UserId) -> Result<Option<Row>, StoreError>;

    /// Up to `limit` rows of calls that have not ended.
    async fn open(&self, limit: u32) -> Result<Vec<Row>, StoreError>;
}

/// A store that cannot be opened, reached, or understood. Displays as one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{}", plain(.0))]
pub struct StoreError(sqlx::Error);

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

/// What the database itself says, without the layers around it that say it again.
fn plain(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Configuration(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// One call, as history tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
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
        }
    }
}

impl Row {
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
