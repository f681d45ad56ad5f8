//! `/v1/ice-servers`: the configuration for `RTCPeerConnection`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    parameters::{Asked, FromQuery, Given},
    problem::{BadRequest, Forbidden, Problem, Unknown},
};
use crate::{
    ice::{Ice, Servers},
    ids::UserId,
    protocol::IceServer,
};

/// STUN and TURN servers.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IceServers {
    ice_servers: Vec<IceServer>,
    /// For how many seconds the servers may be used.
    ttl: u64,
}

/// The query.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Who {
    user_id: UserId,
}

impl FromQuery for Who {
    fn from_query(given: &mut Given) -> Result<Self, Problem> {
        Ok(Self { user_id: given.user()? })
    }
}

/// The servers that `RTCPeerConnection` needs
///
/// The same answer as to `ice:servers` on the socket. Credentials of a relay are this user's, and
/// expire.
#[utoipa::path(
    get,
    path = "/v1/ice-servers",
    operation_id = "getIceServers",
    tag = "media",
    params(Who),
    responses((status = 200, description = "The servers", body = IceServers), BadRequest, Unknown, Forbidden),
)]
pub async fn show(State(ice): State<Arc<Ice>>, Asked(Who { user_id }): Asked<Who>) -> Response {
    let Servers { ice_servers, ttl_s } = ice.servers_for(&user_id);
    let answer = Json(IceServers { ice_servers, ttl: ttl_s });
    // The credentials belong to one user.
    ([(header::CACHE_CONTROL, "no-store")], answer).into_response()
}
