//! Writes behind the signaling: calls never wait for the database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tracing::{debug, error, info, warn};

use super::{
    Row, Store, StoreError,
    backlog::{Backlog, Refused},
};
use crate::{
    call::Call,
    cluster::Cluster,
    health::{Health, Part},
    ids::CallId,
    metrics::{self, Limit},
};

/// Most rows that are written at once.
const BATCH_ROWS: usize = 1024;
/// How long rows are gathered before they are written. Many calls then share a write, and one that is
/// placed and ends meanwhile is written once.
const GATHER: Duration = Duration::from_millis(250);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// How long the last rows may take when the service stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes note of calls. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    backlog: Arc<Backlog>,
    /// Whether it has been said that the backlog is full.
    is_full: Arc<AtomicBool>,
}

/// The other end of a [`Recorder`]: the task that writes.
pub struct Writer {
    backlog: Arc<Backlog>,
    store: Arc<dyn Store>,
    cluster: Arc<dyn Cluster>,
    health: Health,
}

/// A recorder, and the writer that must run for it.
pub fn recorder(
    store: Arc<dyn Store>,
    cluster: Arc<dyn Cluster>,
    health: Health,
) -> (Recorder, Writer) {
    let backlog = Arc::new(Backlog::default());
    let recorder = Recorder { backlog: backlog.clone(), is_full: Arc::default() };
    (recorder, Writer { backlog, store, cluster, health })
}

impl Recorder {
    /// Queues the row of this version of `call`. Never waits.
    pub fn record(&self, call: &Call) {
        match self.backlog.push(Row::from(call)) {
            Ok(()) => self.is_full.store(false, Ordering::Relaxed),
            Err(Refused::Full) => {
                metrics::LIMITS.of(Limit::Backlog).increment(1);
                if !self.is_full.swap(true, Ordering::Relaxed) {
                    warn!("the history backlog is full: ended calls wait in the cluster");
                }
            }
            Err(Refused::Closed) => {
                debug!(call = %call.id, "a history row is left to the other nodes");
            }
        }
    }

    /// Another node has ended this call, and sees to it that this is stored: what is older need not be.
    pub fn ended_elsewhere(&self, call: &Call) {
        self.backlog.drop_before(call.id, call.version);
    }

    /// What waits to be written.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }
}

impl Writer {
    /// Writes until `shutdown` completes, then what is queued by then, within [`CLOSE_TIMEOUT`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let closing = async {
            shutdown.await;
            self.backlog.close();
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            () = self.write_all() => {}
            () = closing => {
                let rows = self.backlog.len();
                error!(rows, "history was not written to its end: the database stayed away");
            }
        }
    }

    async fn write_all(&self) {
        while let Some(batch) = self.backlog.take(BATCH_ROWS, GATHER).await {
            if !batch.is_empty() {
                self.write(batch).await;
            }
        }
    }

    async fn write(&self, batch: Vec<Row>) {
        match self.save(&batch).await {
            Ok(()) => self.settle(&batch).await,
            // One of them is refused: alone, it holds up no other.
            Err(_) => {
                for row in batch {
                    let row = std::slice::from_ref(&row);
                    match self.save(row).await {
                        Ok(()) => self.settle(row).await,
                        Err(error) => {
                            metrics::ROWS_REFUSED.increment(1);
                            error!(%error, ?row, "a history row is refused: it is lost");
                        }
                    }
                }
            }
        }
    }

    /// Tries until the rows are written, or refused. Writing them twice does no harm.
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError> {
        let mut pause = FIRST_RETRY;
        let mut is_told = false;
        loop {
            match self.store.save(rows).await {
                Err(error) if !error.is_refusal() => {
                    self.health.trouble(Part::History, &error);
                    if !std::mem::replace(&mut is_told, true) {
                        error!(%error, "history cannot be written: it waits, and calls go on");
                    }
                }
                saved => {
                    self.health.well(Part::History);
                    if is_told {
                        info!(waiting = self.backlog.len(), "history can be written again");
                    }
                    return saved;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    async fn settle(&self, batch: &[Row]) {
        let ended = batch.iter().filter(|row| row.ended_at.is_some());
        let ended: Vec<(CallId, u64)> = ended.map(|row| (row.id, row.version)).collect();
        if !ended.is_empty()
            && let Err(error) = self.cluster.settle(&ended).await
        {
            warn!(%error, calls = ended.len(), "stored calls could not be marked so");
        }
    }
}
