//! Live calls across a restart of the only node: resumes those that the previous process left in the history, and
//! ends those that the next process could not resume.

use std::collections::BTreeSet;

use tracing::{debug, info, warn};

use super::{Calls, Failure};
use crate::{
    call::{Call, Event, Role},
    cluster::{Change, Claim, Unavailable},
    ids::CallId,
    time::Timestamp,
};

/// How many live calls are looked through at a time when the process stops.
const PART: usize = 256;

impl Calls {
    /// Resumes those of `left` that can continue, each given with the time at which it was last known to be live, and
    /// returns their ids. Must be called before any client is admitted.
    pub async fn resume(
        &self,
        left: &[(Call, Timestamp)],
    ) -> Result<BTreeSet<CallId>, Unavailable> {
        let now = self.clock.now();
        let mut resumed = BTreeSet::new();
        for (call, last_alive_at) in left {
            let Some(next) = self.rules.resume(call, *last_alive_at, self.node(), now) else {
                debug!(call = %call.id, "a call of the last run cannot be resumed");
                continue;
            };
            let claim = |role| Claim { user: next.party(role).user.clone(), was: None };
            let claims = [Role::Caller, Role::Callee].map(claim).into();
            let change = Change { call: next.clone(), claims };
            if self.cluster.restore(change, None).await?.is_some() {
                self.recorder.record(&next);
                resumed.insert(next.id);
            }
        }
        if !resumed.is_empty() {
            info!(calls = resumed.len(), "live calls of the last run wait for their devices");
        }
        Ok(resumed)
    }

    /// Ends the live calls that the next process could not resume: those that ring, because nothing keeps the
    /// caller's messages, and those of a device without an id. Their parties are notified while they are connected.
    pub async fn end_unresumable(&self) {
        let (mut from, mut ended) = (None, 0);
        loop {
            let Ok((calls, next)) = self.cluster.live(from.as_deref(), PART).await else { return };
            for call in calls {
                let (id, now) = (call.id, self.clock.now());
                if self.rules.resume(&call, now, self.node(), now).is_some() {
                    continue;
                }
                match self.transition(call, &Event::Terminated).await {
                    Ok(_) => ended += 1,
                    Err(Failure::Refused(_)) => {}
                    Err(error) => warn!(%error, call = %id, "a call could not be ended"),
                }
            }
            match next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        if ended > 0 {
            info!(calls = ended, "calls that cannot be resumed have ended with this process");
        }
    }
}
