//! Heartbeats of this node, the cluster's time, and the eviction of dead nodes.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fred::prelude::*;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{
    Redis,
    asked::timed,
    facts::{list, sockets_field, text},
    marked::Watchers,
};
use crate::{
    call::Call,
    cluster::{
        Cluster, Departed, Inbound, Unavailable,
        timekeeper::{Offset, Reading, Timekeeper, Verdict},
    },
    health::Part,
    ids::{NodeId, UserId},
    metrics::{self, Command, Connection},
    shutdown::Shutdown,
    time::Timestamp,
};

const HEARTBEAT: Duration = Duration::from_secs(2);
/// The longest time that a starting node waits for others to confirm the cluster's time, and the
/// interval of its attempts. After a jump, the confirmation takes three heartbeats.
const MAX_WAIT_FOR_TIME: Duration = Duration::from_secs(8);
const RETRY_TIME: Duration = Duration::from_millis(500);
/// A heartbeat is not later than Redis' time, unless Redis' clock was set back.
const MAX_AHEAD: Duration = Duration::from_secs(1);
/// A node whose last heartbeat is older than this is dead.
const DEAD_AFTER: Duration = Duration::from_secs(8);
/// A Redis that goes on evicting keys makes nodes announce their sockets again no more often.
const EVICTED_PAUSE: Duration = Duration::from_secs(10);
/// The time that a node has to handle the calls of evicted users.
const SEE_OFF_LEASE: Duration = Duration::from_secs(5);
/// After so many heartbeats in a row that failed while Redis answered another command, the node is
/// not sent new clients: [`DEAD_AFTER`] is near, and then other nodes evict it.
const LEASE_FAILURES: u32 = 2;
/// The most users that are evicted from a dead node at a time.
const BURY_USERS: usize = 100;

/// What the script of a heartbeat answers.
type Answer = (u64, u64, String, String, Vec<String>, String);

/// The result of a heartbeat.
struct Heard {
    /// The cluster did not know the node.
    was_unknown: bool,
    reading: Reading,
    /// The nodes whose heartbeats are overdue.
    silent: Vec<NodeId>,
    /// Redis has evicted keys since the heartbeat before.
    has_evicted: bool,
}

impl Redis {
    fn timekeeper(&self) -> MutexGuard<'_, Timekeeper> {
        self.timekeeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a heartbeat and reads the time.
    async fn beat(&self) -> Result<Heard, Error> {
        let (confirmed, found) = match self.timekeeper().confirms() {
            Some((at, offset)) => (at.as_millis().to_string(), offset.to_string()),
            None => (String::new(), String::new()),
        };
        let keys = vec![self.keys.nodes(), self.keys.clock()];
        let silence = DEAD_AFTER.as_millis().to_string();
        let arguments = vec![self.node.to_string(), confirmed, found, silence];
        let asked = Instant::now();
        let (added, now_ms, offset, confirmed, silent, evicted): Answer =
            self.scripts.beat.run(&self.lease, keys, arguments).await?;
        let took = asked.elapsed();
        let offset = offset.parse().unwrap_or_else(|error| {
            warn!(%error, "the offset of the cluster's clock cannot be read: it is left out");
            Offset::default()
        });
        let reading = Reading {
            redis: Timestamp::from_millis(now_ms),
            offset,
            confirmed: confirmed.parse().ok().map(Timestamp::from_millis),
            took,
        };
        let others = silent.iter().filter_map(|node| node.parse().ok());
        let silent = others.filter(|node| *node != self.node).collect();
        let has_evicted = evicted.parse().is_ok_and(|evicted| self.note_evicted(evicted));
        Ok(Heard { was_unknown: added > 0, reading, silent, has_evicted })
    }

    /// Adopts the cluster's time as soon as it is certain.
    pub(super) async fn take_time(&self) -> Result<(), Error> {
        let until = Instant::now() + MAX_WAIT_FOR_TIME;
        loop {
            let Heard { reading, .. } = self.beat().await?;
            let nodes: u64 = self.client.zcard(self.keys.nodes()).await?;
            let is_alone = nodes <= 1 || Instant::now() >= until;
            if self.timekeeper().begin(&reading, is_alone) {
                // A node that starts before the next heartbeat must see that the time was
                // confirmed.
                self.beat().await?;
                return Ok(());
            }
            debug!("this node waits for the others to agree what time it is");
            tokio::time::sleep(RETRY_TIME).await;
        }
    }

