//! Calls, and every rule about them.
//!
//! Pure: no I/O, no clock, no locks. [`Rules::place`] decides a call attempt, [`Rules::apply`] computes the next
//! version of a call, [`Call::route`] computes the recipient of a relayed message, and [`notifications`] derives the
//! notifications of a change. The driver in `crate::calls` performs them.

mod notification;
mod place;
mod resume;
mod route;
mod timeline;
mod transition;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod table;

use std::{sync::Arc, time::Duration};

pub use notification::{Notification, NotifiedReason, first_notification, notifications};
pub use place::{Attempt, Lobby, Placement};
pub use route::{Route, Signal};
pub use timeline::{MAX_STEPS, Step, What};
pub use transition::Event;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{CallId, DeviceId, NodeId, SocketId, UserId},
    payload::Payload,
    time::Timestamp,
    trace::{self, TraceContext},
};

/// Time for which an ended call remains available.
pub const ENDED_RETENTION: Duration = Duration::from_mins(1);
/// Most devices that are remembered as busy in one call. One more ends it as busy.
const MAX_BUSY_DEVICES: usize = 64;
/// The version of a call that was just placed.
const PLACED_VERSION: u64 = 1;

/// The time-outs of calls.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// An unanswered call ends after this time as `no_answer`.
    pub ring_timeout: Duration,
    /// Grace period for a device that lost its transport.
    pub reconnect_grace: Duration,
    /// Longest duration of a call.
    pub max_call_duration: Duration,
}

/// The record of one call attempt between two users, in one version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub id: CallId,
    /// 1 when placed, then one more with each transition.
    pub version: u64,
    pub call_type: CallType,
    /// `callerInfo`, as the caller's client sent it.
    pub caller_info: Option<Payload>,
    /// `clientCallId`, which identifies a repeated attempt.
    pub client_call_id: Option<Arc<str>>,
    pub caller: Party,
    pub callee: Party,
    pub state: State,
    /// The devices of the callee that have said that they are busy, and ring no more; in that order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub busy: Vec<BusyDevice>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// When the call ends as `max_duration`, if nothing else ended it.
    pub expires_at: Timestamp,
    /// The time at which the only node of the call was last known to be alive; set on a call that
    /// was resumed after that node died, until a device returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted_at: Option<Timestamp>,
    /// The cause of each version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Step>,
    /// The span that made this version, if the call is sampled. No rule reads it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "trace::lenient")]
    pub traceparent: Option<TraceContext>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallType {
    Audio,
    Video,
}

/// One of the two users in a call, and how they are connected to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    pub user: UserId,
    pub link: Link,
}

/// How a party is connected to its call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// No device is chosen yet: the callee while it rings.
    Open,
    /// This device alone acts for the party.
    Bound(Binding),
    /// The bound device lost its socket, and may return until `until`.
    Lost {
        device: DeviceId,
        until: Timestamp,
        /// The node that held its socket, and has its buffered messages.
        node: NodeId,
        /// When the connection of that socket began: an earlier one of the device is dead too. Earlier builds do
        /// not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Timestamp>,
    },
}

/// A device and the socket it is on now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The node that holds the socket.
    pub node: NodeId,
    pub socket: SocketId,
    /// None for a client without a device id, which cannot return.
    pub device: Option<DeviceId>,
    /// False after the device has returned, until its first message about the call.
    pub confirmed: bool,
    /// When the connection of that socket began. Earlier builds do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// A device of the callee that is in some other call: this one does not ring there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyDevice {
    /// The node that holds its socket.
    pub node: NodeId,
    /// Its socket, the latest one.
    pub socket: SocketId,
    pub device: Option<DeviceId>,
    /// When the connection of that socket began. Earlier builds do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The socket is gone, and the device may return on another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_gone: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ringing {
        until: Timestamp,
    },
    Active {
        since: Timestamp,
    },
    Ended {
        at: Timestamp,
        /// When it was answered; None if it never was.
        since: Option<Timestamp>,
        cause: Cause,
    },
}

