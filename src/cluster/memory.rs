//! The shared state in this process. One store serves the embedded backend, whose nodes share a
//! [`Hub`], and the simulation, which puts faults around it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    Change, Claim, Committed, Edge, Inbound, LONGEST_UNSTORED_LEASE, MAX_UNSTORED, Stored,
    TAKE_OVER_AFTER, USERS_AT_ONCE, Unavailable, Unstored,
    mistakes::{Mistake, is_made},
    node::Node,
    ports::{
        Calls, Channel, Entry, Evicted, Heartbeat, Lane, MAX_AHEAD, Marked, Nodes, Part, Received,
        Records, Repaired, Rest, Subscription, Taken, User, Users, Watchers,
    },
    timekeeper::{MAX_CONFIRMATION_AGE, Offset},
};
use crate::{
    call::{Call, ENDED_RETENTION},
    health::Health,
    ids::{CallId, NodeId, UserId},
    limits::buffers::Buffers,
    metrics::Connection,
    protocol::Presence,
    time::{Clock, Timestamp},
};

/// The most texts in a node's channel.
const CHANNEL_TEXTS: usize = 10_000;

/// The state of a whole cluster. Pure: the caller sets the time.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The store's time.
    pub now: Timestamp,
    /// The offset of the cluster's clock, and when a node last found it right, by the store's.
    pub offset: Offset,
    pub confirmed: Option<Timestamp>,
    pub calls: HashMap<CallId, Record>,
    pub users: HashMap<UserId, StoredUser>,
    pub watchers: HashMap<UserId, BTreeSet<NodeId>>,
    /// Live calls, by deadline.
    pub deadlines: Queue,
    /// Ended calls that are not persisted, by their next attempt, and those that are, by their
    /// removal.
    pub unstored: Queue,
    pub stored: Queue,
    pub nodes: BTreeMap<NodeId, Sign>,
    /// The users that each node has an entry of.
    pub users_on: BTreeMap<NodeId, BTreeSet<UserId>>,
    /// Evicted users whose calls nobody has handled, and until when they are left to a node.
    pub evictions: BTreeMap<(NodeId, UserId), Timestamp>,
    pub evicted_keys: u64,
}

#[derive(Debug, Clone)]
pub struct Record {
    pub call: Call,
    pub is_persisted: bool,
}

#[derive(Debug, Clone, Default)]
pub struct StoredUser {
    /// The latest call. Its record may be gone.
    pub claim: Option<CallId>,
    /// The number of sockets on each node.
    pub nodes: BTreeMap<NodeId, usize>,
    pub order: u64,
}

/// The latest sign of life of a node.
#[derive(Debug, Clone, Copy)]
pub struct Sign {
    pub at: Timestamp,
    /// If false, only users on the node were seen since the store lost its data.
    pub is_heartbeat: bool,
}

/// Calls by the time at which they are due.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    by_time: BTreeSet<(Timestamp, CallId)>,
    times: HashMap<CallId, Timestamp>,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.times.len()
    }

    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    fn set(&mut self, id: CallId, at: Timestamp) {
        if let Some(before) = self.times.insert(id, at) {
            self.by_time.remove(&(before, id));
        }
        self.by_time.insert((at, id));
    }

    fn set_if_absent(&mut self, id: CallId, at: Timestamp) {
        if !self.times.contains_key(&id) {
            self.set(id, at);
        }
    }

    /// Returns whether it was there.
    pub fn remove(&mut self, id: CallId) -> bool {
        let Some(at) = self.times.remove(&id) else { return false };
        self.by_time.remove(&(at, id))
    }

    fn pop_first(&mut self) -> Option<CallId> {
        let (_, id) = self.by_time.pop_first()?;
        self.times.remove(&id);
        Some(id)
    }

    /// Up to `limit` calls that are due at `now`.
    fn passed(&self, now: Timestamp, limit: usize) -> Vec<CallId> {
        let passed = self.by_time.iter().take_while(|(at, _)| *at <= now);
        passed.take(limit).map(|(_, id)| *id).collect()
    }
}

