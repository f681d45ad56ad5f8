//! Maintenance of the history: partitions for coming months, retention, and an end for calls that died unnoticed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{Row, Store, StoreError};
use crate::{
    call::Call,
    health::{Health, Part},
    ids::CallId,
    time::{Clock, Timestamp},
};

/// Period of maintenance.
const INTERVAL: Duration = Duration::from_hours(1);
/// Pause after other failures. Nothing here is urgent, and each try to drop old calls delays readers for a moment.
const RETRY: Duration = Duration::from_mins(5);
/// Pause while the database is unreachable.
const AWAY_RETRY: Duration = Duration::from_secs(15);
/// Bound on the calls closed at a time.
const BATCH_ROWS: u32 = 256;
/// How far the clocks may differ by which the age of a call is judged.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_mins(5);

/// The maintenance task of a store. Several nodes may run it at once.
pub struct Keeper {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    /// Retention of calls; None: forever.
    pub retention: Option<Duration>,
    /// Age at which a call without an end cannot be live; None: its end may be elsewhere.
    pub longest_call: Option<Duration>,
    pub health: Health,
}

/// Why history could not be put in order.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the clocks differ by {difference_s} s: calls say {calls}, this machine {machine}, the database \
         {database:?} (Unix ms); nothing is removed or ended by its age"
    )]
    Clocks { difference_s: u64, calls: u64, machine: u64, database: Option<u64> },
}

impl KeepError {
    fn retry(&self) -> Duration {
        match self {
            Self::Store(error) if error.is_away() => AWAY_RETRY,
            Self::Store(_) | Self::Clocks { .. } => RETRY,
        }
    }
}

impl Keeper {
    /// Runs periodically until `shutdown` completes.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut is_told = false;
        loop {
            let pause = match self.put_in_order().await {
                Ok(()) => {
                    self.health.well(Part::Upkeep);
                    is_told = false;
                    INTERVAL
                }
                Err(error) => {
                    self.health.trouble(Part::Upkeep, &error);
                    if !std::mem::replace(&mut is_told, true) {
                        warn!(%error, "the maintenance of the history failed: it is retried");
                    }
                    error.retry()
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Each duty runs even if the other fails. Work that depends on the age of calls waits until
    /// all clocks agree: a wrong clock would remove all history.
    async fn put_in_order(&self) -> Result<(), KeepError> {
        let now = self.clock.now();
        let agreed = self.compare_clocks(now).await;
        let retention = self.retention.filter(|_| agreed.is_ok());
        let longest_call = self.longest_call.filter(|_| agreed.is_ok());
        let ended = match longest_call {
            Some(longest) => close_orphans(&*self.store, now - longest).await,
            None => Ok(()),
        };
        let tidied = self.store.tidy(now, retention.map(|retention| now - retention)).await;
        agreed?;
        Ok(ended.and(tidied)?)
    }

    async fn compare_clocks(&self, calls: Timestamp) -> Result<(), KeepError> {
        let database = self.store.now().await?;
        let machine = Clock::System.now();
        let times = || [Some(calls), Some(machine), database].into_iter().flatten();
        let (first, last) = (times().min().unwrap_or(calls), times().max().unwrap_or(calls));
        if last - first <= MAX_CLOCK_DIFFERENCE {
            return Ok(());
        }
        Err(KeepError::Clocks {
            difference_s: (last - first).as_secs(),
            calls: calls.as_millis(),
            machine: machine.as_millis(),
            database: database.map(Timestamp::as_millis),
        })
    }
}

/// Ends the rows of calls from before `made_before` whose last node ended while they were live.
///
/// Their true end is unknown. They end at the last moment at which they were known to be live:
/// their last change, or their node's last heartbeat. If the true end is written later, it replaces
/// this one.
pub async fn close_orphans(store: &dyn Store, made_before: Timestamp) -> Result<(), StoreError> {
    close_orphans_but(store, made_before, &BTreeSet::new()).await
}

/// The same, without these calls.
pub async fn close_orphans_but(
    store: &dyn Store,
    made_before: Timestamp,
    but: &BTreeSet<CallId>,
) -> Result<(), StoreError> {
    let mut beats = None;
    let limit = BATCH_ROWS.saturating_add(u32::try_from(but.len()).unwrap_or(u32::MAX));
    loop {
        let mut rows = store.open(made_before, limit).await?;
        rows.retain(|row| !but.contains(&row.id));
        if rows.is_empty() {
            return Ok(());
        }
        let beats = match &beats {
            Some(beats) => beats,
            None => &*beats.insert(store.beats().await?),
        };
        for row in &mut rows {
            let alive_at = row.node().and_then(|node| beats.get(&node).copied());
            close(row, alive_at);
        }
        store.save(&rows).await?;
        info!(calls = rows.len(), "closed the rows of calls without an end");
    }
}

/// The same for these calls alone, each with when it was last known to live: other processes may have open rows in
/// this database.
pub async fn close_left(store: &dyn Store, left: &[(Call, Timestamp)]) -> Result<(), StoreError> {
    for some in left.chunks(BATCH_ROWS as usize) {
        let closed = some.iter().map(|(call, last_alive_at)| {
            let mut row = Row::from(call);
            close(&mut row, Some(*last_alive_at));
            row
        });
        store.save(&closed.collect::<Vec<_>>()).await?;
    }
    Ok(())
}

fn close(row: &mut Row, alive_at: Option<Timestamp>) {
    let ended_at = alive_at.map_or(row.updated_at, |at| at.max(row.updated_at));
    let (status, reason) = row.status.when_orphaned();
    row.status = status;
    row.end_reason = Some(reason);
    row.ended_at = Some(ended_at);
    row.duration_s = row.started_at.map(|started| (ended_at - started).as_secs());
}