/// The cause of an end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// `call:end` from the socket of a party, with the duration in seconds that its client reported.
    HangUp {
        role: Role,
        by: SocketId,
        reported_duration_s: Option<f64>,
    },
    /// `call:reject` from a device of the callee, with the reason it gave.
    Reject {
        by: SocketId,
        reason: Option<Arc<str>>,
    },
    /// `call:busy` from a device of the callee.
    Busy {
        by: SocketId,
    },
    /// The callee was in another call when this one was placed.
    LineBusy,
    /// The callee had no socket when this call was placed.
    Offline,
    RingTimeout,
    /// The device of this party left for good.
    Lost {
        role: Role,
    },
    /// This party began another call after it lost its device.
    Superseded {
        role: Role,
    },
    /// An operator ended it.
    Terminated,
    MaxDuration,
}

/// Which of the two parties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Caller,
    Callee,
}

/// Why a call ended, as history and clients name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    Completed,
    Declined,
    Cancelled,
    NoAnswer,
    Busy,
    Offline,
    ConnectionLost,
    Superseded,
    Terminated,
    MaxDuration,
}

/// A call's state in one word, as history and acks name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It rings.
    Pending,
    Answered,
    Rejected,
    /// It ended before an answer, in any way but a refusal.
    Missed,
    /// It ended after an answer.
    Ended,
}

/// A socket that speaks for a user, and the device it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub user: UserId,
    /// The node that holds the socket.
    pub node: NodeId,
    pub socket: SocketId,
    pub id: Option<DeviceId>,
    /// When its connection began. Of two connections of one device the later is the device.
    pub connected_at: Timestamp,
}

/// The reason for which an event changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The caller called themselves.
    SelfCall,
    /// The caller is in a live call.
    CallInProgress(CallId),
    /// The callee is calling this very caller: this call survives.
    Glare(CallId),
    /// The user, or this device, may not send this event in this call.
    NotInCall,
    /// Another device of the same user answered this call.
    AlreadyAnswered(CallId),
    /// The call has ended.
    Over,
    /// The call is in the requested state already.
    NothingToDo,
}

impl Call {
    /// Whether this is the first version.
    pub fn is_as_placed(&self) -> bool {
        self.version == PLACED_VERSION
    }

    pub fn is_live(&self) -> bool {
        !matches!(self.state, State::Ended { .. })
    }

    /// Whether this is later than `other`. After a rollback of the shared state, two versions may have the
    /// same number: then an end wins.
    pub fn succeeds(&self, other: &Self) -> bool {
        self.version > other.version
            || (self.version == other.version && !self.is_live() && other.is_live())
    }

    /// This record, restored over `found`. Its version is higher than both, so no node that holds the
    /// competing version can commit.
    #[must_use]
    pub fn put_over(&self, found: &Self) -> Self {
        Self { version: self.version.max(found.version + 1), ..self.clone() }
    }

    pub fn is_ringing(&self) -> bool {
        matches!(self.state, State::Ringing { .. })
    }

    pub fn party(&self, role: Role) -> &Party {
        match role {
            Role::Caller => &self.caller,
            Role::Callee => &self.callee,
        }
    }

    fn party_mut(&mut self, role: Role) -> &mut Party {
        match role {
            Role::Caller => &mut self.caller,
            Role::Callee => &mut self.callee,
        }
    }

    /// The role of `user`; None if not a party.
    pub fn role_of(&self, user: &UserId) -> Option<Role> {
        if self.caller.user == *user {
            Some(Role::Caller)
        } else if self.callee.user == *user {
            Some(Role::Callee)
        } else {
            None
        }
    }

    /// Whether every device of `user` rings for this call.
    pub fn rings_for(&self, user: &UserId) -> bool {
        self.is_ringing() && self.callee.user == *user
    }

