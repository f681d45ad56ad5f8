//! Keeps a node in its cluster: heartbeats, the time that all nodes share, and the eviction of dead
//! nodes. It reads the store through [`Nodes`](super::ports::Nodes), sets the clock, and reports
//! to the inbox what the driver must do.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tracing::{debug, info, warn};

use super::{
    Departed, Inbound, Peers, Unavailable,
    mistakes::{Mistake, is_made},
    node::Node,
    ports::{Channel, Heartbeat, Lane, MAX_AHEAD, Rest, Store, Watchers},
    timekeeper::{Offset, Reading, Timekeeper, Verdict},
};
use crate::{
    health::{Health, Part},
    ids::{NodeId, UserId},
    metrics::{self, Connection},
    time::{SharedClock, Timestamp},
};

const HEARTBEAT: Duration = Duration::from_secs(2);
/// The longest time that a starting node waits for others to confirm the cluster's time, and the
/// interval of its attempts. After a jump, the confirmation takes three heartbeats.
const MAX_WAIT_FOR_TIME: Duration = Duration::from_secs(8);
const RETRY_TIME: Duration = Duration::from_millis(500);
/// A node whose last heartbeat is older than this is dead.
const DEAD_AFTER: Duration = Duration::from_secs(8);
/// A store that goes on evicting keys makes nodes announce their sockets again no more often.
const EVICTED_PAUSE: Duration = Duration::from_secs(10);
/// The time that a node has to handle the calls of evicted users.
const EVICTION_LEASE: Duration = Duration::from_secs(5);
/// After so many heartbeats in a row that failed while the store answered another request, the node
/// is not sent new clients: [`DEAD_AFTER`] is near, and then other nodes evict it.
const LEASE_FAILURES: u32 = 2;
/// The most users that are evicted from a dead node at a time.
const EVICTED_AT_ONCE: usize = 100;

/// The membership of one node.
pub struct Membership<S, C> {
    node: Arc<Node<S, C>>,
    timekeeper: Timekeeper,
    health: Health,
    inbox: mpsc::Sender<Inbound>,
    /// The number of keys that the store had evicted, as the latest heartbeat read it.
    evicted_keys: u64,
}

/// A heartbeat, and what follows from it.
struct Beat {
    was_known: bool,
    reading: Reading,
    silent: Vec<NodeId>,
    /// The store has evicted keys since the heartbeat before.
    has_evicted: bool,
}

/// The nodes that were silent at this time of the store.
struct Silent {
    nodes: Vec<NodeId>,
    time: Timestamp,
}

/// How long a silent node counts as alive.
fn dead_after() -> Duration {
    if is_made(Mistake::LeaseTooShort) { HEARTBEAT / 2 } else { DEAD_AFTER }
}

impl<S: Store, C: Channel> Membership<S, C> {
    pub fn new(
        node: Arc<Node<S, C>>,
        clock: Arc<SharedClock>,
        health: Health,
        inbox: mpsc::Sender<Inbound>,
    ) -> Self {
        Self { node, timekeeper: Timekeeper::new(clock), health, inbox, evicted_keys: 0 }
    }

    /// Sends a heartbeat and reads the time.
    async fn beat(&mut self) -> Result<Beat, S::Error> {
        let asked = Instant::now();
        let confirmed = self.timekeeper.confirms();
        let beat = self.node.store.beat(confirmed, dead_after()).await?;
        let Heartbeat { was_known, time, mut offset, confirmed, mut silent, evicted_keys } = beat;
        if is_made(Mistake::TimeOfStoreTaken) {
            offset = Offset::default();
        }
        let reading = Reading { redis: time, offset, confirmed, took: asked.elapsed() };
        silent.retain(|node| *node != self.node.node());
        // The first heartbeat finds all that is there, and a store that has restarted counts anew.
        let has_evicted = evicted_keys.is_some_and(|evicted_keys| {
            evicted_keys > std::mem::replace(&mut self.evicted_keys, evicted_keys)
        });
        if has_evicted {
            self.node.must_repair();
        }
        Ok(Beat { was_known, reading, silent, has_evicted })
    }

