//! The admin listener: health, metrics and log filter for operators.

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use http::{HeaderName, StatusCode, header};
use tracing::info;

use super::{
    access::Door,
    problem::{self, Problem},
};
use crate::{
    auth::Access, health::Health, limits::Limits, limits::address::Peer, logs::Filter,
    metrics::Exposition,
};

/// Bound on a log filter, in bytes.
const MAX_FILTER_BYTES: usize = 4 * 1024;

/// Headers that proxies add. A request with any of these comes from elsewhere, though the proxy may
/// be on this machine.
const FORWARDED: [HeaderName; 4] = [
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-real-ip"),
];

/// Guards changes on the admin listener. The listener serves before tokens can be checked: until
/// [`Operators::check_with`], only this machine may. Cheap to clone.
#[derive(Clone, Default)]
pub struct Operators(Arc<OnceLock<Door>>);

impl Operators {
    /// Also admits tokens with the scope `admin`.
    pub fn check_with(&self, access: Arc<Access>, limits: Arc<Limits>) {
        // There is one service in a process, which says so once.
        let _ = self.0.set(Door { access, limits });
    }
}

/// The endpoints, as text for a person who opens the address.
const ENDPOINTS: &str = "\
GET /livez    200 while the process runs
GET /readyz   200 while the node is to be sent new clients; what it does without at the moment
GET /metrics  metrics in Prometheus' text format
GET /log      the filter of the log
PUT /log      another filter, in the body, as in RUST_LOG: info,switchboard=debug; from this machine, or with a token
";

/// The routes of the admin listener.
pub fn routes(health: Health, filter: Filter, metrics: Exposition, operators: Operators) -> Router {
    let changes = Router::new()
        .route("/log", put(set_filter))
        .route_layer(from_fn_with_state(operators, operators_only))
        .with_state(filter.clone());
    Router::new()
        .merge(changes)
        .route("/", get(async || ENDPOINTS))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready).with_state(health))
        .route("/metrics", get(show_metrics).with_state(metrics))
        .route("/log", get(show_filter).with_state(filter))
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

async fn operators_only(
    State(Operators(door)): State<Operators>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if !is_from_here(&request) {
        let door = door.get().ok_or_else(|| Problem::unavailable("This node is starting"))?;
        let asker = door.asker(request.extensions(), request.headers()).await?;
        if !asker.is_known_admin() {
            return Err(Problem::forbidden(
                "This is for requests from the node's own machine, or with a token that has the scope admin",
            ));
        }
    }
    Ok(next.run(request).await)
}

fn is_from_here(request: &Request) -> bool {
    let peer = request.extensions().get::<Peer>();
    peer.is_some_and(|Peer(address)| address.to_canonical().is_loopback())
        && !FORWARDED.iter().any(|name| request.headers().contains_key(name))
}

async fn show_filter(State(filter): State<Filter>) -> String {
    format!("{}\n", filter.directives())
}

async fn set_filter(State(filter): State<Filter>, wanted: String) -> Result<String, Problem> {
    let wanted = wanted.trim();
    filter.set(wanted).map_err(|error| Problem::bad_request(error.to_string()))?;
    info!(filter = wanted, "the log filter was changed");
    Ok(show_filter(State(filter)).await)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn only_this_machine_is_here() {
        let is_here = |peer: &str, header: Option<&str>| {
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(Peer(peer.parse().unwrap()));
            if let Some(name) = header {
                let name: HeaderName = name.parse().unwrap();
                request.headers_mut().insert(name, "127.0.0.1".parse().unwrap());
            }
            is_from_here(&request)
        };
        for here in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert!(is_here(here, None), "{here}");
            for forwarded in ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"] {
                assert!(!is_here(here, Some(forwarded)), "{forwarded}");
            }
        }
        for elsewhere in ["10.0.0.1", "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.1", "0.0.0.0"] {
            assert!(!is_here(elsewhere, None), "{elsewhere}");
        }
        assert!(!is_from_here(&Request::new(Body::empty())), "nobody knows from where");
    }
}
