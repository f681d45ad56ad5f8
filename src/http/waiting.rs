//! Idle HTTP connections: without a request yet, or with a finished response. Their number is bounded: the one idle
//! longest closes for a new one. Clients send their request at once, so idle connections go first.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};
use tracing::warn;

use crate::metrics::{self, Limit};

/// Bound on idle connections. Each takes about 10 KiB.
pub const MAX_WAITING: usize = 4_096;
/// Pause between log lines about closed connections.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// All idle connections, the one idle longest first.
#[derive(Debug, Clone)]
pub struct Waiting {
    room: Arc<Mutex<Room>>,
    bound: usize,
}

#[derive(Debug, Default)]
struct Room {
    seats: BTreeMap<u64, Arc<Notify>>,
    next: u64,
    said_at: Option<Instant>,
}

/// One connection, idle or not.
#[derive(Debug)]
pub struct Seat {
    waiting: Waiting,
    /// Notified when it must close.
    leave: Arc<Notify>,
    number: Mutex<Option<u64>>,
}

impl Waiting {
    pub fn new(bound: usize) -> Self {
        Self { room: Arc::default(), bound }
    }

    /// A new idle connection.
    pub fn seat(&self) -> Seat {
        let seat = Seat { waiting: self.clone(), leave: Arc::default(), number: Mutex::default() };
        seat.wait();
        seat
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock()
    }
}

impl Seat {
    /// Completes when the connection must close.
    pub async fn told_to_leave(&self) {
        self.leave.notified().await;
    }

    /// Marks it idle.
    pub fn wait(&self) {
        self.is_served();
        let mut room = self.waiting.room();
        let number = room.next;
        room.next += 1;
        room.seats.insert(number, self.leave.clone());
        *self.number() = Some(number);
        if room.seats.len() <= self.waiting.bound {
            return;
        }
        if let Some((_, longest)) = room.seats.pop_first() {
            metrics::LIMITS.of(Limit::Connections).increment(1);
            longest.notify_one();
        }
        if room.said_at.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            room.said_at = Some(Instant::now());
            warn!(
                waiting = room.seats.len(),
                "too many idle connections: those idle longest are closed"
            );
        }
    }

    /// Marks it busy.
    pub fn is_served(&self) {
        let number = self.number().take();
        if let Some(number) = number {
            self.waiting.room().seats.remove(&number);
        }
    }

    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.number.lock()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.is_served();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn has_to_leave(seat: &Seat) -> bool {
        seat.told_to_leave().now_or_never().is_some()
    }

    #[tokio::test]
    async fn who_has_waited_longest_makes_room() {
        let waiting = Waiting::new(2);
        let [first, second] = [waiting.seat(), waiting.seat()];
        assert!(!has_to_leave(&first) && !has_to_leave(&second));
        let third = waiting.seat();
        assert!(has_to_leave(&first) && !has_to_leave(&second) && !has_to_leave(&third));
    }

    #[tokio::test]
    async fn who_is_served_or_gone_takes_no_room() {
        let waiting = Waiting::new(2);
        let [served, gone, waits] = [waiting.seat(), waiting.seat(), waiting.seat()];
        assert!(has_to_leave(&served), "there is room for two");
        drop(gone);
        let again = waiting.seat();
        waits.is_served();
        let last = waiting.seat();
        assert!(!has_to_leave(&again) && !has_to_leave(&last));
        // Idle again, and now last in line.
        waits.wait();
        assert!(has_to_leave(&again) && !has_to_leave(&last) && !has_to_leave(&waits));
        assert_eq!(waiting.room().seats.len(), 2);
    }
}
