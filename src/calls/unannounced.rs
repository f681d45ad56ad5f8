//! Users whose presence may have changed without anybody having been told: a write was not answered, or the node
//! that made it has died. What their presence is now is told as soon as the shared state says so.

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

/// Most users that are looked after.
const MAX_UNANNOUNCED: usize = 50_000;
/// How many are asked about at a time, and how often in one sweep.
const BATCH: usize = 256;
const MAX_BATCHES: usize = 16;
/// For how long a write may still be carried out once the shared state answers again.
const LATE: Duration = Duration::from_secs(2);

/// Those of this node.
#[derive(Default)]
pub struct Unannounced {
    /// When each was announced; None if that is still to be done.
    users: Mutex<BTreeMap<UserId, Option<Timestamp>>>,
}

impl Unannounced {
    fn users(&self) -> MutexGuard<'_, BTreeMap<UserId, Option<Timestamp>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the presence of these users is to be announced.
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

    /// Notes that the presence of both parties is to be announced.
    pub fn note_parties(&self, call: &Call) {
        self.note([&call.caller.user, &call.callee.user]);
    }

    /// Some of those to announce now: for the first time, or once more for what was carried out late.
    fn due(&self, now: Timestamp) -> Vec<UserId> {
        let mut users = self.users();
        let is_due = |at: &Option<Timestamp>| at.is_none_or(|at| now - at >= LATE);
        let due = users.iter().filter(|(_, at)| is_due(at)).take(BATCH);
        let due: Vec<UserId> = due.map(|(user, _)| user.clone()).collect();
        for user in &due {
            // Who is noted while the shared state is asked stays.
            match users.get_mut(user) {
                Some(at @ None) => *at = Some(now),
                Some(Some(_)) | None => drop(users.remove(user)),
            }
        }
        due
    }
}

impl Calls {
    /// Announces the presence of those of whom it is not known what was told.
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
