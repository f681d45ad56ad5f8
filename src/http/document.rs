//! `/openapi.json`: the description of the API, made from the code once, when the service starts.

use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use http::header;
use serde::Serialize;
use utoipa::openapi::{
    OpenApi, RefOr, Required, Server,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::{parameters::USER_ID, problem::Problem};

/// The name of the security scheme.
const SCHEME: &str = "token";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "switchboard",
        description = "Call history, presence, ICE servers and operation. Calls themselves are made on the socket: see `/asyncapi.json`.\n\n\
            Parameters that an endpoint does not name are refused. A request's head may have 16 KiB; what is \
            longer is answered with 431 and no body.\n\n\
            In `jwt` mode every request needs a token, `Authorization: Bearer …`: it says who asks, and `userId` \
            can be left out. With the scope `admin` it may be any user. In `open` mode, for development, nobody \
            is asked for a token, and `userId` says who asks.",
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
pub fn openapi(endpoints: OpenApi, is_open: bool) -> OpenApi {
    let mut document = <Frame as utoipa::OpenApi>::openapi();
    document.merge(endpoints);
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    let token = SecurityRequirement::new(SCHEME, [] as [&str; 0]);
    // An empty requirement says that nothing is required.
    let open = is_open.then(SecurityRequirement::default);
    document.security = Some(open.into_iter().chain([token]).collect());
    if !is_open {
        let gets = document.paths.paths.values_mut().filter_map(|path| path.get.as_mut());
        for parameter in gets.flat_map(|get| get.parameters.iter_mut().flatten()) {
            if let RefOr::T(parameter) = parameter
                && parameter.name == USER_ID
            {
                parameter.required = Required::False;
            }
        }
    }
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
