//! Events of clients: finds the call, lets the rules decide, commits the decision by
//! compare-and-set, and performs its effects.

use std::{sync::Arc, time::Duration};

use tracing::{debug, warn};

use super::{
    Calls, Failure,
    buffer::Full,
    call_metrics,
    live::LiveCall,
    pending::Work,
    state::{Arrival, CallState, Context, Effect},
};
use crate::{
    call::{Call, Device, Event, Link, Refusal, Role, Route, Signal},
    cluster::{Change, Committed, Unavailable},
    ids::{CallId, NodeId, SocketId},
    metrics::{self, Limit, Path},
    payload::Payload,
    protocol::{CallRef, CallView, ServerEvent},
    telemetry::{Span, SpanKind},
    time::Timestamp,
};

/// The most decisions on one event, if the record changes in between.
pub(super) const MAX_DECISIONS: usize = 4;
/// The target of the log lines about each call, by which users filter: it does not follow the files.
const TARGET: &str = "switchboard::calls";

impl Calls {
    /// Relays an offer, answer or candidate that arrived on its socket at `received_us`. The first
    /// answer wins the call. Almost all messages of a call take this path and wait for nothing; the
    /// rarer futures are boxed, so that not every message has room for them.
    pub async fn signal(
        &self,
        device: &Device,
        target: &CallRef,
        signal: Signal,
        payload: Payload,
        received_us: u64,
    ) -> Result<CallId, Failure> {
        let live = self.find(device, target).await?;
        self.restore_connection(&live, device).await?;
        self.confirm(&live, device).await?;
        let relay = |live: &LiveCall, span: Span| {
            let arrival = Arrival { received_us, path: Path::Local, trace: span.context() };
            self.relay(live, device, signal, &payload, arrival)
        };
        let id = live.id();
        let routed = relay(&live, self.trace_offer(&live, signal));
        match routed.map_err(|failure| self.unavailable_if_recovering(failure, &live, device))? {
            Route::Answers(_) => {
                Box::pin(self.accept_answer(&live, device)).await?;
                // The answer has won. If the call has ended since, it has no receiver.
                match relay(&live, self.trace_answer(&live)) {
                    Ok(_) => self.release_early(&live, device),
                    // The client must send it again: its device is in the call by now.
                    Err(full @ Failure::Full { .. }) => return Err(full),
                    Err(_) => payload.settle(),
                }
                Ok(id)
            }
            Route::Bound(..) | Route::WhenBack(_) => {
                // The answer may have won before, while its commit had no reply.
                if signal == Signal::Answer {
                    self.release_early(&live, device);
                }
                Ok(id)
            }
            Route::Ringing | Route::AfterAnswer(_) => Ok(id),
        }
    }

    fn relay(
        &self,
        live: &LiveCall,
        device: &Device,
        signal: Signal,
        payload: &Payload,
        arrival: Arrival,
    ) -> Result<Route, Failure> {
        let mut state = live.state();
        let route = match state.call().route(device, signal) {
            Err(Refusal::Over) => return Err(Refusal::NotInCall.into()),
            other => other?,
        };
        let context = self.context(state.call());
        let has_room = |node: &NodeId| {
            *node == context.node || self.cluster.has_room(*node, live.id(), payload.len_bytes())
        };
        let decided = if state.next_nodes(&route).iter().all(has_room) {
            state.relay(device, &route, signal, payload, arrival, &context)
        } else {
            Err(Full::Budget)
        };
        decided.map_err(|full| {
            metrics::LIMITS.of(Limit::Waiting).increment(1);
            Failure::full(full, context.now)
        })?;
        self.perform(&mut state, &context, Some(arrival));
        Ok(route)
    }

    fn release_early(&self, live: &LiveCall, device: &Device) {
        self.change(live, |call, context| call.release_early(device, context));
    }

    /// Handles the first answer of a device: the device is in the call now, or already was by a
    /// commit without a reply.
    async fn accept_answer(&self, live: &LiveCall, device: &Device) -> Result<(), Failure> {
        match self.transition(live.snapshot(), &Event::Answer(device.clone())).await {
            Err(Failure::Refused(Refusal::NothingToDo)) => {
                let call = self.cluster.load(live.id()).await?.ok_or(Refusal::NotInCall)?;
                Ok(self.apply_record(&call).await?)
            }
            answered => answered.map(drop),
        }
    }

    /// The live call of the user, or the call with this id if it is live or ended less than a
    /// minute ago.
    pub async fn sync(
        &self,
        device: &Device,
        id: Option<CallId>,
    ) -> Result<Option<CallView>, Failure> {
        let call = match id {
            Some(id) => self.cluster.load(id).await?,
            None => self.cluster.latest(&device.user).await?.filter(Call::is_live),
        };
        if call.is_none() && self.is_recovering() {
            return Err(Unavailable.into());
        }
        let view = |call: Call| Some(CallView::new(&call, call.role_of(&device.user)?));
        Ok(call.and_then(view))
    }