    /// Adopts the cluster's time as soon as it is certain.
    pub async fn take_time(&mut self) -> Result<(), S::Error> {
        let until = Instant::now() + MAX_WAIT_FOR_TIME;
        loop {
            let Beat { reading, .. } = self.beat().await?;
            let is_late = Instant::now() >= until || is_made(Mistake::TimeOfStoreTaken);
            let is_alone = is_late || self.node.store.count().await? <= 1;
            if self.timekeeper.begin(&reading, is_alone) {
                // A node that starts before the next heartbeat must see that the time was
                // confirmed.
                self.beat().await?;
                return Ok(());
            }
            debug!("this node waits for the others to agree what time it is");
            tokio::time::sleep(RETRY_TIME).await;
        }
    }

    /// Corrects the clock with this reading. Returns whether the store's time of day has jumped.
    async fn keep_time(&mut self, reading: &Reading) -> bool {
        let jump_ms = self.timekeeper.jump(reading);
        let verdict = self.timekeeper.heard(reading);
        #[expect(clippy::cast_precision_loss, reason = "it is shown, not calculated with")]
        metrics::CLOCK_OFFSET.set(reading.offset.ms_at(reading.redis) as f64 / 1_000.0);
        if let Some(jump_ms) = jump_ms {
            warn!(jump_ms, "Redis has another time of day: the cluster keeps its own");
        }
        match verdict {
            Verdict::Goes => {}
            Verdict::Followed => warn!("this node's clock had stood still: it takes the cluster's"),
            Verdict::Agree(offset) => {
                // If this fails, the next heartbeat leads to the same result.
                if let Ok(true) = self.node.store.agree(reading.offset, offset).await {
                    let ms = offset.ms_at(reading.redis);
                    warn!(ms, "the cluster's time is ahead of Redis' by this, and nears it slowly");
                }
            }
        }
        jump_ms.is_some() && !is_made(Mistake::JumpUnnoticed)
    }

    /// Sends heartbeats until the node leaves. All other work is done beside them: a node whose
    /// heartbeat waits would be evicted.
    pub async fn run(self) {
        // A request that finds another one pending is merged with it.
        let (recovery, recoveries) = mpsc::channel(1);
        let (eviction, evictions) = mpsc::channel(1);
        let (node, inbox) = (self.node.clone(), self.inbox.clone());
        tokio::join!(
            self.send_heartbeats(recovery, eviction),
            recover(&node, recoveries, &inbox),
            evict_dead(&node, evictions, &inbox),
        );
    }

    async fn send_heartbeats(mut self, recovery: mpsc::Sender<()>, eviction: mpsc::Sender<Silent>) {
        let node = self.node.clone();
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaving = pin!(node.leaving.cancelled());
        ticks.tick().await;
        // The time of the last reply, and of the first one after the last failure.
        let (mut heard, mut since) = (Instant::now(), Instant::now());
        let (mut lease_failures, mut was_away) = (0, false);
        let (mut has_evicted, mut recovered) = (false, None::<Instant>);
        let recover = || _ = recovery.try_send(());
        loop {
            tokio::select! {
                biased;
                () = &mut leaving => return,
                // A store that has reconnected may be empty: the next heartbeat is sent at once.
                connection = node.store.reconnected() => {
                    metrics::REDIS_RECONNECTS.of(connection).increment(1);
                    if connection == Connection::Commands {
                        // Repeats failed work, from the present state.
                        recover();
                    }
                }
                _ = ticks.tick() => {}
            }
            let asked = Instant::now();
            if asked - heard > 2 * HEARTBEAT {
                since = asked;
            }
            let beat = match self.beat().await {
                Ok(beat) => beat,
                Err(error) => {
                    was_away = true;
                    self.health.trouble(Part::Redis, &error);
                    lease_failures =
                        if node.store.answers().await { lease_failures + 1 } else { 0 };
                    if lease_failures >= LEASE_FAILURES {
                        let what = "the heartbeat fails though Redis answers other commands";
                        self.health.trouble(Part::Lease, format_args!("{what}: {error}"));
                    }
                    warn!(%error, "Redis does not answer the heartbeat");
                    continue;
                }
            };
            heard = asked;
            lease_failures = 0;
            if std::mem::take(&mut was_away) {
                // Commands may have failed on connections that did not break.
                recover();
            }
            self.health.well(Part::Redis);
            self.health.well(Part::Lease);
            if self.keep_time(&beat.reading).await {
                // By the new time, nodes without a heartbeat since the jump seem dead: they get the
                // time of one heartbeat.
                since = asked;
            }
            has_evicted |= beat.has_evicted;
            if has_evicted && recovered.is_none_or(|at| at.elapsed() >= EVICTED_PAUSE) {
                (has_evicted, recovered) = (false, Some(asked));
                warn!(
                    "Redis has evicted keys: this node puts back what it knows. Give Redis memory and \
                     `maxmemory-policy noeviction`"
                );
                recover();
            }
            if !beat.was_known {
                info!("this node was not known to the cluster any more: it joins again");
                recover();
            } else if asked - since >= dead_after() {
                // Before that, other nodes may have been cut off like this one, and return later.
                let silent = Silent { nodes: beat.silent, time: beat.reading.redis };
                let _ = eviction.try_send(silent);
            }
        }
    }
}

