//! The access of a node to the simulated Redis: the production in-memory store, behind requests that
//! fail or lose their reply. Records and keys that Redis loses.

use std::{collections::BTreeMap, sync::Arc};

use switchboard::{
    cluster::{
        Unavailable,
        memory::{Access, Queue, State},
    },
    ids::{CallId, NodeId, UserId},
    metrics::Connection,
};
use tokio::sync::Notify;

use super::simulation::Simulation;

/// Few, so that a run often needs several turns.
const AT_ONCE: usize = 2;

/// A node's connections for commands.
pub struct SimulatedAccess {
    pub node: NodeId,
    pub sim: Arc<Simulation>,
    pub reconnected: Arc<Notify>,
}

impl Access for SimulatedAccess {
    async fn ask<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        self.sim.carry_out(self.node, operation).await
    }

    fn at_once(&self, _: usize) -> usize {
        AT_ONCE
    }

    async fn reconnected(&self) -> Connection {
        self.reconnected.notified().await;
        Connection::Commands
    }
}

/// A key of the simulated Redis, which may be evicted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Call(CallId),
    User(UserId),
    Watchers(UserId),
    UsersOn(NodeId),
    Deadlines,
    Unstored,
    Stored,
    Nodes,
    Clock,
}

/// Expires or evicts a record. Claims and deadlines that refer to it remain, because they have no
/// time to live. Returns the call, if there was one.
pub fn lose_record(state: &mut State, which: usize) -> Option<CallId> {
    let calls: BTreeMap<_, _> = state.calls.iter().collect();
    let lost = **calls.keys().nth(which % calls.len().max(1))?;
    state.calls.remove(&lost);
    Some(lost)
}

/// A key is evicted. Returns its name.
pub fn evict_key(state: &mut State, which: usize) -> String {
    let mut all = vec![Key::Clock];
    all.extend(state.calls.keys().map(|id| Key::Call(*id)));
    all.extend(state.users.keys().map(|user| Key::User(user.clone())));
    all.extend(state.watchers.keys().map(|user| Key::Watchers(user.clone())));
    all.extend(state.users_on.keys().map(|node| Key::UsersOn(*node)));
    all.extend((!state.deadlines.is_empty()).then_some(Key::Deadlines));
    all.extend((!state.unstored.is_empty()).then_some(Key::Unstored));
    all.extend((!state.stored.is_empty()).then_some(Key::Stored));
    all.extend((!state.nodes.is_empty()).then_some(Key::Nodes));
    all.sort_unstable();
    let key = &all[which % all.len()];
    match key {
        Key::Call(id) => drop(state.calls.remove(id)),
        Key::User(user) => drop(state.users.remove(user)),
        Key::Watchers(user) => drop(state.watchers.remove(user)),
        Key::UsersOn(node) => drop(state.users_on.remove(node)),
        Key::Deadlines => state.deadlines = Queue::default(),
        Key::Unstored => state.unstored = Queue::default(),
        Key::Stored => state.stored = Queue::default(),
        Key::Nodes => state.nodes.clear(),
        Key::Clock => (state.offset, state.confirmed) = Default::default(),
    }
    state.evicted_keys += 1;
    format!("{key:?}")
}
