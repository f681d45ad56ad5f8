//! A node's view of one call: the newest record seen, ringing sockets, and buffered messages.

use std::{collections::HashMap, time::Duration};

use tracing::{debug, warn};

use super::{
    Outlet,
    flush::Course,
    held::{Full, Held, MAX_REPLAY_BYTES, MAX_REPLAY_MESSAGES},
    pending::Pending,
};
use crate::{
    call::{Call, News, Role, Route, Signal},
    cluster::{Cluster, Message, Relay},
    ids::{NodeId, SocketId},
    metrics::{self, Limit, Path},
    payload::Payload,
    protocol::ServerEvent,
    time::{Clock, Timestamp},
    trace::TraceContext,
};

/// Locked by [`LiveCall`](super::live::LiveCall).
pub struct View {
    pub call: Call,
    /// The local sockets that ring or rang.
    pub rung: Vec<SocketId>,
    /// The caller's messages so far, for devices that join while the call rings.
    pub replay: Held,
    /// The sockets whose end of the call has an unknown outcome.
    pub unanswered: Vec<SocketId>,
    /// On the caller's node: the other nodes where the call rings.
    pub ring_nodes: Option<Vec<NodeId>>,
    /// The number of messages in `replay` from before the caller moved to this node.
    pub inherited: usize,
    /// Candidates of ringing devices, buffered until their answer.
    pub early: HashMap<SocketId, Held>,
    /// Messages buffered for a party that lost its device, or until earlier ones have arrived:
    /// caller, callee.
    pub waiting: [Held; 2],
    /// The paths to the parties: caller, callee.
    pub courses: [Course; 2],
    /// Whether the first answer of a call that rang here has not been relayed here yet.
    pub awaits_answer: bool,
}

/// The ways out of a view: to sockets and to other nodes.
pub struct Reach<'a> {
    pub outlet: &'a dyn Outlet,
    pub cluster: &'a dyn Cluster,
    pub now: Timestamp,
    pub clock: &'a Clock,
    pub pending: &'a Pending,
    /// The origin of the message that is relayed at the moment; `None` for buffered messages.
    pub origin: Option<Origin>,
    /// The span that relays it, if the call is traced.
    pub trace: Option<TraceContext>,
}

/// Where and when a message arrived from its sender's socket.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub received_us: u64,
    pub path: Path,
}

impl Reach<'_> {
    /// Adds the arrival time and the trace to a message.
    pub fn mark(&self, relay: Relay) -> Relay {
        let received_us = self.origin.map(|origin| origin.received_us);
        Relay { received_us, traceparent: self.trace, ..relay }
    }

    fn count_relayed(&self, signal: Signal) {
        if let Some(Origin { received_us, path }) = self.origin {
            let took = Duration::from_micros(self.clock.now_us().saturating_sub(received_us));
            metrics::RELAY.of((signal, path)).record(took);
        }
    }
}

impl View {
    pub fn waiting_for(&mut self, role: Role) -> &mut Held {
        match role {
            Role::Caller => &mut self.waiting[0],
            Role::Callee => &mut self.waiting[1],
        }
    }

    pub fn relay(&self, signal: Signal, payload: Payload, from: Role) -> Relay {
        let Call { id, version, .. } = self.call;
        Relay {
            call: id,
            version,
            from,
            signal,
            payload,
            given_back: false,
            to_ringing: false,
            received_us: None,
            traceparent: None,
        }
    }

    /// A message of the caller for every node where the call rings.
    pub fn relay_to_ringing(&self, signal: Signal, payload: Payload) -> Relay {
        Relay { to_ringing: true, ..self.relay(signal, payload, Role::Caller) }
    }

    /// Delivers a message to the bound device of its party, on whatever node. A message that the
    /// device does not accept, because it is lost or about to be, is buffered for it. After the end
    /// it is dropped.
    pub fn deliver(&mut self, relay: Relay, reach: &Reach) {
        let to = relay.from.other();
        if !self.call.is_live() {
            return debug!(call = %relay.call, "a message arrived after the end of its call");
        }
        if self.holds(to) {
            return self.hold(&relay);
        }
        match self.call.to_party(to) {
            Route::Bound(_, node, socket) => self.send(relay, node, socket, reach),
            Route::WhenBack(_) => {
                let Relay { signal, payload, given_back, .. } = relay;
                if given_back {
                    self.waiting_for(to).put_given_back(signal, &payload);
                } else {
                    self.wait(to, signal, &payload);
                }
                self.give_back(to, reach);
            }
            Route::Ringing | Route::AfterAnswer(_) | Route::Answers(_) => {}
        }
    }

    /// Whether all nodes that a message of a local device goes to have room for it. If not, it is
    /// sent to none of them.
    pub fn has_room(&self, route: &Route, payload: &Payload, reach: &Reach) -> bool {
        let own = reach.cluster.node();
        let has_room = |node: &NodeId| {
            *node == own || reach.cluster.has_room(*node, self.call.id, payload.len_bytes())
        };
        match route {
            Route::Ringing => self.ring_nodes.iter().flatten().all(has_room),
            Route::Bound(_, node, _) => has_room(node),
            Route::WhenBack(_) | Route::AfterAnswer(_) | Route::Answers(_) => true,
        }
    }

