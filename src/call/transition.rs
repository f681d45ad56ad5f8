//! Transitions: the next version of a call after an event.

use std::sync::Arc;

use super::{
    BusyDevice, Call, Cause, Device, Link, Lobby, MAX_BUSY_DEVICES, Refusal, Role, Rules, State,
};
use crate::{ids::NodeId, time::Timestamp};

/// An event that may change a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// `call:answer` of a device that is not in the call yet.
    Answer(Device),
    /// `call:reject`.
    Reject { by: Device, reason: Option<Arc<str>> },
    /// `call:busy`, with the nodes that hold sockets of its user now, and how many each.
    Busy { by: Device, sockets: Vec<(NodeId, usize)> },
    /// `call:end`, with the duration in seconds that the client reported.
    End { by: Device, reported_duration_s: Option<f64> },
    /// The socket closed. After a deliberate disconnect the device does not return.
    Gone { device: Device, may_return: bool },
    /// A device of a party joined on a new socket.
    Joined(Device),
    /// A device of a party is still connected, although the record may mark it as lost.
    StillConnected(Device),
    /// A returned device confirms that it knows the call.
    Confirmed(Device),
    /// This device supersedes the call by another one of its user.
    Superseded(Device),
    /// The shared state lost the call, and the party with this role is in another one by now.
    Displaced(Role),
    /// An operator ends the call.
    Terminated,
    /// A deadline may have passed.
    Due,
}

impl Rules {
    /// The next version of `call` after `event`, as `node` decides it.
    ///
    /// # Errors
    /// A [`Refusal`] when the event is not allowed or changes nothing.
    pub fn apply(
        &self,
        call: &Call,
        event: &Event,
        node: NodeId,
        now: Timestamp,
    ) -> Result<Call, Refusal> {
        let mut next = call.clone();
        next.version += 1;
        next.updated_at = now;
        self.step(&mut next, event, now)?;
        // Which devices are busy is no step: builds that do not know it could not read the record.
        let parties = |call: &Call| [call.caller.link.clone(), call.callee.link.clone()];
        if next.state != call.state || parties(&next) != parties(call) {
            next.note_event(event, call.is_live(), node);
        }
        Ok(next)
    }

