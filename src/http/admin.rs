//! `/v1/admin`: the operators' view and actions, on whatever node a call or user is.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use axum::{Extension, Json, extract::State};
use http::{Extensions, HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{RefOr, schema::Schema},
};

use super::{
    parameters::{Asked, FromQuery, Given, InPath, Limit},
    problem::{BadRequest, Forbidden, NotFound, Problem, Unavailable, Unknown},
};
use crate::{
    call::{Call, Refusal},
    calls::{Calls, Failure},
    cluster::Cluster,
    history::Row,
    ids::{CallId, NodeId, UserId},
    limits::{Limits, address::Peer},
    protocol::schema::text,
};

/// A part of the live calls of all nodes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveCalls {
    calls: Vec<LiveCall>,
    /// Where to go on; null at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// A live call.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveCall {
    #[serde(flatten)]
    call: Row,
    /// The node that holds the caller's device, or held the one that is lost.
    #[schema(required)]
    caller_node: Option<NodeId>,
    /// The same for the receiver; null while it rings.
    #[schema(required)]
    receiver_node: Option<NodeId>,
}

impl From<&Call> for LiveCall {
    fn from(call: &Call) -> Self {
        Self {
            call: Row::from(call),
            caller_node: call.caller.link.node(),
            receiver_node: call.callee.link.node(),
        }
    }
}

/// Which live calls to list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Wanted {
    /// Only the call that this user is in.
    user_id: Option<UserId>,
    /// About how many calls to list.
    #[param(inline)]
    limit: Option<Limit>,
    #[param(inline)]
    cursor: Option<Cursor>,
}

impl FromQuery for Wanted {
    fn from_query(given: &mut Given) -> Result<Self, Problem> {
        Ok(Self {
            user_id: given.optional("userId")?,
            limit: given.optional("limit")?,
            cursor: given.optional("cursor")?,
        })
    }
}

/// The longest cursor: a call id, or a number.
const MAX_CURSOR_BYTES: usize = 36;

/// Where to go on in the list of live calls.
pub struct Cursor(String);

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let fits = (1..=MAX_CURSOR_BYTES).contains(&text.len());
        let is_one = fits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        is_one.then(|| Self(text.to_owned())).ok_or("expected the nextCursor of an earlier part")
    }
}

impl ToSchema for Cursor {}

impl PartialSchema for Cursor {
    fn schema() -> RefOr<Schema> {
        text()
            .description(Some("The `nextCursor` of an earlier part."))
            .pattern(Some("^[0-9a-f-]{1,36}$"))
            .into()
    }
}

/// Live calls
///
/// In no order. A call that is live all the while is in one part or another, and may be in two.
#[utoipa::path(
    get,
    path = "/v1/admin/calls",
    operation_id = "listLiveCalls",
    tag = "operation",
    params(Wanted),
    responses((status = 200, description = "A part of the live calls", body = LiveCalls), BadRequest, Unknown, Forbidden, Unavailable),
)]
pub async fn list(
    State(calls): State<Arc<Calls>>,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<LiveCalls>, Problem> {
    let (live, next) = match wanted.user_id {
        Some(user) => {
            let call = calls.live_call_of(&user).await.map_err(|_| unavailable())?;
            (call.into_iter().collect(), None)
        }
        None => {
            let from = wanted.cursor.map(|cursor| cursor.0);
            let limit = wanted.limit.unwrap_or_default().0 as usize;
            calls.live_calls(from, limit).await.map_err(|_| unavailable())?
        }
    };
    let calls = live.iter().map(LiveCall::from).collect();
    Ok(Json(LiveCalls { calls, next_cursor: next }))
}

/// End a call
///
/// Both parties hear `call:ended` with the reason `terminated`. A call that has ended already stays as
/// it ended.
#[utoipa::path(
    post,
    path = "/v1/admin/calls/{id}/end",
    operation_id = "endCall",
    tag = "operation",
    params(("id" = CallId, Path, description = "The call's id")),
    responses((status = 200, description = "The call as it ended", body = Row), BadRequest, Unknown, Forbidden, NotFound, Unavailable),
)]
pub async fn end(
    State(calls): State<Arc<Calls>>,
    InPath(id): InPath<CallId>,
    Asked(Nothing): Asked<Nothing>,
) -> Result<Json<Row>, Problem> {
    match calls.terminate(id).await {
        Ok(call) => Ok(Json(Row::from(&call))),
        Err(Failure::Refused(Refusal::NotInCall)) => {
            Err(Problem::not_found("There is no live call with this id"))
        }
        Err(_) => Err(unavailable()),
    }
}

/// A request as it arrived.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// The node that answers.
    node: NodeId,
    /// The address of the connection's other end.
    peer: String,
    /// Whether that is a trusted proxy.
    is_trusted: bool,
    /// The address that the request counts for; a network for IPv6.
    address: String,
    /// The headers of proxies, and `host`.
    forwarded: BTreeMap<String, String>,
}

/// The headers that say which way a request has come.
const OF_PROXIES: [&str; 6] =
    ["host", "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// Show this request
///
/// How it arrived at the node: to see what the proxies in front do. `switchboard doctor --url` asks this.
#[utoipa::path(
    get,
    path = "/v1/admin/request",
    operation_id = "showRequest",
    tag = "operation",
    responses((status = 200, description = "The request", body = Arrival), BadRequest, Unknown, Forbidden),
)]
pub async fn arrival(
    State(cluster): State<Arc<dyn Cluster>>,
    State(limits): State<Arc<Limits>>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    extensions: Extensions,
    Asked(Nothing): Asked<Nothing>,
) -> Json<Arrival> {
    let of = |name: &&str| {
        let values =
            headers.get_all(*name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let value = values.collect::<Vec<_>>().join(", ");
        headers.contains_key(*name).then(|| ((*name).to_owned(), value))
    };
    Json(Arrival {
        node: cluster.node(),
        peer: peer.to_canonical().to_string(),
        is_trusted: limits.trusts(peer),
        address: limits.source_of(&extensions, &headers).to_string(),
        forwarded: OF_PROXIES.iter().filter_map(of).collect(),
    })
}

/// Whom an order went to.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ordered {
    /// On how many nodes the user has sockets.
    nodes: usize,
}

/// Disconnect a user
///
/// Every socket of the user is closed, on every node, and a call in which it was ends. The client
/// library does not reconnect by itself.
#[utoipa::path(
    post,
    path = "/v1/admin/users/{id}/disconnect",
    operation_id = "disconnectUser",
    tag = "operation",
    params(("id" = UserId, Path, description = "The user's id")),
    responses((status = 202, description = "It is being done", body = Ordered), BadRequest, Unknown, Forbidden, Unavailable),
)]
pub async fn disconnect(
    State(calls): State<Arc<Calls>>,
    InPath(user): InPath<UserId>,
    Asked(Nothing): Asked<Nothing>,
) -> Result<(StatusCode, Json<Ordered>), Problem> {
    let nodes = calls.disconnect(&user).await.map_err(|_| unavailable())?;
    Ok((StatusCode::ACCEPTED, Json(Ordered { nodes })))
}

/// An endpoint that takes no parameters.
pub struct Nothing;

impl FromQuery for Nothing {
    fn from_query(_: &mut Given) -> Result<Self, Problem> {
        Ok(Self)
    }
}

fn unavailable() -> Problem {
    Problem::unavailable("The live calls cannot be reached right now: try again shortly")
}
