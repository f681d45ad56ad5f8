//! HTTP: the history API, the web page, and the listener below all routes.

mod calls;
mod page;
mod problem;
mod server;

use std::sync::Arc;

use axum::{Router, routing::get};

pub use server::Server;

use crate::history::Store;

/// The routes of the API and the page.
pub fn routes(history: Arc<dyn Store>) -> Router {
    Router::new()
        .route("/v1/calls", get(calls::list))
        .route("/v1/calls/{id}", get(calls::show))
        .with_state(history)
        .fallback(get(page::file).fallback(problem::method_not_allowed))
        .method_not_allowed_fallback(problem::method_not_allowed)
}
