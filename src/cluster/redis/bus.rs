//! Messages between nodes: one sharded channel a node, one queue and one numbered link a peer.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fred::{clients::SubscriberClient, prelude::*};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast::error::RecvError, mpsc};
use tracing::{debug, info, warn};

use crate::{
    cluster::{
        Inbound, Message, Relay,
        link::{Frame, Receiver, Sender},
    },
    ids::{CallId, NodeId},
    time::{Clock, Timestamp},
};

/// Most messages that wait to be sent to one node.
const QUEUE_MESSAGES: usize = 10_000;
/// Most messages that travel together.
const BATCH_MESSAGES: usize = 256;
/// How often a link says how far it has come while something could have been missed.
const PROGRESS: Duration = Duration::from_millis(500);
/// How long a link is kept for a node that nobody listens for.
const FORGET_AFTER: Duration = Duration::from_secs(20);
/// How often the node checks that its own channel reaches it.
const CANARY: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(100);

/// What is published on a node's channel.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    /// The version of this format.
    v: u8,
    from: NodeId,
    content: Content,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    Frame(Frame),
    /// Send again from this number on.
    Again(u64),
    /// From this very node: its channel works.
    Canary,
}

const FORMAT: u8 = 1;

/// The links to all peers. Cheap to clone.
#[derive(Clone)]
pub struct Bus(Arc<Shared>);

struct Shared {
    node: NodeId,
    namespace: String,
    client: Client,
    clock: Clock,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

/// What is on its way to one node.
struct Peer {
    outgoing: Mutex<Outgoing>,
    wake: Notify,
}

struct Outgoing {
    queue: VecDeque<Order>,
    link: Sender,
    /// The number of the first message that nobody has heard.
    unheard: u64,
    /// The number of the first message that is being published: whether it is heard is not known.
    flying: Option<u64>,
    /// Set when nobody sends what is put in any more.
    closed: bool,
}

impl Peer {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a peer's task is to do.
enum Order {
    Send(Message),
    Again(u64),
    Ask(u64),
}

/// What to publish for these orders; how far the link has come if there are none.
fn contents(
    link: &mut Sender,
    orders: impl Iterator<Item = Order>,
    now: Timestamp,
) -> Vec<Content> {
    let mut contents = Vec::new();
    let mut messages = Vec::new();
    for order in orders {
        match order {
            Order::Send(message) => messages.push(message),
            Order::Again(from) => contents.push(Content::Frame(link.again(from, BATCH_MESSAGES))),
            Order::Ask(from) => contents.push(Content::Again(from)),
        }
    }
    if !messages.is_empty() {
        contents.push(Content::Frame(link.send(messages, now)));
    } else if contents.is_empty() {
        contents.extend(link.progress(now).map(Content::Frame));
    }
    contents
}

impl Bus {
    pub fn new(node: NodeId, namespace: &str, client: Client, clock: Clock) -> Self {
        let peers = Mutex::default();
        Self(Arc::new(Shared { node, namespace: namespace.to_owned(), client, clock, peers }))
    }

    pub fn channel(&self, node: NodeId) -> String {
        format!("sb:n:{}:{node}", self.0.namespace)
    }

    pub fn send(&self, to: NodeId, message: Message) {
        self.order(to, Order::Send(message));
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Peer>>> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, to: NodeId, order: Order) {
        let mut peers = self.peers();
        let open = |peer: &&Arc<Peer>| !peer.outgoing().closed;
        let peer = match peers.get(&to).filter(open).cloned() {
            Some(peer) => peer,
            None => {
                let outgoing = Outgoing {
                    queue: VecDeque::new(),
                    link: Sender::new(self.0.clock.now()),
                    unheard: 0,
                    flying: None,
                    closed: false,
                };
                let peer = Arc::new(Peer { outgoing: Mutex::new(outgoing), wake: Notify::new() });
                peers.insert(to, peer.clone());
                tokio::spawn(self.clone().run_peer(to, peer.clone()));
                peer
            }
        };
        drop(peers);
        let mut outgoing = peer.outgoing();
        if outgoing.queue.len() >= QUEUE_MESSAGES {
            return warn!(node = %to, "the queue to a node is full: a message is dropped");
        }
        outgoing.queue.push_back(order);
        peer.wake.notify_one();
    }