    /// One arm for every pair of state and event. `call` is discarded on a refusal.
    #[expect(clippy::too_many_lines, reason = "the whole table of states and events in one place")]
    fn step(&self, call: &mut Call, event: &Event, now: Timestamp) -> Result<(), Refusal> {
        match (&call.state, event) {
            (State::Ringing { .. }, Event::Answer(device)) => {
                call.ringing_device(device)?;
                call.callee.link = device.bind();
                call.state = State::Active { since: now };
                Ok(())
            }
            // Its answer won, and the commit had no reply.
            (State::Active { .. }, Event::Answer(device))
                if call.bound_role(device) == Some(Role::Callee) =>
            {
                Err(Refusal::NothingToDo)
            }
            (State::Active { .. }, Event::Answer(device) | Event::Busy { by: device, .. }) => {
                Err(call.too_late(device))
            }
            (State::Active { .. }, Event::Reject { by, .. }) => Err(call.too_late(by)),

            (State::Ringing { .. }, Event::Reject { by, reason }) => {
                call.ringing_device(by)?;
                let (by, reason) = (by.socket, reason.clone());
                call.end(Cause::Reject { by, reason }, now)
            }
            (State::Ringing { .. }, Event::Busy { by, sockets }) => {
                call.silence(by)?;
                if call.rings_on_any(sockets) {
                    return Ok(());
                }
                call.end(Cause::Busy { by: by.socket }, now)
            }

            (State::Ringing { .. }, Event::End { by, reported_duration_s }) => {
                let role = call.role_of(&by.user).ok_or(Refusal::NotInCall)?;
                match role {
                    Role::Caller if call.caller.link.is_on(by.socket) => {}
                    Role::Caller => return Err(Refusal::NotInCall),
                    Role::Callee => call.ringing_device(by)?,
                }
                call.hang_up(role, by, *reported_duration_s, now)
            }
            (State::Active { .. }, Event::End { by, reported_duration_s }) => {
                let role = call.bound_role(by).ok_or(Refusal::NotInCall)?;
                call.hang_up(role, by, *reported_duration_s, now)
            }

            (State::Ringing { .. }, Event::Gone { device, may_return })
                if call.is_busy_on(device.socket) =>
            {
                call.busy_gone(device, *may_return);
                Ok(())
            }
            (State::Ringing { .. } | State::Active { .. }, Event::Gone { device, may_return }) => {
                let role = call.bound_role(device).ok_or(Refusal::NothingToDo)?;
                match &device.id {
                    Some(id) if *may_return => {
                        let until = now + self.reconnect_grace;
                        let (device, node) = (id.clone(), device.node);
                        let since = call.party(role).link.since();
                        call.party_mut(role).link = Link::Lost { device, until, node, since };
                        Ok(())
                    }
                    Some(_) | None => call.end(Cause::Lost { role }, now),
                }
            }
            (State::Ringing { .. }, Event::Joined(device))
                if call.was_busy_on(device).is_some() =>
            {
                call.move_busy(device);
                Ok(())
            }
            (State::Ringing { .. } | State::Active { .. }, Event::Joined(device)) => {
                call.bring_back(device, true)
            }
            // The device may have a newer socket already, with this one dead unnoticed.
            (State::Ringing { .. } | State::Active { .. }, Event::StillConnected(device)) => {
                call.bring_back(device, false)
            }
            (State::Ringing { .. } | State::Active { .. }, Event::Confirmed(device)) => {
                call.confirm(device)
            }
            (State::Ringing { .. } | State::Active { .. }, Event::Superseded(by)) => {
                let role = call.role_of(&by.user).ok_or(Refusal::NotInCall)?;
                if !call.is_given_up(role, by) {
                    return Err(Refusal::CallInProgress(call.id));
                }
                call.end(Cause::Superseded { role }, now)
            }
            (State::Ringing { .. } | State::Active { .. }, Event::Displaced(role)) => {
                call.end(Cause::Lost { role: *role }, now)
            }
            (State::Ringing { .. } | State::Active { .. }, Event::Terminated) => {
                call.end(Cause::Terminated, now)
            }
            (State::Ringing { .. } | State::Active { .. }, Event::Due) => {
                let cause = call.overdue(now).ok_or(Refusal::NothingToDo)?;
                call.end(cause, now)
            }

            (
                State::Ended { .. },
                Event::Answer(by)
                | Event::Reject { by, .. }
                | Event::Busy { by, .. }
                | Event::End { by, .. },
            ) => Err(match call.role_of(&by.user) {
                Some(_) => Refusal::Over,
                None => Refusal::NotInCall,
            }),
            // The call ended while the device was away: it is notified once, on its return.
            (State::Ended { .. }, Event::Joined(device) | Event::StillConnected(device)) => {
                call.bring_back(device, false)
            }
            (
                State::Ended { .. },
                Event::Superseded(_) | Event::Displaced(_) | Event::Terminated,
            ) => Err(Refusal::Over),
            (State::Ended { .. }, Event::Gone { .. } | Event::Confirmed(_) | Event::Due) => {
                Err(Refusal::NothingToDo)
            }
        }
    }
}

impl Call {
    /// The event that must end this live call before it is restored into a shared state that lost it: a party is in
    /// another call by now, or its time is over.
    pub fn end_when_forgotten(&self, lobby: &Lobby, now: Timestamp) -> Option<Event> {
        if !self.is_live() {
            return None;
        }
        let is_elsewhere = |latest: &Option<Call>| {
            latest.as_ref().is_some_and(|call| call.is_live() && call.id != self.id)
        };
        if is_elsewhere(&lobby.caller_call) {
            Some(Event::Displaced(Role::Caller))
        } else if is_elsewhere(&lobby.callee_call) {
            Some(Event::Displaced(Role::Callee))
        } else {
            self.overdue(now).map(|_| Event::Due)
        }
    }

    /// Every device of the callee rings that has not said that it is busy, and any of them may answer or
    /// refuse.
    fn ringing_device(&self, device: &Device) -> Result<(), Refusal> {
        match self.role_of(&device.user) {
            Some(Role::Callee) if !self.is_busy_on(device.socket) => Ok(()),
            Some(_) | None => Err(Refusal::NotInCall),
        }
    }

    /// This device of the callee rings no more.
    fn silence(&mut self, device: &Device) -> Result<(), Refusal> {
        match self.role_of(&device.user) {
            Some(Role::Callee) if self.is_busy_on(device.socket) => Err(Refusal::NothingToDo),
            Some(Role::Callee) => {
                self.busy.push(BusyDevice {
                    node: device.node,
                    socket: device.socket,
                    device: device.id.clone(),
                    since: Some(device.connected_at),
                    is_gone: false,
                });
                Ok(())
            }
            Some(Role::Caller) | None => Err(Refusal::NotInCall),
        }
    }

    /// Whether one of the callee's sockets, given as counts by node, is not busy.
    fn rings_on_any(&self, sockets: &[(NodeId, usize)]) -> bool {
        let busy_on = |node: NodeId| {
            self.busy.iter().filter(|busy| busy.node == node && !busy.is_gone).count()
        };
        self.busy.len() <= MAX_BUSY_DEVICES
            && sockets.iter().any(|(node, count)| *count > busy_on(*node))
    }

