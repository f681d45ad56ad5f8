//! Pending work: steps that failed because the shared state was unavailable, or whose outcome is
//! unknown because a reply was lost.
//!
//! Owns the queue, its bound and the retry policy; the sweeper works it off. Work is due at once,
//! and in every sweep again until the shared state answers. Work that has no effect then has a
//! second attempt, because a write without a reply may be applied late, and a lost record may
//! still be restored.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tracing::warn;

use super::{
    Calls,
    recovery::WINDOW,
    sweeper::{AT_ONCE, SWEEP_INTERVAL, some_at_a_time},
};
use crate::{
    call::{Call, Device, Role},
    cluster::Unavailable,
    ids::{CallId, SocketId, UserId},
    metrics::{self, Label, Limit, Work as Kind},
    time::Timestamp,
};

/// The most pending work of a node: several times its number of sockets. Beyond it, the whole state
/// of the node is compared with the shared state.
const MAX_PENDING: usize = 100_000;
/// The most commits among it, each with a record of up to some 20 KB.
const MAX_COMMITS: usize = 10_000;
/// The most work that is taken from the queue at a time.
const BATCH: usize = 4 * AT_ONCE;
/// The time within which a write may still be applied after the shared state is available again.
const LATE: Duration = Duration::from_secs(2);
/// The time that an applied call waits for its caller's retry. The caller was told to retry after a
/// second, the retry may fail once more, and the commit may be applied late.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub enum Work {
    /// Detach a socket that left.
    SignOff { device: Device, may_return: bool },
    /// Detach a socket that could not join, unless it has joined since. One for each user is enough,
    /// however often clients retry.
    UndoJoin(Device),
    /// Tell a socket that joined about its user's call.
    Welcome(Device),
    /// Announce the presence of a user, which a write without a reply or a dead node may have
    /// changed.
    Presence(UserId),
    /// Notify everybody of a change whose commit had no reply, if it was applied. The call was as
    /// given before.
    Commit(Box<Call>),
    /// Ring or undo a new call whose commit had no reply. Its caller was asked to retry.
    NewCall { id: CallId, caller: Device },
    /// Give up waiting for the reply to a flush.
    Flush { call: CallId, to: Role },
    /// Compare the whole state of this node with the shared state.
    Recovery,
}

/// Two items of one kind with one key are the same work.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Device(UserId, SocketId),
    User(UserId),
    Call(CallId),
    Path(CallId, Role),
    Node,
}

/// Work that is due.
#[derive(Debug, Clone)]
pub struct Item {
    pub work: Work,
    /// Whether this is the second attempt.
    pub is_last: bool,
    due_at: Timestamp,
    /// Counts how often the work has begun.
    begun: u64,
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// There is nothing to do yet.
    Nothing,
    /// The shared state cannot tell yet.
    Unknown,
}

/// The queue: the items of each kind.
#[derive(Default)]
pub struct Pending(Mutex<[BTreeMap<Key, Item>; Kind::ALL.len()]>);

impl Work {
    pub fn kind(&self) -> Kind {
        match self {
            Self::SignOff { .. } | Self::UndoJoin(_) => Kind::SignOff,
            Self::Welcome(_) => Kind::Welcome,
            Self::Presence(_) => Kind::Presence,
            Self::Commit(_) => Kind::Commit,
            Self::NewCall { .. } => Kind::NewCall,
            Self::Flush { .. } => Kind::Flush,
            Self::Recovery => Kind::Recovery,
        }
    }

    fn key(&self) -> Key {
        match self {
            Self::SignOff { device, .. } | Self::Welcome(device) => {
                Key::Device(device.user.clone(), device.socket)
            }
            Self::UndoJoin(Device { user, .. }) | Self::Presence(user) => Key::User(user.clone()),
            Self::Commit(call) => Key::Call(call.id),
            Self::NewCall { id, .. } => Key::Call(*id),
            Self::Flush { call, to } => Key::Path(*call, *to),
            Self::Recovery => Key::Node,
        }
    }
}

/// The time from an attempt without effect to the second one.
fn patience(kind: Kind) -> Duration {
    match kind {
        Kind::NewCall => TAKEN_UP_WITHIN,
        Kind::Welcome => WINDOW,
        Kind::SignOff | Kind::Presence | Kind::Commit | Kind::Flush | Kind::Recovery => LATE,
    }
}

