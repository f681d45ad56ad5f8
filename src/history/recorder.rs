//! Writes behind the signaling: calls never wait for the database.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{error, info, warn};

use super::{Row, Store, StoreError};
use crate::{call::Call, cluster::Cluster, ids::CallId};

/// Most rows that wait to be written. An ended call that finds no room here is not lost: the
/// cluster keeps its record and it is recorded again.
const QUEUE_ROWS: usize = 10_000;
/// Most rows in one transaction.
const BATCH_ROWS: usize = 256;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// How long the last rows may take when the service stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes note of calls. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    rows: mpsc::Sender<Row>,
}

/// The other end of a [`Recorder`]: the task that writes.
pub struct Writer {
    rows: mpsc::Receiver<Row>,
    store: Arc<dyn Store>,
    cluster: Arc<dyn Cluster>,
}

/// A recorder, and the writer that must run for it.
pub fn recorder(store: Arc<dyn Store>, cluster: Arc<dyn Cluster>) -> (Recorder, Writer) {
    let (sender, rows) = mpsc::channel(QUEUE_ROWS);
    (Recorder { rows: sender }, Writer { rows, store, cluster })
}

impl Recorder {
    /// Queues the row of this version of `call`. Never waits.
    pub fn record(&self, call: &Call) {
        if let Err(error) = self.rows.try_send(Row::from(call)) {
            let why = match error {
                TrySendError::Full(_) => "the queue is full",
                TrySendError::Closed(_) => "the service stops",
            };
            warn!(call = %call.id, version = call.version, why, "a history row is put off");
        }
    }
}

impl Writer {
    /// Writes until `shutdown` completes, then what is queued by then, within [`CLOSE_TIMEOUT`].
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut batch = Vec::with_capacity(BATCH_ROWS);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                _ = self.rows.recv_many(&mut batch, BATCH_ROWS) => {}
            }
            if batch.is_empty() {
                return;
            }
            tokio::select! {
                () = self.write(&batch) => batch.clear(),
                () = &mut shutdown => break,
            }
        }
        self.rows.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.finish(&mut batch)).await.is_err() {
            let rows = batch.len() + self.rows.len();
            error!(rows, "history rows are lost: the database stayed away");
        }
    }

    /// Writes what was begun and what is queued.
    async fn finish(&mut self, batch: &mut Vec<Row>) {
        loop {
            if !batch.is_empty() {
                self.write(batch).await;
                batch.clear();
            }
            if self.rows.recv_many(batch, BATCH_ROWS).await == 0 {
                return;
            }
        }
    }

    /// Tries until the rows are written. Writing them twice does no harm.
    async fn write(&self, batch: &[Row]) {
        let mut pause = FIRST_RETRY;
        while let Err(error) = self.store.save(batch).await {
            error!(%error, rows = batch.len(), "history cannot be written, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
        let ended: Vec<CallId> =
            batch.iter().filter(|row| row.ended_at.is_some()).map(|row| row.id).collect();
        if !ended.is_empty()
            && let Err(error) = self.cluster.settle(&ended).await
        {
            warn!(%error, calls = ended.len(), "stored calls could not be marked so");
        }
    }
}

/// Ends the rows of calls that were live when the process that held them died. Only for a cluster
/// that lives inside one process: nobody else can hold them.
///
/// The true end is not known. They end at the last moment at which they were known to live.
pub async fn close_orphans(store: &dyn Store) -> Result<(), StoreError> {
    loop {
        let mut rows = store.open(u32::try_from(BATCH_ROWS).expect("a small number")).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in &mut rows {
            let (status, reason) = row.status.when_orphaned();
            row.status = status;
            row.end_reason = Some(reason);
            row.ended_at = Some(row.updated_at);
            row.duration_s = row.started_at.map(|started| (row.updated_at - started).as_secs());
            row.version += 1;
        }
        store.save(&rows).await?;
        info!(calls = rows.len(), "closed the history of calls that an earlier run left open");
    }
}
