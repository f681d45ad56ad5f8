//! `/v1/calls`: the history of a user's calls.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use tracing::error;
use utoipa::{IntoParams, ToSchema};

use super::{
    parameters::{Asked, Cursor, FromQuery, Given, InPath, Limit, Moment},
    problem::{BadRequest, Forbidden, NotFound, Problem, TooOften, Unavailable, Unknown},
};
use crate::{
    call::{CallType, Role, Status, Step},
    history::{Query, Row, Store, StoreError},
    ids::{CallId, UserId},
};

/// A page of calls, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallPage {
    calls: Vec<Row>,
    /// Where the next page begins; null on the last one.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// Which calls to list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Wanted {
    /// The asking user: only calls of this user are returned.
    user_id: UserId,
    #[param(inline)]
    limit: Option<Limit>,
    #[param(inline)]
    cursor: Option<Cursor>,
    status: Option<Status>,
    #[param(rename = "type")]
    call_type: Option<CallType>,
    /// The other party.
    with: Option<UserId>,
    /// Only calls made at this time or later.
    #[param(inline)]
    since: Option<Moment>,
    /// Only calls made before this time.
    #[param(inline)]
    until: Option<Moment>,
}

impl FromQuery for Wanted {
    fn from_query(given: &mut Given) -> Result<Self, Problem> {
        Ok(Self {
            user_id: given.user()?,
            limit: given.optional("limit")?,
            cursor: given.optional("cursor")?,
            status: given.one_of("status", Status::ALL, Status::as_str)?,
            call_type: given.one_of("type", CallType::ALL, CallType::as_str)?,
            with: given.optional("with")?,
            since: given.optional("since")?,
            until: given.optional("until")?,
        })
    }
}

/// A user's calls
///
/// Newest first, a page at a time.
#[utoipa::path(
    get,
    path = "/v1/calls",
    operation_id = "listCalls",
    tag = "history",
    params(Wanted),
    responses((status = 200, description = "A page of calls", body = CallPage), BadRequest, Unknown, TooOften, Forbidden, Unavailable),
)]
pub async fn list(
    State(history): State<Arc<dyn Store>>,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<CallPage>, Problem> {
    let limit = wanted.limit.unwrap_or_default().0;
    let query = Query {
        user: wanted.user_id,
        with: wanted.with,
        status: wanted.status,
        call_type: wanted.call_type,
        since: wanted.since.map(|since| since.0),
        until: wanted.until.map(|until| until.0),
        after: wanted.cursor.map(|cursor| cursor.0),
        // One more than requested, to know whether there is a next page.
        limit: limit + 1,
    };
    let mut calls = history.list(&query).await.map_err(unreadable)?;
    let has_more = calls.len() > limit as usize;
    calls.truncate(limit as usize);
    let last = calls.last().filter(|_| has_more);
    let next_cursor = last.map(|row| Cursor(row.place()).to_string());
    Ok(Json(CallPage { calls, next_cursor }))
}

/// The query of one call.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Asker {
    /// The asking user: one of the two parties.
    user_id: UserId,
}

impl FromQuery for Asker {
    fn from_query(given: &mut Given) -> Result<Self, Problem> {
        Ok(Self { user_id: given.user()? })
    }
}

/// One call
#[utoipa::path(
    get,
    path = "/v1/calls/{id}",
    operation_id = "getCall",
    tag = "history",
    params(("id" = CallId, Path, description = "The call's id"), Asker),
    responses((status = 200, description = "The call", body = Row), BadRequest, Unknown, TooOften, Forbidden, NotFound, Unavailable),
)]
pub async fn show(
    State(history): State<Arc<dyn Store>>,
    InPath(id): InPath<CallId>,
    Asked(asker): Asked<Asker>,
) -> Result<Json<Row>, Problem> {
    Ok(Json(find(&*history, id, &asker.user_id).await?))
}

/// The timeline of a call.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    call_id: CallId,
    /// In order. Of very many the first and the latest are kept: a gap in the versions shows where
    /// some are left out.
    steps: Vec<Step>,
}

/// Timeline of a call
#[utoipa::path(
    get,
    path = "/v1/calls/{id}/timeline",
    operation_id = "getTimeline",
    tag = "history",
    params(("id" = CallId, Path, description = "The call's id"), Asker),
    responses(
        (status = 200, description = "Every transition of the call", body = Timeline),
        BadRequest,
        Unknown,
        TooOften,
        Forbidden,
        NotFound,
        Unavailable,
    ),
)]
pub async fn timeline(
    State(history): State<Arc<dyn Store>>,
    InPath(id): InPath<CallId>,
    Asked(asker): Asked<Asker>,
) -> Result<Json<Timeline>, Problem> {
    let row = find(&*history, id, &asker.user_id).await?;
    let own = if row.caller == asker.user_id { Role::Caller } else { Role::Callee };
    let mut steps = row.timeline;
    for step in &mut steps {
        // A device's id and a token of its user are enough to take the device's call over.
        step.device = step.device.take().filter(|_| step.by == Some(own));
    }
    Ok(Json(Timeline { call_id: id, steps }))
}

async fn find(history: &dyn Store, id: CallId, user: &UserId) -> Result<Row, Problem> {
    let row = history.get(id, user).await.map_err(unreadable)?;
    row.ok_or_else(|| Problem::not_found("You have no call with this id"))
}

pub fn unreadable(error: StoreError) -> Problem {
    error!(%error, "history cannot be read");
    Problem::unavailable("The history cannot be read right now: try again shortly")
}
