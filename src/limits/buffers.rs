//! The node's byte budget: one budget for everything that is buffered for clients, calls and other
//! nodes.
//!
//! Each holder has a [`Charge`], which releases what it counts when it is dropped. A holder may
//! grow to a share of the free bytes (dynamic thresholds, as in switches: Choudhury and Hahne,
//! 1998). Therefore the largest holders are refused first, and a small one is not refused while
//! anything is free. Above [`SHED_ABOVE`] the gateway disconnects the clients that hold the most.
//!
//! Counts payloads, and estimates the structures around them. The allocator's overhead is not
//! included.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use tracing::warn;

use crate::{
    health::{Health, Part},
    metrics::{self, Buffer, Label},
};

/// The share of the free bytes that one holder may have, as a divisor.
const SHARE: usize = 8;
/// The bytes that one holder may have in any case, while they are free.
pub const FLOOR_BYTES: usize = 16 * 1024;
/// The part of the budget, in eighths, above which clients are disconnected until it is below
/// again.
const SHED_ABOVE: usize = 7;
const SHED_TO: usize = 6;
/// The node is not sent new clients after more than that was used for this long.
const LONG: Duration = Duration::from_secs(5);
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The budget, and how much of it each kind of buffer uses. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Buffers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    budget_bytes: usize,
    used: [AtomicUsize; Buffer::ALL.len()],
    /// Woken when more than [`SHED_ABOVE`] is used.
    pressed: Notify,
}

/// The bytes of one holder, counted in the budget until this is dropped.
#[derive(Debug)]
pub struct Charge {
    buffers: Buffers,
    buffer: Buffer,
    bytes: AtomicUsize,
}

impl Default for Buffers {
    /// Without a bound, for tests and tools.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Buffers {
    pub fn new(budget_bytes: usize) -> Self {
        let used = array::from_fn(|_| AtomicUsize::new(0));
        Self(Arc::new(Shared { budget_bytes, used, pressed: Notify::new() }))
    }

    /// A holder that has nothing yet.
    pub fn holder(&self, buffer: Buffer) -> Charge {
        Charge { buffers: self.clone(), buffer, bytes: AtomicUsize::new(0) }
    }

    pub fn used_bytes(&self) -> usize {
        self.0.used.iter().map(|used| used.load(Ordering::Relaxed)).sum()
    }

    fn free_bytes(&self) -> usize {
        self.0.budget_bytes.saturating_sub(self.used_bytes())
    }

    /// The bytes that a holder may have in all if it has `held_bytes` already; at least
    /// `floor_bytes`.
    pub fn allowance_bytes(&self, held_bytes: usize, floor_bytes: usize) -> usize {
        let free = self.free_bytes();
        (free / SHARE).max(floor_bytes).min(held_bytes.saturating_add(free))
    }

    /// The number of bytes to release before shedding ends.
    pub fn excess_bytes(&self) -> usize {
        self.used_bytes().saturating_sub(self.0.budget_bytes / 8 * SHED_TO)
    }

    /// Whether so much is used that clients are disconnected.
    pub fn are_pressed(&self) -> bool {
        self.used_bytes() > self.0.budget_bytes / 8 * SHED_ABOVE
    }

    /// Waits until so much is used that clients must be disconnected.
    pub async fn pressed(&self) {
        while !self.are_pressed() {
            self.0.pressed.notified().await;
        }
    }

    /// Reports in `health` that the budget has been exhausted for long, and its recovery. Runs
    /// without end.
    pub async fn watch(self, health: Health) {
        let mut ticks = tokio::time::interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since: Option<Instant> = None;
        loop {
            let now = ticks.tick().await;
            if !self.are_pressed() {
                since = None;
                health.well(Part::Buffers);
                continue;
            }
            if now - *since.get_or_insert(now) < LONG {
                continue;
            }
            let (used_bytes, budget_bytes) = (self.used_bytes(), self.0.budget_bytes);
            if !health.is_troubled(Part::Buffers) {
                warn!(
                    used_bytes,
                    budget_bytes, "the byte budget is used up: no new clients for now"
                );
            }
            let what = format!("{used_bytes} of {budget_bytes} bytes are buffered");
            health.trouble(Part::Buffers, what);
        }
    }

    /// Sets the gauges.
    pub fn sample(&self) {
        for (buffer, used) in Buffer::ALL.iter().zip(&self.0.used) {
            metrics::BUFFERED.of(*buffer).set(as_gauge(used.load(Ordering::Relaxed)));
        }
        metrics::BUFFER_BUDGET.set(as_gauge(self.0.budget_bytes));
    }
}

impl Charge {
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn total(&self) -> &AtomicUsize {
        &self.buffers.0.used[self.buffer.index()]
    }

