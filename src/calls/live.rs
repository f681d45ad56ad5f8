//! A node's view of the calls of its sockets: the newest record seen, ringing sockets, buffered
//! messages.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tracing::warn;

use super::{
    Failure,
    held::{Full, Held},
    tally,
    view::{Reach, View},
};
use crate::{
    call::{Call, Device, News, Refusal, Role, Route, Signal, news},
    cluster::{Message, Relay},
    ids::{CallId, NodeId, SocketId, UserId},
    limits::buffers::Buffers,
    metrics::{self, Buffer, Limit},
    payload::Payload,
    time::Timestamp,
};

/// The time for which a node remembers a call that it no longer takes part in, so that a late,
/// older version is recognised.
const RETIRED_MEMORY: Duration = Duration::from_secs(10);

/// All calls that this node knows.
#[derive(Default)]
pub struct LiveCalls {
    index: Mutex<Index>,
    buffers: Buffers,
}

#[derive(Default)]
struct Index {
    calls: BTreeMap<CallId, Arc<LiveCall>>,
    /// The live call of each user.
    users: HashMap<UserId, CallId>,
    /// The calls that this node no longer takes part in, and when each may be forgotten.
    retired: HashMap<CallId, Timestamp>,
    /// When to forget retired calls, in order. A call that was kept in between is listed more than
    /// once.
    forget: VecDeque<(Timestamp, CallId)>,
}

/// One call, as this node knows it. Events of a call are sent to local sockets under its lock, so
/// that no socket gets a newer version before an older one.
pub struct LiveCall {
    id: CallId,
    view: Mutex<View>,
}

/// The result of receiving a message from another node.
pub enum Received {
    Done,
    /// The message was sent after a change of the record that this node has not seen.
    Outdated,
}

impl LiveCalls {
    /// Counts buffered messages in `buffers`.
    pub fn new(buffers: Buffers) -> Self {
        Self { index: Mutex::default(), buffers }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }

    /// The node's view of `call`. A new one is created if there is none, and kept while the call
    /// lives.
    pub fn open(&self, call: &Call) -> Arc<LiveCall> {
        let mut index = self.index();
        if let Some(live) = index.calls.get(&call.id) {
            return live.clone();
        }
        let live = Arc::new(LiveCall::new(call.clone(), &self.buffers));
        if call.is_live() {
            index.calls.insert(call.id, live.clone());
            for party in [&call.caller, &call.callee] {
                index.users.insert(party.user.clone(), call.id);
            }
        }
        live
    }

    pub fn get(&self, id: CallId) -> Option<Arc<LiveCall>> {
        self.index().calls.get(&id).cloned()
    }

    pub fn of_user(&self, user: &UserId) -> Option<Arc<LiveCall>> {
        let index = self.index();
        index.calls.get(index.users.get(user)?).cloned()
    }

    /// Records that `call` has ended, or that this node no longer takes part in it. It is
    /// remembered for a while from now on, whenever it changed and even if it was never in view, so
    /// that an older version is recognised.
    pub fn retire(&self, call: &Call, now: Timestamp) {
        let mut index = self.index();
        for party in [&call.caller, &call.callee] {
            if index.users.get(&party.user) == Some(&call.id) {
                index.users.remove(&party.user);
            }
        }
        let new = || Arc::new(LiveCall::new(call.clone(), &self.buffers));
        index.calls.entry(call.id).or_insert_with(new);
        index.retired.insert(call.id, now + RETIRED_MEMORY);
        index.forget.push_back((now + RETIRED_MEMORY, call.id));
    }

    /// Records that this node takes part in a live call, perhaps again.
    pub fn keep(&self, call: &Call) {
        let mut index = self.index();
        if index.retired.remove(&call.id).is_some() {
            for party in [&call.caller, &call.callee] {
                index.users.insert(party.user.clone(), call.id);
            }
        }
    }

