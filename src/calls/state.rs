//! One call as this node knows it: the newest record seen, ringing sockets, buffered messages.
//!
//! Pure: decides from the state, its input and the time, and leaves [`Effect`]s, which
//! `Calls::change` performs in their order under the call's mutex. `path.rs` has the order across
//! moves.

use std::collections::HashMap;

use super::{
    buffer::{Buffer, Full, MAX_REPLAY_BYTES, MAX_REPLAY_MESSAGES},
    path::Path,
};
use crate::{
    call::{Call, Device, Notification, Role, Route, Signal, notifications},
    cluster::{Message, Relay},
    ids::{NodeId, SocketId},
    limits::buffers::Buffers,
    metrics,
    payload::Payload,
    protocol::ServerEvent,
    time::Timestamp,
    trace::TraceContext,
};

/// The circumstances of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// This node.
    pub node: NodeId,
    pub now: Timestamp,
    /// For caller and callee: the record marks its device as lost on this node, and its user has a
    /// socket here. The device may have been marked by mistake.
    pub may_be_here: [bool; 2],
}

/// A consequence of a decision.
#[derive(Debug)]
pub enum Effect {
    /// Send an event to a socket of the party with this role.
    Notify {
        socket: SocketId,
        to: Role,
        event: ServerEvent,
    },
    /// Pass a message to the bound device of the other party.
    Deliver {
        socket: SocketId,
        from: Role,
        signal: Signal,
        payload: Payload,
    },
    /// Pass a message of the caller to ringing sockets. It is where it should be if one of them
    /// takes it, and in any case if it `is_kept`.
    Ring {
        sockets: Vec<SocketId>,
        signal: Signal,
        payload: Payload,
        is_kept: bool,
    },
    Send(NodeId, Message),
    /// Call [`CallState::give_up_flush`] at this time.
    AwaitFlush {
        to: Role,
        until: Timestamp,
    },
    /// Messages were dropped, because a buffer is full.
    Overflow(&'static str),
}

/// Where and when a message arrived from its sender's socket, and the span that relays it.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub received_us: u64,
    pub path: metrics::Path,
    pub trace: Option<TraceContext>,
}

pub struct CallState {
    pub(super) call: Call,
    /// The local sockets that ring or rang.
    ringing: Vec<SocketId>,
    /// The caller's messages so far, for devices that join while the call rings.
    replay: Buffer,
    /// The number of messages in `replay` from before the caller moved to this node.
    moved: usize,
    /// On the caller's node: the other nodes where the call rings.
    ring_nodes: Option<Vec<NodeId>>,
    /// The sockets whose end of the call has an unknown outcome.
    unacknowledged: Vec<SocketId>,
    /// The sockets that know the end of the call.
    told_end: Vec<SocketId>,
    /// Candidates of ringing devices, buffered until their answer.
    early: HashMap<SocketId, Buffer>,
    /// Messages for a party that lost its device, or whose old path is being drained: caller,
    /// callee.
    buffers: [Buffer; 2],
    /// The paths to the parties: caller, callee.
    pub(super) paths: [Path; 2],
    /// Whether the first answer of a call that rang here has not been relayed here yet.
    awaits_answer: bool,
    effects: Vec<Effect>,
}

impl CallState {
    pub fn new(call: Call, buffers: &Buffers) -> Self {
        let empty = || Buffer::new(buffers.holder(metrics::Buffer::Calls));
        Self {
            awaits_answer: call.is_ringing(),
            call,
            ringing: Vec::new(),
            replay: empty(),
            moved: 0,
            ring_nodes: None,
            unacknowledged: Vec::new(),
            told_end: Vec::new(),
            early: HashMap::new(),
            buffers: [empty(), empty()],
            paths: Default::default(),
            effects: Vec::new(),
        }
    }

