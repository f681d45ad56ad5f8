//! Replies to clients: acks and `call:error`, and the one mapping from failures to error types.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

use super::session::NotJoined;
use crate::{
    auth::CheckError,
    call::Refusal,
    calls::Failure,
    ids::{CallId, UserId},
    limits::TooMany,
    protocol::{Answer, ErrorBody, ErrorType, MAX_NAME_CHARS, MAX_WATCHED_USERS, Malformed},
};

/// `retryAfterMs` if the shared state could not be reached.
const RETRY_UNAVAILABLE_MS: u64 = 1_000;

/// `retryAfterMs` if too many presence requests came at the same time.
const RETRY_PRESENCE_MS: u64 = 2_000;

/// An ack.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Ack {
    Accepted {
        ok: bool,
        #[serde(flatten)]
        answer: Answer,
    },
    Refused {
        ok: bool,
        error: ErrorBody,
    },
}

impl From<Result<Answer, ErrorBody>> for Ack {
    fn from(result: Result<Answer, ErrorBody>) -> Self {
        match result {
            Ok(answer) => Self::Accepted { ok: true, answer },
            Err(error) => Self::Refused { ok: false, error },
        }
    }
}

/// The reason why an event was refused or failed.
#[derive(Debug)]
pub enum Rejected {
    /// The socket has no user yet.
    Unauthenticated,
    /// The socket belongs to another user.
    AnotherUser,
    /// The server has no token authentication.
    NoTokens,
    /// The socket's token has expired, and the event is not about the call that the socket is kept
    /// for.
    Expired,
    /// The new token is not valid.
    Token(CheckError),
    Binary,
    Malformed(Malformed),
    /// The socket exceeds a limit.
    TooFast {
        retry_after: Duration,
    },
    TooMany(TooMany),
    Failed(Failure),
}

impl From<Malformed> for Rejected {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<TooMany> for Rejected {
    fn from(too_many: TooMany) -> Self {
        Self::TooMany(too_many)
    }
}

impl From<NotJoined> for Rejected {
    fn from(error: NotJoined) -> Self {
        match error {
            NotJoined::TooMany(too_many) => Self::TooMany(too_many),
            NotJoined::Unavailable(error) => Self::Failed(error.into()),
        }
    }
}

impl From<CheckError> for Rejected {
    fn from(error: CheckError) -> Self {
        Self::Token(error)
    }
}

impl From<Failure> for Rejected {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The call and user that the event referred to, as far as they are known.
#[derive(Debug, Clone, Default)]
pub struct About {
    pub to: Option<UserId>,
    pub call_id: Option<CallId>,
}

impl Rejected {
    pub fn into_body(self, event: &str, about: About) -> ErrorBody {
        let (error_type, message) = self.describe();
        let retry_after_ms = match &self {
            Self::Failed(Failure::Full { retry_after }) | Self::TooFast { retry_after } => {
                Some(u64::try_from(retry_after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
            }
            Self::TooMany(too_many) => Some(too_many.retry_after_ms()),
            Self::Failed(Failure::PresenceBusy) => Some(RETRY_PRESENCE_MS),
            Self::Failed(Failure::Unavailable(_)) | Self::Token(CheckError::NoKeys) => {
                Some(RETRY_UNAVAILABLE_MS)
            }
            _ => None,
        };
        let call_id = match &self {
            Self::Failed(
                Failure::Offline(id)
                | Failure::Refused(
                    Refusal::Glare(id) | Refusal::CallInProgress(id) | Refusal::AlreadyAnswered(id),
                ),
            ) => Some(*id),
            _ => about.call_id,
        };
        let to_user_id = match self {
            Self::Malformed(malformed) => malformed.to,
            _ => about.to,
        };
        let event = event.chars().take(MAX_NAME_CHARS).collect();
        ErrorBody { error_type, message, to_user_id, call_id, event, retry_after_ms }
    }

    fn describe(&self) -> (ErrorType, String) {
        let (error_type, message) = match self {
            Self::Unauthenticated => {
                (ErrorType::Unauthenticated, "Say who you are first: send user-connected")
            }
            Self::AnotherUser => (ErrorType::Forbidden, "This socket belongs to another user"),
            Self::NoTokens => (
                ErrorType::Forbidden,
                "This server runs in open mode: there is no token to refresh",
            ),
            Self::Expired => (
                ErrorType::Unauthenticated,
                "Your token has expired: send auth:refresh with a new one",
            ),
            Self::Token(CheckError::Unauthenticated(why)) => {
                return (ErrorType::Unauthenticated, why.to_string());
            }
            Self::Token(error @ CheckError::NoKeys) => {
                return (ErrorType::TemporarilyUnavailable, error.to_string());
            }
            Self::TooFast { .. } => {
                (ErrorType::RateLimited, "You send faster than this server takes: try again later")
            }
            Self::TooMany(too_many) => return (ErrorType::RateLimited, too_many.to_string()),
            Self::Binary => (ErrorType::InvalidPayload, "payload: binary data is not accepted"),
            Self::Malformed(malformed) => {
                return (malformed.error_type, malformed.message.clone());
            }
            Self::Failed(failure) => match failure {
                Failure::Forbidden(reason) => return (ErrorType::Forbidden, reason.to_string()),
                Failure::Offline(_) => (ErrorType::RecipientOffline, "User is currently offline"),
                Failure::Full { .. } => (
                    ErrorType::RateLimited,
                    "Too much waits to be delivered already: try again later",
                ),
                Failure::TooManyWatched => {
                    let message =
                        format!("userIds: at most {MAX_WATCHED_USERS} users can be watched");
                    return (ErrorType::PayloadTooLarge, message);
                }
                Failure::PresenceBusy => (
                    ErrorType::RateLimited,
                    "Too many ask for presence right now: try again shortly",
                ),
                Failure::Unavailable(_) => (
                    ErrorType::TemporarilyUnavailable,
                    "The service cannot do this right now: try again shortly",
                ),
                Failure::Refused(refusal) => match refusal {
                    Refusal::SelfCall => (ErrorType::SelfCall, "You cannot call yourself"),
                    Refusal::CallInProgress(_) => {
                        (ErrorType::CallInProgress, "You are in a call already")
                    }
                    Refusal::Glare(_) => {
                        (ErrorType::Glare, "This user is calling you: answer that call")
                    }
                    Refusal::AlreadyAnswered(_) => (
                        ErrorType::AlreadyAnswered,
                        "Another device of yours has answered this call",
                    ),
                    Refusal::NotInCall | Refusal::Over | Refusal::NothingToDo => (
                        ErrorType::NoActiveCall,
                        "There is no live call with that user, or this device is not in it",
                    ),
                },
            },
        };
        (error_type, message.to_owned())
    }
}

/// A received event: `[name, payload, …]`. Elements after the payload are ignored.
pub struct Frame<'a> {
    pub name: String,
    pub payload: Option<&'a RawValue>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Frame<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Frame<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event's name and payload")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Frame<'de>, A::Error> {
                let missing = || de::Error::invalid_length(0, &"an event's name");
                let name = seq.next_element()?.ok_or_else(missing)?;
                let payload = seq.next_element()?;
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Frame { name, payload })
            }
        }

        deserializer.deserialize_seq(Visitor)
    }
}
