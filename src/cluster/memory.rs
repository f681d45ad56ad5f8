//! The embedded backend: the shared state in this process. Several nodes can share it, which tests
//! use.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tracing::warn;

use super::{
    Change, Cluster, Committed, Detached, Due, Edge, Inbound, LONGEST_UNSTORED_LEASE, MAX_UNSTORED,
    Message, Relay, Stored, TAKE_OVER_AFTER, Unavailable, Unstored,
};
use crate::{
    call::{Call, Lobby, Role},
    ids::{CallId, NodeId, SocketId, UserId},
    protocol::Presence,
    time::Timestamp,
};

/// The time for which a due live call is hidden after a node has taken it.
const LIVE_LEASE: Duration = Duration::from_secs(2);
/// The most messages in a node's inbox.
const INBOX_MESSAGES: usize = 10_000;

/// The shared state of all nodes in this process.
#[derive(Debug, Clone, Default)]
pub struct Hub(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    store: Mutex<Store>,
    inboxes: Mutex<HashMap<NodeId, mpsc::Sender<Inbound>>>,
}

/// One node's view of a [`Hub`].
#[derive(Debug)]
pub struct Memory {
    hub: Hub,
    node: NodeId,
}

#[derive(Debug, Default)]
struct Store {
    calls: HashMap<CallId, Record>,
    users: HashMap<UserId, User>,
    /// Live calls, by deadline.
    deadlines: BTreeSet<(Timestamp, CallId)>,
    /// Ended calls whose rows are not stored, and those whose rows are.
    unstored: BTreeSet<(Timestamp, CallId)>,
    stored: BTreeSet<(Timestamp, CallId)>,
    /// Orders presence changes: it grows with every change of a user. It never goes back, because
    /// it ends with the process, as does everybody who knows an order.
    order: u64,
}

#[derive(Debug)]
struct Record {
    call: Call,
    /// The time at which the call is due: its own deadline, or the end of a lease.
    due_at: Timestamp,
    settled: bool,
}

#[derive(Debug, Default)]
struct User {
    sockets: Vec<(NodeId, SocketId)>,
    claim: Option<CallId>,
    watchers: BTreeSet<NodeId>,
}

impl Hub {
    /// Adds a node to this cluster, and returns its inbox.
    pub fn node(&self, node: NodeId) -> (Memory, mpsc::Receiver<Inbound>) {
        let (sender, inbox) = mpsc::channel(INBOX_MESSAGES);
        let mut inboxes = self.0.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        inboxes.insert(node, sender);
        (Memory { hub: self.clone(), node }, inbox)
    }
}

impl Memory {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.hub.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Cluster for Memory {
    fn node(&self) -> NodeId {
        self.node
    }

    async fn attach(&self, user: &UserId, socket: SocketId) -> Result<Option<Edge>, Unavailable> {
        let own = (self.node, socket);
        Ok(self.store().change_sockets(user, |sockets| {
            if !sockets.contains(&own) {
                sockets.push(own);
            }
        }))
    }

    async fn detach(&self, user: &UserId, socket: SocketId) -> Result<Detached, Unavailable> {
        let mut store = self.store();
        let edge = store.change_sockets(user, |sockets| {
            sockets.retain(|(_, other)| *other != socket);
        });
        let call = store.latest(user);
        store.forget_idle(user);
        Ok(Detached { call, edge })
    }

    async fn attach_again(&self, sockets: &[(UserId, SocketId)]) -> Result<Vec<Edge>, Unavailable> {
        let mut edges = Vec::new();
        for (user, socket) in sockets {
            edges.extend(self.attach(user, *socket).await?);
        }
        Ok(edges)
    }

    async fn detach_all(
        &self,
        sockets: &[(UserId, SocketId)],
    ) -> Result<Vec<Detached>, Unavailable> {
        let mut detached = Vec::with_capacity(sockets.len());
        for (user, socket) in sockets {
            detached.push(self.detach(user, *socket).await?);
        }
        Ok(detached)
    }

