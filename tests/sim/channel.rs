//! The channels between nodes as a port: texts are lost, duplicated and delayed, and subscriptions
//! break.

use std::{sync::Arc, time::Duration};

use switchboard::{
    cluster::{
        Unavailable,
        ports::{Channel, Received, Subscription},
    },
    ids::NodeId,
    time::Timestamp,
};
use tokio::sync::{Notify, mpsc};

use super::{
    faults::{GIVEN_UP, RedisAccess},
    simulation::{Simulation, TIMEOUT},
};

/// The longest delay of a message while all are slow. Three such delays must fit into the time that
/// a node waits for messages already in flight.
const SLOW_MS: u64 = 150;
/// The longest delay of a single message while messages are lost.
const LATE_MS: u64 = 1_500;

/// The channels, as one node uses them.
pub struct SimulatedChannel {
    node: NodeId,
    sim: Arc<Simulation>,
}

/// A node's end of its channel, as the simulated Redis sees it.
pub struct Listener {
    texts: mpsc::UnboundedSender<String>,
    /// Wakes those who wait for new connections: for messages and for commands.
    reconnected: [Arc<Notify>; 2],
    is_subscribed: bool,
}

/// A node's end of its channel, as the node sees it.
pub struct SimulatedSubscription {
    node: NodeId,
    sim: Arc<Simulation>,
    texts: mpsc::UnboundedReceiver<String>,
    /// Arrived while the process was frozen.
    held: Option<String>,
    reconnected: Arc<Notify>,
}

impl Listener {
    /// The connection was replaced: its subscription is gone.
    pub fn reconnect(&mut self) {
        self.is_subscribed = false;
        for reconnected in &self.reconnected {
            reconnected.notify_one();
        }
    }

    /// The subscription ends, and nobody is told.
    pub fn fall_silent(&mut self) {
        self.is_subscribed = false;
    }

    /// Where to send texts for the node, if it is subscribed.
    pub fn subscription(&self) -> Option<mpsc::UnboundedSender<String>> {
        self.is_subscribed.then(|| self.texts.clone())
    }
}

impl SimulatedChannel {
    /// The channel of a new node, which is not subscribed yet, and what wakes the node when its
    /// connection for commands was replaced.
    pub fn open(node: NodeId, sim: &Arc<Simulation>) -> (Self, SimulatedSubscription, Arc<Notify>) {
        let (texts, received) = mpsc::unbounded_channel();
        let reconnected = [(); 2].map(|()| Arc::new(Notify::new()));
        let [messages, commands] = reconnected.clone();
        let listener = Listener { texts, reconnected, is_subscribed: false };
        sim.listeners().insert(node, listener);
        let subscription = SimulatedSubscription {
            node,
            sim: sim.clone(),
            texts: received,
            held: None,
            reconnected: messages,
        };
        (Self { node, sim: sim.clone() }, subscription, commands)
    }
}

impl Channel for SimulatedChannel {
    async fn publish(&self, to: NodeId, text: String) -> Result<usize, Unavailable> {
        let Self { node, sim } = self;
        sim.stand_still(*node).await;
        sim.latency().await;
        match sim.redis_access(*node) {
            RedisAccess::Open => {}
            RedisAccess::Broken => return Err(Unavailable),
            RedisAccess::Frozen(until) => {
                let left = until - sim.now();
                tokio::time::sleep(left.min(TIMEOUT)).await;
                if left > TIMEOUT {
                    return Err(Unavailable);
                }
                // A receiver that waited this long has opened a new connection, and Redis still
                // counts the old one.
                let since = sim.faults().frozen_since;
                if since.is_some_and(|since| until - since > GIVEN_UP)
                    && sim.dice.roll(|dice| dice.percent(50))
                {
                    sim.latency().await;
                    sim.note_answer(*node);
                    return Ok(1);
                }
            }
        }
        let Some(texts) = sim.subscription(to) else {
            sim.note_answer(*node);
            return Ok(0);
        };
        if sim.faults().slow.is_some_and(|until| until > sim.now()) {
            let ms = sim.dice.roll(|dice| dice.below(SLOW_MS));
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let is_lossy = sim.faults().lossy.is_some_and(|until| until > sim.now());
        let fate = if is_lossy { sim.dice.roll(|dice| dice.below(10)) } else { 9 };
        match fate {
            0 => {}
            1 => {
                let _ = texts.send(text.clone());
                let _ = texts.send(text);
            }
            2 | 3 => {
                let ms = sim.dice.roll(|dice| dice.below(LATE_MS));
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    let _ = texts.send(text);
                });
            }
            _ => {
                let _ = texts.send(text);
            }
        }
        sim.latency().await;
        if sim.redis_access(*node) == RedisAccess::Broken {
            return Err(Unavailable);
        }
        sim.stand_still(*node).await;
        sim.note_answer(*node);
        Ok(1)
    }

    async fn subscribe(&self) -> Result<(), Unavailable> {
        self.sim.reach(self.node).await?;
        if self.sim.is_deaf(self.node) {
            return Err(Unavailable);
        }
        if let Some(listener) = self.sim.listeners().get_mut(&self.node) {
            listener.is_subscribed = true;
        }
        Ok(())
    }

    async fn unsubscribe(&self) {
        self.sim.listeners().remove(&self.node);
    }

    async fn reachable(&self, nodes: &[NodeId]) -> Result<Vec<bool>, Unavailable> {
        self.sim.reach(self.node).await?;
        Ok(nodes.iter().map(|node| self.sim.subscription(*node).is_some()).collect())
    }

    fn last_reply(&self) -> Timestamp {
        self.sim.last_answer(self.node)
    }
}

impl Subscription for SimulatedSubscription {
    async fn next(&mut self) -> Received {
        loop {
            self.sim.stand_still(self.node).await;
            if let Some(text) = self.held.take() {
                return Received::Text(text);
            }
            tokio::select! {
                biased;
                () = self.reconnected.notified() => return Received::Reconnected,
                text = self.texts.recv() => match text {
                    // It is processed when the process runs again.
                    Some(text) => self.held = Some(text),
                    None => return Received::Closed,
                },
            }
        }
    }

    fn take(&mut self) -> Option<String> {
        self.held.take().or_else(|| self.texts.try_recv().ok())
    }
}
