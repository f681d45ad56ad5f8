//! The embedded backend: one node, everything in this process.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{Attached, Change, Cluster, Committed, Edge, Unavailable};
use crate::{
    call::{Call, Lobby},
    ids::{CallId, SocketId, UserId},
    protocol::Presence,
    time::Timestamp,
};

/// How long a due call is left to whoever took it before it is given out again.
const LEASE: Duration = Duration::from_secs(2);

/// The shared state of a cluster of one node.
#[derive(Debug, Default)]
pub struct Memory {
    store: Mutex<Store>,
}

#[derive(Debug, Default)]
struct Store {
    calls: HashMap<CallId, Record>,
    users: HashMap<UserId, User>,
    deadlines: BTreeSet<(Timestamp, CallId)>,
    /// Counts every change of a user, so that edges can be put in order.
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
    sockets: Vec<SocketId>,
    claim: Option<CallId>,
}

impl Memory {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Cluster for Memory {
    async fn attach(&self, user: &UserId, socket: SocketId) -> Result<Attached, Unavailable> {
        Ok(self.store().change_sockets(user, |sockets| {
            if !sockets.contains(&socket) {
                sockets.push(socket);
            }
        }))
    }

    async fn detach(&self, user: &UserId, socket: SocketId) -> Result<Attached, Unavailable> {
        let mut store = self.store();
        let attached = store.change_sockets(user, |sockets| sockets.retain(|s| *s != socket));
        store.forget_idle(user);
        Ok(attached)
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

    async fn latest(&self, user: &UserId) -> Result<Option<Call>, Unavailable> {
        Ok(self.store().latest(user))
    }

    async fn commit(&self, change: Change) -> Result<Committed, Unavailable> {
        Ok(self.store().commit(change))
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Call>, Unavailable> {
        Ok(self.store().due(now, limit))
    }

    async fn settle(&self, calls: &[CallId]) -> Result<(), Unavailable> {
        let mut store = self.store();
        for id in calls {
            if let Some(record) = store.calls.get_mut(id) {
                record.settled = true;
            }
        }
        Ok(())
    }
}

impl Store {
    fn change_sockets(
        &mut self,
        user: &UserId,
        change: impl FnOnce(&mut Vec<SocketId>),
    ) -> Attached {
        let before = self.presence(user);
        change(&mut self.users.entry(user.clone()).or_default().sockets);
        Attached { call: self.latest(user), edge: self.edge_since(user, before) }
    }

    fn commit(&mut self, change: Change) -> Committed {
        let Change { call, claims } = change;
        let current = self.load(call.id);
        let conflict = |current: Option<Call>| Committed::Conflict(current.map(Box::new));
        if current.as_ref().map_or(0, |current| current.version) + 1 != call.version {
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
        Committed::Stored(edges)
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
        for _ in 0..limit {
            let Some(&(at, id)) = self.deadlines.first() else { break };
            if at > now {
                break;
            }
            self.deadlines.remove(&(at, id));
            let Some(record) = self.calls.get_mut(&id) else { continue };
            if record.settled {
                self.remove(id);
            } else {
                record.due_at = now + LEASE;
                self.deadlines.insert((record.due_at, id));
                due.push(record.call.clone());
            }
        }
        due
    }

    /// Removes a record and the claims that lead to it.
    fn remove(&mut self, id: CallId) {
        let Some(record) = self.calls.remove(&id) else { return };
        for user in [record.call.caller.user, record.call.callee.user] {
            if let Some(entry) = self.users.get_mut(&user) {
                entry.claim = entry.claim.filter(|claim| *claim != id);
            }
            self.forget_idle(&user);
        }
    }

    /// Keeps nothing about users who have neither a socket nor a call.
    fn forget_idle(&mut self, user: &UserId) {
        let idle = |user: &User| user.sockets.is_empty() && user.claim.is_none();
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
        if record.is_some_and(|record| record.call.is_live()) {
            Presence::Busy
        } else if entry.sockets.is_empty() {
            Presence::Offline
        } else {
            Presence::Online
        }
    }

    fn edge(&self, user: &UserId) -> Edge {
        Edge { user: user.clone(), presence: self.presence(user), order: self.order }
    }

    /// The edge from `before` to now; None if there is none.
    fn edge_since(&mut self, user: &UserId, before: Presence) -> Option<Edge> {
        self.order += 1;
        Some(self.edge(user)).filter(|edge| edge.presence != before)
    }
}
