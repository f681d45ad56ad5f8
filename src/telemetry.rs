//! Traces of call attempts across all nodes, exported as OTLP over HTTP. Calls that are not sampled allocate nothing.

mod exporter;
mod span;

use std::{
    fmt, io,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, Uri};
pub use opentelemetry::trace::SpanKind;
use opentelemetry::{
    InstrumentationScope,
    trace::{SpanBuilder, TracerProvider as _},
};
use opentelemetry_sdk::trace as sdk;

pub use exporter::Exporter;
pub use span::Span;

use crate::{
    ids::CallId,
    time::{Clock, Timestamp},
    trace::TraceContext,
};

/// Destination and sampling of traces.
#[derive(Debug, Clone)]
pub struct Settings {
    pub endpoint: Uri,
    /// Headers of each export. Their values are marked as sensitive, so nothing prints them.
    pub headers: HeaderMap,
    pub timeout: Duration,
    pub sampler: Sampler,
    /// Resource attributes of this process, beside its node.
    pub resource: Vec<(String, String)>,
    pub batches: Batches,
}

/// Batching of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batches {
    /// Bound on the queue. Further spans are dropped.
    pub max_queue: usize,
    /// Bound on the spans of an export.
    pub max_batch: usize,
    /// Longest wait of a span for others.
    pub delay: Duration,
}

/// Sampling by call id alone, so that all nodes with the same setting agree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    ratio: f64,
    /// Smallest sampled value of the random bits in a call id.
    threshold: u64,
}

/// The random bits at the end of an id that OpenTelemetry's samplers compare.
const RANDOM_BITS: u32 = 56;

/// The sampler of this process, for its log.
static SAMPLER: OnceLock<Sampler> = OnceLock::new();

impl Sampler {
    pub const ALL: Self = Self { ratio: 1.0, threshold: 0 };
    pub const NONE: Self = Self { ratio: 0.0, threshold: 1 << RANDOM_BITS };

    /// A sampler for this share of all calls. None unless it is from 0 to 1.
    pub fn ratio(ratio: f64) -> Option<Self> {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to 2^56, which an f64 holds"
        )]
        let threshold = ((1.0 - ratio) * Self::NONE.threshold as f64).round() as u64;
        (0.0..=1.0).contains(&ratio).then_some(Self { ratio, threshold })
    }

    pub fn takes(&self, call: CallId) -> bool {
        let bytes = call.to_bytes();
        let end = u64::from_be_bytes(*bytes.last_chunk().expect("it has 16 bytes"));
        end & ((1 << RANDOM_BITS) - 1) >= self.threshold
    }
}

/// The share of sampled calls.
impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ratio)
    }
}

/// Records spans. Cheap to clone; without a collector it records nothing.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Tracer>>);

#[derive(Debug)]
struct Tracer {
    clock: Clock,
    sampler: Sampler,
    sdk: sdk::SdkTracer,
}

impl Tracer {
    fn builder(&self, name: &'static str, kind: SpanKind) -> SpanBuilder {
        SpanBuilder::from_name(name).with_kind(kind).with_start_time(self.now())
    }

    fn now(&self) -> SystemTime {
        time(self.clock.now_us())
    }
}

fn time(us: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(us)
}

/// Starts tracing for the whole process, on the runtime of its caller. Spans use this clock.
pub fn start(settings: Settings, node: &str, clock: Clock) -> io::Result<(Traces, Exporter)> {
    let sampler = settings.sampler;
    let exporter = Exporter::start(settings, node)?;
    // Tracing starts once per process.
    let _ = SAMPLER.set(sampler);
    let provider = sdk::SdkTracerProvider::builder()
        .with_id_generator(span::CallIds::default())
        // A span begins once its call is sampled.
        .with_sampler(sdk::Sampler::AlwaysOn)
        .with_span_processor(exporter.clone())
        .build();
    let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"));
    let scope = scope.with_version(env!("CARGO_PKG_VERSION")).build();
    let sdk = provider.tracer_with_scope(scope);
    Ok((Traces(Some(Arc::new(Tracer { clock, sampler, sdk }))), exporter))
}

/// The trace id of a call, for the log. None if it is not sampled.
pub fn trace_id(call: &str) -> Option<String> {
    let call: CallId = SAMPLER.get().and_then(|_| call.parse().ok())?;
    let is_sampled = SAMPLER.get().is_some_and(|sampler| sampler.takes(call));
    is_sampled.then(|| format!("{:032x}", u128::from_be_bytes(call.to_bytes())))
}

impl Traces {
    /// Whether sampled calls are traced.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The root span of this call, if it is sampled.
    pub fn attempt(&self, call: CallId, name: &'static str) -> Span {
        match &self.0 {
            Some(tracer) if tracer.sampler.takes(call) => Span::root(tracer, call, name),
            Some(_) | None => Span::NONE,
        }
    }

    /// A child of `parent`, the context that another node or an earlier event left.
    pub fn step(&self, parent: Option<TraceContext>, name: &'static str, kind: SpanKind) -> Span {
        let (Some(tracer), Some(parent)) = (&self.0, parent) else { return Span::NONE };
        Span::follow(tracer, parent, tracer.builder(name, kind))
    }

    /// Records a child of `parent` that is over.
    pub fn phase(
        &self,
        parent: Option<TraceContext>,
        name: &'static str,
        (from, to): (Timestamp, Timestamp),
    ) {
        let (Some(tracer), Some(parent)) = (&self.0, parent) else { return };
        let [from, to] = [from, to].map(|at| time(at.as_millis() * 1_000));
        let builder = tracer.builder(name, SpanKind::Internal).with_start_time(from);
        Span::follow(tracer, parent, builder).end(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn the_share_of_calls_that_is_sampled_is_what_was_asked_for() {
        let calls: Vec<_> =
            (0..20_000).map(|ms| CallId::generate(Timestamp::from_millis(ms))).collect();
        let sampled = |ratio| {
            let sampler = Sampler::ratio(ratio).unwrap();
            calls.iter().filter(|call| sampler.takes(**call)).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 20_000));
        // Ten times the standard deviation.
        assert!(sampled(0.1).abs_diff(2_000) < 430, "{}", sampled(0.1));
        assert!(sampled(0.5).abs_diff(10_000) < 710, "{}", sampled(0.5));
        assert_eq!(
            (Sampler::ratio(1.0), Sampler::ratio(0.0)),
            (Some(Sampler::ALL), Some(Sampler::NONE))
        );
        assert!([-0.1, 1.1, f64::NAN].into_iter().all(|ratio| Sampler::ratio(ratio).is_none()));
    }

    #[test]
    fn what_a_smaller_share_takes_a_larger_one_takes_too() {
        let (small, large) = (Sampler::ratio(0.2).unwrap(), Sampler::ratio(0.3).unwrap());
        for ms in 0..5_000 {
            let call = CallId::generate(Timestamp::from_millis(ms));
            assert!(!small.takes(call) || large.takes(call));
        }
    }

    #[test]
    fn without_a_collector_nothing_is_noted() {
        let call = CallId::generate(Timestamp::from_millis(1));
        let traces = Traces::default();
        assert!(traces.attempt(call, "attempt").context().is_none());
        let step = traces.step(Some(TraceContext::of(call)), "step", SpanKind::Internal);
        assert!(step.context().is_none());
    }
}
