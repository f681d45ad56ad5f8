//! One node of a cluster, above the ports of its backend: the relation of the node to each user,
//! records, and messages to other nodes. `membership` keeps the node in the cluster.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::try_join_all;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use super::{
    CallRecords, Change, Committed, Detached, Due, Edge, Inbound, Message, Peers, Relay, Stored,
    TAKE_OVER_AFTER, USERS_AT_ONCE, Unavailable, Unstored, UserPresence,
    bus::Bus,
    mistakes::{Mistake, is_made},
    ports::{Calls, Channel, Entry, Lane, Marked, Store, Subscription, Taken, User, Watchers},
};
use crate::{
    call::{Call, Lobby, Role},
    health::Health,
    ids::{CallId, NodeId, SocketId, UserId},
    limits::buffers::Buffers,
    time::{Clock, Timestamp},
};

/// The most writes of entries that run at the same time for one operation.
const MARKS_AT_ONCE: usize = 4;
/// The most messages in this node's inbox.
const INBOX_MESSAGES: usize = 65_536;
/// The time for which a due call is hidden after a node has taken it.
const LIVE_LEASE: Duration = Duration::from_secs(5);
/// The most ended calls that one operation removes.
const FORGOTTEN_AT_ONCE: usize = 256;
/// The time that a leaving node has to send its queued messages.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LAST_WORDS_POLL: Duration = Duration::from_millis(5);

/// One node of a cluster, on a store and channels.
pub struct Node<S, C> {
    id: NodeId,
    pub(super) store: S,
    pub(super) bus: Bus<C>,
    clock: Clock,
    local: Mutex<Local>,
    /// Cancelled when the node leaves or is dropped: no more heartbeats, and nothing is received.
    pub(super) leaving: CancellationToken,
    _leaves_when_dropped: DropGuard,
}

/// The relation of this node to each user.
#[derive(Default)]
struct Local {
    sockets: HashMap<UserId, BTreeSet<SocketId>>,
    watched: HashSet<UserId>,
    /// Users whose removal from this node had no reply: it may have been applied.
    untidied: BTreeSet<UserId>,
    /// The position at which the repair continues. `None` if nothing is to be repaired.
    repair_from: Option<String>,
}

/// The entries to write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Watched,
    Both,
}

impl Local {
    fn entry(&self, user: &UserId, aspect: Aspect) -> Entry {
        let sockets = || self.sockets.get(user).map_or(0, BTreeSet::len);
        Entry {
            sockets: (aspect == Aspect::Both).then(sockets),
            is_watched: self.watched.contains(user),
        }
    }

    fn is_here(&self, user: &UserId) -> bool {
        self.sockets.contains_key(user) || self.watched.contains(user)
    }

    /// Returns whether it is new.
    fn add(&mut self, user: &UserId, socket: SocketId) -> bool {
        self.sockets.entry(user.clone()).or_default().insert(socket)
    }

    fn remove(&mut self, user: &UserId, socket: SocketId) {
        if let Some(sockets) = self.sockets.get_mut(user) {
            sockets.remove(&socket);
            if sockets.is_empty() {
                self.sockets.remove(user);
            }
        }
    }
}

