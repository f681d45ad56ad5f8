//! HTTP: the API for history, presence and ICE servers, its description, the web page, the admin listener, and
//! the listener below all routes.
//!
//! To add an endpoint, write its handler with a `utoipa::path` annotation and list it in [`endpoints`]. Its query is a
//! type that implements [`parameters::FromQuery`].

pub(crate) mod access;
pub(crate) mod admin;
mod asyncapi;
pub(crate) mod calls;
mod document;
mod hosts;
pub(crate) mod ice;
pub mod ops;
mod origin;
mod page;
pub(crate) mod parameters;
pub(crate) mod presence;
pub(crate) mod problem;
mod server;
pub(crate) mod stats;
mod waiting;

use std::sync::Arc;

use axum::{
    Router,
    extract::FromRef,
    middleware::{from_fn, from_fn_with_state, map_response},
    routing::get,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use access::Door;
pub use hosts::{Host, Hosts, guarded as for_hosts};
pub use origin::{Origin, guarded as for_origins};
pub use server::Server;

use crate::{
    auth::Access, calls::Calls, cluster::Cluster, history::Store, ice::Ice, limits::Limits,
};

/// The state of the endpoints.
#[derive(Clone, FromRef)]
struct Parts {
    history: Arc<dyn Store>,
    cluster: Arc<dyn Cluster>,
    calls: Arc<Calls>,
    ice: Arc<Ice>,
    limits: Arc<Limits>,
}

/// The endpoints, each with its description.
fn endpoints(door: Door) -> OpenApiRouter<Parts> {
    let history = OpenApiRouter::new()
        .routes(routes!(calls::list))
        .routes(routes!(calls::show))
        .routes(routes!(calls::timeline))
        .route_layer(from_fn_with_state(door.clone(), access::few_at_a_time));
    let users = history
        .routes(routes!(presence::show))
        .route_layer(from_fn_with_state(door.clone(), access::not_too_often))
        .routes(routes!(ice::show));
    let statistics =
        OpenApiRouter::new().routes(routes!(stats::show)).route_layer(from_fn(access::stats_only));
    let operators = OpenApiRouter::new()
        .routes(routes!(admin::list))
        .routes(routes!(admin::arrival))
        .routes(routes!(admin::end))
        .routes(routes!(admin::disconnect))
        .route_layer(from_fn(access::admins_only));
    let all = users.merge(statistics).merge(operators);
    all.route_layer(from_fn_with_state(door, access::know_who_asks))
        .route_layer(map_response(access::not_kept))
}

/// The routes of the API, its documents and the page.
pub fn routes(
    history: Arc<dyn Store>,
    cluster: Arc<dyn Cluster>,
    calls: Arc<Calls>,
    access: Arc<Access>,
    ice: Arc<Ice>,
    limits: Arc<Limits>,
) -> Router {
    let (is_open, sizes) = (access.is_open(), limits.settings().sizes);
    let (router, described) = endpoints(Door { access, limits: limits.clone() }).split_for_parts();
    let described = document::openapi(described, is_open);
    router
        .with_state(Parts { history, cluster, calls, ice, limits })
        .route("/openapi.json", document::served(&described))
        .route("/asyncapi.json", document::served(&asyncapi::asyncapi(&sizes)))
        .fallback(get(page::file).fallback(problem::method_not_allowed))
        .method_not_allowed_fallback(problem::method_not_allowed)
}