    /// Checks that `device` may report the media statistics of this call.
    pub async fn report(&self, device: &Device, id: CallId) -> Result<(), Failure> {
        let call = self.cluster.load(id).await?;
        let call = call.filter(|call| call.is_live() && call.is_bound_to(device));
        let live = self.live.open(&call.ok_or(Refusal::NotInCall)?);
        self.confirm(&live, device).await
    }

    /// The live call that this device is in, or that rings on it, as far as this node knows.
    pub fn call_of(&self, device: &Device) -> Option<CallId> {
        let live = self.live.of_user(&device.user)?;
        let concerns = |call: &Call| {
            call.is_live() && (call.is_bound_to(device) || call.rings_for(&device.user))
        };
        live.is(concerns).then(|| live.id())
    }

    /// Whether this node knows the live call that `target` refers to, so that no look-up is needed.
    pub fn has_in_view(&self, device: &Device, target: &CallRef) -> bool {
        self.in_view(device, target).is_some()
    }

    fn in_view(&self, device: &Device, target: &CallRef) -> Option<Arc<LiveCall>> {
        let known = match target.call_id {
            Some(id) => self.live.get(id),
            None => self.live.of_user(&device.user),
        };
        known.filter(|live| live.is(|call| call.is_live() && is_meant(call, device, target)))
    }

    /// The call that `target` refers to: the one with its id, else the latest call of the device's
    /// user, provided that it is with the named user. It may have ended.
    async fn find(&self, device: &Device, target: &CallRef) -> Result<Arc<LiveCall>, Failure> {
        if let Some(live) = self.in_view(device, target) {
            return Ok(live);
        }
        let call = match target.call_id {
            Some(id) => self.cluster.load(id).await?,
            None => self.cluster.latest(&device.user).await?,
        };
        match call.filter(|call| is_meant(call, device, target)) {
            Some(call) => Ok(self.live.open(&call)),
            None if self.is_recovering() => Err(Unavailable.into()),
            None => Err(Refusal::NotInCall.into()),
        }
    }

    /// Confirms that a resumed `device` knows its call, because it has sent a message about it.
    async fn confirm(&self, live: &LiveCall, device: &Device) -> Result<(), Failure> {
        if !live.is(|call| call.awaits_confirmation(device)) {
            return Ok(());
        }
        let confirmed = Event::Confirmed(device.clone());
        Box::pin(self.attempt_transition(live.snapshot(), &confirmed)).await?;
        Ok(())
    }

    /// `call:reject`. Returns the ended call, also if it had ended before.
    pub async fn reject(
        &self,
        device: &Device,
        target: &CallRef,
        reason: Option<Arc<str>>,
    ) -> Result<Call, Failure> {
        self.finish(device, target, Event::Reject { by: device.clone(), reason }).await
    }

    /// `call:busy`. Returns the call, which keeps ringing if another device of the callee rings;
    /// otherwise it has ended, now or before.
    pub async fn busy(&self, device: &Device, target: &CallRef) -> Result<Call, Failure> {
        // Other devices of the user may not have been attached again yet.
        if self.is_recovering() {
            return Err(Unavailable.into());
        }
        let sockets = self.cluster.sockets_of(&device.user).await?;
        self.finish(device, target, Event::Busy { by: device.clone(), sockets }).await
    }

    /// `call:end`. Returns the ended call, also if it had ended before.
    pub async fn end(
        &self,
        device: &Device,
        target: &CallRef,
        reported_duration_s: Option<f64>,
    ) -> Result<Call, Failure> {
        self.finish(device, target, Event::End { by: device.clone(), reported_duration_s }).await
    }

    async fn finish(
        &self,
        device: &Device,
        target: &CallRef,
        event: Event,
    ) -> Result<Call, Failure> {
        let live = self.find(device, target).await?;
        self.restore_connection(&live, device).await?;
        let before = live.snapshot();
        // The reply to this event also covers an earlier one without a reply.
        let was_unacknowledged = live.state().acknowledge(device.socket);
        let result = match self.transition(before.clone(), &event).await {
            Err(Failure::Refused(Refusal::Over)) => self.ended_already(&live, &before).await,
            // The device had already reported that it is busy.
            Err(Failure::Refused(Refusal::NothingToDo)) => self.busy_already(&live).await,
            other => {
                other.map_err(|failure| self.unavailable_if_recovering(failure, &live, device))
            }
        };
        match &result {
            Ok(_) => {}
            // Another refusal says nothing about the earlier event.
            Err(failure) if was_unacknowledged || matches!(failure, Failure::Unavailable(_)) => {
                let socket = device.socket;
                self.change(&live, |call, context| {
                    call.leave_unacknowledged(socket, &before, context.now);
                });
            }
            Err(_) => {}
        }
        result
    }

