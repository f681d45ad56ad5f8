//! The bounded backlog: the newest unwritten row of each call.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::Row;
use crate::ids::CallId;

/// Bound on waiting rows. An ended call that finds no room is not lost: the cluster keeps its record, and it is recorded
/// again.
pub const MAX_BACKLOG_ROWS: usize = 10_000;

/// Rows that wait to be written.
#[derive(Debug, Default)]
pub struct Backlog {
    waiting: Mutex<Waiting>,
    /// Notified when enough rows wait, and when the backlog closes.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// With their time of arrival; None for a row that became obsolete.
    rows: HashMap<CallId, (Instant, Option<Row>)>,
    /// In order of arrival.
    order: VecDeque<CallId>,
    /// The number of rows being written, and the arrival of the oldest.
    in_hand: Option<(usize, Instant)>,
    /// The taker is notified at this many rows.
    wanted: usize,
    is_closed: bool,
}

/// A refused row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Full,
    Closed,
}

impl Backlog {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Adds a row. It replaces an older one of the same call.
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

    /// Another node writes this version of the call or a newer one: drops an older row.
    pub fn drop_before(&self, call: CallId, version: u64) {
        if let Some((_, row)) = self.waiting().rows.get_mut(&call) {
            row.take_if(|row| row.version < version);
        }
    }

    /// Takes the oldest rows, up to `limit`, after the previous ones were written. Gathers for this long from the first row on,
    /// or until there are enough. None when closed and empty. The result may be empty if its rows became obsolete.
    pub async fn take(&self, limit: usize, gather: Duration) -> Option<Vec<Row>> {
        self.waiting().in_hand = None;
        self.fill(1).await;
        // Full, closed, or late: take them now.
        let _ = tokio::time::timeout(gather, self.fill(limit)).await;
        let mut waiting = self.waiting();
        let is_over = waiting.is_closed && waiting.rows.is_empty();
        (!is_over).then(|| waiting.take(limit))
    }

    /// Waits until there are enough rows, or the backlog closes.
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

    /// Closes the backlog to new rows.
    pub fn close(&self) {
        self.waiting().is_closed = true;
        self.changed.notify_one();
    }

    /// The number of unwritten rows.
    pub fn len(&self) -> usize {
        let waiting = self.waiting();
        waiting.rows.len() + waiting.in_hand.map_or(0, |(count, _)| count)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The age of the oldest row; zero if there is none.
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
