//! Spans of calls. The attempt is the root span, and ends when the call is placed, so that it
//! reaches the collector whatever happens to its node. Each later step, on whatever node, is a
//! child of the root; the consequences of a step on other nodes are children of that step.

use super::{Calls, Failure, live::LiveCall};
use crate::{
    call::{Attempt, Call, Event, Refusal, Role, Signal, State},
    cluster::Relay,
    ids::{NodeId, UserId},
    telemetry::{Span, SpanKind, Traces},
    time::Timestamp,
    trace::TraceContext,
};

const CALL: &str = "switchboard.call.id";
const CALL_TYPE: &str = "switchboard.call.type";
const CALLER: &str = "switchboard.caller";
const CALLEE: &str = "switchboard.callee";
const OUTCOME: &str = "switchboard.outcome";
const REASON: &str = "switchboard.end_reason";
const VERSION: &str = "switchboard.call.version";
const BY: &str = "switchboard.by";
const FROM_NODE: &str = "switchboard.from_node";
const TO_NODES: &str = "switchboard.to_nodes";

impl Calls {
    /// Records spans of calls in `traces`.
    #[must_use]
    pub fn traced_by(mut self, traces: Traces) -> Self {
        self.traces = traces;
        self
    }

    pub(super) fn trace_attempt(&self, attempt: &Attempt) -> Span {
        let mut span = self.traces.attempt(attempt.id, "call attempt");
        if span.is_noted() {
            span.set(CALL, attempt.id.to_string());
            span.set(CALL_TYPE, attempt.call_type.as_str());
            span.set(CALLER, shown(&attempt.from.user));
            span.set(CALLEE, shown(&attempt.to));
        }
        span
    }

    /// Records, once, that `event` is about to change the call into `next`, and sets the step in
    /// `next`.
    pub(super) fn trace_change(&self, span: &mut Span, event: &Event, next: &mut Call) {
        if next.traceparent.is_none() || !self.traces.is_on() {
            return;
        }
        if !span.is_noted() {
            let (name, kind) = step(event);
            *span = self.traces.step(root(next), name, kind);
        }
        next.traceparent = span.context();
    }

    /// Records the result of a change, and the duration of the phase that it ended.
    pub(super) fn trace_changed(&self, span: &mut Span, before: &Call, after: &Call) {
        if !span.is_noted() {
            return;
        }
        span.set(VERSION, count(after.version));
        if let Some(role) = after.timeline.last().and_then(|step| step.by) {
            span.set(BY, name(role));
        }
        let phase = |name, from: Timestamp, to: Timestamp| {
            self.traces.phase(root(after), name, (from, to));
        };
        match (&before.state, &after.state) {
            (State::Ringing { .. }, State::Active { since }) => {
                phase("ringing", before.created_at, *since);
            }
            (State::Ringing { .. }, State::Ended { at, .. }) => {
                phase("ringing", before.created_at, *at);
            }
            (State::Active { since }, State::Ended { at, .. }) => phase("talking", *since, *at),
            _ => return,
        }
        if let Some(reason) = after.end_reason() {
            span.set(REASON, reason.as_str());
        }
    }

    /// The span for a record that another node has changed.
    pub(super) fn trace_news(&self, from: NodeId, call: &Call) -> Span {
        let mut span = self.traces.step(call.traceparent, "take in", SpanKind::Consumer);
        if span.is_noted() {
            span.set(FROM_NODE, from.to_string());
            span.set(VERSION, count(call.version));
        }
        span
    }

    /// The span for relaying an offer to a ringing call. Of messages only this one and the winning
    /// answer have spans: no user waits for the others, and a call may have a thousand of them.
    pub(super) fn trace_offer(&self, live: &LiveCall, signal: Signal) -> Span {
        if signal != Signal::Offer || !self.traces.is_on() {
            return Span::NONE;
        }
        let ringing = |call: &Call| root(call).filter(|_| call.is_ringing());
        self.traces.step(ringing(live.state().call()), "pass offer on", SpanKind::Producer)
    }

    /// The span for relaying the winning answer.
    pub(super) fn trace_answer(&self, live: &LiveCall) -> Span {
        if !self.traces.is_on() {
            return Span::NONE;
        }
        let answered = live.state().call().traceparent;
        self.traces.step(answered, "pass answer on", SpanKind::Producer)
    }

    /// The span for a message that another node relays.
    pub(super) fn trace_relay(&self, from: NodeId, relay: &Relay) -> Span {
        let name = match relay.signal {
            Signal::Offer => "deliver offer",
            Signal::Answer => "deliver answer",
            Signal::Candidate => return Span::NONE,
        };
        let mut span = self.traces.step(relay.traceparent, name, SpanKind::Consumer);
        if span.is_noted() {
            span.set(FROM_NODE, from.to_string());
        }
        span
    }
}

/// Records the result of an attempt.
pub fn placed(span: &mut Span, attempt: &Attempt, placed: &Result<Call, Failure>) {
    if !span.is_noted() {
        return;
    }
    let outcome = match placed {
        Ok(call) if call.id != attempt.id => {
            if let Some(earlier) = root(call) {
                span.link(earlier);
            }
            "repeated"
        }
        Ok(call) => call.end_reason().map_or("ringing", |reason| reason.as_str()),
        Err(Failure::Offline(_)) => "offline",
        Err(Failure::Refused(Refusal::SelfCall)) => "self_call",
        Err(Failure::Refused(Refusal::CallInProgress(_))) => "call_in_progress",
        Err(Failure::Refused(Refusal::Glare(_))) => "glare",
        Err(Failure::Unavailable(unavailable)) => {
            span.fail(&unavailable.to_string());
            "unavailable"
        }
        Err(_) => "refused",
    };
    span.set(OUTCOME, outcome);
}

/// Records the nodes on which a call rings.
pub fn rings_on(span: &mut Span, nodes: &[NodeId]) {
    if span.is_noted() {
        span.set(TO_NODES, nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" "));
    }
}

fn root(call: &Call) -> Option<TraceContext> {
    call.traceparent.map(TraceContext::root)
}

/// A user's id in the form that the log permits.
fn shown(user: &UserId) -> String {
    user.logged().to_string()
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Caller => "caller",
        Role::Callee => "callee",
    }
}

fn step(event: &Event) -> (&'static str, SpanKind) {
    match event {
        Event::Answer(_) => ("answer", SpanKind::Server),
        Event::Reject { .. } => ("reject", SpanKind::Server),
        Event::Busy { .. } => ("busy", SpanKind::Server),
        Event::End { .. } => ("end", SpanKind::Server),
        Event::Gone { .. } => ("lose device", SpanKind::Internal),
        Event::Joined(_) | Event::StillConnected(_) => ("bring device back", SpanKind::Internal),
        Event::Confirmed(_) => ("confirm device", SpanKind::Internal),
        Event::Superseded(_) => ("supersede", SpanKind::Internal),
        Event::Displaced(_) => ("displace", SpanKind::Internal),
        Event::Terminated => ("terminate", SpanKind::Server),
        Event::Due => ("end overdue", SpanKind::Internal),
    }
}
