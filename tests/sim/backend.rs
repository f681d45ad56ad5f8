//! The simulated backend of one node, which does what the Redis backend does: operations that may
//! fail or lose their reply, heartbeats, and the eviction of dead nodes. The shared state itself is
//! in `state.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use switchboard::{
    call::{Call, Lobby, Role},
    cluster::{
        Change, Cluster, Committed, Departed, Detached, Due, Edge, Inbound, Message, Relay, Stored,
        USERS_AT_ONCE, Unavailable, Unstored,
        bus::Bus,
        timekeeper::{Offset, Reading, Timekeeper, Verdict},
    },
    ids::{CallId, NodeId, SocketId, UserId},
    limits::buffers::Buffers,
    shutdown::{self, Shutdown, Trigger},
    time::{Clock, SharedClock, Timestamp},
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    channel::SimulatedChannel,
    simulation::Simulation,
    state::{Mistake, State},
};

const HEARTBEAT: Duration = Duration::from_secs(2);
const DEAD_AFTER: Duration = Duration::from_secs(8);
const MAX_AHEAD: Duration = Duration::from_secs(1);
const MAX_WAIT_FOR_TIME: Duration = Duration::from_secs(8);
const RETRY_TIME: Duration = Duration::from_millis(500);
const LAST_WORDS: Duration = Duration::from_secs(2);

pub struct Backend {
    pub node: NodeId,
    pub bus: Bus<SimulatedChannel>,
    clock: Arc<SharedClock>,
    /// The number of keys that were evicted, as the latest heartbeat read it, and whether all have to be checked.
    evicted: AtomicU64,
    must_mend: AtomicBool,
    timekeeper: Mutex<Timekeeper>,
    sim: Arc<Simulation>,
    local: Arc<Mutex<Local>>,
    leaving: Trigger,
    pub leaves: Shutdown,
}

#[derive(Default)]
struct Local {
    sockets: BTreeMap<UserId, BTreeSet<SocketId>>,
    watched: BTreeSet<UserId>,
    /// Users whose removal from this node had no reply: it may have been applied.
    untidied: BTreeSet<UserId>,
}

/// The entries of a user that a node writes: as a host of sockets, as a watcher, or both.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Watched,
    Both,
}

/// A user after its entries were written.
struct Marked {
    edge: Edge,
    /// The presence change, if the write caused one.
    changed: Option<Edge>,
    call: Option<Call>,
}

impl From<Marked> for Detached {
    fn from(Marked { changed, call, .. }: Marked) -> Self {
        Self { call, edge: changed }
    }
}

impl Backend {
    pub fn new(
        node: NodeId,
        sim: Arc<Simulation>,
        clock: Arc<SharedClock>,
        channel: SimulatedChannel,
    ) -> Self {
        let own_clock = Clock::Shared(clock.clone());
        let bus = Bus::new(node, channel, own_clock, Buffers::default());
        let (leaving, leaves) = shutdown::shutdown();
        let timekeeper = Mutex::new(Timekeeper::new(clock.clone()));
        let (evicted, must_mend) = (AtomicU64::new(0), AtomicBool::new(false));
        Self {
            node,
            bus,
            clock,
            evicted,
            must_mend,
            timekeeper,
            sim,
            local: Arc::default(),
            leaving,
            leaves,
        }
    }

    /// The time by this node's clock.
    fn now(&self) -> Timestamp {
        self.clock.read()
    }

    /// A heartbeat. Returns whether the node was known, whether keys were evicted since the one before, and what it reads.
    async fn beat(&self) -> Result<(bool, bool, Reading), Unavailable> {
        let (node, found) = (self.node, self.timekeeper.lock().unwrap().confirms());
        let asked = Instant::now();
        let (was_known, evicted, redis, offset, confirmed) = self
            .ask(move |_, state| {
                let was_known = state.beat(node, found);
                (was_known, state.evicted, state.redis_now(), state.offset, state.confirmed)
            })
            .await?;
        let has_evicted = evicted > self.evicted.swap(evicted, Ordering::Relaxed);
        if has_evicted {
            self.must_mend.store(true, Ordering::Relaxed);
        }
        let offset = match self.sim.mistake {
            Some(Mistake::TimeOfRedisTaken) => Offset::default(),
            _ => offset,
        };
        let reading = Reading { redis, offset, confirmed, took: asked.elapsed() };
        Ok((was_known, has_evicted, reading))
    }