    /// Whether this socket of the callee has said that it is busy: it does not ring.
    pub fn is_busy_on(&self, socket: SocketId) -> bool {
        self.busy.iter().any(|busy| busy.socket == socket && !busy.is_gone)
    }

    /// The parties whose latest call this becomes when it is placed. A call that ended at once, because the
    /// callee is busy or offline, is not the callee's latest.
    pub fn claimants(&self) -> &'static [Role] {
        if self.is_live() { &[Role::Caller, Role::Callee] } else { &[Role::Caller] }
    }

    /// Whether the call is between `user` and `other`, in either direction.
    pub fn is_between(&self, user: &UserId, other: &UserId) -> bool {
        self.role_of(user).is_some_and(|role| self.party(role.other()).user == *other)
    }

    /// Whether `device` acts for its party.
    pub fn is_bound_to(&self, device: &Device) -> bool {
        self.role_of(&device.user).is_some_and(|role| self.party(role).link.is_on(device.socket))
    }

    /// Whether `device` has returned to this live call and is unconfirmed.
    pub fn awaits_confirmation(&self, device: &Device) -> bool {
        self.role_of(&device.user).is_some_and(|role| {
            let link = &self.party(role).link;
            self.is_live()
                && matches!(link, Link::Bound(binding)
                    if binding.socket == device.socket && !binding.confirmed)
        })
    }

    /// When it stops ringing; None when it does not ring.
    pub fn rings_until(&self) -> Option<Timestamp> {
        match self.state {
            State::Ringing { until } => Some(until),
            State::Active { .. } | State::Ended { .. } => None,
        }
    }

    /// The next deadline: a time-out of a live call, or the end of the retention of an ended one.
    pub fn deadline(&self) -> Timestamp {
        if let State::Ended { at, .. } = self.state {
            // One that was interrupted ended long before that was found.
            let found_at = self.interrupted_at.map_or(at, |_| self.updated_at);
            return found_at + ENDED_RETENTION;
        }
        [self.rings_until(), self.caller.link.lost_until(), self.callee.link.lost_until()]
            .into_iter()
            .flatten()
            .fold(self.expires_at, Timestamp::min)
    }

    pub fn status(&self) -> Status {
        match &self.state {
            State::Ringing { .. } => Status::Pending,
            State::Active { .. } => Status::Answered,
            State::Ended { since: Some(_), .. } => Status::Ended,
            State::Ended { .. } if self.end_reason() == Some(EndReason::Declined) => {
                Status::Rejected
            }
            State::Ended { .. } => Status::Missed,
        }
    }

    /// None while the call is live.
    pub fn end_reason(&self) -> Option<EndReason> {
        let State::Ended { since, cause, .. } = &self.state else {
            return None;
        };
        let answered = since.is_some();
        Some(match cause {
            Cause::HangUp { .. } if answered => EndReason::Completed,
            Cause::HangUp { role: Role::Caller, .. } => EndReason::Cancelled,
            Cause::HangUp { role: Role::Callee, .. } | Cause::Reject { .. } => EndReason::Declined,
            Cause::Busy { .. } | Cause::LineBusy => EndReason::Busy,
            Cause::Offline => EndReason::Offline,
            Cause::RingTimeout => EndReason::NoAnswer,
            Cause::Lost { role: Role::Caller } if !answered => EndReason::Cancelled,
            Cause::Lost { .. } => EndReason::ConnectionLost,
            Cause::Superseded { .. } => EndReason::Superseded,
            Cause::Terminated => EndReason::Terminated,
            Cause::MaxDuration => EndReason::MaxDuration,
        })
    }

    pub fn answered_at(&self) -> Option<Timestamp> {
        match self.state {
            State::Ringing { .. } => None,
            State::Active { since } => Some(since),
            State::Ended { since, .. } => since,
        }
    }

    pub fn ended_at(&self) -> Option<Timestamp> {
        match self.state {
            State::Ended { at, .. } => Some(at),
            State::Ringing { .. } | State::Active { .. } => None,
        }
    }

    /// Whole seconds from the answer to the end; `None` if the call was never answered or is live.
    pub fn duration_s(&self) -> Option<u64> {
        Some((self.ended_at()? - self.answered_at()?).as_secs())
    }
}