    /// The newest version seen here.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The effects of decisions since the last time.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub(super) fn add(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn send(&mut self, node: NodeId, message: Message) {
        self.effects.push(Effect::Send(node, message));
    }

    fn notify(&mut self, socket: SocketId, notification: Notification, to: Role, now: Timestamp) {
        let event = ServerEvent::from_notification(notification, &self.call, to, now);
        self.effects.push(Effect::Notify { socket, to, event });
    }

    /// Whether a local socket rings.
    pub fn rings_here(&self) -> bool {
        self.call.is_ringing() && !self.ringing.is_empty()
    }

    /// Whether the call has ended, and this socket was told.
    pub fn knows_end(&self, socket: SocketId) -> bool {
        self.told_end.contains(&socket)
    }

    /// Whether this node must wait before it stops: a device that was lost here has not returned, a
    /// message is buffered for one, or the fate of messages is unknown.
    pub fn awaits_device(&self, node: NodeId) -> bool {
        let is_lost_here = |role| {
            let link = &self.call.party(role).link;
            link.lost_until().is_some() && link.node() == Some(node)
        };
        let has_buffered = self.buffers.iter().any(|buffer| !buffer.messages.is_empty());
        let is_lost_here = is_lost_here(Role::Caller) || is_lost_here(Role::Callee);
        self.call.is_live() && (has_buffered || is_lost_here || self.is_draining_any())
    }

    /// Whether this node, where the caller is, does not know where the call rings.
    pub fn lacks_ring_nodes(&self) -> bool {
        self.ring_nodes.is_none()
    }

    /// Whether the first answer was not relayed here before.
    pub fn is_first_answer(&mut self) -> bool {
        std::mem::take(&mut self.awaits_answer)
    }

    pub(super) fn buffer_for(&mut self, role: Role) -> &mut Buffer {
        &mut self.buffers[role as usize]
    }

    pub(super) fn relay_of(&self, signal: Signal, payload: Payload, from: Role) -> Relay {
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

    /// Notifies the caller's socket of the call that it has placed, unless a newer version was seen
    /// since.
    pub fn placed(
        &mut self,
        version: u64,
        notification: Notification,
        socket: SocketId,
        now: Timestamp,
    ) -> bool {
        let is_newest = self.call.version == version;
        if is_newest {
            self.notify(socket, notification, Role::Caller, now);
        }
        is_newest
    }

    /// Removes everything that is kept for a socket that is gone.
    pub fn forget_socket(&mut self, socket: SocketId) {
        self.ringing.retain(|ringing| *ringing != socket);
        self.early.remove(&socket);
    }
}

/// Ringing.
impl CallState {
    /// Rings those of `sockets` that do not ring yet, and sends them the caller's messages so far.
    /// Does nothing if the call no longer rings. The node `reported_by` knows that it rings here.
    pub fn ring(&mut self, sockets: &[SocketId], reported_by: Option<NodeId>, context: &Context) {
        if !self.call.is_ringing() {
            return;
        }
        let is_first = self.ringing.is_empty();
        for socket in sockets {
            if self.ringing.contains(socket) || self.call.is_busy_on(*socket) {
                continue;
            }
            self.ringing.push(*socket);
            self.notify(*socket, Notification::Incoming, Role::Callee, context.now);
            for (signal, payload) in &self.replay.messages {
                let (sockets, signal, payload) = (vec![*socket], *signal, payload.clone());
                self.effects.push(Effect::Ring { sockets, signal, payload, is_kept: false });
            }
        }
        let knows = |node: &NodeId| *node == context.node || Some(*node) == reported_by;
        let callers = self.call.caller.link.node().filter(|node| !knows(node));
        if let Some(node) = callers.filter(|_| is_first && !self.ringing.is_empty()) {
            let (call, have) = (self.call.id, self.replay.messages.len());
            self.send(node, Message::Rings { call, have });
        }
    }