    async fn tidy(
        &self,
        _: Option<&str>,
    ) -> Result<(Vec<(UserId, Detached)>, Option<String>), Unavailable> {
        // The state lives and ends with the process, so no entry can be stale.
        Ok((Vec::new(), None))
    }

    async fn watch(&self, users: &[UserId], after: u64) -> Result<Vec<Edge>, Unavailable> {
        let mut store = self.store();
        store.order = store.order.max(after) + 1;
        for user in users {
            store.users.entry(user.clone()).or_default().watchers.insert(self.node);
        }
        Ok(users.iter().map(|user| store.edge(user)).collect())
    }

    async fn unwatch(&self, users: &[UserId]) -> Result<(), Unavailable> {
        let mut store = self.store();
        for user in users {
            if let Some(entry) = store.users.get_mut(user) {
                entry.watchers.remove(&self.node);
            }
            store.forget_idle(user);
        }
        Ok(())
    }

    async fn presence(&self, users: &[UserId]) -> Result<Vec<Edge>, Unavailable> {
        let store = self.store();
        Ok(users.iter().map(|user| store.edge(user)).collect())
    }

    async fn lobby(&self, caller: &UserId, callee: &UserId) -> Result<Lobby, Unavailable> {
        let store = self.store();
        Ok(Lobby {
            caller_call: store.latest(caller),
            callee_call: store.latest(callee),
            callee_sockets: store.users.get(callee).map_or(0, |user| user.sockets.len()),
        })
    }

    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable> {
        Ok(self.store().load(id))
    }

    async fn live(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Call>, Option<String>), Unavailable> {
        let store = self.store();
        let after = from.and_then(|id| id.parse::<CallId>().ok());
        let mut ids: Vec<CallId> = store.calls.keys().copied().collect();
        ids.sort_unstable();
        let first = after.map_or(0, |after| ids.partition_point(|id| *id <= after));
        let part = &ids[first..ids.len().min(first + limit)];
        let next = part.last().filter(|last| Some(last) != ids.last().as_ref());
        let calls = part.iter().filter_map(|id| store.load(*id)).filter(Call::is_live);
        Ok((calls.collect(), next.map(ToString::to_string)))
    }

    async fn nodes_of(&self, user: &UserId) -> Result<Vec<NodeId>, Unavailable> {
        Ok(self.store().nodes_of(user))
    }

    async fn sockets_of(&self, user: &UserId) -> Result<Vec<(NodeId, usize)>, Unavailable> {
        Ok(self.store().sockets_of(user))
    }

    async fn latest(&self, user: &UserId) -> Result<Option<Call>, Unavailable> {
        Ok(self.store().latest(user))
    }

    async fn latest_of(&self, users: &[UserId]) -> Result<Vec<Option<Call>>, Unavailable> {
        let store = self.store();
        Ok(users.iter().map(|user| store.latest(user)).collect())
    }

    async fn commit(&self, change: Change) -> Result<Committed, Unavailable> {
        let over = change.call.version - 1;
        Ok(self.store().write(change, over))
    }

    async fn restore(
        &self,
        change: Change,
        over: Option<u64>,
    ) -> Result<Option<Stored>, Unavailable> {
        Ok(self.store().write(change, over.unwrap_or(0)).stored())
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Due, Unavailable> {
        Ok(self.store().due(now, limit))
    }

    async fn unstored(&self, now: Timestamp, limit: usize) -> Result<Unstored, Unavailable> {
        Ok(self.store().unstored(now, limit))
    }

    async fn settle(&self, stored: &[(CallId, u64)]) -> Result<(), Unavailable> {
        let mut store = self.store();
        for (id, version) in stored {
            store.settle(*id, *version);
        }
        Ok(())
    }

    async fn seen_off(&self, _: NodeId, _: &[UserId]) -> Result<(), Unavailable> {
        // The node ends with its process, and so does the cluster.
        Ok(())
    }

    fn recall(&self, _: NodeId, _: CallId, _: Role) -> Vec<Relay> {
        // Sent messages are in the other node's inbox already.
        Vec::new()
    }

    async fn leave(&self) {
        let mut inboxes = self.hub.0.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        inboxes.remove(&self.node);
    }

    fn send(&self, to: NodeId, message: Message) {
        let inboxes = self.hub.0.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inbox) = inboxes.get(&to) else { return };
        let (message, tracked) = match message {
            Message::Relay(relay) => {
                let payload = relay.payload.untracked();
                (Message::Relay(Relay { payload, ..relay.clone() }), Some(relay.payload))
            }
            message => (message, None),
        };
        if inbox.try_send(Inbound::Message(self.node, message)).is_err() {
            warn!(peer = %to, "a message is dropped: the node is gone or does not keep up");
        } else if let Some(payload) = tracked {
            payload.settle();
        }
    }
}

impl Store {
    fn change_sockets(
        &mut self,
        user: &UserId,
        change: impl FnOnce(&mut Vec<(NodeId, SocketId)>),
    ) -> Option<Edge> {
        let before = self.presence(user);
        change(&mut self.users.entry(user.clone()).or_default().sockets);
        self.edge_since(user, before)
    }

