//! Events by which clients end calls: `call:reject`, `call:busy`, `call:end`.

use std::sync::Arc;

use super::{Calls, Failure, live::LiveCall};
use crate::{
    call::{Call, Device, Event, Refusal},
    cluster::Unavailable,
    protocol::CallRef,
};

impl Calls {
    /// `call:reject`. Returns the ended call, also if it had ended before.
    pub async fn reject(
        &self,
        device: &Device,
        target: &CallRef,
        reason: Option<Arc<str>>,
    ) -> Result<Call, Failure> {
        self.finish(device, target, Event::Reject { by: device.clone(), reason }).await
    }

    /// `call:busy`. Returns the call, which keeps ringing if another device of the callee rings;
    /// otherwise it has ended, now or before.
    pub async fn busy(&self, device: &Device, target: &CallRef) -> Result<Call, Failure> {
        // Other devices of the user may not have been attached again yet.
        if self.is_unsure() {
            return Err(Unavailable.into());
        }
        let sockets = self.cluster.sockets_of(&device.user).await?;
        self.finish(device, target, Event::Busy { by: device.clone(), sockets }).await
    }

    /// `call:end`. Returns the ended call, also if it had ended before.
    pub async fn end(
        &self,
        device: &Device,
        target: &CallRef,
        reported_duration_s: Option<f64>,
    ) -> Result<Call, Failure> {
        self.finish(device, target, Event::End { by: device.clone(), reported_duration_s }).await
    }

    async fn finish(
        &self,
        device: &Device,
        target: &CallRef,
        event: Event,
    ) -> Result<Call, Failure> {
        let live = self.find(device, target).await?;
        self.reappear(&live, device).await?;
        let before = live.snapshot();
        // The reply to this event also covers an earlier one without a reply.
        let was_unanswered = live.answer(device.socket);
        let result = match self.transition(before.clone(), &event).await {
            Err(Failure::Refused(Refusal::Over)) => self.ended_already(&live, &before).await,
            // The device had already reported that it is busy.
            Err(Failure::Refused(Refusal::NothingToDo)) => self.busy_already(&live).await,
            other => other.map_err(|failure| self.unless_unsure(failure, &live, device)),
        };
        match &result {
            Ok(_) => {}
            // Another refusal says nothing about the earlier event.
            Err(failure) if was_unanswered || matches!(failure, Failure::Unavailable(_)) => {
                live.leave_unanswered(device.socket, &before, &self.reach());
            }
            Err(_) => {}
        }
        result
    }

    /// The call in which the device is already recorded as busy, perhaps by a commit without a
    /// reply.
    async fn busy_already(&self, live: &LiveCall) -> Result<Call, Failure> {
        let call = self.cluster.load(live.id()).await?.ok_or(Refusal::NotInCall)?;
        self.take_in(&call).await?;
        Ok(call)
    }

    /// The call as it ended before. This node may have ended it without getting a reply, or a node
    /// that died before it notified anybody: therefore everybody is notified now.
    async fn ended_already(&self, live: &LiveCall, before: &Call) -> Result<Call, Failure> {
        let ended = self.cluster.load(live.id()).await?.ok_or(Refusal::NotInCall)?;
        if live.is(Call::is_live) {
            let callee_nodes = self.cluster.nodes_of(&ended.callee.user).await?;
            self.recorder.record(&ended);
            self.observe(before, &ended);
            self.spread(before, &ended, &callee_nodes);
        } else if self.live.get(ended.id).is_none() && self.ended_lately(&ended) {
            self.tell_where_users_are(&ended).await?;
        }
        Ok(ended)
    }
}