    /// Records the nodes where the call rings; this node is the caller's.
    pub fn rings_on(&mut self, nodes: &[NodeId], context: &Context) {
        if self.ring_nodes.is_some() {
            // A node that is no longer in the list may still have to receive messages in flight. A
            // new node reports what it lacks as soon as it rings, or gets everything
            // (`rings_also_on`).
            return;
        }
        let others = nodes.iter().copied().filter(|node| *node != context.node);
        self.ring_nodes = Some(others.collect());
        self.moved = self.replay.messages.len();
    }

    /// The call rings on another node too, which has the first `have` messages of the caller.
    pub fn rings_also_on(&mut self, node: NodeId, have: usize) {
        let Some(ring_nodes) = &mut self.ring_nodes else { return };
        if ring_nodes.contains(&node) {
            return;
        }
        ring_nodes.push(node);
        for (signal, payload) in self.replay.messages.iter().skip(have) {
            let relay = self.relay_of(*signal, payload.clone(), Role::Caller);
            let message = Message::Relay(Relay { to_ringing: true, ..relay });
            self.effects.push(Effect::Send(node, message));
        }
    }

    /// Takes over the messages that the caller sent before it moved to this node, and sends them to
    /// devices that began to ring here meanwhile.
    pub fn take_over(&mut self, messages: Vec<(Signal, Payload)>) {
        if self.ring_nodes.is_none() {
            // The reply of the commit that moved the caller here was lost: all that is kept came from its earlier
            // node, and rang here already.
            self.moved = self.replay.messages.len();
        }
        for (signal, payload) in messages.iter().skip(self.moved) {
            self.pass_to_ringing(*signal, payload, false);
        }
        let until = self.call.deadline();
        let sent_here = self.replay.take().messages.into_iter().skip(self.moved);
        self.moved = messages.len();
        for (signal, payload) in messages.into_iter().chain(sent_here) {
            if self.replay.keep_for_replay(signal, &payload, until).is_err() {
                self.moved = self.moved.min(self.replay.messages.len());
                return self.add(Effect::Overflow("messages of the caller are dropped"));
            }
        }
    }

    /// Sends the caller's messages so far to the node that the caller has moved to.
    fn hand_over(&mut self, context: &Context) {
        let Route::Bound(_, node, _) = self.call.to_party(Role::Caller) else { return };
        if node != context.node && self.ring_nodes.take().is_some() {
            let messages = self.replay.messages.iter().cloned().collect();
            self.send(node, Message::Kept { call: self.call.id, messages });
        }
    }

    fn pass_to_ringing(&mut self, signal: Signal, payload: &Payload, is_kept: bool) {
        if !self.ringing.is_empty() || is_kept {
            let (sockets, payload) = (self.ringing.clone(), payload.clone());
            self.add(Effect::Ring { sockets, signal, payload, is_kept });
        }
    }
}

/// Versions of the record.
impl CallState {
    /// The nodes that a party's device has left with the newer version, and where messages for it may be
    /// unreceived.
    pub fn left_by(&self, newer: &Call, node: NodeId) -> impl Iterator<Item = (Role, NodeId)> {
        let is_moving = newer.succeeds(&self.call) && !self.call.is_ringing();
        let left = move |role| {
            let left = self.call.party(role).link.node()?;
            let link = &newer.party(role).link;
            let stays = link.socket().is_some() && link.node() == Some(left);
            (is_moving && !stays && left != node).then_some((role, left))
        };
        [Role::Caller, Role::Callee].into_iter().filter_map(left)
    }