    /// Writes a record over the version `over`; 0 requires that there is none.
    fn write(&mut self, change: Change, over: u64) -> Committed {
        let Change { call, claims } = change;
        let current = self.load(call.id);
        if current.as_ref() == Some(&call) {
            let parties = [&call.caller.user, &call.callee.user];
            let edges = parties.map(|user| self.edge(user)).into();
            return Committed::Stored(Stored { edges, callee_nodes: self.nodes_of(parties[1]) });
        }
        let conflict = |current: Option<Call>| Committed::Conflict(current.map(Box::new));
        if current.as_ref().map_or(0, |current| current.version) != over {
            return conflict(current);
        }
        let claim_of = |user: &UserId| self.users.get(user).and_then(|user| user.claim);
        if claims.iter().any(|claim| claim_of(&claim.user) != claim.was) {
            return conflict(current);
        }
        let parties = [call.caller.user.clone(), call.callee.user.clone()];
        let before = parties.clone().map(|user| self.presence(&user));
        for claim in claims {
            self.users.entry(claim.user).or_default().claim = Some(call.id);
        }
        self.put(call);
        let edges = std::iter::zip(&parties, before)
            .filter_map(|(user, before)| self.edge_since(user, before))
            .collect();
        let callee_nodes = self.nodes_of(&parties[1]);
        Committed::Stored(Stored { edges, callee_nodes })
    }

    fn nodes_of(&self, user: &UserId) -> Vec<NodeId> {
        self.sockets_of(user).into_iter().map(|(node, _)| node).collect()
    }

    fn sockets_of(&self, user: &UserId) -> Vec<(NodeId, usize)> {
        let mut nodes = BTreeMap::new();
        for (node, _) in self.users.get(user).into_iter().flat_map(|user| &user.sockets) {
            *nodes.entry(*node).or_default() += 1;
        }
        nodes.into_iter().collect()
    }

    fn put(&mut self, call: Call) {
        let id = call.id;
        self.unqueue(id);
        let due_at = call.ended_at().map_or(call.deadline(), |at| at + TAKE_OVER_AFTER);
        let queue = if call.is_live() { &mut self.deadlines } else { &mut self.unstored };
        queue.insert((due_at, id));
        self.calls.insert(id, Record { call, due_at, settled: false });
    }

    /// Removes a call from its queue.
    fn unqueue(&mut self, id: CallId) {
        if let Some(record) = self.calls.get(&id) {
            for queue in [&mut self.deadlines, &mut self.unstored, &mut self.stored] {
                queue.remove(&(record.due_at, id));
            }
        }
    }

    fn due(&mut self, now: Timestamp, limit: usize) -> Due {
        let mut calls = Vec::new();
        while calls.len() < limit
            && let Some(id) = pop_passed(&mut self.deadlines, now)
        {
            let Some(record) = self.calls.get_mut(&id) else { continue };
            record.due_at = now + LIVE_LEASE;
            self.deadlines.insert((record.due_at, id));
            calls.push(record.call.clone());
        }
        Due { has_more: calls.len() == limit, calls, ..Due::default() }
    }

