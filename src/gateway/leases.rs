//! The leases of tokens: when each socket's token expires, and which socket is due for a warning or
//! for closing. One queue for all sockets of the node: an idle socket has no timer and no task.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    ids::{CallId, SocketId},
    time::Timestamp,
};

/// The time between the warning and the expiry of a token.
const WARNING: Duration = Duration::from_mins(1);
/// The interval at which an expired socket that is kept for its call is checked.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub struct Leases(Mutex<Index>);

#[derive(Debug, Default)]
struct Index {
    leases: HashMap<SocketId, Lease>,
    /// Each socket once, by its `due_at`.
    queue: BTreeSet<(Timestamp, SocketId)>,
    /// The calls for which sockets with an expired token are kept.
    kept: HashMap<SocketId, CallId>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    expires_at: Timestamp,
    due_at: Timestamp,
}

/// The action that is due for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Warn its client that the token expires at this time.
    Warn(Timestamp),
    /// The token has expired.
    Expired,
}

impl Leases {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.lock()
    }

    /// Begins the lease of a socket. The warning is due a minute before the expiry, or at once if
    /// that has passed.
    pub fn begin(&self, socket: SocketId, expires_at: Timestamp, now: Timestamp) {
        self.index().set(socket, expires_at, (expires_at - WARNING).max(now));
    }

    /// Renews a lease. For a short token the warning is due after half of its time, so that a
    /// client that answers each warning with a token does not do so without a pause.
    pub fn renew(&self, socket: SocketId, expires_at: Timestamp, now: Timestamp) {
        let half = now + (expires_at - now) / 2;
        let mut index = self.index();
        index.kept.remove(&socket);
        index.set(socket, expires_at, (expires_at - WARNING).max(half));
    }

    /// Ends the lease of a closed socket.
    pub fn forget(&self, socket: SocketId) {
        let mut index = self.index();
        index.kept.remove(&socket);
        if let Some(lease) = index.leases.remove(&socket) {
            index.queue.remove(&(lease.due_at, socket));
        }
    }

    /// The sockets that are due, at most `limit`. An expired socket is due again until it is
    /// forgotten.
    pub fn take_due(&self, now: Timestamp, limit: usize) -> Vec<(SocketId, Due)> {
        let mut index = self.index();
        let mut all = Vec::new();
        while all.len() < limit
            && let Some((due_at, socket)) = index.queue.first().copied()
            && due_at <= now
        {
            let expires_at = index.leases.get(&socket).map_or(due_at, |lease| lease.expires_at);
            if expires_at <= now {
                index.set(socket, expires_at, now + LOOK_AGAIN);
                all.push((socket, Due::Expired));
            } else {
                index.set(socket, expires_at, expires_at);
                all.push((socket, Due::Warn(expires_at)));
            }
        }
        all
    }

    /// The call for which an expired socket is kept.
    pub fn kept(&self, socket: SocketId) -> Option<CallId> {
        self.index().kept.get(&socket).copied()
    }

    /// Keeps an expired socket for this call, unless the socket is gone.
    pub fn keep(&self, socket: SocketId, call: CallId) {
        let mut index = self.index();
        if index.leases.contains_key(&socket) {
            index.kept.insert(socket, call);
        }
    }
}

impl Index {
    fn set(&mut self, socket: SocketId, expires_at: Timestamp, due_at: Timestamp) {
        if let Some(before) = self.leases.insert(socket, Lease { expires_at, due_at }) {
            self.queue.remove(&(before.due_at, socket));
        }
        self.queue.insert((due_at, socket));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn socket(number: u32) -> SocketId {
        format!("{number:016}").parse().unwrap()
    }

    #[test]
    fn a_minute_before_the_end_it_warns_and_at_the_end_it_says_so_until_told_to_stop() {
        let leases = Leases::default();
        leases.begin(socket(1), at(1_000), at(0));
        assert_eq!(leases.take_due(at(939), 9), []);
        assert_eq!(leases.take_due(at(940), 9), [(socket(1), Due::Warn(at(1_000)))]);
        assert_eq!(leases.take_due(at(999), 9), []);
        assert_eq!(leases.take_due(at(1_000), 9), [(socket(1), Due::Expired)]);
        assert_eq!(leases.take_due(at(1_000), 9), []);
        assert_eq!(leases.take_due(at(1_001), 9), [(socket(1), Due::Expired)]);
        leases.forget(socket(1));
        assert_eq!(leases.take_due(at(2_000), 9), []);
        assert!(leases.index().leases.is_empty() && leases.index().queue.is_empty());
    }

    #[test]
    fn a_short_token_is_warned_of_at_once_and_a_short_new_one_half_way() {
        let leases = Leases::default();
        leases.begin(socket(1), at(10), at(0));
        assert_eq!(leases.take_due(at(0), 9), [(socket(1), Due::Warn(at(10)))]);
        leases.renew(socket(1), at(30), at(0));
        assert_eq!(leases.take_due(at(14), 9), []);
        assert_eq!(leases.take_due(at(15), 9), [(socket(1), Due::Warn(at(30)))]);
        leases.renew(socket(1), at(1_000), at(20));
        assert_eq!(leases.take_due(at(939), 9), []);
        assert_eq!(leases.take_due(at(940), 9), [(socket(1), Due::Warn(at(1_000)))]);
    }

    #[test]
    fn many_that_are_due_together_come_in_parts() {
        let leases = Leases::default();
        for number in 0..100 {
            leases.begin(socket(number), at(5), at(0));
        }
        assert_eq!(leases.take_due(at(1), 60).len(), 60);
        assert_eq!(leases.take_due(at(1), 60).len(), 40);
        assert_eq!(leases.take_due(at(5), 200).len(), 100);
    }

    #[test]
    fn a_new_token_ends_the_time_in_which_only_the_call_is_kept() {
        let leases = Leases::default();
        let call = CallId::generate(at(1));
        leases.keep(socket(1), call);
        assert_eq!(leases.kept(socket(1)), None, "it is gone");
        leases.begin(socket(1), at(5), at(0));
        leases.keep(socket(1), call);
        assert_eq!(leases.kept(socket(1)), Some(call));
        leases.renew(socket(1), at(500), at(6));
        assert_eq!(leases.kept(socket(1)), None);
    }
}
