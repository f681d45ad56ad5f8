//! History in Postgres, for all nodes together.

use std::{
    collections::{HashMap, HashSet},
    io,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    PgPool,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};
use tracing::{info, warn};

use super::{
    Period, Query, Row, Stats, Store, StoreError,
    decode::{self, millis, number},
};
use crate::{
    call::{CallType, EndReason, Status},
    ids::{CallId, UserId},
    time::Timestamp,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// One for the writer and some for readers.
const MAX_CONNECTIONS: u32 = 8;
/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a page, a call or the writing of a batch may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to count many calls, or to drop old ones.
const LONG_TIMEOUT: Duration = Duration::from_mins(1);
/// How long `migrate` waits for a database that is just starting.
const MIGRATE_WAIT: Duration = Duration::from_secs(30);
const MIGRATE_RETRY: Duration = Duration::from_millis(500);
/// For how many months ahead there are partitions.
const MONTHS_AHEAD: i32 = 2;
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Rows in Postgres, in a partition a month.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    /// The days whose partition is known to be there.
    days: Mutex<HashSet<i64>>,
}

/// Why the database cannot be used. Displays as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("it is not reachable: {0}")]
    Unreachable(StoreError),
    #[error("{0}")]
    Refused(StoreError),
    #[error("its schema is behind this version: run `switchboard migrate`")]
    Behind,
    #[error("its schema cannot be brought up to date: {0}")]
    Migration(String),
}

