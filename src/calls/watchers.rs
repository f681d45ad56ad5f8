//! Presence subscriptions of this node's sockets, and the rate at which updates are sent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::SemaphorePermit;
use tracing::warn;

use super::{Calls, ClientSink, Failure};
use crate::{
    cluster::{Edge, Message},
    ids::{SocketId, UserId},
    metrics::{self, Limit},
    protocol::{MAX_WATCHED_USERS, Presence, ServerEvent},
    time::Timestamp,
};

/// The shortest interval between two updates of one user: the first change is sent at once, and of
/// later ones within this time the last.
pub const PRESENCE_INTERVAL: Duration = Duration::from_secs(1);
/// The most presence requests of one node to the shared state at a time. A socket has at most one.
pub(super) const PRESENCE_AT_ONCE: usize = 16;
/// The time that a presence request waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(1);

/// The most updates that are sent before other work has its turn.
const TOLD_AT_ONCE: usize = 64;

#[derive(Default)]
pub struct Watchers {
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    users: BTreeMap<UserId, Watched>,
    sockets: HashMap<SocketId, BTreeSet<UserId>>,
    /// The users with a deferred update, in the order in which the updates are due.
    put_off: VecDeque<(Timestamp, UserId)>,
    /// Updates that some watchers have not received yet.
    partial: VecDeque<Partial>,
    /// Counts the changes of presence that became known here.
    changes: u64,
}

#[derive(Default)]
struct Watched {
    sockets: Vec<SocketId>,
    /// The newest presence seen, and its order among all changes of the user.
    newest: Option<(u64, Presence)>,
    /// The status that all of the sockets have, if they have the same, and the time of the last
    /// update.
    told: Option<Presence>,
    told_at: Option<Timestamp>,
    is_put_off: bool,
    /// The number of the change that made `newest`.
    changed: u64,
}

/// An update that was sent to the first of many watchers.
struct Partial {
    user: UserId,
    status: Presence,
    sockets: Vec<SocketId>,
}

/// The presence of users whom a socket watches, to be sent in the ack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscribed {
    pub presence: BTreeMap<UserId, Presence>,
    /// The number of the last change that it includes.
    pub as_of: u64,
}

