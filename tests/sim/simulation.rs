//! The simulation of one run: shared state, active faults, clock, randomness and invariant checker.
//! All nodes and clients hold it; it runs no task of its own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use switchboard::{
    call::Call,
    cluster::{Unavailable, memory::State, mistakes::Mistake as ClusterMistake},
    ids::{CallId, NodeId, UserId},
    time::{Clock, Timestamp},
};
use tokio::sync::mpsc;

use super::{
    channel::Listener,
    checker::InvariantChecker,
    faults::{FaultState, RedisAccess},
    history::Table,
    random::Dice,
};

/// A deliberate mistake. The simulation must detect each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// The history reports rows as written that are not.
    RowsDropped,
    /// A message is acknowledged before it has left its sender's node.
    AckedAtOnce,
    /// In the production cluster module.
    InCluster(ClusterMistake),
}

/// A fail-over loses at most this many of the last writes.
const MAX_BEHIND: usize = 8;
/// An operation fails after this long without a reply.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// The delay of requests to Redis from a node that is far from it.
const FAR: Duration = Duration::from_millis(600);

type Late = Box<dyn FnOnce(&mut State) + Send>;

/// The state after the latest operation, as far as the checker observes it.
#[derive(Default)]
struct Seen {
    calls: BTreeMap<CallId, Call>,
    evictions: BTreeSet<(NodeId, UserId)>,
    beats: BTreeMap<NodeId, Timestamp>,
    /// The order of each user's latest change, and its true time.
    changes: BTreeMap<UserId, (u64, Timestamp)>,
}

impl Seen {
    /// Tells the checker what has changed, if an operation has changed it.
    fn compare(&mut self, state: &State, checker: Option<&mut InvariantChecker>, now: Timestamp) {
        let mut ignored = InvariantChecker::default();
        let checker = checker.unwrap_or(&mut ignored);
        let calls: BTreeMap<_, _> = state.calls.iter().collect();
        for (id, record) in calls {
            if self.calls.get(id) != Some(&record.call) {
                checker.wrote(now, &record.call, state);
                self.calls.insert(*id, record.call.clone());
            }
        }
        self.calls.retain(|id, _| state.calls.contains_key(id));
        for (node, sign) in state.nodes.iter().filter(|(_, sign)| sign.is_heartbeat) {
            if self.beats.insert(*node, sign.at) != Some(sign.at) {
                checker.beat(*node, now);
            }
        }
        for eviction in state.evictions.keys() {
            if self.evictions.insert(eviction.clone()) {
                checker.evicted(eviction.0, now);
            }
        }
        self.evictions.retain(|eviction| state.evictions.contains_key(eviction));
        let known: BTreeSet<UserId> =
            state.users.keys().chain(self.changes.keys()).cloned().collect();
        for id in known {
            let order = state.users.get(&id).map_or(0, |user| user.order);
            if self.changes.get(&id).is_none_or(|(known, _)| *known != order) {
                self.changes.insert(id, (order, now));
            }
        }
    }
}

pub struct Simulation {
    pub dice: Dice,
    pub clock: Clock,
    pub mistake: Option<Mistake>,
    pub table: Table,
    state: Mutex<State>,
    seen: Mutex<Seen>,
    /// The state before each of the last writes, for fail-overs.
    before: Mutex<VecDeque<State>>,
    /// Operations in the buffers of a frozen Redis, executed when it continues.
    late: Mutex<Vec<Late>>,
    faults: Mutex<FaultState>,
    checker: Mutex<InvariantChecker>,
    listeners: Mutex<BTreeMap<NodeId, Listener>>,
    /// How far Redis' time of day is ahead of the true time, in ms.
    redis_ahead_ms: AtomicI64,
    /// The nodes whose processes run. The tasks of others stop at their next I/O.
    running: Mutex<BTreeSet<NodeId>>,
    /// The time of Redis' last reply to each node.
    answers: Mutex<BTreeMap<NodeId, Timestamp>>,
}

