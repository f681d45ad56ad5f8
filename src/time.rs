//! Time as a value. Nothing but [`Clock`] asks the machine what time it is.

use std::{
    ops::{Add, Sub},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Unix time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

    /// Stops at the end of time instead of wrapping round.
    fn add(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    /// Stops at the beginning of time instead of wrapping round.
    fn sub(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(millis))
    }
}

impl Sub for Timestamp {
    type Output = Duration;

    /// Zero when `earlier` is later: clocks of two machines may disagree.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Where the time of day comes from.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// The clock that all nodes share.
    Shared(Arc<SharedClock>),
    /// Tokio's clock, counted from `origin`: a test that pauses tokio's time pauses this one too.
    Tokio { origin: Timestamp, started: tokio::time::Instant },
}

/// The time of day as a server that all nodes ask says it is, counted on from there by this machine's
/// steady clock: a machine whose time of day is wrong or is set anew moves no deadline.
#[derive(Debug)]
pub struct SharedClock {
    started: Instant,
    /// The shared time of day when `started` was.
    origin_ms: AtomicU64,
    /// Whether it has been set.
    is_set: AtomicBool,
}

/// Times that differ by more are not the same clock's.
const JUMP: Duration = Duration::from_secs(1);
/// How far a clock that has been set moves at a time.
const MAX_STEP: Duration = Duration::from_millis(100);

impl SharedClock {
    /// A clock that says that it is `now` until it is set.
    pub fn starting_at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            origin_ms: AtomicU64::new(now.as_millis()),
            is_set: AtomicBool::new(false),
        })
    }

    /// Notes that it is `now`: at once the first time, later in small steps, so that no deadline
    /// passes because another server is asked. Answers whether that is far from what was known.
    pub fn set(&self, now: Timestamp) -> bool {
        let origin = now - self.started.elapsed();
        let known = Timestamp(self.origin_ms.load(Ordering::Relaxed));
        let (ahead, behind) = (origin - known, known - origin);
        let was_set = self.is_set.swap(true, Ordering::Relaxed);
        let origin = match was_set {
            true if ahead > MAX_STEP => known + MAX_STEP,
            true if behind > MAX_STEP => known - MAX_STEP,
            _ => origin,
        };
        self.origin_ms.store(origin.as_millis(), Ordering::Relaxed);
        was_set && ahead.max(behind) > JUMP
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.origin_ms.load(Ordering::Relaxed)) + self.started.elapsed()
    }
}

impl Clock {
    /// A clock for tests, which begins now at a fixed time of day.
    pub fn tokio() -> Self {
        Self::Tokio {
            origin: Timestamp::from_millis(1_800_000_000_000),
            started: tokio::time::Instant::now(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine's clock")]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
                Timestamp(0) + since_epoch.unwrap_or_default()
            }
            Self::Shared(shared) => shared.now(),
            Self::Tokio { origin, started } => *origin + started.elapsed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_clock_is_set_at_once_and_follows_a_jump_slowly() {
        let time = |seconds| Timestamp(0) + Duration::from_secs(seconds);
        let clock = SharedClock::starting_at(time(5_000));
        assert!(!clock.set(time(100)), "the first time is no jump");
        assert!(clock.now() - time(100) < Duration::from_secs(10));
        assert!(clock.set(time(200)));
        assert!(clock.now() < time(150), "it follows in small steps");
        let before = clock.now();
        assert!(clock.set(time(1)));
        assert!(before - clock.now() <= MAX_STEP);
    }
}
