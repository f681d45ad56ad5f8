//! Write-behind recording: calls never wait for the database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, error, info, warn};

use super::{
    Row, Store, StoreError,
    backlog::{Backlog, Refused},
};
use crate::{
    call::Call,
    cluster::Cluster,
    health::{Health, Part},
    ids::{CallId, NodeId},
    metrics::{self, Limit},
    time::Clock,
};

/// Bound on the rows of a write.
const BATCH_ROWS: usize = 1024;
/// Time to gather rows before a write, so that many calls share one, and a short call is written once.
const GATHER: Duration = Duration::from_millis(250);
/// The interval of heartbeats for live calls. A killed process loses at most this much of their
/// duration.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Bound on the final writes when the service stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Queues rows of calls. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    backlog: Arc<Backlog>,
    /// Whether the whole record of a live call is written with its row.
    keeps_records: bool,
    /// Whether the full backlog was logged.
    is_full: Arc<AtomicBool>,
}

/// The other end of a [`Recorder`]: the task that writes.
pub struct Writer {
    backlog: Arc<Backlog>,
    /// The node whose calls are reported as live, and the clock for it.
    beats_as: Option<(NodeId, Clock)>,
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
    let recorder =
        Recorder { backlog: backlog.clone(), keeps_records: false, is_full: Arc::default() };
    (recorder, Writer { backlog, beats_as: None, store, cluster, health })
}

/// Waits for the next tick; for ever if there is none.
async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

impl Recorder {
    /// Writes the whole records of live calls, too, because only this process has them, and it may
    /// be killed.
    #[must_use]
    pub fn keeping_records(mut self) -> Self {
        self.keeps_records = true;
        self
    }

    /// Queues the row of this version of `call`. Never waits.
    pub fn record(&self, call: &Call) {
        let record = (self.keeps_records && call.is_live()).then(|| Arc::new(call.clone()));
        match self.backlog.push(Row { record, ..Row::from(call) }) {
            Ok(()) => self.is_full.store(false, Ordering::Relaxed),
            Err(Refused::Full) => {
                metrics::LIMITS.of(Limit::Backlog).increment(1);
                if !self.is_full.swap(true, Ordering::Relaxed) {
                    warn!("the history backlog is full: ended calls wait in the cluster");
                }
            }
            Err(Refused::Closed) => {
                debug!(call = %call.id, "a history row waits in the cluster");
            }
        }
    }

    /// Another node has ended this call and writes its row: drops an older one.
    pub fn ended_elsewhere(&self, call: &Call) {
        self.backlog.drop_before(call.id, call.version);
    }

    /// The number of further rows that the writer has use for. `None` while the database is
    /// unreachable: then rows stay in the cluster.
    pub fn room(&self) -> usize {
        (2 * BATCH_ROWS).saturating_sub(self.backlog.len())
    }

    /// The backlog.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }
}

impl Writer {
    /// Has it noted every [`HEARTBEAT`] that the calls of `node` are live whose rows have no end: it is written
    /// after them, so they truly are. If the process dies, that is when they ended.
    #[must_use]
    pub fn beating(mut self, node: NodeId, clock: Clock) -> Self {
        self.beats_as = Some((node, clock));
        self
    }

    /// Writes until `shutdown` completes, then the queued rows, within [`CLOSE_TIMEOUT`].
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
                error!(rows, "rows were not written before the end: the database was unreachable");
            }
        }
    }

    async fn write_all(&self) {
        let mut beats = self.beats_as.as_ref().map(|_| {
            let mut beats = tokio::time::interval(HEARTBEAT);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beats
        });
        loop {
            tokio::select! {
                biased;
                () = tick(&mut beats) => self.beat().await,
                batch = self.backlog.take(BATCH_ROWS, GATHER) => match batch {
                    None => return,
                    Some(batch) if batch.is_empty() => {}
                    Some(batch) => self.write(batch).await,
                },
            }
        }
    }

    async fn beat(&self) {
        let Some((node, clock)) = &self.beats_as else { return };
        if let Err(error) = self.store.beat(*node, clock.now()).await {
            debug!(%error, "it could not be noted in history that calls are live");
        }
    }

    async fn write(&self, batch: Vec<Row>) {
        match self.save(&batch).await {
            Ok(()) => self.settle(&batch).await,
            // One of them is refused: written one by one, it blocks no other.
            Err(_) => {
                for row in batch {
                    let row = std::slice::from_ref(&row);
                    match self.save(row).await {
                        Ok(()) => self.settle(row).await,
                        Err(error) => {
                            metrics::ROWS_REFUSED.increment(1);
                            // The record holds more than the log may show.
                            let row = Row { record: None, ..row[0].clone() };
                            error!(%error, ?row, "a history row is refused: it is lost");
                        }
                    }
                }
            }
        }
    }

    /// Retries until the rows are written or refused. Writes are idempotent.
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError> {
        let mut pause = FIRST_RETRY;
        let mut is_told = false;
        loop {
            match self.store.save(rows).await {
                Err(error) if !error.is_refusal() => {
                    self.health.trouble(Part::History, &error);
                    if !std::mem::replace(&mut is_told, true) {
                        error!(%error, "history cannot be written: rows wait, and calls continue");
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
            && let Err(error) = self.cluster.mark_persisted(&ended).await
        {
            warn!(%error, calls = ended.len(), "stored calls could not be marked as stored");
        }
    }
}