impl Simulation {
    pub fn new(dice: Dice, mistake: Option<Mistake>) -> Arc<Self> {
        Arc::new(Self {
            dice,
            clock: Clock::tokio(),
            mistake,
            table: Table::default(),
            state: Mutex::default(),
            seen: Mutex::default(),
            before: Mutex::default(),
            late: Mutex::default(),
            faults: Mutex::default(),
            checker: Mutex::default(),
            listeners: Mutex::default(),
            redis_ahead_ms: AtomicI64::new(0),
            running: Mutex::default(),
            answers: Mutex::default(),
        })
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The time of day by Redis' clock.
    pub fn redis_now(&self) -> Timestamp {
        self.redis_time(self.now())
    }

    fn redis_time(&self, time: Timestamp) -> Timestamp {
        let ahead_ms = self.redis_ahead_ms.load(Ordering::Relaxed);
        Timestamp::from_millis(time.as_millis().saturating_add_signed(ahead_ms))
    }

    /// Redis' clock is set.
    pub fn move_redis_clock(&self, by_ms: i64) {
        self.redis_ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// The time of day that all nodes agree on.
    pub fn agreed_now(&self) -> Timestamp {
        let redis = self.redis_now();
        let offset_ms = self.state().offset.ms_at(redis);
        Timestamp::from_millis(redis.as_millis().saturating_add_signed(offset_ms))
    }

    /// The state, at the present time.
    pub fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.now = self.redis_now();
        state
    }

    pub fn faults(&self) -> MutexGuard<'_, FaultState> {
        self.faults.lock().unwrap()
    }

