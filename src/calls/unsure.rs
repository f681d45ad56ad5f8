//! What a node does while it cannot know yet which calls there are: the shared state has come back empty, and
//! each node puts back what it has seen.

use std::time::Duration;

use super::{Calls, Failure, live::LiveCall};
use crate::{
    call::{Call, Device, Event, Refusal},
    cluster::{Message, Unavailable},
    time::Timestamp,
};

/// Longer than two nodes differ in when they notice that the shared state is back.
pub(super) const UNSURE: Duration = Duration::from_secs(4);
/// Longer than the news of an end takes to another node, unless they are lost.
const ENDED_LATELY: Duration = Duration::from_secs(10);

impl Calls {
    /// Whether a call that is not found may still be put back by this node or another.
    pub(super) fn is_unsure(&self) -> bool {
        self.recovery.is_under_way_at(self.clock.now())
    }

    /// Whether other nodes may not have heard yet that the call has ended.
    pub(super) fn ended_lately(&self, call: &Call) -> bool {
        let lately = |at: Timestamp| self.clock.now() - at < ENDED_LATELY;
        call.ended_at().is_some_and(lately)
    }

    /// A device is told for good that it is not in its call only once that is known: its new socket may not
    /// be on the record yet.
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

    /// A device that was taken for lost, and sends something, is here: it takes its place again first.
    pub(super) async fn reappear(&self, live: &LiveCall, device: &Device) -> Result<(), Failure> {
        if !live.is(|call| call.has_lost(device)) {
            return Ok(());
        }
        match Box::pin(self.transition(live.snapshot(), &Event::Stayed(device.clone()))).await {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Tells the nodes that hold sockets of the parties of a call that was put back, or that lost a device
    /// late: the device may have come to one of them while nothing was known of the call.
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
