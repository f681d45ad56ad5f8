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
    sweeper::{AT_ONCE, SWEEP_INTERVAL, some_at_a_time},
    unsure::UNSURE,
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
    number: u64,
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

/// The queue.
#[derive(Default)]
pub struct Pending(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    kinds: [BTreeMap<Key, Entry>; Kind::ALL.len()],
    /// The number of items added so far.
    added: u64,
}

struct Entry {
    item: Item,
    due_at: Timestamp,
}

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
        Kind::Welcome => UNSURE,
        Kind::SignOff | Kind::Presence | Kind::Commit | Kind::Flush | Kind::Recovery => LATE,
    }
}

impl Pending {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock()
    }

    /// Adds work that is due at `at`. If it is pending already, it begins anew, and is as it was
    /// first. Returns false if the queue is full.
    #[must_use]
    pub fn add(&self, work: Work, at: Timestamp) -> bool {
        let mut queue = self.queue();
        let (kind, key) = (work.kind(), work.key());
        queue.added += 1;
        let number = queue.added;
        let len: usize = queue.kinds.iter().map(BTreeMap::len).sum();
        let of_kind = &mut queue.kinds[kind.index()];
        if let Some(entry) = of_kind.get_mut(&key) {
            (entry.due_at, entry.item.is_last, entry.item.number) = (at, false, number);
            return true;
        }
        // There is one recovery at most, and two flushes of each call.
        if len >= MAX_PENDING && !matches!(kind, Kind::Recovery | Kind::Flush) {
            return false;
        }
        let item = Item { work, is_last: false, number };
        of_kind.insert(key, Entry { item, due_at: at });
        true
    }

    /// Up to `limit` items that are due. They stay in the queue until [`Pending::attempted`].
    pub fn due(&self, kind: Kind, now: Timestamp, limit: usize) -> Vec<Item> {
        let queue = self.queue();
        let due = queue.kinds[kind.index()].values().filter(|entry| entry.due_at <= now);
        due.take(limit).map(|entry| entry.item.clone()).collect()
    }

    /// Processes the outcome of an attempt, unless the work has begun anew since.
    pub fn attempted(&self, item: &Item, outcome: Outcome, now: Timestamp) {
        let mut queue = self.queue();
        let (kind, key) = (item.work.kind(), item.work.key());
        let of_kind = &mut queue.kinds[kind.index()];
        let Some(entry) = of_kind.get_mut(&key).filter(|one| one.item.number == item.number) else {
            return;
        };
        match outcome {
            Outcome::Unknown => entry.due_at = now + SWEEP_INTERVAL,
            Outcome::Nothing if !item.is_last => {
                (entry.due_at, entry.item.is_last) = (now + patience(kind), true);
            }
            Outcome::Nothing | Outcome::Done => drop(of_kind.remove(&key)),
        }
    }

    /// Whether this is a new call of unknown outcome that `socket` has placed.
    pub fn has_new_call(&self, id: CallId, socket: SocketId) -> bool {
        let queue = self.queue();
        let entry = queue.kinds[Kind::NewCall.index()].get(&Key::Call(id));
        let is_it = |entry: &Entry| matches!(&entry.item.work, Work::NewCall { caller, .. } if caller.socket == socket);
        entry.is_some_and(is_it)
    }

    /// The outcome of the new call is known.
    pub fn forget_new_call(&self, id: CallId) {
        self.queue().kinds[Kind::NewCall.index()].remove(&Key::Call(id));
    }

    /// Whether a socket that left is to be detached.
    pub fn signs_off(&self, user: &UserId, socket: SocketId) -> bool {
        let key = Key::Device(user.clone(), socket);
        self.queue().kinds[Kind::SignOff.index()].contains_key(&key)
    }

    /// The number of items of this kind.
    pub fn len(&self, kind: Kind) -> usize {
        self.queue().kinds[kind.index()].len()
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
            warn!(
                kind = kind.as_str(),
                "too much work is pending: this node announces its users and looks up its calls again"
            );
            self.note_reset();
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
            Work::Welcome(device) => self.welcome_pending(device).await,
            Work::Commit(before) => self.tell_pending(before).await,
            Work::NewCall { id, caller } => self.undo_pending(*id, caller, item.is_last).await,
            Work::Flush { call, .. } => Ok(self.give_up_flush(*call)),
            Work::Recovery => self.recover().await.map(|()| Outcome::Done),
            Work::SignOff { .. } | Work::UndoJoin(_) | Work::Presence(_) => {
                unreachable!("these are worked off in batches")
            }
        }
    }
}