impl State {
    pub fn load(&self, id: CallId) -> Option<Call> {
        self.calls.get(&id).map(|record| record.call.clone())
    }

    fn is_live(&self, id: CallId) -> bool {
        self.calls.get(&id).is_some_and(|record| record.call.is_live())
    }

    pub fn presence(&self, id: &UserId) -> Presence {
        let Some(user) = self.users.get(id) else { return Presence::Offline };
        Presence::of(user.claim.is_some_and(|id| self.is_live(id)), !user.nodes.is_empty())
    }

    fn edge(&self, id: &UserId) -> Edge {
        Edge {
            user: id.clone(),
            presence: self.presence(id),
            order: self.users.get(id).map_or(0, |user| user.order),
            watchers: self.watchers.get(id).into_iter().flatten().copied().collect(),
        }
    }

    fn read(&self, id: &UserId, watchers: Watchers) -> User {
        let watchers = self.watchers.get(id).filter(|_| watchers == Watchers::Wanted);
        let watchers = watchers.into_iter().flatten().copied().collect();
        let Some(user) = self.users.get(id) else { return User { watchers, ..User::default() } };
        User {
            nodes: user.nodes.iter().map(|(node, count)| (*node, *count)).collect(),
            watchers,
            order: user.order,
            call: user.claim.and_then(|id| self.load(id)),
        }
    }

    /// Gives a user its next order: the time in microseconds, or one more than the last one and
    /// `after` if that is later.
    fn advance(&mut self, id: &UserId, after: u64) {
        let now_us = self.now.as_millis() * 1_000;
        if let Some(user) = self.users.get_mut(id) {
            user.order = (user.order.max(after) + 1).max(now_us);
        }
    }

    fn mark(
        &mut self,
        node: NodeId,
        (id, entry): &(UserId, Entry),
        calls: Calls,
        after: u64,
    ) -> Marked {
        let before = self.presence(id);
        self.users.entry(id.clone()).or_default();
        self.advance(id, after);
        if let Some(user) = self.users.get_mut(id) {
            user.claim = user.claim.filter(|claim| self.calls.contains_key(claim));
            match entry.sockets {
                Some(0) => drop(user.nodes.remove(&node)),
                Some(count) => drop(user.nodes.insert(node, count)),
                None => {}
            }
        }
        if entry.is_watched {
            self.watchers.entry(id.clone()).or_default().insert(node);
        } else {
            self.unwatch(node, id);
        }
        let is_here = self.users.get(id).is_some_and(|user| user.nodes.contains_key(&node));
        if is_here || entry.is_watched {
            self.note_user_on(node, id);
        } else if let Some(users) = self.users_on.get_mut(&node) {
            users.remove(id);
            if users.is_empty() {
                self.users_on.remove(&node);
            }
        }
        let edge = self.edge(id);
        let claim = self.users.get(id).and_then(|user| user.claim);
        let claim = claim.filter(|_| calls == Calls::Wanted);
        self.forget_idle(id);
        let has_changed = edge.presence != before;
        Marked { edge, has_changed, call: claim.and_then(|id| self.load(id)) }
    }

    fn unwatch(&mut self, node: NodeId, id: &UserId) {
        if let Some(watchers) = self.watchers.get_mut(id) {
            watchers.remove(&node);
            if watchers.is_empty() {
                self.watchers.remove(id);
            }
        }
    }

    /// If the node dies before its next heartbeat, others must know that it has users.
    fn note_user_on(&mut self, node: NodeId, id: &UserId) {
        self.users_on.entry(node).or_default().insert(id.clone());
        self.nodes.entry(node).or_insert(Sign { at: self.now, is_heartbeat: false });
    }

    /// Removes a user who has no socket, no call and no watcher.
    fn forget_idle(&mut self, id: &UserId) {
        let is_idle = |user: &StoredUser| user.nodes.is_empty() && user.claim.is_none();
        if self.users.get(id).is_some_and(is_idle) && !self.watchers.contains_key(id) {
            self.users.remove(id);
        }
    }