impl<S: Store, C: Channel> Node<S, C> {
    /// A node that receives its channel. Returns its inbox and what fills it.
    pub fn open(
        id: NodeId,
        store: S,
        channel: C,
        subscription: impl Subscription + 'static,
        clock: Clock,
        health: Health,
        buffers: Buffers,
    ) -> (Arc<Self>, mpsc::Receiver<Inbound>, mpsc::Sender<Inbound>) {
        let (sender, inbox) = mpsc::channel(INBOX_MESSAGES);
        let leaving = CancellationToken::new();
        let bus = Bus::new(id, channel, clock.clone(), buffers);
        tokio::spawn(bus.clone().listen(subscription, sender.clone(), health, leaving.clone()));
        let node = Self {
            id,
            store,
            bus,
            clock,
            local: Mutex::default(),
            _leaves_when_dropped: leaving.clone().drop_guard(),
            leaving,
        };
        (Arc::new(node), inbox, sender)
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn read(&self, users: &[UserId]) -> Result<Vec<User>, Unavailable> {
        self.store.read(Lane::Calls, users, Watchers::Unwanted).await
    }

    async fn read_one(&self, user: &UserId) -> Result<User, Unavailable> {
        self.read(std::slice::from_ref(user)).await?.pop().ok_or(Unavailable)
    }

    /// Writes this node's present relation to these users. Returns them in their order, each
    /// presence change with an order above `after`.
    async fn mark(
        &self,
        users: &[UserId],
        aspect: Aspect,
        calls: Calls,
        after: u64,
    ) -> Result<Vec<Marked>, Unavailable> {
        let mut marked = Vec::with_capacity(users.len());
        for part in users.chunks(USERS_AT_ONCE * MARKS_AT_ONCE) {
            let some =
                part.chunks(USERS_AT_ONCE).map(|some| self.mark_some(some, aspect, calls, after));
            marked.extend(try_join_all(some).await?.into_iter().flatten());
        }
        Ok(marked)
    }

    /// [`Self::mark`] for as many users as one operation accepts. Two writes for one user can
    /// overtake each other: then the one that finds the other's state writes again.
    async fn mark_some(
        &self,
        users: &[UserId],
        aspect: Aspect,
        calls: Calls,
        after: u64,
    ) -> Result<Vec<Marked>, Unavailable> {
        let lane = if aspect == Aspect::Watched { Lane::Presence } else { Lane::Calls };
        let mut marked: Vec<Option<Marked>> = vec![None; users.len()];
        let mut turn: Vec<usize> = (0..users.len()).collect();
        while !turn.is_empty() {
            let entries: Vec<(UserId, Entry)> = {
                let local = self.local();
                let entry = |at: &usize| (users[*at].clone(), local.entry(&users[*at], aspect));
                turn.iter().map(entry).collect()
            };
            let written = self.store.mark(lane, &entries, calls, after).await?;
            if written.len() != turn.len() {
                return Err(Unavailable);
            }
            for (at, now) in std::iter::zip(&turn, written) {
                marked[*at] = Some(match marked[*at].take() {
                    Some(before) => before.then(now),
                    None => now,
                });
            }
            let local = self.local();
            turn = std::iter::zip(turn, entries)
                .filter(|(_, (user, entry))| local.entry(user, aspect) != *entry)
                .map(|(at, _)| at)
                .collect();
        }
        Ok(marked.into_iter().flatten().collect())
    }

    async fn mark_one(&self, user: &UserId, calls: Calls) -> Result<Marked, Unavailable> {
        let marked = self.mark_some(std::slice::from_ref(user), Aspect::Both, calls, 0).await?;
        marked.into_iter().next().ok_or(Unavailable)
    }

    /// Has everything checked, because the store has lost a part of its data.
    pub(super) fn must_repair(&self) {
        self.local().repair_from = Some("0".to_owned());
    }

    fn note_damage(&self, is_damaged: bool) {
        if is_damaged {
            warn!("records of calls are gone before their time: all keys are checked");
            self.must_repair();
        }
    }

    /// Repairs a part of everything, if a part of the data is known to be lost. Returns the users
    /// whose latest call has changed, and the live calls one of whose users is in another live one.
    async fn repair(&self) -> (Vec<UserId>, Vec<Call>) {
        let Some(from) = self.local().repair_from.take() else { return Default::default() };
        if is_made(Mistake::NotRepaired) {
            return Default::default();
        }
        // If this fails, the repair restarts.
        let Ok(repaired) = self.store.repair(&from, self.now()).await else {
            self.must_repair();
            return Default::default();
        };
        let mut local = self.local();
        if local.repair_from.is_none() {
            local.repair_from = repaired.next;
        }
        (repaired.users, repaired.displaced)
    }

    async fn write(&self, change: Change, over: u64) -> Result<Committed, Unavailable> {
        self.store.write(change, over, self.now() + TAKE_OVER_AFTER).await
    }
}

#[async_trait]
impl<S: Store, C: Channel> CallRecords for Node<S, C> {
    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable> {
        self.store.load(id).await
    }

    async fn live(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Call>, Option<String>), Unavailable> {
        self.store.live(from, limit).await
    }

