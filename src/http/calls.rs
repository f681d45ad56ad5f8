//! `/v1/calls`: the history of a user's calls.

use std::{str::FromStr, sync::Arc};

use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
};
use serde::Serialize;
use tracing::error;

use super::problem::Problem;
use crate::{
    call::{CallType, Status},
    history::{Place, Query, Row, Store, StoreError},
    ids::UserId,
    time::Timestamp,
};

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 200;

/// A page of calls, newest first.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    calls: Vec<Row>,
    /// Where the next page begins; null on the last one.
    next_cursor: Option<String>,
}

/// `GET /v1/calls`
pub async fn list(
    State(history): State<Arc<dyn Store>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page>, Problem> {
    let parameters = Parameters::read(query.as_deref())?;
    let limit = parameters.limit()?;
    let query = Query {
        user: parameters.user()?,
        with: parameters.parse("with")?,
        status: parameters.one_of("status", Status::ALL, Status::as_str)?,
        call_type: parameters.one_of("type", CallType::ALL, CallType::as_str)?,
        since: parameters.time("since")?,
        until: parameters.time("until")?,
        after: parameters.cursor()?,
        // One more than asked for tells whether there is a next page.
        limit: limit + 1,
    };
    let mut calls = history.list(&query).await.map_err(unreadable)?;
    let has_more = calls.len() > limit as usize;
    calls.truncate(limit as usize);
    let next_cursor = calls.last().filter(|_| has_more).map(|row| cursor_of(row.place()));
    Ok(Json(Page { calls, next_cursor }))
}

/// `GET /v1/calls/{id}`
pub async fn show(
    State(history): State<Arc<dyn Store>>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Json<Row>, Problem> {
    let user = Parameters::read(query.as_deref())?.user()?;
    let Path(id) = id.map_err(|_| Problem::bad_field("id", "id: expected UTF-8"))?;
    let id = id.parse().map_err(|error| Problem::bad_field("id", format!("id: {error}")))?;
    let row = history.get(id, &user).await.map_err(unreadable)?;
    row.map(Json).ok_or_else(|| Problem::not_found("You have no call with this id"))
}

fn unreadable(error: StoreError) -> Problem {
    error!(%error, "history cannot be read");
    Problem::internal()
}

fn cursor_of(place: Place) -> String {
    format!("{}_{}", place.created_at.as_millis(), place.id)
}

/// The parameters of a request. Each is given at most once; unknown ones are refused.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    const NAMES: [&str; 8] =
        ["userId", "limit", "cursor", "status", "type", "with", "since", "until"];

    fn read(query: Option<&str>) -> Result<Self, Problem> {
        let query = query.unwrap_or_default();
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query)
            .map_err(|_| Problem::bad_request("The query cannot be read: expected name=value&…"))?;
        for (place, (name, _)) in pairs.iter().enumerate() {
            if !Self::NAMES.contains(&name.as_str()) {
                let detail = format!("unknown parameter; known are {}", Self::NAMES.join(", "));
                return Err(Problem::bad_field(name, detail));
            }
            if pairs[..place].iter().any(|(earlier, _)| earlier == name) {
                return Err(Problem::bad_field(name, format!("{name}: given more than once")));
            }
        }
        Ok(Self(pairs))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn parse<T>(&self, name: &'static str) -> Result<Option<T>, Problem>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let refuse = |error: T::Err| Problem::bad_field(name, format!("{name}: {error}"));
        self.get(name).map(str::parse).transpose().map_err(refuse)
    }

    /// Who asks. Where nobody has to show who they are, the parameter says so.
    fn user(&self) -> Result<UserId, Problem> {
        self.parse("userId")?
            .ok_or_else(|| Problem::bad_field("userId", "userId: expected, it says who asks"))
    }

    fn limit(&self) -> Result<u32, Problem> {
        let expected = || {
            Problem::bad_field("limit", format!("limit: expected a number from 1 to {MAX_LIMIT}"))
        };
        let Some(text) = self.get("limit") else {
            return Ok(DEFAULT_LIMIT);
        };
        let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
        limit.ok_or_else(expected)
    }

    fn time(&self, name: &'static str) -> Result<Option<Timestamp>, Problem> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let millis = text.parse().map_err(|_| {
            Problem::bad_field(name, format!("{name}: expected Unix time in milliseconds"))
        })?;
        Ok(Some(Timestamp::from_millis(millis)))
    }

    fn one_of<T: Copy>(
        &self,
        name: &'static str,
        all: impl IntoIterator<Item = T> + Clone,
        name_of: impl Fn(T) -> &'static str,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let found = all.clone().into_iter().find(|value| name_of(*value) == text);
        found.map(Some).ok_or_else(|| {
            let names: Vec<_> = all.into_iter().map(name_of).collect();
            Problem::bad_field(name, format!("{name}: expected one of {}", names.join(", ")))
        })
    }

    fn cursor(&self) -> Result<Option<Place>, Problem> {
        let Some(text) = self.get("cursor") else {
            return Ok(None);
        };
        let place = text.split_once('_').and_then(|(millis, id)| {
            let created_at = Timestamp::from_millis(millis.parse().ok()?);
            Some(Place { created_at, id: id.parse().ok()? })
        });
        place.map(Some).ok_or_else(|| {
            Problem::bad_field("cursor", "cursor: expected the nextCursor of an earlier page")
        })
    }
}
