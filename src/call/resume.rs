//! A call whose only node died, and has started again.

use super::{Binding, Call, Link, Role, Rules, State, What};
use crate::{ids::NodeId, time::Timestamp};

impl Rules {
    /// The next version of a live call that no node holds any more, as `node` resumes it: both parties have lost
    /// their devices and may come back within the grace, which begins now. If neither does, the call ended when
    /// it was `last_alive_at`.
    ///
    /// None if it cannot go on: it was not answered, and what the caller had sent is lost; a party gave no device
    /// id; or its time is over.
    pub fn resume(
        &self,
        call: &Call,
        last_alive_at: Timestamp,
        node: NodeId,
        now: Timestamp,
    ) -> Option<Call> {
        if !matches!(call.state, State::Active { .. }) || call.expires_at <= now {
            return None;
        }
        let mut next = call.clone();
        next.version += 1;
        next.updated_at = now;
        next.interrupted_at = Some(last_alive_at.max(call.updated_at));
        for role in [Role::Caller, Role::Callee] {
            let link = &mut next.party_mut(role).link;
            let device = match &*link {
                Link::Bound(Binding { device, .. }) => device.clone()?,
                Link::Lost { device, .. } => device.clone(),
                Link::Open => return None,
            };
            // All connections of before are gone, and this machine's time of day may have been set back.
            let (until, since) = (now + self.reconnect_grace, None);
            *link = Link::Lost { device, until, node, since };
        }
        next.note(What::Lost, None, node);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{
        EndReason, Event, Status,
        fixtures::{RULES, at, device, node, ringing},
    };

    /// A call that was answered at 5 s, on these devices, and that is resumed at 60 s.
    fn resumed(callee: &str) -> Option<Call> {
        let answer = Event::Answer(device(callee));
        let call = RULES.apply(&ringing(), &answer, node(), at(5)).unwrap();
        RULES.resume(&call, at(50), node(), at(60))
    }

    fn after(call: &Call, event: Event, seconds: u64) -> Call {
        RULES.apply(call, &event, node(), at(seconds)).unwrap()
    }

    #[test]
    fn both_devices_may_come_back_within_the_grace() {
        let call = resumed("b1").unwrap();
        assert_eq!(call.deadline(), at(70));
        let call = after(&call, Event::Joined(device("a1+")), 61);
        let call = after(&call, Event::Joined(device("b1+")), 69);
        assert!(call.is_bound_to(&device("a1+")) && call.is_bound_to(&device("b1+")));
        let end = Event::End { by: device("a1+"), reported_duration_s: None };
        let call = after(&call, end, 105);
        assert_eq!((call.ended_at(), call.duration_s()), (Some(at(105)), Some(100)));
    }

    #[test]
    fn if_no_device_comes_back_it_ended_when_its_node_was_last_alive() {
        let call = after(&resumed("b1").unwrap(), Event::Due, 70);
        let end = (call.status(), call.end_reason(), call.ended_at(), call.duration_s());
        let expected = (Status::Ended, Some(EndReason::ConnectionLost), Some(at(50)), Some(45));
        assert_eq!(end, expected);
        assert_eq!(call.deadline(), at(130), "its end can still be asked for");
    }

    #[test]
    fn if_one_device_waited_for_the_other_it_ended_when_the_grace_was_over() {
        let call = after(&resumed("b1").unwrap(), Event::Joined(device("a1+")), 61);
        let call = after(&call, Event::Due, 70);
        assert_eq!((call.ended_at(), call.duration_s()), (Some(at(70)), Some(65)));
    }

    #[test]
    fn what_rang_or_has_no_way_back_is_not_resumed() {
        assert_eq!(RULES.resume(&ringing(), at(1), node(), at(2)), None);
        assert_eq!(resumed("b1-"), None);
        let call = resumed("b1").unwrap();
        assert_eq!(RULES.resume(&call, at(50), node(), call.expires_at), None);
    }
}