impl Link {
    /// Whether this socket acts for the party.
    pub fn is_on(&self, socket: SocketId) -> bool {
        self.socket() == Some(socket)
    }

    /// The socket that acts for the party.
    pub fn socket(&self) -> Option<SocketId> {
        match self {
            Link::Bound(binding) => Some(binding.socket),
            Link::Open | Link::Lost { .. } => None,
        }
    }

    /// The node that holds the party's socket, or held the one that is lost.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Link::Bound(Binding { node, .. }) | Link::Lost { node, .. } => Some(*node),
            Link::Open => None,
        }
    }

    /// When the connection of the party's socket began, as far as the record says.
    pub fn since(&self) -> Option<Timestamp> {
        match self {
            Link::Bound(Binding { since, .. }) | Link::Lost { since, .. } => *since,
            Link::Open => None,
        }
    }

    /// The end of a lost device's grace; `None` unless it is lost.
    pub fn lost_until(&self) -> Option<Timestamp> {
        match self {
            Link::Lost { until, .. } => Some(*until),
            Link::Open | Link::Bound(_) => None,
        }
    }
}

impl Role {
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Role::Caller => Role::Callee,
            Role::Callee => Role::Caller,
        }
    }
}

impl Device {
    /// Whether its connection began no earlier than one of the same device at `since`. Of two connections the
    /// earlier is dead, however late its node learns that or announces it.
    fn is_as_late_as(&self, since: Option<Timestamp>) -> bool {
        since.is_none_or(|since| since <= self.connected_at)
    }

    fn bind(&self) -> Link {
        Link::Bound(self.binding(true))
    }

    fn binding(&self, confirmed: bool) -> Binding {
        Binding {
            node: self.node,
            socket: self.socket,
            device: self.id.clone(),
            confirmed,
            since: Some(self.connected_at),
        }
    }
}

impl CallType {
    pub const ALL: [Self; 2] = [Self::Audio, Self::Video];

    pub fn as_str(self) -> &'static str {
        match self {
            CallType::Audio => "audio",
            CallType::Video => "video",
        }
    }
}

impl Status {
    /// The end of a call in this state whose last witness died.
    #[must_use]
    pub fn when_orphaned(self) -> (Self, EndReason) {
        let ended = match self {
            Status::Pending | Status::Missed => Status::Missed,
            Status::Rejected => Status::Rejected,
            Status::Answered | Status::Ended => Status::Ended,
        };
        (ended, EndReason::ConnectionLost)
    }
}

impl EndReason {
    pub const ALL: [Self; 10] = [
        Self::Completed,
        Self::Declined,
        Self::Cancelled,
        Self::NoAnswer,
        Self::Busy,
        Self::Offline,
        Self::ConnectionLost,
        Self::Superseded,
        Self::Terminated,
        Self::MaxDuration,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::Completed => "completed",
            EndReason::Declined => "declined",
            EndReason::Cancelled => "cancelled",
            EndReason::NoAnswer => "no_answer",
            EndReason::Busy => "busy",
            EndReason::Offline => "offline",
            EndReason::ConnectionLost => "connection_lost",
            EndReason::Superseded => "superseded",
            EndReason::Terminated => "terminated",
            EndReason::MaxDuration => "max_duration",
        }
    }
}

impl Status {
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Answered, Self::Rejected, Self::Missed, Self::Ended];

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Answered => "answered",
            Status::Rejected => "rejected",
            Status::Missed => "missed",
            Status::Ended => "ended",
        }
    }
}
