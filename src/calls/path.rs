//! Order across moves. While both devices stay where they are, all messages of a sender take one
//! path. After a device moves to another node, the next messages take another path, and could
//! overtake those that are still on the old one. Therefore the sender's node first drains the old
//! path: it sends a `Flush` after the last message, buffers new messages, and continues when the
//! reply arrives. The node that receives the `Flush` returns its buffered messages, recalls its
//! unsent ones, and has the path beyond it drained before it replies.
//!
//! Pure, as `state.rs`.

use std::time::Duration;

use super::state::{CallState, Context, Effect};
use crate::{
    call::{Call, Role, Route},
    cluster::{Message, Relay},
    ids::NodeId,
    time::Timestamp,
};

/// The longest time that messages are buffered for a silent node, which may be dead or cut off.
const MAX_FLUSH: Duration = Duration::from_secs(1);
/// The time that the next node on the path has. Messages at that node are for a device on it, or
/// for one that has just left it.
const MAX_FLUSH_BEYOND: Duration = Duration::from_secs(5);

/// The path of the messages for one party, as this node knows it.
#[derive(Default)]
pub struct Path {
    /// The other node that messages were last sent to from here, and where some may still be in
    /// flight.
    sent_to: Option<NodeId>,
    flushed: Option<Flush>,
    /// The node that sent a `Flush` meanwhile, and waits for the reply.
    waiting_node: Option<NodeId>,
}

/// A `Flush` without a reply yet.
#[derive(Clone, Copy)]
struct Flush {
    node: NodeId,
    /// The version of the call when it was sent.
    version: u64,
    /// The end of the time for the reply, while the receiving device is connected.
    until: Timestamp,
}

impl CallState {
    fn path(&mut self, to: Role) -> &mut Path {
        &mut self.paths[to as usize]
    }

    /// Whether messages for this party are buffered until earlier ones have arrived.
    pub fn is_draining(&self, to: Role) -> bool {
        self.paths[to as usize].flushed.is_some()
    }

    pub(super) fn is_draining_any(&self) -> bool {
        self.is_draining(Role::Caller) || self.is_draining(Role::Callee)
    }

    /// Buffers a message until the old path is drained. A message that came on that path goes before
    /// the others.
    pub(super) fn buffer_behind(&mut self, relay: Relay) {
        let to = relay.from.other();
        if relay.given_back {
            self.buffer_for(to).put_returned(relay.signal, relay.payload);
        } else {
            self.buffer_for_lost(to, relay.signal, &relay.payload);
        }
    }

    /// Records that a message for this party is about to go to this node. Returns whether it may:
    /// not before messages on another path have arrived.
    pub(super) fn take_path(&mut self, to: Role, node: NodeId, context: &Context) -> bool {
        match self.path(to).sent_to {
            Some(earlier) if earlier != node => {
                self.flush(to, earlier, context.now);
                false
            }
            _ => {
                self.path(to).sent_to = Some(node).filter(|node| *node != context.node);
                true
            }
        }
    }

    /// Starts a flush for each party that the change from `before` moved to another node.
    pub(super) fn flush_moved(&mut self, before: &Call, context: &Context) {
        if !self.call.is_live() || self.call.is_ringing() {
            return;
        }
        let own = context.node;
        if before.is_ringing() && self.call.caller.link.node() == Some(own) {
            // Messages that the caller sent while the call rang may still be in flight to the node
            // where it was answered.
            let answered_on = self.call.answered_on().filter(|node| *node != own);
            self.path(Role::Callee).sent_to = answered_on;
        }
        for to in [Role::Caller, Role::Callee] {
            let from = to.other();
            let came_from = match from {
                // This node may have missed the answer, and messages of the device that gave it.
                Role::Callee if before.is_ringing() => self.call.answered_on(),
                Role::Caller if before.is_ringing() => None,
                Role::Caller | Role::Callee => before.party(from).link.node(),
            };
            let came_from = came_from.filter(|node| *node != own);
            let has_come = self.is_on(from, own);
            let sent_to = self.path(to).sent_to;
            let left = sent_to.filter(|node| !self.is_on(to, *node));
            if let Some(node) = came_from.filter(|_| has_come).or(left) {
                self.flush(to, node, context.now);
            }
            let has_moved = before.party(to).link.socket() != self.call.party(to).link.socket();
            if has_moved {
                // From now on a connected device waits for the buffered messages.
                self.await_flush(to, context.now + MAX_FLUSH);
            }
        }
    }

    /// Whether the device of a party is on this node.
    fn is_on(&self, role: Role, node: NodeId) -> bool {
        matches!(self.call.to_party(role), Route::Bound(_, at, _) if at == node)
    }

    fn flush(&mut self, to: Role, node: NodeId, now: Timestamp) {
        let Call { id: call, version, .. } = self.call;
        let path = self.path(to);
        if path.flushed.is_none() {
            let most = if path.waiting_node.is_some() { MAX_FLUSH_BEYOND } else { MAX_FLUSH };
            path.flushed = Some(Flush { node, version, until: now });
            self.await_flush(to, now + most);
            self.send(node, Message::Flush { call, version, to });
        }
    }