    fn write(&mut self, change: Change, over: u64, take_over_at: Timestamp) -> Committed {
        let Change { call, claims } = change;
        let (id, is_live, deadline) = (call.id, call.is_live(), call.deadline());
        let parties = [call.caller.user.clone(), call.callee.user.clone()];
        let current = self.calls.get(&id);
        let is_repeated = current.is_some_and(|current| current.call == call);
        let conflict = |current: Option<&Record>| {
            Committed::Conflict(current.map(|record| Box::new(record.call.clone())))
        };
        let version = current.map_or(0, |current| current.call.version);
        if !is_repeated && version != over && !is_made(Mistake::VersionUnchecked) {
            return conflict(current);
        }
        let is_changed = |claim: &Claim| {
            let present = self.users.get(&claim.user).and_then(|user| user.claim);
            let is_there = |claim: CallId| self.calls.contains_key(&claim);
            let is_free = claim.was.is_none() && !present.is_some_and(is_there);
            present != claim.was && !is_free && !is_made(Mistake::ClaimsUnchecked)
        };
        if !is_repeated && claims.iter().any(is_changed) {
            return conflict(current);
        }
        let was_live = current.is_some_and(|current| current.call.is_live());
        let can_change = current.is_none() || was_live != is_live || !claims.is_empty();
        if !is_repeated {
            for claim in claims {
                self.users.entry(claim.user).or_default().claim = Some(id);
            }
            self.calls.insert(id, Record { call, is_persisted: false });
            if is_live {
                if !is_made(Mistake::NoDeadline) {
                    self.deadlines.set(id, deadline);
                }
                self.unstored.remove(id);
            } else {
                self.deadlines.remove(id);
                self.unstored.set(id, take_over_at);
            }
            self.stored.remove(id);
        }
        let mut edges = Vec::new();
        for party in &parties {
            if !is_repeated && can_change {
                self.advance(party, 0);
            }
            let Some(user) = self.users.get(party) else { continue };
            let before = Presence::of(was_live, !user.nodes.is_empty());
            let is_latest = user.claim == Some(id);
            if is_latest && (is_repeated || before != self.presence(party)) {
                edges.push(self.edge(party));
            }
        }
        let callee = self.users.get(&parties[1]);
        let callee_nodes = callee.map(|user| user.nodes.keys().copied().collect());
        Committed::Stored(Stored { edges, callee_nodes: callee_nodes.unwrap_or_default() })
    }

    fn live(&self, after: Option<CallId>, limit: usize) -> Part<Call> {
        let mut ids: Vec<CallId> = self.calls.keys().copied().collect();
        ids.sort_unstable();
        let first = after.map_or(0, |after| ids.partition_point(|id| *id <= after));
        let part = &ids[first..ids.len().min(first + limit)];
        let next = part.last().filter(|last| Some(last) != ids.last().as_ref());
        let calls = part.iter().filter_map(|id| self.load(*id)).filter(Call::is_live);
        (calls.collect(), next.map(ToString::to_string))
    }

    fn due(&mut self, now: Timestamp, lease: Timestamp, limit: usize) -> Taken {
        let ids = self.deadlines.passed(now, limit);
        let mut taken = Taken { has_more: ids.len() == limit, ..Taken::default() };
        for id in ids {
            match self.calls.get(&id) {
                Some(record) if record.call.is_live() => {
                    self.deadlines.set(id, lease);
                    taken.calls.push(record.call.clone());
                }
                record => {
                    taken.is_damaged |= record.is_none();
                    self.deadlines.remove(id);
                }
            }
        }
        taken
    }

