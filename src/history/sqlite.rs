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
    QueryBuilder, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Period, Query, Row, Stats, Store, StoreError,
    decode::{self, millis, number},
};
use crate::{
    call::{CallType, EndReason, Status},
    ids::{CallId, UserId},
    time::Timestamp,
};

/// How long a statement waits for another's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// One writer and a few readers.
const MAX_CONNECTIONS: u32 = 4;
/// How much of the file a connection keeps in memory, in KiB, and how many pages of 4 KiB gather in the
/// log beside it before they are moved: with little of either, each row moves and reads its pages alone.
const CACHE_KIB: &str = "-8000";
const LOG_PAGES: &str = "4000";
/// Most rows that are removed in one statement, so that writers wait for none for long.
const TIDY_ROWS: u32 = 1_000;

/// How many rows a statement writes. Each number is a statement of its own, which stays prepared: so
/// there are few.
const CHUNK_ROWS: [usize; 4] = [64, 16, 4, 1];

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
        make(&path)?;
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .pragma("cache_size", CACHE_KIB)
            .pragma("wal_autocheckpoint", LOG_PAGES)
            // What undoes a statement would be a file of its own, each time.
            .pragma("temp_store", "MEMORY")
            .busy_timeout(BUSY_TIMEOUT);
        let pool =
            SqlitePoolOptions::new().max_connections(MAX_CONNECTIONS).connect_with(options).await?;
        let lock = lock(&path)?;
        sqlx::migrate!("migrations/sqlite").run(&pool).await.map_err(sqlx::Error::from)?;
        Ok(Self { pool, _lock: Arc::new(lock) })
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut rest = rows;
        for size in CHUNK_ROWS {
            while let Some((some, others)) = rest.split_at_checked(size) {
                upsert(some).build().execute(&mut *transaction).await?;
                rest = others;
            }
        }
        Ok(transaction.commit().await?)
    }

    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError> {
        let sql = match query.with {
            None => include_str!("sqlite/list.sql"),
            Some(_) => include_str!("sqlite/list_between.sql"),
        };
        let (at, id) = match query.after {
            Some(place) => (millis(place.created_at), place.id.to_string()),
            None => (i64::MAX, String::new()),
        };
        let mut list = sqlx::query(sql)
            .bind(query.user.as_str())
            .bind(query.status.map(Status::as_str))
            .bind(query.call_type.map(CallType::as_str))
            .bind(query.since.map_or(0, millis))
            .bind(query.until.map_or(i64::MAX, millis))
            .bind(at)
            .bind(id)
            .bind(query.limit);
        if let Some(with) = &query.with {
            list = list.bind(with.as_str());
        }
        let rows = list.fetch_all(&self.pool).await?;
        Ok(rows.iter().map(decode::listed).collect::<Result<_, _>>()?)
    }

    async fn get(&self, id: CallId, user: &UserId) -> Result<Option<Row>, StoreError> {
        let row = sqlx::query("SELECT * FROM calls WHERE id = ?1 AND ?2 IN (caller, receiver)")
            .bind(id.to_string())
            .bind(user.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.as_ref().map(decode::whole).transpose()?)
    }

    async fn open(&self, made_before: Timestamp, limit: u32) -> Result<Vec<Row>, StoreError> {
        let sql = "SELECT * FROM calls WHERE ended_at IS NULL AND created_at < ?1 \
                   ORDER BY created_at LIMIT ?2";
        let rows =
            sqlx::query(sql).bind(millis(made_before)).bind(limit).fetch_all(&self.pool).await?;
        Ok(rows.iter().map(decode::whole).collect::<Result<_, _>>()?)
    }

    async fn stats(&self, period: &Period) -> Result<Stats, StoreError> {
        let ask = async |sql, bucket_ms: i64| {
            sqlx::query(sql)
                .bind(millis(period.since))
                .bind(millis(period.until))
                .bind(bucket_ms)
                .fetch_all(&self.pool)
                .await
        };
        let counts = ask(include_str!("sqlite/counts.sql"), period.bucket_ms()).await?;
        let percentiles = include_str!("sqlite/percentiles.sql");
        let each = ask(percentiles, period.bucket_ms()).await?;
        let whole = ask(percentiles, Period::in_one()).await?;
        Ok(decode::stats(&counts, &each, &whole)?)
    }

    async fn tidy(&self, _: Timestamp, keep_from: Option<Timestamp>) -> Result<(), StoreError> {
        let Some(keep_from) = keep_from else { return Ok(()) };
        let sql = "DELETE FROM calls WHERE id IN \
                   (SELECT id FROM calls WHERE created_at < ?1 LIMIT ?2)";
        loop {
            let deleted = sqlx::query(sql)
                .bind(millis(keep_from))
                .bind(TIDY_ROWS)
                .execute(&self.pool)
                .await?;
            if deleted.rows_affected() < u64::from(TIDY_ROWS) {
                return Ok(());
            }
        }
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// One statement that writes all these rows.
fn upsert(rows: &[Row]) -> QueryBuilder<sqlx::Sqlite> {
    let mut statement = QueryBuilder::new(include_str!("sqlite/insert.sql"));
    statement.push_values(rows, |mut values, row| {
        values
            .push_bind(row.id.to_string())
            .push_bind(row.caller.as_str().to_owned())
            .push_bind(row.receiver.as_str().to_owned())
            .push_bind(row.call_type.as_str())
            .push_bind(row.status.as_str())
            .push_bind(row.end_reason.map(EndReason::as_str))
            .push_bind(row.duration_s.map(number))
            .push_bind(row.started_at.map(millis))
            .push_bind(row.ended_at.map(millis))
            .push_bind(millis(row.created_at))
            .push_bind(millis(row.updated_at))
            .push_bind(number(row.version))
            .push_bind(decode::timeline(row));
    });
    statement.push("\n").push(include_str!("sqlite/on_conflict.sql"));
    statement
}

/// Makes the file if it is not there, or says why it cannot be written: SQLite does not.
fn make(path: &Path) -> Result<(), sqlx::Error> {
    let tried = File::options().read(true).append(true).create(true).open(path);
    let Err(error) = tried else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let what = match (path.exists(), folder.is_dir()) {
        (true, _) => format!("the file {} cannot be written", path.display()),
        (false, true) => format!("the folder {} cannot be written", folder.display()),
        (false, false) => format!("there is no folder {}", folder.display()),
    };
    Err(sqlx::Error::Configuration(format!("{what}: {error}").into()))
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
