//! The data of the simulated Redis, and the operations of its scripts: compare, write, expire.
//! Pure: time and faults are the caller's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use switchboard::{
    call::{Call, Lobby},
    cluster::{
        Change, Committed, Due, Edge, LONGEST_UNSTORED_LEASE, Stored, TAKE_OVER_AFTER, Unstored,
        mistakes::Mistake as ClusterMistake, timekeeper::Offset,
    },
    ids::{CallId, NodeId, UserId},
    protocol::Presence,
    time::Timestamp,
};

const LIVE_LEASE: Duration = Duration::from_secs(5);
/// Few, so that a run often needs several turns.
const FORGOTTEN_AT_ONCE: usize = 2;
const EVICTION_LEASE: Duration = Duration::from_secs(5);

/// A heartbeat that was held up confirms nothing.
const CONFIRMED_LATELY: Duration = Duration::from_secs(5);

/// A deliberate mistake. The simulation must detect each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A record is written over any version.
    VersionUnchecked,
    /// An ended call keeps its users' claims.
    ClaimsKept,
    /// A record is written without its deadline.
    NoDeadline,
    /// Claims are not compared.
    ClaimsUnchecked,
    /// Users of a dead node are never evicted.
    DeadNotEvicted,
    /// In the cluster module itself.
    InCluster(ClusterMistake),
    /// The history reports rows as written that are not.
    RowsDropped,
    /// A message is acknowledged before it has left its sender's node.
    AckedAtOnce,
    /// A node takes Redis' time of day for the cluster's.
    TimeOfRedisTaken,
    /// Nothing is repaired after keys were evicted.
    NotMended,
    /// A heartbeat from before Redis' clock was set back counts as one of a living node.
    FutureBelieved,
}

#[derive(Debug, Clone, Default)]
pub struct State {
    /// The true time, and the time by Redis' clock, in Unix ms.
    pub actual_ms: u64,
    pub redis_ms: u64,
    /// The cluster's clock: the offset, and when a node last found it right, by Redis' clock.
    pub offset: Offset,
    pub confirmed: Option<Timestamp>,
    pub calls: BTreeMap<CallId, Record>,
    pub users: BTreeMap<UserId, User>,
    /// Live calls, by deadline.
    pub deadlines: BTreeSet<(Timestamp, CallId)>,
    /// Ended calls whose rows are not stored, and those whose rows are.
    pub unstored: BTreeSet<(Timestamp, CallId)>,
    pub stored: BTreeSet<(Timestamp, CallId)>,
    /// The last sign of life of each node.
    pub nodes: BTreeMap<NodeId, Sign>,
    pub departed: BTreeMap<(NodeId, UserId), Timestamp>,
    /// The users that each node has sockets of or watches.
    pub users_on: BTreeMap<NodeId, BTreeSet<UserId>>,
    /// How many keys were evicted.
    pub evicted: u64,
}

/// The last time that a node was known to be alive.
#[derive(Debug, Clone, Copy)]
pub struct Sign {
    pub at: Timestamp,
    /// A heartbeat. If false, only users on the node were seen.
    pub is_heartbeat: bool,
}

/// A key that may be evicted.
#[derive(Debug)]
enum Key {
    Call(CallId),
    User(UserId),
    UsersOn(NodeId),
    Deadlines,
    Unstored,
    Stored,
    Nodes,
    Clock,
}

#[derive(Debug, Clone)]
pub struct Record {
    pub call: Call,
    due_at: Timestamp,
    settled: bool,
}

#[derive(Debug, Clone, Default)]
pub struct User {
    pub claim: Option<CallId>,
    pub nodes: BTreeMap<NodeId, usize>,
    pub watchers: BTreeSet<NodeId>,
    pub order: u64,
    /// The true time of the latest change, in Unix ms.
    pub changed_ms: u64,
}

impl User {
    /// Gives the user its next order: the time in microseconds, or the last order plus one if that
    /// is later.
    fn advance(&mut self, after: u64, (redis_ms, actual_ms): (u64, u64)) {
        self.order = (self.order.max(after) + 1).max(redis_ms * 1_000);
        self.changed_ms = actual_ms;
    }
}

