//! Placing calls: authorization by a port outside of the rules, the decision, repeated attempts.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::debug;

use super::{
    Calls, Failure, MAX_DECISIONS, call_metrics,
    pending::{Outcome as Attempted, Work},
    spans,
};
use crate::{
    call::{
        Attempt, Call, CallType, Cause, Device, Event, Placement, Refusal, Role, State,
        first_notification,
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

/// Decides whether a user may call another one.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// May take a bounded time. Only the events of the caller's socket wait for it.
    async fn may_call(&self, attempt: &Attempt) -> Verdict;
}

/// The decision of an [`Authorizer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Refused, with a reason for the caller.
    Refused(Arc<str>),
    /// No decision is possible at the moment.
    Unknown,
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
        spans::placed(&mut span, &attempt, &placed);
        if let Err(failure) = &placed {
            call_metrics::not_placed(attempt.call_type, failure);
        }
        placed
    }

    async fn place(
        &self,
        device: &Device,
        attempt: &Attempt,
        span: &mut Span,
    ) -> Result<Call, Failure> {
        self.authorize(attempt, span).await?;
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
                    call_metrics::attempted(call.call_type, Outcome::Repeated);
                    if call.is_ringing() && self.pending.has_new_call(call.id, device.socket) {
                        // The call has no notified node yet.
                        let callee_nodes = self.cluster.nodes_of(&attempt.to).await?;
                        self.pending.forget_new_call(call.id);
                        return placed(self.notify_placed(
                            call,
                            lobby.callee_sockets,
                            &callee_nodes,
                        ));
                    }
                    let call = self.repeated_by(call, device).await?;
                    self.ring_again(&call).await?;
                    return placed(call);
                }
                Placement::Supersede(earlier) => {
                    let superseded = Event::Superseded(device.clone());
                    self.attempt_transition(earlier, &superseded).await?;
                    continue;
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
            call_metrics::placed(&call);
            spans::rings_on(span, &stored.callee_nodes);
            self.recorder.record(&call);
            let call = self.notify_placed(call, lobby.callee_sockets, &stored.callee_nodes);
            self.announce(stored.edges);
            return placed(call);
        }
        metrics::LIMITS.of(Limit::Decisions).increment(1);
        Err(Unavailable.into())
    }

    /// Lets `authorizer` decide on each new call.
    #[must_use]
    pub fn authorized_by(mut self, authorizer: Arc<dyn Authorizer>) -> Self {
        self.authorizer = Some(authorizer);
        self
    }

    /// Asks the authorizer, if there is one, unless the rules refuse the attempt or it is a repetition.
    /// The data of the decision is read again afterwards, because the authorizer may have taken its time.
    async fn authorize(&self, attempt: &Attempt, span: &Span) -> Result<(), Failure> {
        let Some(authorizer) = &self.authorizer else { return Ok(()) };
        let lobby = self.cluster.lobby(&attempt.from.user, &attempt.to).await?;
        match self.rules.place(attempt, &lobby, self.clock.now())? {
            Placement::Repeated(_) => return Ok(()),
            Placement::New(_) | Placement::Supersede(_) => {}
        }
        let _asking = span.part("authorize", SpanKind::Client);
        match authorizer.may_call(attempt).await {
            Verdict::Allowed => Ok(()),
            Verdict::Refused(reason) => Err(Failure::Forbidden(reason)),
            Verdict::Unknown => Err(Unavailable.into()),
        }
    }

    /// Handles a repeated attempt. Its socket may be new, and the record may not show yet that the
    /// device has returned.
    async fn repeated_by(&self, call: Call, device: &Device) -> Result<Call, Failure> {
        let repeated =
            self.attempt_transition(call.clone(), &Event::Joined(device.clone())).await?;
        Ok(repeated.unwrap_or(call))
    }

    /// Rings again for a repeated attempt, because the first one may have failed half-way.
    async fn ring_again(&self, call: &Call) -> Result<(), Unavailable> {
        if call.is_ringing() {
            let callee_nodes = self.cluster.nodes_of(&call.callee.user).await?;
            self.ring_on(call, &callee_nodes);
        }
        Ok(())
    }

    /// Notifies the caller before this node rings. Returns the call as it was placed, or with its
    /// end: a device that has just joined elsewhere may have been faster.
    fn notify_placed(&self, call: Call, devices: usize, callee_nodes: &[NodeId]) -> Call {
        debug!(call = %call.id, status = call.status().as_str(), "call placed");
        let live = self.live.open(&call);
        if let (Some(notification), Some(socket)) =
            (first_notification(&call, devices), call.caller.link.socket())
            && !self.change(&live, |state, context| {
                state.placed(call.version, notification, socket, context.now)
            })
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
        self.change(&live, |state, context| state.rings_on(callee_nodes, context));
        self.ring_here(call, None);
        self.send_record(call, call, callee_nodes);
        if call.is_as_placed() {
            // These nodes do not report that it rings there.
            for node in callee_nodes.iter().filter(|node| **node != self.node()) {
                self.change(&live, |state, _| state.rings_also_on(*node, 0));
            }
        }
    }

    /// Ends a new call that was written although its caller was told that it failed. Until the last
    /// attempt, its caller may retry: then the call rings.
    pub(super) async fn check_new_call(
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
