//! Where a message goes that is only passed on.

use serde::{Deserialize, Serialize};

use super::{Call, Device, Link, Refusal, Role, State};
use crate::ids::{NodeId, SocketId};

/// What kind of message is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    Offer,
    Answer,
    Candidate,
}

impl Signal {
    pub const ALL: [Self; 3] = [Self::Offer, Self::Answer, Self::Candidate];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offer => "offer",
            Self::Answer => "answer",
            Self::Candidate => "candidate",
        }
    }
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To all devices of the callee that ring, and to those that join while it rings.
    Ringing,
    /// To the party with this role when this device's answer has won, and nowhere if it does not.
    AfterAnswer(Role),
    /// It is the first answer: a transition, then to the party with this role.
    Answers(Role),
    /// To the bound device of the party with this role.
    Bound(Role, NodeId, SocketId),
    /// To the party with this role, when its device is back.
    WhenBack(Role),
}

impl Call {
    /// Where `signal` from `device` goes.
    ///
    /// # Errors
    /// `NotInCall`, `AlreadyAnswered` or `Over`.
    pub fn route(&self, device: &Device, signal: Signal) -> Result<Route, Refusal> {
        let role = self.role_of(&device.user).ok_or(Refusal::NotInCall)?;
        let bound = self.is_bound_to(device);
        match (&self.state, role, signal) {
            (State::Ringing { .. }, Role::Caller, Signal::Offer | Signal::Candidate) if bound => {
                Ok(Route::Ringing)
            }
            (State::Ringing { .. }, Role::Caller, _) => Err(Refusal::NotInCall),
            (State::Ringing { .. }, Role::Callee, Signal::Answer) => {
                Ok(Route::Answers(Role::Caller))
            }
            (State::Ringing { .. }, Role::Callee, Signal::Candidate) => {
                Ok(Route::AfterAnswer(Role::Caller))
            }
            (State::Ringing { .. }, Role::Callee, Signal::Offer) => Err(Refusal::NotInCall),
            (State::Active { .. }, _, _) if bound => Ok(self.to_party(role.other())),
            (State::Active { .. }, Role::Callee, _) => Err(Refusal::AlreadyAnswered(self.id)),
            (State::Active { .. }, Role::Caller, _) => Err(Refusal::NotInCall),
            (State::Ended { .. }, _, _) => Err(Refusal::Over),
        }
    }

    /// Where a message to a party of an answered call goes.
    pub fn to_party(&self, role: Role) -> Route {
        match &self.party(role).link {
            Link::Bound(binding) => Route::Bound(role, binding.node, binding.socket),
            Link::Lost { .. } | Link::Open => Route::WhenBack(role),
        }
    }

    /// Whether `device`, by its id, is the one that the record says is lost.
    pub fn has_lost(&self, device: &Device) -> bool {
        self.link_of(device).is_some_and(|link| matches!(link, Link::Lost { .. }))
    }

    /// Whether `device` speaks for its party by its id, though perhaps on another socket than the record says.
    pub fn knows(&self, device: &Device) -> bool {
        self.link_of(device).is_some()
    }

    /// How the party is connected whose device has this id.
    fn link_of(&self, device: &Device) -> Option<&Link> {
        let link = &self.party(self.role_of(&device.user)?).link;
        let bound = match link {
            Link::Open => None,
            Link::Bound(binding) => binding.device.as_ref(),
            Link::Lost { device, .. } => Some(device),
        };
        (self.is_live() && bound.is_some() && bound == device.id.as_ref()).then_some(link)
    }
}