    fn unstored(&mut self, now: Timestamp, limit: usize) -> Unstored {
        let (mut lost, mut calls) = (0, Vec::new());
        while self.unstored.len() > MAX_UNSTORED
            && let Some((_, id)) = self.unstored.pop_first()
        {
            self.remove(id);
            lost += 1;
        }
        while calls.len() < limit
            && let Some(id) = pop_passed(&mut self.unstored, now)
        {
            let Some(record) = self.calls.get_mut(&id) else { continue };
            let waited = record.call.ended_at().map_or(Duration::ZERO, |at| now - at);
            record.due_at = now + waited.clamp(TAKE_OVER_AFTER, LONGEST_UNSTORED_LEASE);
            self.unstored.insert((record.due_at, id));
            let call = record.call.clone();
            if call.deadline() <= now {
                self.unclaim(&call);
            }
            calls.push(call);
        }
        while let Some(id) = pop_passed(&mut self.stored, now) {
            self.remove(id);
        }
        let has_more = limit > 0 && calls.len() == limit;
        Unstored { has_more, calls, waiting: self.unstored.len(), lost }
    }

    fn settle(&mut self, id: CallId, version: u64) {
        self.unqueue(id);
        let Some(record) = self.calls.get_mut(&id) else { return };
        if !record.call.is_live() && record.call.version <= version {
            record.settled = true;
            record.due_at = record.call.deadline();
        }
        let queue = match (record.call.is_live(), record.settled) {
            (true, _) => &mut self.deadlines,
            (false, false) => &mut self.unstored,
            (false, true) => &mut self.stored,
        };
        queue.insert((record.due_at, id));
    }

    /// Removes a record and the claims on it.
    fn remove(&mut self, id: CallId) {
        self.unqueue(id);
        if let Some(record) = self.calls.remove(&id) {
            self.unclaim(&record.call);
        }
    }

    /// Removes the call from its users' claims.
    fn unclaim(&mut self, call: &Call) {
        for user in [&call.caller.user, &call.callee.user] {
            if let Some(entry) = self.users.get_mut(user) {
                entry.claim = entry.claim.filter(|claim| *claim != call.id);
            }
            self.forget_idle(user);
        }
    }

    /// Removes a user who has no socket, no call and no watcher.
    fn forget_idle(&mut self, user: &UserId) {
        let idle = |user: &User| {
            user.sockets.is_empty() && user.claim.is_none() && user.watchers.is_empty()
        };
        if self.users.get(user).is_some_and(idle) {
            self.users.remove(user);
        }
    }

    fn load(&self, id: CallId) -> Option<Call> {
        self.calls.get(&id).map(|record| record.call.clone())
    }

    fn latest(&self, user: &UserId) -> Option<Call> {
        self.load(self.users.get(user)?.claim?)
    }

    fn presence(&self, user: &UserId) -> Presence {
        let Some(entry) = self.users.get(user) else {
            return Presence::Offline;
        };
        let record = entry.claim.and_then(|id| self.calls.get(&id));
        let is_in_live_call = record.is_some_and(|record| record.call.is_live());
        Presence::of(is_in_live_call, !entry.sockets.is_empty())
    }

    fn edge(&self, user: &UserId) -> Edge {
        let watchers = self.users.get(user).into_iter().flat_map(|user| user.watchers.clone());
        Edge {
            user: user.clone(),
            presence: self.presence(user),
            order: self.order,
            watchers: watchers.collect(),
        }
    }

    /// The presence change from `before` to now; `None` if there is none.
    fn edge_since(&mut self, user: &UserId, before: Presence) -> Option<Edge> {
        self.order += 1;
        Some(self.edge(user)).filter(|edge| edge.presence != before)
    }
}

/// Takes the first call from the queue if it is due.
fn pop_passed(queue: &mut BTreeSet<(Timestamp, CallId)>, now: Timestamp) -> Option<CallId> {
    let (at, _) = queue.first()?;
    (*at <= now).then(|| queue.pop_first().map(|(_, id)| id)).flatten()
}
