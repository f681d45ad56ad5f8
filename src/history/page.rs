//! The statements of a page of calls, newest first. The compiler puts each together from literals, so a value gets into it
//! as a parameter only: $1 the user, $2 status, $3 call type, $4 since, $5 until, $6 and $7 the place (`created_at`,
//! `id`) after which it goes on, $8 the limit, $9 the other user.

use sqlx::{Database, Encode, Type};

use super::{Query, decode::millis};
use crate::{
    call::{CallType, Status},
    time::Timestamp,
};

/// A page of the calls that `$made` or `$got` selects. Two walks along an index each, merged: an OR of both would sort all
/// calls of the user.
macro_rules! page {
    ($walk:ident, $made:literal, $got:literal) => {
        concat!(
            "SELECT * FROM (SELECT * FROM (",
            $walk!($made),
            ") AS made UNION ALL SELECT * FROM (",
            $walk!($got),
            ") AS got) AS page ORDER BY created_at DESC, id DESC LIMIT $8"
        )
    };
}

macro_rules! postgres {
    ($of:literal) => {
        concat!(
            "SELECT id::text, caller, receiver, call_type, status, end_reason, duration, \
                    calls_to_ms(started_at) AS started_at, calls_to_ms(ended_at) AS ended_at, \
                    calls_to_ms(created_at) AS created_at, calls_to_ms(updated_at) AS updated_at, version \
             FROM calls WHERE ",
            $of,
            " AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR call_type = $3) \
              AND calls.created_at >= calls_from_ms($4) AND calls.created_at < calls_from_ms($5) \
              AND (calls.created_at, calls.id) < (calls_from_ms($6), $7::uuid) \
             ORDER BY calls.created_at DESC, calls.id DESC LIMIT $8"
        )
    };
}

/// Finds the places of the calls in the index alone, and only then the calls: a table without row ids is looked into for
/// each entry otherwise.
macro_rules! sqlite {
    ($of:literal) => {
        concat!(
            "SELECT call.id, call.caller, call.receiver, call.call_type, call.status, call.end_reason, \
                    call.duration, call.started_at, call.ended_at, call.created_at, call.updated_at, call.version \
             FROM calls AS place CROSS JOIN calls AS call ON call.id = place.id WHERE ",
            $of,
            " AND place.created_at >= $4 AND place.created_at < $5 \
              AND (place.created_at, place.id) < ($6, $7) \
              AND ($2 IS NULL OR call.status = $2) AND ($3 IS NULL OR call.call_type = $3) \
             ORDER BY place.created_at DESC, place.id DESC LIMIT $8"
        )
    };
}

/// The statements of a database.
pub struct Pages {
    /// All calls of a user.
    pub of_user: &'static str,
    /// The calls of two users with each other.
    pub between: &'static str,
}

pub const POSTGRES: Pages = Pages {
    of_user: page!(postgres, "caller = $1", "receiver = $1"),
    between: page!(postgres, "caller = $1 AND receiver = $9", "caller = $9 AND receiver = $1"),
};

pub const SQLITE: Pages = Pages {
    of_user: page!(sqlite, "place.caller = $1", "place.receiver = $1"),
    between: page!(
        sqlite,
        "place.caller = $1 AND place.receiver = $9",
        "place.caller = $9 AND place.receiver = $1"
    ),
};

impl Pages {
    pub(super) fn page<DB: Database>(
        &self,
        query: &Query,
    ) -> sqlx::query::Query<'static, DB, DB::Arguments>
    where
        for<'q> &'q str: Encode<'q, DB> + Type<DB>,
        for<'q> Option<&'q str>: Encode<'q, DB>,
        for<'q> String: Encode<'q, DB> + Type<DB>,
        for<'q> i64: Encode<'q, DB> + Type<DB>,
    {
        let latest = Timestamp::from_millis(u64::MAX);
        let (at, id) = match query.after {
            Some(place) => (place.created_at, place.id.to_string()),
            None => (latest, uuid::Uuid::max().to_string()),
        };
        let page = sqlx::query(if query.with.is_some() { self.between } else { self.of_user })
            .bind(query.user.as_str())
            .bind(query.status.map(Status::as_str))
            .bind(query.call_type.map(CallType::as_str))
            .bind(query.since.map_or(0, millis))
            .bind(millis(query.until.unwrap_or(latest)))
            .bind(millis(at))
            .bind(id)
            .bind(i64::from(query.limit));
        match &query.with {
            Some(with) => page.bind(with.as_str()),
            None => page,
        }
    }
}