    pub fn checker(&self) -> MutexGuard<'_, InvariantChecker> {
        self.checker.lock().unwrap()
    }

    pub fn listeners(&self) -> MutexGuard<'_, BTreeMap<NodeId, Listener>> {
        self.listeners.lock().unwrap()
    }

    /// Writes a line to the run's log.
    pub fn note(&self, text: impl FnOnce() -> String) {
        let now = self.now();
        self.checker().note(now, text);
    }

    pub async fn latency(&self) {
        let ms =
            self.dice.roll(|dice| if dice.percent(5) { dice.below(60) } else { dice.below(3) });
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// The process of a node starts.
    pub fn start(&self, node: NodeId) {
        self.running.lock().unwrap().insert(node);
    }

    /// The process of a node ends at once.
    pub fn kill(&self, node: NodeId) {
        self.running.lock().unwrap().remove(&node);
        self.listeners().remove(&node);
    }

    /// Waits while the process of this node is frozen, and for ever if it has ended.
    pub async fn stand_still(&self, node: NodeId) {
        if !self.running.lock().unwrap().contains(&node) {
            return std::future::pending().await;
        }
        loop {
            let until = self.faults().paused.get(&node).copied();
            let now = self.now();
            match until {
                Some(until) if until > now => tokio::time::sleep(until - now).await,
                _ => return,
            }
        }
    }

    pub fn is_paused(&self, node: NodeId) -> bool {
        let until = self.faults().paused.get(&node).copied();
        until.is_some_and(|until| until > self.now())
    }

    pub fn redis_access(&self, node: NodeId) -> RedisAccess {
        self.faults().redis_access(node, self.now())
    }

    /// Executes an operation of `node`, if the active faults let it through.
    pub async fn carry_out<T: Send + 'static>(
        &self,
        node: NodeId,
        operation: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        self.stand_still(node).await;
        self.latency().await;
        let is_far = self.faults().far.get(&node).is_some_and(|until| *until > self.now());
        if is_far {
            tokio::time::sleep(FAR).await;
        }
        match self.redis_access(node) {
            RedisAccess::Open => {}
            RedisAccess::Broken => return Err(Unavailable),
            RedisAccess::Frozen(until) if until - self.now() < TIMEOUT => {
                tokio::time::sleep(until - self.now()).await;
            }
            RedisAccess::Frozen(_) => {
                tokio::time::sleep(TIMEOUT).await;
                if self.dice.roll(|dice| dice.percent(50)) {
                    let late = move |state: &mut State| drop(operation(state));
                    self.late.lock().unwrap().push(Box::new(late));
                }
                return Err(Unavailable);
            }
        }
        let is_flaky = self.faults().flaky.is_some_and(|until| until > self.now());
        let fate = if is_flaky { self.dice.roll(|dice| dice.below(10)) } else { 9 };
        if fate == 0 {
            return Err(Unavailable);
        }
        let answer = self.apply(operation);
        self.latency().await;
        if fate == 1 || self.redis_access(node) == RedisAccess::Broken {
            return Err(Unavailable);
        }
        self.stand_still(node).await;
        self.note_answer(node);
        Ok(answer)
    }

    /// Records that Redis has replied to a node.
    pub fn note_answer(&self, node: NodeId) {
        self.answers.lock().unwrap().insert(node, self.now());
    }

    pub fn last_answer(&self, node: NodeId) -> Timestamp {
        self.answers.lock().unwrap().get(&node).copied().unwrap_or(Timestamp::from_millis(0))
    }

    fn apply<T>(&self, operation: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        if self.checker().may_forget {
            let mut before = self.before.lock().unwrap();
            before.push_back(state.clone());
            if before.len() > MAX_BEHIND {
                before.pop_front();
            }
        }
        let answer = operation(&mut state);
        self.seen.lock().unwrap().compare(&state, Some(&mut self.checker()), self.now());
        answer
    }

    /// The true time of the latest change of a user.
    pub fn changed_at(&self, id: &UserId) -> Timestamp {
        self.seen.lock().unwrap().changes.get(id).map_or(Timestamp::default(), |(_, at)| *at)
    }

    /// Whether nothing is kept of any call. The place of one whose record is gone is kept until its time is over.
    pub fn holds_no_call(&self) -> bool {
        let state = self.state();
        let queues = [&state.deadlines, &state.unstored, &state.stored];
        state.calls.is_empty() && queues.iter().all(|queue| queue.is_empty())
    }

    /// A frozen Redis continues: it executes the operations in its buffers.
    pub fn thaw(&self) {
        for late in std::mem::take(&mut *self.late.lock().unwrap()) {
            self.apply(late);
        }
    }

    /// Redis returns to its state of so many operations ago, or to an empty one.
    pub fn forget(&self, operations: Option<usize>) {
        let mut state = self.state();
        let mut before = self.before.lock().unwrap();
        // Buffered operations are lost with their connections.
        self.late.lock().unwrap().clear();
        *state = match operations {
            Some(count) => {
                let back = before.len().saturating_sub(count);
                before.split_off(back).into_iter().next().unwrap_or_else(|| state.clone())
            }
            None => State::default(),
        };
        before.clear();
        self.seen.lock().unwrap().compare(&state, None, self.now());
    }

    /// A request of `node` that changes nothing reaches Redis, or fails.
    pub async fn reach(&self, node: NodeId) -> Result<(), Unavailable> {
        self.carry_out(node, |_| ()).await
    }

    /// All connections to Redis were replaced, or those of one node.
    pub fn reconnect(&self, node: Option<NodeId>) {
        for (id, listener) in &mut *self.listeners() {
            if node.is_none_or(|node| node == *id) {
                listener.reconnect();
            }
        }
    }

    pub fn is_deaf(&self, node: NodeId) -> bool {
        self.faults().deaf.get(&node).is_some_and(|until| *until > self.now())
    }

    /// Where texts for a node go, if its subscription works.
    pub fn subscription(&self, node: NodeId) -> Option<mpsc::UnboundedSender<String>> {
        let is_connected = self.redis_access(node) != RedisAccess::Broken;
        self.listeners().get(&node)?.subscription().filter(|_| is_connected)
    }

    /// A call id that follows from the seed.
    pub fn name_call(&self, now: Timestamp) -> CallId {
        let chance = self.dice.roll(super::random::Random::next);
        let millis = now.as_millis();
        let text = format!(
            "{:08x}-{:04x}-7{:03x}-8{:03x}-{:012x}",
            millis >> 16,
            millis & 0xffff,
            chance >> 52,
            (chance >> 40) & 0xfff,
            chance & 0xffff_ffff_ffff,
        );
        text.parse().expect("a version 7 UUID")
    }
}
