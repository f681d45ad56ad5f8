//! History in a SQLite file: the embedded default.

use std::{
    fs::{File, TryLockError},
    path::Path,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    Row as _, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

use super::{Query, Row, Store, StoreError};
use crate::{
    call::{CallType, EndReason, Status},
    ids::{CallId, UserId},
    time::Timestamp,
};

/// How long a statement waits for another's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// One writer and a few readers.
const MAX_CONNECTIONS: u32 = 4;

/// Rows in a SQLite file.
#[derive(Debug, Clone)]
pub struct Sqlite {
    pool: SqlitePool,
    /// Held while the file is in use.
    _lock: Arc<File>,
}

impl Sqlite {
    /// Opens the file that `url` (`sqlite://path`) names, made if it is not there, and brings its
    /// schema up to date.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)?;
        let path = options.get_filename().to_owned();
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT);
        let pool =
            SqlitePoolOptions::new().max_connections(MAX_CONNECTIONS).connect_with(options).await?;
        let lock = lock(&path)?;
        sqlx::migrate!("migrations/sqlite").run(&pool).await.map_err(sqlx::Error::from)?;
        Ok(Self { pool, _lock: Arc::new(lock) })
    }

    /// Closes the file after what is under way.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for row in rows {
            sqlx::query(include_str!("sqlite/upsert.sql"))
                .bind(row.id.to_string())
                .bind(row.caller.as_str())
                .bind(row.receiver.as_str())
                .bind(row.call_type.as_str())
                .bind(row.status.as_str())
                .bind(row.end_reason.map(EndReason::as_str))
                .bind(row.duration_s.map(number))
                .bind(row.started_at.map(millis))
                .bind(row.ended_at.map(millis))
                .bind(millis(row.created_at))
                .bind(millis(row.updated_at))
                .bind(number(row.version))
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError> {
        let rows = sqlx::query(include_str!("sqlite/list.sql"))
            .bind(query.user.as_str())
            .bind(query.with.as_ref().map(UserId::as_str))
            .bind(query.status.map(Status::as_str))
            .bind(query.call_type.map(CallType::as_str))
            .bind(query.since.map_or(0, millis))
            .bind(query.until.map_or(i64::MAX, millis))
            .bind(query.after.map_or(i64::MAX, |place| millis(place.created_at)))
            .bind(query.after.map(|place| place.id.to_string()))
            .bind(query.limit)
            .fetch_all(&self.pool)
            .await?;
        read_all(&rows)
    }

    async fn get(&self, id: CallId, user: &UserId) -> Result<Option<Row>, StoreError> {
        let row = sqlx::query("SELECT * FROM calls WHERE id = ?1 AND ?2 IN (caller, receiver)")
            .bind(id.to_string())
            .bind(user.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.as_ref().map(read).transpose()?)
    }

    async fn open(&self, limit: u32) -> Result<Vec<Row>, StoreError> {
        let rows = sqlx::query("SELECT * FROM calls WHERE ended_at IS NULL LIMIT ?1")
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        read_all(&rows)
    }
}

/// Makes sure that no other process of ours uses the file: it would take the live calls of this one
/// for left behind. Others may still read it; the lock is not one of SQLite's.
fn lock(path: &Path) -> Result<File, sqlx::Error> {
    let file = File::open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let in_use = "another switchboard uses this file";
            Err(sqlx::Error::Configuration(in_use.into()))
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn read_all(rows: &[SqliteRow]) -> Result<Vec<Row>, StoreError> {
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

fn read(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    Ok(Row {
        id: parse(row, "id")?,
        caller: parse(row, "caller")?,
        receiver: parse(row, "receiver")?,
        call_type: named(row, "call_type", CallType::ALL, CallType::as_str)?
            .ok_or(missing("call_type"))?,
        status: named(row, "status", Status::ALL, Status::as_str)?.ok_or(missing("status"))?,
        end_reason: named(row, "end_reason", EndReason::ALL, EndReason::as_str)?,
        duration_s: optional(row, "duration")?,
        started_at: optional(row, "started_at")?.map(Timestamp::from_millis),
        ended_at: optional(row, "ended_at")?.map(Timestamp::from_millis),
        created_at: Timestamp::from_millis(optional(row, "created_at")?.unwrap_or_default()),
        updated_at: Timestamp::from_millis(optional(row, "updated_at")?.unwrap_or_default()),
        version: optional(row, "version")?.unwrap_or_default(),
    })
}

fn parse<T>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.try_get::<&str, _>(column)?.parse().map_err(|error| sqlx::Error::ColumnDecode {
        index: column.into(),
        source: Box::new(error),
    })
}

/// The value of `all` whose name stands in `column`.
fn named<T: Copy>(
    row: &SqliteRow,
    column: &'static str,
    all: impl IntoIterator<Item = T>,
    name: impl Fn(T) -> &'static str,
) -> Result<Option<T>, sqlx::Error> {
    let Some(text) = row.try_get::<Option<&str>, _>(column)? else {
        return Ok(None);
    };
    all.into_iter().find(|value| name(*value) == text).map(Some).ok_or(missing(column))
}

fn missing(column: &str) -> sqlx::Error {
    let source = format!("{column} holds a value that this version does not know").into();
    sqlx::Error::ColumnDecode { index: column.into(), source }
}

fn optional(row: &SqliteRow, column: &str) -> Result<Option<u64>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(|number| number.try_into().unwrap_or(0)))
}

/// SQLite's integers are signed. What does not fit is far in the future: the largest will do.
fn number(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn millis(time: Timestamp) -> i64 {
    number(time.as_millis())
}
