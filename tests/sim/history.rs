//! The history's database, which may be down, slow, or store only a part of a batch.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use switchboard::{
    history::{Period, Query, Row, Stats, Store, StoreError},
    ids::{CallId, NodeId, UserId},
    time::Timestamp,
};

use super::simulation::{Mistake, Simulation};

/// The table of all rows, shared by all nodes.
#[derive(Default)]
pub struct Table(Mutex<BTreeMap<CallId, Row>>);

impl Table {
    pub fn rows(&self) -> Vec<Row> {
        self.0.lock().unwrap().values().cloned().collect()
    }
}

/// A node's connection to the [`Table`].
pub struct Database {
    pub sim: Arc<Simulation>,
}

fn away() -> StoreError {
    sqlx::Error::Io(io::ErrorKind::ConnectionRefused.into()).into()
}

#[async_trait]
impl Store for Database {
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError> {
        let sim = &self.sim;
        sim.latency().await;
        let now = sim.clock.now();
        let (down, half, slow) = {
            let faults = sim.faults();
            let lasts = |until: Option<Timestamp>| until.is_some_and(|until| until > now);
            (lasts(faults.history_down), lasts(faults.history_half), lasts(faults.history_slow))
        };
        if down {
            return Err(away());
        }
        if slow {
            tokio::time::sleep(Duration::from_millis(sim.dice.roll(|dice| dice.below(3_000))))
                .await;
        }
        let taken = if half { rows.len() / 2 } else { rows.len() };
        {
            let mut table = sim.table.0.lock().unwrap();
            for row in &rows[..taken] {
                if sim.mistake == Some(Mistake::RowsDropped)
                    && sim.dice.roll(|dice| dice.percent(5))
                {
                    continue;
                }
                let newest = table.entry(row.id).or_insert_with(|| row.clone());
                let ends = row.version == newest.version && newest.ended_at.is_none();
                if row.version > newest.version || ends {
                    *newest = row.clone();
                }
            }
        }
        sim.latency().await;
        if half { Err(away()) } else { Ok(()) }
    }

    async fn list(&self, _: &Query) -> Result<Vec<Row>, StoreError> {
        unreachable!("calls write history and do not read it")
    }

    async fn get(&self, _: CallId, _: &UserId) -> Result<Option<Row>, StoreError> {
        unreachable!("calls write history and do not read it")
    }

    async fn open(&self, _: Timestamp, _: u32) -> Result<Vec<Row>, StoreError> {
        unreachable!("calls write history and do not read it")
    }

    async fn stats(&self, _: &Period) -> Result<Stats, StoreError> {
        unreachable!("calls write history and do not read it")
    }

    async fn beat(&self, _: NodeId, _: Timestamp) -> Result<(), StoreError> {
        unreachable!("no node says here that it lives")
    }

    async fn beats(&self) -> Result<HashMap<NodeId, Timestamp>, StoreError> {
        unreachable!("no node says here that it lives")
    }

    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        unreachable!("nobody keeps this history in order")
    }

    async fn tidy(&self, _: Timestamp, _: Option<Timestamp>) -> Result<(), StoreError> {
        unreachable!("nobody keeps this history in order")
    }

    async fn close(&self) {}
}
