//! The embedded backend: everything in this process. Several nodes can live in it, which tests do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tracing::warn;

use super::{
    Change, Cluster, Committed, Detached, Edge, Inbound, Message, Relay, Stored, Unavailable,
};
use crate::{
    call::{Call, Lobby, Role},
    ids::{CallId, NodeId, SocketId, UserId},
    protocol::Presence,
    time::Timestamp,
};

/// How long a live call that is due is left to whoever took it before it is given out again.
const LIVE_LEASE: Duration = Duration::from_secs(2);
/// The same for an ended one, which waits for history and must not crowd the live ones out.
const ENDED_LEASE: Duration = Duration::from_secs(30);

/// Most messages that wait for a node to take them.
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
    deadlines: BTreeSet<(Timestamp, CallId)>,
    /// Counts every change of a user, so that edges can be put in order. It never goes back: it ends with
    /// the process, and so do all who know an order.
    order: u64,
}

#[derive(Debug)]
struct Record {
    call: Call,
    /// When it is due: the call's own deadline, or the end of a lease.
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
    /// A node of this cluster, and what other nodes send it.
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

    async fn tidy(&self) -> Result<Vec<(UserId, Detached)>, Unavailable> {
        // It lives and dies with the process: it never goes back.
        Ok(Vec::new())
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

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Call>, Unavailable> {
        Ok(self.store().due(now, limit))
    }

    async fn settle(&self, stored: &[(CallId, u64)]) -> Result<(), Unavailable> {
        let mut store = self.store();
        for (id, version) in stored {
            let record = store.calls.get_mut(id);
            if let Some(record) = record.filter(|record| record.call.version <= *version) {
                record.settled = true;
            }
        }
        Ok(())
    }

    async fn seen_off(&self, _: NodeId, _: &[UserId]) -> Result<(), Unavailable> {
        // A node dies with its process here, and so does the cluster.
        Ok(())
    }

    fn recall(&self, _: NodeId, _: CallId, _: Role) -> Vec<Relay> {
        // What was sent is in the other node's inbox already.
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

    /// Writes a record over the version `over`, 0 if there must be none.
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
        let (id, due_at) = (call.id, call.deadline());
        let record = Record { call, due_at, settled: false };
        if let Some(old) = self.calls.insert(id, record) {
            self.deadlines.remove(&(old.due_at, id));
        }
        self.deadlines.insert((due_at, id));
    }

    fn due(&mut self, now: Timestamp, limit: usize) -> Vec<Call> {
        let mut due = Vec::new();
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
            && due.len() < limit
        {
            self.deadlines.remove(&(at, id));
            let Some(record) = self.calls.get_mut(&id) else { continue };
            if record.settled {
                self.remove(id);
            } else {
                let lease = if record.call.is_live() { LIVE_LEASE } else { ENDED_LEASE };
                record.due_at = now + lease;
                self.deadlines.insert((record.due_at, id));
                let call = record.call.clone();
                if !call.is_live() {
                    self.unclaim(&call);
                }
                due.push(call);
            }
        }
        due
    }

    /// Removes a record and the claims that lead to it.
    fn remove(&mut self, id: CallId) {
        if let Some(record) = self.calls.remove(&id) {
            self.unclaim(&record.call);
        }
    }

    /// The call is its users' latest no more.
    fn unclaim(&mut self, call: &Call) {
        for user in [&call.caller.user, &call.callee.user] {
            if let Some(entry) = self.users.get_mut(user) {
                entry.claim = entry.claim.filter(|claim| *claim != call.id);
            }
            self.forget_idle(user);
        }
    }

    /// Keeps nothing about users who have no socket and no call, and whom nobody watches.
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

    /// The edge from `before` to now; None if there is none.
    fn edge_since(&mut self, user: &UserId, before: Presence) -> Option<Edge> {
        self.order += 1;
        Some(self.edge(user)).filter(|edge| edge.presence != before)
    }
}
