//! What an event of a client is answered: in its ack, or as `call:error`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{CallView, ErrorType, Presence};
use crate::{
    call::{Call, EndReason},
    ids::{CallId, UserId},
    time::Timestamp,
};

/// What an ack says beside `ok: true`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Answer {
    Joined {
        user_id: UserId,
    },
    /// How a call stands after the event.
    Call {
        call_id: CallId,
        status: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    Relayed {
        call_id: CallId,
    },
    Sync {
        call: Option<CallView>,
    },
    Presence {
        presence: BTreeMap<UserId, Presence>,
    },
    IceServers {
        ice_servers: Vec<IceServer>,
        /// For how many seconds the servers may be used.
        ttl: u64,
    },
    Done {},
}

/// The payload of `call:error`, and `error` in an ack.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    #[serde(rename = "type")]
    pub error_type: ErrorType,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_user_id: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<CallId>,
    pub event: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// One entry of `iceServers`, as `RTCPeerConnection` takes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IceServer {
    pub urls: Vec<String>,
}

impl From<&Call> for Answer {
    fn from(call: &Call) -> Self {
        Self::Call {
            call_id: call.id,
            status: call.status().as_str(),
            reason: call.end_reason().map(EndReason::as_str),
            expires_at: call.rings_until(),
        }
    }
}