    /// Whether a notification of `call` is so late that this node may have known a newer version
    /// and forgotten it.
    pub fn may_have_forgotten(&self, call: &Call, now: Timestamp) -> bool {
        now - call.updated_at >= RETIRED_MEMORY && self.get(call.id).is_none()
    }

    /// Removes the remains of retired calls whose time is over.
    pub fn forget_retired(&self, now: Timestamp) {
        let mut index = self.index();
        while let Some((_, id)) = index.forget.pop_front_if(|(at, _)| *at <= now) {
            if index.retired.get(&id).is_some_and(|until| *until <= now) {
                index.retired.remove(&id);
                index.calls.remove(&id);
            }
        }
    }

    /// All calls in view, by id.
    pub fn all(&self) -> Vec<Arc<LiveCall>> {
        self.index().calls.values().cloned().collect()
    }

    /// The calls after this id, at most `limit`.
    pub fn after(&self, id: Option<CallId>, limit: usize) -> Vec<Arc<LiveCall>> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        let index = self.index();
        let after = index.calls.range((from, Bound::Unbounded));
        after.take(limit).map(|(_, live)| live.clone()).collect()
    }
}

impl LiveCall {
    fn new(call: Call, buffers: &Buffers) -> Self {
        let held = || Held::new(buffers.holder(Buffer::Calls));
        Self {
            id: call.id,
            view: Mutex::new(View {
                awaits_answer: call.is_ringing(),
                call,
                rung: Vec::new(),
                unanswered: Vec::new(),
                replay: held(),
                ring_nodes: None,
                inherited: 0,
                early: HashMap::new(),
                waiting: [held(), held()],
                courses: Default::default(),
            }),
        }
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock()
    }

    pub fn id(&self) -> CallId {
        self.id
    }

    pub fn snapshot(&self) -> Call {
        self.view().call.clone()
    }

    /// Whether the predicate holds for the newest version seen here.
    pub fn is(&self, so: impl FnOnce(&Call) -> bool) -> bool {
        self.peek(so)
    }

    /// The result of `say` for the newest version seen here.
    pub fn peek<T>(&self, say: impl FnOnce(&Call) -> T) -> T {
        say(&self.view().call)
    }

    /// Whether a local socket rings.
    pub fn rings_here(&self) -> bool {
        let view = self.view();
        view.call.is_ringing() && !view.rung.is_empty()
    }

    /// Notifies the caller's socket of the call that it has placed, unless a newer version was seen
    /// since.
    pub fn tell_placed(&self, version: u64, news: News, socket: SocketId, reach: &Reach) -> bool {
        let view = self.view();
        let is_news = view.call.version == version;
        if is_news {
            view.tell(socket, news, Role::Caller, reach);
        }
        is_news
    }

    /// Removes everything that is kept for a socket that is gone.
    pub fn forget_device(&self, socket: SocketId) {
        let mut view = self.view();
        view.rung.retain(|rung| *rung != socket);
        view.early.remove(&socket);
    }

    /// Rings those of `sockets` that do not ring yet, and sends them the caller's messages so far.
    /// Does nothing if the call no longer rings. The node `told_by` knows that it rings here.
    pub fn ring(&self, sockets: &[SocketId], told_by: Option<NodeId>, reach: &Reach) {
        let mut view = self.view();
        if !view.call.is_ringing() {
            return;
        }
        let is_first = view.rung.is_empty();
        for socket in sockets {
            if !view.rung.contains(socket) && !view.call.is_busy_on(*socket) {
                view.rung.push(*socket);
                view.tell(*socket, News::Incoming, Role::Callee, reach);
                for (signal, payload) in &view.replay.messages {
                    view.pass_on(*signal, payload.clone(), Role::Caller, *socket, reach);
                }
            }
        }
        let knows = |node: &NodeId| *node == reach.cluster.node() || Some(*node) == told_by;
        let callers = view.call.caller.link.node().filter(|node| !knows(node));
        if let Some(node) = callers.filter(|_| is_first && !view.rung.is_empty()) {
            let have = view.replay.messages.len();
            reach.cluster.send(node, Message::Rings { call: self.id, have });
        }
    }

