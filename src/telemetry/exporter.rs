//! Exports spans to the collector: the SDK's batch processor and OTLP exporter, with the service's HTTP client, a count
//! of each dropped span, and a log line when drops begin and end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, uri::Authority};
use http_body_util::Full;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::TelemetryResourceDetector,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, TryAcquireError},
    task::spawn_blocking,
};
use tracing::{info, warn};

use super::Settings;
use crate::{
    fetch::{Fetcher, Limits},
    metrics::{self, LostSpan},
};

/// Bound on the final export of a stopping node.
const LAST_EXPORT: Duration = Duration::from_secs(3);
/// Bound on a response of the collector.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The span processor of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exporter {
    collector: Arc<Collector>,
    batches: Arc<BatchSpanProcessor>,
}

/// The collector, as the HTTP client of the OTLP exporter.
#[derive(Debug)]
struct Collector {
    endpoint: Uri,
    headers: HeaderMap,
    fetcher: Arc<Fetcher>,
    runtime: Handle,
    /// Room in the queue. The batch processor has a queue of the same length, but does not tell which spans it drops.
    room: Semaphore,
    /// The number of spans that it rejected in the last try, and the error of that try.
    rejected: AtomicU64,
    error: Mutex<Option<String>>,
    /// Whether the last export failed.
    is_away: AtomicBool,
}

/// The OTLP exporter, whose results are counted.
#[derive(Debug)]
struct Counted {
    collector: Arc<Collector>,
    otlp: opentelemetry_otlp::SpanExporter,
}

impl Exporter {
    pub(super) fn start(settings: Settings, node: &str) -> std::io::Result<Self> {
        let Settings { endpoint, headers, timeout, resource, batches, .. } = settings;
        // Exports are sequential.
        let limits = Limits { timeout, max_bytes: MAX_ANSWER_BYTES, max_concurrent: 1 };
        let collector = Arc::new(Collector {
            fetcher: Arc::new(Fetcher::new(&endpoint, limits)?),
            endpoint,
            headers,
            runtime: Handle::current(),
            room: Semaphore::new(batches.max_queue),
            rejected: AtomicU64::new(0),
            error: Mutex::default(),
            is_away: AtomicBool::new(false),
        });
        let otlp = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_shared_http_client(collector.clone())
            .with_endpoint(collector.endpoint.to_string())
            // The client bounds each try, the retry policy their number.
            .with_timeout(Duration::MAX)
            .build()
            .map_err(std::io::Error::other)?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(batches.max_queue)
            .with_max_export_batch_size(batches.max_batch)
            .with_scheduled_delay(batches.delay)
            .build();
        let counted = Counted { collector: collector.clone(), otlp };
        let mut batches = BatchSpanProcessor::builder(counted).with_batch_config(batches).build();
        let own = [("service.instance.id", node), ("service.version", env!("CARGO_PKG_VERSION"))];
        let own = own.map(|(key, value)| KeyValue::new(key, value.to_owned()));
        let said = resource.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let resource = Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_attributes(own.into_iter().chain(said));
        batches.set_resource(&resource.build());
        Ok(Self { collector, batches: Arc::new(batches) })
    }

    /// Exports the queued spans, within [`LAST_EXPORT`]. Later spans are dropped.
    pub async fn finish(self) {
        self.collector.room.close();
        // The SDK blocks until its thread has exported them.
        let finish = move || self.batches.shutdown_with_timeout(LAST_EXPORT);
        if !matches!(spawn_blocking(finish).await, Ok(Ok(()))) {
            warn!("not all traces were exported before the end");
        }
    }
}

impl SpanProcessor for Exporter {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        match self.collector.room.try_acquire() {
            Ok(place) => {
                place.forget();
                self.batches.on_end(span);
            }
            Err(TryAcquireError::NoPermits) => lose(LostSpan::Queue, 1),
            Err(TryAcquireError::Closed) => lose(LostSpan::Late, 1),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    /// Only [`Exporter::finish`] ends it.
    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let collector = &self.collector;
        let count = batch.len() as u64;
        collector.room.add_permits(batch.len());
        let exported = self.otlp.export(batch).await;
        match &exported {
            Ok(()) => {
                let rejected = collector.rejected.swap(0, Relaxed).min(count);
                metrics::SPANS_EXPORTED.increment(count - rejected);
                lose(LostSpan::Rejected, rejected);
                if collector.is_away.swap(false, Relaxed) {
                    info!("the collector accepts traces again");
                }
            }
            Err(error) => {
                lose(LostSpan::Export, count);
                if !collector.is_away.swap(true, Relaxed) {
                    let error = collector.error.lock().take().unwrap_or_else(|| error.to_string());
                    let collector = collector.endpoint.authority().map(Authority::as_str);
                    warn!(%error, collector, "traces cannot be exported: they are dropped for now");
                }
            }
        }
        exported
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

#[async_trait]
impl HttpClient for Collector {
    /// Called on the batch processor's thread, which is none of the runtime's.
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        request.headers_mut().extend(self.headers.clone());
        let fetcher = self.fetcher.clone();
        let fetch = async move { fetcher.fetch(request.map(Full::new)).await };
        let fetched = self.runtime.spawn(fetch).await?;
        *self.error.lock() = match &fetched {
            Ok(response) if response.status().is_success() => {
                // Some collectors send another body: then they accepted all.
                let answer = ExportTraceServiceResponse::decode(response.body().clone());
                let partial = answer.unwrap_or_default().partial_success.unwrap_or_default();
                self.rejected.store(partial.rejected_spans.try_into().unwrap_or(0), Relaxed);
                None
            }
            Ok(response) => Some(format!("the collector answered {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        Ok(fetched?)
    }
}

fn lose(why: LostSpan, count: u64) {
    metrics::SPANS_DROPPED.of(why).increment(count);
}
