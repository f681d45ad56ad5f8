//! Query parameters: each occurs at most once, and its type parses and describes it. Types for a single parameter are
//! inlined in the description (`#[param(inline)]`).

use std::{fmt, str::FromStr};

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, ObjectBuilder, RefOr,
        schema::{Schema, Type},
    },
};

use super::{access::Asker, problem::Problem};
use crate::{
    history::Place,
    ids::{InvalidId, UserId},
    protocol::{MAX_WATCHED_USERS, schema::text},
    time::Timestamp,
};

/// The parameter with the asking user.
pub const USER_ID: &str = "userId";

/// The parameters of a request, parsed by `T`. Undeclared ones are refused.
pub struct Asked<T>(pub T);

/// A handler's query.
pub trait FromQuery: Sized {
    fn from_query(given: &mut Given) -> Result<Self, Problem>;
}

impl<S: Sync, T: FromQuery> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let asker = Asker::of(&parts.extensions)?;
        let mut given = Given { pairs: read(parts.uri.query())?, asker };
        let asked = T::from_query(&mut given)?;
        match given.pairs.first() {
            Some((name, _)) => {
                Err(Problem::bad_field(name, format!("{name}: there is no such parameter here")))
            }
            None => Ok(Self(asked)),
        }
    }
}

/// The parameters that were not taken yet.
pub struct Given {
    pairs: Vec<(String, String)>,
    asker: Asker,
}

fn read(query: Option<&str>) -> Result<Vec<(String, String)>, Problem> {
    let query = query.unwrap_or_default();
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query)
        .map_err(|_| Problem::bad_request("The query cannot be read: expected name=value&…"))?;
    for (place, (name, _)) in pairs.iter().enumerate() {
        if pairs[..place].iter().any(|(earlier, _)| earlier == name) {
            return Err(Problem::bad_field(name, format!("{name}: given more than once")));
        }
    }
    Ok(pairs)
}

impl Given {
    fn take(&mut self, name: &str) -> Option<String> {
        let place = self.pairs.iter().position(|(given, _)| given == name)?;
        Some(self.pairs.swap_remove(place).1)
    }

    pub fn optional<T>(&mut self, name: &'static str) -> Result<Option<T>, Problem>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let refuse = |error: T::Err| Problem::bad_field(name, format!("{name}: {error}"));
        self.take(name).map(|text| text.parse()).transpose().map_err(refuse)
    }

    pub fn required<T>(&mut self, name: &'static str, why: &str) -> Result<T, Problem>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let missing = || Problem::bad_field(name, format!("{name}: expected, {why}"));
        self.optional(name)?.ok_or_else(missing)
    }

    /// The asking user: from the parameter in `open` mode, else from the token.
    pub fn user(&mut self) -> Result<UserId, Problem> {
        let named = self.optional(USER_ID)?;
        let missing = || Problem::bad_field(USER_ID, "userId: expected, it says who asks");
        self.asker.speaks_for(named)?.ok_or_else(missing)
    }

    pub fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        all: impl IntoIterator<Item = T> + Clone,
        name_of: impl Fn(T) -> &'static str,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.take(name) else {
            return Ok(None);
        };
        let found = all.clone().into_iter().find(|value| name_of(*value) == text);
        found.map(Some).ok_or_else(|| {
            let names: Vec<_> = all.into_iter().map(name_of).collect();
            Problem::bad_field(name, format!("{name}: expected one of {}", names.join(", ")))
        })
    }
}

/// The `id` in the path of a request.
pub struct InPath<T>(pub T);

impl<S: Send + Sync, T: FromStr<Err: fmt::Display>> FromRequestParts<S> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::bad_field("id", "id: expected UTF-8"))?;
        let refuse = |error: T::Err| Problem::bad_field("id", format!("id: {error}"));
        text.parse().map(Self).map_err(refuse)
    }
}

/// The size of a page.
pub struct Limit(pub u32);

impl Limit {
    const MAX: u32 = 200;
}

impl Default for Limit {
    fn default() -> Self {
        Self(50)
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let limit = text.parse().ok().filter(|limit| (1..=Self::MAX).contains(limit));
        limit.map(Self).ok_or_else(|| format!("expected a number from 1 to {}", Self::MAX))
    }
}

impl ToSchema for Limit {}

impl PartialSchema for Limit {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(Self::MAX))
            .default(Some(Self::default().0.into()))
            .into()
    }
}

/// A time of at most 15 digits, which every client represents exactly.
pub struct Moment(pub Timestamp);

impl Moment {
    const MAX_MILLIS: u64 = 999_999_999_999_999;
}

impl FromStr for Moment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let millis = text.parse().ok().filter(|millis| *millis <= Self::MAX_MILLIS);
        let moment = millis.map(|millis| Self(Timestamp::from_millis(millis)));
        moment.ok_or("expected Unix time in milliseconds")
    }
}

impl ToSchema for Moment {}

impl PartialSchema for Moment {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .description(Some("Unix time in milliseconds."))
            .minimum(Some(0))
            .maximum(Some(Self::MAX_MILLIS))
            .into()
    }
}

/// The start of a page: the cursor of the previous page.
pub struct Cursor(pub Place);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.0.created_at.as_millis(), self.0.id)
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let place = text.split_once('_').and_then(|(millis, id)| {
            let Moment(created_at) = millis.parse().ok()?;
            Some(Self(Place { created_at, id: id.parse().ok()? }))
        });
        // Accept only the canonical form, in which cursors are issued.
        let cursor = place.filter(|cursor| cursor.to_string() == text);
        cursor.ok_or("expected the nextCursor of an earlier page")
    }
}

impl ToSchema for Cursor {}

impl PartialSchema for Cursor {
    fn schema() -> RefOr<Schema> {
        text()
            .description(Some("The `nextCursor` of an earlier page."))
            .pattern(Some("^(0|[1-9][0-9]{0,14})_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))
            .into()
    }
}

/// User ids separated by commas.
pub struct UserIds(pub Vec<UserId>);

impl FromStr for UserIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.split(',').count() > MAX_WATCHED_USERS {
            return Err(format!("at most {MAX_WATCHED_USERS} user ids are allowed"));
        }
        let ids: Result<_, InvalidId> = text.split(',').map(str::parse).collect();
        ids.map(Self).map_err(|error| format!("{error} in each place, with commas between them"))
    }
}

impl ToSchema for UserIds {}

impl PartialSchema for UserIds {
    fn schema() -> RefOr<Schema> {
        let id = text()
            .description(Some("A user id that has no comma."))
            .min_length(Some(1))
            .max_length(Some(UserId::MAX_BYTES))
            .pattern(Some(r"^[^,\u0000-\u001F\u007F-\u009F]*$"));
        ArrayBuilder::new().items(id).min_items(Some(1)).max_items(Some(MAX_WATCHED_USERS)).into()
    }
}
