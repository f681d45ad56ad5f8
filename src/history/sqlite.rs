//! History in a SQLite file: the embedded default.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, TryLockError},
    path::Path,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    QueryBuilder, Row as _, SqlitePool,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tracing::{info, warn};

use super::{
    Migrated, Period, Plan, Query, Row, Stats, Store, StoreError,
    decode::{self, json, millis, number},
    page,
};
use crate::{
    call::{Call, EndReason},
    ids::{CallId, NodeId, UserId},
    time::Timestamp,
};

/// Wait of a statement for the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// One writer and a few readers.
const MAX_CONNECTIONS: u32 = 4;
/// Cache of a connection, in KiB, and pages of 4 KiB in the write-ahead log before a checkpoint: with less of either, each row
/// reads and moves its pages alone.
const CACHE_KIB: &str = "-8000";
const LOG_PAGES: &str = "4000";
/// Bound on the rows deleted by a statement, so that writers do not wait long.
const TIDY_ROWS: i64 = 1_000;
/// At most this part of all rows is removed at a time, so that the effect of a wrong clock or
/// setting is in the log before everything is gone.
const TIDY_SHARE: i64 = 4;
/// Longer than a call without an end is left open. See [`super::Keeper`].
const BEATS_KEPT: Duration = Duration::from_hours(30 * 24);

/// Numbers of rows per statement. Each number is a prepared statement of its own, so there are few.
const CHUNK_ROWS: [usize; 4] = [64, 16, 4, 1];

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Rows in a SQLite file.
#[derive(Debug, Clone)]
pub struct Sqlite {
    pool: SqlitePool,
    /// Locked while the file is in use.
    _lock: Arc<File>,
}

impl Sqlite {
    /// Opens the file at `url` (`sqlite://path`), creating it if missing, and applies migrations.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self::migrate(url).await?.0)
    }

    /// The same, with the migrations that this took.
    pub async fn migrate(url: &str) -> Result<(Self, Migrated), StoreError> {
        let options = SqliteConnectOptions::from_str(url)?;
        let path = options.get_filename().to_owned();
        make(&path)?;
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .pragma("cache_size", CACHE_KIB)
            .pragma("wal_autocheckpoint", LOG_PAGES)
            // Otherwise each statement would create a journal file.
            .pragma("temp_store", "MEMORY")
            .busy_timeout(BUSY_TIMEOUT);
        let pool =
            SqlitePoolOptions::new().max_connections(MAX_CONNECTIONS).connect_with(options).await?;
        let lock = lock(&path)?;
        let before = schema_versions(&pool).await?;
        MIGRATIONS.run(&pool).await.map_err(sqlx::Error::from)?;
        let migrated = Migrated::new(before, &schema_versions(&pool).await?);
        Ok((Self { pool, _lock: Arc::new(lock) }, migrated))
    }

    /// What [`Sqlite::migrate`] would do to the file at `url`. Changes nothing, and a node may use the file meanwhile.
    pub async fn plan(url: &str) -> Result<Plan, StoreError> {
        let options = SqliteConnectOptions::from_str(url)?;
        let path = options.get_filename().to_owned();
        if !path.exists() {
            return Ok(Plan::new(&MIGRATIONS, &HashSet::new(), Vec::new()));
        }
        // To read a file that nobody has open, SQLite would create its write-ahead log beside it. Without a log the
        // file itself is complete.
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let is_closed = !Path::new(&log).exists();
        let options = options.read_only(true).immutable(is_closed).busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let applied = schema_versions(&pool).await;
        pool.close().await;
        Ok(Plan::new(&MIGRATIONS, &applied?, Vec::new()))
    }

    /// The calls that the process before this one held live, each with when it was last known to live. Without
    /// those whose record this version cannot read.
    pub async fn left_live(&self) -> Result<Vec<(Call, Timestamp)>, StoreError> {
        let beats = self.beats().await?;
        let rows = sqlx::query("SELECT record FROM live_calls").fetch_all(&self.pool).await?;
        let left = rows.iter().map(|row| decode::left_live(row, &beats));
        Ok(left.filter_map(Result::transpose).collect::<Result<_, _>>()?)
    }
}