impl State {
    /// Whether nothing is kept of any call. The place of one whose record is gone is kept until its time is over.
    pub fn is_over(&self) -> bool {
        let queues = [&self.deadlines, &self.unstored, &self.stored];
        self.calls.is_empty() && queues.iter().all(|queue| queue.is_empty())
    }

    pub fn load(&self, id: CallId) -> Option<Call> {
        self.calls.get(&id).map(|record| record.call.clone())
    }

    pub fn latest(&self, user: &UserId) -> Option<Call> {
        self.load(self.users.get(user)?.claim?)
    }

    pub fn presence(&self, user: &UserId) -> Presence {
        let is_live = self.latest(user).is_some_and(|call| call.is_live());
        Presence::of(is_live, self.users.get(user).is_some_and(|user| !user.nodes.is_empty()))
    }

    pub fn edge(&self, user: &UserId) -> Edge {
        let entry = self.users.get(user);
        Edge {
            user: user.clone(),
            presence: self.presence(user),
            order: entry.map_or(0, |entry| entry.order),
            watchers: entry
                .map(|entry| entry.watchers.iter().copied().collect())
                .unwrap_or_default(),
        }
    }

    pub fn sockets_of(&self, user: &UserId) -> Vec<(NodeId, usize)> {
        let nodes = self.users.get(user).into_iter().flat_map(|user| &user.nodes);
        nodes.map(|(node, count)| (*node, *count)).collect()
    }

    pub fn nodes_of(&self, user: &UserId) -> Vec<NodeId> {
        self.users.get(user).map(|user| user.nodes.keys().copied().collect()).unwrap_or_default()
    }

    pub fn redis_now(&self) -> Timestamp {
        Timestamp::from_millis(self.redis_ms)
    }

    fn times(&self) -> (u64, u64) {
        (self.redis_ms, self.actual_ms)
    }

    /// Records a heartbeat, and when the node last found the cluster's offset right. Returns whether the node had
    /// sent one before.
    pub fn beat(&mut self, node: NodeId, found: Option<(Timestamp, Offset)>) -> bool {
        let now = self.redis_now();
        if let Some((at, offset)) = found
            && offset == self.offset
            && at <= now
            && now - at <= CONFIRMED_LATELY
        {
            self.confirmed = Some(at);
        }
        let at = now;
        let before = self.nodes.insert(node, Sign { at, is_heartbeat: true });
        before.is_some_and(|before| before.is_heartbeat)
    }

    /// Writes the offset of the cluster's clock if it is what it was.
    pub fn agree(&mut self, was: Offset, offset: Offset) {
        if self.offset == was {
            (self.offset, self.confirmed) = (offset, None);
        }
    }

    /// Records that there are users on a node.
    pub fn has_users(&mut self, node: NodeId) {
        let at = self.redis_now();
        self.nodes.entry(node).or_insert(Sign { at, is_heartbeat: false });
    }

    /// Changes a user's entries; the new order is above `after`. Returns the presence change, if
    /// there is one.
    pub fn mark(
        &mut self,
        user: &UserId,
        after: u64,
        change: impl FnOnce(&mut User),
    ) -> Option<Edge> {
        let (before, times) = (self.presence(user), self.times());
        let entry = self.users.entry(user.clone()).or_default();
        entry.claim = entry.claim.filter(|claim| self.calls.contains_key(claim));
        change(entry);
        entry.advance(after, times);
        let edge = self.edge(user);
        self.forget_idle(user);
        Some(edge).filter(|edge| edge.presence != before)
    }

    pub fn lobby(
        &self,
        caller: &UserId,
        callee: &UserId,
        listens: impl Fn(NodeId) -> bool,
    ) -> Lobby {
        let nodes = self.users.get(callee).map(|user| user.nodes.clone()).unwrap_or_default();
        let reachable = nodes.iter().filter(|(node, _)| listens(**node));
        Lobby {
            caller_call: self.latest(caller),
            callee_call: self.latest(callee),
            callee_sockets: reachable.map(|(_, count)| count).sum(),
        }
    }

