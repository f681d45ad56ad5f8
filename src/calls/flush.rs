//! Order across moves. While both devices stay where they are, all messages of a sender take one
//! path. After a device moves to another node, the next messages take another path, and could
//! overtake those that are still on the old one. Therefore the sender's node first drains the old
//! path: it sends a `Flush` after the last message, holds new messages, and continues when the
//! reply arrives. The node that receives the `Flush` returns its buffered messages, recalls its
//! unsent ones, and has the path beyond it drained before it replies.

use std::time::Duration;

use tracing::warn;

use super::{
    live::LiveCall,
    pending::Work,
    view::{Reach, View},
};
use crate::{
    call::{Call, Role, Route},
    cluster::{Message, Relay},
    ids::NodeId,
    time::Timestamp,
};

/// The longest time that messages are held for a silent node, which may be dead or cut off.
const MAX_FLUSH: Duration = Duration::from_secs(1);
/// The time that the next node on the path has. Messages at that node are for a device on it, or
/// for one that has just left it.
const MAX_FLUSH_BEYOND: Duration = Duration::from_secs(5);

/// The path of the messages for one party, as this node knows it.
#[derive(Default)]
pub struct Course {
    /// The other node that messages were last sent to from here, and where some may still be in
    /// flight.
    sent_to: Option<NodeId>,
    asked: Option<Asked>,
    /// The node that sent a `Flush` meanwhile, and waits for the reply.
    asker: Option<NodeId>,
}

/// The node that received a `Flush`, and has not replied yet.
struct Asked {
    node: NodeId,
    /// The end of the time for which messages are held, while the receiving device is connected.
    until: Timestamp,
}

impl View {
    /// Whether messages for this party are held until earlier ones have arrived.
    pub fn holds(&self, to: Role) -> bool {
        self.courses[to as usize].asked.is_some()
    }

    /// Holds a message until the old path is drained. A message that came on that path goes before
    /// the others.
    pub fn hold(&mut self, relay: &Relay) {
        let to = relay.from.other();
        if relay.given_back {
            self.waiting_for(to).put_given_back(relay.signal, &relay.payload);
        } else {
            self.wait(to, relay.signal, &relay.payload);
        }
    }

    /// Records that a message for this party is about to go to this node. Returns whether it may:
    /// not before messages on another path have arrived.
    pub fn takes_course(&mut self, to: Role, node: NodeId, reach: &Reach) -> bool {
        let own = reach.cluster.node();
        match self.courses[to as usize].sent_to {
            Some(earlier) if earlier != node => {
                self.flush(to, earlier, reach);
                false
            }
            _ => {
                self.courses[to as usize].sent_to = Some(node).filter(|node| *node != own);
                true
            }
        }
    }

    /// Starts a flush for each party that the change from `before` moved to another node.
    pub fn flush_moved(&mut self, before: &Call, reach: &Reach) {
        if !self.call.is_live() || self.call.is_ringing() {
            return;
        }
        let own = reach.cluster.node();
        if before.is_ringing() && self.call.caller.link.node() == Some(own) {
            // Messages that the caller sent while the call rang may still be in flight to the node
            // where it was answered.
            let answered_on = self.call.answered_on().filter(|node| *node != own);
            self.courses[Role::Callee as usize].sent_to = answered_on;
        }
        for to in [Role::Caller, Role::Callee] {
            let from = to.other();
            let came_from = before.party(from).link.node().filter(|node| *node != own);
            let has_come = !before.is_ringing() && self.is_on(from, own);
            let sent_to = self.courses[to as usize].sent_to;
            let left = sent_to.filter(|node| !self.is_on(to, *node));
            if let Some(node) = came_from.filter(|_| has_come).or(left) {
                self.flush(to, node, reach);
            }
            let has_moved = before.party(to).link.socket() != self.call.party(to).link.socket();
            if has_moved && self.holds(to) {
                // From now on a connected device waits for the held messages.
                self.hold_for(to, MAX_FLUSH, reach);
            }
        }
    }

    /// Whether the device of a party is on this node.
    pub fn is_on(&self, role: Role, node: NodeId) -> bool {
        matches!(self.call.to_party(role), Route::Bound(_, at, _) if at == node)
    }

    fn flush(&mut self, to: Role, node: NodeId, reach: &Reach) {
        let Call { id: call, version, .. } = self.call;
        let course = &mut self.courses[to as usize];
        if course.asked.is_none() {
            let most = if course.asker.is_some() { MAX_FLUSH_BEYOND } else { MAX_FLUSH };
            course.asked = Some(Asked { node, until: reach.now });
            self.hold_for(to, most, reach);
            reach.cluster.send(node, Message::Flush { call, version, to });
        }
    }

