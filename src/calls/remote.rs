//! What other nodes send: records that they changed, messages that they relay, and the loss of a
//! node.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{
    Calls,
    live::LiveCall,
    state::{Arrival, CallState, Context},
    sweeper::AT_ONCE,
};
use crate::{
    call::{Binding, Call, Device, Event, Link, Role},
    cluster::{Departed, Inbound, Message, Relay, Unavailable},
    ids::{CallId, NodeId, UserId},
    metrics::Path,
};

/// The longest time that a stopping node waits for devices that have not reconnected elsewhere.
const MAX_HAND_OVER: Duration = Duration::from_secs(5);
const HAND_OVER_POLL: Duration = Duration::from_millis(20);
/// The most attempts to load a record that a message waits for.
const LOAD_ATTEMPTS: usize = 20;
const LOAD_PAUSE: Duration = Duration::from_millis(100);

impl Calls {
    /// Processes the input from the cluster in order, until the inbox ends.
    pub async fn run_inbox(&self, mut inbox: mpsc::Receiver<Inbound>) {
        while let Some(inbound) = inbox.recv().await {
            let taken = match inbound {
                Inbound::Message(from, message) => self.receive(from, message).await,
                Inbound::Departed(node, users) => self.handle_departed(node, users).await,
                Inbound::Reset => {
                    self.note_reset();
                    Ok(())
                }
            };
            if let Err(error) = taken {
                warn!(%error, "input from the cluster could not be processed");
            }
        }
    }

    /// Waits until the devices that were lost here have reconnected elsewhere or are too late, and
    /// until their messages have arrived: before that, messages for them may be in flight to this
    /// node, and other nodes may ask for theirs. Waits no longer than the closing of connections
    /// took.
    pub async fn hand_over(&self, window: Duration) {
        let handed_over = async {
            while self.live.all().iter().any(|live| live.state().awaits_device(self.node())) {
                tokio::time::sleep(HAND_OVER_POLL).await;
            }
        };
        if tokio::time::timeout(window.min(MAX_HAND_OVER), handed_over).await.is_err() {
            info!("some devices have not reconnected yet: this node no longer waits for them");
        }
    }

    /// A node is dead: devices on it are marked lost. Messages of other nodes wait meanwhile, so
    /// many users are handled concurrently.
    async fn handle_departed(&self, node: NodeId, users: Vec<Departed>) -> Result<(), Unavailable> {
        let mut seen_off = Vec::with_capacity(users.len());
        let mut result = Ok(());
        for some in users.chunks(AT_ONCE) {
            let lost = some.iter().map(|Departed { edge, call }| {
                self.announce([edge.clone()]);
                // The dead node may have changed a call, and died before it announced the presence
                // of the other party.
                if let Some(call) = call {
                    self.announce_parties_later(call);
                }
                self.mark_lost_on(node, &edge.user, call.clone())
            });
            for (departed, lost) in some.iter().zip(join_all(lost).await) {
                match lost {
                    Ok(()) => seen_off.push(departed.edge.user.clone()),
                    Err(error) => result = Err(error),
                }
            }
        }
        self.cluster.acknowledge_eviction(node, &seen_off).await?;
        result
    }

    /// Marks the device of `user` in this call lost, if it was on that node.
    pub(super) async fn mark_lost_on(
        &self,
        node: NodeId,
        user: &UserId,
        call: Option<Call>,
    ) -> Result<(), Unavailable> {
        let Some(call) = call else { return Ok(()) };
        if !call.is_live() {
            // The dead node may have ended the call, and died before the row was written.
            self.recorder.record(&call);
            return Ok(());
        }
        let Some(role) = call.role_of(user) else { return Ok(()) };
        let device = match &call.party(role).link {
            Link::Bound(Binding { node: at, socket, device, since, .. }) if *at == node => Device {
                user: user.clone(),
                node,
                socket: *socket,
                id: device.clone(),
                connected_at: since.unwrap_or(call.created_at),
            },
            Link::Open | Link::Bound(_) | Link::Lost { .. } => return Ok(()),
        };
        self.attempt_transition(call, &Event::Gone { device, may_return: true }).await.map(drop)
    }

    async fn receive(&self, from: NodeId, message: Message) -> Result<(), Unavailable> {
        match message {
            Message::Call(call) => {
                let _span = self.trace_news(from, &call);
                if self.live.may_have_forgotten(&call) {
                    if let Some(call) = self.load_patiently(call.id).await? {
                        self.apply_record(&call).await?;
                    }
                    return Ok(());
                }
                // The node that places a call knows which nodes it has notified.
                let is_placing = call.is_as_placed() && call.caller.link.node() == Some(from);
                self.apply_record_from(is_placing.then_some(from), &call).await?;
            }
            Message::Rings { call, have } => {
                self.change_known(call, |state, _| state.rings_also_on(from, have));
            }
            Message::Kept { call, messages } => {
                self.change_known(call, |state, _| state.take_over(messages));
            }
            Message::Flush { call, version, to } => self.flush_for(call, version, to, from).await?,
            Message::Flushing { call, to } => {
                self.change_known(call, |state, context| state.flushing(to, from, context.now));
            }
            Message::Flushed { call, to } => {
                self.change_known(call, |state, context| state.flushed(to, from, context));
            }
            Message::Relay(relay) => {
                let _span = self.trace_relay(from, &relay);
                self.relay_on(relay).await?;
            }
            Message::Disconnect(user) => self.sink.disconnect(&user),
            Message::Void | Message::Dropped { .. } => {}
            Message::Presence(edge) => {
                self.watchers.announce(&edge, &*self.sink, self.clock.now());
            }
        }
        Ok(())
    }

