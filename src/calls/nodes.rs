//! What nodes tell each other about calls.

use std::{collections::BTreeSet, time::Duration};

use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::{
    Calls, Failure,
    live::Received,
    view::{Origin, Reach},
};
use crate::{
    call::{Binding, Call, Device, Event, Link, Role},
    cluster::{Departed, Inbound, Message, Relay, Unavailable},
    ids::{NodeId, UserId},
    metrics::{self, Invariant, Path},
};

/// How long a node that stops stays at the most for devices that are not back elsewhere yet.
const MAX_HAND_OVER: Duration = Duration::from_secs(5);
const HAND_OVER_POLL: Duration = Duration::from_millis(20);

impl Calls {
    /// Takes what comes from the cluster, in order, until nothing can come any more.
    pub async fn run_inbox(&self, mut inbox: mpsc::Receiver<Inbound>) {
        while let Some(inbound) = inbox.recv().await {
            let taken = match inbound {
                Inbound::Message(from, message) => self.receive(from, message).await,
                Inbound::Departed(node, users) => self.see_off(node, users).await,
                Inbound::Reset => self.start_over().await,
            };
            if let Err(error) = taken {
                warn!(%error, "news of the cluster could not be carried out");
            }
        }
    }

    /// Waits until the devices that were lost here are back elsewhere, or too late: until then there
    /// may be messages for them on the way here. Not longer than the closing of connections took.
    pub async fn hand_over(&self, window: Duration) {
        let handed_over = async {
            while self.live.all().iter().any(|live| live.awaits_device(self.node())) {
                tokio::time::sleep(HAND_OVER_POLL).await;
            }
        };
        if tokio::time::timeout(window.min(MAX_HAND_OVER), handed_over).await.is_err() {
            info!("some devices are not back yet: this node does not wait for them any longer");
        }
    }

    /// A node is dead: the parties whose devices were on it have lost them.
    async fn see_off(&self, node: NodeId, users: Vec<Departed>) -> Result<(), Unavailable> {
        let mut seen_off = Vec::with_capacity(users.len());
        let mut result = Ok(());
        for Departed { edge, call } in users {
            let user = edge.user.clone();
            self.announce([edge]);
            match self.lose_device_on(node, &user, call).await {
                Ok(()) => seen_off.push(user),
                Err(error) => result = Err(error),
            }
        }
        self.cluster.seen_off(node, &seen_off).await?;
        result
    }

    /// If the device of `user` in this call was on that node, it is lost.
    async fn lose_device_on(
        &self,
        node: NodeId,
        user: &UserId,
        call: Option<Call>,
    ) -> Result<(), Unavailable> {
        let Some(call) = call.filter(Call::is_live) else { return Ok(()) };
        let Some(role) = call.role_of(user) else { return Ok(()) };
        let device = match &call.party(role).link {
            Link::Bound(Binding { node: at, socket, device, .. }) if *at == node => {
                Device { user: user.clone(), node, socket: *socket, id: device.clone() }
            }
            Link::Open | Link::Bound(_) | Link::Lost { .. } => return Ok(()),
        };
        match self.transition(call, &Event::Gone { device, may_return: true }).await {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(_) => Err(Unavailable),
        }
    }

    /// The cluster has forgotten this node, or news of it were lost: says again who is here, and
    /// looks every call up.
    async fn start_over(&self) -> Result<(), Unavailable> {
        metrics::RESETS.increment(1);
        let devices: Vec<Device> = self.devices().values().cloned().collect();
        info!(devices = devices.len(), "this node tells the cluster again who is here");
        for device in &devices {
            let edge = self.cluster.attach(&device.user, device.socket).await?;
            self.announce(edge);
        }
        let watched = self.watchers.start_over();
        let edges = self.cluster.watch(&watched).await?;
        for edge in &edges {
            self.watchers.announce(edge, &*self.outlet, self.clock.now());
        }
        self.look_up().await?;
        for device in &devices {
            self.welcome(device).await?;
        }
        Ok(())
    }

    /// Compares each call in view with its record: a message may have been lost, never the record.
    /// A record that is gone while a device of the call is here is put back.
    pub(super) async fn look_up(&self) -> Result<(), Unavailable> {
        for live in self.live.all() {
            let seen = live.snapshot();
            if !seen.is_live() {
                continue;
            }
            match self.cluster.load(seen.id).await? {
                Some(call) if call.version > seen.version => {
                    self.observe(&seen, &call);
                    self.ring_here(&call);
                }
                Some(call) if call.version < seen.version => {
                    metrics::violated(Invariant::VersionBack);
                    error!(call = %call.id, "the record of a call is older than it was");
                }
                Some(_) => {}
                None => self.put_back(seen).await?,
            }
        }
        Ok(())
    }

    async fn put_back(&self, call: Call) -> Result<(), Unavailable> {
        let is_bound_here = |role: Role| {
            let socket = call.party(role).link.socket();
            socket.is_some_and(|socket| self.devices().contains_key(&socket))
        };
        if is_bound_here(Role::Caller) || is_bound_here(Role::Callee) {
            info!(call = %call.id, "the record of a live call was gone: it is put back");
            self.cluster.restore(&call).await?;
        } else {
            self.live.retire(&call);
        }
        Ok(())
    }

    async fn receive(&self, from: NodeId, message: Message) -> Result<(), Unavailable> {
        match message {
            Message::Call(call) => {
                self.observe(&call, &call);
                self.ring_here(&call);
            }
            Message::Rings { call, have } => {
                if let Some(live) = self.live.get(call) {
                    live.rings_also_on(from, have, &self.reach());
                }
            }
            Message::Kept { call, messages } => {
                if let Some(live) = self.live.get(call) {
                    live.take_over(messages, &self.reach());
                }
            }
            Message::Relay(relay) => self.pass_on(relay).await?,
            Message::Disconnect(user) => self.disconnect_here(&user),
            Message::Void | Message::Dropped { .. } => {}
            Message::Presence(edge) => {
                self.watchers.announce(&edge, &*self.outlet, self.clock.now());
            }
        }
        Ok(())
    }

    /// Passes a message on that came from another node. If it is ahead of what is known here of its
    /// call, the record is looked up first.
    async fn pass_on(&self, relay: Relay) -> Result<(), Unavailable> {
        let received_us = relay.received_us;
        let origin = received_us.map(|received_us| Origin { received_us, path: Path::Remote });
        let reach = || Reach { origin, ..self.reach() };
        if let Some(live) = self.live.get(relay.call)
            && let Received::Done = live.receive(relay.clone(), &reach())
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
            live.receive(relay, &reach());
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
        if after.is_live() && concerns {
            self.live.keep(after);
        } else {
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
