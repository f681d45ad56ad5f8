//! Pending commits: changes of calls whose commit had no reply. They may have been applied, and
//! then nobody was notified.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::warn;

use super::{Calls, sweeper::some_at_a_time};
use crate::{
    call::{Call, Event},
    cluster::Unavailable,
    ids::CallId,
    time::Timestamp,
};

/// The most pending commits. The outcome of others is found when all calls are looked up.
const MAX_UNANSWERED: usize = 1_000;
/// The time within which a commit may still be applied after the shared state is available again.
const LATE: Duration = Duration::from_secs(2);

/// The pending commits of this node.
#[derive(Default)]
pub struct Unanswered {
    calls: Mutex<BTreeMap<CallId, Change>>,
}

#[derive(Clone)]
struct Change {
    before: Call,
    /// The time at which the commit was found not to be applied yet.
    asked_at: Option<Timestamp>,
}

impl Unanswered {
    fn calls(&self) -> MutexGuard<'_, BTreeMap<CallId, Change>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that `before` may have been changed.
    pub fn note(&self, before: &Call) {
        let mut calls = self.calls();
        if calls.len() < MAX_UNANSWERED {
            let change = || Change { before: before.clone(), asked_at: None };
            calls.entry(before.id).or_insert_with(change).asked_at = None;
        } else {
            warn!(call = %before.id, "too many pending commits: the outcome of one is found when all calls are looked up");
        }
    }

    fn due(&self, now: Timestamp) -> Vec<Change> {
        let is_due = |change: &&Change| change.asked_at.is_none_or(|at| now - at >= LATE);
        self.calls().values().filter(is_due).cloned().collect()
    }
}

impl Calls {
    /// Notifies sockets of pending commits that were applied.
    pub(super) async fn tell_unanswered(&self) -> Result<(), Unavailable> {
        let now = self.clock.now();
        let due = self.unanswered.due(now);
        some_at_a_time(&due, |change| self.tell_one_unanswered(change, now)).await
    }

    async fn tell_one_unanswered(
        &self,
        Change { before, asked_at }: &Change,
        now: Timestamp,
    ) -> Result<(), Unavailable> {
        let found = self.cluster.load(before.id).await?;
        if found.is_none() && self.is_unsure() {
            return Ok(());
        }
        let is_written = self.tell_if_written(before, found).await?;
        let mut calls = self.unanswered.calls();
        if is_written || asked_at.is_some() {
            calls.remove(&before.id);
        } else if let Some(change) = calls.get_mut(&before.id) {
            change.asked_at = Some(now);
        }
        Ok(())
    }

    /// If a call has changed, notifies everybody of its present state. Returns whether it has.
    async fn tell_if_written(
        &self,
        before: &Call,
        found: Option<Call>,
    ) -> Result<bool, Unavailable> {
        if found.is_none() {
            self.tell_forgotten(before);
        }
        let Some(after) = found.filter(|call| call.succeeds(before)) else { return Ok(false) };
        let rings = before.is_ringing();
        let callee_nodes =
            if rings { self.cluster.nodes_of(&before.callee.user).await? } else { Vec::new() };
        self.recorder.record(&after);
        self.take_in(&after).await?;
        self.spread(before, &after, &callee_nodes);
        Ok(true)
    }

    /// The shared state has lost a call, and nobody restores it. If the call has ended, a device
    /// that was marked lost and could not confirm its connection gets the end from this node or
    /// from nobody.
    fn tell_forgotten(&self, before: &Call) {
        let seen = self.live.get(before.id).map_or_else(|| before.clone(), |live| live.snapshot());
        for party in [&seen.caller, &seen.callee] {
            let Some(device) = self.taken_for_lost(party).filter(|_| !seen.is_live()) else {
                continue;
            };
            self.told_end_of(&seen, &device);
            let stayed = Event::Stayed(device);
            if let Ok(told) = self.rules.apply(&seen, &stayed, self.node(), self.clock.now()) {
                self.observe(&seen, &told);
            }
        }
    }
}
