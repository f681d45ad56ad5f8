//! A span, while it is being recorded.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{
        Status,
        span::{Link, SpanKind},
        status::StatusCode,
    },
};
use tokio::sync::mpsc::error::TrySendError;
use uuid::Uuid;

use super::{Tracer, otlp};
use crate::{
    metrics::{self, LostSpan},
    trace::TraceContext,
};

/// W3C trace flags: sampled, with a valid parent-is-remote bit.
const SAMPLED: u32 = 0x101;
/// Its parent may be another process's.
const FROM_AFAR: u32 = 0x200;

/// A span that is recorded when it is dropped. Empty if its call is not sampled.
#[derive(Debug)]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    tracer: Arc<Tracer>,
    context: TraceContext,
    span: otlp::Span,
}

/// The content of a span.
pub enum Value {
    Text(String),
    Count(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

/// An OTLP attribute.
pub fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text),
        Value::Count(count) => any_value::Value::IntValue(count),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

impl Span {
    /// The empty span of a call that is not sampled.
    pub const NONE: Self = Self(None);

    pub(super) fn root(tracer: Arc<Tracer>, context: TraceContext, name: &'static str) -> Self {
        Self::open(tracer, context, Vec::new(), name, SpanKind::Server, SAMPLED)
    }

    pub(super) fn follow(
        tracer: Arc<Tracer>,
        parent: TraceContext,
        name: &'static str,
        kind: SpanKind,
    ) -> Self {
        Self::under(tracer, parent, name, kind, SAMPLED | FROM_AFAR)
    }

    /// A child of this span.
    #[must_use = "it ends when it is dropped"]
    pub fn part(&self, name: &'static str, kind: SpanKind) -> Self {
        let Some(open) = &self.0 else { return Self::NONE };
        Self::under(open.tracer.clone(), open.context, name, kind, SAMPLED)
    }

    fn under(
        tracer: Arc<Tracer>,
        parent: TraceContext,
        name: &'static str,
        kind: SpanKind,
        flags: u32,
    ) -> Self {
        let random = Uuid::new_v4();
        let context = parent.step(*random.as_bytes().first_chunk().expect("it has 16 bytes"));
        Self::open(tracer, context, parent.span_id().to_vec(), name, kind, flags)
    }

    fn open(
        tracer: Arc<Tracer>,
        context: TraceContext,
        parent_span_id: Vec<u8>,
        name: &'static str,
        kind: SpanKind,
        flags: u32,
    ) -> Self {
        let span = otlp::Span {
            trace_id: context.trace_id().to_vec(),
            span_id: context.span_id().to_vec(),
            parent_span_id,
            flags,
            name: name.to_owned(),
            kind: kind.into(),
            start_time_unix_nano: tracer.clock.now_us() * 1_000,
            ..otlp::Span::default()
        };
        Self(Some(Box::new(Open { tracer, context, span })))
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
            open.span.attributes.push(attribute(key, value.into()));
        }
    }

    /// Marks a failure of this service or of a dependency.
    pub fn fail(&mut self, why: &str) {
        if let Some(open) = &mut self.0 {
            open.span.status =
                Some(Status { message: why.to_owned(), code: StatusCode::Error.into() });
        }
    }

    /// Links another trace.
    pub fn link(&mut self, other: TraceContext) {
        if let Some(open) = &mut self.0 {
            let (trace_id, span_id) = (other.trace_id().to_vec(), other.span_id().to_vec());
            open.span.links.push(Link { trace_id, span_id, flags: SAMPLED, ..Link::default() });
        }
    }

    /// Sets its start and end, in milliseconds, independent of the time of recording.
    pub fn lasted(&mut self, from_ms: u64, to_ms: u64) {
        if let Some(open) = &mut self.0 {
            open.span.start_time_unix_nano = from_ms * 1_000_000;
            open.span.end_time_unix_nano = to_ms * 1_000_000;
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open { tracer, mut span, .. } = *open;
        if span.end_time_unix_nano == 0 {
            span.end_time_unix_nano = tracer.clock.now_us() * 1_000;
        }
        match tracer.queue.try_send(span) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => metrics::SPANS_DROPPED.of(LostSpan::Queue).increment(1),
            Err(TrySendError::Closed(_)) => metrics::SPANS_DROPPED.of(LostSpan::Late).increment(1),
        }
    }
}