    /// Corrects the clock with this reading. Returns whether Redis' time of day has jumped.
    async fn keep_time(&self, reading: &Reading) -> bool {
        let (jump_ms, verdict) = {
            let mut timekeeper = self.timekeeper();
            (timekeeper.jump(reading), timekeeper.heard(reading))
        };
        #[expect(clippy::cast_precision_loss, reason = "it is shown, not calculated with")]
        metrics::CLOCK_OFFSET.set(reading.offset.ms_at(reading.redis) as f64 / 1_000.0);
        if let Some(jump_ms) = jump_ms {
            warn!(jump_ms, "Redis has another time of day: the cluster keeps its own");
        }
        match verdict {
            Verdict::Goes => {}
            Verdict::Followed => warn!("this node's clock had stood still: it takes the cluster's"),
            Verdict::Agree(offset) => {
                let arguments = vec![reading.offset.to_string(), offset.to_string()];
                let agreed = self.run(&self.scripts.agree, vec![self.keys.clock()], arguments);
                // If this fails, the next heartbeat leads to the same result.
                if agreed.await.is_ok_and(|agreed| text(agreed) == "1") {
                    let ms = offset.ms_at(reading.redis);
                    warn!(ms, "the cluster's time is ahead of Redis' by this, and nears it slowly");
                }
            }
        }
        jump_ms.is_some()
    }

    /// Sends heartbeats until the node leaves. All other work is done by other tasks: a node whose
    /// heartbeat waits would be evicted.
    pub(super) async fn live(self: Arc<Self>, inbox: mpsc::Sender<Inbound>, leaving: Shutdown) {
        // A request that finds another one pending is merged with it.
        let (start_over, start_overs) = mpsc::channel(1);
        tokio::spawn(self.clone().start_over(start_overs, inbox.clone()));
        let (bury, burials) = mpsc::channel(1);
        tokio::spawn(self.clone().bury_dead_again(burials, inbox));
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reconnections = self.client.reconnect_rx();
        let mut lease_reconnections = self.lease.reconnect_rx();
        let mut leaving = pin!(leaving.wait());
        ticks.tick().await;
        // The time of the last reply, and of the first one after the last failure.
        let (mut heard, mut since) = (Instant::now(), Instant::now());
        let (mut lease_failures, mut was_away) = (0, false);
        let (mut has_evicted, mut started_over) = (false, None::<Instant>);
        loop {
            // A Redis that has reconnected may be empty: the next heartbeat is sent at once.
            let has_reconnected = tokio::select! {
                _ = ticks.tick() => false,
                _ = reconnections.recv() => true,
                _ = lease_reconnections.recv() => {
                    metrics::REDIS_RECONNECTS.of(Connection::Lease).increment(1);
                    false
                }
                () = &mut leaving => return,
            };
            if has_reconnected {
                metrics::REDIS_RECONNECTS.of(Connection::Commands).increment(1);
                // Repeats failed work, from the present state.
                let _ = start_over.try_send(());
            }
            let asked = Instant::now();
            if asked - heard > 2 * HEARTBEAT {
                since = asked;
            }
            let beat = self.beat().await;
            match &beat {
                Ok(_) => {
                    heard = asked;
                    lease_failures = 0;
                    if std::mem::take(&mut was_away) {
                        // Commands may have failed on connections that did not break.
                        let _ = start_over.try_send(());
                    }
                    self.health.well(Part::Redis);
                    self.health.well(Part::Lease);
                }
                Err(error) => {
                    was_away = true;
                    self.health.trouble(Part::Redis, error);
                    lease_failures =
                        if self.answers_others().await { lease_failures + 1 } else { 0 };
                    if lease_failures >= LEASE_FAILURES {
                        let what = "the heartbeat fails though Redis answers other commands";
                        self.health.trouble(Part::Lease, format_args!("{what}: {error}"));
                    }
                }
            }
            if let Ok(Heard { reading, .. }) = &beat
                && self.keep_time(reading).await
            {
                // By the new time, nodes without a heartbeat since the jump seem dead: they get the
                // time of one heartbeat.
                since = asked;
            }
            has_evicted |= beat.as_ref().is_ok_and(|heard| heard.has_evicted);
            if has_evicted && started_over.is_none_or(|at| at.elapsed() >= EVICTED_PAUSE) {
                (has_evicted, started_over) = (false, Some(asked));
                warn!(
                    "Redis has evicted keys: this node puts back what it knows. Give Redis memory and \
                     `maxmemory-policy noeviction`"
                );
                let _ = start_over.try_send(());
            }
            match beat {
                Ok(Heard { was_unknown: true, .. }) => {
                    info!("this node was not known to the cluster any more: it joins again");
                    let _ = start_over.try_send(());
                }
                // Other nodes may have been cut off like this one, and may return later.
                Ok(_) if asked - since < DEAD_AFTER => {}
                Ok(heard) => {
                    let _ = bury.try_send(heard);
                }
                Err(error) => warn!(%error, "Redis does not answer the heartbeat"),
            }
        }
    }

