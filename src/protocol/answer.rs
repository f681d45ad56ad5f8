//! Replies to client events: acks, and `call:error`.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{CallView, ErrorType, Presence};
use crate::{
    call::{Call, EndReason, Status},
    ids::{CallId, UserId},
    secret::{Secret, exposed},
    time::Timestamp,
};

/// The content of an ack beside `ok: true`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Answer {
    #[schema(title = "Joined", rename_all = "camelCase")]
    Joined { user_id: UserId },
    /// The state of the call after the event.
    #[schema(title = "Call", rename_all = "camelCase")]
    Call {
        call_id: CallId,
        #[schema(value_type = Status)]
        status: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<EndReason>, nullable = false)]
        reason: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        expires_at: Option<Timestamp>,
    },
    #[schema(title = "Relayed", rename_all = "camelCase")]
    Relayed { call_id: CallId },
    #[schema(title = "Sync", rename_all = "camelCase")]
    Sync {
        #[schema(required)]
        call: Option<CallView>,
    },
    #[schema(title = "Presence", rename_all = "camelCase")]
    Presence { presence: BTreeMap<UserId, Presence> },
    #[schema(title = "IceServers", rename_all = "camelCase")]
    IceServers {
        ice_servers: Vec<IceServer>,
        /// Lifetime of the credentials, in seconds.
        ttl: u64,
    },
    #[schema(title = "Refreshed", rename_all = "camelCase")]
    Refreshed {
        /// Expiry of the new token.
        expires_at: Timestamp,
    },
    #[schema(title = "Done", rename_all = "camelCase")]
    Done {},
}

/// The payload of `call:error`, and `error` in an ack.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    #[serde(rename = "type")]
    pub error_type: ErrorType,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub to_user_id: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub call_id: Option<CallId>,
    pub event: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub retry_after_ms: Option<u64>,
}

impl ErrorBody {
    /// The invalid field, as the message names it.
    pub fn field(&self) -> Option<&str> {
        let is_of_payload =
            matches!(self.error_type, ErrorType::InvalidPayload | ErrorType::PayloadTooLarge);
        let (field, _) = self.message.split_once(':').filter(|_| is_of_payload)?;
        Some(field)
    }
}

/// An entry of `iceServers`, in the form of `RTCPeerConnection`. An entry with a credential is a relay.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct IceServer {
    pub urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "exposed")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub credential: Option<Secret>,
}

impl IceServer {
    pub fn stun(urls: Vec<String>) -> Self {
        Self { urls, username: None, credential: None }
    }
}

impl Answer {
    /// Estimated size in bytes.
    pub fn size_bytes(&self) -> usize {
        const FIELDS_BYTES: usize = 256;
        /// JSON around a user in a list.
        const STATUS_BYTES: usize = 16;
        let payload = match self {
            Self::Presence { presence } => {
                presence.keys().map(|user| user.as_str().len() + STATUS_BYTES).sum()
            }
            Self::Sync { call: Some(call) } => call.payload_bytes(),
            Self::IceServers { ice_servers, .. } => {
                ice_servers.iter().flat_map(|server| &server.urls).map(String::len).sum()
            }
            _ => 0,
        };
        FIELDS_BYTES + payload
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_large_answer_is_about_that_of_its_json() {
        let user = |n: usize| format!("{n:0>128}").parse().expect("a user id");
        let presence = (0..500).map(|n| (user(n), Presence::Online)).collect();
        let answer = Answer::Presence { presence };
        let json = serde_json::to_string(&answer).expect("an answer is plain data");
        assert!((json.len() * 9 / 10..=json.len() * 11 / 10).contains(&answer.size_bytes()));
    }
}
