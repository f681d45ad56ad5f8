//! Order across moves. While both devices stay where they are, all that one says goes one way. When one
//! moves to another node, what it says next goes another way, and could overtake what is still on the old
//! one. So the node of the sender first has the old way flushed: it sends a question after the last
//! message, holds what comes meanwhile, and goes on when the answer is there. Who is asked gives back what
//! waits with it, takes back what has not left it, and has the way beyond flushed before it answers.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tracing::warn;

use super::{
    live::LiveCall,
    view::{Reach, View},
};
use crate::{
    call::{Call, Role, Route},
    cluster::{Message, Relay},
    ids::{CallId, NodeId},
    time::Timestamp,
};

/// How long messages are held at the most for a node that says nothing: it may be dead, or cut off.
const MAX_FLUSH: Duration = Duration::from_secs(1);
/// How long that node waits for the next one. Messages wait with it: they are for a device that is on the next
/// one, or has left it just now.
const MAX_FLUSH_BEYOND: Duration = Duration::from_secs(5);

/// The way of the messages for one party, as this node knows it.
#[derive(Default)]
pub struct Course {
    /// The other node that they were last sent to from here, and may still be on their way to.
    sent_to: Option<NodeId>,
    asked: Option<Asked>,
    /// The node that has asked meanwhile.
    asker: Option<NodeId>,
}

/// The node that was asked, and has not answered yet.
struct Asked {
    node: NodeId,
    /// How long messages are held for it, while there is somebody who waits for them.
    until: Timestamp,
}

/// When flushes have lasted too long.
#[derive(Default)]
pub struct Overdue(Mutex<BTreeSet<(Timestamp, CallId)>>);

impl Overdue {
    fn note(&self, id: CallId, at: Timestamp) {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        due.insert((at, id));
    }

    /// The next call with a flush that has had its time.
    pub fn next(&self, now: Timestamp) -> Option<CallId> {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, _) = due.first()?;
        if *at > now {
            return None;
        }
        due.pop_first().map(|(_, id)| id)
    }
}

impl View {
    /// Whether messages for this party are held, for others to arrive first.
    pub fn holds(&self, to: Role) -> bool {
        self.courses[to as usize].asked.is_some()
    }

    /// Keeps a message until the old way is flushed: before the others if it came on that way.
    pub fn hold(&mut self, relay: &Relay) {
        let to = relay.from.other();
        if relay.given_back {
            self.waiting_for(to).put_given_back(relay.signal, &relay.payload);
        } else {
            self.wait(to, relay.signal, &relay.payload);
        }
    }

    /// A message for this party is about to go to this node, this one or another. Answers whether it may:
    /// not before those have arrived that went elsewhere.
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

    /// Begins a flush wherever the change from `before` has a party on another node.
    pub fn flush_moved(&mut self, before: &Call, reach: &Reach) {
        if !self.call.is_live() || self.call.is_ringing() {
            return;
        }
        let own = reach.cluster.node();
        if before.is_ringing() && self.call.caller.link.node() == Some(own) {
            // What the caller sent while it rang may still be on its way to where it was answered.
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
                // From now on somebody waits for what is held.
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

    /// From now on messages for this party are held so long at the most.
    fn hold_for(&mut self, to: Role, most: Duration, reach: &Reach) {
        if let Some(asked) = &mut self.courses[to as usize].asked {
            asked.until = reach.now + most;
            reach.overdue.note(self.call.id, asked.until);
        }
    }

    /// Puts what has not left for that node before all that waits.
    pub fn take_back(&mut self, to: Role, node: NodeId, reach: &Reach) {
        let recalled = reach.cluster.recall(node, self.call.id, to);
        let messages = recalled.into_iter().map(|relay| (relay.signal, relay.payload));
        self.waiting_for(to).put_recalled(messages);
    }

    /// Whether messages are held here until an old way is flushed.
    pub fn flushes(&self) -> bool {
        self.courses.iter().any(|course| course.asked.is_some())
    }

    /// The way is clear: what was held goes on, or back to the node that asks for it.
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

    /// Sends what waits for a party, whose device is there, on its way.
    pub fn release(&mut self, to: Role, reach: &Reach) {
        let waiting = self.waiting_for(to).take();
        for (signal, payload) in waiting.messages {
            let relay = self.relay(signal, payload, to.other());
            self.deliver(relay, reach);
        }
    }

    /// Gives what waits for a party to the node of its sender.
    pub fn return_waiting(&mut self, to: Role, node: NodeId, reach: &Reach) {
        let waiting = self.waiting_for(to).take();
        for (signal, payload) in waiting.messages {
            let relay = self.relay(signal, payload, to.other());
            reach.cluster.send(node, Message::Relay(Relay { given_back: true, ..relay }));
        }
    }
}

impl LiveCall {
    /// The node `by` has the sender of the messages for `to` now, and asks whether all that came this
    /// way has arrived.
    pub fn flush_for(&self, to: Role, by: NodeId, reach: &Reach) {
        let mut view = self.view();
        // What this node has sent to the one that asks comes there before the answer.
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

    /// The node `by` lives, and waits for another itself.
    pub fn flushing(&self, to: Role, by: NodeId, reach: &Reach) {
        let mut view = self.view();
        if view.courses[to as usize].asked.as_ref().is_some_and(|asked| asked.node == by) {
            view.hold_for(to, MAX_FLUSH_BEYOND + MAX_FLUSH, reach);
        }
    }

    /// The node `by` has passed on, or given back, all that was sent to it for this party.
    pub fn flushed(&self, to: Role, by: NodeId, reach: &Reach) {
        let mut view = self.view();
        if view.courses[to as usize].asked.as_ref().is_some_and(|asked| asked.node == by) {
            view.end_flush(to, reach);
        }
    }

    /// A flush has had its time: what has not arrived by now may arrive late.
    pub fn give_up_flush(&self, reach: &Reach) {
        let mut view = self.view();
        for to in [Role::Caller, Role::Callee] {
            // Nobody waits for what is held while the party is away.
            let is_there = matches!(view.call.to_party(to), Route::Bound(..));
            let asked = view.courses[to as usize].asked.as_ref();
            let late = asked.filter(|asked| is_there && asked.until <= reach.now);
            if let Some(node) = late.map(|asked| asked.node) {
                warn!(call = %view.call.id, peer = %node, "a node that a party has left does not say what became of messages");
                view.take_back(to, node, reach);
                view.end_flush(to, reach);
            }
        }
    }
}