    /// Takes back what is on its way to a node about a call and that nobody has heard, in order.
    pub fn recall(&self, from: NodeId, call: CallId) -> Vec<Relay> {
        let Some(peer) = self.peers().get(&from).cloned() else { return Vec::new() };
        let is_its = |message: &Message| matches!(message, Message::Relay(to) if to.call == call);
        let mut outgoing = peer.outgoing();
        let Outgoing { queue, link, unheard, flying, .. } = &mut *outgoing;
        let mut recalled = link.recall(*unheard..flying.unwrap_or(u64::MAX), is_its);
        for order in queue.iter_mut() {
            if let Order::Send(message) = order
                && is_its(message)
            {
                recalled.push(std::mem::replace(message, Message::Void));
            }
        }
        let relay = |message| match message {
            Message::Relay(relay) => Some(relay),
            _ => None,
        };
        recalled.into_iter().filter_map(relay).collect()
    }

    /// Whether all that was given to it has been published.
    pub fn is_idle(&self) -> bool {
        let peers = self.peers();
        peers.values().all(|peer| {
            let outgoing = peer.outgoing();
            outgoing.queue.is_empty() && outgoing.flying.is_none()
        })
    }

    /// Forgets a node that is dead.
    pub fn forget(&self, node: NodeId) {
        if let Some(peer) = self.peers().remove(&node) {
            peer.outgoing().closed = true;
            peer.wake.notify_one();
        }
    }

    /// Sends what is queued for one peer, all that waits together, one publish at a time: that
    /// keeps the order. Ends when nobody has listened for a while.
    async fn run_peer(self, to: NodeId, peer: Arc<Peer>) {
        let mut unheard_since = None;
        loop {
            tokio::select! {
                () = peer.wake.notified() => {}
                () = tokio::time::sleep(PROGRESS) => {}
            }
            loop {
                let now = self.0.clock.now();
                let (contents, up_to, is_last) = {
                    let mut outgoing = peer.outgoing();
                    if outgoing.closed {
                        return;
                    }
                    let Outgoing { queue, link, flying, .. } = &mut *outgoing;
                    let batch = queue.len().min(BATCH_MESSAGES);
                    *flying = Some(link.next());
                    let contents = contents(link, queue.drain(..batch), now);
                    (contents, link.next(), queue.is_empty())
                };
                for content in contents {
                    match self.publish(to, content).await {
                        Some(0) => drop(unheard_since.get_or_insert(now)),
                        Some(_) => {
                            unheard_since = None;
                            peer.outgoing().unheard = up_to;
                        }
                        // It is Redis that is away, not the node.
                        None => {}
                    }
                }
                peer.outgoing().flying = None;
                if unheard_since.is_some_and(|since| now - since > FORGET_AFTER) {
                    peer.outgoing().closed = true;
                    return debug!(node = %to, "nobody listens for a node: its link is closed");
                }
                if is_last {
                    break;
                }
            }
        }
    }

    /// How many heard it; None if Redis did not say.
    async fn publish(&self, to: NodeId, content: Content) -> Option<i64> {
        let envelope = Envelope { v: FORMAT, from: self.0.node, content };
        let json = serde_json::to_string(&envelope).expect("an envelope is plain data");
        match self.0.client.spublish(self.channel(to), json).await {
            Ok(receivers) => Some(receivers),
            Err(error) => {
                debug!(%error, node = %to, "a publish failed; the link will notice");
                None
            }
        }
    }

    /// Which of `nodes` listen to their channels.
    pub async fn reachable(&self, nodes: &[NodeId]) -> Result<Vec<bool>, Error> {
        let mut reachable = Vec::with_capacity(nodes.len());
        for node in nodes {
            let counts: HashMap<String, i64> =
                self.0.client.pubsub_shardnumsub(self.channel(*node)).await?;
            reachable.push(counts.values().any(|count| *count > 0));
        }
        Ok(reachable)
    }

