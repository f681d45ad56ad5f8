//! The recovery window: the shared state has come back empty, and each node restores the records
//! that it has seen. Until then a missing record proves nothing.

use std::time::Duration;

use super::{Calls, Failure, live::LiveCall};
use crate::{
    call::{Call, Device, Event, Refusal},
    cluster::{Message, Unavailable},
    time::Timestamp,
};

/// Longer than the difference between two nodes in noticing that the shared state is back.
pub(super) const UNSURE: Duration = Duration::from_secs(4);
/// Longer than an end takes to be notified to another node, unless the notification is lost.
const ENDED_LATELY: Duration = Duration::from_secs(10);

impl Calls {
    /// Whether a missing call may still be restored by this node or another one.
    pub(super) fn is_unsure(&self) -> bool {
        self.recovery.is_under_way_at(self.clock.now())
    }

    /// Whether other nodes may not have been notified yet that the call has ended.
    pub(super) fn ended_lately(&self, call: &Call) -> bool {
        let lately = |at: Timestamp| self.clock.now() - at < ENDED_LATELY;
        call.ended_at().is_some_and(lately)
    }

    /// Turns the refusal of a device that is not in its call into `Unavailable` during the recovery
    /// window: the record may not contain its new socket yet.
    pub(super) fn unless_unsure(
        &self,
        failure: Failure,
        live: &LiveCall,
        device: &Device,
    ) -> Failure {
        let may_pass =
            matches!(failure, Failure::Refused(Refusal::NotInCall | Refusal::AlreadyAnswered(_)));
        if may_pass && self.is_unsure() && live.is(|call| call.knows(device)) {
            return Unavailable.into();
        }
        failure
    }

    /// Restores a device that was marked lost and sends something: it is connected.
    pub(super) async fn reappear(&self, live: &LiveCall, device: &Device) -> Result<(), Failure> {
        if !live.is(|call| call.has_lost(device)) {
            return Ok(());
        }
        match Box::pin(self.transition(live.snapshot(), &Event::Stayed(device.clone()))).await {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Sends a call that was restored, or that lost a device late, to the nodes that hold sockets
    /// of its parties: a device may have connected to one of them while the call was unknown.
    pub(super) async fn tell_where_users_are(&self, call: &Call) -> Result<(), Unavailable> {
        for party in [&call.caller, &call.callee] {
            for node in self.cluster.nodes_of(&party.user).await? {
                if node != self.node() {
                    self.cluster.send(node, Message::Call(Box::new(call.clone())));
                }
            }
        }
        Ok(())
    }
}