impl Pending {
    fn kinds(&self) -> MutexGuard<'_, [BTreeMap<Key, Item>; Kind::ALL.len()]> {
        self.0.lock()
    }

    /// Adds work that is due at `at`. If it is pending already, it begins anew, and is as it was
    /// first. Returns false if the queue is full.
    #[must_use]
    pub fn add(&self, work: Work, at: Timestamp) -> bool {
        let mut kinds = self.kinds();
        let (kind, key) = (work.kind(), work.key());
        let len: usize = kinds.iter().map(BTreeMap::len).sum();
        let items = &mut kinds[kind.index()];
        if let Some(item) = items.get_mut(&key) {
            // Repeated resets must not postpone the recovery.
            item.due_at = if kind == Kind::Recovery { item.due_at.min(at) } else { at };
            (item.is_last, item.begun) = (false, item.begun + 1);
            return true;
        }
        // There is one recovery at most, and two flushes of each call.
        let is_full = len >= MAX_PENDING || kind == Kind::Commit && items.len() >= MAX_COMMITS;
        if is_full && !matches!(kind, Kind::Recovery | Kind::Flush) {
            return false;
        }
        items.insert(key, Item { work, is_last: false, due_at: at, begun: 0 });
        true
    }

    /// Up to `limit` items that are due. They stay in the queue until [`Pending::attempted`].
    pub fn due(&self, kind: Kind, now: Timestamp, limit: usize) -> Vec<Item> {
        let kinds = self.kinds();
        let due = kinds[kind.index()].values().filter(|item| item.due_at <= now);
        due.take(limit).cloned().collect()
    }

    /// Processes the outcome of an attempt, unless the work has begun anew since.
    pub fn attempted(&self, item: &Item, outcome: Outcome, now: Timestamp) {
        let mut kinds = self.kinds();
        let (kind, key) = (item.work.kind(), item.work.key());
        let items = &mut kinds[kind.index()];
        let Some(known) = items.get_mut(&key).filter(|known| known.begun == item.begun) else {
            return;
        };
        match outcome {
            Outcome::Unknown => known.due_at = now + SWEEP_INTERVAL,
            Outcome::Nothing if !item.is_last => {
                (known.due_at, known.is_last) = (now + patience(kind), true);
            }
            Outcome::Nothing | Outcome::Done => drop(items.remove(&key)),
        }
    }

    /// Whether this is a new call of unknown outcome that `socket` has placed.
    pub fn has_new_call(&self, id: CallId, socket: SocketId) -> bool {
        let kinds = self.kinds();
        let item = kinds[Kind::NewCall.index()].get(&Key::Call(id));
        item.is_some_and(
            |item| matches!(&item.work, Work::NewCall { caller, .. } if caller.socket == socket),
        )
    }

    /// The outcome of the new call is known.
    pub fn forget_new_call(&self, id: CallId) {
        self.kinds()[Kind::NewCall.index()].remove(&Key::Call(id));
    }

    /// Whether a socket that left is to be detached.
    pub fn signs_off(&self, user: &UserId, socket: SocketId) -> bool {
        self.kinds()[Kind::SignOff.index()].contains_key(&Key::Device(user.clone(), socket))
    }

    /// The number of items of this kind.
    pub fn len(&self, kind: Kind) -> usize {
        self.kinds()[kind.index()].len()
    }
}

impl Calls {
    /// Adds work that is due now.
    pub(super) fn add_pending(&self, work: Work) {
        self.add_pending_at(work, self.clock.now());
    }

    pub(super) fn add_pending_at(&self, work: Work, at: Timestamp) {
        let kind = work.kind();
        if !self.pending.add(work, at) {
            metrics::LIMITS.of(Limit::PendingWork).increment(1);
            // Once until the recovery has run, however much is refused meanwhile.
            if self.pending.len(Kind::Recovery) == 0 {
                warn!(
                    kind = kind.as_str(),
                    "too much work is pending: this node announces its users and looks up its calls again"
                );
                self.note_reset();
            }
        }
    }

