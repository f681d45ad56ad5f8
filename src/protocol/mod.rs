//! The wire: what clients may send, what they are sent, error types and limits.
//!
//! Names and literal texts are fixed; clients in the field depend on every one of them.

mod answer;
pub mod catalogue;
mod client;
pub mod schema;
mod server;

pub use answer::{Answer, ErrorBody, IceServer};
pub use client::{CallRef, ClientEvent, Malformed, MediaStats};
pub use server::{CallView, Presence, ServerEvent};

use std::fmt;

use serde::Serialize;
use utoipa::ToSchema;

/// The event by which a socket says who it is.
pub const USER_CONNECTED: &str = "user-connected";
/// How much of an event's name is said back in an error.
pub const MAX_NAME_CHARS: usize = 64;
/// How much of why a payload cannot be read is said back in an error.
pub const MAX_REASON_CHARS: usize = 128;
/// Longest `reason` of a `call:reject`, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;
/// Longest `clientCallId`, in bytes.
pub const MAX_CLIENT_CALL_ID_BYTES: usize = 128;
/// Longest text in a `call:stats`, in bytes.
pub const MAX_STATS_TEXT_BYTES: usize = 64;
/// Most user ids in one presence request, and most users that one socket may watch.
pub const MAX_WATCHED_USERS: usize = 500;
/// Longest message that the transport takes, unless the operator says otherwise; what is longer closes it.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// The longest payloads that are passed on. The default is what stands in docs/reference/protocol.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The SDP of an offer or an answer, in bytes of UTF-8.
    pub sdp_bytes: usize,
    /// A candidate as JSON text.
    pub candidate_bytes: usize,
    /// `callerInfo` as JSON text.
    pub caller_info_bytes: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { sdp_bytes: 64 * 1024, candidate_bytes: 4 * 1024, caller_info_bytes: 16 * 1024 }
    }
}

impl Sizes {
    /// Longest offer or answer as JSON text: room for an SDP at its limit that is escaped, and for 4 KiB
    /// beside it.
    pub const fn description_bytes(&self) -> usize {
        3 * self.sdp_bytes + 4 * 1024
    }
}

/// The `type` of a `call:error`. It tells whether to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorType {
    RecipientOffline,
    Unauthenticated,
    Forbidden,
    InvalidPayload,
    PayloadTooLarge,
    NoActiveCall,
    AlreadyAnswered,
    CallInProgress,
    Glare,
    SelfCall,
    RateLimited,
    TemporarilyUnavailable,
}

impl ErrorType {
    pub const ALL: [Self; 12] = [
        Self::RecipientOffline,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::InvalidPayload,
        Self::PayloadTooLarge,
        Self::NoActiveCall,
        Self::AlreadyAnswered,
        Self::CallInProgress,
        Self::Glare,
        Self::SelfCall,
        Self::RateLimited,
        Self::TemporarilyUnavailable,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RecipientOffline => "RECIPIENT_OFFLINE",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::InvalidPayload => "INVALID_PAYLOAD",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::NoActiveCall => "NO_ACTIVE_CALL",
            Self::AlreadyAnswered => "ALREADY_ANSWERED",
            Self::CallInProgress => "CALL_IN_PROGRESS",
            Self::Glare => "GLARE",
            Self::SelfCall => "SELF_CALL",
            Self::RateLimited => "RATE_LIMITED",
            Self::TemporarilyUnavailable => "TEMPORARILY_UNAVAILABLE",
        }
    }
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
