//! Clients end calls, and are told how they ended.

use std::sync::Arc;

use super::{Calls, Failure, live::LiveCall};
use crate::{
    call::{Call, Device, Event, Refusal},
    protocol::CallRef,
};

impl Calls {
    /// `call:reject`. Answers the ended call, also if it had ended before.
    pub async fn reject(
        &self,
        device: &Device,
        target: &CallRef,
        reason: Option<Arc<str>>,
    ) -> Result<Call, Failure> {
        self.finish(device, target, Event::Reject { by: device.clone(), reason }).await
    }

    /// `call:busy`. Answers the ended call, also if it had ended before.
    pub async fn busy(&self, device: &Device, target: &CallRef) -> Result<Call, Failure> {
        self.finish(device, target, Event::Busy(device.clone())).await
    }

    /// `call:end`. Answers the ended call, also if it had ended before.
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
        // The answer to this event says what came of an earlier one too.
        let was_unanswered = live.answer(device.socket);
        let result = match self.transition(before.clone(), &event).await {
            Err(Failure::Refused(Refusal::Over)) => self.ended_already(&live, &before).await,
            other => other.map_err(|failure| self.unless_unsure(failure, &live, device)),
        };
        match &result {
            Ok(_) => {}
            // Another refusal says nothing of what came of an earlier one.
            Err(failure) if was_unanswered || matches!(failure, Failure::Unavailable(_)) => {
                live.leave_unanswered(device.socket, &before, &self.reach());
            }
            Err(_) => {}
        }
        result
    }

    /// The call as it ended already, by whomever: perhaps by this node, which was not answered then and has
    /// told nobody, or by one that died before it told anybody.
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