impl Watchers {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }

    /// Subscribes, and returns those of `users` whose changes this node does not receive yet: their
    /// presence must be read from the shared state.
    pub fn add(&self, socket: SocketId, users: &[UserId]) -> Result<Vec<UserId>, Failure> {
        let mut index = self.index();
        let Index { users: watched, sockets, .. } = &mut *index;
        let own = sockets.entry(socket).or_default();
        let added: BTreeSet<&UserId> = users.iter().filter(|user| !own.contains(*user)).collect();
        if own.len() + added.len() > MAX_WATCHED_USERS {
            metrics::LIMITS.of(Limit::Watched).increment(1);
            return Err(Failure::TooManyWatched);
        }
        for user in added {
            own.insert(user.clone());
            watched.entry(user.clone()).or_default().sockets.push(socket);
        }
        let users: BTreeSet<_> = users.iter().collect();
        let is_known = |user: &UserId| watched.get(user).is_some_and(|one| one.newest.is_some());
        Ok(users.into_iter().filter(|user| !is_known(user)).cloned().collect())
    }

    /// Returns those of `users` that no local socket watches any more.
    pub fn remove(&self, socket: SocketId, users: &[UserId]) -> Vec<UserId> {
        let mut index = self.index();
        let mut unwatched = Vec::new();
        for user in users {
            if index.sockets.get_mut(&socket).is_some_and(|own| own.remove(user))
                && index.unwatch(socket, user)
            {
                unwatched.push(user.clone());
            }
        }
        unwatched
    }

    /// Removes a closed socket. Returns the users that no local socket watches any more.
    pub fn forget(&self, socket: SocketId) -> Vec<UserId> {
        let mut index = self.index();
        let own = index.sockets.remove(&socket).unwrap_or_default();
        own.into_iter().filter(|user| index.unwatch(socket, user)).collect()
    }

    /// The watched users after this one, in order, at most `limit`, and the highest order known of
    /// any of them.
    pub fn after(&self, user: Option<&UserId>, limit: usize) -> (Vec<UserId>, u64) {
        let from = user.map_or(Bound::Unbounded, Bound::Excluded);
        let index = self.index();
        let (mut users, mut newest) = (Vec::new(), 0);
        for (user, watched) in index.users.range::<UserId, _>((from, Bound::Unbounded)).take(limit)
        {
            users.push(user.clone());
            newest = watched.newest.map_or(newest, |(order, _)| newest.max(order));
        }
        (users, newest)
    }

    /// Those of `users` that a local socket watches.
    pub fn watched(&self, users: Vec<UserId>) -> Vec<UserId> {
        let index = self.index();
        users.into_iter().filter(|user| index.users.contains_key(user)).collect()
    }

    /// Those of `users` that no local socket watches.
    pub fn unwatched(&self, users: &[UserId]) -> Vec<UserId> {
        let index = self.index();
        users.iter().filter(|user| !index.users.contains_key(*user)).cloned().collect()
    }

    /// Processes presence that was read after `socket` subscribed to `users`, and returns the
    /// newest known of all of them, because a change may have overtaken the read. If the read is
    /// newer than the known changes, the other sockets are notified.
    pub fn settle(
        &self,
        socket: SocketId,
        users: &[UserId],
        read: &[Edge],
        sink: &dyn ClientSink,
        now: Timestamp,
    ) -> Subscribed {
        let mut index = self.index();
        for edge in read {
            index.take_in(edge, Some(socket), sink, now);
        }
        // The transport may be gone, and nobody watch them any more.
        let read = read.iter().map(|edge| (edge.user.clone(), edge.presence));
        let mut presence: BTreeMap<_, _> = read.collect();
        for user in users {
            if let Some(watched) = index.users.get_mut(user)
                && let Some((_, newest)) = watched.newest
            {
                presence.insert(user.clone(), watched.answer(newest));
            }
        }
        Subscribed { presence, as_of: index.changes }
    }

    /// The ack with the result of [`Watchers::settle`] has been sent. A change since then may have
    /// been sent before the ack, whose older status the client would keep: the change is sent
    /// again.
    pub fn catch_up(&self, socket: SocketId, as_of: u64, sink: &dyn ClientSink, now: Timestamp) {
        let index = self.index();
        if index.changes == as_of {
            return;
        }
        for user in index.sockets.get(&socket).into_iter().flatten() {
            if let Some(watched) = index.users.get(user).filter(|one| one.changed > as_of)
                && let Some((_, status)) = watched.newest
            {
                let user_id = user.clone();
                let event = ServerEvent::Presence { user_id, status, timestamp: now };
                sink.emit(socket, &event, None);
            }
        }
    }

    /// Notifies the watchers of a user, unless they have a newer status.
    pub fn announce(&self, edge: &Edge, sink: &dyn ClientSink, now: Timestamp) {
        self.index().take_in(edge, None, sink, now);
    }

    /// Sends updates that are due, a bounded number. Returns whether there may be more.
    fn tell_some(&self, sink: &dyn ClientSink, now: Timestamp) -> bool {
        let mut index = self.index();
        // A clock that was set back must not defer an update for longer than the interval.
        let is_due = |at: Timestamp| at <= now || at - now > PRESENCE_INTERVAL;
        let mut told = 0;
        while told < TOLD_AT_ONCE {
            if index.partial.front().is_some() {
                told += index.tell_more(TOLD_AT_ONCE - told, sink, now).max(1);
                continue;
            }
            let Some((_, user)) = index.put_off.pop_front_if(|(at, _)| is_due(*at)) else { break };
            let Index { users, partial, .. } = &mut *index;
            if let Some(watched) = users.get_mut(&user)
                && std::mem::take(&mut watched.is_put_off)
            {
                told += watched.tell(&user, None, partial, sink, now).max(1);
            }
        }
        if index.put_off.is_empty() {
            // Frees the memory after a burst.
            index.put_off = VecDeque::new();
        }
        told >= TOLD_AT_ONCE
    }
}

