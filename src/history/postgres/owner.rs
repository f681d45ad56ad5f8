//! The right to keep live calls in the database: one process without Redis has it, for as long as it lives. The next
//! one resumes the calls that it finds there, so two must not share them.
//!
//! The right is an advisory lock of a transaction that stays open on a connection of its own. Postgres releases it
//! when the process dies, and a pooler does not lend the connection to others meanwhile. The transaction holds no
//! snapshot, so it delays no vacuum.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row, postgres::PgConnectOptions};
use tokio::{sync::Mutex, time::timeout};
use tracing::warn;

/// Time-out of each step.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for which a right is waited for that another process has: that one may just have died.
const TAKE_WAIT: Duration = Duration::from_secs(3);
const TAKE_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Owner {
    options: PgConnectOptions,
    connection: Mutex<Option<PgConnection>>,
    /// Whether this process has, or had, the right and does not know of another one that has it.
    is_ours: AtomicBool,
}

impl Owner {
    pub fn new(options: PgConnectOptions) -> Self {
        Self { options, connection: Mutex::default(), is_ours: AtomicBool::new(false) }
    }

    pub fn is_owner(&self) -> bool {
        self.is_ours.load(Ordering::Relaxed)
    }

    /// Takes the right. False if another process has it.
    pub async fn take(&self) -> Result<bool, sqlx::Error> {
        let mut held = self.connection.lock().await;
        let waiting = tokio::time::Instant::now();
        loop {
            *held = self.locked().await?;
            let is_owner = held.is_some();
            if is_owner || waiting.elapsed() >= TAKE_WAIT {
                self.is_ours.store(is_owner, Ordering::Relaxed);
                return Ok(is_owner);
            }
            tokio::time::sleep(TAKE_RETRY).await;
        }
    }

    /// Takes the right again if its connection broke. To be called every few seconds.
    pub async fn keep(&self) {
        if !self.is_owner() {
            return;
        }
        let mut held = self.connection.lock().await;
        if let Some(connection) = &mut *held
            && matches!(timeout(STEP_TIMEOUT, connection.execute("SELECT 1")).await, Ok(Ok(_)))
        {
            return;
        }
        *held = None;
        match self.locked().await {
            Ok(Some(connection)) => *held = Some(connection),
            Ok(None) => {
                self.is_ours.store(false, Ordering::Relaxed);
                warn!(
                    "another process keeps its live calls in this database by now: the calls of this one end \
                     with it"
                );
            }
            // The database is away: nobody else gets the right meanwhile.
            Err(_) => {}
        }
    }

    /// Gives the right up.
    pub async fn release(&self) {
        self.is_ours.store(false, Ordering::Relaxed);
        if let Some(connection) = self.connection.lock().await.take() {
            let _ = timeout(STEP_TIMEOUT, connection.close()).await;
        }
    }

    /// A connection with the lock; None if another one has it.
    async fn locked(&self) -> Result<Option<PgConnection>, sqlx::Error> {
        let locked = async {
            let mut connection = self.options.connect().await?;
            connection.execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0").await?;
            let lock = "SELECT pg_try_advisory_xact_lock(\
                        hashtextextended('switchboard live calls ' || current_schema(), 0)) AS is_ours";
            let row = connection.fetch_one(sqlx::raw_sql(lock)).await?;
            if row.try_get("is_ours")? {
                return Ok(Some(connection));
            }
            connection.close().await?;
            Ok(None)
        };
        timeout(STEP_TIMEOUT, locked).await.map_err(|_| sqlx::Error::PoolTimedOut)?
    }
}