    /// From now on a pending flush has until then.
    fn await_flush(&mut self, to: Role, at: Timestamp) {
        if let Some(flush) = &mut self.path(to).flushed {
            flush.until = at;
            self.add(Effect::AwaitFlush { to, until: at });
        }
    }

    /// Puts messages that were unreceived on a node that their receiver has left before all buffered
    /// ones.
    pub(super) fn put_recalled(&mut self, relays: Vec<Relay>) {
        for to in [Role::Caller, Role::Callee] {
            let is_its = |relay: &&Relay| relay.from.other() == to;
            let messages = relays.iter().filter(is_its);
            let messages = messages.map(|relay| (relay.signal, relay.payload.clone()));
            self.buffer_for(to).put_recalled(messages);
        }
    }

    /// The old path is drained: buffered messages are sent, or returned to the node that waits for
    /// them.
    fn end_flush(&mut self, to: Role, context: &Context) {
        let path = self.path(to);
        let drained = path.flushed.take().map(|flush| flush.node);
        path.sent_to = path.sent_to.filter(|node| Some(*node) != drained);
        if let Some(waiting) = path.waiting_node {
            if let Some(beyond) = path.sent_to.filter(|node| *node != waiting) {
                return self.flush(to, beyond, context.now);
            }
            *path = Path::default();
            self.return_buffered(to, waiting);
            return self.send(waiting, Message::Flushed { call: self.call.id, to });
        }
        match self.call.to_party(to) {
            Route::Bound(..) => self.release(to, context),
            _ => self.return_for_lost(to, context),
        }
        self.settle_for_lost(to);
    }

    /// Sends the buffered messages of a party whose device is connected.
    pub(super) fn release(&mut self, to: Role, context: &Context) {
        for (signal, payload) in self.buffer_for(to).take().messages {
            let relay = self.relay_of(signal, payload, to.other());
            self.deliver(relay, context);
        }
    }

    /// Returns the buffered messages for a party to the node of their sender.
    pub(super) fn return_buffered(&mut self, to: Role, node: NodeId) {
        for (signal, payload) in self.buffer_for(to).take().messages {
            let relay = self.relay_of(signal, payload, to.other());
            self.send(node, Message::Relay(Relay { given_back: true, ..relay }));
        }
    }

    /// The node beyond this one on the path that the node `by` wants drained. Messages from this
    /// node to `by` arrive there before the reply.
    pub fn beyond(&self, to: Role, by: NodeId, version: u64) -> Option<NodeId> {
        let path = &self.paths[to as usize];
        path.sent_to.filter(|node| *node != by && !self.has_flushed_since(to, version))
    }

    /// Whether this node waits for a flush of its own that began in a version after this one: the
    /// sender has come here since.
    fn has_flushed_since(&self, to: Role, version: u64) -> bool {
        self.paths[to as usize].flushed.is_some_and(|flush| flush.version > version)
    }

    /// The node `by` had the sender of the messages for `to` in this version, and asks whether all
    /// messages on this path have arrived. The messages `recalled` were unreceived on the node
    /// beyond.
    pub fn flush_for(
        &mut self,
        to: Role,
        by: NodeId,
        version: u64,
        recalled: Vec<Relay>,
        now: Timestamp,
    ) {
        let call = self.call.id;
        if self.has_flushed_since(to, version) {
            // The node `by` is waited for in turn, directly or by way of others, and what it has
            // comes here. So later flushes wait for earlier ones, and never the other way.
            return self.send(by, Message::Flushed { call, to });
        }
        let beyond = self.beyond(to, by, version);
        self.path(to).sent_to = beyond;
        self.put_recalled(recalled);
        self.return_buffered(to, by);
        if !self.is_draining(to) && beyond.is_none() {
            return self.send(by, Message::Flushed { call, to });
        }
        self.send(by, Message::Flushing { call, to });
        self.path(to).waiting_node = Some(by);
        if let Some(node) = beyond {
            self.flush(to, node, now);
        }
    }

    /// The node `by` is alive and waits for another node itself.
    pub fn flushing(&mut self, to: Role, by: NodeId, now: Timestamp) {
        if self.path(to).flushed.is_some_and(|flush| flush.node == by) {
            self.await_flush(to, now + MAX_FLUSH_BEYOND + MAX_FLUSH);
        }
    }

    /// The node `by` has delivered or returned all messages for this party.
    pub fn flushed(&mut self, to: Role, by: NodeId, context: &Context) {
        if self.path(to).flushed.is_some_and(|flush| flush.node == by) {
            self.end_flush(to, context);
        }
    }

    /// The node that did not reply to a flush in time. While the party is disconnected, no device
    /// waits for the buffered messages.
    pub fn late_flush(&self, to: Role, now: Timestamp) -> Option<NodeId> {
        let is_there = matches!(self.call.to_party(to), Route::Bound(..));
        let late = self.paths[to as usize].flushed.filter(|flush| is_there && flush.until <= now);
        late.map(|flush| flush.node)
    }

    /// A flush has timed out: messages that have not arrived yet may be late. The messages `recalled`
    /// were unreceived on the silent node.
    pub fn give_up_flush(&mut self, to: Role, recalled: Vec<Relay>, context: &Context) {
        self.put_recalled(recalled);
        self.end_flush(to, context);
    }
}