impl Index {
    /// Notifies the watchers of the user, except for one socket, if `edge` is newer than the known
    /// change.
    fn take_in(
        &mut self,
        edge: &Edge,
        but: Option<SocketId>,
        sink: &dyn ClientSink,
        now: Timestamp,
    ) {
        let Self { users, put_off, partial, changes, .. } = self;
        let Some(watched) = users.get_mut(&edge.user) else { return };
        if !watched.advance(edge) {
            return;
        }
        *changes += 1;
        watched.changed = *changes;
        if watched.is_put_off {
            return;
        }
        match watched.told_at.map(|at| at + PRESENCE_INTERVAL) {
            Some(due_at) if now < due_at && due_at - now <= PRESENCE_INTERVAL => {
                watched.is_put_off = true;
                put_off.push_back((due_at, edge.user.clone()));
            }
            _ => _ = watched.tell(&edge.user, but, partial, sink, now),
        }
    }

    /// Sends the first partial update to at most `limit` more sockets. Returns to how many.
    fn tell_more(&mut self, limit: usize, sink: &dyn ClientSink, now: Timestamp) -> usize {
        let Self { users, sockets, partial, .. } = self;
        let Some(Partial { user, status, sockets: mut next }) = partial.pop_front() else {
            return 0;
        };
        let Some(watched) = users.get_mut(&user) else { return 0 };
        if watched.told != Some(status) {
            // A later update goes to all sockets.
            return 0;
        }
        if watched.newest.is_some_and(|(_, newest)| newest != status) {
            // An update is deferred, and goes to all sockets, whatever it will be.
            watched.told = None;
            return 0;
        }
        let some = next.split_off(next.len().saturating_sub(limit));
        let event = ServerEvent::Presence { user_id: user.clone(), status, timestamp: now };
        for socket in &some {
            // It may have unsubscribed since.
            if sockets.get(socket).is_some_and(|own| own.contains(&user)) {
                sink.emit(*socket, &event, None);
            }
        }
        if !next.is_empty() {
            partial.push_front(Partial { user, status, sockets: next });
        }
        some.len()
    }

    /// Removes a subscription. Returns whether nobody watches the user any more.
    fn unwatch(&mut self, socket: SocketId, user: &UserId) -> bool {
        let Some(watched) = self.users.get_mut(user) else { return true };
        watched.sockets.retain(|other| *other != socket);
        let is_last = watched.sockets.is_empty();
        if is_last {
            self.users.remove(user);
        }
        is_last
    }
}

impl Watched {
    /// Sends the newest presence to the sockets, unless all of them have it: at once to as many as
    /// may be told at once, and later to those that go to `partial`. Returns to how many it was sent.
    fn tell(
        &mut self,
        user: &UserId,
        but: Option<SocketId>,
        partial: &mut VecDeque<Partial>,
        sink: &dyn ClientSink,
        now: Timestamp,
    ) -> usize {
        let Some((_, status)) = self.newest.filter(|(_, newest)| self.told != Some(*newest)) else {
            return 0;
        };
        self.told = Some(status);
        let event = ServerEvent::Presence { user_id: user.clone(), status, timestamp: now };
        let mut sockets = self.sockets.iter().copied().filter(|socket| Some(*socket) != but);
        let mut told = 0;
        for socket in sockets.by_ref().take(TOLD_AT_ONCE) {
            self.told_at = Some(now);
            sink.emit(socket, &event, None);
            told += 1;
        }
        let rest: Vec<_> = sockets.collect();
        if !rest.is_empty() {
            partial.push_back(Partial { user: user.clone(), status, sockets: rest });
        }
        told
    }