    /// [`Calls::change`], if this node knows the call.
    fn change_known(&self, id: CallId, decide: impl FnOnce(&mut CallState, &Context)) {
        if let Some(live) = self.live.get(id) {
            self.change(&live, decide);
        }
    }

    /// Another node asks whether all messages for a party that came here have arrived.
    async fn flush_for(
        &self,
        call: CallId,
        version: u64,
        to: Role,
        by: NodeId,
    ) -> Result<(), Unavailable> {
        let Some(live) = self.live.get(call) else {
            self.cluster.send(by, Message::Flushed { call, to });
            return Ok(());
        };
        if live.is(|seen| seen.version < version)
            && let Some(call) = self.cluster.load(call).await?
        {
            self.apply_record(&call).await?;
        }
        self.change(&live, |state, context| {
            let beyond = state.beyond(to, by, version);
            let recalled = beyond.map(|node| self.cluster.recall(node, call, to));
            state.flush_for(to, by, version, recalled.unwrap_or_default(), context.now);
        });
        Ok(())
    }

    /// The time for the reply to a flush is over.
    pub(super) fn give_up_flush(&self, call: CallId, to: Role) {
        self.change_known(call, |state, context| {
            let Some(node) = state.late_flush(to, context.now) else { return };
            warn!(%call, peer = %node, "a node that a party has left did not reply to a flush: messages may arrive late");
            state.give_up_flush(to, self.cluster.recall(node, call, to), context);
        });
    }

    /// Relays a message from another node. If the message is ahead of the version known here, the
    /// record is read first.
    async fn relay_on(&self, relay: Relay) -> Result<(), Unavailable> {
        let relay = match self.live.get(relay.call) {
            Some(live) => match self.receive_relay(&live, relay) {
                Ok(()) => return Ok(()),
                Err(outdated) => outdated,
            },
            None => relay,
        };
        let Some(call) = self.load_patiently(relay.call).await? else {
            debug!(call = %relay.call, "a message for a call that is gone");
            return Ok(());
        };
        self.apply_record(&call).await?;
        if let Some(live) = self.live.get(relay.call)
            && self.receive_relay(&live, relay).is_err()
        {
            debug!(call = %call.id, "a message of a version that the shared state has lost");
        }
        Ok(())
    }

    fn receive_relay(&self, live: &LiveCall, relay: Relay) -> Result<(), Relay> {
        let mut state = live.state();
        let context = self.context(state.call());
        let arrival = |received_us| Arrival { received_us, path: Path::Remote, trace: None };
        let arrival = relay.received_us.map(arrival);
        let received = state.receive(relay, &context);
        self.perform(&mut state, &context, arrival);
        received
    }

    /// Loads a record with retries, because a message that waits for it would be lost otherwise.
    async fn load_patiently(&self, id: CallId) -> Result<Option<Call>, Unavailable> {
        for _ in 1..LOAD_ATTEMPTS {
            if let Ok(found) = self.cluster.load(id).await {
                return Ok(found);
            }
            tokio::time::sleep(LOAD_PAUSE).await;
        }
        self.cluster.load(id).await
    }

    /// Processes a record that another node has changed.
    pub(super) async fn apply_record(&self, call: &Call) -> Result<(), Unavailable> {
        self.apply_record_from(None, call).await
    }

    /// The same; the node `reported_by` then knows that the call rings here.
    async fn apply_record_from(
        &self,
        reported_by: Option<NodeId>,
        call: &Call,
    ) -> Result<(), Unavailable> {
        if !call.is_live() {
            self.recorder.ended_elsewhere(call);
        } else if self.has_ended_here(call) {
            debug!(call = %call.id, "a call was restored as live although its end is known here");
            return Ok(());
        }
        self.find_ring_nodes(call).await?;
        self.observe(call, call);
        self.ring_here(call, reported_by);
        // This node may know a newer version than the received one.
        let newest = self.live.get(call.id).map(|live| live.snapshot());
        self.reclaim(newest.as_ref().unwrap_or(call)).await
    }

    /// Reads where a ringing call rings, if its caller is here and that is not known: the reply of the commit that
    /// bound the caller to this node was lost.
    async fn find_ring_nodes(&self, call: &Call) -> Result<(), Unavailable> {
        let is_here = call.is_ringing()
            && call.caller.link.node() == Some(self.node())
            && call.caller.link.socket().is_some();
        if is_here && self.live.get(call.id).is_some_and(|live| live.state().lacks_ring_nodes()) {
            let nodes = self.cluster.nodes_of(&call.callee.user).await?;
            let live = self.live.open(call);
            self.change(&live, |state, context| state.rings_on(&nodes, context));
        }
        Ok(())
    }

    /// Rings the local devices of the callee, if the call rings.
    pub(super) fn ring_here(&self, call: &Call, reported_by: Option<NodeId>) {
        if call.is_ringing() {
            let sockets = self.joined_sockets_of(&call.callee.user);
            let live = self.live.open(call);
            self.change(&live, |state, context| state.ring(&sockets, reported_by, context));
        }
    }

    /// Sends the record to the other nodes that need it: those with a party's device, or that had
    /// it until this change, and while the call rings those with a socket of the callee.
    pub(super) fn send_record(&self, before: &Call, after: &Call, callee_nodes: &[NodeId]) {
        let parties = [&before.caller, &before.callee, &after.caller, &after.callee];
        let bound = parties.into_iter().filter_map(|party| party.link.node());
        let ringing = callee_nodes.iter().copied().filter(|_| before.is_ringing());
        let mut nodes: BTreeSet<NodeId> = bound.chain(ringing).collect();
        nodes.remove(&self.node());
        for node in nodes {
            self.cluster.send(node, Message::Call(Box::new(after.clone())));
        }
    }
}