    fn send(&mut self, relay: Relay, node: NodeId, socket: SocketId, reach: &Reach) {
        let (own, to) = (reach.cluster.node(), relay.from.other());
        // A node that has not seen a move looks up the record.
        let version = relay.version.max(self.call.version);
        if let Route::Bound(_, senders, _) = self.call.to_party(relay.from)
            && node != own
            && senders != own
        {
            // The message arrived after the device had left: the sender's node sends it on in
            // order.
            let relay = Relay { version, to_ringing: false, given_back: true, ..relay };
            return reach.cluster.send(senders, Message::Relay(relay));
        }
        if !self.takes_course(to, node, reach) {
            return self.hold(&relay);
        }
        if node != own {
            let relay = Relay { version, to_ringing: false, given_back: false, ..relay };
            return reach.cluster.send(node, Message::Relay(relay));
        }
        let Relay { from, signal, payload, .. } = relay;
        if !self.pass_on(signal, payload.untracked(), from, socket, reach) {
            return self.wait(to, signal, &payload);
        }
        payload.settle();
        if (signal, from) == (Signal::Answer, Role::Callee)
            && std::mem::take(&mut self.awaits_answer)
        {
            metrics::SETUP.record(reach.clock.now() - self.call.created_at);
        }
    }

    /// Messages for a lost device are buffered on the sender's node: there they stay in order with
    /// later ones, and are not lost with this node.
    pub fn give_back(&mut self, to: Role, reach: &Reach) {
        let Route::WhenBack(_) = self.call.to_party(to) else { return };
        let Route::Bound(_, node, _) = self.call.to_party(to.other()) else { return };
        let (own, party) = (reach.cluster.node(), self.call.party(to));
        // If the device was only marked lost, it is restored and delivery continues here. If not,
        // the sender's node asks for these messages.
        let may_be_here =
            party.link.node() == Some(own) && !reach.outlet.sockets_of(&party.user).is_empty();
        if node != own && !may_be_here {
            self.return_waiting(to, node, reach);
        }
    }

    /// Buffers a message for a lost device, if there is room.
    pub fn wait(&mut self, to: Role, signal: Signal, payload: &Payload) {
        let (id, until) = (self.call.id, self.call.deadline());
        if self.waiting_for(to).keep_for_lost(signal, payload, until).is_err() {
            metrics::LIMITS.of(Limit::Waiting).increment(1);
            warn!(call = %id, "the buffer for a lost device is full: messages are dropped");
        }
        self.settle_for_lost(to);
    }

    /// Settles the receipts of messages that are buffered only because the device is disconnected:
    /// this node holds them for the sender.
    pub fn settle_for_lost(&mut self, to: Role) {
        if let Route::WhenBack(_) = self.call.to_party(to)
            && !self.holds(to)
        {
            for (_, payload) in &self.waiting_for(to).messages {
                payload.settle();
            }
        }
    }

    /// Buffers a message of a ringing device until it answers. All ringing devices share the room.
    pub fn keep_early(
        &mut self,
        from: SocketId,
        signal: Signal,
        payload: &Payload,
        until: Timestamp,
    ) -> Result<(), Full> {
        let messages: usize = self.early.values().map(|held| held.messages.len()).sum();
        let bytes: usize = self.early.values().map(Held::size_bytes).sum();
        if messages >= MAX_REPLAY_MESSAGES || bytes + payload.len_bytes() > MAX_REPLAY_BYTES {
            return Err(Full::Until(until));
        }
        let held = self.early.entry(from).or_insert_with(|| self.replay.sibling());
        held.fits_budget(payload)?;
        held.push(signal, payload);
        Ok(())
    }

    /// Takes back the messages that were sent to the party's former node and are known to be
    /// unreceived there, and puts them before the buffered ones.
    pub fn recall(&mut self, before: &Call, role: Role, reach: &Reach) {
        let Some(node) = before.party(role).link.node() else { return };
        let stays = self.call.party(role).link.socket().is_some()
            && self.call.party(role).link.node() == Some(node);
        if stays || node == reach.cluster.node() || before.is_ringing() {
            return;
        }
        self.take_back(role, node, reach);
    }

    /// Sends the caller's messages so far to the node that the caller has moved to.
    pub fn hand_over(&mut self, reach: &Reach) {
        let Route::Bound(_, node, _) = self.call.to_party(Role::Caller) else { return };
        if node != reach.cluster.node() && self.ring_nodes.take().is_some() {
            let messages = self.replay.messages.iter().cloned().collect();
            reach.cluster.send(node, Message::Kept { call: self.call.id, messages });
        }
    }

    pub fn tell(&self, socket: SocketId, news: News, to: Role, reach: &Reach) {
        let event = ServerEvent::from_news(news, &self.call, to, reach.now);
        reach.outlet.emit(socket, &event, Some(&self.call.party(to).user));
    }

    /// Returns whether a socket that rings here has taken the message. One that is gone may not be signed off yet.
    pub fn pass_to_ringing(&self, signal: Signal, payload: &Payload, reach: &Reach) -> bool {
        let mut is_taken = false;
        for socket in &self.rung {
            is_taken |= self.pass_on(signal, payload.untracked(), Role::Caller, *socket, reach);
        }
        if is_taken {
            payload.settle();
        }
        is_taken
    }

    pub fn pass_on(
        &self,
        signal: Signal,
        payload: Payload,
        from: Role,
        socket: SocketId,
        reach: &Reach,
    ) -> bool {
        let event = ServerEvent::relayed(signal, payload, &self.call, from, reach.now);
        let taken = reach.outlet.emit(socket, &event, Some(&self.call.party(from.other()).user));
        if taken {
            reach.count_relayed(signal);
        }
        taken
    }
}
