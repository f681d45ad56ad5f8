//! Messages between nodes: one channel per node, one queue and one numbered link per peer.
//!
//! Owns the links to all peers, and the check that this node receives its channel. The driver sends
//! through it, and reads what it delivers from the inbox. It repeats what the [`Channel`] loses and
//! keeps the order; it never looks into a message.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    AROUND_BYTES, Inbound, Message, Relay, Unavailable,
    envelope::Envelope,
    link::{Content, Delivery, Frame, MAX_KEPT, Receiver},
    mistakes::{Mistake, is_made},
    outgoing::{CLOSE_AFTER, FORGET_AFTER, Hearing, Outgoing, PROGRESS, end_of, may_be_forgotten},
    ports::{Channel, Received, Subscription},
};
use crate::{
    call::Role,
    health::{Health, Part},
    ids::{CallId, NodeId},
    limits::buffers::{Buffers, Charge},
    metrics::{self, Buffer, Limit},
    time::Clock,
};

/// The interval at which the node checks its own channel.
const CANARY: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(100);
/// The bytes that a link may hold in any case, while they are free: all calls between two nodes
/// share it.
const LINK_FLOOR_BYTES: usize = 1024 * 1024;

/// The attempts to subscribe before the next canary.
const SUBSCRIBE_ATTEMPTS: usize = 5;

/// The links to all peers. Cheap to clone.
pub struct Bus<C>(Arc<Shared<C>>);

struct Shared<C> {
    node: NodeId,
    channel: C,
    clock: Clock,
    buffers: Buffers,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
    /// The time at which this node last began a recovery while it received its channel.
    looked_up_at: Mutex<Instant>,
    /// The number of nodes whose queues are so full that each call is limited to its share.
    crowded: AtomicUsize,
}

/// The sending end of a link to one node.
struct Peer {
    outgoing: Mutex<Outgoing>,
    wake: Notify,
    held: Charge,
    is_crowded: AtomicBool,
}

impl Peer {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock()
    }
}

/// The receiving end of a link, and its buffered messages.
struct Incoming {
    receiver: Receiver,
    held: Charge,
}

impl Incoming {
    fn new(buffers: &Buffers) -> Self {
        Self { receiver: Receiver::default(), held: buffers.holder(Buffer::Links) }
    }

    fn receive(&mut self, frame: Frame, buffers: &Buffers) -> Delivery {
        let delivery = self.receiver.receive(frame);
        let held = self.receiver.early_bytes();
        if held > buffers.allowance_bytes(self.held.bytes(), LINK_FLOOR_BYTES) {
            metrics::LIMITS.of(Limit::Buffers).increment(1);
            self.receiver.forget_early();
        }
        self.held.set(self.receiver.early_bytes());
        delivery
    }
}

/// The receiving ends of all links.
struct Links {
    by_node: HashMap<NodeId, Incoming>,
    buffers: Buffers,
}

impl Links {
    fn new(buffers: Buffers) -> Self {
        Self { by_node: HashMap::new(), buffers }
    }

    fn receive(&mut self, from: NodeId, frame: Frame) -> Delivery {
        let link = self.by_node.entry(from).or_insert_with(|| Incoming::new(&self.buffers));
        link.receive(frame, &self.buffers)
    }

    /// Counts time in which the node received its channel, and drops the links of nodes that died
    /// or left.
    fn pass(&mut self, span: Duration) {
        self.by_node.retain(|_, link| !link.receiver.is_over_after(span));
    }
}

/// The input that waits for the driver.
struct Inbox {
    sender: mpsc::Sender<Inbound>,
    /// The sizes of the messages in the channel.
    sizes: VecDeque<usize>,
    held: Charge,
    /// Whether the last frame had no room: one log line for all that follow.
    is_full: bool,
}

impl Inbox {
    fn new(sender: mpsc::Sender<Inbound>, buffers: &Buffers) -> Self {
        let held = buffers.holder(Buffer::Links);
        Self { sender, sizes: VecDeque::new(), held, is_full: false }
    }

    /// Whether there is room for all messages that a frame may release, early ones included.
    fn has_room_for(&mut self, frame: &Frame) -> bool {
        let waiting = self.sender.max_capacity() - self.sender.capacity();
        while self.sizes.len() > waiting {
            self.held.sub(self.sizes.pop_front().unwrap_or_default());
        }
        let bytes: usize = frame.messages.iter().map(Message::about_bytes).sum();
        self.sender.capacity() >= frame.messages.len() + MAX_KEPT
            && self.held.has_room_above(bytes, LINK_FLOOR_BYTES)
    }

