//! Token buckets: a burst, and a refill over time.

use std::{fmt, str::FromStr, time::Duration};

/// `200/4s`: a burst of 200, which refills within 4 s, so 50 per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    count: u32,
    period: Duration,
}

/// Bound on the refill time.
const MAX_PERIOD: Duration = Duration::from_hours(24);

impl Quota {
    /// # Panics
    /// If the count or the time is zero: for constants only.
    pub const fn new(count: u32, period: Duration) -> Self {
        assert!(count > 0 && !period.is_zero());
        Self { count, period }
    }

    /// The time to refill one token.
    fn interval_ns(self) -> u64 {
        let period = u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX);
        (period / u64::from(self.count)).max(1)
    }

    fn cost_ns(self, count: u32) -> u64 {
        self.interval_ns().saturating_mul(u64::from(count))
    }

    fn window_ns(self) -> u64 {
        self.cost_ns(self.count)
    }

    pub fn count(self) -> u32 {
        self.count
    }

    /// So many times as many over the same time.
    #[must_use]
    pub fn times(self, factor: u32) -> Self {
        Self { count: self.count.saturating_mul(factor), ..self }
    }

    /// The one that refills faster.
    #[must_use]
    pub fn faster(self, other: Self) -> Self {
        if other.interval_ns() < self.interval_ns() { other } else { self }
    }

    /// As many over `period` as fit into all of `parts` at once, and as many as fit over that time.
    pub fn sum(parts: &[Self], period: Duration) -> Self {
        let at_once: u64 = parts.iter().map(|part| u64::from(part.count)).sum();
        let over_time = |part: &Self| period.as_nanos().div_ceil(u128::from(part.interval_ns()));
        let over_time = parts.iter().map(over_time).sum::<u128>();
        let count = u128::from(at_once).max(over_time).max(1);
        Self { count: u32::try_from(count).unwrap_or(u32::MAX), period }
    }
}

impl FromStr for Quota {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "a count and the time it is for, up to a day, such as 200/4s";
        let (count, period) = text.split_once('/').ok_or(EXPECTED)?;
        let count: u32 = count.parse().map_err(|_| EXPECTED)?;
        let period = humantime::parse_duration(period).map_err(|_| EXPECTED)?;
        let fits = count > 0 && !period.is_zero() && period <= MAX_PERIOD;
        if fits { Ok(Self { count, period }) } else { Err(EXPECTED) }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without blanks: it is one word in the settings.
        let period = humantime::format_duration(self.period).to_string().replace(' ', "");
        write!(f, "{}/{period}", self.count)
    }
}

/// The fill of a bucket, as one number: the time at which it is full again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at_ns: u64,
}

impl Bucket {
    /// Takes a token; if there is none, returns the time until there is.
    pub fn take(&mut self, quota: Quota, now_us: u64) -> Result<(), Duration> {
        self.take_many(1, quota, now_us)
    }

    /// Takes `count` tokens. If there are fewer, takes none and returns the time until there are
    /// enough. There are never more than the quota.
    pub fn take_many(&mut self, count: u32, quota: Quota, now_us: u64) -> Result<(), Duration> {
        self.check_many(count, quota, now_us)?;
        self.full_at_ns = self.full_at_ns.saturating_add(quota.cost_ns(count));
        Ok(())
    }

    /// Whether there is a token.
    pub fn check(&mut self, quota: Quota, now_us: u64) -> Result<(), Duration> {
        self.check_many(1, quota, now_us)
    }

    fn check_many(&mut self, count: u32, quota: Quota, now_us: u64) -> Result<(), Duration> {
        let now = now_us.saturating_mul(1_000);
        let latest = now.saturating_add(quota.window_ns());
        // After the clock was set back, nobody is locked out for longer than the refill time.
        self.full_at_ns = self.full_at_ns.clamp(now, latest);
        match self.full_at_ns.saturating_add(quota.cost_ns(count)).checked_sub(latest) {
            None | Some(0) => Ok(()),
            Some(wait_ns) => Err(Duration::from_nanos(wait_ns)),
        }
    }