    fn unstored(&mut self, now: Timestamp, limit: usize, forget: usize) -> (Unstored, bool) {
        let (mut lost, mut calls, mut is_damaged) = (0, Vec::new(), false);
        while self.unstored.len() > MAX_UNSTORED
            && let Some(id) = self.unstored.pop_first()
        {
            self.remove(id);
            lost += 1;
        }
        let ids = self.unstored.passed(now, limit);
        let mut has_more = limit > 0 && ids.len() == limit;
        for id in ids {
            let Some(Record { call, .. }) = self.calls.get(&id).cloned() else {
                self.unstored.remove(id);
                (lost, is_damaged) = (lost + 1, true);
                continue;
            };
            let waited = now - (call.deadline() - ENDED_RETENTION);
            let pause = waited.clamp(TAKE_OVER_AFTER, LONGEST_UNSTORED_LEASE);
            self.unstored.set(id, now + pause);
            if call.deadline() <= now {
                self.unclaim(&call);
            }
            calls.push(call);
        }
        let ids = self.stored.passed(now, forget);
        has_more |= ids.len() == forget;
        for id in ids {
            is_damaged |= !self.calls.contains_key(&id);
            self.remove(id);
        }
        (Unstored { calls, has_more, waiting: self.unstored.len(), lost }, is_damaged)
    }

    fn mark_persisted(&mut self, persisted: &[(CallId, u64)]) {
        for (id, version) in persisted {
            let Some(record) = self.calls.get_mut(id) else { continue };
            if !record.call.is_live() && record.call.version <= *version {
                record.is_persisted = true;
                if self.unstored.remove(*id) {
                    self.stored.set(*id, record.call.deadline());
                }
            }
        }
    }

    /// Removes a record and the claims on it.
    fn remove(&mut self, id: CallId) {
        for queue in [&mut self.deadlines, &mut self.unstored, &mut self.stored] {
            queue.remove(id);
        }
        if let Some(record) = self.calls.remove(&id) {
            self.unclaim(&record.call);
        }
    }

    /// Removes the call from its users' claims.
    fn unclaim(&mut self, call: &Call) {
        if is_made(Mistake::ClaimsKept) {
            return;
        }
        for id in [&call.caller.user, &call.callee.user] {
            if let Some(user) = self.users.get_mut(id) {
                user.claim = user.claim.filter(|claim| *claim != call.id);
            }
            self.forget_idle(id);
        }
    }