    async fn put(&mut self, inbound: Inbound, bytes: usize) {
        self.held.add(bytes);
        self.sizes.push_back(bytes);
        // Fails only when the service stops.
        let _ = self.sender.send(inbound).await;
    }
}

impl<C> Clone for Bus<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: Channel> Bus<C> {
    pub fn new(node: NodeId, channel: C, clock: Clock, buffers: Buffers) -> Self {
        let looked_up_at = Mutex::new(Instant::now());
        let (peers, crowded) = (Mutex::default(), AtomicUsize::new(0));
        Self(Arc::new(Shared { node, channel, clock, buffers, peers, looked_up_at, crowded }))
    }

    pub fn channel(&self) -> &C {
        &self.0.channel
    }

    pub fn send(&self, to: NodeId, message: Message) {
        metrics::NODE_SENT.of(message.said()).increment(1);
        self.outgoing(to, |outgoing| {
            if !outgoing.has_room(message.about_bytes()) {
                metrics::NODE_DROPPED.increment(1);
            }
            if !outgoing.put(message) {
                metrics::LIMITS.of(Limit::NodeQueue).increment(1);
                warn!(peer = %to, "the queue to a node is full: messages are dropped for now");
            }
        });
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Peer>>> {
        self.0.peers.lock()
    }

    /// Changes the messages for a node, and wakes its publisher.
    fn outgoing(&self, to: NodeId, change: impl FnOnce(&mut Outgoing)) {
        let mut peers = self.peers();
        let peer = peers.entry(to).or_insert_with(|| {
            let outgoing = Mutex::new(Outgoing::new(self.0.clock.now()));
            let held = self.0.buffers.holder(Buffer::Links);
            let is_crowded = AtomicBool::new(false);
            let peer = Arc::new(Peer { outgoing, wake: Notify::new(), held, is_crowded });
            tokio::spawn(self.clone().run_peer(to, peer.clone()));
            peer
        });
        let mut outgoing = peer.outgoing();
        change(&mut outgoing);
        self.count(peer, &mut outgoing);
        if !is_made(Mistake::WakeUpLost) {
            peer.wake.notify_one();
        }
    }

    /// Counts the bytes of a link, and limits the link to its share of the budget.
    fn count(&self, peer: &Peer, outgoing: &mut Outgoing) {
        let allowance = self.0.buffers.allowance_bytes(peer.held.bytes(), LINK_FLOOR_BYTES);
        outgoing.allow(allowance);
        peer.held.set(outgoing.held_bytes());
        let is_crowded = outgoing.is_crowded();
        if peer.is_crowded.swap(is_crowded, Ordering::Relaxed) != is_crowded {
            if is_crowded {
                self.0.crowded.fetch_add(1, Ordering::Relaxed);
            } else {
                self.0.crowded.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether a message of this call can be queued for a node.
    pub fn has_room(&self, to: NodeId, call: CallId, bytes: usize) -> bool {
        if self.0.crowded.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let peer = self.peers().get(&to).cloned();
        let has_room =
            peer.is_none_or(|peer| peer.outgoing().has_room_for(call, bytes + AROUND_BYTES));
        if !has_room {
            metrics::LIMITS.of(Limit::NodeQueue).increment(1);
        }
        has_room
    }

    /// The number of unpublished messages.
    pub fn queued(&self) -> usize {
        self.peers().values().map(|peer| peer.outgoing().queued()).sum()
    }

    /// Takes back the messages for a party of a call that nobody has received, in order.
    pub fn recall(&self, from: NodeId, call: CallId, to: Role) -> Vec<Relay> {
        let peer = self.peers().get(&from).cloned();
        peer.map_or_else(Vec::new, |peer| peer.outgoing().recall(call, to))
    }

    /// Whether all queued messages were published.
    pub fn is_idle(&self) -> bool {
        self.peers().values().all(|peer| !peer.outgoing().is_busy())
    }

    /// A node was evicted: its link is dropped once it holds nothing that the node could request.
    pub fn forget(&self, node: NodeId) {
        if let Some(peer) = self.peers().get(&node) {
            peer.outgoing().forget();
        }
    }

    /// Publishes the queue of one peer, in frames, one publish at a time, which preserves the
    /// order. Ends when nobody has subscribed for a while, or when there is nothing to send.
    async fn run_peer(self, to: NodeId, peer: Arc<Peer>) {
        let mut unheard_since = None;
        let mut hearing = Hearing::default();
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
                    // The messages that woke this task may be sent already, or a receipt may have.
                    if !peer.outgoing().has_more() {
                        continue;
                    }
                    false
                }
                () = tokio::time::sleep(pause) => pause == CLOSE_AFTER,
            };
            retries = false;
            loop {
                tokio::task::yield_now().await;
                let now = self.0.clock.now();
                let contents = {
                    let mut outgoing = peer.outgoing();
                    let contents = outgoing.next(now);
                    self.count(&peer, &mut outgoing);
                    contents
                };
                let mut is_known = true;
                for content in contents {
                    let up_to = end_of(&content);
                    metrics::NODE_RESENT.increment(peer.outgoing().repeated(&content));
                    let (before, asked) = (self.0.channel.last_reply(), self.0.clock.now());
                    match self.publish(to, content).await {
                        Ok(0) => {
                            metrics::PUBLISHES_UNHEARD.increment(1);
                            unheard_since.get_or_insert(now);
                            retries = true;
                        }
                        Ok(_) if hearing.proves(before, asked, self.0.clock.now()) => {
                            unheard_since = None;
                            peer.outgoing().heard(up_to);
                        }
                        // It may have been received, and is published once more.
                        Ok(_) => {
                            unheard_since = None;
                            is_known = false;
                            retries = true;
                        }
                        // The server is unavailable, not the node. The publish may have been applied.
                        Err(Unavailable) => {
                            retries = true;
                            is_known = false;
                        }
                    }
                }
                if is_known {
                    peer.outgoing().landed();
                }
                // Under the lock of all peers: messages that are queued from now on get a new link.
                let mut peers = self.peers();
                let nobody_listens = unheard_since.is_some_and(|since| now - since > FORGET_AFTER)
                    || peer.outgoing().is_over();
                if nobody_listens || is_unused && peer.outgoing().is_done() {
                    peers.remove(&to);
                    if peer.is_crowded.load(Ordering::Relaxed) {
                        self.0.crowded.fetch_sub(1, Ordering::Relaxed);
                    }
                    return debug!(peer = %to, nobody_listens, "the link to a node is closed");
                }
                drop(peers);
                if retries || !peer.outgoing().has_more() {
                    break;
                }
            }
        }
    }

    async fn publish(&self, to: NodeId, content: Content) -> Result<usize, Unavailable> {
        metrics::PUBLISHES.of(content.kind()).increment(1);
        let text = Envelope::new(self.0.node, content).write();
        self.0.channel.publish(to, text).await
    }

    /// A recovery begins, and the channel is received.
    pub fn note_recovery(&self) {
        *self.looked_up_at() = Instant::now();
    }

    fn looked_up_at(&self) -> MutexGuard<'_, Instant> {
        self.0.looked_up_at.lock()
    }

