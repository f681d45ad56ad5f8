//! What clients are sent.

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::ErrorBody;
use crate::{
    call::{Call, EndReason, News, Role, Signal},
    ids::{CallId, UserId},
    payload::Payload,
    time::Timestamp,
};

/// An event to a client.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum ServerEvent {
    Incoming {
        call_id: CallId,
        from_user_id: UserId,
        call_type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        caller_info: Option<Payload>,
        timestamp: Timestamp,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    Ringing {
        call_id: CallId,
        to_user_id: UserId,
        devices: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    Offer {
        call_id: CallId,
        from_user_id: UserId,
        offer: Payload,
        timestamp: Timestamp,
    },
    Answer {
        call_id: CallId,
        from_user_id: UserId,
        answer: Payload,
        timestamp: Timestamp,
    },
    IceCandidate {
        call_id: CallId,
        from_user_id: UserId,
        candidate: Payload,
    },
    Rejected {
        call_id: CallId,
        from_user_id: UserId,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<Arc<str>>,
        timestamp: Timestamp,
    },
    Busy {
        call_id: CallId,
        from_user_id: UserId,
        message: &'static str,
        timestamp: Timestamp,
    },
    Ended {
        call_id: CallId,
        from_user_id: UserId,
        #[serde(serialize_with = "seconds")]
        duration: f64,
        timestamp: Timestamp,
        reason: &'static str,
    },
    Resumed(CallView),
    PeerReconnecting {
        call_id: CallId,
        from_user_id: UserId,
        grace_ends_at: Timestamp,
    },
    PeerReconnected {
        call_id: CallId,
        from_user_id: UserId,
    },
    Presence {
        user_id: UserId,
        status: Presence,
        timestamp: Timestamp,
    },
    Error(ErrorBody),
    /// This node leaves.
    Draining {
        reconnect_within_ms: u64,
    },
}

/// Whether a user can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallView {
    call_id: CallId,
    caller: UserId,
    receiver: UserId,
    call_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_info: Option<Payload>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Timestamp>,
    /// When it stops ringing.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// Until when the other party, who lost the connection, may come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    grace_ends_at: Option<Timestamp>,
}

impl ServerEvent {
    /// What `news` of `call` looks like to the party with role `to`.
    pub fn from_news(news: News, call: &Call, to: Role, now: Timestamp) -> Self {
        let call_id = call.id;
        let from_user_id = call.party(to.other()).user.clone();
        match news {
            News::Incoming => Self::Incoming {
                call_id,
                from_user_id,
                call_type: call.call_type.as_str(),
                caller_info: call.caller_info.clone(),
                timestamp: now,
                expires_at: call.rings_until(),
            },
            News::Ringing { devices } => Self::Ringing {
                call_id,
                to_user_id: from_user_id,
                devices,
                expires_at: call.rings_until(),
            },
            News::Resumed => Self::Resumed(CallView::new(call, to)),
            News::PeerReconnecting { grace_ends_at } => {
                Self::PeerReconnecting { call_id, from_user_id, grace_ends_at }
            }
            News::PeerReconnected => Self::PeerReconnected { call_id, from_user_id },
            News::Rejected { reason } => {
                Self::Rejected { call_id, from_user_id, reason, timestamp: now }
            }
            News::Busy => Self::Busy {
                call_id,
                from_user_id,
                message: "User is currently on another call",
                timestamp: now,
            },
            News::Ended { why, duration_s } => Self::Ended {
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

    /// Whether it is what the other party has sent.
    pub fn is_relayed(&self) -> bool {
        matches!(self, Self::Offer { .. } | Self::Answer { .. } | Self::IceCandidate { .. })
    }

    /// Roughly how long it is on the wire.
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
            Self::Draining { .. } => "server:draining",
        }
    }
}

impl CallView {
    /// `call` as the party with role `seen_by` may see it.
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