    fn repair(&mut self, now: Timestamp) -> Repaired {
        let mut repaired = Repaired::default();
        let mut ids: Vec<CallId> = self.calls.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Record { call, is_persisted } = self.calls[&id].clone();
            if call.is_live() {
                self.deadlines.set_if_absent(id, call.deadline());
                self.repair_claims(&call, &mut repaired);
            } else if is_persisted {
                self.stored.set_if_absent(id, call.deadline());
            } else {
                self.unstored.set_if_absent(id, now);
            }
        }
        let mut ids: Vec<UserId> = self.users.keys().chain(self.watchers.keys()).cloned().collect();
        ids.sort_unstable();
        for id in ids {
            let user = self.users.get_mut(&id);
            let nodes = user.iter().flat_map(|user| user.nodes.keys());
            let watching = self.watchers.get(&id).into_iter().flatten();
            let nodes: Vec<NodeId> = nodes.chain(watching).copied().collect();
            if let Some(user) = user {
                user.claim = user.claim.filter(|claim| self.calls.contains_key(claim));
            }
            for node in nodes {
                self.note_user_on(node, &id);
            }
            self.forget_idle(&id);
        }
        repaired
    }

    /// Makes a live call the latest of its users again, unless they are in another live one.
    fn repair_claims(&mut self, call: &Call, repaired: &mut Repaired) {
        for id in [&call.caller.user, &call.callee.user] {
            let claim = self.users.get(id).and_then(|user| user.claim);
            if claim == Some(call.id) {
            } else if claim.is_some_and(|claim| self.is_live(claim)) {
                repaired.displaced.push(call.clone());
            } else {
                self.users.entry(id.clone()).or_default().claim = Some(call.id);
                self.advance(id, 0);
                repaired.users.push(id.clone());
            }
        }
    }

    fn beat(
        &mut self,
        node: NodeId,
        confirmed: Option<(Timestamp, Offset)>,
        dead_after: Duration,
    ) -> Heartbeat {
        let now = self.now;
        if let Some((at, offset)) = confirmed
            && offset == self.offset
            && at <= now
            && now - at <= MAX_CONFIRMATION_AGE
        {
            self.confirmed = Some(at);
        }
        let before = self.nodes.insert(node, Sign { at: now, is_heartbeat: true });
        let is_ahead =
            |sign: &Sign| sign.at >= now + MAX_AHEAD && !is_made(Mistake::FutureBelieved);
        let is_silent = |sign: &Sign| sign.at <= now - dead_after || is_ahead(sign);
        let silent = self.nodes.iter().filter(|(_, sign)| is_silent(sign));
        Heartbeat {
            was_known: before.is_some_and(|before| before.is_heartbeat),
            time: now,
            offset: self.offset,
            confirmed: self.confirmed,
            silent: silent.map(|(node, _)| *node).collect(),
            evicted_keys: Some(self.evicted_keys),
        }
    }

    fn agree(&mut self, was: Offset, offset: Offset) -> bool {
        let is_unchanged = self.offset == was;
        if is_unchanged {
            (self.offset, self.confirmed) = (offset, None);
        }
        is_unchanged
    }

    fn evict(
        &mut self,
        node: NodeId,
        (after, before): (Timestamp, Timestamp),
        lease: Timestamp,
        limit: usize,
    ) -> Evicted {
        let is_dead = |sign: &Sign| sign.at <= after || sign.at >= before;
        if !self.nodes.get(&node).is_some_and(is_dead) {
            return Evicted { users: Vec::new(), rest: Rest::Untouched };
        }
        let Some(users_on) = self.users_on.get_mut(&node) else {
            self.nodes.remove(&node);
            return Evicted { users: Vec::new(), rest: Rest::Nothing };
        };
        let taken: Vec<UserId> = users_on.iter().take(limit).cloned().collect();
        users_on.retain(|id| !taken.contains(id));
        if users_on.is_empty() {
            self.users_on.remove(&node);
        }
        let mut users = Vec::new();
        for id in taken {
            // Presence does not change for users that the node only watched.
            let user = self.users.get_mut(&id);
            if user.is_some_and(|user| user.nodes.remove(&node).is_some()) {
                self.advance(&id, 0);
                self.evictions.insert((node, id.clone()), lease);
                users.push(id.clone());
            }
            self.unwatch(node, &id);
            self.forget_idle(&id);
        }
        Evicted { users, rest: Rest::Users }
    }

    fn unacknowledged(
        &mut self,
        now: Timestamp,
        lease: Timestamp,
        limit: usize,
    ) -> Vec<(NodeId, UserId)> {
        let late = self.evictions.iter_mut().filter(|(_, until)| **until <= now).take(limit);
        late.map(|(who, until)| {
            *until = lease;
            who.clone()
        })
        .collect()
    }

    fn acknowledge(&mut self, node: NodeId, users: Vec<UserId>) {
        for id in users {
            self.evictions.remove(&(node, id));
        }
    }

    /// Up to `limit` users on a node after `from`, and the position to continue at.
    fn users_on(&self, node: NodeId, from: &str, limit: usize) -> Part<UserId> {
        let users = self.users_on.get(&node).into_iter().flatten();
        let users = users.filter(|user| user.as_str() > from).take(limit).cloned();
        let part: Vec<UserId> = users.collect();
        let next = part.last().map(|user| user.as_str().to_owned());
        (part, next)
    }

    fn leave(&mut self, node: NodeId) -> bool {
        let is_empty = !self.users_on.contains_key(&node);
        if is_empty {
            self.nodes.remove(&node);
        }
        is_empty
    }
}