    /// Records the nodes where the call rings; this node is the caller's.
    pub fn rings_on(&self, nodes: &[NodeId], reach: &Reach) {
        let mut view = self.view();
        if view.ring_nodes.is_some() {
            // A node that is no longer in the list may still have to receive messages in flight. A
            // new node reports what it lacks as soon as it rings, or gets everything
            // (`rings_also_on`).
            return;
        }
        let own = reach.cluster.node();
        view.ring_nodes = Some(nodes.iter().copied().filter(|node| *node != own).collect());
        view.inherited = view.replay.messages.len();
    }

    /// Whether this node, where the caller is, does not know where the call rings.
    pub fn lacks_ring_nodes(&self) -> bool {
        self.view().ring_nodes.is_none()
    }

    /// The call rings on another node too, which has the first `have` messages of the caller.
    pub fn rings_also_on(&self, node: NodeId, have: usize, reach: &Reach) {
        let mut view = self.view();
        let Some(ring_nodes) = &mut view.ring_nodes else { return };
        if ring_nodes.contains(&node) {
            return;
        }
        ring_nodes.push(node);
        for (signal, payload) in view.replay.messages.iter().skip(have) {
            let relay = view.relay_to_ringing(*signal, payload.clone());
            reach.cluster.send(node, Message::Relay(relay));
        }
    }

    /// Takes over the messages that the caller sent before it moved to this node, and sends them to
    /// devices that began to ring here meanwhile.
    pub fn take_over(&self, messages: Vec<(Signal, Payload)>, reach: &Reach) {
        let mut view = self.view();
        if view.ring_nodes.is_none() {
            // The reply of the commit that moved the caller here was lost: all that is kept came from its earlier
            // node, and rang here already.
            view.inherited = view.replay.messages.len();
        }
        for (signal, payload) in messages.iter().skip(view.inherited) {
            view.pass_to_ringing(*signal, payload, reach);
        }
        let until = view.call.deadline();
        let own = view.replay.take();
        let sent_here = own.messages.into_iter().skip(view.inherited);
        view.inherited = messages.len();
        for (signal, payload) in messages.into_iter().chain(sent_here) {
            if view.replay.keep_for_replay(signal, &payload, until).is_err() {
                metrics::LIMITS.of(Limit::Waiting).increment(1);
                return warn!(call = %self.id, "the buffer for a ringing call is full: messages of the caller are dropped");
            }
        }
    }

    /// Processes a newer version and sends the derived events to local sockets. An older version is
    /// dropped. The answer of `answered` has won, and its device has been marked lost since.
    pub fn observe(&self, newer: &Call, answered: Option<SocketId>, reach: &Reach) {
        let mut view = self.view();
        if !newer.succeeds(&view.call) {
            return;
        }
        let before = std::mem::replace(&mut view.call, newer.clone());
        tally::keeps_its_end(&before, newer);
        view.rung.retain(|rung| Some(*rung) != answered);
        for (socket, news) in news(&before, newer, &view.rung, &view.unanswered) {
            view.tell(socket, news, role_on(socket, &before, newer), reach);
        }
        if newer.is_ringing() {
            let View { rung, unanswered, .. } = &mut *view;
            rung.retain(|socket| !newer.is_busy_on(*socket) || unanswered.contains(socket));
            view.hand_over(reach);
        } else {
            view.rung.clear();
            drop(view.replay.take());
            view.ring_nodes = None;
        }
        if !newer.is_live() {
            view.unanswered.clear();
            view.early.clear();
            for waiting in &mut view.waiting {
                drop(waiting.take());
            }
            view.courses = Default::default();
        }
        for role in [Role::Caller, Role::Callee] {
            view.recall(&before, role, reach);
        }
        view.flush_moved(&before, reach);
        for role in [Role::Caller, Role::Callee] {
            match newer.to_party(role) {
                Route::Bound(..) if !view.holds(role) => view.release(role, reach),
                _ => view.give_back(role, reach),
            }
            view.settle_for_lost(role);
        }
    }