    async fn latest(&self, user: &UserId) -> Result<Option<Call>, Unavailable> {
        Ok(self.read_one(user).await?.call)
    }

    async fn latest_of(&self, users: &[UserId]) -> Result<Vec<Option<Call>>, Unavailable> {
        Ok(self.read(users).await?.into_iter().map(|user| user.call).collect())
    }

    async fn commit(&self, change: Change) -> Result<Committed, Unavailable> {
        let over = change.call.version - 1;
        self.write(change, over).await
    }

    async fn restore(
        &self,
        change: Change,
        over: Option<u64>,
    ) -> Result<Option<Stored>, Unavailable> {
        Ok(self.write(change, over.unwrap_or(0)).await?.stored())
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Due, Unavailable> {
        let taken = self.store.due(now, now + LIVE_LEASE, limit).await?;
        let Taken { calls, has_more, is_damaged } = taken;
        self.note_damage(is_damaged);
        let (mended, displaced) = self.repair().await;
        Ok(Due { calls, has_more, mended, displaced })
    }

    async fn unstored(&self, now: Timestamp, limit: usize) -> Result<Unstored, Unavailable> {
        let (unstored, is_damaged) = self.store.unstored(now, limit, FORGOTTEN_AT_ONCE).await?;
        self.note_damage(is_damaged);
        Ok(unstored)
    }

    async fn mark_persisted(&self, stored: &[(CallId, u64)]) -> Result<(), Unavailable> {
        self.store.mark_persisted(stored).await
    }
}

#[async_trait]
impl<S: Store, C: Channel> UserPresence for Node<S, C> {
    async fn attach(&self, user: &UserId, socket: SocketId) -> Result<Option<Edge>, Unavailable> {
        let is_new = self.local().add(user, socket);
        let marked = self.mark_one(user, Calls::Unwanted).await;
        if marked.is_err() && is_new {
            self.local().remove(user, socket);
        }
        Ok(marked?.changed())
    }

    async fn detach(&self, user: &UserId, socket: SocketId) -> Result<Detached, Unavailable> {
        self.local().remove(user, socket);
        self.mark_one(user, Calls::Wanted).await.map(Detached::from)
    }

    async fn attach_again(&self, sockets: &[(UserId, SocketId)]) -> Result<Vec<Edge>, Unavailable> {
        let (mut users, mut new) = (Vec::with_capacity(sockets.len()), Vec::new());
        {
            let mut local = self.local();
            for (user, socket) in sockets {
                if local.add(user, *socket) {
                    new.push((user, *socket));
                }
                users.push(user.clone());
            }
        }
        let marked =
            self.mark(&users, Aspect::Both, Calls::Unwanted, 0).await.inspect_err(|_| {
                let mut local = self.local();
                for (user, socket) in new {
                    local.remove(user, socket);
                }
            })?;
        Ok(marked.into_iter().filter_map(Marked::changed).collect())
    }

    async fn detach_all(
        &self,
        sockets: &[(UserId, SocketId)],
    ) -> Result<Vec<Detached>, Unavailable> {
        let mut users = Vec::with_capacity(sockets.len());
        {
            let mut local = self.local();
            for (user, socket) in sockets {
                local.remove(user, *socket);
                users.push(user.clone());
            }
        }
        let marked = self.mark(&users, Aspect::Both, Calls::Wanted, 0).await?;
        Ok(marked.into_iter().map(Detached::from).collect())
    }

    async fn tidy(
        &self,
        from: Option<&str>,
    ) -> Result<(Vec<(UserId, Detached)>, Option<String>), Unavailable> {
        let (registered, next) = self.store.of_this_node(from).await?;
        // Users whose removal had no reply come first. A repeated scan finds the rest.
        let (taken, next) = {
            let mut local = self.local();
            let mut taken: Vec<UserId> = local.untidied.iter().cloned().collect();
            taken.retain(|user| !local.is_here(user));
            let is_absent = |user: &UserId| !local.is_here(user) && !taken.contains(user);
            let absent: Vec<UserId> = registered.into_iter().filter(is_absent).collect();
            taken.extend(absent);
            let has_more = taken.len() > USERS_AT_ONCE;
            taken.truncate(USERS_AT_ONCE);
            local.untidied = taken.iter().cloned().collect();
            let again = Some(from.unwrap_or("0").to_owned());
            (taken, if has_more { again } else { next })
        };
        let marked = self.mark(&taken, Aspect::Both, Calls::Wanted, 0).await?;
        self.local().untidied.clear();
        let taken = std::iter::zip(taken, marked.into_iter().map(Detached::from)).collect();
        Ok((taken, next))
    }

