//! Connections to Postgres that survive silent links.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
    query::Query,
};
use tokio::time::timeout;

use crate::metrics;

/// Wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time-out of the liveness check of an idle connection.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Additional wait beyond the statement time-out, so that Postgres ends it first.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// A pool of connections, opened on demand.
#[derive(Debug)]
pub struct Connections {
    pool: PgPool,
}

impl Connections {
    pub fn new(options: PgConnectOptions, most: u32) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(CONNECT_TIMEOUT)
            // The pool's own check has no time-out: a silent connection would use up the whole wait for one.
            .test_before_acquire(false)
            .after_connect(|_, _| {
                metrics::STORE_CONNECTIONS.increment(1);
                Box::pin(async { Ok(()) })
            })
            .before_acquire(|connection, _| Box::pin(async { Ok(is_alive(connection).await) }))
            .connect_lazy_with(options);
        Self { pool }
    }

    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Runs a statement, with a time-out here and in Postgres.
    ///
    /// The time-out is set per transaction: a setting of the session or of the connection would be lost, refused or leaked by
    /// a pooler such as `PgBouncer`.
    pub async fn ask(
        &self,
        limit: Duration,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut lent = Lent(Some(self.pool.acquire().await?));
        let ms = limit.as_millis();
        let begin = format!(
            "BEGIN; SET LOCAL statement_timeout = {ms}; \
             SET LOCAL idle_in_transaction_session_timeout = {ms}"
        );
        let asked = async {
            let mut transaction = lent.connection().begin_with(AssertSqlSafe(begin)).await?;
            let rows = query.fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(rows)
        };
        let answered = timeout(limit + ANSWER_MARGIN, asked).await;
        // A hung database counts as unreachable.
        let answer = answered.map_err(|_| sqlx::Error::PoolTimedOut)?;
        lent.give_back();
        answer
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }
}

async fn is_alive(connection: &mut PgConnection) -> bool {
    timeout(PING_TIMEOUT, connection.ping()).await.is_ok_and(|ping| ping.is_ok())
}

/// A connection in use. If it is not returned, because of a time-out or a cancelled caller, it is closed at once: the pool would
/// keep its slot until it answers.
struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is here until it is given back")
    }

    fn give_back(mut self) {
        let mut connection = self.0.take().expect("it is given back once");
        // As the pool does when a connection is dropped, but with a time-out: it may be silent.
        tokio::spawn(timeout(PING_TIMEOUT, connection.return_to_pool()));
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}