    /// Records that the outcome of the end that `socket` sent is unknown; the call was `before`. If
    /// it was applied, the socket is notified like the others.
    pub fn leave_unanswered(&self, socket: SocketId, before: &Call, reach: &Reach) {
        let mut view = self.view();
        if view.call.is_live() {
            view.unanswered.retain(|other| *other != socket);
            view.unanswered.push(socket);
            if view.call.is_busy_on(socket) && !view.rung.contains(&socket) {
                view.rung.push(socket);
            }
            return;
        }
        if view.call.ended_by() != Some(socket) && !view.call.is_busy_on(socket) {
            // The socket was notified with the others.
            return;
        }
        let told = news(before, &view.call, &[socket], &[socket]);
        for (_, news) in told.into_iter().filter(|(to, _)| *to == socket) {
            view.tell(socket, news, role_on(socket, before, &view.call), reach);
        }
    }

    /// The ack for the event of `socket` will report the outcome. Returns whether the outcome of an
    /// earlier event was unknown.
    pub fn answer(&self, socket: SocketId) -> bool {
        let mut view = self.view();
        let before = view.unanswered.len();
        view.unanswered.retain(|other| *other != socket);
        view.unanswered.len() < before
    }

    /// Whether this node must wait before it stops: a device that was lost here has not returned, a
    /// message is buffered for one, or the fate of messages is unknown.
    pub fn awaits_device(&self, node: NodeId) -> bool {
        let view = self.view();
        let is_lost_here = |role| {
            let link = &view.call.party(role).link;
            link.lost_until().is_some() && link.node() == Some(node)
        };
        let waits = view.waiting.iter().any(|held| !held.messages.is_empty());
        let is_lost_here = is_lost_here(Role::Caller) || is_lost_here(Role::Callee);
        view.call.is_live() && (waits || is_lost_here || view.flushes())
    }

    /// Relays a message or buffers it, as the rules say. A first answer is not relayed yet, because
    /// its sender must win the call first.
    pub fn relay(
        &self,
        device: &Device,
        signal: Signal,
        payload: &Payload,
        reach: &Reach,
    ) -> Result<Route, Failure> {
        let mut view = self.view();
        let route = match view.call.route(device, signal) {
            Err(Refusal::Over) => return Err(Refusal::NotInCall.into()),
            other => other?,
        };
        let full = |full| Failure::full(full, reach.now);
        let until = view.call.deadline();
        // The answer may have won without a reply to its device: then it was not relayed.
        let waits_for_answer = matches!(route, Route::AfterAnswer(_))
            || (signal == Signal::Candidate && view.early.contains_key(&device.socket));
        if !view.has_room(&route, payload, reach) {
            return Err(full(Full::Budget));
        }
        match route {
            Route::Ringing => {
                view.replay.keep_for_replay(signal, &payload.untracked(), until).map_err(full)?;
                let is_taken = view.pass_to_ringing(signal, payload, reach);
                if !is_taken && view.ring_nodes.as_ref().is_none_or(Vec::is_empty) {
                    // No device rings. Devices that join get what is kept here.
                    payload.settle();
                }
                for node in view.ring_nodes.iter().flatten() {
                    let relay = view.relay_to_ringing(signal, payload.clone());
                    reach.cluster.send(*node, Message::Relay(reach.mark(relay)));
                }
            }
            _ if waits_for_answer => {
                view.keep_early(device.socket, signal, &payload.untracked(), until)
                    .map_err(full)?;
                payload.settle();
            }
            Route::Bound(to, ..) if !view.holds(to) => {
                let relay = view.relay(signal, payload.clone(), to.other());
                view.deliver(reach.mark(relay), reach);
            }
            Route::Bound(to, ..) | Route::WhenBack(to) => {
                view.waiting_for(to).keep_for_lost(signal, payload, until).map_err(full)?;
                view.settle_for_lost(to);
            }
            Route::Answers(_) | Route::AfterAnswer(_) => {}
        }
        Ok(route)
    }

