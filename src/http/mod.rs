//! HTTP: the API for history, presence and ICE servers, its description, the web page, and the listener below all
//! routes.
//!
//! To add an endpoint, write its handler with a `utoipa::path` annotation and name it in [`endpoints`].
//! What it takes from the query is a type that implements [`parameters::FromQuery`].

mod admin;
mod asyncapi;
mod calls;
mod document;
mod ice;
mod origin;
mod page;
mod parameters;
mod presence;
mod problem;
mod server;
mod stats;

use std::sync::Arc;

use axum::{Router, extract::FromRef, routing::get};
use utoipa_axum::{router::OpenApiRouter, routes};

pub use origin::{Origin, guarded};
pub use server::Server;

use crate::{calls::Calls, cluster::Cluster, history::Store, ice::Ice};

/// What the endpoints work with.
#[derive(Clone, FromRef)]
struct Parts {
    history: Arc<dyn Store>,
    cluster: Arc<dyn Cluster>,
    calls: Arc<Calls>,
    ice: Arc<Ice>,
}

/// The endpoints, each with its description.
fn endpoints() -> OpenApiRouter<Parts> {
    OpenApiRouter::new()
        .routes(routes!(calls::list))
        .routes(routes!(calls::show))
        .routes(routes!(calls::timeline))
        .routes(routes!(stats::show))
        .routes(routes!(presence::show))
        .routes(routes!(ice::show))
        .routes(routes!(admin::list))
        .routes(routes!(admin::end))
        .routes(routes!(admin::disconnect))
}

/// The routes of the API, its documents and the page.
pub fn routes(
    history: Arc<dyn Store>,
    cluster: Arc<dyn Cluster>,
    calls: Arc<Calls>,
    ice: Arc<Ice>,
) -> Router {
    let (router, described) = endpoints().split_for_parts();
    router
        .with_state(Parts { history, cluster, calls, ice })
        .route("/openapi.json", document::served(&document::openapi(described)))
        .route("/asyncapi.json", document::served(&asyncapi::asyncapi()))
        .fallback(get(page::file).fallback(problem::method_not_allowed))
        .method_not_allowed_fallback(problem::method_not_allowed)
}
