//! The rate limits of one socket.

use std::time::Duration;

use super::{
    bucket::{Bucket, Quota},
    settings::Settings,
};

/// The number of refusals after which a socket is closed if it does not wait: refusing costs time,
/// too.
pub(super) const REFUSALS: Quota = Quota::new(1_000, Duration::from_secs(10));
/// A refusal by a limit of the user, such as that of presence ids, counts as this many: the event was decoded
/// before, and may be long.
const DECODED: u32 = 10;

/// An event counts once more for each such unit: a long event costs as much time, and as much
/// of Redis, as several short ones.
pub(super) const UNIT_BYTES: u32 = 4 * 1024;

/// The buckets of a socket. They belong to the socket, so there is no contention.
#[derive(Debug, Default)]
pub struct Budget {
    events: Bucket,
    candidates: Bucket,
    refusals: Bucket,
    /// The time until which the user's presence ids are used up, in microseconds of the clock.
    no_presence_until_us: u64,
}

/// The verdict on an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    Fine,
    /// Refused; retry after this time.
    Wait(Kind, Duration),
    /// Refused, and the socket is closed.
    Enough(Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Event,
    Candidate,
}

impl Budget {
    /// Counts the event called `name`, of this size. An event that ends the sender's own live call
    /// is free: a user must never be kept in a call, or a device kept ringing, by a limit.
    pub fn spend(
        &mut self,
        settings: &Settings,
        name: &str,
        bytes: usize,
        ends_own_call: bool,
        now_us: u64,
    ) -> Spent {
        let (kind, bucket, quota) = match name {
            "call:end" | "call:reject" | "call:busy" if ends_own_call => return Spent::Fine,
            "call:ice-candidate" => (Kind::Candidate, &mut self.candidates, settings.candidates),
            _ => (Kind::Event, &mut self.events, settings.events),
        };
        let count = u32::try_from(1 + bytes / UNIT_BYTES as usize).unwrap_or(u32::MAX);
        let take = |quota: Quota| bucket.take_many(count.min(quota.count()), quota, now_us);
        let Some(Err(wait)) = quota.map(take) else {
            return Spent::Fine;
        };
        match self.refusals.take_many(count.min(REFUSALS.count()), REFUSALS, now_us) {
            Ok(()) => Spent::Wait(kind, wait),
            Err(_) => Spent::Enough(kind),
        }
    }

    /// Records that the user's presence ids are used up for `wait`.
    pub fn note_no_presence(&mut self, wait: Duration, now_us: u64) {
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        self.no_presence_until_us = now_us.saturating_add(wait_us);
    }

    /// The time until the user has presence ids again; until then requests are refused without being decoded.
    pub fn no_presence_for(&self, now_us: u64) -> Option<Duration> {
        let wait_us = self.no_presence_until_us.checked_sub(now_us).filter(|wait| *wait > 0)?;
        Some(Duration::from_micros(wait_us))
    }

    /// Counts an event that passed [`Budget::spend`] and was refused by a limit of the user. False if the socket is to
    /// be closed for it.
    pub fn may_be_refused(&mut self, now_us: u64) -> bool {
        self.refusals.take_many(DECODED, REFUSALS, now_us).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_000_000_000;

    fn fine(budget: &mut Budget, name: &str, ends_own_call: bool, most: usize) -> usize {
        let settings = Settings::default();
        let spend = |_| budget.spend(&settings, name, 100, ends_own_call, NOW_US);
        (0..most).map(spend).take_while(|spent| *spent == Spent::Fine).count()
    }

    #[test]
    fn candidates_have_their_own_and_what_ends_the_own_call_is_never_limited() {
        let mut budget = Budget::default();
        assert_eq!(fine(&mut budget, "call:offer", false, 1_000), 200);
        assert_eq!(fine(&mut budget, "call:initiate", false, 1_000), 0, "they share one");
        assert_eq!(fine(&mut budget, "call:ice-candidate", false, 1_000), 500);
        for name in ["call:end", "call:reject", "call:busy"] {
            assert_eq!(fine(&mut budget, name, true, 100_000), 100_000);
            assert_eq!(fine(&mut budget, name, false, 10), 0, "a look-up for each");
            assert_eq!(fine(&mut Budget::default(), name, false, 1_000), 200);
        }
    }

    #[test]
    fn a_long_event_counts_as_many_short_ones() {
        let (mut budget, settings) = (Budget::default(), Settings::default());
        let mut spend = |bytes| budget.spend(&settings, "call:offer", bytes, false, NOW_US);
        assert_eq!((0..1_000).take_while(|_| spend(60_000) == Spent::Fine).count(), 13);
        assert_eq!((0..1_000).take_while(|_| spend(0) == Spent::Fine).count(), 5);
        let refused = (0..1_000).take_while(|_| matches!(spend(60_000), Spent::Wait(..))).count();
        assert_eq!(refused, 65, "one short event and one long one were refused before");
        // One that counts more than there ever is uses up all.
        let mut budget = Budget::default();
        assert_eq!(budget.spend(&settings, "x", usize::MAX, false, NOW_US), Spent::Fine);
        assert_ne!(budget.spend(&settings, "x", 0, false, NOW_US), Spent::Fine);
    }

    #[test]
    fn refusals_by_limits_of_the_user_close_the_socket_sooner() {
        let mut budget = Budget::default();
        assert_eq!((0..200).filter(|_| budget.may_be_refused(NOW_US)).count(), 100);
        assert!(budget.may_be_refused(NOW_US + 100_000), "one in 100 ms");
        assert!(!budget.may_be_refused(NOW_US + 100_000));
    }

    #[test]
    fn whoever_does_not_wait_is_closed() {
        let (mut budget, settings) = (Budget::default(), Settings::default());
        let spent: Vec<_> =
            (0..1_201).map(|_| budget.spend(&settings, "x", 0, false, NOW_US)).collect();
        assert_eq!(spent[200], Spent::Wait(Kind::Event, Duration::from_millis(20)));
        assert_eq!(spent.iter().filter(|spent| matches!(spent, Spent::Wait(..))).count(), 1_000);
        assert_eq!(spent[1_200], Spent::Enough(Kind::Event));
        // A client that waits is served.
        assert_eq!(budget.spend(&settings, "x", 0, false, NOW_US + 20_000), Spent::Fine);
    }
}
