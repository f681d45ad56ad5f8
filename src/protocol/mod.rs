//! The wire protocol: client and server events, error types, limits.
//!
//! Names and literal texts are fixed: deployed clients depend on every one of them.

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

/// The event that identifies a socket.
pub const USER_CONNECTED: &str = "user-connected";
pub const SUBSCRIBE: &str = "presence:subscribe";
/// Bound on the part of an event's name that errors echo.
pub const MAX_NAME_CHARS: usize = 64;
/// Bound on the parser message that errors echo.
pub const MAX_REASON_CHARS: usize = 128;
/// Bound on `reason` of `call:reject`, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;
/// Bound on `clientCallId`, in bytes.
pub const MAX_CLIENT_CALL_ID_BYTES: usize = 128;
/// Bound on texts of `call:stats`, in bytes.
pub const MAX_STATS_TEXT_BYTES: usize = 64;
/// Bound on the user ids of a presence request, and on the users that a socket watches.
pub const MAX_WATCHED_USERS: usize = 500;
/// Default bound on a message, in bytes; a longer one closes the transport.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Bounds on relayed payloads. docs/reference/protocol.md has the defaults.
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
    /// Bound on an offer or answer as JSON text: an escaped SDP at its limit, and 4 KiB beside it.
    pub const fn description_bytes(&self) -> usize {
        3 * self.sdp_bytes + 4 * 1024
    }
}

/// The `type` of a `call:error`. It determines whether a retry makes sense.
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
