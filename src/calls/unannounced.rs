//! Users whose presence may have changed without a notification, because a write had no reply or
//! the writing node died. Their presence is announced as soon as the shared state is available.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::warn;

use super::Calls;
use crate::{
    call::Call,
    cluster::Unavailable,
    ids::UserId,
    metrics::{self, Limit},
    time::Timestamp,
};

/// The most users in the queue.
const MAX_UNANNOUNCED: usize = 50_000;
/// The number of users per request, and the most requests per sweep.
const BATCH: usize = 256;
const MAX_BATCHES: usize = 16;
/// The time within which a write may still be applied after the shared state is available again.
const LATE: Duration = Duration::from_secs(2);

/// The users of this node's queue.
#[derive(Default)]
pub struct Unannounced {
    /// The time at which each was announced; `None` if that is pending.
    users: Mutex<BTreeMap<UserId, Option<Timestamp>>>,
}

impl Unannounced {
    fn users(&self) -> MutexGuard<'_, BTreeMap<UserId, Option<Timestamp>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues the presence of these users for announcement.
    pub fn note<'a>(&self, users: impl IntoIterator<Item = &'a UserId>) {
        let mut noted = self.users();
        for user in users {
            if let Some(announced_at) = noted.get_mut(user) {
                *announced_at = None;
            } else if noted.len() < MAX_UNANNOUNCED {
                noted.insert(user.clone(), None);
            } else {
                metrics::LIMITS.of(Limit::Presence).increment(1);
                warn!(user = %user.logged(), "a change of presence may never be announced");
            }
        }
    }

    /// Queues the presence of both parties.
    pub fn note_parties(&self, call: &Call) {
        self.note([&call.caller.user, &call.callee.user]);
    }

    /// The users to announce now: for the first time, or once more for writes that were applied
    /// late.
    fn due(&self, now: Timestamp) -> Vec<UserId> {
        let mut users = self.users();
        let is_due = |at: &Option<Timestamp>| at.is_none_or(|at| now - at >= LATE);
        let due = users.iter().filter(|(_, at)| is_due(at)).take(BATCH);
        let due: Vec<UserId> = due.map(|(user, _)| user.clone()).collect();
        for user in &due {
            // Users who were queued while the shared state was read stay queued.
            match users.get_mut(user) {
                Some(at @ None) => *at = Some(now),
                Some(Some(_)) | None => drop(users.remove(user)),
            }
        }
        due
    }
}

impl Calls {
    /// Announces the presence of the queued users.
    pub(super) async fn announce_unannounced(&self) -> Result<(), Unavailable> {
        for _ in 0..MAX_BATCHES {
            let due = self.unannounced.due(self.clock.now());
            if due.is_empty() {
                break;
            }
            let edges = self.cluster.presence(&due).await;
            self.announce(edges.inspect_err(|_| self.unannounced.note(&due))?);
        }
        Ok(())
    }
}