    /// Processes a newer version; an older one is dropped. The answer of `answered` has won, and its
    /// device has been marked lost since. The messages `recalled` were unreceived on the nodes that
    /// [`CallState::left_by`] named.
    pub fn observe(
        &mut self,
        newer: &Call,
        answered: Option<SocketId>,
        recalled: Vec<Relay>,
        context: &Context,
    ) {
        if !newer.succeeds(&self.call) {
            return;
        }
        let before = std::mem::replace(&mut self.call, newer.clone());
        self.ringing.retain(|ringing| Some(*ringing) != answered);
        for (socket, notification) in
            notifications(&before, newer, &self.ringing, &self.unacknowledged)
        {
            self.notify(socket, notification, role_on(socket, &before, newer), context.now);
        }
        if newer.is_ringing() {
            let Self { ringing, unacknowledged, .. } = self;
            ringing.retain(|socket| !newer.is_busy_on(*socket) || unacknowledged.contains(socket));
            if self.has_come_here(&before, context.node) {
                // The node where the caller was hands over all messages.
                self.moved = self.replay.messages.len();
            }
            self.hand_over(context);
        } else {
            self.ringing.clear();
            drop(self.replay.take());
            self.ring_nodes = None;
        }
        if !newer.is_live() {
            self.unacknowledged.clear();
            self.early.clear();
            for buffer in &mut self.buffers {
                drop(buffer.take());
            }
            self.paths = Default::default();
            return;
        }
        self.put_recalled(recalled);
        self.flush_moved(&before, context);
        for role in [Role::Caller, Role::Callee] {
            match newer.to_party(role) {
                Route::Bound(..) if !self.is_draining(role) => self.release(role, context),
                _ => self.return_for_lost(role, context),
            }
            self.settle_for_lost(role);
        }
    }

    /// Whether the ringing call's caller has come to this node, perhaps again: versions in between may
    /// have been missed.
    fn has_come_here(&self, before: &Call, node: NodeId) -> bool {
        let (was, is) = (&before.caller.link, &self.call.caller.link);
        let may_have_been_away = was.node() != Some(node) || self.call.version > before.version + 1;
        is.node() == Some(node) && is.socket() != was.socket() && may_have_been_away
    }

    /// The call has ended: records that the devices in it on this node know that.
    pub fn note_end(&mut self, context: &Context) {
        for link in [&self.call.caller.link, &self.call.callee.link] {
            let here = link.socket().filter(|_| link.node() == Some(context.node));
            self.told_end.extend(here.filter(|socket| !self.told_end.contains(socket)));
        }
    }

    /// Records that the outcome of the end that `socket` sent is unknown; the call was `before`. If
    /// it was applied, the socket is notified like the others.
    pub fn leave_unacknowledged(&mut self, socket: SocketId, before: &Call, now: Timestamp) {
        if self.call.is_live() {
            self.unacknowledged.retain(|other| *other != socket);
            self.unacknowledged.push(socket);
            if self.call.is_busy_on(socket) && !self.ringing.contains(&socket) {
                self.ringing.push(socket);
            }
            return;
        }
        if self.call.ended_by() != Some(socket) && !self.call.is_busy_on(socket) {
            // The socket was notified with the others.
            return;
        }
        let notified = notifications(before, &self.call, &[socket], &[socket]);
        for (_, notification) in notified.into_iter().filter(|(to, _)| *to == socket) {
            self.notify(socket, notification, role_on(socket, before, &self.call), now);
        }
    }

    /// The ack for the event of `socket` will report the outcome. Returns whether the outcome of an
    /// earlier event was unknown.
    pub fn acknowledge(&mut self, socket: SocketId) -> bool {
        let before = self.unacknowledged.len();
        self.unacknowledged.retain(|other| *other != socket);
        self.unacknowledged.len() < before
    }
}

/// Messages.
impl CallState {
    /// The nodes to which a message of a local device goes next. If one has no room, it is sent to
    /// none.
    pub fn next_nodes<'a>(&'a self, route: &'a Route) -> &'a [NodeId] {
        match route {
            Route::Ringing => self.ring_nodes.as_deref().unwrap_or_default(),
            Route::Bound(_, node, _) => std::slice::from_ref(node),
            Route::WhenBack(_) | Route::AfterAnswer(_) | Route::Answers(_) => &[],
        }
    }

