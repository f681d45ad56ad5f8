//! The rate limits of one socket.

use std::time::Duration;

use super::{
    bucket::{Bucket, Quota},
    settings::Settings,
};

/// Bound on refusals. A socket that goes on without waiting is closed, because refusals cost time too.
const REFUSALS: Quota = Quota::new(1_000, Duration::from_secs(10));

/// The buckets of a socket. They belong to the socket, so there is no contention.
#[derive(Debug, Default)]
pub struct Budget {
    events: Bucket,
    candidates: Bucket,
    refusals: Bucket,
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
    /// Counts the event `name`.
    pub fn spend(&mut self, settings: &Settings, name: &str, now_us: u64) -> Spent {
        let (kind, bucket, quota) = match name {
            // Ending a call must always be possible.
            "call:end" | "call:reject" | "call:busy" => return Spent::Fine,
            "call:ice-candidate" => (Kind::Candidate, &mut self.candidates, settings.candidates),
            _ => (Kind::Event, &mut self.events, settings.events),
        };
        let Some(Err(wait)) = quota.map(|quota| bucket.take(quota, now_us)) else {
            return Spent::Fine;
        };
        match self.refusals.take(REFUSALS, now_us) {
            Ok(()) => Spent::Wait(kind, wait),
            Err(_) => Spent::Enough(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_000_000_000;

    fn fine(budget: &mut Budget, name: &str, most: usize) -> usize {
        let settings = Settings::default();
        let spend = |_| budget.spend(&settings, name, NOW_US);
        (0..most).map(spend).take_while(|spent| *spent == Spent::Fine).count()
    }

    #[test]
    fn candidates_have_their_own_and_what_ends_a_call_is_never_limited() {
        let mut budget = Budget::default();
        assert_eq!(fine(&mut budget, "call:offer", 1_000), 200);
        assert_eq!(fine(&mut budget, "call:initiate", 1_000), 0, "they share one");
        assert_eq!(fine(&mut budget, "call:ice-candidate", 1_000), 500);
        for name in ["call:end", "call:reject", "call:busy"] {
            assert_eq!(fine(&mut budget, name, 100_000), 100_000);
        }
    }

    #[test]
    fn whoever_does_not_wait_is_closed() {
        let (mut budget, settings) = (Budget::default(), Settings::default());
        let spent: Vec<_> = (0..1_201).map(|_| budget.spend(&settings, "x", NOW_US)).collect();
        assert_eq!(spent[200], Spent::Wait(Kind::Event, Duration::from_millis(20)));
        assert_eq!(spent.iter().filter(|spent| matches!(spent, Spent::Wait(..))).count(), 1_000);
        assert_eq!(spent[1_200], Spent::Enough(Kind::Event));
        // A socket that waits is served.
        assert_eq!(budget.spend(&settings, "x", NOW_US + 20_000), Spent::Fine);
    }
}