    /// Queues the presence of these users for announcement.
    pub(super) fn announce_later<'a>(&self, users: impl IntoIterator<Item = &'a UserId>) {
        for user in users {
            self.add_pending(Work::Presence(user.clone()));
        }
    }

    /// Queues the presence of both parties for announcement.
    pub(super) fn announce_parties_later(&self, call: &Call) {
        self.announce_later([&call.caller.user, &call.callee.user]);
    }

    /// Works off the due items of a kind. A failed item stays due.
    pub(super) async fn work_off(&self, kind: Kind) -> Result<(), Unavailable> {
        let now = self.clock.now();
        loop {
            let due = self.pending.due(kind, now, BATCH);
            if due.is_empty() {
                return Ok(());
            }
            match kind {
                Kind::SignOff => self.sign_off_pending(&due).await?,
                Kind::Presence => self.announce_pending(&due).await?,
                _ => {
                    let attempt = async |item| {
                        let outcome = self.attempt(item).await?;
                        self.pending.attempted(item, outcome, self.clock.now());
                        Ok(())
                    };
                    some_at_a_time(&due, attempt).await?;
                }
            }
        }
    }

    async fn announce_pending(&self, items: &[Item]) -> Result<(), Unavailable> {
        let user = |item: &Item| match &item.work {
            Work::Presence(user) => Some(user.clone()),
            _ => None,
        };
        let users: Vec<UserId> = items.iter().filter_map(user).collect();
        self.announce(self.cluster.presence(&users).await?);
        for item in items {
            self.pending.attempted(item, Outcome::Nothing, self.clock.now());
        }
        Ok(())
    }

    async fn attempt(&self, item: &Item) -> Result<Outcome, Unavailable> {
        match &item.work {
            Work::Welcome(device) => self.retry_welcome(device).await,
            Work::Commit(before) => self.check_commit(before).await,
            Work::NewCall { id, caller } => self.check_new_call(*id, caller, item.is_last).await,
            Work::Flush { call, to } => {
                self.give_up_flush(*call, *to);
                Ok(Outcome::Done)
            }
            Work::Recovery => self.recover().await.map(|()| Outcome::Done),
            Work::SignOff { .. } | Work::UndoJoin(_) | Work::Presence(_) => {
                unreachable!("these are worked off in batches")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::fixtures::{at, device, ringing};

    fn user(name: &str) -> Work {
        Work::Presence(name.parse().expect("a user id"))
    }

    fn due(pending: &Pending, kind: Kind, seconds: u64) -> Vec<Item> {
        pending.due(kind, at(seconds), usize::MAX)
    }

    #[test]
    fn work_without_effect_has_a_second_attempt() {
        let pending = Pending::default();
        assert!(pending.add(Work::Commit(ringing().into()), at(0)));
        let [item] = &due(&pending, Kind::Commit, 0)[..] else { panic!("it is due") };
        assert!(!item.is_last);
        pending.attempted(item, Outcome::Nothing, at(0));
        assert!(due(&pending, Kind::Commit, 1).is_empty());
        let [item] = &due(&pending, Kind::Commit, 2)[..] else { panic!("it is due again") };
        assert!(item.is_last);
        pending.attempted(item, Outcome::Nothing, at(2));
        assert_eq!(pending.len(Kind::Commit), 0);
    }

    #[test]
    fn work_that_begins_anew_during_an_attempt_stays() {
        let pending = Pending::default();
        assert!(pending.add(user("a"), at(0)));
        let items = due(&pending, Kind::Presence, 0);
        assert!(pending.add(user("a"), at(1)));
        pending.attempted(&items[0], Outcome::Done, at(1));
        assert_eq!(due(&pending, Kind::Presence, 1).len(), 1);
    }

    #[test]
    fn work_of_unknown_outcome_is_due_in_the_next_sweep() {
        let pending = Pending::default();
        assert!(pending.add(Work::Welcome(device("a1")), at(0)));
        let items = due(&pending, Kind::Welcome, 0);
        pending.attempted(&items[0], Outcome::Unknown, at(0));
        assert!(due(&pending, Kind::Welcome, 0).is_empty());
        assert!(!due(&pending, Kind::Welcome, 1)[0].is_last);
    }

    #[test]
    fn a_full_queue_has_room_for_a_recovery_and_for_what_it_holds() {
        let pending = Pending::default();
        for number in 0..MAX_PENDING {
            assert!(pending.add(user(&number.to_string()), at(0)));
        }
        assert!(!pending.add(user("another"), at(0)));
        assert!(pending.add(user("0"), at(1)) && pending.add(Work::Recovery, at(0)));
        assert!(pending.add(Work::Recovery, at(9)));
        assert_eq!(due(&pending, Kind::Recovery, 0).len(), 1, "it is not postponed");
    }
}