    /// Relays a message of a local device or buffers it, as its route says. A first answer is not
    /// relayed yet, because its sender must win the call first.
    pub fn relay(
        &mut self,
        device: &Device,
        route: &Route,
        signal: Signal,
        payload: &Payload,
        arrival: Arrival,
        context: &Context,
    ) -> Result<(), Full> {
        let until = self.call.deadline();
        let mark = |relay: Relay| {
            let (received_us, traceparent) = (Some(arrival.received_us), arrival.trace);
            Relay { received_us, traceparent, ..relay }
        };
        // The answer may have won without a reply to its device: then it was not relayed.
        let waits_for_answer = matches!(route, Route::AfterAnswer(_))
            || (signal == Signal::Candidate && self.early.contains_key(&device.socket));
        match *route {
            Route::Ringing => {
                self.replay.keep_for_replay(signal, &payload.untracked(), until)?;
                // If no device rings, those that join get what is kept here.
                let is_kept = self.ring_nodes.as_ref().is_none_or(Vec::is_empty);
                self.pass_to_ringing(signal, payload, is_kept);
                for node in self.ring_nodes.iter().flatten() {
                    let relay = self.relay_of(signal, payload.clone(), Role::Caller);
                    let message = Message::Relay(mark(Relay { to_ringing: true, ..relay }));
                    self.effects.push(Effect::Send(*node, message));
                }
            }
            _ if waits_for_answer => {
                self.keep_early(device.socket, signal, &payload.untracked(), until)?;
                payload.settle();
            }
            Route::Bound(to, ..) if !self.is_draining(to) => {
                let relay = self.relay_of(signal, payload.clone(), to.other());
                self.deliver(mark(relay), context);
            }
            Route::Bound(to, ..) | Route::WhenBack(to) => {
                self.buffer_for(to).keep_for_lost(signal, payload, until)?;
                self.settle_for_lost(to);
            }
            Route::Answers(_) | Route::AfterAnswer(_) => {}
        }
        Ok(())
    }

    /// Processes a message that another node relays.
    ///
    /// # Errors
    /// The message, if a change of the record was not seen here before it.
    pub fn receive(&mut self, relay: Relay, context: &Context) -> Result<(), Relay> {
        if relay.version > self.call.version {
            return Err(relay);
        }
        if !self.call.is_ringing() {
            // Of the nodes that received it while the call rang, one relays it: the node where the
            // call was answered.
            if !relay.to_ringing || self.call.answered_on() == Some(context.node) {
                // Messages relayed by another node were sent before those that are buffered here.
                let given_back = relay.given_back || self.is_draining(relay.from.other());
                self.deliver(Relay { given_back, ..relay }, context);
            }
            return Ok(());
        }
        let until = self.call.deadline();
        let Relay { signal, payload, .. } = relay;
        if self.replay.keep_for_replay(signal, &payload, until).is_err() {
            self.add(Effect::Overflow("a message is not kept for late devices"));
        } else if self.ring_nodes.is_some() {
            // The message was in flight while the caller moved here.
            self.replay.messages.make_contiguous()[self.moved..].rotate_right(1);
            self.moved += 1;
        }
        self.pass_to_ringing(signal, &payload, false);
        Ok(())
    }

    /// Delivers a message to the bound device of its party, on whatever node, or buffers it for a
    /// lost one. After the end it is dropped.
    pub(super) fn deliver(&mut self, relay: Relay, context: &Context) {
        let to = relay.from.other();
        if !self.call.is_live() {
            return;
        }
        if self.is_draining(to) {
            return self.buffer_behind(relay);
        }
        match self.call.to_party(to) {
            Route::Bound(_, node, socket) => self.deliver_to(relay, node, socket, context),
            Route::WhenBack(_) => {
                let Relay { signal, payload, given_back, .. } = relay;
                if given_back {
                    self.buffer_for(to).put_returned(signal, payload);
                } else {
                    self.buffer_for_lost(to, signal, &payload);
                }
                self.return_for_lost(to, context);
            }
            Route::Ringing | Route::AfterAnswer(_) | Route::Answers(_) => {}
        }
    }

