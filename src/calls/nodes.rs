//! What nodes tell each other about calls.

use std::collections::BTreeSet;

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{Calls, live::Received};
use crate::{
    call::{Call, Role},
    cluster::{Message, Relay, Unavailable},
    ids::NodeId,
};

impl Calls {
    /// Takes what other nodes send, in order, until there are none any more.
    pub async fn run_inbox(&self, mut inbox: mpsc::Receiver<(NodeId, Message)>) {
        while let Some((from, message)) = inbox.recv().await {
            if let Err(error) = self.receive(from, message).await {
                warn!(%error, node = %from, "a message of another node could not be carried out");
            }
        }
    }

    async fn receive(&self, from: NodeId, message: Message) -> Result<(), Unavailable> {
        match message {
            Message::Call(call) => {
                self.observe(&call, &call);
                self.ring_here(&call);
            }
            Message::Rings { call } => {
                if let Some(live) = self.live.get(call) {
                    live.rings_also_on(from, &self.reach());
                }
            }
            Message::Kept { call, messages } => {
                if let Some(live) = self.live.get(call) {
                    live.take_over(messages);
                }
            }
            Message::Relay(relay) => self.pass_on(relay).await?,
            Message::Presence(edge) => {
                self.watchers.announce(&edge, &*self.outlet, self.clock.now());
            }
        }
        Ok(())
    }

    /// Passes a message on that came from another node. If it is ahead of what is known here of its
    /// call, the record is looked up first.
    async fn pass_on(&self, relay: Relay) -> Result<(), Unavailable> {
        if let Some(live) = self.live.get(relay.call)
            && let Received::Done = live.receive(relay.clone(), &self.reach())
        {
            return Ok(());
        }
        let Some(call) = self.cluster.load(relay.call).await? else {
            debug!(call = %relay.call, "a message for a call that is gone");
            return Ok(());
        };
        self.observe(&call, &call);
        self.ring_here(&call);
        if let Some(live) = self.live.get(relay.call) {
            live.receive(relay, &self.reach());
        }
        Ok(())
    }

    /// Takes the change from `before` to `after` in: tells the sockets here, and keeps the call in
    /// view only while it concerns this node.
    pub(super) fn observe(&self, before: &Call, after: &Call) {
        let live = self.live.open(before);
        live.observe(after, &self.reach());
        let is_here = |role| after.party(role).link.node() == Some(self.node());
        let concerns = after.is_ringing() || is_here(Role::Caller) || is_here(Role::Callee);
        if !after.is_live() || !concerns {
            self.live.retire(after);
        }
    }

    /// Rings the devices of the callee on this node, if the call rings.
    pub(super) fn ring_here(&self, call: &Call) {
        if call.is_ringing() {
            let sockets = self.outlet.sockets_of(&call.callee.user);
            self.live.open(call).ring(&sockets, &self.reach());
        }
    }

    /// Sends the record to the other nodes that it concerns: those that hold a party's device, or
    /// held it until this change, and while it rings those that hold a socket of the callee.
    pub(super) fn spread(&self, before: &Call, after: &Call, callee_nodes: &[NodeId]) {
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