    /// Whether the bucket is full.
    pub fn is_full(self, quota: Quota, now_us: u64) -> bool {
        let mut looked_at = self;
        // A time far in the future was written before the clock was set back.
        let _ = looked_at.check(quota, now_us);
        looked_at.full_at_ns <= now_us.saturating_mul(1_000)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FOUR_A_SECOND: Quota = Quota::new(4, Duration::from_secs(1));

    #[test]
    fn so_many_at_once_and_as_many_again_over_the_time() {
        let mut bucket = Bucket::default();
        let now = 1_000_000_000;
        for _ in 0..4 {
            assert_eq!(bucket.take(FOUR_A_SECOND, now), Ok(()));
        }
        assert_eq!(bucket.take(FOUR_A_SECOND, now), Err(Duration::from_millis(250)));
        assert_eq!(bucket.take(FOUR_A_SECOND, now + 249_999), Err(Duration::from_micros(1)));
        assert_eq!(bucket.take(FOUR_A_SECOND, now + 250_000), Ok(()));
        assert!(!bucket.is_full(FOUR_A_SECOND, now + 1_249_999));
        assert!(bucket.is_full(FOUR_A_SECOND, now + 1_250_000));
    }

    #[test]
    fn many_are_taken_together_or_not_at_all() {
        let (mut bucket, now) = (Bucket::default(), 1_000_000_000);
        assert_eq!(bucket.take_many(3, FOUR_A_SECOND, now), Ok(()));
        assert_eq!(bucket.take_many(3, FOUR_A_SECOND, now), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take_many(0, FOUR_A_SECOND, now), Ok(()));
        assert_eq!(bucket.take(FOUR_A_SECOND, now), Ok(()));
        assert_eq!(
            bucket.take_many(4, FOUR_A_SECOND, now + 999_999),
            Err(Duration::from_micros(1))
        );
        assert_eq!(bucket.take_many(4, FOUR_A_SECOND, now + 1_000_000), Ok(()));
        assert!(
            Bucket::default().take_many(5, FOUR_A_SECOND, now).is_err(),
            "there never are as many"
        );
    }

    #[test]
    fn a_sum_of_quotas_lets_through_what_each_does() {
        let parts = [FOUR_A_SECOND, Quota::new(100, Duration::from_secs(50))];
        let text = |period| Quota::sum(&parts, Duration::from_secs(period)).to_string();
        assert_eq!((text(1), text(30)), ("104/1s".to_owned(), "180/30s".to_owned()));
    }

    #[test]
    fn a_quota_is_written_as_a_count_and_a_time() {
        for text in ["200/4s", "1/1m", "30/1m", "5/250ms", "7/1h1m"] {
            assert_eq!(text.parse::<Quota>().unwrap().to_string(), text);
        }
        for text in ["", "0/1s", "5", "5/", "/5s", "-1/5s", "5/0s", "5/2days", "x/1s", "5/1"] {
            assert!(text.parse::<Quota>().is_err(), "{text}");
        }
    }

    proptest! {
        /// In any time T at most the burst and T's share of refills pass; waiting as told always succeeds.
        #[test]
        fn never_more_than_the_quota_and_a_wait_is_enough(
            count in 1..50_u32,
            period_ms in 1..100_000_u64,
            pauses_us in prop::collection::vec(0..2_000_000_u64, 1..300),
        ) {
            let quota = Quota::new(count, Duration::from_millis(period_ms));
            let (mut bucket, mut now, mut taken) = (Bucket::default(), 1_000_000_000_u64, 0_u64);
            let began = now;
            for pause in pauses_us {
                now += pause;
                match bucket.take(quota, now) {
                    Ok(()) => taken += 1,
                    Err(wait) => {
                        let wait_us = u64::try_from(wait.as_nanos().div_ceil(1_000)).unwrap();
                        prop_assert!(wait_us > 0);
                        prop_assert!(bucket.clone().check(quota, now + wait_us).is_ok());
                        prop_assert!(wait_us == 1 || bucket.clone().check(quota, now + wait_us - 2).is_err());
                    }
                }
                let share = (now - began) * 1_000 / quota.interval_ns();
                prop_assert!(taken <= u64::from(count) + share);
            }
        }

        /// However the clock is set, no wait exceeds the refill time.
        #[test]
        fn a_clock_that_is_set_anew_locks_nobody_out(
            count in 1..50_u32,
            period_ms in 1..100_000_u64,
            times_us in prop::collection::vec(0..u64::MAX / 2_000, 1..100),
        ) {
            let quota = Quota::new(count, Duration::from_millis(period_ms));
            let mut bucket = Bucket::default();
            for now in times_us {
                let _ = bucket.take(quota, now);
                prop_assert!(bucket.clone().check(quota, now + period_ms * 1_000 + 1).is_ok());
                prop_assert!(bucket.is_full(quota, now + period_ms * 1_000 + 1));
            }
        }
    }
}