    fn deliver_to(&mut self, relay: Relay, node: NodeId, socket: SocketId, context: &Context) {
        let (own, to) = (context.node, relay.from.other());
        // A node that has not seen a move looks up the record.
        let version = relay.version.max(self.call.version);
        if let Route::Bound(_, senders, _) = self.call.to_party(relay.from)
            && node != own
            && senders != own
        {
            // The message arrived after the device had left: the sender's node sends it on in
            // order.
            let relay = Relay { version, to_ringing: false, given_back: true, ..relay };
            return self.send(senders, Message::Relay(relay));
        }
        if !self.take_path(to, node, context) {
            return self.buffer_behind(relay);
        }
        if node != own {
            let relay = Relay { version, to_ringing: false, given_back: false, ..relay };
            return self.send(node, Message::Relay(relay));
        }
        let Relay { from, signal, payload, .. } = relay;
        self.add(Effect::Deliver { socket, from, signal, payload });
    }

    /// Messages for a lost device are buffered on the sender's node: there they stay in order with
    /// later ones, and are not lost with this node.
    pub(super) fn return_for_lost(&mut self, to: Role, context: &Context) {
        let Route::WhenBack(_) = self.call.to_party(to) else { return };
        let Route::Bound(_, node, _) = self.call.to_party(to.other()) else { return };
        // If the device was only marked lost, it is restored and delivery continues here. If not,
        // the sender's node asks for these messages.
        if node != context.node && !context.may_be_here[to as usize] {
            self.return_buffered(to, node);
        }
    }

    /// Buffers a message that a device did not take, because it is lost or about to be, if there is
    /// room.
    pub fn buffer_for_lost(&mut self, to: Role, signal: Signal, payload: &Payload) {
        let until = self.call.deadline();
        if self.buffer_for(to).keep_for_lost(signal, payload, until).is_err() {
            self.add(Effect::Overflow("messages for a lost device are dropped"));
        }
        self.settle_for_lost(to);
    }

    /// Settles the receipts of messages that are buffered only because the device is disconnected:
    /// this node holds them for the sender.
    pub(super) fn settle_for_lost(&mut self, to: Role) {
        if let Route::WhenBack(_) = self.call.to_party(to)
            && !self.is_draining(to)
        {
            for (_, payload) in &self.buffer_for(to).messages {
                payload.settle();
            }
        }
    }

    /// Buffers a message of a ringing device until it answers. All ringing devices share the room.
    fn keep_early(
        &mut self,
        from: SocketId,
        signal: Signal,
        payload: &Payload,
        until: Timestamp,
    ) -> Result<(), Full> {
        let messages: usize = self.early.values().map(|early| early.messages.len()).sum();
        let bytes: usize = self.early.values().map(Buffer::size_bytes).sum();
        if messages >= MAX_REPLAY_MESSAGES || bytes + payload.len_bytes() > MAX_REPLAY_BYTES {
            return Err(Full::Until(until));
        }
        let early = self.early.entry(from).or_insert_with(|| self.replay.sibling());
        early.fits_budget(payload)?;
        early.push(signal, payload);
        Ok(())
    }

    /// Releases the candidates that waited for the answer of `device`, and drops those of devices
    /// whose answer came too late.
    pub fn release_early(&mut self, device: &Device, context: &Context) {
        let own = self.early.remove(&device.socket).map(|early| early.messages);
        self.early.clear();
        let is_bound = matches!(self.call.to_party(Role::Caller), Route::Bound(..));
        for (signal, payload) in own.unwrap_or_default() {
            if is_bound {
                let relay = self.relay_of(signal, payload, Role::Callee);
                self.deliver(relay, context);
            } else {
                self.buffer_for_lost(Role::Caller, signal, &payload);
            }
        }
    }
}

/// The party of a socket that takes part in the call.
fn role_on(socket: SocketId, before: &Call, after: &Call) -> Role {
    let is_callers = [before, after].iter().any(|call| call.caller.link.is_on(socket));
    if is_callers { Role::Caller } else { Role::Callee }
}
