//! Connections to Postgres, none of which is lost to a link that falls silent.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
    query::Query,
};
use tokio::time::timeout;

use crate::metrics;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection that nobody uses may take to show that it is alive.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long after its time a statement's answer is waited for: Postgres should be the first to end it.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// Some connections, opened when they are needed.
#[derive(Debug)]
pub struct Connections {
    pool: PgPool,
}

impl Connections {
    pub fn new(options: PgConnectOptions, most: u32) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(CONNECT_TIMEOUT)
            // The pool's own test has no time limit of its own: with it, a connection that fell
            // silent costs its finder all the time there is to get one.
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

    /// What a statement answers. One that takes longer than `limit` is ended, here and in Postgres.
    ///
    /// The limit is set for one transaction: a setting of the session, or one at the start of the
    /// connection, would be lost, refused or left to others by a pooler such as `PgBouncer`.
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
        // A database that hangs is as good as away.
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

/// A connection in use. One that is not given back, because its time is over or nobody waits for it
/// any more, is closed at once: the pool would keep its place for it until it answers, if it ever does.
struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is here until it is given back")
    }

    fn give_back(mut self) {
        let mut connection = self.0.take().expect("it is given back once");
        // What the pool does by itself when a connection is dropped, but within a time: it may have
        // fallen silent just now.
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
