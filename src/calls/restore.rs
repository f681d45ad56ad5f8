//! Records that the shared state has lost, or has in an older version: finding and restoring them,
//! and the devices that they mark lost by mistake.
//!
//! After the shared state has come back empty, each node restores the records that it has seen. In
//! this recovery window a missing record proves nothing.

use tracing::{info, warn};

use super::{
    Calls, Failure,
    live::LiveCall,
    pending::{Outcome, Work},
    sweeper::some_at_a_time,
};
use crate::{
    call::{Call, Device, Event, Party, Refusal, Role},
    cluster::{Change, Claim, Message, Unavailable},
    ids::CallId,
    metrics,
};

impl Calls {
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
                self.apply_record(&call).await
            }
            Some(call) if seen.succeeds(&call) => {
                self.restore_if_responsible(seen, Some(&call)).await
            }
            Some(call) if call.is_live() => self.reclaim(&call).await,
            Some(_) => Ok(()),
            None if seen.is_live() || self.clock.now() < seen.deadline() => {
                self.restore_if_responsible(seen, None).await
            }
            None => Ok(()),
        }
    }

    /// If a call whose commit had no reply has changed, notifies everybody of its present state.
    pub(super) async fn check_commit(&self, before: &Call) -> Result<Outcome, Unavailable> {
        let found = self.cluster.load(before.id).await?;
        if found.is_none() && self.is_recovering() {
            return Ok(Outcome::Unknown);
        }
        if found.is_none() {
            self.notify_of_lost_end(before);
        }
        let Some(after) = found.filter(|call| call.succeeds(before)) else {
            return Ok(Outcome::Nothing);
        };
        let rings = before.is_ringing();
        let callee_nodes =
            if rings { self.cluster.nodes_of(&before.callee.user).await? } else { Vec::new() };
        self.recorder.record(&after);
        self.apply_record(&after).await?;
        self.send_record(before, &after, &callee_nodes);
        Ok(Outcome::Done)
    }

    /// The shared state has lost a call, and nobody restores it. If the call has ended, a device
    /// that was marked lost and could not confirm its connection gets the end from this node or
    /// from nobody.
    fn notify_of_lost_end(&self, before: &Call) {
        let seen = self.live.get(before.id).map_or_else(|| before.clone(), |live| live.snapshot());
        for party in [&seen.caller, &seen.callee] {
            let Some(device) = self.marked_lost_by_mistake(party).filter(|_| !seen.is_live())
            else {
                continue;
            };
            let stayed = Event::StillConnected(device);
            if let Ok(told) = self.rules.apply(&seen, &stayed, self.node(), self.clock.now()) {
                self.observe(&seen, &told);
            }
        }
    }

    /// Whether this live call has ended, and a local device that is in it by its record knows that:
    /// the node that restored it had missed the end.
    pub(super) fn has_ended_here(&self, call: &Call) -> bool {
        let knows = |party: &Party| {
            party.link.socket().is_some_and(|socket| self.live.knows_end(call.id, socket))
        };
        call.is_live() && (knows(&call.caller) || knows(&call.callee))
    }

    /// Restores a device that was marked lost and sends something: it is connected.
    pub(super) async fn restore_connection(
        &self,
        live: &LiveCall,
        device: &Device,
    ) -> Result<(), Failure> {
        if live.is(|call| call.has_lost(device)) {
            let stayed = Event::StillConnected(device.clone());
            Box::pin(self.attempt_transition(live.snapshot(), &stayed)).await?;
        }
        Ok(())
    }

    /// Restores a device that is connected here but marked lost, or notifies it of the end.
    pub(super) async fn reclaim(&self, call: &Call) -> Result<(), Unavailable> {
        for party in [&call.caller, &call.callee] {
            let Some(device) = self.marked_lost_by_mistake(party) else { continue };
            info!(call = %call.id, "a connected device was marked lost: it is restored");
            match self.transition(call.clone(), &Event::StillConnected(device)).await {
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

    async fn restore_if_responsible(
        &self,
        seen: &Call,
        found: Option<&Call>,
    ) -> Result<(), Unavailable> {
        // A device that has left and is not detached yet also ends its part in the record.
        let is_here = |role: Role| {
            let link = &seen.party(role).link;
            let was_lost_here = link.lost_until().is_some() && link.node() == Some(self.node());
            let user = &seen.party(role).user;
            let is_bound =
                |socket| self.sessions.has(socket) || self.pending.signs_off(user, socket);
            was_lost_here || link.socket().is_some_and(is_bound)
        };
        // A ringing socket must get an end: if nobody else restores the call, the end comes with
        // the deadline.
        let rings_here = || self.live.get(seen.id).is_some_and(|live| live.state().rings_here());
        // A lost end would keep its users busy for as long as a call may last, and nodes that have
        // not seen the end would restore the call as live.
        let has_ended = !seen.is_live();
        if has_ended || is_here(Role::Caller) || is_here(Role::Callee) || rings_here() {
            self.restore(seen, found).await?;
        } else if found.is_none() {
            self.live.remember(seen, self.clock.now());
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
        let concerns = is_ours(Role::Caller) || is_ours(Role::Callee) || live.state().rings_here();
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
                self.send_record(found, &call, &[]);
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
                self.send_to_users_nodes(&call).await?;
            }
            return Ok(call);
        };
        let Ok(ended) = self.rules.apply(&call, &end, self.node(), self.clock.now()) else {
            return Ok(call);
        };
        if self.write_back(&ended, Vec::new(), over).await? {
            let callee_nodes = self.cluster.nodes_of(&ended.callee.user).await?;
            self.publish(seen, &ended, &callee_nodes);
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

    /// Whether a missing call may still be restored by this node or another one.
    pub(super) fn is_recovering(&self) -> bool {
        self.recovery.is_under_way(self.clock.now())
    }

    /// Turns the refusal of a device that is not in its call into `Unavailable` during the recovery
    /// window: the record may not contain its new socket yet.
    pub(super) fn unavailable_if_recovering(
        &self,
        failure: Failure,
        live: &LiveCall,
        device: &Device,
    ) -> Failure {
        let may_pass =
            matches!(failure, Failure::Refused(Refusal::NotInCall | Refusal::AlreadyAnswered(_)));
        if may_pass && self.is_recovering() && live.is(|call| call.knows(device)) {
            return Unavailable.into();
        }
        failure
    }

    /// Sends a call that was restored, or that lost a device late, to the nodes that hold sockets
    /// of its parties: a device may have connected to one of them while the call was unknown.
    pub(super) async fn send_to_users_nodes(&self, call: &Call) -> Result<(), Unavailable> {
        for party in [&call.caller, &call.callee] {
            for node in self.cluster.nodes_of(&party.user).await? {
                if node != self.node() {
                    self.cluster.send(node, Message::Call(Box::new(call.clone())));
                }
            }
        }
        Ok(())
    }
}
