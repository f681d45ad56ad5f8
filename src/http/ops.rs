//! The admin listener: what machines that look after this node ask it. Not for the public.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use tracing::info;

use super::problem::{self, Problem};
use crate::{health::Health, logs::Filter, metrics::Exposition};

/// Longest filter of the log.
const MAX_FILTER_BYTES: usize = 4 * 1024;

/// The routes of the admin listener.
pub fn routes(health: Health, filter: Filter, metrics: Exposition) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready).with_state(health))
        .route("/metrics", get(show_metrics).with_state(metrics))
        .route("/log", get(show_filter).put(set_filter).with_state(filter))
        .layer(DefaultBodyLimit::max(MAX_FILTER_BYTES))
        .fallback(async || Problem::not_found("There is nothing here"))
        .method_not_allowed_fallback(problem::method_not_allowed)
}

async fn ready(State(health): State<Health>) -> Response {
    let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health.report())).into_response()
}

async fn show_metrics(State(metrics): State<Exposition>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, metrics.render()).into_response()
}

async fn show_filter(State(filter): State<Filter>) -> String {
    format!("{}\n", filter.directives())
}

async fn set_filter(State(filter): State<Filter>, wanted: String) -> Result<String, Problem> {
    let wanted = wanted.trim();
    filter.set(wanted).map_err(|error| Problem::bad_request(error.to_string()))?;
    info!(filter = wanted, "the log was given another filter");
    Ok(show_filter(State(filter)).await)
}
