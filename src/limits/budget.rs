//! What one socket may send.

use std::time::Duration;

use super::{
    bucket::{Bucket, Quota},
    settings::Settings,
};

/// How often a socket may be told to wait. One that goes on without waiting is closed: refusing costs time
/// too.
const REFUSALS: Quota = Quota::new(1_000, Duration::from_secs(10));

/// What a socket has left. It belongs to the socket: nobody else waits for it.
#[derive(Debug, Default)]
pub struct Budget {
    events: Bucket,
    candidates: Bucket,
    refusals: Bucket,
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    Fine,
    /// It is refused, and may come again after this time.
    Wait(Kind, Duration),
    /// It is refused, and so is its sender from now on.
    Enough(Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Event,
    Candidate,
}

impl Budget {
    /// Counts the event called `name`.
    pub fn spend(&mut self, settings: &Settings, name: &str, now_us: u64) -> Spent {
        let (kind, bucket, quota) = match name {
            // Nobody must be kept in a call, or made to ring, because they sent too much.
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
        // Whoever does wait is served.
        assert_eq!(budget.spend(&settings, "x", NOW_US + 20_000), Spent::Fine);
    }
}