    /// Waits until this node is subscribed to its channel.
    pub async fn heard(&self) {
        while !matches!(self.0.channel.reachable(&[self.0.node]).await.as_deref(), Ok([true])) {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Receives this node's channel until it leaves, and passes on each peer's messages in order.
    /// A subscription can end silently: therefore it is renewed after each reconnection, and
    /// whenever the node's own canary does not return.
    pub async fn listen(
        self,
        mut subscription: impl Subscription,
        inbox: mpsc::Sender<Inbound>,
        health: Health,
        leaving: CancellationToken,
    ) {
        let mut leaving = pin!(leaving.cancelled());
        let mut canary = tokio::time::interval(CANARY);
        canary.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut links = Links::new(self.0.buffers.clone());
        let mut inbox = Inbox::new(inbox, &self.0.buffers);
        let (mut alive, mut is_canary_out) = (false, false);
        let mut heard_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = &mut leaving => break,
                _ = canary.tick(), if C::CAN_FALL_SILENT => {
                    if std::mem::take(&mut alive) {
                        health.well(Part::Channel);
                    } else {
                        if is_canary_out {
                            health.trouble(Part::Channel, "what other nodes send does not come in");
                        }
                        self.subscribe().await;
                    }
                    is_canary_out = self.publish(self.0.node, Content::Canary).await.is_ok();
                }
                received = subscription.next() => match received {
                    Received::Text(text) => {
                        if self.take(&text, &mut links, &mut inbox).await {
                            alive = true;
                            links.pass(CANARY);
                            let away = heard_at.max(*self.looked_up_at()).elapsed();
                            heard_at = Instant::now();
                            if may_be_forgotten(away) {
                                warn!(?away, "this node's channel was silent: messages may be lost, and all calls are looked up");
                                inbox.put(Inbound::Reset, 0).await;
                            }
                        }
                    }
                    // The links request missing messages, unless they are too old or nothing more
                    // comes from that node.
                    Received::Lagged(count) => {
                        metrics::LIMITS.of(Limit::NodeInbox).increment(1);
                        warn!(count, "the inbox was too slow: messages were lost, and all calls are looked up");
                        inbox.put(Inbound::Reset, 0).await;
                    }
                    Received::Reconnected => {
                        self.subscribe().await;
                    }
                    Received::Closed => return,
                },
            }
        }
        // From now on publishers learn that there is no receiver, and may recall their messages.
        self.0.channel.unsubscribe().await;
        while let Some(text) = subscription.take() {
            self.take(&text, &mut links, &mut inbox).await;
        }
    }