    async fn watch(&self, users: &[UserId], after: u64) -> Result<Vec<Edge>, Unavailable> {
        self.local().watched.extend(users.iter().cloned());
        let marked = self.mark(users, Aspect::Watched, Calls::Unwanted, after).await?;
        Ok(marked.into_iter().map(|marked| marked.edge).collect())
    }

    async fn unwatch(&self, users: &[UserId]) -> Result<(), Unavailable> {
        {
            let mut local = self.local();
            for user in users {
                local.watched.remove(user);
            }
        }
        self.mark(users, Aspect::Watched, Calls::Unwanted, 0).await.map(drop)
    }

    async fn presence(&self, users: &[UserId]) -> Result<Vec<Edge>, Unavailable> {
        let mut all = Vec::with_capacity(users.len());
        // A store may do nothing else during an operation, so an operation must be short.
        for some in users.chunks(USERS_AT_ONCE) {
            let read = self.store.read(Lane::Presence, some, Watchers::Wanted).await?;
            all.extend(std::iter::zip(some, read).map(|(id, user)| user.edge(id)));
        }
        Ok(all)
    }

    async fn lobby(&self, caller: &UserId, callee: &UserId) -> Result<Lobby, Unavailable> {
        let mut read = self.read(&[caller.clone(), callee.clone()]).await?.into_iter();
        let (Some(caller), Some(callee)) = (read.next(), read.next()) else {
            return Err(Unavailable);
        };
        let others: Vec<_> = callee.nodes.iter().filter(|(node, _)| *node != self.id).collect();
        let nodes: Vec<NodeId> = others.iter().map(|(node, _)| *node).collect();
        let reachable = self.bus.channel().reachable(&nodes).await?;
        let gone: usize = std::iter::zip(others, reachable)
            .filter(|(_, reachable)| !reachable)
            .map(|((_, count), _)| count)
            .sum();
        let all: usize = callee.nodes.iter().map(|(_, count)| count).sum();
        Ok(Lobby { caller_call: caller.call, callee_call: callee.call, callee_sockets: all - gone })
    }

    async fn nodes_of(&self, user: &UserId) -> Result<Vec<NodeId>, Unavailable> {
        Ok(self.read_one(user).await?.nodes.into_iter().map(|(node, _)| node).collect())
    }

    async fn sockets_of(&self, user: &UserId) -> Result<Vec<(NodeId, usize)>, Unavailable> {
        Ok(self.read_one(user).await?.nodes)
    }

    async fn acknowledge_eviction(
        &self,
        node: NodeId,
        users: &[UserId],
    ) -> Result<(), Unavailable> {
        self.store.acknowledge(node, users).await
    }
}

#[async_trait]
impl<S: Store, C: Channel> Peers for Node<S, C> {
    fn node(&self) -> NodeId {
        self.id
    }

    fn send(&self, to: NodeId, message: Message) {
        self.bus.send(to, message);
    }

    fn has_room(&self, to: NodeId, call: CallId, bytes: usize) -> bool {
        self.bus.has_room(to, call, bytes)
    }

    fn queued(&self) -> usize {
        self.bus.queued()
    }

    fn recall(&self, from: NodeId, call: CallId, to: Role) -> Vec<Relay> {
        self.bus.recall(from, call, to)
    }

    fn stop_listening(&self) {
        self.leaving.cancel();
    }

    async fn leave(&self) {
        self.stop_listening();
        let published = async {
            while !self.bus.is_idle() {
                tokio::time::sleep(LAST_WORDS_POLL).await;
            }
        };
        if tokio::time::timeout(LAST_WORDS, published).await.is_err() {
            warn!("not all that was meant for other nodes could be sent");
        }
        if !matches!(self.store.leave().await, Ok(true)) {
            warn!("this node could not sign all its users off: the others will evict it");
        }
    }
}