/// The shared state of all nodes in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    state: Mutex<State>,
    channels: Mutex<HashMap<NodeId, mpsc::Sender<String>>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(Clock::System)
    }
}

impl Hub {
    pub fn new(clock: Clock) -> Self {
        let (state, channels) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { clock, state, channels }))
    }

    /// Adds a node to this cluster, and returns its inbox. Must be called in a runtime.
    pub fn node(&self, id: NodeId) -> (Arc<Embedded>, mpsc::Receiver<Inbound>) {
        let memory = || Memory { hub: self.clone(), node: id };
        let store = StateStore { node: id, access: memory() };
        let (texts, subscription) = mpsc::channel(CHANNEL_TEXTS);
        self.channels().insert(id, texts);
        let (clock, buffers) = (self.0.clock.clone(), Buffers::default());
        let (node, inbox, _) =
            Node::open(id, store, memory(), subscription, clock, Health::default(), buffers);
        (node, inbox)
    }

    /// The state, at the present time. Tests look at it and damage it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock();
        state.now = self.0.clock.now();
        state
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<NodeId, mpsc::Sender<String>>> {
        self.0.channels.lock()
    }
}

/// A node of a [`Hub`]. All nodes end with the process: none is evicted, and none sends heartbeats.
pub type Embedded = Node<StateStore<Memory>, Memory>;

/// One node's view of a [`Hub`].
#[derive(Debug)]
pub struct Memory {
    hub: Hub,
    node: NodeId,
}

/// How a node reaches a [`State`].
pub trait Access: Send + Sync + 'static {
    /// Executes an operation, all of it or nothing.
    fn ask<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, Unavailable>> + Send;

    /// The number of entries that one operation handles instead of this many.
    fn at_once(&self, most: usize) -> usize {
        most
    }

    /// See [`Nodes::reconnected`].
    fn reconnected(&self) -> impl Future<Output = Connection> + Send {
        std::future::pending()
    }
}

impl Access for Memory {
    async fn ask<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        Ok(operation(&mut self.hub.state()))
    }
}

/// A [`State`] as a store, for one node.
#[derive(Debug)]
pub struct StateStore<A> {
    pub node: NodeId,
    pub access: A,
}

impl<A: Access> Records for StateStore<A> {
    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable> {
        self.access.ask(move |state| state.load(id)).await
    }

    async fn write(
        &self,
        change: Change,
        over: u64,
        take_over_at: Timestamp,
    ) -> Result<Committed, Unavailable> {
        self.access.ask(move |state| state.write(change, over, take_over_at)).await
    }

    async fn live(&self, from: Option<&str>, limit: usize) -> Result<Part<Call>, Unavailable> {
        let from = from.and_then(|id| id.parse().ok());
        self.access.ask(move |state| state.live(from, limit)).await
    }

    async fn due(
        &self,
        now: Timestamp,
        lease: Timestamp,
        limit: usize,
    ) -> Result<Taken, Unavailable> {
        self.access.ask(move |state| state.due(now, lease, limit)).await
    }

    async fn unstored(
        &self,
        now: Timestamp,
        limit: usize,
        forget: usize,
    ) -> Result<(Unstored, bool), Unavailable> {
        let forget = self.access.at_once(forget);
        self.access.ask(move |state| state.unstored(now, limit, forget)).await
    }

    async fn mark_persisted(&self, persisted: &[(CallId, u64)]) -> Result<(), Unavailable> {
        let persisted = persisted.to_vec();
        self.access.ask(move |state| state.mark_persisted(&persisted)).await
    }

    async fn repair(&self, _: &str, now: Timestamp) -> Result<Repaired, Unavailable> {
        self.access.ask(move |state| state.repair(now)).await
    }
}

impl<A: Access> Users for StateStore<A> {
    async fn read(
        &self,
        _: Lane,
        users: &[UserId],
        watchers: Watchers,
    ) -> Result<Vec<User>, Unavailable> {
        let users = users.to_vec();
        let read = move |state: &mut State| {
            users.iter().map(|id| state.read(id, watchers)).collect::<Vec<_>>()
        };
        self.access.ask(read).await
    }

