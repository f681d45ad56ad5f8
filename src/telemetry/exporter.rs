//! Exports spans to the collector, in batches, one export at a time, from a bounded queue.

use std::{mem, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header, uri::Authority};
use http_body_util::Full;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans},
};
use prost::Message;
use tokio::{
    sync::{mpsc::Receiver, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{
    Batches, Settings, otlp,
    span::{Value, attribute},
};
use crate::{
    fetch::{FetchError, Fetcher},
    metrics::{self, LostSpan},
};

/// Bound on the final export of a stopping node.
const LAST_EXPORT: Duration = Duration::from_secs(3);
/// Tries of a retryable export, and the first pause, which doubles.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);

/// The exporter. Does nothing until it runs.
#[derive(Debug)]
pub struct Exporter {
    inbox: Receiver<otlp::Span>,
    batches: Batches,
    endpoint: Uri,
    headers: HeaderMap,
    resource: Resource,
    fetcher: Fetcher,
    /// Whether the last export failed.
    is_away: bool,
}

/// A failed export.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the collector answered {0}")]
    Status(StatusCode),
}

impl ExportError {
    /// Whether OTLP allows a retry.
    fn may_pass(&self) -> bool {
        match self {
            Self::Fetch(FetchError::TooLarge(_)) => false,
            Self::Fetch(_) => true,
            Self::Status(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }
}

impl Exporter {
    pub(super) fn new(
        settings: Settings,
        node: &str,
        fetcher: Fetcher,
        inbox: Receiver<otlp::Span>,
    ) -> Self {
        let Settings { endpoint, mut headers, resource, batches, .. } = settings;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let own = [
            ("service.instance.id", node),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.name", env!("CARGO_PKG_NAME")),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ];
        let own = own.into_iter().filter(|(key, _)| resource.iter().all(|(said, _)| said != key));
        let said = resource.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let attributes = own.chain(said).map(|(key, value)| attribute(key, Value::from(value)));
        let resource = Resource { attributes: attributes.collect(), ..Resource::default() };
        Self { inbox, batches, endpoint, headers, resource, fetcher, is_away: false }
    }

    /// Exports until `shutdown` completes, and then the queued spans, within [`LAST_EXPORT`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (close, closing) = oneshot::channel();
        let mut exporting = Box::pin(self.export_all(closing));
        tokio::select! {
            () = &mut exporting => return,
            () = shutdown => {}
        }
        // `exporting` keeps it alive.
        let _ = close.send(());
        if timeout(LAST_EXPORT, exporting).await.is_err() {
            warn!("not all traces were exported before the end");
        }
    }

    async fn export_all(mut self, mut closing: oneshot::Receiver<()>) {
        let mut batch = Vec::new();
        let mut is_closing = false;
        loop {
            tokio::select! {
                biased;
                _ = &mut closing, if !is_closing => {
                    is_closing = true;
                    self.inbox.close();
                    continue;
                }
                () = gather(&mut self.inbox, &mut batch, self.batches) => {}
            }
            if batch.is_empty() {
                return;
            }
            let spans = mem::take(&mut batch);
            let count = spans.len() as u64;
            match self.export(spans).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    metrics::SPANS_EXPORTED.increment(count - rejected);
                    metrics::SPANS_DROPPED.of(LostSpan::Rejected).increment(rejected);
                    if mem::take(&mut self.is_away) {
                        info!("the collector accepts traces again");
                    }
                }
                Err(error) => {
                    metrics::SPANS_DROPPED.of(LostSpan::Export).increment(count);
                    if !mem::replace(&mut self.is_away, true) {
                        let collector = self.endpoint.authority().map(Authority::as_str);
                        warn!(%error, collector, "traces cannot be exported: they are dropped for now");
                    }
                }
            }
        }
    }

    /// Number of spans that the collector rejected.
    async fn export(&self, spans: Vec<otlp::Span>) -> Result<u64, ExportError> {
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let of_scope = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
        let of_node = ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![of_scope],
            ..ResourceSpans::default()
        };
        let body: Bytes =
            ExportTraceServiceRequest { resource_spans: vec![of_node] }.encode_to_vec().into();
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.post(body.clone()).await {
                Err(error) if error.may_pass() && !self.is_away => sleep(pause).await,
                other => return other,
            }
            pause *= 2;
        }
        self.post(body).await
    }

    async fn post(&self, body: Bytes) -> Result<u64, ExportError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        request.uri_mut().clone_from(&self.endpoint);
        request.headers_mut().clone_from(&self.headers);
        let response = self.fetcher.fetch(request).await?;
        if !response.status().is_success() {
            return Err(ExportError::Status(response.status()));
        }
        // Some collectors send another body: then they accepted all.
        let answer = ExportTraceServiceResponse::decode(response.into_body()).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }
}

/// Waits for spans: until the batch is full, the first has waited long enough, or the queue is closed.
async fn gather(inbox: &mut Receiver<otlp::Span>, batch: &mut Vec<otlp::Span>, batches: Batches) {
    let Batches { max_batch, delay, .. } = batches;
    if batch.is_empty() && inbox.recv_many(batch, max_batch).await == 0 {
        return;
    }
    let until = Instant::now() + delay;
    while batch.len() < max_batch {
        let room = max_batch - batch.len();
        tokio::select! {
            came = inbox.recv_many(batch, room) => if came == 0 { return },
            () = sleep_until(until) => return,
        }
    }
}
