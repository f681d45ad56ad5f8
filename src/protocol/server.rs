//! Server events.

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::{
    ErrorBody,
    schema::{CallerInfo, IceCandidate, SessionDescription},
};
use crate::{
    call::{Call, CallType, EndReason, Notification, NotifiedReason, Role, Signal, Status},
    ids::{CallId, UserId},
    payload::Payload,
    time::Timestamp,
};

/// An event to a client.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum ServerEvent {
    /// An incoming call: ring.
    #[schema(title = "call:incoming", rename_all = "camelCase")]
    Incoming {
        call_id: CallId,
        from_user_id: UserId,
        #[schema(value_type = CallType)]
        call_type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<CallerInfo>, nullable = false)]
        caller_info: Option<Payload>,
        timestamp: Timestamp,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        expires_at: Option<Timestamp>,
    },
    /// The call that this device placed rings.
    #[schema(title = "call:ringing", rename_all = "camelCase")]
    Ringing {
        call_id: CallId,
        to_user_id: UserId,
        devices: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        expires_at: Option<Timestamp>,
    },
    /// An offer, as the other party sent it.
    #[schema(title = "call:offer", rename_all = "camelCase")]
    Offer {
        call_id: CallId,
        from_user_id: UserId,
        #[schema(value_type = SessionDescription)]
        offer: Payload,
        timestamp: Timestamp,
    },
    /// An answer, as the other party sent it.
    #[schema(title = "call:answer", rename_all = "camelCase")]
    Answer {
        call_id: CallId,
        from_user_id: UserId,
        #[schema(value_type = SessionDescription)]
        answer: Payload,
        timestamp: Timestamp,
    },
    /// A candidate, as the other party sent it.
    #[schema(title = "call:ice-candidate", rename_all = "camelCase")]
    IceCandidate {
        call_id: CallId,
        from_user_id: UserId,
        #[schema(value_type = IceCandidate)]
        candidate: Payload,
    },
    /// The callee declined.
    #[schema(title = "call:rejected", rename_all = "camelCase")]
    Rejected {
        call_id: CallId,
        from_user_id: UserId,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>, nullable = false)]
        reason: Option<Arc<str>>,
        timestamp: Timestamp,
    },
    /// The callee is in another call.
    #[schema(title = "call:busy", rename_all = "camelCase")]
    Busy {
        call_id: CallId,
        from_user_id: UserId,
        #[schema(value_type = String)]
        message: &'static str,
        timestamp: Timestamp,
    },
    /// The call ended, for this device at least.
    #[schema(title = "call:ended", rename_all = "camelCase")]
    Ended {
        call_id: CallId,
        from_user_id: UserId,
        #[serde(serialize_with = "seconds")]
        #[schema(minimum = 0)]
        duration: f64,
        timestamp: Timestamp,
        #[schema(value_type = NotifiedReason)]
        reason: &'static str,
    },
    /// This device is back in its call.
    #[schema(title = "call:resumed")]
    Resumed(CallView),
    /// The other party lost its connection and may return.
    #[schema(title = "call:peer-reconnecting", rename_all = "camelCase")]
    PeerReconnecting { call_id: CallId, from_user_id: UserId, grace_ends_at: Timestamp },
    /// The other party is back.
    #[schema(title = "call:peer-reconnected", rename_all = "camelCase")]
    PeerReconnected { call_id: CallId, from_user_id: UserId },
    /// The presence of a watched user changed.
    #[schema(title = "presence:update", rename_all = "camelCase")]
    Presence { user_id: UserId, status: Presence, timestamp: Timestamp },
    /// An event that was sent without an ack was refused.
    #[schema(title = "call:error")]
    Error(ErrorBody),
    /// The token of this socket expires then: send `auth:refresh`.
    #[schema(title = "auth:expiring", rename_all = "camelCase")]
    Expiring { expires_at: Timestamp },
    /// This node is stopping: the library reconnects.
    #[schema(title = "server:draining", rename_all = "camelCase")]
    Draining { reconnect_within_ms: u64 },
}

/// The presence of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    Online,
    Offline,
    /// In a live call, ringing included.
    Busy,
}

impl Presence {
    pub fn of(is_in_live_call: bool, has_socket: bool) -> Self {
        if is_in_live_call {
            Self::Busy
        } else if has_socket {
            Self::Online
        } else {
            Self::Offline
        }
    }
}

/// A call as one of its parties may see it: the answer to `call:sync`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallView {
    call_id: CallId,
    caller: UserId,
    receiver: UserId,
    #[schema(value_type = CallType)]
    call_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CallerInfo>, nullable = false)]
    caller_info: Option<Payload>,
    #[schema(value_type = Status)]
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<EndReason>, nullable = false)]
    reason: Option<&'static str>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    ended_at: Option<Timestamp>,
    /// End of ringing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expires_at: Option<Timestamp>,
    /// End of the grace period of the other party, if that lost its connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    grace_ends_at: Option<Timestamp>,
}