/// The versions of the migrations that were applied to this file.
async fn schema_versions(pool: &SqlitePool) -> Result<HashSet<i64>, StoreError> {
    let table = "SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'";
    if sqlx::query_scalar::<_, i64>(table).fetch_one(pool).await? == 0 {
        return Ok(HashSet::new());
    }
    let versions = "SELECT version FROM _sqlx_migrations WHERE success";
    Ok(sqlx::query_scalar(versions).fetch_all(pool).await?.into_iter().collect())
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
        let live = rows.iter().filter_map(|row| row.record.as_deref());
        let live: Vec<String> = live.map(|call| json(&(call.id, json(call)))).collect();
        if !live.is_empty() {
            let keep = sqlx::query(include_str!("sqlite/keep_live.sql"));
            keep.bind(format!("[{}]", live.join(","))).execute(&mut *transaction).await?;
        }
        let over = rows.iter().filter(|row| row.ended_at.is_some());
        let over: Vec<CallId> = over.map(|row| row.id).collect();
        if !over.is_empty() {
            let sql = "DELETE FROM live_calls WHERE id IN (SELECT value FROM json_each(?1))";
            sqlx::query(sql).bind(json(&over)).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError> {
        let rows = page::SQLITE.page(query).fetch_all(&self.pool).await?;
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

    async fn beat(&self, node: NodeId, at: Timestamp) -> Result<(), StoreError> {
        // Where there is none, nothing is written.
        let sql = "INSERT INTO heartbeats (node, alive_at) \
                   SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM calls WHERE ended_at IS NULL) \
                   ON CONFLICT (node) DO UPDATE SET alive_at = excluded.alive_at";
        sqlx::query(sql).bind(node.to_string()).bind(millis(at)).execute(&self.pool).await?;
        Ok(())
    }

    async fn beats(&self) -> Result<HashMap<NodeId, Timestamp>, StoreError> {
        let beats = sqlx::query("SELECT node, alive_at FROM heartbeats").fetch_all(&self.pool);
        Ok(beats.await?.iter().map(decode::beat).collect::<Result<_, _>>()?)
    }

    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    async fn tidy(&self, now: Timestamp, keep_from: Option<Timestamp>) -> Result<(), StoreError> {
        let forget = sqlx::query("DELETE FROM heartbeats WHERE alive_at < ?1");
        forget.bind(millis(now - BEATS_KEPT)).execute(&self.pool).await?;
        let Some(keep_from) = keep_from else { return Ok(()) };
        let sql =
            "SELECT count(*) AS total, count(*) FILTER (WHERE created_at < ?1) AS old FROM calls";
        let counted = sqlx::query(sql).bind(millis(keep_from)).fetch_one(&self.pool).await?;
        let (total, old): (i64, i64) = (counted.try_get("total")?, counted.try_get("old")?);
        if old == 0 {
            return Ok(());
        }
        let mut left = old.min((total / TIDY_SHARE).max(1));
        let made_before = keep_from.as_millis();
        info!(
            made_before,
            removed = left,
            of = total,
            "calls that were kept long enough are removed"
        );
        if left < old {
            warn!(old, removed = left, of = total, "only a part of the old calls is removed now");
        }
        let sql = "DELETE FROM calls WHERE id IN \
                   (SELECT id FROM calls WHERE created_at < ?1 ORDER BY created_at LIMIT ?2)";
        while left > 0 {
            let delete = sqlx::query(sql).bind(millis(keep_from)).bind(left.min(TIDY_ROWS));
            if delete.execute(&self.pool).await?.rows_affected() == 0 {
                break;
            }
            left -= TIDY_ROWS;
        }
        Ok(())
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// A statement that writes all these rows.
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

/// Ensures that no other node uses the file: it would close this node's live calls as orphans. Other programs may read
/// the file; the lock is independent of SQLite's.
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
