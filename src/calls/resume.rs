//! Resumes the live calls that the previous process of a single node left in the history.

use tracing::{debug, info};

use super::Calls;
use crate::{
    call::{Call, Role},
    cluster::{Change, Claim, Unavailable},
    time::Timestamp,
};

impl Calls {
    /// Resumes those of `left` that can continue, each given with the time at which it was last
    /// known to be live. Must be called before any client is admitted.
    pub async fn resume(&self, left: Vec<(Call, Timestamp)>) -> Result<(), Unavailable> {
        let now = self.clock.now();
        let mut resumed = 0;
        for (call, last_alive_at) in left {
            let Some(next) = self.rules.resume(&call, last_alive_at, self.node(), now) else {
                debug!(call = %call.id, "a call that was left behind cannot go on");
                continue;
            };
            let claim = |role| Claim { user: next.party(role).user.clone(), was: None };
            let claims = [Role::Caller, Role::Callee].map(claim).into();
            let change = Change { call: next.clone(), claims };
            if self.cluster.restore(change, None).await?.is_some() {
                self.recorder.record(&next);
                resumed += 1;
            }
        }
        if resumed > 0 {
            info!(calls = resumed, "live calls of the last run wait for their devices");
        }
        Ok(())
    }
}
