//! A span, while it is being recorded: the SDK's, with the ids of its call and the clock of the cluster.

use std::{cell::Cell, sync::Arc, time::SystemTime};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
        TraceId, TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::{self as sdk, IdGenerator, RandomIdGenerator};

use super::Tracer;
use crate::{ids::CallId, trace::TraceContext};

/// A span that is recorded when it is dropped. Empty if its call is not sampled.
#[derive(Debug)]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    tracer: Arc<Tracer>,
    context: TraceContext,
    span: sdk::Span,
}

thread_local! {
    /// The call whose root span this thread is starting. The SDK's tracer passes an id generator nothing.
    static STARTING: Cell<Option<CallId>> = const { Cell::new(None) };
}

/// Names a trace and its root span by the call, and other spans at random.
#[derive(Debug, Default)]
pub(super) struct CallIds(RandomIdGenerator);

impl IdGenerator for CallIds {
    fn new_trace_id(&self) -> TraceId {
        let call = STARTING.get();
        call.map_or_else(|| self.0.new_trace_id(), |call| TraceId::from_bytes(call.to_bytes()))
    }

    fn new_span_id(&self) -> SpanId {
        let root = STARTING.get().map(|call| TraceContext::of(call).span_id());
        root.map_or_else(|| self.0.new_span_id(), SpanId::from_bytes)
    }
}

impl Span {
    /// The empty span of a call that is not sampled.
    pub const NONE: Self = Self(None);

    pub(super) fn root(tracer: &Arc<Tracer>, call: CallId, name: &'static str) -> Self {
        STARTING.set(Some(call));
        let builder = tracer.builder(name, SpanKind::Server);
        let root = Self::start(tracer, TraceContext::of(call), &Context::new(), builder);
        STARTING.set(None);
        root
    }

    /// A child of `parent`, which may be another process's.
    pub(super) fn follow(tracer: &Arc<Tracer>, parent: TraceContext, builder: SpanBuilder) -> Self {
        Self::start(tracer, parent, &below(parent, true), builder)
    }

    /// Ends it at this time.
    pub(super) fn end(mut self, at: SystemTime) {
        if let Some(open) = &mut self.0 {
            open.span.end_with_timestamp(at);
        }
    }

    /// A child of this span.
    #[must_use = "it ends when it is dropped"]
    pub fn part(&self, name: &'static str, kind: SpanKind) -> Self {
        let Some(open) = &self.0 else { return Self::NONE };
        let Open { tracer, context, .. } = &**open;
        Self::start(tracer, *context, &below(*context, false), tracer.builder(name, kind))
    }

    /// A span of this trace.
    fn start(
        tracer: &Arc<Tracer>,
        trace: TraceContext,
        parent: &Context,
        builder: SpanBuilder,
    ) -> Self {
        let span = tracer.sdk.build_with_context(builder, parent);
        let context = trace.step(span.span_context().span_id().to_bytes());
        Self(Some(Box::new(Open { tracer: tracer.clone(), context, span })))
    }

    /// Whether the call is sampled: otherwise attributes are discarded.
    pub fn is_noted(&self) -> bool {
        self.0.is_some()
    }

    /// The context of this span, for its children.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|open| open.context)
    }

    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(open) = &mut self.0 {
            open.span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Marks a failure of this service or of a dependency.
    pub fn fail(&mut self, why: &str) {
        if let Some(open) = &mut self.0 {
            open.span.set_status(Status::error(why.to_owned()));
        }
    }

    /// Links another trace.
    pub fn link(&mut self, other: TraceContext) {
        if let Some(open) = &mut self.0 {
            open.span.add_link(sdk_context(other, false), Vec::new());
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = &mut self.0 {
            open.span.end_with_timestamp(open.tracer.now());
        }
    }
}

/// The SDK's context for children of `parent`.
fn below(parent: TraceContext, is_remote: bool) -> Context {
    Context::new().with_remote_span_context(sdk_context(parent, is_remote))
}

fn sdk_context(context: TraceContext, is_remote: bool) -> SpanContext {
    let trace = TraceId::from_bytes(context.trace_id());
    let span = SpanId::from_bytes(context.span_id());
    SpanContext::new(trace, span, TraceFlags::SAMPLED, is_remote, TraceState::NONE)
}
