//! Recipients of relayed messages: offers, answers and candidates.

use serde::{Deserialize, Serialize};

use super::{Call, Device, Link, Refusal, Role, State};
use crate::ids::{NodeId, SocketId};

/// The kind of a relayed message.
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

/// The recipient of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// All ringing devices of the callee, and those that join while it rings.
    Ringing,
    /// The party with this role if this device's answer wins; nobody otherwise.
    AfterAnswer(Role),
    /// The first answer: a transition, then the party with this role.
    Answers(Role),
    /// The bound device of the party with this role.
    Bound(Role, NodeId, SocketId),
    /// The party with this role, once its device has returned.
    WhenBack(Role),
}

impl Call {
    /// The recipient of `signal` from `device`.
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

    /// The recipient of a message to a party of an answered call.
    pub fn to_party(&self, role: Role) -> Route {
        match &self.party(role).link {
            Link::Bound(binding) => Route::Bound(role, binding.node, binding.socket),
            Link::Lost { .. } | Link::Open => Route::WhenBack(role),
        }
    }

    /// Whether the record marks `device`, by its id, as lost.
    pub fn has_lost(&self, device: &Device) -> bool {
        self.link_of(device).is_some_and(|link| matches!(link, Link::Lost { .. }))
    }

    /// Whether `device` acts for its party by its id, perhaps on another socket than in the record.
    pub fn knows(&self, device: &Device) -> bool {
        self.link_of(device).is_some()
    }

    /// The link of the party whose device has this id.
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