    /// Writes a record over the version `over`; 0 requires that there is none.
    pub fn write(
        &mut self,
        change: &Change,
        over: u64,
        now: Timestamp,
        mistake: Option<Mistake>,
    ) -> Committed {
        let Change { call, claims } = change;
        let current = self.load(call.id);
        let parties = [&call.caller.user, &call.callee.user];
        if current.as_ref() == Some(call) {
            let edges = parties.map(|user| self.edge(user)).into();
            return Committed::Stored(Stored { edges, callee_nodes: self.nodes_of(parties[1]) });
        }
        let version = current.as_ref().map_or(0, |current| current.version);
        if version != over && mistake != Some(Mistake::VersionUnchecked) {
            return Committed::Conflict(current.map(Box::new));
        }
        // A claim without a record counts as no claim.
        let is_there = |claim: &CallId| self.calls.contains_key(claim);
        let claim_of = |user: &UserId| self.users.get(user)?.claim.filter(is_there);
        if claims.iter().any(|claim| claim_of(&claim.user) != claim.was)
            && mistake != Some(Mistake::ClaimsUnchecked)
        {
            return Committed::Conflict(current.map(Box::new));
        }
        let before = parties.map(|user| self.presence(user));
        for claim in claims {
            self.users.entry(claim.user.clone()).or_default().claim = Some(call.id);
        }
        let was_live = current.as_ref().is_some_and(Call::is_live);
        let times = self.times();
        if !claims.is_empty() || current.is_none() || was_live != call.is_live() {
            for user in parties {
                if let Some(entry) = self.users.get_mut(user) {
                    entry.advance(0, times);
                }
            }
        }
        self.put(call, now, mistake);
        let edges = std::iter::zip(parties, before)
            .map(|(user, before)| (self.edge(user), before))
            .filter(|(edge, before)| edge.presence != *before)
            .map(|(edge, _)| edge)
            .collect();
        Committed::Stored(Stored { edges, callee_nodes: self.nodes_of(parties[1]) })
    }

    fn put(&mut self, call: &Call, now: Timestamp, mistake: Option<Mistake>) {
        let id = call.id;
        self.unqueue(id);
        let due_at = if call.is_live() { call.deadline() } else { now + TAKE_OVER_AFTER };
        self.calls.insert(id, Record { call: call.clone(), due_at, settled: false });
        if mistake != Some(Mistake::NoDeadline) {
            self.queue(id);
        }
    }

    /// Puts a call into the queue that fits its state.
    fn queue(&mut self, id: CallId) {
        let Some(record) = self.calls.get(&id) else { return };
        let queue = match (record.call.is_live(), record.settled) {
            (true, _) => &mut self.deadlines,
            (false, false) => &mut self.unstored,
            (false, true) => &mut self.stored,
        };
        queue.insert((record.due_at, id));
    }

    /// Removes a call from its queue, also if its record is gone.
    fn unqueue(&mut self, id: CallId) {
        for queue in [&mut self.deadlines, &mut self.unstored, &mut self.stored] {
            queue.retain(|(_, other)| *other != id);
        }
    }

    pub fn due(&mut self, now: Timestamp, limit: usize, mistake: Option<Mistake>) -> Due {
        let ids = passed(&self.deadlines, now, limit);
        let (has_more, mut calls) = (ids.len() == limit, Vec::new());
        for id in ids {
            match self.lease(id, now + LIVE_LEASE) {
                Some(call) => calls.push(call),
                None => self.unclaim_gone(mistake),
            }
        }
        Due { calls, has_more, ..Due::default() }
    }

    pub fn unstored(&mut self, now: Timestamp, limit: usize, mistake: Option<Mistake>) -> Unstored {
        let ids = passed(&self.unstored, now, limit);
        let (has_more, mut lost) = (limit > 0 && ids.len() == limit, 0);
        let mut calls = Vec::new();
        for id in ids {
            let ended_at = self.load(id).and_then(|call| call.ended_at());
            let waited = ended_at.map_or(Duration::ZERO, |at| now - at);
            let pause = waited.clamp(TAKE_OVER_AFTER, LONGEST_UNSTORED_LEASE);
            let Some(call) = self.lease(id, now + pause) else {
                self.unclaim_gone(mistake);
                lost += 1;
                continue;
            };
            if call.deadline() <= now {
                self.unclaim(&call, mistake);
            }
            calls.push(call);
        }
        for id in passed(&self.stored, now, FORGOTTEN_AT_ONCE) {
            if !self.calls.contains_key(&id) {
                self.unclaim_gone(mistake);
            }
            self.remove(id, mistake);
        }
        Unstored { calls, has_more, waiting: self.unstored.len(), lost }
    }