    async fn mark(
        &self,
        _: Lane,
        entries: &[(UserId, Entry)],
        calls: Calls,
        after: u64,
    ) -> Result<Vec<Marked>, Unavailable> {
        let (node, entries) = (self.node, entries.to_vec());
        let mark = move |state: &mut State| {
            let mark = |entry| state.mark(node, entry, calls, after);
            entries.iter().map(mark).collect::<Vec<_>>()
        };
        self.access.ask(mark).await
    }

    async fn of_this_node(&self, from: Option<&str>) -> Result<Part<UserId>, Unavailable> {
        let (node, from) = (self.node, from.unwrap_or_default().to_owned());
        let limit = self.access.at_once(USERS_AT_ONCE);
        self.access.ask(move |state| state.users_on(node, &from, limit)).await
    }
}

impl<A: Access> Nodes for StateStore<A> {
    type Error = Unavailable;

    async fn beat(
        &self,
        confirmed: Option<(Timestamp, Offset)>,
        dead_after: Duration,
    ) -> Result<Heartbeat, Unavailable> {
        let node = self.node;
        self.access.ask(move |state| state.beat(node, confirmed, dead_after)).await
    }

    async fn count(&self) -> Result<u64, Unavailable> {
        self.access.ask(|state| state.nodes.len() as u64).await
    }

    async fn answers(&self) -> bool {
        self.access.ask(|_| ()).await.is_ok()
    }

    async fn agree(&self, was: Offset, offset: Offset) -> Result<bool, Unavailable> {
        self.access.ask(move |state| state.agree(was, offset)).await
    }

    async fn evict(
        &self,
        node: NodeId,
        alive: (Timestamp, Timestamp),
        lease: Timestamp,
        limit: usize,
    ) -> Result<Evicted, Unavailable> {
        self.access.ask(move |state| state.evict(node, alive, lease, limit)).await
    }

    async fn unacknowledged(
        &self,
        now: Timestamp,
        lease: Timestamp,
        limit: usize,
    ) -> Result<Vec<(NodeId, UserId)>, Unavailable> {
        self.access.ask(move |state| state.unacknowledged(now, lease, limit)).await
    }

    async fn acknowledge(&self, node: NodeId, users: &[UserId]) -> Result<(), Unavailable> {
        let users = users.to_vec();
        self.access.ask(move |state| state.acknowledge(node, users)).await
    }

    async fn leave(&self) -> Result<bool, Unavailable> {
        let node = self.node;
        self.access.ask(move |state| state.leave(node)).await
    }

    async fn reconnected(&self) -> Connection {
        self.access.reconnected().await
    }
}

impl Channel for Memory {
    const CAN_FALL_SILENT: bool = false;

    async fn publish(&self, to: NodeId, text: String) -> Result<usize, Unavailable> {
        match self.hub.channels().get(&to).map(|texts| texts.try_send(text)) {
            None | Some(Err(TrySendError::Closed(_))) => Ok(0),
            Some(Ok(())) => Ok(1),
            // It is published again.
            Some(Err(TrySendError::Full(_))) => Err(Unavailable),
        }
    }

    /// A node is subscribed from the beginning.
    async fn subscribe(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    async fn unsubscribe(&self) {
        self.hub.channels().remove(&self.node);
    }

    async fn reachable(&self, nodes: &[NodeId]) -> Result<Vec<bool>, Unavailable> {
        let channels = self.hub.channels();
        Ok(nodes.iter().map(|node| channels.contains_key(node)).collect())
    }

    fn last_reply(&self) -> Timestamp {
        self.hub.0.clock.now()
    }
}

impl Subscription for mpsc::Receiver<String> {
    async fn next(&mut self) -> Received {
        self.recv().await.map_or(Received::Closed, Received::Text)
    }

    fn take(&mut self) -> Option<String> {
        self.try_recv().ok()
    }
}
