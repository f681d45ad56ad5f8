//! Time as a value. [`Clock`] is the only reader of the machine's clock.

use std::{
    ops::{Add, Sub},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Unix time in milliseconds.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the maximum.
    fn add(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the minimum.
    fn sub(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(millis))
    }
}

impl Sub for Timestamp {
    type Output = Duration;

    /// Zero if `earlier` is later, because clocks of two machines may differ.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The source of the time of day.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// The clock shared by all nodes.
    Shared(Arc<SharedClock>),
    /// Tokio's clock, counted from `origin`: pausing tokio's time pauses this clock.
    Tokio { origin: Timestamp, started: Instant },
}

/// The time of day that a cluster shares, counted on by this machine's steady clock: a machine whose time of day
/// is wrong or is set anew moves no deadline. `cluster::timekeeper` sets it.
#[derive(Debug)]
pub struct SharedClock {
    started: Instant,
    /// The shared time at `started`.
    origin_ms: AtomicU64,
}

/// How far a clock moves at a time that follows another: a heartbeat's answer tells the time no better.
const MAX_STEP: Duration = Duration::from_millis(200);

impl SharedClock {
    /// A clock that starts at `now` and counts on until it is set.
    pub fn starting_at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), origin_ms: AtomicU64::new(now.as_millis()) })
    }

    /// Notes that it is `now`, at once.
    pub fn set(&self, now: Timestamp) {
        let origin = now - self.started.elapsed();
        self.origin_ms.store(origin.as_millis(), Ordering::Relaxed);
    }

    /// Moves towards `now`, in a small step.
    pub fn follow(&self, now: Timestamp) {
        let known = Timestamp(self.origin_ms.load(Ordering::Relaxed));
        let origin = now - self.started.elapsed();
        let step = (origin - known).max(known - origin).min(MAX_STEP);
        let origin = if origin > known { known + step } else { known - step };
        self.origin_ms.store(origin.as_millis(), Ordering::Relaxed);
    }

    pub fn read(&self) -> Timestamp {
        Timestamp(self.read_us() / 1_000)
    }

    fn read_us(&self) -> u64 {
        self.origin_ms.load(Ordering::Relaxed) * 1_000 + micros(self.started.elapsed())
    }
}

impl Clock {
    /// A clock for tests that starts at a fixed time of day.
    pub fn tokio() -> Self {
        Self::Tokio { origin: Timestamp::from_millis(1_800_000_000_000), started: Instant::now() }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine's clock")]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
                Timestamp(0) + since_epoch.unwrap_or_default()
            }
            Self::Shared(shared) => shared.read(),
            Self::Tokio { origin, started } => *origin + started.elapsed(),
        }
    }

    /// The same in microseconds, for short durations. Between nodes its error is the asymmetry of a heartbeat's round trip,
    /// and up to a millisecond, the resolution of Redis' time.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine's clock")]
    pub fn now_us(&self) -> u64 {
        match self {
            Self::System => {
                micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
            }
            Self::Shared(shared) => shared.read_us(),
            Self::Tokio { origin, started } => {
                origin.as_millis() * 1_000 + micros(started.elapsed())
            }
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_clock_is_set_at_once_and_follows_in_small_steps() {
        let time = |seconds| Timestamp(0) + Duration::from_secs(seconds);
        let clock = SharedClock::starting_at(time(5_000));
        clock.set(time(100));
        assert!(clock.read() - time(100) < Duration::from_secs(10));
        clock.follow(time(200));
        assert!(clock.read() < time(150));
        let before = clock.read();
        clock.follow(time(1));
        assert!(before - clock.read() <= MAX_STEP);
    }
}
