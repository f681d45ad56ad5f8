//! `/v1/presence`: the presence of users.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Extension, Json, extract::State};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    access::Costs,
    parameters::{Asked, FromQuery, Given, UserIds},
    problem::{BadRequest, Problem, TooOften, Unavailable, Unknown},
};
use crate::{
    calls::{Calls, Failure},
    ids::UserId,
    protocol::Presence,
};

/// The presence of each user that was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct PresenceOfUsers {
    presence: BTreeMap<UserId, Presence>,
}

/// The query.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Whose {
    /// User ids separated by commas. Repeated ids count. An id that
    /// has a comma itself can be asked for on the socket only.
    #[param(style = Form, explode = false, inline)]
    user_ids: UserIds,
}

impl FromQuery for Whose {
    fn from_query(given: &mut Given) -> Result<Self, Problem> {
        Ok(Self { user_ids: given.required("userIds", "user ids with commas between them")? })
    }
}

/// Presence of users
///
/// The same result as `presence:subscribe` on the socket, without later changes.
#[utoipa::path(
    get,
    path = "/v1/presence",
    operation_id = "getPresence",
    tag = "presence",
    params(Whose),
    responses(
        (status = 200, description = "The presence of each user", body = PresenceOfUsers),
        BadRequest,
        Unknown,
        TooOften,
        (status = 431, description = "The ids together are longer than the head of a request may be"),
        Unavailable,
    ),
)]
pub async fn show(
    State(calls): State<Arc<Calls>>,
    Extension(costs): Extension<Costs>,
    Asked(Whose { user_ids: UserIds(users) }): Asked<Whose>,
) -> Result<Json<PresenceOfUsers>, Problem> {
    costs.presence_of(users.len())?;
    let unavailable = |failure| {
        if failure == Failure::PresenceBusy {
            costs.note_presence_busy();
        }
        Problem::unavailable("Presence cannot be told right now: try again shortly")
    };
    let presence = calls.presence(&users).await.map_err(unavailable)?;
    let presence = presence.into_iter().map(|edge| (edge.user, edge.presence)).collect();
    Ok(Json(PresenceOfUsers { presence }))
}