    /// The call in which the device is already recorded as busy, perhaps by a commit without a
    /// reply.
    async fn busy_already(&self, live: &LiveCall) -> Result<Call, Failure> {
        let call = self.cluster.load(live.id()).await?.ok_or(Refusal::NotInCall)?;
        self.apply_record(&call).await?;
        Ok(call)
    }

    /// The call as it ended before. This node may have ended it without getting a reply, or a node
    /// that died before it notified anybody: therefore everybody is notified now.
    async fn ended_already(&self, live: &LiveCall, before: &Call) -> Result<Call, Failure> {
        let ended = self.cluster.load(live.id()).await?.ok_or(Refusal::NotInCall)?;
        if live.is(Call::is_live) {
            let callee_nodes = self.cluster.nodes_of(&ended.callee.user).await?;
            self.recorder.record(&ended);
            self.observe(before, &ended);
            self.send_record(before, &ended, &callee_nodes);
        } else if self.live.get(ended.id).is_none() {
            self.send_to_users_nodes(&ended).await?;
            self.live.remember(&ended, self.clock.now());
        }
        Ok(ended)
    }
}

impl Calls {
    /// Decides, commits and notifies; decides again on the newer record after a conflict.
    pub(super) async fn transition(&self, mut call: Call, event: &Event) -> Result<Call, Failure> {
        let mut span = Span::NONE;
        for _ in 0..MAX_DECISIONS {
            if matches!(event, Event::StillConnected(device) if self.live.knows_end(call.id, device.socket))
            {
                return Err(Refusal::NothingToDo.into());
            }
            let mut next = self.rules.apply(&call, event, self.node(), self.clock.now())?;
            self.trace_change(&mut span, event, &mut next);
            let change = Change { call: next.clone(), claims: Vec::new() };
            let committed = self.commit(change, &mut span).await;
            match committed.inspect_err(|_| self.add_pending(Work::Commit(call.clone().into())))? {
                Committed::Stored(stored) => {
                    self.trace_changed(&mut span, &call, &next);
                    self.publish(&call, &next, &stored.callee_nodes);
                    self.announce(stored.edges);
                    return Ok(next);
                }
                Committed::Conflict(found) => {
                    metrics::CONFLICTS.increment(1);
                    let found = self.recovered(call.id, found.map(|found| *found)).await?;
                    call = found.ok_or(Refusal::NotInCall)?;
                }
            }
        }
        metrics::LIMITS.of(Limit::Decisions).increment(1);
        Err(Unavailable.into())
    }

    /// A transition whose refusal needs no reply.
    pub(super) async fn attempt_transition(
        &self,
        call: Call,
        event: &Event,
    ) -> Result<Option<Call>, Unavailable> {
        match self.transition(call, event).await {
            Ok(call) => Ok(Some(call)),
            Err(Failure::Refused(_)) => Ok(None),
            Err(_) => Err(Unavailable),
        }
    }

    /// Commits within this step's span.
    pub(super) async fn commit(
        &self,
        change: Change,
        span: &mut Span,
    ) -> Result<Committed, Unavailable> {
        let part = span.part("commit", SpanKind::Client);
        let parties = [change.call.caller.user.clone(), change.call.callee.user.clone()];
        let committed = self.cluster.commit(change).await;
        drop(part);
        committed.inspect_err(|unavailable| {
            self.announce_later(&parties);
            span.fail(&unavailable.to_string());
        })
    }

    /// Passes a written change to the history, the local sockets and the other nodes.
    pub(super) fn publish(&self, before: &Call, after: &Call, callee_nodes: &[NodeId]) {
        call_metrics::changed(before, after);
        self.recorder.record(after);
        self.observe(before, after);
        if after.is_ringing() && after.caller.link.node() == Some(self.node()) {
            let live = self.live.open(after);
            self.change(&live, |call, context| call.rings_on(callee_nodes, context));
        }
        self.send_record(before, after, callee_nodes);
        if let Some(reason) = after.end_reason() {
            debug!(target: TARGET, call = %after.id, reason = reason.as_str(), "call ended");
        } else if before.is_ringing() && !after.is_ringing() {
            debug!(target: TARGET, call = %after.id, "call answered");
        }
    }

