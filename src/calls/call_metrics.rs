//! Metrics of calls. Each transition is committed by one node, which counts it.

use tracing::error;

use super::Failure;
use crate::{
    call::{Call, CallType, EndReason, Refusal, Role, State},
    metrics::{self, Candidate, Invariant, Media, Outcome, Ring, label},
    protocol::MediaStats,
};

/// Counts a placed call, which rings or has ended at once.
pub fn placed(call: &Call) {
    let outcome = match call.end_reason() {
        None => Outcome::Ringing,
        Some(EndReason::Offline) => Outcome::Offline,
        Some(_) => Outcome::Busy,
    };
    attempted(call.call_type, outcome);
    if let Some(reason) = call.end_reason() {
        metrics::ENDED.of((reason, call.call_type)).increment(1);
    }
}

pub fn attempted(call_type: CallType, outcome: Outcome) {
    metrics::ATTEMPTS.of((call_type, outcome)).increment(1);
}

/// Counts an attempt that placed no call.
pub fn not_placed(call_type: CallType, failure: &Failure) {
    let outcome = match failure {
        // Was counted when it was placed.
        Failure::Offline(_) => return,
        Failure::Refused(Refusal::SelfCall) => Outcome::SelfCall,
        Failure::Refused(Refusal::CallInProgress(_)) => Outcome::InCall,
        Failure::Refused(Refusal::Glare(_)) => Outcome::Glare,
        Failure::Unavailable(_) => Outcome::Unavailable,
        Failure::Refused(_)
        | Failure::Forbidden(_)
        | Failure::Full { .. }
        | Failure::TooManyWatched
        | Failure::PresenceBusy => Outcome::Refused,
    };
    attempted(call_type, outcome);
}

/// Counts a committed transition.
pub fn changed(before: &Call, after: &Call) {
    if !before.is_live() {
        // A device that returns too late is notified, which makes a version with the same end.
        return keeps_its_end(before, after);
    }
    let rang = |outcome, until| metrics::RING.of(outcome).record(until - after.created_at);
    match (&before.state, &after.state) {
        (State::Ringing { .. }, State::Active { since }) => rang(Ring::Answered, *since),
        (State::Ringing { .. }, State::Ended { at, .. }) => rang(Ring::Unanswered, *at),
        _ => {}
    }
    if let (Some(reason), Some(ended_at)) = (after.end_reason(), after.ended_at()) {
        metrics::ENDED.of((reason, after.call_type)).increment(1);
        if let Some(answered_at) = after.answered_at() {
            metrics::DURATION.of(after.call_type).record(ended_at - answered_at);
        }
        return;
    }
    for role in [Role::Caller, Role::Callee] {
        let (was, is) = (&before.party(role).link, &after.party(role).link);
        match (was.lost_until(), is.lost_until()) {
            (None, Some(_)) => metrics::DEVICES_LOST.increment(1),
            (Some(_), None) => metrics::DEVICES_RETURNED.increment(1),
            _ => {}
        }
    }
}

/// Counts a violation if an ended call ends in another way, or is live again.
pub fn keeps_its_end(before: &Call, after: &Call) {
    if !before.is_live() && after.state != before.state {
        metrics::violated(Invariant::EndChanged);
        error!(call = %after.id, "the end of a call has changed");
    }
}

/// Counts a device's media statistics.
pub fn reported(stats: &MediaStats) {
    let candidate = label(stats.candidate_type.as_deref().unwrap_or_default(), Candidate::Unknown);
    let media = match candidate {
        Candidate::Relay => Media::Relayed,
        Candidate::Host | Candidate::Srflx | Candidate::Prflx => Media::Direct,
        Candidate::Unknown => Media::Unknown,
    };
    metrics::MEDIA_REPORTS.of(candidate).increment(1);
    if let Some(state) = stats.ice_state.as_deref() {
        metrics::MEDIA_ICE.of(label(state, metrics::Ice::Unknown)).increment(1);
    }
    // Values of clients are not trusted: one absurd number would distort the sums forever.
    let measured = |histogram: &metrics::Histogram, value: Option<f64>, unit: f64, most: f64| {
        if let Some(value) = value {
            histogram.record((value / unit).min(most));
        }
    };
    measured(metrics::MEDIA_ROUND_TRIP.of(media), stats.round_trip_ms, 1_000.0, 60.0);
    measured(metrics::MEDIA_LOSS.of(media), stats.loss_percent, 100.0, 1.0);
    measured(metrics::MEDIA_JITTER.of(media), stats.jitter_ms, 1_000.0, 60.0);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge needs no more")]
pub fn as_gauge(count: usize) -> f64 {
    count as f64
}