/// Whenever requested, reports that this node must announce its sockets again, once it receives the
/// messages of nodes that see the announcement.
async fn recover<S: Store, C: Channel>(
    node: &Node<S, C>,
    mut requests: mpsc::Receiver<()>,
    inbox: &mpsc::Sender<Inbound>,
) {
    while requests.recv().await.is_some() {
        if tokio::time::timeout(HEARTBEAT, node.bus.heard()).await.is_ok() {
            node.bus.note_recovery();
        }
        let _ = inbox.send(Inbound::Reset).await;
    }
}

async fn evict_dead<S: Store, C: Channel>(
    node: &Node<S, C>,
    mut silent: mpsc::Receiver<Silent>,
    inbox: &mpsc::Sender<Inbound>,
) {
    while let Some(silent) = silent.recv().await {
        if let Err(error) = evict_silent(node, &silent, inbox).await {
            warn!(%error, "dead nodes could not be looked for");
        }
    }
}

async fn evict_silent<S: Store, C: Channel>(
    node: &Node<S, C>,
    silent: &Silent,
    inbox: &mpsc::Sender<Inbound>,
) -> Result<(), Unavailable> {
    if is_made(Mistake::DeadNotEvicted) {
        return Ok(());
    }
    for dead in &silent.nodes {
        evict(node, *dead, silent.time, inbox).await?;
    }
    // Evictions that nobody has acknowledged: the node that was to handle them died, or the store
    // was down.
    let now = node.now();
    let lease = now + EVICTION_LEASE;
    let mut users: BTreeMap<NodeId, Vec<UserId>> = BTreeMap::new();
    for (dead, user) in node.store.unacknowledged(now, lease, EVICTED_AT_ONCE).await? {
        users.entry(dead).or_default().push(user);
    }
    for (dead, users) in users {
        report(node, dead, &users, inbox).await?;
    }
    Ok(())
}

/// Removes all users from a dead node.
async fn evict<S: Store, C: Channel>(
    node: &Node<S, C>,
    dead: NodeId,
    time: Timestamp,
    inbox: &mpsc::Sender<Inbound>,
) -> Result<(), Unavailable> {
    warn!(peer = %dead, "a node is dead: its users are taken off it");
    node.bus.forget(dead);
    let alive = (time - dead_after(), time + MAX_AHEAD);
    loop {
        let lease = node.now() + EVICTION_LEASE;
        let evicted = node.store.evict(dead, alive, lease, EVICTED_AT_ONCE).await?;
        report(node, dead, &evicted.users, inbox).await?;
        match evicted.rest {
            Rest::Users => {}
            Rest::Nothing => {
                metrics::DEAD_NODES.increment(1);
                return Ok(());
            }
            Rest::Untouched => return Ok(()),
        }
    }
}

/// Reports users who were evicted from a node, unless they are there again.
async fn report<S: Store, C: Channel>(
    node: &Node<S, C>,
    dead: NodeId,
    users: &[UserId],
    inbox: &mpsc::Sender<Inbound>,
) -> Result<(), Unavailable> {
    let read = node.store.read(Lane::Calls, users, Watchers::Wanted).await?;
    let (mut back, mut departed) = (Vec::new(), Vec::new());
    for (id, user) in std::iter::zip(users, read) {
        if user.nodes.iter().any(|(other, _)| *other == dead) {
            // The node was not dead, and has attached the user again since.
            back.push(id.clone());
        } else {
            departed.push(Departed { edge: user.edge(id), call: user.call });
        }
    }
    if !departed.is_empty() {
        let _ = inbox.send(Inbound::Departed(dead, departed)).await;
    }
    if back.is_empty() { Ok(()) } else { node.store.acknowledge(dead, &back).await }
}