impl Postgres {
    /// Takes the database that `url` names into use. One that is not reachable is used as soon as
    /// it is: until then rows wait and readers get an error.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let postgres = Self::at(url)?;
        match postgres.check().await {
            Err(OpenError::Unreachable(error)) => {
                warn!(%error, "the database is not reachable: history waits, and calls go on");
            }
            checked => checked?,
        }
        Ok(postgres)
    }

    /// Brings the schema up to date. Nodes that do so at the same time wait for each other.
    pub async fn migrate(url: &str) -> Result<(), OpenError> {
        let postgres = Self::at(url)?;
        let waiting = tokio::time::Instant::now();
        loop {
            match MIGRATIONS.run(&postgres.pool).await {
                Ok(()) => break,
                Err(MigrateError::Execute(error)) => match refusal(error) {
                    OpenError::Unreachable(_) if waiting.elapsed() < MIGRATE_WAIT => {
                        tokio::time::sleep(MIGRATE_RETRY).await;
                    }
                    error => return Err(error),
                },
                // A later version has been here: its migrations stay as they are.
                Err(MigrateError::VersionMissing(_)) => break,
                Err(error) => return Err(OpenError::Migration(error.to_string())),
            }
        }
        info!("the schema of the history is up to date");
        postgres.pool.close().await;
        Ok(())
    }

    fn at(url: &str) -> Result<Self, OpenError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| OpenError::Refused(error.into()))?
            .application_name("switchboard");
        let pool = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(options);
        Ok(Self { pool, days: Mutex::default() })
    }

    /// Compares the schema with the one that this version is made for.
    async fn check(&self) -> Result<(), OpenError> {
        let applied: Result<Vec<(i64,)>, _> =
            sqlx::query_as("SELECT version FROM _sqlx_migrations WHERE success")
                .fetch_all(&self.pool)
                .await;
        let applied: HashSet<i64> = match applied {
            Ok(applied) => applied.into_iter().map(|(version,)| version).collect(),
            Err(error) if has_code(&error, UNDEFINED_TABLE) => HashSet::new(),
            Err(error) => return Err(refusal(error)),
        };
        let known: HashSet<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        if !known.is_subset(&applied) {
            return Err(OpenError::Behind);
        }
        if !applied.is_subset(&known) {
            warn!("the schema of the history is ahead of this version: a later one has been here");
        }
        Ok(())
    }

    /// Makes sure that there is a partition for each of these times.
    async fn make_partitions(
        &self,
        times_ms: impl Iterator<Item = i64>,
    ) -> Result<(), sqlx::Error> {
        let days: HashSet<i64> = times_ms.map(|ms| ms / DAY_MS).collect();
        let missing: Vec<i64> = {
            let known = self.days.lock().unwrap_or_else(PoisonError::into_inner);
            days.difference(&known).copied().collect()
        };
        for day in missing {
            sqlx::query("SELECT calls_make_partition(calls_from_ms($1))")
                .bind(day * DAY_MS)
                .execute(&self.pool)
                .await?;
            self.days.lock().unwrap_or_else(PoisonError::into_inner).insert(day);
        }
        Ok(())
    }

    async fn insert(&self, rows: &[&Row]) -> Result<(), sqlx::Error> {
        self.make_partitions(rows.iter().map(|row| millis(row.created_at))).await?;
        let texts = |of: fn(&Row) -> String| rows.iter().map(|row| of(row)).collect::<Vec<_>>();
        let numbers =
            |of: fn(&Row) -> Option<i64>| rows.iter().map(|row| of(row)).collect::<Vec<_>>();
        let reasons: Vec<Option<&str>> =
            rows.iter().map(|row| row.end_reason.map(EndReason::as_str)).collect();
        sqlx::query(include_str!("postgres/save.sql"))
            .bind(texts(|row| row.id.to_string()))
            .bind(texts(|row| row.caller.as_str().to_owned()))
            .bind(texts(|row| row.receiver.as_str().to_owned()))
            .bind(texts(|row| row.call_type.as_str().to_owned()))
            .bind(texts(|row| row.status.as_str().to_owned()))
            .bind(reasons)
            .bind(numbers(|row| row.duration_s.map(number)))
            .bind(numbers(|row| row.started_at.map(millis)))
            .bind(numbers(|row| row.ended_at.map(millis)))
            .bind(numbers(|row| Some(millis(row.created_at))))
            .bind(numbers(|row| Some(millis(row.updated_at))))
            .bind(numbers(|row| Some(number(row.version))))
            .bind(texts(decode::timeline))
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

#[async_trait]
impl Store for Postgres {
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError> {
        // One statement cannot write a row twice.
        let mut newest: HashMap<CallId, &Row> = HashMap::with_capacity(rows.len());
        for row in rows {
            let known = newest.entry(row.id).or_insert(row);
            if (row.version, row.ended_at.is_some()) > (known.version, known.ended_at.is_some()) {
                *known = row;
            }
        }
        let rows: Vec<&Row> = newest.into_values().collect();
        within(STATEMENT_TIMEOUT, async {
            match self.insert(&rows).await {
                // A partition that was there has been dropped or detached since.
                Err(error) if has_code(&error, CHECK_VIOLATION) => {
                    self.days.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    self.insert(&rows).await
                }
                inserted => inserted,
            }
        })
        .await
    }

    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError> {
        let sql = match query.with {
            None => include_str!("postgres/list.sql"),
            Some(_) => include_str!("postgres/list_between.sql"),
        };
        let latest = Timestamp::from_millis(u64::MAX);
        let (at, id) = match query.after {
            Some(place) => (place.created_at, place.id.to_string()),
            None => (latest, uuid::Uuid::max().to_string()),
        };
        let mut list = sqlx::query(sql)
            .bind(query.user.as_str())
            .bind(query.status.map(Status::as_str))
            .bind(query.call_type.map(CallType::as_str))
            .bind(query.since.map_or(0, millis))
            .bind(millis(query.until.unwrap_or(latest)))
            .bind(millis(at))
            .bind(id)
            .bind(i64::from(query.limit));
        if let Some(with) = &query.with {
            list = list.bind(with.as_str());
        }
        let rows = within(STATEMENT_TIMEOUT, list.fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(decode::listed).collect::<Result<_, _>>()?)
    }

    async fn get(&self, id: CallId, user: &UserId) -> Result<Option<Row>, StoreError> {
        // The id tells about when the call was made, and so in which partition it is.
        let (from, to) = match id.made_at().map(millis) {
            Some(made) => (made - DAY_MS, made + DAY_MS),
            None => (0, millis(Timestamp::from_millis(u64::MAX))),
        };
        let get = sqlx::query(include_str!("postgres/get.sql"))
            .bind(id.to_string())
            .bind(user.as_str())
            .bind(from)
            .bind(to)
            .fetch_optional(&self.pool);
        let row = within(STATEMENT_TIMEOUT, get).await?;
        Ok(row.as_ref().map(decode::whole).transpose()?)
    }

    async fn open(&self, made_before: Timestamp, limit: u32) -> Result<Vec<Row>, StoreError> {
        let open = sqlx::query(include_str!("postgres/open.sql"))
            .bind(millis(made_before))
            .bind(i64::from(limit))
            .fetch_all(&self.pool);
        let rows = within(LONG_TIMEOUT, open).await?;
        Ok(rows.iter().map(decode::whole).collect::<Result<_, _>>()?)
    }

    async fn stats(&self, period: &Period) -> Result<Stats, StoreError> {
        let ask = async |sql, bucket_ms: i64| -> Result<Vec<PgRow>, sqlx::Error> {
            sqlx::query(sql)
                .bind(millis(period.since))
                .bind(millis(period.until))
                .bind(bucket_ms)
                .fetch_all(&self.pool)
                .await
        };
        let percentiles = include_str!("postgres/percentiles.sql");
        let (counts, each, whole) = within(LONG_TIMEOUT, async {
            let counts = ask(include_str!("postgres/counts.sql"), period.bucket_ms()).await?;
            let each = ask(percentiles, period.bucket_ms()).await?;
            Ok((counts, each, ask(percentiles, Period::in_one()).await?))
        })
        .await?;
        Ok(decode::stats(&counts, &each, &whole)?)
    }

    async fn tidy(&self, now: Timestamp, keep_from: Option<Timestamp>) -> Result<(), StoreError> {
        within(LONG_TIMEOUT, async {
            sqlx::query(include_str!("postgres/make_ahead.sql"))
                .bind(millis(now))
                .bind(MONTHS_AHEAD)
                .execute(&self.pool)
                .await?;
            let Some(keep_from) = keep_from else { return Ok(()) };
            let dropped: Vec<(String,)> =
                sqlx::query_as("SELECT calls_drop_partitions(calls_from_ms($1))")
                    .bind(millis(keep_from))
                    .fetch_all(&self.pool)
                    .await?;
            for (partition,) in dropped {
                info!(partition, "calls that were kept long enough are dropped");
            }
            Ok(())
        })
        .await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// A database that hangs is as good as away.
async fn within<T>(
    time: Duration,
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    let answered = tokio::time::timeout(time, asked).await;
    Ok(answered.map_err(|_| sqlx::Error::PoolTimedOut)??)
}

const UNDEFINED_TABLE: &str = "42P01";
const CHECK_VIOLATION: &str = "23514";

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().is_some_and(|found| found == code)
}

/// Tells what waiting can mend from what it cannot.
fn refusal(error: sqlx::Error) -> OpenError {
    let is_away = match &error {
        // Who is not there may come; a certificate that is not trusted stays so.
        sqlx::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
        sqlx::Error::PoolTimedOut => true,
        // It starts or stops, or has no connection to spare.
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("53"))
        }
        _ => false,
    };
    let error = StoreError::from(error);
    if is_away { OpenError::Unreachable(error) } else { OpenError::Refused(error) }
}