    /// Tries a few times; while the server is unavailable, the canary leads to later attempts.
    async fn subscribe(&self) {
        for _ in 0..SUBSCRIBE_ATTEMPTS {
            if self.0.channel.subscribe().await.is_ok() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
        info!("the node's channel cannot be subscribed for now");
    }

    /// Processes one envelope. Returns whether it was the canary.
    async fn take(&self, text: &str, links: &mut Links, inbox: &mut Inbox) -> bool {
        let envelope = match Envelope::read(text) {
            Ok(envelope) => envelope,
            Err(error) => {
                warn!(%error, "a publish of another node cannot be read: it is ignored");
                return false;
            }
        };
        let from = envelope.from;
        match envelope.content {
            Content::Canary => return from == self.0.node,
            Content::Again(number) => self.outgoing(from, |outgoing| outgoing.send_again(number)),
            Content::Receipt(receipt) => {
                self.outgoing(from, |outgoing| outgoing.confirmed(receipt));
            }
            Content::Frame(frame) => {
                if !inbox.has_room_for(&frame) {
                    // The message is requested again after the next frame or progress report.
                    metrics::LIMITS.of(Limit::NodeInbox).increment(1);
                    if !std::mem::replace(&mut inbox.is_full, true) {
                        warn!(peer = %from, "the inbox of this node is full: messages are requested again later");
                    }
                    return false;
                }
                inbox.is_full = false;
                let copy = is_made(Mistake::DuplicatesTaken).then(|| frame.messages.clone());
                let mut delivery = links.receive(from, frame);
                delivery.messages = copy.unwrap_or(delivery.messages);
                metrics::NODE_LOST.increment(delivery.lost);
                if delivery.lost > 0 {
                    warn!(peer = %from, count = delivery.lost, "messages of a node are lost");
                }
                if delivery.starts_midway {
                    warn!(peer = %from, "the link from a node starts in the middle: earlier messages may be lost");
                }
                if delivery.lost > 0 || delivery.starts_midway {
                    // The records replace the lost notifications of calls.
                    inbox.put(Inbound::Reset, 0).await;
                }
                for message in delivery.messages {
                    metrics::NODE_RECEIVED.of(message.said()).increment(1);
                    let bytes = message.about_bytes();
                    let inbound = match message {
                        Message::Dropped { count } => {
                            warn!(peer = %from, count, "a node could not send all of its messages");
                            Inbound::Reset
                        }
                        message => Inbound::Message(from, message),
                    };
                    inbox.put(inbound, bytes).await;
                }
                if let Some(number) = delivery.ask_from
                    && !is_made(Mistake::GapIgnored)
                {
                    metrics::NODE_GAPS.increment(1);
                    self.outgoing(from, |outgoing| outgoing.ask(number));
                }
                if let Some(receipt) = delivery.receipt {
                    self.outgoing(from, |outgoing| outgoing.give(receipt));
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::link::DROP_AFTER, time::Timestamp};

    #[test]
    fn the_link_of_a_node_from_which_nothing_comes_is_dropped_with_what_waits_there() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let buffers = Buffers::default();
        let mut links = Links::new(buffers.clone());
        let nodes = [NodeId::generate(now), NodeId::generate(now)];
        let frame = |first| Frame {
            link: 1,
            first,
            oldest: 0,
            messages: vec![Message::Void],
            wants_receipt: false,
        };
        for node in nodes {
            // The first message is missing.
            assert_eq!(links.receive(node, frame(1)).ask_from, Some(0));
        }
        let held_bytes = buffers.used_bytes();
        let mut passed = Duration::ZERO;
        while passed < DROP_AFTER {
            assert_eq!(buffers.used_bytes(), held_bytes, "after {passed:?}");
            links.receive(nodes[0], frame(1));
            links.pass(CANARY);
            passed += CANARY;
        }
        assert_eq!(buffers.used_bytes(), held_bytes / 2);
        assert_eq!(links.receive(nodes[0], frame(0)).messages.len(), 2);
        assert_eq!((links.by_node.len(), buffers.used_bytes()), (1, 0));
    }
}