    /// Takes the cluster's time, as soon as it is certain.
    pub async fn take_time(&self) {
        let until = Instant::now() + MAX_WAIT_FOR_TIME;
        loop {
            if let Ok((_, _, reading)) = self.beat().await {
                let is_late =
                    Instant::now() >= until || self.sim.mistake == Some(Mistake::TimeOfRedisTaken);
                let nodes = self.ask(|_, state| state.nodes.len()).await;
                let is_alone = is_late || nodes.is_ok_and(|nodes| nodes <= 1);
                if self.timekeeper.lock().unwrap().begin(&reading, is_alone) {
                    let _ = self.beat().await;
                    return;
                }
            }
            tokio::time::sleep(RETRY_TIME).await;
        }
    }

    /// Sets the clock by this reading. Returns whether Redis' time of day has jumped.
    async fn keep_time(&self, reading: Reading) -> bool {
        let (has_jumped, verdict) = {
            let mut timekeeper = self.timekeeper.lock().unwrap();
            (timekeeper.jump(&reading).is_some(), timekeeper.heard(&reading))
        };
        if let Verdict::Agree(offset) = verdict {
            let _ = self.ask(move |_, state| state.agree(reading.offset, offset)).await;
        }
        has_jumped
    }

    async fn ask<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Simulation, &mut State) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        self.sim.carry_out(self.node, operation).await
    }

    /// Writes this node's entries for these users, as they are when Redis executes the script,
    /// `limit` users at a time.
    async fn mark(
        &self,
        users: &[UserId],
        aspect: Aspect,
        after: u64,
    ) -> Result<Vec<Marked>, Unavailable> {
        let mut marked = Vec::with_capacity(users.len());
        for some in users.chunks(USERS_AT_ONCE) {
            let (some, node, local) = (some.to_vec(), self.node, self.local.clone());
            let mark = move |_: &Simulation, state: &mut State| {
                let mark = |user: UserId| {
                    let local = local.lock().unwrap();
                    let count = local.sockets.get(&user).map_or(0, BTreeSet::len);
                    let edge = state.mark(&user, after, |entry| {
                        if aspect == Aspect::Both {
                            entry.nodes.retain(|other, _| *other != node);
                            entry.nodes.extend((count > 0).then_some((node, count)));
                        }
                        entry.watchers.remove(&node);
                        entry.watchers.extend(local.watched.contains(&user).then_some(node));
                    });
                    state.note_user_on(node, &user);
                    Marked { changed: edge, edge: state.edge(&user), call: state.latest(&user) }
                };
                some.into_iter().map(mark).collect::<Vec<_>>()
            };
            marked.extend(self.ask(mark).await?);
        }
        Ok(marked)
    }

    async fn mark_sockets(&self, user: &UserId) -> Result<Marked, Unavailable> {
        let marked = self.mark(std::slice::from_ref(user), Aspect::Both, 0).await?;
        Ok(marked.into_iter().next().expect("each is answered"))
    }

    /// Sends heartbeats until the process ends. Their consequences (recovery, eviction) run in
    /// tasks beside this one.
    pub async fn live(self: Arc<Self>, inbox: mpsc::Sender<Inbound>, reconnected: Arc<Notify>) {
        let (start_over, start_overs) = mpsc::channel(1);
        let (bury, burials) = mpsc::channel(1);
        tokio::join!(
            self.beats(&reconnected, start_over, bury),
            self.start_over(start_overs, &inbox),
            self.bury_dead_again(burials, &inbox),
        );
    }

    async fn beats(
        &self,
        reconnected: &Notify,
        start_over: mpsc::Sender<()>,
        bury: mpsc::Sender<Timestamp>,
    ) {
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leaving = pin!(self.leaves.clone().wait());
        let started = Instant::now();
        let (mut heard, mut since, mut was_away) = (started, started, false);
        loop {
            tokio::select! {
                biased;
                () = &mut leaving => return,
                () = reconnected.notified() => {
                    let _ = start_over.try_send(());
                }
                _ = ticks.tick() => {}
            }
            let asked = Instant::now();
            if asked - heard > 2 * HEARTBEAT {
                since = asked;
            }
            let beat = self.beat().await;
            let is_back = std::mem::replace(&mut was_away, beat.is_err()) && beat.is_ok();
            let Ok((was_known, has_evicted, reading)) = beat else { continue };
            heard = asked;
            if self.keep_time(reading).await {
                since = asked;
            }
            if is_back || has_evicted || !was_known {
                let _ = start_over.try_send(());
            }
            if was_known && asked - since >= DEAD_AFTER {
                let _ = bury.try_send(reading.redis);
            }
        }
    }

    async fn start_over(&self, mut asked: mpsc::Receiver<()>, inbox: &mpsc::Sender<Inbound>) {
        while asked.recv().await.is_some() {
            if tokio::time::timeout(HEARTBEAT, self.bus.heard()).await.is_ok() {
                self.bus.looks_all_up();
            }
            let _ = inbox.send(Inbound::Reset).await;
        }
    }

    async fn bury_dead_again(
        &self,
        mut asked: mpsc::Receiver<Timestamp>,
        inbox: &mpsc::Sender<Inbound>,
    ) {
        while let Some(redis) = asked.recv().await {
            let _ = self.bury_dead(redis, inbox).await;
        }
    }

    /// Evicts the nodes that were silent when it was `redis` by Redis' clock.
    async fn bury_dead(
        &self,
        redis: Timestamp,
        inbox: &mpsc::Sender<Inbound>,
    ) -> Result<(), Unavailable> {
        if self.sim.mistake == Some(Mistake::DeadNotEvicted) {
            return Ok(());
        }
        let ahead = match self.sim.mistake {
            Some(Mistake::FutureBelieved) => Timestamp::from_millis(u64::MAX),
            _ => redis + MAX_AHEAD,
        };
        let (node, now, silent) = (self.node, self.now(), (redis - DEAD_AFTER, ahead));
        let taken = self.ask(move |_, state| state.bury(silent, node, now)).await?;
        for (dead, _) in &taken {
            self.bus.forget(*dead);
        }
        self.pass_on_departed(taken, inbox).await?;
        let now = self.now();
        let unseen = self.ask(move |_, state| state.unseen(now)).await?;
        self.pass_on_departed(unseen, inbox).await
    }

    async fn pass_on_departed(
        &self,
        users: Vec<(NodeId, UserId)>,
        inbox: &mpsc::Sender<Inbound>,
    ) -> Result<(), Unavailable> {
        let mut by_node: BTreeMap<NodeId, Vec<UserId>> = BTreeMap::new();
        for (node, user) in users {
            by_node.entry(node).or_default().push(user);
        }
        for (node, users) in by_node {
            let look = move |_: &Simulation, state: &mut State| {
                let is_back = |user: &UserId| state.nodes_of(user).contains(&node);
                let (back, gone): (Vec<_>, Vec<_>) = users.into_iter().partition(is_back);
                let departed =
                    |user: UserId| Departed { edge: state.edge(&user), call: state.latest(&user) };
                (back, gone.into_iter().map(departed).collect::<Vec<_>>())
            };
            let (back, departed) = self.ask(look).await?;
            if !departed.is_empty() {
                let _ = inbox.send(Inbound::Departed(node, departed)).await;
            }
            self.seen_off(node, &back).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Cluster for Backend {
    fn node(&self) -> NodeId {
        self.node
    }

    async fn attach(&self, user: &UserId, socket: SocketId) -> Result<Option<Edge>, Unavailable> {
        let is_new =
            self.local.lock().unwrap().sockets.entry(user.clone()).or_default().insert(socket);
        match self.mark_sockets(user).await {
            Ok(marked) => Ok(marked.changed),
            Err(error) => {
                if is_new {
                    self.remove(user, socket);
                }
                Err(error)
            }
        }
    }

    async fn detach(&self, user: &UserId, socket: SocketId) -> Result<Detached, Unavailable> {
        self.remove(user, socket);
        self.mark_sockets(user).await.map(Detached::from)
    }

    async fn attach_again(&self, sockets: &[(UserId, SocketId)]) -> Result<Vec<Edge>, Unavailable> {
        let (mut users, mut new) = (Vec::new(), Vec::new());
        for (user, socket) in sockets {
            let mut local = self.local.lock().unwrap();
            if local.sockets.entry(user.clone()).or_default().insert(*socket) {
                new.push((user, *socket));
            }
            users.push(user.clone());
        }
        let marked = self.mark(&users, Aspect::Both, 0).await.inspect_err(|_| {
            for (user, socket) in new {
                self.remove(user, socket);
            }
        })?;
        Ok(marked.into_iter().filter_map(|marked| marked.changed).collect())
    }

    async fn detach_all(
        &self,
        sockets: &[(UserId, SocketId)],
    ) -> Result<Vec<Detached>, Unavailable> {
        let mut users = Vec::new();
        for (user, socket) in sockets {
            self.remove(user, *socket);
            users.push(user.clone());
        }
        let marked = self.mark(&users, Aspect::Both, 0).await?;
        Ok(marked.into_iter().map(Detached::from).collect())
    }

    async fn tidy(
        &self,
        from: Option<&str>,
    ) -> Result<(Vec<(UserId, Detached)>, Option<String>), Unavailable> {
        let (node, from) = (self.node, from.unwrap_or_default().to_owned());
        // Two at a time, so that a run often needs several batches.
        let there = self.ask(move |_, state| state.users_on(node)).await?;
        let part: Vec<UserId> =
            there.into_iter().filter(|user| *user.as_str() > *from).take(2).collect();
        let next = part.last().map(|user| user.as_str().to_owned());
        let absent: Vec<UserId> = {
            let mut local = self.local.lock().unwrap();
            let mut users: BTreeSet<UserId> = part.into_iter().collect();
            users.append(&mut local.untidied);
            users.retain(|user| !local.sockets.contains_key(user) && !local.watched.contains(user));
            local.untidied.clone_from(&users);
            users.into_iter().collect()
        };
        let marked = self.mark(&absent, Aspect::Both, 0).await?;
        self.local.lock().unwrap().untidied.clear();
        Ok((std::iter::zip(absent, marked.into_iter().map(Detached::from)).collect(), next))
    }

    async fn watch(&self, users: &[UserId], after: u64) -> Result<Vec<Edge>, Unavailable> {
        self.local.lock().unwrap().watched.extend(users.iter().cloned());
        Ok(self
            .mark(users, Aspect::Watched, after)
            .await?
            .into_iter()
            .map(|marked| marked.edge)
            .collect())
    }

    async fn unwatch(&self, users: &[UserId]) -> Result<(), Unavailable> {
        {
            let mut local = self.local.lock().unwrap();
            for user in users {
                local.watched.remove(user);
            }
        }
        self.mark(users, Aspect::Watched, 0).await.map(drop)
    }

    async fn presence(&self, users: &[UserId]) -> Result<Vec<Edge>, Unavailable> {
        let users = users.to_vec();
        self.ask(move |_, state| users.iter().map(|user| state.edge(user)).collect()).await
    }

    async fn lobby(&self, caller: &UserId, callee: &UserId) -> Result<Lobby, Unavailable> {
        let (caller, callee, node) = (caller.clone(), callee.clone(), self.node);
        let lobby = move |sim: &Simulation, state: &mut State| {
            state.lobby(&caller, &callee, |other| other == node || sim.listens(other))
        };
        self.ask(lobby).await
    }

    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable> {
        self.ask(move |_, state| state.load(id)).await
    }

    async fn live(
        &self,
        _: Option<&str>,
        _: usize,
    ) -> Result<(Vec<Call>, Option<String>), Unavailable> {
        unreachable!("no operator looks on")
    }

    async fn nodes_of(&self, user: &UserId) -> Result<Vec<NodeId>, Unavailable> {
        let user = user.clone();
        self.ask(move |_, state| state.nodes_of(&user)).await
    }

    async fn sockets_of(&self, user: &UserId) -> Result<Vec<(NodeId, usize)>, Unavailable> {
        let user = user.clone();
        self.ask(move |_, state| state.sockets_of(&user)).await
    }

    async fn latest(&self, user: &UserId) -> Result<Option<Call>, Unavailable> {
        let user = user.clone();
        self.ask(move |_, state| state.latest(&user)).await
    }

    async fn latest_of(&self, users: &[UserId]) -> Result<Vec<Option<Call>>, Unavailable> {
        let users = users.to_vec();
        self.ask(move |_, state| users.iter().map(|user| state.latest(user)).collect()).await
    }

    async fn commit(&self, change: Change) -> Result<Committed, Unavailable> {
        let now = self.now();
        self.ask(move |sim, state| {
            let written = state.write(&change, change.call.version - 1, now, sim.mistake);
            if let Committed::Stored(_) = written {
                sim.checker().wrote(sim.now(), &change.call, state);
            }
            written
        })
        .await
    }

    async fn restore(
        &self,
        change: Change,
        over: Option<u64>,
    ) -> Result<Option<Stored>, Unavailable> {
        let now = self.now();
        self.ask(move |sim, state| {
            let written = state.write(&change, over.unwrap_or(0), now, sim.mistake);
            let is_written = matches!(written, Committed::Stored(_));
            sim.checker().restored(sim.now(), &change.call, is_written, state);
            written.stored()
        })
        .await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Due, Unavailable> {
        let due = self.ask(move |sim, state| state.due(now, limit, sim.mistake)).await?;
        if !self.must_mend.swap(false, Ordering::Relaxed) {
            return Ok(due);
        }
        let mended = self.ask(move |sim, state| state.mend(now, sim.mistake)).await;
        let (mended, displaced) = mended.unwrap_or_else(|_| {
            self.must_mend.store(true, Ordering::Relaxed);
            Default::default()
        });
        Ok(Due { mended, displaced, ..due })
    }

    async fn unstored(&self, now: Timestamp, limit: usize) -> Result<Unstored, Unavailable> {
        self.ask(move |sim, state| state.unstored(now, limit, sim.mistake)).await
    }

    async fn settle(&self, stored: &[(CallId, u64)]) -> Result<(), Unavailable> {
        let stored = stored.to_vec();
        self.ask(move |_, state| state.settle(&stored)).await
    }

    async fn seen_off(&self, node: NodeId, users: &[UserId]) -> Result<(), Unavailable> {
        let users = users.to_vec();
        self.ask(move |_, state| {
            for user in users {
                state.departed.remove(&(node, user));
            }
        })
        .await
    }

    fn recall(&self, from: NodeId, call: CallId, to: Role) -> Vec<Relay> {
        self.bus.recall(from, call, to)
    }

    fn stop_listening(&self) {
        self.leaving.fire();
    }

    async fn leave(&self) {
        self.stop_listening();
        let published = async {
            while !self.bus.is_idle() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, published).await;
        let node = self.node;
        let _ = self
            .ask(move |_, state| {
                let is_there = state.users_on.contains_key(&node);
                if !is_there {
                    state.nodes.remove(&node);
                }
            })
            .await;
    }

    fn send(&self, to: NodeId, message: Message) {
        self.bus.send(to, message);
    }
}

impl Backend {
    fn remove(&self, user: &UserId, socket: SocketId) {
        let mut local = self.local.lock().unwrap();
        if let Some(sockets) = local.sockets.get_mut(user) {
            sockets.remove(&socket);
            if sockets.is_empty() {
                local.sockets.remove(user);
            }
        }
    }
}