    /// The socket of a busy device is gone. The report stays valid: if the device returns, it does
    /// not ring again, and a call that nobody answers ends as busy.
    fn busy_gone(&mut self, device: &Device, may_return: bool) {
        for busy in self.busy.iter_mut().filter(|busy| busy.socket == device.socket) {
            busy.is_gone = true;
            if !may_return {
                busy.device = None;
            }
        }
    }

    /// The place of `device` among the busy ones, if it has said so on a socket of an earlier connection.
    fn was_busy_on(&self, device: &Device) -> Option<usize> {
        let is_callee = self.role_of(&device.user) == Some(Role::Callee);
        let id = device.id.as_ref().filter(|_| is_callee)?;
        let is_it = |busy: &BusyDevice| {
            busy.device.as_ref() == Some(id)
                && busy.socket != device.socket
                && device.is_as_late_as(busy.since)
        };
        self.busy.iter().position(is_it)
    }

    /// It is as busy on its new socket.
    fn move_busy(&mut self, device: &Device) {
        if let Some(place) = self.was_busy_on(device) {
            let busy = &mut self.busy[place];
            (busy.node, busy.socket, busy.is_gone) = (device.node, device.socket, false);
            busy.since = Some(device.connected_at);
        }
    }

    /// The refusal for a device that answers or declines an answered call.
    fn too_late(&self, device: &Device) -> Refusal {
        match self.role_of(&device.user) {
            Some(Role::Callee) if !self.is_bound_to(device) => Refusal::AlreadyAnswered(self.id),
            Some(_) | None => Refusal::NotInCall,
        }
    }

    fn bound_role(&self, device: &Device) -> Option<Role> {
        self.role_of(&device.user).filter(|_| self.is_bound_to(device))
    }

    fn hang_up(
        &mut self,
        role: Role,
        by: &Device,
        reported_duration_s: Option<f64>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let by = by.socket;
        self.end(Cause::HangUp { role, by, reported_duration_s }, now)
    }

    #[expect(clippy::unnecessary_wraps, reason = "ends the arms of one match")]
    fn end(&mut self, cause: Cause, now: Timestamp) -> Result<(), Refusal> {
        let since = self.answered_at();
        // Nobody was in it any more from then on.
        let at = self.interrupted_at.unwrap_or(now);
        self.state = State::Ended { at, since, cause };
        Ok(())
    }

    /// Binds a lost device to this socket; a bound one too, if `moves`.
    fn bring_back(&mut self, device: &Device, moves: bool) -> Result<(), Refusal> {
        let role = self.role_of(&device.user).ok_or(Refusal::NothingToDo)?;
        let is_live = self.is_live();
        let link = &mut self.party_mut(role).link;
        let is_it = match (&*link, &device.id) {
            // A connection that began before the one that is lost, or bound, is dead: its node took long to say
            // that it is here, and has not noticed.
            (Link::Lost { device: lost, since, .. }, Some(id)) => {
                lost == id && device.is_as_late_as(*since)
            }
            // The client noticed the death of the old socket before the server.
            (Link::Bound(binding), Some(id)) if moves => {
                binding.device.as_ref() == Some(id)
                    && binding.socket != device.socket
                    && device.is_as_late_as(binding.since)
            }
            (Link::Open | Link::Bound(_), Some(_)) | (_, None) => false,
        };
        if !is_it {
            return Err(Refusal::NothingToDo);
        }
        *link = Link::Bound(device.binding(false));
        if is_live {
            self.interrupted_at = None;
        }
        Ok(())
    }

    fn confirm(&mut self, device: &Device) -> Result<(), Refusal> {
        if !self.awaits_confirmation(device) {
            return Err(Refusal::NothingToDo);
        }
        let role = self.bound_role(device).ok_or(Refusal::NothingToDo)?;
        self.party_mut(role).link = device.bind();
        Ok(())
    }

    /// The end of a call whose time is up: of several deadlines, the earliest.
    fn overdue(&self, now: Timestamp) -> Option<Cause> {
        let in_vain =
            self.busy.last().map_or(Cause::RingTimeout, |busy| Cause::Busy { by: busy.socket });
        let ring_end = self.rings_until().map(|until| (until, in_vain));
        let grace_end = |role: Role| {
            let until = self.party(role).link.lost_until()?;
            Some((until, Cause::Lost { role }))
        };
        [
            Some((self.expires_at, Cause::MaxDuration)),
            ring_end,
            grace_end(Role::Caller),
            grace_end(Role::Callee),
        ]
        .into_iter()
        .flatten()
        .filter(|(at, _)| *at <= now)
        .min_by_key(|(at, _)| *at)
        .map(|(_, cause)| cause)
    }
}