    /// Processes a message that another node relays.
    pub fn receive(&self, relay: Relay, reach: &Reach) -> Received {
        let mut view = self.view();
        if relay.version > view.call.version {
            return Received::Outdated;
        }
        if !view.call.is_ringing() {
            // Of the nodes that received it while the call rang, one relays it: the node where the
            // call was answered.
            if !relay.to_ringing || view.call.answered_on() == Some(reach.cluster.node()) {
                // Messages relayed by another node were sent before those that are held here.
                let given_back = relay.given_back || view.holds(relay.from.other());
                view.deliver(Relay { given_back, ..relay }, reach);
            }
            return Received::Done;
        }
        let until = view.call.deadline();
        let Relay { signal, payload, .. } = relay;
        if view.replay.keep_for_replay(signal, &payload, until).is_err() {
            metrics::LIMITS.of(Limit::Waiting).increment(1);
            warn!(call = %self.id, "the buffer for a ringing call is full: a message is not kept for late devices");
        } else if view.ring_nodes.is_some() {
            // The message was in flight while the caller moved here.
            let place = view.inherited;
            view.replay.messages.make_contiguous()[place..].rotate_right(1);
            view.inherited += 1;
        }
        view.pass_to_ringing(signal, &payload, reach);
        Received::Done
    }

    /// Releases the candidates that waited for the answer of `device`, and drops those of devices
    /// whose answer came too late.
    pub fn release_early(&self, device: &Device, reach: &Reach) {
        let mut view = self.view();
        let own = view.early.remove(&device.socket);
        let own = own.map(|held| held.messages).unwrap_or_default();
        view.early.clear();
        match view.call.to_party(Role::Caller) {
            Route::Bound(..) => {
                for (signal, payload) in own {
                    let relay = view.relay(signal, payload, Role::Callee);
                    view.deliver(relay, reach);
                }
            }
            _ => {
                for (signal, payload) in own {
                    view.wait(Role::Caller, signal, &payload);
                }
            }
        }
    }
}

/// The party of a socket that takes part in the call.
fn role_on(socket: SocketId, before: &Call, after: &Call) -> Role {
    let is_callers = [before, after].iter().any(|call| call.caller.link.is_on(socket));
    if is_callers { Role::Caller } else { Role::Callee }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::fixtures::ringing;

    #[test]
    fn an_end_that_is_heard_late_is_remembered_as_long_as_any() {
        let (calls, call) = (LiveCalls::default(), ringing());
        calls.open(&call);
        let heard_at = call.updated_at + 6 * RETIRED_MEMORY;
        calls.retire(&call, heard_at);
        calls.forget_retired(heard_at + RETIRED_MEMORY / 2);
        assert!(calls.get(call.id).is_some());
        calls.forget_retired(heard_at + RETIRED_MEMORY);
        assert!(calls.get(call.id).is_none());
    }

    #[test]
    fn a_call_that_came_back_in_between_is_remembered_as_long_from_its_end() {
        let (calls, call) = (LiveCalls::default(), ringing());
        calls.open(&call);
        let left_at = call.updated_at;
        calls.retire(&call, left_at);
        calls.keep(&call);
        let ended_at = left_at + RETIRED_MEMORY;
        calls.retire(&call, ended_at);
        calls.forget_retired(ended_at + RETIRED_MEMORY / 2);
        assert!(calls.get(call.id).is_some());
        calls.forget_retired(ended_at + RETIRED_MEMORY);
        assert!(calls.get(call.id).is_none());
    }
}