    /// Whether Redis answers commands other than the heartbeat.
    async fn answers_others(&self) -> bool {
        timed(Command::Other, self.client.ping::<()>(None)).await.is_ok()
    }

    /// Whenever requested, reports that this node must announce its sockets again, once it receives
    /// the messages of nodes that see the announcement.
    async fn start_over(
        self: Arc<Self>,
        mut asked: mpsc::Receiver<()>,
        inbox: mpsc::Sender<Inbound>,
    ) {
        while asked.recv().await.is_some() {
            if tokio::time::timeout(HEARTBEAT, self.bus.heard()).await.is_ok() {
                self.bus.looks_all_up();
            }
            let _ = inbox.send(Inbound::Reset).await;
        }
    }

    async fn bury_dead_again(
        self: Arc<Self>,
        mut heard: mpsc::Receiver<Heard>,
        inbox: mpsc::Sender<Inbound>,
    ) {
        while let Some(heard) = heard.recv().await {
            if let Err(error) = self.bury_dead(&heard, &inbox).await {
                warn!(%error, "dead nodes could not be looked for");
            }
        }
    }

    async fn bury_dead(
        &self,
        heard: &Heard,
        inbox: &mpsc::Sender<Inbound>,
    ) -> Result<(), Unavailable> {
        for node in &heard.silent {
            self.bury(*node, heard.reading.redis, inbox).await?;
        }
        self.remind_of_unseen(inbox).await
    }

    /// Reports evictions again that nobody has acknowledged: the node that was to handle them died,
    /// or Redis was down.
    async fn remind_of_unseen(&self, inbox: &mpsc::Sender<Inbound>) -> Result<(), Unavailable> {
        let now = self.now();
        let arguments = vec![
            now.as_millis().to_string(),
            (now + SEE_OFF_LEASE).as_millis().to_string(),
            BURY_USERS.to_string(),
        ];
        let keys = vec![self.keys.departed()];
        let unseen = list(self.run(&self.scripts.unseen, keys, arguments).await?);
        let mut users: HashMap<NodeId, Vec<UserId>> = HashMap::new();
        for member in unseen {
            let member = text(member);
            let Some((node, user)) = member.split_once(':') else { continue };
            if let (Ok(node), Ok(user)) = (node.parse(), user.parse()) {
                users.entry(node).or_default().push(user);
            }
        }
        for (node, users) in users {
            self.pass_on_departed(node, &users, inbox).await?;
        }
        Ok(())
    }

    async fn pass_on_departed(
        &self,
        node: NodeId,
        users: &[UserId],
        inbox: &mpsc::Sender<Inbound>,
    ) -> Result<(), Unavailable> {
        let looked = self.look_on(&self.client, users, Watchers::Wanted).await?;
        let (mut back, mut departed) = (Vec::new(), Vec::new());
        for (user, (facts, call)) in std::iter::zip(users, looked) {
            let is_live = call.as_ref().is_some_and(Call::is_live);
            if facts.nodes.iter().any(|(other, _)| *other == node) {
                // The node was not dead, and has attached the user again since.
                back.push(user.clone());
            } else {
                departed.push(Departed { edge: facts.edge(user, is_live), call });
            }
        }
        if !departed.is_empty() {
            let _ = inbox.send(Inbound::Departed(node, departed)).await;
        }
        self.seen_off(node, &back).await
    }

    fn now(&self) -> Timestamp {
        self.clock.read()
    }

    async fn bury(
        &self,
        node: NodeId,
        redis: Timestamp,
        inbox: &mpsc::Sender<Inbound>,
    ) -> Result<(), Unavailable> {
        warn!(peer = %node, "a node is dead: its users are taken off it");
        self.bus.forget(node);
        loop {
            let keys = vec![self.keys.node(node), self.keys.nodes(), self.keys.departed()];
            let arguments = vec![
                self.keys.user_prefix(),
                node.to_string(),
                sockets_field(node),
                self.keys.watchers_prefix(),
                BURY_USERS.to_string(),
                (self.now() + SEE_OFF_LEASE).as_millis().to_string(),
                (redis - DEAD_AFTER).as_millis().to_string(),
                (redis + MAX_AHEAD).as_millis().to_string(),
            ];
            let mut answer = list(self.run(&self.scripts.bury, keys, arguments).await?).into_iter();
            let mut next = || answer.next().unwrap_or(Value::Null);
            let users = list(next()).into_iter();
            let users: Vec<UserId> = users.filter_map(|user| text(user).parse().ok()).collect();
            self.pass_on_departed(node, &users, inbox).await?;
            match text(next()).as_str() {
                "0" => {}
                "1" => {
                    metrics::DEAD_NODES.increment(1);
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }
}
