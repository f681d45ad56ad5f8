//! `/openapi.json`: the description of the API, made from the code once, when the service starts.

use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use http::header;
use serde::Serialize;
use utoipa::openapi::{OpenApi, Server};

use super::problem::Problem;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "switchboard",
        description = "Call history, presence, ICE servers and operation. Calls themselves are made on the socket: see `/asyncapi.json`.\n\n\
            Parameters that an endpoint does not name are refused. A request's head may have 16 KiB; what is \
            longer is answered with 431 and no body.",
    ),
    components(schemas(Problem)),
    tags(
        (name = "history", description = "The calls that a user made or got"),
        (name = "statistics", description = "How calls go, all users' together"),
        (name = "presence", description = "Who can be called"),
        (name = "media", description = "How the media of calls finds its way"),
        (name = "operation", description = "What operators see and do, on whatever node it is"),
    ),
)]
struct Frame;

/// The whole document around the description of the endpoints.
pub fn openapi(endpoints: OpenApi) -> OpenApi {
    let mut document = <Frame as utoipa::OpenApi>::openapi();
    document.merge(endpoints);
    document.servers = Some(vec![Server::new("/")]);
    document
}

/// A route that answers with this document.
pub fn served<S: Clone + Send + Sync + 'static>(document: &impl Serialize) -> MethodRouter<S> {
    let json = serde_json::to_vec(document).expect("a document is plain data");
    let json = Bytes::from(json);
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")];
    get(async move || (headers, json.clone()))
}