    /// Counts `bytes` more, whether there is room or not. Returns the holder's total.
    pub fn add(&self, bytes: usize) -> usize {
        self.total().fetch_add(bytes, Ordering::Relaxed);
        if self.buffers.are_pressed() {
            self.buffers.0.pressed.notify_one();
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// Counts `bytes` more if this holder may have them.
    pub fn try_add(&self, bytes: usize) -> bool {
        let has_room = self.has_room(bytes);
        if has_room {
            self.add(bytes);
        }
        has_room
    }

    /// Whether this holder may have `bytes` more.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.has_room_above(bytes, FLOOR_BYTES)
    }

    /// The same for a holder that may have `floor_bytes` in any case, while they are free.
    pub fn has_room_above(&self, bytes: usize, floor_bytes: usize) -> bool {
        let held = self.bytes();
        held.saturating_add(bytes) <= self.buffers.allowance_bytes(held, floor_bytes)
    }

    /// Counts `bytes` less, or all that it has.
    pub fn sub(&self, bytes: usize) {
        let less = |held: usize| Some(held.saturating_sub(bytes));
        let before = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let before = before.expect("the closure always gives a value");
        self.total().fetch_sub(before.min(bytes), Ordering::Relaxed);
    }

    /// Sets the holder's total.
    pub fn set(&self, bytes: usize) {
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        if bytes >= before {
            self.total().fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            self.total().fetch_sub(before - bytes, Ordering::Relaxed);
        }
        if bytes > before && self.buffers.are_pressed() {
            self.buffers.0.pressed.notify_one();
        }
    }

    /// An empty holder of the same kind.
    #[must_use]
    pub fn sibling(&self) -> Self {
        self.buffers.holder(self.buffer)
    }

    /// Moves the bytes of this holder to a new one.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let empty = self.sibling();
        std::mem::replace(self, empty)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total().fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge needs no more")]
fn as_gauge(bytes: usize) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const BUDGET: usize = 8 * 1024 * 1024;

    #[test]
    fn what_is_dropped_is_given_back() {
        let buffers = Buffers::new(BUDGET);
        let mut one = buffers.holder(Buffer::Calls);
        let other = buffers.holder(Buffer::Links);
        assert_eq!(one.add(5), 5);
        other.set(7);
        other.set(3);
        assert_eq!(buffers.used_bytes(), 8);
        let taken = one.take();
        one.add(1);
        assert_eq!((taken.bytes(), one.bytes(), buffers.used_bytes()), (5, 1, 9));
        one.sub(100);
        assert_eq!((one.bytes(), buffers.used_bytes()), (0, 8));
        drop((one, other, taken));
        assert_eq!(buffers.used_bytes(), 0);
    }

    #[test]
    fn the_largest_are_refused_first_and_small_ones_while_nothing_is_free() {
        let buffers = Buffers::new(BUDGET);
        let holders: Vec<_> =
            std::iter::repeat_with(|| buffers.holder(Buffer::Calls)).take(20).collect();
        while holders.iter().any(|holder| holder.try_add(4_096)) {}
        let largest = holders.iter().map(Charge::bytes).max().unwrap();
        let free = BUDGET - buffers.used_bytes();
        assert!(free > 0 && largest <= BUDGET / SHARE, "{free} {largest}");
        let small = buffers.holder(Buffer::Links);
        assert!(small.try_add(FLOOR_BYTES));
        assert!(!holders.iter().any(|holder| holder.has_room(4_096)));
        small.set(BUDGET);
        assert!(!buffers.holder(Buffer::Calls).has_room(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_that_is_used_up_for_long_keeps_new_clients_away() {
        let (buffers, health) = (Buffers::new(BUDGET), Health::default());
        health.enter(crate::health::Phase::Serving);
        tokio::spawn(buffers.clone().watch(health.clone()));
        let holder = buffers.holder(Buffer::Links);
        holder.set(BUDGET);
        let not_long = LONG.checked_sub(WATCH_INTERVAL).expect("it is longer");
        tokio::time::sleep(not_long).await;
        holder.set(0);
        tokio::time::sleep(2 * WATCH_INTERVAL).await;
        holder.set(BUDGET);
        tokio::time::sleep(not_long).await;
        assert!(health.is_ready(), "it was not for long at a time");
        tokio::time::sleep(3 * WATCH_INTERVAL).await;
        assert!(!health.is_ready());
        holder.set(BUDGET / 2);
        tokio::time::sleep(2 * WATCH_INTERVAL).await;
        assert!(health.is_ready());
    }

    #[test]
    fn pressure_is_told_and_passes() {
        let buffers = Buffers::new(BUDGET);
        let holder = buffers.holder(Buffer::Clients);
        holder.add(BUDGET / 8 * SHED_ABOVE);
        assert!(buffers.pressed().now_or_never().is_none());
        holder.add(1);
        assert!(buffers.pressed().now_or_never().is_some());
        assert_eq!(buffers.excess_bytes(), BUDGET / 8 + 1);
        holder.sub(BUDGET / 8 + 1);
        assert_eq!((buffers.excess_bytes(), buffers.are_pressed()), (0, false));
    }
}
