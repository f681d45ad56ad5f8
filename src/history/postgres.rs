//! The history of all nodes in Postgres.

mod connections;
mod owner;

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
    time::Duration,
};

use async_trait::async_trait;
use connections::Connections;
use owner::Owner;
use parking_lot::Mutex;
use sqlx::{
    Row as _,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgRow},
};
use tracing::{info, warn};

use super::{
    Migrated, Partition, Period, Plan, Query, Row, Stats, Store, StoreError,
    decode::{self, millis, number},
    is_without_partition, page,
};
use crate::{
    call::{Call, EndReason},
    ids::{CallId, NodeId, UserId},
    time::Timestamp,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// One for the writer and one for maintenance: readers never block them.
const WRITER_CONNECTIONS: u32 = 2;
const READER_CONNECTIONS: u32 = 6;
/// Time-out of a page, a call or a batch.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time-out of each of the three counting statements.
const COUNT_TIMEOUT: Duration = Duration::from_secs(20);
/// Time-out of maintenance.
const KEEPER_TIMEOUT: Duration = Duration::from_mins(1);
/// Time for which `migrate` waits for a database that is starting.
const MIGRATE_WAIT: Duration = Duration::from_secs(30);
const MIGRATE_RETRY: Duration = Duration::from_millis(500);
/// Months for which partitions are created ahead.
const MONTHS_AHEAD: i32 = 2;
/// Longer than a call without an end is left open. See [`super::Keeper`].
const BEATS_KEPT: Duration = Duration::from_hours(30 * 24);
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Rows in Postgres, in monthly partitions.
#[derive(Debug)]
pub struct Postgres {
    readers: Connections,
    /// For the writer and the keeper.
    writers: Connections,
    /// The right to keep live calls here, for a process that has taken it.
    owner: Owner,
    /// The days whose partition is known to exist.
    days: Mutex<HashSet<i64>>,
}

/// A database as `switchboard doctor` finds it.
#[derive(Debug)]
pub struct Examined {
    pub plan: Plan,
    /// The server's version, in words and as its number (`server_version_num`).
    pub version: (String, i64),
    /// Whether the server only reads.
    pub is_standby: bool,
    /// The server's time of day.
    pub now: Timestamp,
    /// How long a transaction with one statement took.
    pub took: Duration,
}

/// An unusable database. Displays as one sentence.
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
    /// Opens the database at `url`. An unreachable one is used as soon as it is reachable: until then rows wait and readers get
    /// an error.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let postgres = Self::at(url)?;
        match postgres.check().await {
            Err(OpenError::Unreachable(error)) => {
                warn!(%error, "the database is unreachable: rows wait, and calls continue");
            }
            checked => checked?,
        }
        Ok(postgres)
    }

    /// Applies the missing migrations. Processes that do so at the same time wait for each other, and
    /// all of them wait up to 30 s for a database that is not reachable yet.
    pub async fn migrate(url: &str) -> Result<Migrated, OpenError> {
        let postgres = Self::at(url)?;
        let waiting = tokio::time::Instant::now();
        let migrated = loop {
            match postgres.apply_migrations().await {
                Err(OpenError::Unreachable(_)) if waiting.elapsed() < MIGRATE_WAIT => {
                    tokio::time::sleep(MIGRATE_RETRY).await;
                }
                done => break done?,
            }
        };
        postgres.close().await;
        Ok(migrated)
    }

    /// Looks at the database without changing it or waiting until it is reachable. `now` says which months need a
    /// partition.
    pub async fn examine(url: &str, now: Timestamp) -> Result<Examined, OpenError> {
        let postgres = Self::at(url)?;
        let examined = postgres.examined(now).await;
        postgres.close().await;
        examined
    }

    async fn examined(&self, now: Timestamp) -> Result<Examined, OpenError> {
        let applied = self.schema_versions().await?;
        let partitions = if applied.is_empty() {
            Vec::new()
        } else {
            self.missing_partitions(now).await.map_err(refusal)?
        };
        let asked = tokio::time::Instant::now();
        let about = sqlx::query(include_str!("postgres/examine.sql"));
        let about = self.readers.ask(STATEMENT_TIMEOUT, about).await.map_err(refusal)?;
        let took = asked.elapsed();
        let about = about.first().ok_or_else(|| refusal(sqlx::Error::RowNotFound))?;
        let read = || -> Result<Examined, sqlx::Error> {
            Ok(Examined {
                plan: Plan::new(&MIGRATIONS, &applied, partitions),
                version: (about.try_get("version")?, about.try_get("number")?),
                is_standby: about.try_get("is_standby")?,
                now: decode::now(about)?,
                took,
            })
        };
        read().map_err(refusal)
    }

    /// The partitions of this month and the ones ahead that are not there.
    async fn missing_partitions(&self, now: Timestamp) -> Result<Vec<Partition>, sqlx::Error> {
        let missing =
            sqlx::query(include_str!("postgres/missing.sql")).bind(millis(now)).bind(MONTHS_AHEAD);
        let missing = self.readers.ask(STATEMENT_TIMEOUT, missing).await?;
        let partition = |row: &PgRow| {
            Ok(Partition {
                name: row.try_get("name")?,
                is_taken: row.try_get("is_taken")?,
                may_be_made: row.try_get("may_be_made")?,
            })
        };
        missing.iter().map(partition).collect()
    }

    /// Takes the right to keep live calls here, and answers the calls that the process before this one held live,
    /// newest first, each with when it was last known to live. Without those whose record this version cannot read.
    /// None if another process has the right.
    pub async fn take_live(&self) -> Result<Option<Vec<(Call, Timestamp)>>, StoreError> {
        if !self.owner.take().await? {
            return Ok(None);
        }
        let beats = self.beats().await?;
        let left = sqlx::query(include_str!("postgres/left_live.sql"));
        let left = self.writers.ask(KEEPER_TIMEOUT, left).await?;
        let left = left.iter().map(|row| decode::left_live(row, &beats));
        Ok(Some(left.filter_map(Result::transpose).collect::<Result<_, _>>()?))
    }

    /// Keeps the records of live calls, and forgets those of calls that have ended.
    async fn keep_live(&self, rows: &[&Row]) -> Result<(), sqlx::Error> {
        let live = rows.iter().filter_map(|row| row.record.as_deref());
        let (live, records): (Vec<String>, Vec<String>) =
            live.map(|call| (call.id.to_string(), decode::json(call))).unzip();
        let ended = rows.iter().filter(|row| row.ended_at.is_some());
        let ended: Vec<String> = ended.map(|row| row.id.to_string()).collect();
        let keep = sqlx::query(include_str!("postgres/keep_live.sql"));
        self.writers.ask(STATEMENT_TIMEOUT, keep.bind(live).bind(records).bind(ended)).await?;
        Ok(())
    }

    async fn apply_migrations(&self) -> Result<Migrated, OpenError> {
        let before = self.schema_versions().await?;
        match MIGRATIONS.run(self.writers.pool()).await {
            // `VersionMissing`: a later build has migrated this database; its migrations stay.
            Ok(()) | Err(MigrateError::VersionMissing(_)) => {}
            Err(MigrateError::Execute(error)) => return Err(refusal(error)),
            Err(error) => return Err(OpenError::Migration(error.to_string())),
        }
        let after = self.schema_versions().await?;
        Ok(Migrated::new(before, &after))
    }

    fn at(url: &str) -> Result<Self, OpenError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| OpenError::Refused(error.into()))?
            .application_name("switchboard");
        Ok(Self {
            readers: Connections::new(options.clone(), READER_CONNECTIONS),
            writers: Connections::new(options.clone(), WRITER_CONNECTIONS),
            owner: Owner::new(options),
            days: Mutex::default(),
        })
    }

    /// The versions of the migrations that were applied to this database.
    async fn schema_versions(&self) -> Result<HashSet<i64>, OpenError> {
        let applied = sqlx::query("SELECT version FROM _sqlx_migrations WHERE success");
        let applied = match self.readers.ask(STATEMENT_TIMEOUT, applied).await {
            Ok(applied) => applied,
            Err(error) if is_undefined_table(&error) => Vec::new(),
            Err(error) => return Err(refusal(error)),
        };
        let versions: Result<_, _> = applied.iter().map(|row| row.try_get("version")).collect();
        versions.map_err(refusal)
    }

    /// Compares the schema with the one that this build expects.
    async fn check(&self) -> Result<(), OpenError> {
        let applied = self.schema_versions().await?;
        let known: HashSet<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        if !known.is_subset(&applied) {
            return Err(OpenError::Behind);
        }
        if !applied.is_subset(&known) {
            warn!("the schema of the history is newer than this build");
        }
        Ok(())
    }

    /// Creates missing partitions for these times.
    async fn make_partitions(
        &self,
        times_ms: impl Iterator<Item = i64>,
    ) -> Result<(), sqlx::Error> {
        let days: HashSet<i64> = times_ms.map(|ms| ms / DAY_MS).collect();
        let missing: Vec<i64> = {
            let known = self.days.lock();
            days.difference(&known).copied().collect()
        };
        for day in missing {
            let make =
                sqlx::query("SELECT calls_make_partition(calls_from_ms($1))").bind(day * DAY_MS);
            self.writers.ask(STATEMENT_TIMEOUT, make).await?;
            self.days.lock().insert(day);
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
        let save = sqlx::query(include_str!("postgres/save.sql"))
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
            .bind(texts(decode::timeline));
        self.writers.ask(STATEMENT_TIMEOUT, save).await?;
        Ok(())
    }

    async fn make_ahead(&self, now: Timestamp) -> Result<(), sqlx::Error> {
        let make = sqlx::query(include_str!("postgres/make_ahead.sql"))
            .bind(millis(now))
            .bind(MONTHS_AHEAD);
        self.writers.ask(KEEPER_TIMEOUT, make).await?;
        Ok(())
    }

    /// Drops the oldest of the months that were over before `keep_from`. One at a time, so that
    /// readers wait for one only, and the effect of a wrong clock or setting is in the log before
    /// everything is gone.
    async fn drop_before(&self, keep_from: Timestamp) -> Result<(), sqlx::Error> {
        let oldest = sqlx::query(include_str!("postgres/oldest.sql")).bind(millis(keep_from));
        let oldest = self.writers.ask(KEEPER_TIMEOUT, oldest).await?;
        let Some(oldest) = oldest.first() else { return Ok(()) };
        let (partition, rows): (&str, i64) = (oldest.try_get("name")?, oldest.try_get("calls")?);
        let (old, of): (i64, i64) = (oldest.try_get("old")?, oldest.try_get("partitions")?);
        let made_before = keep_from.as_millis();
        info!(partition, rows, made_before, of, "a month beyond the retention is dropped");
        if old > 1 {
            warn!(
                old,
                of, "only the oldest of the months that were kept long enough is dropped now"
            );
        }
        let end_ms: i64 = oldest.try_get("end_ms")?;
        let sql = "SELECT calls_drop_partition(calls_from_ms($1)) AS dropped";
        self.writers.ask(KEEPER_TIMEOUT, sqlx::query(sql).bind(end_ms)).await?;
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
        let inserted = match self.insert(&rows).await {
            // The partition was dropped or detached meanwhile.
            Err(error) if is_without_partition(&error) => {
                self.days.lock().clear();
                self.insert(&rows).await
            }
            inserted => inserted,
        };
        inserted?;
        if self.owner.is_owner() {
            self.keep_live(&rows).await?;
        }
        Ok(())
    }

    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError> {
        let rows = self.readers.ask(STATEMENT_TIMEOUT, page::POSTGRES.page(query)).await?;
        Ok(rows.iter().map(decode::listed).collect::<Result<_, _>>()?)
    }

    async fn get(&self, id: CallId, user: &UserId) -> Result<Option<Row>, StoreError> {
        // The id contains the creation time, and so determines the partition.
        let (from, to) = match id.made_at().map(millis) {
            Some(made) => (made - DAY_MS, made + DAY_MS),
            None => (0, millis(Timestamp::from_millis(u64::MAX))),
        };
        let get = sqlx::query(include_str!("postgres/get.sql"))
            .bind(id.to_string())
            .bind(user.as_str())
            .bind(from)
            .bind(to);
        let rows = self.readers.ask(STATEMENT_TIMEOUT, get).await?;
        Ok(rows.first().map(decode::whole).transpose()?)
    }

    async fn open(&self, made_before: Timestamp, limit: u32) -> Result<Vec<Row>, StoreError> {
        let open = sqlx::query(include_str!("postgres/open.sql"))
            .bind(millis(made_before))
            .bind(i64::from(limit));
        let rows = self.writers.ask(KEEPER_TIMEOUT, open).await?;
        Ok(rows.iter().map(decode::whole).collect::<Result<_, _>>()?)
    }

    async fn stats(&self, period: &Period) -> Result<Stats, StoreError> {
        let ask = async |sql, bucket_ms: i64| -> Result<Vec<PgRow>, sqlx::Error> {
            let count = sqlx::query(sql)
                .bind(millis(period.since))
                .bind(millis(period.until))
                .bind(bucket_ms);
            self.readers.ask(COUNT_TIMEOUT, count).await
        };
        let counts = ask(include_str!("postgres/counts.sql"), period.bucket_ms()).await?;
        let percentiles = include_str!("postgres/percentiles.sql");
        let each = ask(percentiles, period.bucket_ms()).await?;
        let whole = ask(percentiles, Period::in_one()).await?;
        Ok(decode::stats(&counts, &each, &whole)?)
    }

    async fn beat(&self, node: NodeId, at: Timestamp) -> Result<(), StoreError> {
        self.owner.keep().await;
        let sql = "INSERT INTO calls_heartbeats (node, alive_at) VALUES ($1::uuid, calls_from_ms($2)) \
                   ON CONFLICT (node) DO UPDATE SET alive_at = excluded.alive_at";
        let beat = sqlx::query(sql).bind(node.to_string()).bind(millis(at));
        self.writers.ask(STATEMENT_TIMEOUT, beat).await?;
        Ok(())
    }

    async fn beats(&self) -> Result<HashMap<NodeId, Timestamp>, StoreError> {
        let sql = "SELECT replace(node::text, '-', '') AS node, calls_to_ms(alive_at) AS alive_at \
                   FROM calls_heartbeats";
        let beats = self.writers.ask(STATEMENT_TIMEOUT, sqlx::query(sql)).await?;
        Ok(beats.iter().map(decode::beat).collect::<Result<_, _>>()?)
    }

    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        let sql = "SELECT calls_to_ms(clock_timestamp()) AS now";
        let now = self.writers.ask(STATEMENT_TIMEOUT, sqlx::query(sql)).await?;
        Ok(now.first().map(decode::now).transpose()?)
    }

    async fn tidy(&self, now: Timestamp, keep_from: Option<Timestamp>) -> Result<(), StoreError> {
        let made = self.make_ahead(now).await;
        if let Some(keep_from) = keep_from {
            self.drop_before(keep_from).await?;
        }
        let sql = "DELETE FROM calls_heartbeats WHERE alive_at < calls_from_ms($1)";
        let forget = sqlx::query(sql).bind(millis(now - BEATS_KEPT));
        self.writers.ask(STATEMENT_TIMEOUT, forget).await?;
        Ok(made?)
    }

    async fn close(&self) {
        self.owner.release().await;
        self.readers.close().await;
        self.writers.close().await;
    }
}

fn is_undefined_table(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().is_some_and(|code| code == "42P01")
}

/// Distinguishes transient from permanent failures.
fn refusal(error: sqlx::Error) -> OpenError {
    let error = StoreError::from(error);
    if error.is_away() { OpenError::Unreachable(error) } else { OpenError::Refused(error) }
}
