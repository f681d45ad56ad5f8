//! That this node lives, and which others do not any more.

use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use fred::prelude::*;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    Redis,
    asked::timed,
    facts::{list, sockets_field, text, watch_field},
};
use crate::{
    call::Call,
    cluster::{Cluster, Departed, Inbound, Unavailable},
    health::Part,
    ids::{NodeId, UserId},
    metrics::{self, Command, Connection},
    shutdown::Shutdown,
    time::{Clock, Timestamp},
};

const HEARTBEAT: Duration = Duration::from_secs(2);
/// The time that an answer brings is not used if it was longer on its way.
const MAX_TIME_ERROR: Duration = Duration::from_millis(500);
/// A node that was silent for so long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(8);
/// How long whoever took a dead node's users off it has to see to their calls.
const SEE_OFF_LEASE: Duration = Duration::from_secs(5);
/// Most users that are taken off a dead node at a time.
const BURY_USERS: usize = 100;

/// What a heartbeat brought.
pub struct Heard {
    /// The node was not known to the cluster.
    pub was_unknown: bool,
    /// Redis' time of day is not what it was.
    pub has_jumped: bool,
}

impl Redis {
    /// Says that this node lives, and sets the clock.
    pub(super) async fn beat(&self) -> Result<Heard, Error> {
        let asked = Instant::now();
        let keys = vec![self.keys.nodes()];
        let arguments = vec![self.node.to_string()];
        let (added, now_ms): (u64, u64) =
            self.scripts.beat.run(&self.client, keys, arguments).await?;
        let took = asked.elapsed();
        let has_jumped =
            took < MAX_TIME_ERROR && self.clock.set(Timestamp::from_millis(now_ms) + took / 2);
        Ok(Heard { was_unknown: added > 0, has_jumped })
    }

    /// Heartbeats, and burying the dead, for ever.
    pub(super) async fn live(self: Arc<Self>, inbox: mpsc::Sender<Inbound>, leaving: Shutdown) {
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reconnections = self.client.reconnect_rx();
        let mut leaving = pin!(leaving.wait());
        ticks.tick().await;
        // The last beat that was heard, and since when none was missed.
        let (mut heard, mut since) = (Instant::now(), Instant::now());
        loop {
            // A Redis that is back may be empty: better found out now than at the next beat.
            tokio::select! {
                _ = ticks.tick() => {}
                _ = reconnections.recv() => {
                    metrics::REDIS_RECONNECTS.of(Connection::Commands).increment(1);
                    // What failed meanwhile is done again, from what is the case now.
                    self.start_over(&inbox).await;
                }
                () = &mut leaving => return,
            }
            let asked = Instant::now();
            if asked - heard > 2 * HEARTBEAT {
                since = asked;
            }
            let beat = self.beat().await;
            match &beat {
                Ok(_) => {
                    heard = asked;
                    self.health.well(Part::Redis);
                }
                Err(error) => self.health.trouble(Part::Redis, error),
            }
            if beat.as_ref().is_ok_and(|heard| heard.has_jumped) {
                warn!("Redis has another time of day: deadlines follow slowly");
                // By the new time, nodes that have not been heard of since seem dead.
                since = asked;
            }
            match beat.map(|heard| heard.was_unknown) {
                Ok(true) => {
                    info!("this node was not known to the cluster any more: it joins again");
                    self.start_over(&inbox).await;
                }
                // Others may have been away as this node was, and take longer to be back.
                Ok(false) if asked - since < DEAD_AFTER => {}
                Ok(false) => {
                    if let Err(error) = self.bury_dead(&inbox).await {
                        warn!(%error, "dead nodes could not be looked for");
                    }
                }
                Err(error) => warn!(%error, "Redis does not answer the heartbeat"),
            }
        }
    }

    /// Lets this node say again who is here, once it can be heard by who finds them.
    async fn start_over(&self, inbox: &mpsc::Sender<Inbound>) {
        if tokio::time::timeout(HEARTBEAT, self.bus.heard()).await.is_ok() {
            self.bus.looks_all_up();
        }
        let _ = inbox.send(Inbound::Reset).await;
    }

    async fn bury_dead(&self, inbox: &mpsc::Sender<Inbound>) -> Result<(), Unavailable> {
        let latest = (self.now() - DEAD_AFTER).as_millis();
        let silent = self.client.zrangebyscore(
            self.keys.nodes(),
            f64::NEG_INFINITY,
            score(latest),
            false,
            None,
        );
        let dead: Vec<String> = timed(Command::Other, silent).await.map_err(|_| Unavailable)?;
        for node in dead.iter().filter_map(|node| node.parse::<NodeId>().ok()) {
            if node != self.node {
                self.bury(node, latest, inbox).await?;
            }
        }
        self.remind_of_unseen(inbox).await
    }

    /// Passes those on again whom nobody has seen off: whoever was to do it died, or Redis was away.
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
        let looked = self.look(users).await?;
        let (mut back, mut departed) = (Vec::new(), Vec::new());
        for (user, (facts, call)) in std::iter::zip(users, looked) {
            let is_live = call.as_ref().is_some_and(Call::is_live);
            if facts.nodes.iter().any(|(other, _)| *other == node) {
                // The node was not dead, and has said since that the user is there.
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
        Clock::Shared(self.clock.clone()).now()
    }

    async fn bury(
        &self,
        node: NodeId,
        latest: u64,
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
                watch_field(node),
                BURY_USERS.to_string(),
                (self.now() + SEE_OFF_LEASE).as_millis().to_string(),
                latest.to_string(),
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

/// A time as the score of a sorted set, exact for the next 285,000 years.
#[expect(clippy::cast_precision_loss, reason = "milliseconds fit into 53 bits")]
fn score(millis: u64) -> f64 {
    millis as f64
}
