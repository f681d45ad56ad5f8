//! Keeps the history in order: room for the calls to come, none for those too old, and an end for
//! calls that died unseen.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{Store, StoreError};
use crate::{
    health::{Health, Part},
    time::{Clock, Timestamp},
};

/// How often it looks.
const INTERVAL: Duration = Duration::from_hours(1);
/// How soon it tries again when something else failed. Nothing here is urgent, and each try to drop old
/// calls makes readers wait for a moment.
const RETRY: Duration = Duration::from_mins(5);
/// How soon it tries again when the database was not there: then it costs nobody anything.
const AWAY_RETRY: Duration = Duration::from_secs(15);
/// Most calls that are closed at a time.
const BATCH_ROWS: u32 = 256;

/// The task that keeps a store in order. Several nodes may do it at once.
pub struct Keeper {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    /// How long calls are kept; None: for ever.
    pub retention: Option<Duration>,
    /// When a call that has no end in history cannot be live any more; None: its end may be written
    /// elsewhere.
    pub longest_call: Option<Duration>,
    pub health: Health,
}

impl Keeper {
    /// Looks now and then, until `shutdown` completes.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut is_told = false;
        loop {
            // Neither duty waits until the other succeeds.
            let pause = match self.end_calls().await.and(self.tidy().await) {
                Ok(()) => {
                    self.health.well(Part::Upkeep);
                    is_told = false;
                    INTERVAL
                }
                Err(error) => {
                    self.health.trouble(Part::Upkeep, &error);
                    if !std::mem::replace(&mut is_told, true) {
                        warn!(%error, "the history could not be put in order: it is tried again");
                    }
                    if error.is_away() { AWAY_RETRY } else { RETRY }
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn end_calls(&self) -> Result<(), StoreError> {
        match self.longest_call {
            Some(longest) => close_orphans(&*self.store, self.clock.now() - longest).await,
            None => Ok(()),
        }
    }

    async fn tidy(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.store.tidy(now, self.retention.map(|retention| now - retention)).await
    }
}

/// Ends the rows of calls made before `made_before` that were live when all that knew of them died.
///
/// The true end is not known. They end at the last moment at which they were known to live, and
/// give way to the true end if it is written after all.
pub async fn close_orphans(store: &dyn Store, made_before: Timestamp) -> Result<(), StoreError> {
    loop {
        let mut rows = store.open(made_before, BATCH_ROWS).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in &mut rows {
            let (status, reason) = row.status.when_orphaned();
            row.status = status;
            row.end_reason = Some(reason);
            row.ended_at = Some(row.updated_at);
            row.duration_s = row.started_at.map(|started| (row.updated_at - started).as_secs());
        }
        store.save(&rows).await?;
        info!(calls = rows.len(), "closed the history of calls that nobody had ended");
    }
}
