//! What one node holds of a call: the newest record it has seen, who rings, and messages that wait.

use std::{collections::HashMap, time::Duration};

use tracing::{debug, warn};

use super::{
    Outlet,
    flush::{Course, Overdue},
    held::{Full, Held, MAX_REPLAY_BYTES, MAX_REPLAY_MESSAGES},
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

/// See [`LiveCall`](super::live::LiveCall), which locks it.
pub struct View {
    pub call: Call,
    /// The local sockets that ring, or rang.
    pub rung: Vec<SocketId>,
    /// What the caller sent so far, for devices that join while it rings.
    pub replay: Held,
    /// The sockets that were told that nobody knows what came of their end of the call.
    pub unanswered: Vec<SocketId>,
    /// On the caller's node: the other nodes where the call rings.
    pub ring_nodes: Option<Vec<NodeId>>,
    /// How much of `replay` the caller sent before this became its node.
    pub inherited: usize,
    /// Candidates of ringing devices, which wait for their answer.
    pub early: HashMap<SocketId, Held>,
    /// What waits for a party that lost its device, or for others to arrive first: caller, callee.
    pub waiting: [Held; 2],
    /// The ways to the parties: caller, callee.
    pub courses: [Course; 2],
    /// Whether the first answer has not been passed on here yet, of a call that rang here.
    pub awaits_answer: bool,
}

/// How a call's news leave this node's view of it.
pub struct Reach<'a> {
    pub outlet: &'a dyn Outlet,
    pub cluster: &'a dyn Cluster,
    pub now: Timestamp,
    pub clock: &'a Clock,
    pub overdue: &'a Overdue,
    /// Where the message comes from that is being passed on at once; none for what has waited.
    pub origin: Option<Origin>,
    /// The step that passes it on, if it is part of a trace.
    pub trace: Option<TraceContext>,
}

/// Where and when a message came in from its sender's socket.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub received_us: u64,
    pub path: Path,
}

impl Reach<'_> {
    /// The message, with when it came in here and in which trace.
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

    /// A message of the caller for every node where it rings.
    pub fn relay_to_ringing(&self, signal: Signal, payload: Payload) -> Relay {
        Relay { to_ringing: true, ..self.relay(signal, payload, Role::Caller) }
    }

    /// To the bound device of the party it is for, on whatever node. What a device does not take,
    /// because it is lost or is just being lost, waits for it. After the end there is nobody to take it.
    pub fn deliver(&mut self, relay: Relay, reach: &Reach) {
        let to = relay.from.other();
        if !self.call.is_live() {
            return debug!(call = %relay.call, "a message came too late for its call");
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

    /// Whether all nodes that a message of a device here goes to have room for it. If not, nobody gets it.
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
        // A node that has not heard of a move looks it up.
        let version = relay.version.max(self.call.version);
        if let Route::Bound(_, senders, _) = self.call.to_party(relay.from)
            && node != own
            && senders != own
        {
            // It came here when the device had left: from its sender's node it goes on in its order.
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

    /// What waits for a lost device waits on the node where its sender is: there it stays in order
    /// with what is sent after it, and does not go with this node.
    pub fn give_back(&mut self, to: Role, reach: &Reach) {
        let Route::WhenBack(_) = self.call.to_party(to) else { return };
        let Route::Bound(_, node, _) = self.call.to_party(to.other()) else { return };
        let (own, party) = (reach.cluster.node(), self.call.party(to));
        // If it was only taken for lost, it takes its place again, and this goes on from here. If not, the
        // sender's node asks for it.
        let may_be_here =
            party.link.node() == Some(own) && !reach.outlet.sockets_of(&party.user).is_empty();
        if node != own && !may_be_here {
            self.return_waiting(to, node, reach);
        }
    }

    /// Keeps a message for a device that is lost, if there is room.
    pub fn wait(&mut self, to: Role, signal: Signal, payload: &Payload) {
        let (id, until) = (self.call.id, self.call.deadline());
        if self.waiting_for(to).keep_for_lost(signal, payload, until).is_err() {
            metrics::LIMITS.of(Limit::Waiting).increment(1);
            warn!(call = %id, "too much waits for a lost device: some is dropped");
        }
        self.settle_for_lost(to);
    }

    /// What waits for a device that is away, and for nothing else, is where it should be: if it is lost, so is the
    /// sender's node.
    pub fn settle_for_lost(&mut self, to: Role) {
        if let Route::WhenBack(_) = self.call.to_party(to)
            && !self.holds(to)
        {
            for (_, payload) in &self.waiting_for(to).messages {
                payload.settle();
            }
        }
    }

    /// Keeps a message of a ringing device until it answers. All of them share the room.
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

    /// Puts what was sent to the node that held the party's device, and that nobody there has heard,
    /// before what waits for it: the device has left that node.
    pub fn recall(&mut self, before: &Call, role: Role, reach: &Reach) {
        let Some(node) = before.party(role).link.node() else { return };
        let stays = self.call.party(role).link.socket().is_some()
            && self.call.party(role).link.node() == Some(node);
        if stays || node == reach.cluster.node() || before.is_ringing() {
            return;
        }
        self.take_back(role, node, reach);
    }

    /// Gives what the caller sent to the node that the caller has moved to.
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

    pub fn pass_to_ringing(&self, signal: Signal, payload: &Payload, reach: &Reach) {
        for socket in &self.rung {
            self.pass_on(signal, payload.untracked(), Role::Caller, *socket, reach);
        }
        if !self.rung.is_empty() {
            payload.settle();
        }
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
