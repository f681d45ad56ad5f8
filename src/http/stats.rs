//! `/v1/stats`: counts and distributions of calls.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    calls::unreadable,
    parameters::{Asked, FromQuery, Given, Moment},
    problem::{BadRequest, Forbidden, Problem, Unavailable, Unknown},
};
use crate::{
    call::{CallType, EndReason, Status},
    history::{Percentiles, Period, Stats, Store, Tally},
    time::Timestamp,
};

/// Most buckets in one answer.
const MAX_BUCKETS: u128 = 1_000;

/// Statistics of calls.
#[derive(Debug, Serialize, ToSchema)]
pub struct CallStats {
    total: Summary,
    /// In order; those without a call are left out.
    buckets: Vec<Bucket>,
}

/// The calls that were made in one bucket of time.
#[derive(Debug, Serialize, ToSchema)]
pub struct Bucket {
    /// When it begins.
    start: Timestamp,
    #[serde(flatten)]
    summary: Summary,
}

/// Statistics of some calls.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    calls: u64,
    /// How many of them were answered.
    answered: u64,
    /// The share of answered calls among those that do not ring any more; null if there are none.
    #[schema(required, minimum = 0, maximum = 1)]
    answer_rate: Option<f64>,
    /// By call type.
    by_type: BTreeMap<&'static str, u64>,
    /// By status.
    by_status: BTreeMap<&'static str, u64>,
    /// By end reason, of those that have ended.
    by_end_reason: BTreeMap<&'static str, u64>,
    /// Of the answered calls: milliseconds from the attempt to the answer.
    #[schema(required)]
    ring_ms: Option<Percentiles>,
    /// Of the answered calls that have ended: seconds.
    #[serde(rename = "durationS")]
    #[schema(required)]
    duration_s: Option<Percentiles>,
}

/// Which calls to count.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Wanted {
    /// Calls made at this time or later.
    #[param(inline)]
    since: Moment,
    /// Calls made before this time.
    #[param(inline)]
    until: Moment,
    /// How long a bucket is. It begins at a full minute, hour or day, UTC. There are at most 1,000
    /// buckets in an answer. Default: `day`.
    #[param(inline)]
    bucket: Option<BucketLength>,
}

#[derive(Debug, Clone, Copy, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum BucketLength {
    Minute,
    Hour,
    Day,
}

impl BucketLength {
    const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn duration(self) -> Duration {
        match self {
            Self::Minute => Duration::from_mins(1),
            Self::Hour => Duration::from_hours(1),
            Self::Day => Duration::from_hours(24),
        }
    }
}

impl FromQuery for Wanted {
    fn from_query(given: &mut Given) -> Result<Self, Problem> {
        Ok(Self {
            since: given.required("since", "Unix time in milliseconds")?,
            until: given.required("until", "Unix time in milliseconds")?,
            bucket: given.one_of("bucket", BucketLength::ALL, BucketLength::as_str)?,
        })
    }
}

/// Statistics of calls
///
/// All users' calls together, by when they were made.
#[utoipa::path(
    get,
    path = "/v1/stats",
    operation_id = "getStats",
    tag = "statistics",
    params(Wanted),
    responses(
        (status = 200, description = "How the calls of this period went", body = CallStats),
        BadRequest,
        Unknown,
        Forbidden,
        Unavailable,
    ),
)]
pub async fn show(
    State(history): State<Arc<dyn Store>>,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<CallStats>, Problem> {
    let (since, until) = (wanted.since.0, wanted.until.0);
    let bucket = wanted.bucket.unwrap_or(BucketLength::Day).duration();
    if until < since {
        return Err(Problem::bad_field("until", "until: expected a time after since"));
    }
    if (until - since).as_millis().div_ceil(bucket.as_millis()) > MAX_BUCKETS {
        let detail = format!("bucket: expected a length of which {MAX_BUCKETS} hold the period");
        return Err(Problem::bad_field("bucket", detail));
    }
    let stats = history.stats(&Period { since, until, bucket }).await.map_err(unreadable)?;
    let Stats { total, buckets } = stats;
    let bucket = |(start, tally)| Bucket { start, summary: Summary::of(tally) };
    Ok(Json(CallStats {
        total: Summary::of(total),
        buckets: buckets.into_iter().map(bucket).collect(),
    }))
}

impl Summary {
    fn of(tally: Tally) -> Self {
        let mut summary = Self {
            calls: 0,
            answered: 0,
            answer_rate: None,
            by_type: BTreeMap::new(),
            by_status: BTreeMap::new(),
            by_end_reason: BTreeMap::new(),
            ring_ms: tally.ring_ms,
            duration_s: tally.duration_s,
        };
        let mut ringing = 0;
        for count in tally.counts {
            summary.calls += count.calls;
            match count.status {
                Status::Pending => ringing += count.calls,
                Status::Answered | Status::Ended => summary.answered += count.calls,
                Status::Rejected | Status::Missed => {}
            }
            *summary.by_type.entry(CallType::as_str(count.call_type)).or_default() += count.calls;
            *summary.by_status.entry(count.status.as_str()).or_default() += count.calls;
            if let Some(reason) = count.end_reason {
                *summary.by_end_reason.entry(EndReason::as_str(reason)).or_default() += count.calls;
            }
        }
        let decided = summary.calls - ringing;
        summary.answer_rate = (decided > 0).then(|| share(summary.answered, decided));
        summary
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no more")]
fn share(some: u64, all: u64) -> f64 {
    some as f64 / all as f64
}
