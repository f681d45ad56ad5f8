//! Metrics and rate-limited log lines of reached limits.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use tracing::warn;

use crate::metrics::{self, Label, Limit};

/// Pause between the log lines of a limit.
const INTERVAL_US: u64 = 10_000_000;

/// The last log line of each limit, and the occurrences since.
#[derive(Debug)]
pub struct Notices {
    each: Vec<Notice>,
    doubted: AtomicBool,
}

/// When one thing was last in the log, and how often there was cause since.
#[derive(Debug, Default)]
pub struct Notice {
    said_us: AtomicU64,
    unsaid: AtomicU64,
}

impl Default for Notices {
    fn default() -> Self {
        let each = Limit::ALL.iter().map(|_| Notice::default()).collect();
        Self { each, doubted: AtomicBool::new(false) }
    }
}

impl Notices {
    /// Records that `who` reached a limit.
    pub fn reached(&self, limit: Limit, who: impl fmt::Display, now_us: u64) {
        metrics::LIMITS.of(limit).increment(1);
        if let Some(unsaid) = self.each[limit.index()].says(now_us) {
            warn!(limit = limit.as_str(), %who, unsaid, "a limit was reached");
        }
    }

    /// Records a forwarding header of an untrusted peer.
    pub fn doubted(&self, proxy: impl fmt::Display, header: &str) {
        if !self.doubted.swap(true, Ordering::Relaxed) {
            warn!(
                %proxy, header,
                "a request names the address that it is forwarded for, and its sender is not among \
                 SWITCHBOARD_TRUSTED_PROXIES: if it is your proxy, all its clients count as one address"
            );
        }
    }
}

impl Notice {
    /// Whether to log now, and the number of suppressed lines.
    pub fn says(&self, now_us: u64) -> Option<u64> {
        let said_us = self.said_us.load(Ordering::Relaxed);
        let is_due = said_us == 0 || now_us.abs_diff(said_us) >= INTERVAL_US;
        let (order, relaxed) = (Ordering::Relaxed, Ordering::Relaxed);
        if is_due && self.said_us.compare_exchange(said_us, now_us, order, relaxed).is_ok() {
            return Some(self.unsaid.swap(0, Ordering::Relaxed));
        }
        self.unsaid.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_speaks_of_a_limit_now_and_then() {
        let notice = Notice::default();
        assert_eq!(notice.says(1_000), Some(0));
        assert_eq!((notice.says(1_000), notice.says(INTERVAL_US)), (None, None));
        assert_eq!(notice.says(INTERVAL_US + 1_000), Some(2));
        assert_eq!(notice.says(INTERVAL_US + 1_000), None);
    }
}