    /// Hides a call from the queue until then.
    fn lease(&mut self, id: CallId, until: Timestamp) -> Option<Call> {
        self.unqueue(id);
        self.calls.get_mut(&id)?.due_at = until;
        self.queue(id);
        self.load(id)
    }

    fn remove(&mut self, id: CallId, mistake: Option<Mistake>) {
        self.unqueue(id);
        if let Some(record) = self.calls.remove(&id) {
            self.unclaim(&record.call, mistake);
        }
    }

    /// Removes the call from its users' claims.
    fn unclaim(&mut self, call: &Call, mistake: Option<Mistake>) {
        if mistake == Some(Mistake::ClaimsKept) {
            return;
        }
        for user in [&call.caller.user, &call.callee.user] {
            if let Some(entry) = self.users.get_mut(user) {
                entry.claim = entry.claim.filter(|claim| *claim != call.id);
            }
            self.forget_idle(user);
        }
    }

    /// Removes the claims of all users whose records are gone.
    fn unclaim_gone(&mut self, mistake: Option<Mistake>) {
        if mistake == Some(Mistake::ClaimsKept) {
            return;
        }
        let Self { users, calls, .. } = self;
        for user in users.values_mut() {
            user.claim = user.claim.filter(|claim| calls.contains_key(claim));
        }
        for user in self.users.keys().cloned().collect::<Vec<_>>() {
            self.forget_idle(&user);
        }
    }

    /// Expires or evicts a record. Claims and deadlines that refer to it remain, because they have
    /// no time to live. Returns the call, if there was one.
    pub fn lose_record(&mut self, which: usize) -> Option<CallId> {
        let lost = *self.calls.keys().nth(which % self.calls.len().max(1))?;
        self.calls.remove(&lost);
        Some(lost)
    }

    /// A key is evicted. Returns its name, if there is one.
    pub fn evict(&mut self, which: usize) -> Option<String> {
        let calls = self.calls.keys().map(|id| Key::Call(*id));
        let users = self.users.keys().map(|user| Key::User(user.clone()));
        let sets = self.users_on.keys().map(|node| Key::UsersOn(*node));
        let others = [
            (!self.deadlines.is_empty()).then_some(Key::Deadlines),
            (!self.unstored.is_empty()).then_some(Key::Unstored),
            (!self.stored.is_empty()).then_some(Key::Stored),
            (!self.nodes.is_empty()).then_some(Key::Nodes),
            Some(Key::Clock),
        ];
        let all: Vec<Key> =
            calls.chain(users).chain(sets).chain(others.into_iter().flatten()).collect();
        let key = all.get(which % all.len().max(1))?;
        match key {
            Key::Call(id) => drop(self.calls.remove(id)),
            Key::User(user) => drop(self.users.remove(user)),
            Key::UsersOn(node) => drop(self.users_on.remove(node)),
            Key::Deadlines => self.deadlines.clear(),
            Key::Unstored => self.unstored.clear(),
            Key::Stored => self.stored.clear(),
            Key::Nodes => self.nodes.clear(),
            Key::Clock => (self.offset, self.confirmed) = Default::default(),
        }
        self.evicted += 1;
        Some(format!("{key:?}"))
    }

    /// Repairs what leads from one key to another, as the script does. Returns the users whose latest call has
    /// changed, and the live calls one of whose users is in another live call.
    pub fn mend(&mut self, now: Timestamp, mistake: Option<Mistake>) -> (Vec<UserId>, Vec<Call>) {
        let (mut users, mut displaced) = (Vec::new(), Vec::new());
        if mistake == Some(Mistake::NotMended) {
            return (users, displaced);
        }
        self.unclaim_gone(mistake);
        let times = self.times();
        for id in self.calls.keys().copied().collect::<Vec<_>>() {
            let record = &self.calls[&id];
            let call = record.call.clone();
            let (queue, due_at) = match (call.is_live(), record.settled) {
                (true, _) => (&mut self.deadlines, call.deadline()),
                (false, false) => (&mut self.unstored, now),
                (false, true) => (&mut self.stored, call.deadline()),
            };
            if !queue.iter().any(|(_, other)| *other == id) {
                queue.insert((due_at, id));
            }
            if !call.is_live() {
                continue;
            }
            for user in [&call.caller.user, &call.callee.user] {
                let latest = self.latest(user);
                if latest.as_ref().is_some_and(|latest| latest.id == id) {
                } else if latest.is_some_and(|latest| latest.is_live()) {
                    displaced.push(call.clone());
                } else {
                    let entry = self.users.entry(user.clone()).or_default();
                    entry.claim = Some(id);
                    entry.advance(0, times);
                    users.push(user.clone());
                }
            }
        }
        for (user, entry) in self.users.clone() {
            for node in entry.nodes.keys().chain(&entry.watchers) {
                self.note_user_on(*node, &user);
            }
        }
        (users, displaced)
    }