impl ServerEvent {
    /// The event for the notification `notification` of `call`, for the party with role `to`.
    pub fn from_notification(
        notification: Notification,
        call: &Call,
        to: Role,
        now: Timestamp,
    ) -> Self {
        let call_id = call.id;
        let from_user_id = call.party(to.other()).user.clone();
        match notification {
            Notification::Incoming => Self::Incoming {
                call_id,
                from_user_id,
                call_type: call.call_type.as_str(),
                caller_info: call.caller_info.clone(),
                timestamp: now,
                expires_at: call.rings_until(),
            },
            Notification::Ringing { devices } => Self::Ringing {
                call_id,
                to_user_id: from_user_id,
                devices,
                expires_at: call.rings_until(),
            },
            Notification::Resumed => Self::Resumed(CallView::new(call, to)),
            Notification::PeerReconnecting { grace_ends_at } => {
                Self::PeerReconnecting { call_id, from_user_id, grace_ends_at }
            }
            Notification::PeerReconnected => Self::PeerReconnected { call_id, from_user_id },
            Notification::Rejected { reason } => {
                Self::Rejected { call_id, from_user_id, reason, timestamp: now }
            }
            Notification::Busy => Self::Busy {
                call_id,
                from_user_id,
                message: "User is currently on another call",
                timestamp: now,
            },
            Notification::Ended { why, duration_s } => Self::Ended {
                call_id,
                from_user_id,
                duration: duration_s,
                timestamp: now,
                reason: why.as_str(),
            },
        }
    }

    /// A message that the party with role `from` sends to the other.
    pub fn relayed(
        signal: Signal,
        payload: Payload,
        call: &Call,
        from: Role,
        now: Timestamp,
    ) -> Self {
        let call_id = call.id;
        let from_user_id = call.party(from).user.clone();
        match signal {
            Signal::Offer => Self::Offer { call_id, from_user_id, offer: payload, timestamp: now },
            Signal::Answer => {
                Self::Answer { call_id, from_user_id, answer: payload, timestamp: now }
            }
            Signal::Candidate => Self::IceCandidate { call_id, from_user_id, candidate: payload },
        }
    }

    /// Whether it relays a message of the other party.
    pub fn is_relayed(&self) -> bool {
        matches!(self, Self::Offer { .. } | Self::Answer { .. } | Self::IceCandidate { .. })
    }

    /// Estimated size on the wire, in bytes.
    pub fn size_bytes(&self) -> usize {
        const FIELDS_BYTES: usize = 256;
        let payload = match self {
            Self::Incoming { caller_info: Some(payload), .. }
            | Self::Offer { offer: payload, .. }
            | Self::Answer { answer: payload, .. }
            | Self::IceCandidate { candidate: payload, .. } => payload.len_bytes(),
            _ => 0,
        };
        FIELDS_BYTES + payload
    }

    /// The Socket.IO event name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Incoming { .. } => "call:incoming",
            Self::Ringing { .. } => "call:ringing",
            Self::Offer { .. } => "call:offer",
            Self::Answer { .. } => "call:answer",
            Self::IceCandidate { .. } => "call:ice-candidate",
            Self::Rejected { .. } => "call:rejected",
            Self::Busy { .. } => "call:busy",
            Self::Ended { .. } => "call:ended",
            Self::Resumed(_) => "call:resumed",
            Self::PeerReconnecting { .. } => "call:peer-reconnecting",
            Self::PeerReconnected { .. } => "call:peer-reconnected",
            Self::Presence { .. } => "presence:update",
            Self::Error(_) => "call:error",
            Self::Expiring { .. } => "auth:expiring",
            Self::Draining { .. } => "server:draining",
        }
    }
}

impl CallView {
    /// Bytes of the relayed payload in it.
    pub fn payload_bytes(&self) -> usize {
        self.caller_info.as_ref().map_or(0, Payload::len_bytes)
    }

    /// `call` in the view of the party with role `seen_by`.
    pub fn new(call: &Call, seen_by: Role) -> Self {
        Self {
            call_id: call.id,
            caller: call.caller.user.clone(),
            receiver: call.callee.user.clone(),
            call_type: call.call_type.as_str(),
            caller_info: call.caller_info.clone(),
            status: call.status().as_str(),
            reason: call.end_reason().map(EndReason::as_str),
            created_at: call.created_at,
            started_at: call.answered_at(),
            ended_at: call.ended_at(),
            expires_at: call.rings_until(),
            grace_ends_at: call.party(seen_by.other()).link.lost_until().filter(|_| call.is_live()),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
/// Whole seconds without a decimal point, as clients reported them.
fn seconds<S: Serializer>(duration_s: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    if duration_s.fract() == 0.0 && (0.0..=MAX_EXACT).contains(duration_s) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number that fits"
        )]
        let whole = *duration_s as u64;
        serializer.serialize_u64(whole)
    } else {
        serializer.serialize_f64(*duration_s)
    }
}
