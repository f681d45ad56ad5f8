//! Deciding call attempts.

use std::sync::Arc;

use super::{
    Call, CallType, Cause, Device, Link, PLACED_VERSION, Party, Refusal, Role, Rules, State, What,
};
use crate::{
    ids::{CallId, UserId},
    payload::Payload,
    time::Timestamp,
};

/// `call:initiate`, with the id that the call will have.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub id: CallId,
    pub from: Device,
    pub to: UserId,
    pub call_type: CallType,
    pub caller_info: Option<Payload>,
    pub client_call_id: Option<Arc<str>>,
}

/// The input of a decision.
#[derive(Debug, Clone, Default)]
pub struct Lobby {
    /// The latest call of the caller, live or ended.
    pub caller_call: Option<Call>,
    /// The latest call of the callee, live or ended.
    pub callee_call: Option<Call>,
    /// How many sockets the callee has.
    pub callee_sockets: usize,
}

/// The result of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Placement {
    /// A new call, ringing, or ended at once because the callee is busy or offline.
    New(Call),
    /// A repetition of the attempt that became this call.
    Repeated(Call),
    /// This earlier call of the caller must end as superseded; then decide again.
    Supersede(Call),
}

impl Rules {
    /// Decides a call attempt.
    ///
    /// # Errors
    /// `SelfCall`, `Glare` or `CallInProgress`.
    pub fn place(
        &self,
        attempt: &Attempt,
        lobby: &Lobby,
        now: Timestamp,
    ) -> Result<Placement, Refusal> {
        if attempt.from.user == attempt.to {
            return Err(Refusal::SelfCall);
        }
        if let Some(own) = &lobby.caller_call {
            if attempt.repeats(own) {
                return Ok(Placement::Repeated(own.clone()));
            }
            if own.is_live() {
                return attempt.beside(own);
            }
        }
        let busy = lobby.callee_call.as_ref().is_some_and(Call::is_live);
        let ended = |cause| State::Ended { at: now, since: None, cause };
        let state = if busy {
            ended(Cause::LineBusy)
        } else if lobby.callee_sockets == 0 {
            ended(Cause::Offline)
        } else {
            State::Ringing { until: now + self.ring_timeout }
        };
        let mut call = Call {
            id: attempt.id,
            version: PLACED_VERSION,
            call_type: attempt.call_type,
            caller_info: attempt.caller_info.clone(),
            client_call_id: attempt.client_call_id.clone(),
            caller: Party { user: attempt.from.user.clone(), link: attempt.from.bind() },
            callee: Party { user: attempt.to.clone(), link: Link::Open },
            state,
            busy: Vec::new(),
            created_at: now,
            updated_at: now,
            expires_at: now + self.max_call_duration,
            interrupted_at: None,
            timeline: Vec::new(),
            traceparent: None,
        };
        let by = (Role::Caller, attempt.from.id.clone());
        call.note(What::Placed, Some(by), attempt.from.node);
        Ok(Placement::New(call))
    }
}

impl Attempt {
    /// Whether `call` came from an earlier try of this attempt.
    fn repeats(&self, call: &Call) -> bool {
        self.client_call_id.is_some()
            && self.client_call_id == call.client_call_id
            && self.from.user == call.caller.user
            && self.to == call.callee.user
    }

    /// Decides an attempt of a caller with a live call `own`.
    fn beside(&self, own: &Call) -> Result<Placement, Refusal> {
        let role = own.role_of(&self.from.user).ok_or(Refusal::NotInCall)?;
        let rings_here = role == Role::Callee && own.is_ringing();
        if rings_here && own.caller.user == self.to {
            return Err(Refusal::Glare(own.id));
        }
        if own.is_given_up(role, &self.from) {
            Ok(Placement::Supersede(own.clone()))
        } else {
            Err(Refusal::CallInProgress(own.id))
        }
    }
}

impl Call {
    /// Whether `device` may supersede the call: the party with this role has lost its device, or `device` has
    /// returned to the call and is unconfirmed.
    pub(super) fn is_given_up(&self, role: Role, device: &Device) -> bool {
        match &self.party(role).link {
            Link::Lost { .. } => true,
            Link::Bound(binding) => binding.socket == device.socket && !binding.confirmed,
            Link::Open => false,
        }
    }
}