    pub fn settle(&mut self, stored: &[(CallId, u64)]) {
        for (id, version) in stored {
            let is_it = |record: &Record| !record.call.is_live() && record.call.version <= *version;
            if !self.calls.get(id).is_some_and(is_it) {
                continue;
            }
            self.unqueue(*id);
            if let Some(record) = self.calls.get_mut(id) {
                record.settled = true;
                record.due_at = record.call.deadline();
            }
            self.queue(*id);
        }
    }

    fn forget_idle(&mut self, user: &UserId) {
        let is_idle =
            |user: &User| user.nodes.is_empty() && user.claim.is_none() && user.watchers.is_empty();
        if self.users.get(user).is_some_and(is_idle) {
            self.users.remove(user);
        }
    }

    /// The users that a node has sockets of or watches.
    pub fn users_on(&self, node: NodeId) -> Vec<UserId> {
        self.users_on.get(&node).into_iter().flatten().cloned().collect()
    }

    /// Puts a user into a node's set, or takes it out of it.
    pub fn note_user_on(&mut self, node: NodeId, user: &UserId) {
        let is_there = self
            .users
            .get(user)
            .is_some_and(|user| user.nodes.contains_key(&node) || user.watchers.contains(&node));
        let users = self.users_on.entry(node).or_default();
        if is_there {
            users.insert(user.clone());
            self.has_users(node);
        } else {
            users.remove(user);
            if users.is_empty() {
                self.users_on.remove(&node);
            }
        }
    }

    /// Removes the users of nodes that were silent since the first of these times, or whose heartbeat is no earlier
    /// than the second: it was written before Redis' clock was set back. Returns them. They are returned again after
    /// a lease that begins at `now`.
    pub fn bury(
        &mut self,
        (latest, ahead): (Timestamp, Timestamp),
        but: NodeId,
        now: Timestamp,
    ) -> Vec<(NodeId, UserId)> {
        let is_silent = |at: Timestamp| at <= latest || at >= ahead;
        let silent = self.nodes.iter().filter(|(node, sign)| is_silent(sign.at) && **node != but);
        let dead: Vec<NodeId> = silent.map(|(node, _)| *node).collect();
        let mut taken = Vec::new();
        for node in dead {
            for user in self.users_on.remove(&node).unwrap_or_default() {
                let mut had_sockets = false;
                self.mark(&user, 0, |user| {
                    had_sockets = user.nodes.remove(&node).is_some();
                    user.watchers.remove(&node);
                });
                // Presence does not change for users that the node only watched.
                if had_sockets {
                    self.departed.insert((node, user.clone()), now + EVICTION_LEASE);
                    taken.push((node, user));
                }
            }
            self.nodes.remove(&node);
        }
        taken
    }

    /// The users of dead nodes whose eviction nobody acknowledged in time.
    pub fn unseen(&mut self, now: Timestamp) -> Vec<(NodeId, UserId)> {
        let late = self.departed.iter_mut().filter(|(_, until)| **until <= now);
        late.map(|(who, until)| {
            *until = now + EVICTION_LEASE;
            who.clone()
        })
        .collect()
    }
}

/// The calls that are due, at most `limit`.
fn passed(queue: &BTreeSet<(Timestamp, CallId)>, now: Timestamp, limit: usize) -> Vec<CallId> {
    queue.iter().take_while(|(at, _)| *at <= now).take(limit).map(|(_, id)| *id).collect()
}
