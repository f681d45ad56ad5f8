//! Messages between nodes: the production links over a channel that loses, duplicates and delays
//! messages.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use switchboard::{
    call::Role,
    cluster::{
        Inbound, Message, Relay,
        link::{Content, Receiver},
        outgoing::{
            CLOSE_AFTER, FORGET_AFTER, Hearing, Outgoing, PROGRESS, end_of, may_be_forgotten,
        },
    },
    ids::{CallId, NodeId},
    time::Timestamp,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};

use super::{
    faults::{GIVEN_UP, RedisAccess},
    simulation::Simulation,
    state::Mistake,
};

const RETRY: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(1);
/// The longest delay of a message while all are slow. Three such delays must fit into the time that
/// a node waits for messages already in flight.
const SLOW_MS: u64 = 150;

#[derive(Clone)]
pub struct Bus(Arc<Shared>);

struct Shared {
    node: NodeId,
    sim: Arc<Simulation>,
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    tasks: Mutex<JoinSet<()>>,
}

struct Peer {
    outgoing: Mutex<Outgoing>,
    wake: Notify,
}

impl Peer {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap()
    }
}

impl Bus {
    pub fn new(node: NodeId, sim: Arc<Simulation>) -> Self {
        Self(Arc::new(Shared { node, sim, peers: Mutex::default(), tasks: Mutex::default() }))
    }

    /// Stops the publishers of this node, because its process ends.
    pub fn stop(&self) {
        self.0.tasks.lock().unwrap().abort_all();
    }

    pub fn send(&self, to: NodeId, message: Message) {
        self.outgoing(to, |outgoing| {
            outgoing.put(message);
        });
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.0.peers.lock().unwrap()
    }

    fn outgoing(&self, to: NodeId, change: impl FnOnce(&mut Outgoing)) {
        let mut peers = self.peers();
        let peer = peers.entry(to).or_insert_with(|| {
            let outgoing = Mutex::new(Outgoing::new(self.0.sim.now()));
            let peer = Arc::new(Peer { outgoing, wake: Notify::new() });
            self.0.tasks.lock().unwrap().spawn(self.clone().run_peer(to, peer.clone()));
            peer
        });
        change(&mut peer.outgoing());
        peer.wake.notify_one();
    }

    pub fn recall(&self, from: NodeId, call: CallId, to: Role) -> Vec<Relay> {
        let peer = self.peers().get(&from).cloned();
        peer.map_or_else(Vec::new, |peer| peer.outgoing().recall(call, to))
    }

    pub fn is_idle(&self) -> bool {
        self.peers().values().all(|peer| !peer.outgoing().is_busy())
    }

    pub fn forget(&self, node: NodeId) {
        if let Some(peer) = self.peers().get(&node) {
            peer.outgoing().forget();
        }
    }

    /// Publishes the messages for one peer, one after the other.
    async fn run_peer(self, to: NodeId, peer: Arc<Peer>) {
        let mut unheard_since: Option<Timestamp> = None;
        let mut hearing = Hearing::default();
        let node = self.0.node;
        let mut retries = false;
        loop {
            let is_done = unheard_since.is_none() && peer.outgoing().is_done();
            let pause = match retries {
                true => RETRY,
                false if is_done => CLOSE_AFTER,
                false => PROGRESS,
            };
            let is_unused = tokio::select! {
                biased;
                () = peer.wake.notified(), if !retries => {
                    if !peer.outgoing().has_more() {
                        continue;
                    }
                    false
                }
                () = tokio::time::sleep(pause) => pause == CLOSE_AFTER,
            };
            retries = false;
            loop {
                let now = self.0.sim.now();
                let contents = peer.outgoing().next(now);
                let mut is_known = true;
                for content in contents {
                    let up_to = end_of(&content);
                    let (before, asked) = (self.0.sim.last_answer(node), self.0.sim.now());
                    let published = self.publish(to, content).await;
                    if published.is_some() {
                        self.0.sim.note_answer(node);
                    }
                    match published {
                        Some(false) => {
                            unheard_since.get_or_insert(now);
                            retries = true;
                        }
                        Some(true) if hearing.proves(before, asked, self.0.sim.now()) => {
                            unheard_since = None;
                            peer.outgoing().heard(up_to);
                        }
                        Some(true) => {
                            unheard_since = None;
                            is_known = false;
                            retries = true;
                        }
                        None => {
                            retries = true;
                            is_known = false;
                        }
                    }
                }
                if is_known {
                    peer.outgoing().landed();
                }
                let mut peers = self.peers();
                let nobody_listens = unheard_since.is_some_and(|since| now - since > FORGET_AFTER)
                    || peer.outgoing().is_over();
                if nobody_listens || is_unused && peer.outgoing().is_done() {
                    peers.remove(&to);
                    return;
                }
                drop(peers);
                if retries || !peer.outgoing().has_more() {
                    break;
                }
            }
        }
    }

