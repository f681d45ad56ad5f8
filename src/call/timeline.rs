//! The history of a call's versions. It is part of the record, so no step is lost.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Call, EndReason, Event, Role};
use crate::{
    ids::{DeviceId, NodeId},
    time::Timestamp,
};

/// Bound on the steps of a record. Beyond it the first and the latest stay; a gap in the versions shows where
/// steps were dropped.
pub const MAX_STEPS: usize = 32;
/// Number of first steps that always stay.
const FIRST_STEPS: usize = 8;

/// The cause of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    pub version: u64,
    pub at: Timestamp,
    pub what: What,
    /// The acting or affected party; absent for time-outs and operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub by: Option<Role>,
    /// The device of that party, if it has an id. Over HTTP only that party sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub device: Option<DeviceId>,
    /// The node that decided it.
    pub node: NodeId,
    /// Set on the step that ended the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<EndReason>,
}

/// The kind of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The call was placed, and rings or ended at once.
    Placed,
    Answered,
    /// A party's device lost its socket.
    Lost,
    /// The device returned.
    Returned,
    /// The device confirmed that it knows the call.
    Confirmed,
    Ended,
}

impl Call {
    /// Records the cause of this version.
    pub(super) fn note(&mut self, what: What, by: Option<(Role, Option<DeviceId>)>, node: NodeId) {
        if self.timeline.len() >= MAX_STEPS {
            self.timeline.remove(FIRST_STEPS);
        }
        let (by, device) = by.map_or((None, None), |(role, device)| (Some(role), device));
        let (version, at) = (self.version, self.updated_at);
        let reason = self.end_reason().filter(|_| matches!(what, What::Placed | What::Ended));
        self.timeline.push(Step { version, at, what, by, device, node, reason });
    }

    /// The node on which it was answered.
    pub fn answered_on(&self) -> Option<NodeId> {
        let answered = self.timeline.iter().find(|step| step.what == What::Answered);
        answered.map(|step| step.node).or(self.callee.link.node())
    }

    /// Records `event`; `was_live` says whether the call was live before.
    pub(super) fn note_event(&mut self, event: &Event, was_live: bool, node: NodeId) {
        let what = match event {
            _ if was_live && !self.is_live() => What::Ended,
            Event::Answer(_) => What::Answered,
            Event::Gone { .. } => What::Lost,
            Event::Joined(_) | Event::StillConnected(_) => What::Returned,
            Event::Confirmed(_) => What::Confirmed,
            Event::Reject { .. }
            | Event::Busy { .. }
            | Event::End { .. }
            | Event::Superseded(_)
            | Event::Displaced(_)
            | Event::Terminated
            | Event::Due => What::Ended,
        };
        let by = match event {
            Event::Answer(by)
            | Event::Reject { by, .. }
            | Event::Busy { by, .. }
            | Event::End { by, .. }
            | Event::Gone { device: by, .. }
            | Event::Joined(by)
            | Event::StillConnected(by)
            | Event::Confirmed(by)
            | Event::Superseded(by) => self.role_of(&by.user).map(|role| (role, by.id.clone())),
            Event::Displaced(role) => Some((*role, None)),
            Event::Terminated | Event::Due => None,
        };
        self.note(what, by, node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::fixtures::{RULES, at, device, node, ringing};

    #[test]
    fn a_record_carries_the_first_steps_and_the_latest() {
        let mut call = ringing();
        for round in 0..50 {
            let gone = Event::Gone { device: device("a1"), may_return: true };
            for event in [gone, Event::Joined(device("a1"))] {
                call = RULES.apply(&call, &event, node(), at(round / 10)).unwrap();
            }
        }
        let versions: Vec<u64> = call.timeline.iter().map(|step| step.version).collect();
        let expected: Vec<u64> = (1..=8).chain(78..=101).collect();
        assert_eq!(versions, expected);
    }
}
