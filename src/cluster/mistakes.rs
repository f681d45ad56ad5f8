//! Deliberate mistakes in this module. The simulation makes one at a time, and must detect it.
//! Only builds with debug assertions have them; in others [`is_made`] is `false` at compile time.

use std::cell::Cell;

/// A deliberate mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A record is written over any version.
    VersionUnchecked,
    /// Claims are not compared.
    ClaimsUnchecked,
    /// An ended call keeps its users' claims.
    ClaimsKept,
    /// A record is written without its deadline.
    NoDeadline,
    /// Nothing is repaired after keys were evicted.
    NotRepaired,
    /// Users of a dead node are never evicted.
    DeadNotEvicted,
    /// A node counts as dead after half the interval of heartbeats.
    LeaseTooShort,
    /// A heartbeat from before the store's clock was set back counts as one of a living node.
    FutureBelieved,
    /// A node takes the store's time of day for the cluster's.
    TimeOfStoreTaken,
    /// A node that sees the store's clock jump does not wait for the heartbeats of others.
    JumpUnnoticed,
    /// A link is not woken by the messages that are queued for it.
    WakeUpLost,
    /// Messages that are missing on a link are not requested.
    GapIgnored,
    /// A duplicate of a frame is delivered again.
    DuplicatesTaken,
}

impl Mistake {
    pub const ALL: [Self; 13] = [
        Self::VersionUnchecked,
        Self::ClaimsUnchecked,
        Self::ClaimsKept,
        Self::NoDeadline,
        Self::NotRepaired,
        Self::DeadNotEvicted,
        Self::LeaseTooShort,
        Self::FutureBelieved,
        Self::TimeOfStoreTaken,
        Self::JumpUnnoticed,
        Self::WakeUpLost,
        Self::GapIgnored,
        Self::DuplicatesTaken,
    ];
}

thread_local! {
    static MADE: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Makes a mistake on this thread from now on, or none.
pub fn make(mistake: Option<Mistake>) {
    MADE.set(mistake);
}

pub(super) fn is_made(mistake: Mistake) -> bool {
    cfg!(debug_assertions) && MADE.get() == Some(mistake)
}