    /// From now on messages for this party are held for at most `most`.
    fn hold_for(&mut self, to: Role, most: Duration, reach: &Reach) {
        if let Some(asked) = &mut self.courses[to as usize].asked {
            asked.until = reach.now + most;
            let is_added = reach.pending.add(Work::Flush { call: self.call.id, to }, asked.until);
            debug_assert!(is_added, "there is always room for a flush");
        }
    }

    /// Puts messages that were not sent to that node yet before all held ones.
    pub fn take_back(&mut self, to: Role, node: NodeId, reach: &Reach) {
        let recalled = reach.cluster.recall(node, self.call.id, to);
        let messages = recalled.into_iter().map(|relay| (relay.signal, relay.payload));
        self.waiting_for(to).put_recalled(messages);
    }

    /// Whether messages are held here until an old path is drained.
    pub fn flushes(&self) -> bool {
        self.courses.iter().any(|course| course.asked.is_some())
    }

    /// The old path is drained: held messages are sent, or returned to the node that asked for
    /// them.
    fn end_flush(&mut self, to: Role, reach: &Reach) {
        let Course { asker, .. } = std::mem::take(&mut self.courses[to as usize]);
        if let Some(asker) = asker {
            self.return_waiting(to, asker, reach);
            return reach.cluster.send(asker, Message::Flushed { call: self.call.id, to });
        }
        match self.call.to_party(to) {
            Route::Bound(..) => self.release(to, reach),
            _ => self.give_back(to, reach),
        }
        self.settle_for_lost(to);
    }

    /// Sends the buffered messages of a party whose device is connected.
    pub fn release(&mut self, to: Role, reach: &Reach) {
        let waiting = self.waiting_for(to).take();
        for (signal, payload) in waiting.messages {
            let relay = self.relay(signal, payload, to.other());
            self.deliver(relay, reach);
        }
    }

    /// Returns the buffered messages for a party to the node of their sender.
    pub fn return_waiting(&mut self, to: Role, node: NodeId, reach: &Reach) {
        let waiting = self.waiting_for(to).take();
        for (signal, payload) in waiting.messages {
            let relay = self.relay(signal, payload, to.other());
            reach.cluster.send(node, Message::Relay(Relay { given_back: true, ..relay }));
        }
    }
}

impl LiveCall {
    /// The node `by` now has the sender of the messages for `to`, and asks whether all messages on
    /// this path have arrived.
    pub fn flush_for(&self, to: Role, by: NodeId, reach: &Reach) {
        let mut view = self.view();
        // Messages from this node to the asking one arrive there before the reply.
        let beyond = view.courses[to as usize].sent_to.take().filter(|node| *node != by);
        if let Some(node) = beyond {
            view.take_back(to, node, reach);
        }
        view.return_waiting(to, by, reach);
        let call = view.call.id;
        if !view.holds(to) && beyond.is_none() {
            return reach.cluster.send(by, Message::Flushed { call, to });
        }
        reach.cluster.send(by, Message::Flushing { call, to });
        view.courses[to as usize].asker = Some(by);
        if let Some(node) = beyond {
            view.flush(to, node, reach);
        }
    }

    /// The node `by` is alive and waits for another node itself.
    pub fn flushing(&self, to: Role, by: NodeId, reach: &Reach) {
        let mut view = self.view();
        if view.courses[to as usize].asked.as_ref().is_some_and(|asked| asked.node == by) {
            view.hold_for(to, MAX_FLUSH_BEYOND + MAX_FLUSH, reach);
        }
    }

    /// The node `by` has delivered or returned all messages for this party.
    pub fn flushed(&self, to: Role, by: NodeId, reach: &Reach) {
        let mut view = self.view();
        if view.courses[to as usize].asked.as_ref().is_some_and(|asked| asked.node == by) {
            view.end_flush(to, reach);
        }
    }

    /// A flush has timed out: messages that have not arrived yet may be late.
    pub fn give_up_flush(&self, reach: &Reach) {
        let mut view = self.view();
        for to in [Role::Caller, Role::Callee] {
            // While the party is disconnected, no device waits for the held messages.
            let is_there = matches!(view.call.to_party(to), Route::Bound(..));
            let asked = view.courses[to as usize].asked.as_ref();
            let late = asked.filter(|asked| is_there && asked.until <= reach.now);
            if let Some(node) = late.map(|asked| asked.node) {
                warn!(call = %view.call.id, peer = %node, "a node that a party has left did not reply to a flush: messages may arrive late");
                view.take_back(to, node, reach);
                view.end_flush(to, reach);
            }
        }
    }
}