    /// Whether the publish had a receiver. `None` if Redis did not reply.
    async fn publish(&self, to: NodeId, content: Content) -> Option<bool> {
        let Shared { node, sim, .. } = &*self.0;
        sim.stand_still(*node).await;
        sim.latency().await;
        match sim.redis_access(*node) {
            RedisAccess::Open => {}
            RedisAccess::Broken => return None,
            RedisAccess::Frozen(until) => {
                let left = until - sim.now();
                tokio::time::sleep(left.min(TIMEOUT)).await;
                if left > TIMEOUT {
                    return None;
                }
                // A receiver that waited this long has opened a new connection, and Redis still
                // counts the old one.
                let since = sim.faults().frozen_since;
                if since.is_some_and(|since| until - since > GIVEN_UP)
                    && sim.dice.roll(|dice| dice.percent(50))
                {
                    sim.latency().await;
                    return Some(true);
                }
            }
        }
        let listener = sim.listener(to);
        let Some(listener) = listener else { return Some(false) };
        if sim.faults().slow.is_some_and(|until| until > sim.now()) {
            let ms = sim.dice.roll(|dice| dice.below(SLOW_MS));
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let is_lossy = sim.faults().lossy.is_some_and(|until| until > sim.now());
        let fate = if is_lossy { sim.dice.roll(|dice| dice.below(10)) } else { 9 };
        match fate {
            0 => {}
            1 => {
                let _ = listener.wire.send((*node, copy(&content)));
                let _ = listener.wire.send((*node, content));
            }
            2 | 3 => {
                let ms = sim.dice.roll(|dice| dice.below(1_500));
                let node = *node;
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    let _ = listener.wire.send((node, content));
                });
            }
            _ => {
                let _ = listener.wire.send((*node, content));
            }
        }
        sim.latency().await;
        (sim.redis_access(*node) != RedisAccess::Broken).then_some(true)
    }

    /// Processes the messages on this node's channel until the process ends.
    pub async fn listen(
        self,
        mut wire: mpsc::UnboundedReceiver<(NodeId, Content)>,
        inbox: mpsc::Sender<Inbound>,
    ) {
        let sim = &self.0.sim;
        let mut links: BTreeMap<NodeId, Receiver> = BTreeMap::new();
        while let Some((from, content)) = wire.recv().await {
            sim.stand_still(self.0.node).await;
            match content {
                // The subscription works again.
                Content::Canary => {
                    let away = sim.faults().deaf.remove(&self.0.node);
                    if away.is_some_and(|(since, _)| may_be_forgotten(sim.now() - since)) {
                        let _ = inbox.send(Inbound::Reset).await;
                    }
                }
                Content::Again(number) => {
                    self.outgoing(from, |outgoing| outgoing.send_again(number));
                }
                Content::Receipt(receipt) => {
                    self.outgoing(from, |outgoing| outgoing.confirmed(receipt));
                }
                Content::Frame(frame) => {
                    let doubled = (sim.mistake == Some(Mistake::DuplicatesTaken))
                        .then(|| frame.messages.clone());
                    let delivery = links.entry(from).or_default().receive(frame);
                    if delivery.lost > 0 || delivery.starts_midway {
                        let _ = inbox.send(Inbound::Reset).await;
                    }
                    for message in doubled.unwrap_or(delivery.messages) {
                        let inbound = match message {
                            Message::Dropped { .. } => Inbound::Reset,
                            message => Inbound::Message(from, message),
                        };
                        let _ = inbox.send(inbound).await;
                    }
                    if let Some(number) = delivery.ask_from {
                        self.outgoing(from, |outgoing| outgoing.ask(number));
                    }
                    if let Some(receipt) = delivery.receipt {
                        self.outgoing(from, |outgoing| outgoing.give(receipt));
                    }
                }
            }
        }
    }
}

fn copy(content: &Content) -> Content {
    match content {
        Content::Frame(frame) => Content::Frame(frame.clone()),
        Content::Again(number) => Content::Again(*number),
        Content::Receipt(receipt) => Content::Receipt(*receipt),
        Content::Canary => Content::Canary,
    }
}
