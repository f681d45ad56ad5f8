//! What waits to be written: of each call the newest row, within limits.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::Row;
use crate::ids::CallId;

/// Most calls whose rows wait to be written. An ended call that finds no room here is not lost: the
/// cluster keeps its record and it is recorded again.
pub const MAX_BACKLOG_ROWS: usize = 10_000;

/// Rows that wait to be written.
#[derive(Debug, Default)]
pub struct Backlog {
    waiting: Mutex<Waiting>,
    /// Told when as many rows wait as are wanted, and when no more come.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// With when they came; None for one that need not be written any more.
    rows: HashMap<CallId, (Instant, Option<Row>)>,
    /// By when they came.
    order: VecDeque<CallId>,
    /// How many are being written, and since when the oldest of them waits.
    in_hand: Option<(usize, Instant)>,
    /// Whoever takes rows is told when there are so many.
    wanted: usize,
    is_closed: bool,
}

/// Why a row was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Full,
    Closed,
}

impl Backlog {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a row in. An older one of the same call makes room for it.
    pub fn push(&self, row: Row) -> Result<(), Refused> {
        let mut waiting = self.waiting();
        if waiting.is_closed {
            return Err(Refused::Closed);
        }
        if let Some((_, known)) = waiting.rows.get_mut(&row.id) {
            if known.as_ref().is_none_or(|known| row.version > known.version) {
                *known = Some(row);
            }
            return Ok(());
        }
        if waiting.rows.len() >= MAX_BACKLOG_ROWS {
            return Err(Refused::Full);
        }
        waiting.order.push_back(row.id);
        waiting.rows.insert(row.id, (Instant::now(), Some(row)));
        if waiting.rows.len() == waiting.wanted {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Another node sees to a version of this call that is as new as this one: an older row is not
    /// written.
    pub fn drop_before(&self, call: CallId, version: u64) {
        if let Some((_, row)) = self.waiting().rows.get_mut(&call) {
            row.take_if(|row| row.version < version);
        }
    }

    /// The oldest rows, up to `limit`; those taken before are written. From the first on they are
    /// gathered for this long, or until there are so many. None when it is closed and empty; it may be
    /// that none of them need be written.
    pub async fn take(&self, limit: usize, gather: Duration) -> Option<Vec<Row>> {
        self.waiting().in_hand = None;
        self.fill(1).await;
        // Full, closed, or late: their time has come.
        let _ = tokio::time::timeout(gather, self.fill(limit)).await;
        let mut waiting = self.waiting();
        let is_over = waiting.is_closed && waiting.rows.is_empty();
        (!is_over).then(|| waiting.take(limit))
    }

    /// Waits until there are so many rows, or no more come.
    async fn fill(&self, count: usize) {
        loop {
            {
                let mut waiting = self.waiting();
                if waiting.is_closed || waiting.rows.len() >= count {
                    return;
                }
                waiting.wanted = count;
            }
            self.changed.notified().await;
        }
    }

    /// Takes no more rows in.
    pub fn close(&self) {
        self.waiting().is_closed = true;
        self.changed.notify_one();
    }

    /// How many rows are not written yet.
    pub fn len(&self) -> usize {
        let waiting = self.waiting();
        waiting.rows.len() + waiting.in_hand.map_or(0, |(count, _)| count)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How long the oldest row has waited; zero if there is none.
    pub fn age(&self) -> Duration {
        let waiting = self.waiting();
        let in_hand = waiting.in_hand.map(|(_, since)| since);
        in_hand.or(waiting.oldest()).map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Waiting {
    fn oldest(&self) -> Option<Instant> {
        self.order.front().map(|id| self.rows[id].0)
    }

    fn take(&mut self, limit: usize) -> Vec<Row> {
        let oldest = self.oldest();
        let count = limit.min(self.order.len());
        self.in_hand = oldest.map(|since| (count, since));
        let ids: Vec<CallId> = self.order.drain(..count).collect();
        let row = |id| self.rows.remove(&id).expect("each row has its place in the order").1;
        ids.into_iter().filter_map(row).collect()
    }
}