    /// Returns the presence in reply to a subscription.
    fn answer(&mut self, presence: Presence) -> Presence {
        if self.told != Some(presence) {
            // Other sockets have another status: the next update goes to all.
            self.told = None;
        }
        presence
    }

    /// Whether `edge` is newer than the known change and differs from it.
    fn advance(&mut self, edge: &Edge) -> bool {
        let (order, presence) = match self.newest {
            Some((order, presence)) => (order, Some(presence)),
            None => (0, None),
        };
        if self.newest.is_some() && edge.order <= order {
            return false;
        }
        self.newest = Some((edge.order, edge.presence));
        presence != Some(edge.presence)
    }
}

impl Calls {
    /// Announces changes to the watchers, on this node and others.
    pub(super) fn announce(&self, edges: impl IntoIterator<Item = Edge>) {
        let now = self.clock.now();
        for edge in edges {
            self.watchers.announce(&edge, &*self.sink, now);
            for node in edge.watchers.iter().filter(|node| **node != self.node()) {
                self.cluster.send(*node, Message::Presence(edge.clone()));
            }
        }
    }

    /// Watches `users` for this socket and answers their presence now. [`Calls::subscribed`] is to be called when
    /// that has been sent.
    pub async fn subscribe(
        &self,
        socket: SocketId,
        users: &[UserId],
    ) -> Result<Subscribed, Failure> {
        let unknown = self.watchers.add(socket, users)?;
        let mut read = Vec::new();
        if !unknown.is_empty() {
            let _turn = self.presence_turn().await?;
            read = self.cluster.watch(&unknown, 0).await?;
        }
        Ok(self.watchers.settle(socket, users, &read, &*self.sink, self.clock.now()))
    }

    /// The ack of [`Calls::subscribe`] has been sent: changes since then are sent after it.
    pub fn subscribed(&self, socket: SocketId, as_of: u64) {
        self.watchers.catch_up(socket, as_of, &*self.sink, self.clock.now());
    }

    /// Limits the presence requests to the shared state, so that calls do not wait behind them.
    async fn presence_turn(&self) -> Result<SemaphorePermit<'_>, Failure> {
        let turn = tokio::time::timeout(TURN_WAIT, self.presence_turns.acquire()).await;
        Ok(turn.map_err(|_| Failure::PresenceBusy)?.expect("it is never closed"))
    }

    /// The present presence of `users`, in their order, without a subscription.
    pub async fn presence(&self, users: &[UserId]) -> Result<Vec<Edge>, Failure> {
        let _turn = self.presence_turn().await?;
        Ok(self.cluster.presence(users).await?)
    }

    /// Sends deferred updates that are due. Calls have their turn in between.
    pub async fn tell_presence(&self) {
        while self.watchers.tell_some(&*self.sink, self.clock.now()) {
            tokio::task::yield_now().await;
        }
    }

    pub async fn unsubscribe(&self, socket: SocketId, users: &[UserId]) {
        self.unwatch(self.watchers.remove(socket, users)).await;
    }

    /// Ends all subscriptions of this socket.
    pub async fn unsubscribe_all(&self, socket: SocketId) {
        self.unwatch(self.watchers.forget(socket)).await;
    }

    /// Tells the cluster that no local socket watches `users`, unless one has subscribed since.
    pub(super) async fn unwatch(&self, users: Vec<UserId>) {
        if users.is_empty() {
            return;
        }
        let _turn = self.presence_turns.acquire().await;
        let mut result = self.cluster.unwatch(&users).await;
        let again = self.watchers.watched(users);
        if !again.is_empty() {
            // Changes in between were not sent to this node.
            result = self.cluster.watch(&again, 0).await.map(|edges| {
                for edge in edges {
                    self.watchers.announce(&edge, &*self.sink, self.clock.now());
                }
            });
        }
        if let Err(error) = result {
            warn!(%error, "a presence subscription could not be ended: unneeded updates are still sent to this node");
        }
    }
}