    /// Processes the change from `before` to `after`: notifies local sockets, and keeps the call in
    /// view only while this node takes part in it.
    pub(super) fn observe(&self, before: &Call, after: &Call) {
        let live = self.live.open(before);
        // A device that does not know yet that its answer has won may have been marked lost since.
        let answered = self.marked_lost_by_mistake(&after.callee).map(|device| device.socket);
        let mut state = live.state();
        if after.succeeds(state.call()) {
            call_metrics::keeps_its_end(state.call(), after);
        }
        let left: Vec<_> = state.left_by(after, self.node()).collect();
        let recall = |(role, node)| self.cluster.recall(node, after.id, role);
        let recalled = left.into_iter().flat_map(recall).collect();
        let context = self.context(after);
        state.observe(after, answered, recalled, &context);
        self.perform(&mut state, &context, None);
        // This node may know a newer version than the received one.
        let seen = state.call();
        let is_here = |link: &Link| link.node() == Some(context.node);
        let takes_part =
            seen.is_ringing() || is_here(&seen.caller.link) || is_here(&seen.callee.link);
        // Under the mutex, so that no older version is recorded after a newer one.
        if seen.is_live() && takes_part {
            return self.live.keep(after);
        }
        if !seen.is_live() {
            state.note_end(&context);
        }
        self.live.remember(after, context.now);
    }

    /// Decides under the call's mutex, and performs the effects.
    pub(super) fn change<T>(
        &self,
        live: &LiveCall,
        decide: impl FnOnce(&mut CallState, &Context) -> T,
    ) -> T {
        let mut state = live.state();
        let context = self.context(state.call());
        let result = decide(&mut state, &context);
        self.perform(&mut state, &context, None);
        result
    }

    /// The circumstances of a decision about this version.
    pub(super) fn context(&self, call: &Call) -> Context {
        let node = self.node();
        let may_be_here = [&call.caller, &call.callee].map(|party| {
            let is_lost_here = party.link.lost_until().is_some() && party.link.node() == Some(node);
            is_lost_here && !self.sink.sockets_of(&party.user).is_empty()
        });
        Context { node, now: self.clock.now(), may_be_here }
    }

    /// Performs the effects of a decision, in their order. A message that arrived on a socket has an
    /// `arrival`, which measures its way.
    pub(super) fn perform(
        &self,
        state: &mut CallState,
        context: &Context,
        arrival: Option<Arrival>,
    ) {
        loop {
            let effects = state.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.perform_one(effect, state, context.now, arrival);
            }
        }
    }

    fn perform_one(
        &self,
        effect: Effect,
        state: &mut CallState,
        now: Timestamp,
        arrival: Option<Arrival>,
    ) {
        let call = state.call();
        match effect {
            Effect::Notify { socket, to, event } => {
                self.sink.emit(socket, &event, Some(&call.party(to).user));
            }
            Effect::Deliver { socket, from, signal, payload } => {
                let event = ServerEvent::relayed(signal, payload.untracked(), call, from, now);
                if !self.pass_on(call, socket, from, &event, signal, arrival) {
                    return state.buffer_for_lost(from.other(), signal, &payload);
                }
                payload.settle();
                let placed_at = call.created_at;
                if (signal, from) == (Signal::Answer, Role::Callee) && state.is_first_answer() {
                    metrics::SETUP.record(self.clock.now() - placed_at);
                }
            }
            Effect::Ring { sockets, signal, payload, is_kept } => {
                let mut is_settled = is_kept;
                for socket in sockets {
                    let from = Role::Caller;
                    let event = ServerEvent::relayed(signal, payload.untracked(), call, from, now);
                    is_settled |= self.pass_on(call, socket, from, &event, signal, arrival);
                }
                if is_settled {
                    payload.settle();
                }
            }
            Effect::Send(node, message) => self.cluster.send(node, message),
            Effect::AwaitFlush { to, until } => {
                self.add_pending_at(Work::Flush { call: call.id, to }, until);
            }
            Effect::Overflow(consequence) => {
                metrics::LIMITS.of(Limit::Waiting).increment(1);
                warn!(call = %call.id, consequence, "a buffer of a call is full");
            }
        }
    }

    /// Emits a relayed message. Returns whether the socket takes it.
    fn pass_on(
        &self,
        call: &Call,
        socket: SocketId,
        from: Role,
        event: &ServerEvent,
        signal: Signal,
        arrival: Option<Arrival>,
    ) -> bool {
        let is_taken = self.sink.emit(socket, event, Some(&call.party(from.other()).user));
        if let Some(Arrival { received_us, path, .. }) = arrival.filter(|_| is_taken) {
            let took = Duration::from_micros(self.clock.now_us().saturating_sub(received_us));
            metrics::RELAY.of((signal, path)).record(took);
        }
        is_taken
    }
}

/// Whether the device's user is in the call, with the user that `target` names, if it names one.
fn is_meant(call: &Call, device: &Device, target: &CallRef) -> bool {
    match &target.to {
        Some(to) => call.is_between(&device.user, to),
        None => call.role_of(&device.user).is_some(),
    }
}
