//! Placing calls, and repeated attempts to place them.

use std::sync::Arc;

use tracing::debug;

use super::{
    Calls, Failure, MAX_DECISIONS,
    pending::{Outcome as Attempted, Work},
    tally, traced,
};
use crate::{
    call::{
        Attempt, Call, CallType, Cause, Device, Event, Placement, Refusal, Role, State, first_news,
    },
    cluster::{Change, Claim, Committed, Unavailable},
    ids::{CallId, NodeId, UserId},
    metrics::{self, Limit, Outcome},
    payload::Payload,
    telemetry::{Span, SpanKind},
};

/// `call:initiate`, checked.
#[derive(Debug, Clone)]
pub struct Initiate {
    pub to: UserId,
    pub call_type: CallType,
    pub caller_info: Option<Payload>,
    pub client_call_id: Option<Arc<str>>,
}

impl Calls {
    /// Places a call. Returns it as it was placed: ringing, or ended at once.
    pub async fn initiate(&self, device: &Device, initiate: Initiate) -> Result<Call, Failure> {
        let attempt = Attempt {
            id: (self.name)(self.clock.now()),
            from: device.clone(),
            to: initiate.to,
            call_type: initiate.call_type,
            caller_info: initiate.caller_info,
            client_call_id: initiate.client_call_id,
        };
        let mut span = self.trace_attempt(&attempt);
        let placed = self.place(device, &attempt, &mut span).await;
        traced::placed(&mut span, &attempt, &placed);
        if let Err(failure) = &placed {
            tally::not_placed(attempt.call_type, failure);
        }
        placed
    }

    async fn place(
        &self,
        device: &Device,
        attempt: &Attempt,
        span: &mut Span,
    ) -> Result<Call, Failure> {
        self.pass_gate(attempt, span).await?;
        for _ in 0..MAX_DECISIONS {
            let looking = span.part("look up", SpanKind::Client);
            let lobby = self.cluster.lobby(&device.user, &attempt.to).await?;
            drop(looking);
            let placement = match self.rules.place(attempt, &lobby, self.clock.now()) {
                // The caller was told that its call failed, and has placed another one.
                Err(Refusal::CallInProgress(id))
                    if self.pending.has_new_call(id, device.socket) =>
                {
                    if let Some(call) = self.cluster.load(id).await? {
                        self.give_up(call, device).await?;
                    }
                    self.pending.forget_new_call(id);
                    continue;
                }
                placement => placement?,
            };
            let mut call = match placement {
                Placement::New(call) => call,
                Placement::Repeated(call) => {
                    tally::attempted(call.call_type, Outcome::Repeated);
                    if call.is_ringing() && self.pending.has_new_call(call.id, device.socket) {
                        // The call has no notified node yet.
                        let callee_nodes = self.cluster.nodes_of(&attempt.to).await?;
                        self.pending.forget_new_call(call.id);
                        return placed(self.tell_placed(call, lobby.callee_sockets, &callee_nodes));
                    }
                    let call = self.repeated_by(call, device).await?;
                    self.tell_again(&call).await?;
                    return placed(call);
                }
                Placement::Supersede(earlier) => {
                    match self.transition(earlier, &Event::Superseded(device.clone())).await {
                        Ok(_) | Err(Failure::Refused(_)) => continue,
                        Err(failure) => return Err(failure),
                    }
                }
            };
            let claim = |role: &Role| {
                let latest = match role {
                    Role::Caller => &lobby.caller_call,
                    Role::Callee => &lobby.callee_call,
                };
                let was = latest.as_ref().map(|call| call.id);
                Claim { user: call.party(*role).user.clone(), was }
            };
            let claims = call.claimants().iter().map(claim).collect();
            call.traceparent = span.context();
            let change = Change { call: call.clone(), claims };
            let committed = self.commit(change, span).await.inspect_err(|_| {
                self.add_pending(Work::NewCall { id: call.id, caller: device.clone() });
            });
            let Committed::Stored(stored) = committed? else {
                metrics::CONFLICTS.increment(1);
                continue;
            };
            tally::placed(&call);
            traced::rings_on(span, &stored.callee_nodes);
            self.recorder.record(&call);
            let call = self.tell_placed(call, lobby.callee_sockets, &stored.callee_nodes);
            self.announce(stored.edges);
            return placed(call);
        }
        metrics::LIMITS.of(Limit::Decisions).increment(1);
        Err(Unavailable.into())
    }

    /// Handles a repeated attempt. Its socket may be new, and the record may not show yet that the
    /// device has returned.
    async fn repeated_by(&self, call: Call, device: &Device) -> Result<Call, Failure> {
        match self.transition(call.clone(), &Event::Joined(device.clone())).await {
            Err(Failure::Refused(_)) => Ok(call),
            repeated => repeated,
        }
    }

    /// Rings again for a repeated attempt, because the first one may have failed half-way.
    async fn tell_again(&self, call: &Call) -> Result<(), Unavailable> {
        if call.is_ringing() {
            let callee_nodes = self.cluster.nodes_of(&call.callee.user).await?;
            self.ring_on(call, &callee_nodes);
        }
        Ok(())
    }

    /// Notifies the caller before this node rings. Returns the call as it was placed, or with its
    /// end: a device that has just joined elsewhere may have been faster.
    fn tell_placed(&self, call: Call, devices: usize, callee_nodes: &[NodeId]) -> Call {
        debug!(call = %call.id, status = call.status().as_str(), "call placed");
        let live = self.live.open(&call);
        if let (Some(news), Some(socket)) = (first_news(&call, devices), call.caller.link.socket())
            && !live.tell_placed(call.version, news, socket, &self.reach())
        {
            let newest = live.snapshot();
            return if newest.is_live() { call } else { newest };
        }
        if call.is_live() {
            self.ring_on(&call, callee_nodes);
        }
        call
    }

    /// Rings on all devices of the callee.
    fn ring_on(&self, call: &Call, callee_nodes: &[NodeId]) {
        let live = self.live.open(call);
        live.rings_on(callee_nodes, &self.reach());
        self.ring_here(call, None);
        self.spread(call, call, callee_nodes);
        if call.is_as_placed() {
            // These nodes do not report that it rings there.
            for node in callee_nodes.iter().filter(|node| **node != self.node()) {
                live.rings_also_on(*node, 0, &self.reach());
            }
        }
    }
}

impl Calls {
    /// Ends a new call that was written although its caller was told that it failed. Until the last
    /// attempt, its caller may retry: then the call rings.
    pub(super) async fn undo_pending(
        &self,
        id: CallId,
        caller: &Device,
        is_last: bool,
    ) -> Result<Attempted, Unavailable> {
        let Some(call) = self.cluster.load(id).await? else { return Ok(Attempted::Nothing) };
        self.recorder.record(&call);
        if !call.is_live() || self.live.get(id).is_some() {
            return Ok(Attempted::Done);
        }
        if !is_last {
            return Ok(Attempted::Nothing);
        }
        self.give_up(call, caller).await.map(|()| Attempted::Done)
    }

    async fn give_up(&self, call: Call, caller: &Device) -> Result<(), Unavailable> {
        match self
            .transition(call, &Event::Gone { device: caller.clone(), may_return: false })
            .await
        {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(_) => Err(Unavailable),
        }
    }
}

/// For its caller, a call that could not ring because the callee is offline is a failure.
fn placed(call: Call) -> Result<Call, Failure> {
    match &call.state {
        State::Ended { cause: Cause::Offline, .. } => Err(Failure::Offline(call.id)),
        State::Ringing { .. } | State::Active { .. } | State::Ended { .. } => Ok(call),
    }
}
