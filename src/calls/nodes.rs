//! Notifications between nodes about calls, and the recovery of records.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{
    Calls, Failure,
    live::{LiveCall, Received},
    pending::{Outcome, Work},
    sweeper::{AT_ONCE, some_at_a_time},
    view::{Origin, Reach},
};
use crate::{
    call::{Binding, Call, Device, Event, Link, Party, Refusal, Role},
    cluster::{Change, Claim, Departed, Inbound, Message, Relay, Unavailable},
    ids::{CallId, NodeId, UserId},
    metrics::{self, Path},
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
                Inbound::Departed(node, users) => self.see_off(node, users).await,
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
            while self.live.all().iter().any(|live| live.awaits_device(self.node())) {
                tokio::time::sleep(HAND_OVER_POLL).await;
            }
        };
        if tokio::time::timeout(window.min(MAX_HAND_OVER), handed_over).await.is_err() {
            info!("some devices have not reconnected yet: this node no longer waits for them");
        }
    }

    /// A node is dead: devices on it are marked lost. Messages of other nodes wait meanwhile, so
    /// many users are handled concurrently.
    async fn see_off(&self, node: NodeId, users: Vec<Departed>) -> Result<(), Unavailable> {
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
                self.lose_device_on(node, &edge.user, call.clone())
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
    pub(super) async fn lose_device_on(
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
        match self.transition(call, &Event::Gone { device, may_return: true }).await {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(_) => Err(Unavailable),
        }
    }

    /// Detaches a device that left meanwhile and has just been attached again.
    pub(super) async fn sign_off_if_gone(&self, device: &Device) -> Result<(), Unavailable> {
        if self.is_connected(device) {
            return Ok(());
        }
        self.sign_off(device, true).await
    }

    /// Compares each live call in view with its record, because a notification may have been lost.
    /// If the shared state was rolled back, the record as seen here is restored.
    pub(super) async fn look_up(&self) -> Result<(), Unavailable> {
        let mut live = self.live.all();
        live.retain(|live| live.is(Call::is_live));
        some_at_a_time(&live, |live| self.look_up_one(live)).await
    }

    pub(super) async fn look_up_one(&self, live: &LiveCall) -> Result<(), Unavailable> {
        let seen = &live.snapshot();
        match self.cluster.load(seen.id).await? {
            Some(call) if call.succeeds(seen) => {
                // The writing node may not know that its commit was applied, and may have announced
                // nothing.
                self.recorder.record(&call);
                self.announce_parties_later(&call);
                self.take_in(&call).await
            }
            Some(call) if seen.succeeds(&call) => self.put_back(seen, Some(&call)).await,
            Some(call) if call.is_live() => self.reclaim(&call).await,
            Some(_) => Ok(()),
            None if seen.is_live() || self.ended_lately(seen) => self.put_back(seen, None).await,
            None => Ok(()),
        }
    }

    /// If a call whose commit had no reply has changed, notifies everybody of its present state.
    pub(super) async fn tell_pending(&self, before: &Call) -> Result<Outcome, Unavailable> {
        let found = self.cluster.load(before.id).await?;
        if found.is_none() && self.is_unsure() {
            return Ok(Outcome::Unknown);
        }
        if found.is_none() {
            self.tell_forgotten(before);
        }
        let Some(after) = found.filter(|call| call.succeeds(before)) else {
            return Ok(Outcome::Nothing);
        };
        let rings = before.is_ringing();
        let callee_nodes =
            if rings { self.cluster.nodes_of(&before.callee.user).await? } else { Vec::new() };
        self.recorder.record(&after);
        self.take_in(&after).await?;
        self.spread(before, &after, &callee_nodes);
        Ok(Outcome::Done)
    }

    /// The shared state has lost a call, and nobody restores it. If the call has ended, a device
    /// that was marked lost and could not confirm its connection gets the end from this node or
    /// from nobody.
    fn tell_forgotten(&self, before: &Call) {
        let seen = self.live.get(before.id).map_or_else(|| before.clone(), |live| live.snapshot());
        for party in [&seen.caller, &seen.callee] {
            let Some(device) = self.taken_for_lost(party).filter(|_| !seen.is_live()) else {
                continue;
            };
            self.told_end_of(&seen, &device);
            let stayed = Event::Stayed(device);
            if let Ok(told) = self.rules.apply(&seen, &stayed, self.node(), self.clock.now()) {
                self.observe(&seen, &told);
            }
        }
    }

    /// The time for the reply to a flush of this call is over.
    pub(super) fn give_up_flush(&self, id: CallId) -> Outcome {
        if let Some(live) = self.live.get(id) {
            live.give_up_flush(&self.reach());
        }
        Outcome::Done
    }

    /// Processes a record that another node has changed.
    pub(super) async fn take_in(&self, call: &Call) -> Result<(), Unavailable> {
        self.take_in_from(None, call).await
    }

    /// The same; the node `told_by` then knows that the call rings here.
    async fn take_in_from(&self, told_by: Option<NodeId>, call: &Call) -> Result<(), Unavailable> {
        if !call.is_live() {
            self.recorder.ended_elsewhere(call);
        } else if self.live.get(call.id).is_none() && self.has_ended_here(call) {
            debug!(call = %call.id, "a call was restored as live although its end is known here");
            return Ok(());
        }
        self.find_ring_nodes(call).await?;
        self.observe(call, call);
        self.ring_here(call, told_by);
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
        if is_here && self.live.get(call.id).is_some_and(|live| live.lacks_ring_nodes()) {
            let nodes = self.cluster.nodes_of(&call.callee.user).await?;
            self.live.open(call).rings_on(&nodes, &self.reach());
        }
        Ok(())
    }

    /// Restores a device that is connected here but marked lost, or notifies it of the end.
    async fn reclaim(&self, call: &Call) -> Result<(), Unavailable> {
        for party in [&call.caller, &call.callee] {
            let Some(device) = self.taken_for_lost(party) else { continue };
            info!(call = %call.id, "a connected device was marked lost: it is restored");
            match self.transition(call.clone(), &Event::Stayed(device)).await {
                // The record is gone; another node may still restore it.
                Err(Failure::Refused(Refusal::NotInCall)) => {
                    self.add_pending(Work::Commit(call.clone().into()));
                }
                Ok(_) | Err(Failure::Refused(_)) => {}
                Err(_) => return Err(Unavailable),
            }
        }
        Ok(())
    }

    /// The device of a party that is connected here although the record marks it lost.
    pub(super) fn taken_for_lost(&self, party: &Party) -> Option<Device> {
        let Link::Lost { device: lost, .. } = &party.link else { return None };
        let here = self.joined_sockets_of(&party.user);
        here.iter().find_map(|socket| {
            let device = self.devices().get(socket)?.device.clone();
            (device.id.as_ref() == Some(lost)).then_some(device)
        })
    }

    async fn put_back(&self, seen: &Call, found: Option<&Call>) -> Result<(), Unavailable> {
        // A device that has left and is not detached yet also ends its part in the record.
        let is_here = |role: Role| {
            let link = &seen.party(role).link;
            let was_lost_here = link.lost_until().is_some() && link.node() == Some(self.node());
            let user = &seen.party(role).user;
            let is_bound =
                |socket| self.devices().contains_key(&socket) || self.is_leaving(user, socket);
            was_lost_here || link.socket().is_some_and(is_bound)
        };
        // A ringing socket must get an end: if nobody else restores the call, the end comes with
        // the deadline.
        let rings_here = || self.live.get(seen.id).is_some_and(|live| live.rings_here());
        // A lost end would keep its users busy for as long as a call may last, and nodes that have
        // not seen the end would restore the call as live.
        let has_ended = !seen.is_live();
        if has_ended || is_here(Role::Caller) || is_here(Role::Callee) || rings_here() {
            self.restore(seen, found).await?;
        } else if found.is_none() {
            self.live.retire(seen, self.clock.now());
        }
        Ok(())
    }

    /// The record of a call: as it was found, or restored if the shared state was rolled back
    /// behind what was seen here.
    pub(super) async fn recovered(
        &self,
        id: CallId,
        found: Option<Call>,
    ) -> Result<Option<Call>, Unavailable> {
        let Some(live) = self.live.get(id) else { return Ok(found) };
        let seen = live.snapshot();
        // This node may have missed the end of a call that it no longer takes part in.
        let is_ours = |role| seen.party(role).link.node() == Some(self.node());
        let concerns = is_ours(Role::Caller) || is_ours(Role::Callee) || live.rings_here();
        let is_newer = found.as_ref().is_none_or(|found| seen.succeeds(found));
        if !seen.is_live() || !is_newer || !concerns {
            return Ok(found);
        }
        self.restore(&seen, found.as_ref()).await.map(Some)
    }

    /// Restores the record of a live call as it was seen here. If a party is in another call by
    /// now, or the deadline has passed, the record is restored with its end. Returns the resulting
    /// call.
    async fn restore(&self, seen: &Call, found: Option<&Call>) -> Result<Call, Unavailable> {
        metrics::RESTORED.increment(1);
        let over = found.map(|found| found.version);
        warn!(call = %seen.id, ?over, "the record of a call was lost: it is restored");
        let call = found.map_or_else(|| seen.clone(), |found| seen.put_over(found));
        if let Some(found) = found.filter(|found| found.is_live() || !call.is_live()) {
            // The rollback restored its claims, too.
            if self.write_back(&call, Vec::new(), over).await? {
                self.observe(seen, &call);
                self.spread(found, &call, &[]);
            }
            return Ok(call);
        }
        // An end that was restored by a node with an older view has no claims.
        let lobby = self.cluster.lobby(&call.caller.user, &call.callee.user).await?;
        let Some(end) = call.end_when_forgotten(&lobby, self.clock.now()) else {
            // A user who is in another call by now keeps that one as the latest.
            let claim = |(role, latest): (Role, &Option<Call>)| {
                let was = latest.as_ref().map(|call| call.id);
                let is_free = latest.as_ref().is_none_or(|call| !call.is_live());
                is_free.then(|| Claim { user: call.party(role).user.clone(), was })
            };
            let latest = [(Role::Caller, &lobby.caller_call), (Role::Callee, &lobby.callee_call)];
            let claims = latest.into_iter().filter_map(claim).collect();
            if self.write_back(&call, claims, over).await? {
                self.observe(seen, &call);
                self.tell_where_users_are(&call).await?;
            }
            return Ok(call);
        };
        let Ok(ended) = self.rules.apply(&call, &end, self.node(), self.clock.now()) else {
            return Ok(call);
        };
        if self.write_back(&ended, Vec::new(), over).await? {
            let callee_nodes = self.cluster.nodes_of(&ended.callee.user).await?;
            self.tell_changed(seen, &ended, &callee_nodes);
        }
        Ok(ended)
    }

    /// Writes a record as it was seen here, and announces its users' presence. Returns whether it
    /// was written.
    async fn write_back(
        &self,
        call: &Call,
        claims: Vec<Claim>,
        over: Option<u64>,
    ) -> Result<bool, Unavailable> {
        let change = Change { call: call.clone(), claims };
        let restored = self.cluster.restore(change, over).await;
        let restored = restored.inspect_err(|_| self.announce_parties_later(call))?;
        let Some(stored) = restored else { return Ok(false) };
        // While the record was gone its users seemed available, and no watcher was notified.
        if over.is_none() {
            self.announce_parties_later(call);
        }
        self.announce(stored.edges);
        Ok(true)
    }

    async fn receive(&self, from: NodeId, message: Message) -> Result<(), Unavailable> {
        match message {
            Message::Call(call) => {
                let _span = self.trace_news(from, &call);
                if self.live.may_have_forgotten(&call, self.clock.now()) {
                    if let Some(call) = self.load_patiently(call.id).await? {
                        self.take_in(&call).await?;
                    }
                    return Ok(());
                }
                // The node that places a call knows which nodes it has notified.
                let is_placing = call.is_as_placed() && call.caller.link.node() == Some(from);
                self.take_in_from(is_placing.then_some(from), &call).await?;
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
            Message::Flush { call, version, to } => self.flush_for(call, version, to, from).await?,
            Message::Flushing { call, to } => {
                if let Some(live) = self.live.get(call) {
                    live.flushing(to, from, &self.reach());
                }
            }
            Message::Flushed { call, to } => {
                if let Some(live) = self.live.get(call) {
                    live.flushed(to, from, &self.reach());
                }
            }
            Message::Relay(relay) => {
                let _span = self.trace_relay(from, &relay);
                self.pass_on(relay).await?;
            }
            Message::Disconnect(user) => self.outlet.disconnect(&user),
            Message::Void | Message::Dropped { .. } => {}
            Message::Presence(edge) => {
                self.watchers.announce(&edge, &*self.outlet, self.clock.now());
            }
        }
        Ok(())
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
            self.take_in(&call).await?;
        }
        live.flush_for(to, by, &self.reach());
        Ok(())
    }

    /// Relays a message from another node. If the message is ahead of the version known here, the
    /// record is read first.
    async fn pass_on(&self, relay: Relay) -> Result<(), Unavailable> {
        let received_us = relay.received_us;
        let origin = received_us.map(|received_us| Origin { received_us, path: Path::Remote });
        let reach = || Reach { origin, ..self.reach() };
        if let Some(live) = self.live.get(relay.call)
            && let Received::Done = live.receive(relay.clone(), &reach())
        {
            return Ok(());
        }
        let Some(call) = self.load_patiently(relay.call).await? else {
            debug!(call = %relay.call, "a message for a call that is gone");
            return Ok(());
        };
        self.take_in(&call).await?;
        if let Some(live) = self.live.get(relay.call) {
            live.receive(relay, &reach());
        }
        Ok(())
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

    /// Processes the change from `before` to `after`: notifies local sockets, and keeps the call in
    /// view only while this node takes part in it.
    pub(super) fn observe(&self, before: &Call, after: &Call) {
        let live = self.live.open(before);
        // A device that does not know yet that its answer has won may have been marked lost since.
        let answered = self.taken_for_lost(&after.callee).map(|device| device.socket);
        live.observe(after, answered, &self.reach());
        // This node may know a newer version than the received one.
        let concerns = live.is(|seen| {
            let is_here = |role| seen.party(role).link.node() == Some(self.node());
            let is_ours = seen.is_ringing() || is_here(Role::Caller) || is_here(Role::Callee);
            seen.is_live() && is_ours
        });
        if concerns {
            self.live.keep(after);
        } else {
            let seen = live.snapshot();
            if !seen.is_live() {
                self.note_end(&seen);
            }
            self.live.retire(after, self.clock.now());
        }
    }

    /// Rings the local devices of the callee, if the call rings.
    pub(super) fn ring_here(&self, call: &Call, told_by: Option<NodeId>) {
        if call.is_ringing() {
            let sockets = self.joined_sockets_of(&call.callee.user);
            self.live.open(call).ring(&sockets, told_by, &self.reach());
        }
    }

    /// Sends the record to the other nodes that need it: those with a party's device, or that had
    /// it until this change, and while the call rings those with a socket of the callee.
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
