//! A store with metrics.

use std::{collections::HashMap, sync::Arc, time::Instant};

use async_trait::async_trait;

use super::{Period, Query, Row, Stats, Store, StoreError};
use crate::{
    ids::{CallId, NodeId, UserId},
    metrics::{self, Operation},
    time::Timestamp,
};

/// Measures the operations of a store.
pub struct Measured(pub Arc<dyn Store>);

async fn timed<T>(
    operation: Operation,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let answer = asked.await;
    metrics::STORE.of(operation).record(began.elapsed());
    if answer.is_err() {
        metrics::STORE_ERRORS.of(operation).increment(1);
    }
    answer
}

#[async_trait]
impl Store for Measured {
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError> {
        timed(Operation::Save, self.0.save(rows)).await?;
        metrics::ROWS_WRITTEN.increment(rows.len() as u64);
        Ok(())
    }

    async fn list(&self, query: &Query) -> Result<Vec<Row>, StoreError> {
        timed(Operation::List, self.0.list(query)).await
    }

    async fn get(&self, id: CallId, user: &UserId) -> Result<Option<Row>, StoreError> {
        timed(Operation::Get, self.0.get(id, user)).await
    }

    async fn open(&self, made_before: Timestamp, limit: u32) -> Result<Vec<Row>, StoreError> {
        timed(Operation::Open, self.0.open(made_before, limit)).await
    }

    async fn stats(&self, period: &Period) -> Result<Stats, StoreError> {
        timed(Operation::Stats, self.0.stats(period)).await
    }

    async fn beat(&self, node: NodeId, at: Timestamp) -> Result<(), StoreError> {
        timed(Operation::Beat, self.0.beat(node, at)).await
    }

    async fn beats(&self) -> Result<HashMap<NodeId, Timestamp>, StoreError> {
        timed(Operation::Beat, self.0.beats()).await
    }

    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        self.0.now().await
    }

    async fn tidy(&self, now: Timestamp, keep_from: Option<Timestamp>) -> Result<(), StoreError> {
        timed(Operation::Tidy, self.0.tidy(now, keep_from)).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