    /// Listens on this node's channel for ever, and passes on what comes, each peer's messages in
    /// their order. The library does not restore sharded subscriptions, and one can end silently
    /// when a slot moves: so it is renewed after each reconnection, and whenever the canary that the
    /// node sends itself does not come back.
    pub async fn listen(self, subscriber: SubscriberClient, inbox: mpsc::Sender<Inbound>) {
        let mut messages = subscriber.message_rx();
        let mut reconnections = subscriber.reconnect_rx();
        let mut canary = tokio::time::interval(CANARY);
        let mut links: HashMap<NodeId, Receiver> = HashMap::new();
        let mut alive = false;
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Ok(message) => {
                        let Some(text) = message.value.into_string() else { continue };
                        alive |= self.take(&text, &mut links, &inbox).await;
                    }
                    // The links notice what is missing and ask for it.
                    Err(RecvError::Lagged(count)) => warn!(count, "messages were passed over"),
                    Err(RecvError::Closed) => return,
                },
                _ = reconnections.recv() => self.subscribe(&subscriber).await,
                _ = canary.tick() => {
                    if !std::mem::take(&mut alive) {
                        self.subscribe(&subscriber).await;
                    }
                    self.publish(self.0.node, Content::Canary).await;
                }
            }
        }
    }

    /// Tries a few times: when Redis is away, the canary sees to it later.
    pub async fn subscribe(&self, subscriber: &SubscriberClient) {
        for _ in 0..5 {
            match subscriber.ssubscribe(self.channel(self.0.node)).await {
                Ok(()) => return,
                Err(error) => {
                    debug!(%error, "the node's channel cannot be subscribed, trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        info!("the node's channel cannot be subscribed for now");
    }

    /// Takes one envelope. Says whether it was the canary.
    async fn take(
        &self,
        text: &str,
        links: &mut HashMap<NodeId, Receiver>,
        inbox: &mpsc::Sender<Inbound>,
    ) -> bool {
        let envelope: Envelope = match serde_json::from_str(text) {
            Ok(envelope) => envelope,
            Err(error) => {
                warn!(%error, "a message of another node cannot be read");
                return false;
            }
        };
        let from = envelope.from;
        match envelope.content {
            Content::Canary => return from == self.0.node,
            Content::Again(number) => self.order(from, Order::Again(number)),
            Content::Frame(frame) => {
                let delivery = links.entry(from).or_default().receive(frame);
                if delivery.lost > 0 {
                    warn!(node = %from, count = delivery.lost, "messages of a node are lost");
                    // Its records say what they would have said of calls.
                    let _ = inbox.send(Inbound::Reset).await;
                }
                for message in delivery.messages {
                    // Closed only when the service stops.
                    let _ = inbox.send(Inbound::Message(from, message)).await;
                }
                if let Some(number) = delivery.ask_from {
                    self.order(from, Order::Ask(number));
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Role, Signal},
        payload::Payload,
    };

    #[test]
    fn what_is_relayed_travels_as_it_was_written() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let payload: Payload = serde_json::from_str(r#"{"sdp":"v=0\r\n", "x":1e2}"#).unwrap();
        let relay = Relay {
            call: CallId::generate(now),
            version: 2,
            from: Role::Caller,
            signal: Signal::Offer,
            payload,
            given_back: false,
        };
        let frame = Sender::new(now).send(vec![Message::Relay(relay.clone())], now);
        let content = Content::Frame(frame);
        let envelope = Envelope { v: FORMAT, from: NodeId::generate(now), content };
        let json = serde_json::to_string(&envelope).unwrap();
        match serde_json::from_str::<Envelope>(&json).unwrap().content {
            Content::Frame(frame) => assert_eq!(frame.messages, [Message::Relay(relay)]),
            other => panic!("{other:?}"),
        }
    }
}
