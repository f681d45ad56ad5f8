//! Deliberate mistakes in this module. The simulation makes one at a time, and must detect it.
//! Only builds with debug assertions have them; in others [`is_made`] is `false` at compile time.

use std::cell::Cell;

/// A deliberate mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A link is not woken by the messages that are queued for it.
    WakeUpLost,
    /// Messages that are missing on a link are not requested.
    GapIgnored,
    /// A duplicate of a frame is delivered again.
    DuplicatesTaken,
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
