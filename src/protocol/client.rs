//! Decoding client events, from JSON to one closed enum.

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{
    ErrorType, MAX_CLIENT_CALL_ID_BYTES, MAX_NAME_CHARS, MAX_REASON_BYTES, MAX_REASON_CHARS,
    MAX_STATS_TEXT_BYTES, MAX_WATCHED_USERS, SUBSCRIBE, Sizes, USER_CONNECTED,
};
use crate::{
    auth::MAX_TOKEN_BYTES,
    call::{CallType, Signal},
    ids::{CallId, UserId},
    payload::Payload,
    secret::Secret,
};

/// An event of a client, checked.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientEvent {
    UserConnected {
        user: UserId,
    },
    Initiate {
        to: UserId,
        call_type: CallType,
        caller_info: Option<Payload>,
        client_call_id: Option<Arc<str>>,
    },
    /// `call:offer`, `call:answer` or `call:ice-candidate`: relayed without parsing.
    Signal {
        call: CallRef,
        signal: Signal,
        payload: Payload,
    },
    Reject {
        call: CallRef,
        reason: Option<Arc<str>>,
    },
    Busy {
        call: CallRef,
    },
    End {
        call: CallRef,
        duration_s: Option<f64>,
    },
    Sync {
        call_id: Option<CallId>,
    },
    Stats {
        call_id: CallId,
        stats: MediaStats,
    },
    Subscribe {
        users: Vec<UserId>,
    },
    Unsubscribe {
        users: Vec<UserId>,
    },
    IceServers,
    AuthRefresh {
        token: Secret,
    },
}

/// The call that an event refers to: the one with this id, else the socket's live call with `to`.
/// At least one is set; relayed events always have `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRef {
    pub to: Option<UserId>,
    pub call_id: Option<CallId>,
}

/// `call:stats`: a client's measurements of its media connection, from `getStats`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MediaStats {
    pub round_trip_ms: Option<f64>,
    pub loss_percent: Option<f64>,
    pub jitter_ms: Option<f64>,
    pub candidate_type: Option<Box<str>>,
    pub ice_state: Option<Box<str>>,
}

/// An invalid payload. Displays the field and the expectation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Malformed {
    pub error_type: ErrorType,
    pub message: String,
    /// `toUserId`, as far as it could be read.
    pub to: Option<UserId>,
}

/// The fields that events have, still JSON. Fields that no event has are ignored; `null` is not
/// the same as absent.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
struct Fields<'a> {
    #[serde(deserialize_with = "present")]
    user_id: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    user_ids: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    to_user_id: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    call_id: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    call_type: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    caller_info: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    client_call_id: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    offer: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    answer: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    candidate: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    reason: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    duration: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    round_trip_ms: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    loss_percent: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    jitter_ms: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    candidate_type: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    ice_state: Option<&'a RawValue>,
    #[serde(deserialize_with = "present")]
    token: Option<&'a RawValue>,
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(field: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

impl ClientEvent {
    /// Reads the payload, JSON, of the event called `name`. Relayed payloads may be as long as
    /// `sizes` permits.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for an unknown event, and for a payload that is not valid for the event.
    pub fn decode(name: &str, payload: Option<&str>, sizes: &Sizes) -> Result<Self, Malformed> {
        if name == USER_CONNECTED {
            return Self::user_connected(payload);
        }
        let fields = Fields::read(payload)?;
        Self::decode_fields(name, &fields, sizes).map_err(|malformed| Malformed {
            to: fields.to_user_id.and_then(|raw| UserId::from_json(raw.get()).ok()),
            ..malformed
        })
    }

    fn decode_fields(name: &str, fields: &Fields, sizes: &Sizes) -> Result<Self, Malformed> {
        Ok(match name {
            "call:initiate" => Self::Initiate {
                to: user("toUserId", fields.to_user_id)?,
                call_type: call_type(fields.call_type)?,
                caller_info: caller_info(fields.caller_info, sizes)?,
                client_call_id: client_call_id(fields.client_call_id)?,
            },
            "call:offer" => Self::Signal {
                call: fields.call_ref()?,
                signal: Signal::Offer,
                payload: description("offer", fields.offer, sizes)?,
            },
            "call:answer" => Self::Signal {
                call: fields.call_ref()?,
                signal: Signal::Answer,
                payload: description("answer", fields.answer, sizes)?,
            },
            "call:ice-candidate" => Self::Signal {
                call: fields.call_ref()?,
                signal: Signal::Candidate,
                payload: candidate(fields.candidate, sizes)?,
            },
            "call:reject" => Self::Reject {
                call: fields.ended_ref()?,
                reason: optional_text("reason", fields.reason, MAX_REASON_BYTES)?,
            },
            "call:busy" => Self::Busy { call: fields.ended_ref()? },
            "call:end" => Self::End {
                call: fields.ended_ref()?,
                duration_s: optional_number("duration", fields.duration)?,
            },
            "call:sync" => Self::Sync { call_id: optional_id("callId", fields.call_id)? },
            "call:stats" => Self::Stats {
                call_id: id("callId", fields.call_id)?,
                stats: MediaStats {
                    round_trip_ms: optional_number("roundTripMs", fields.round_trip_ms)?,
                    loss_percent: optional_number("lossPercent", fields.loss_percent)?,
                    jitter_ms: optional_number("jitterMs", fields.jitter_ms)?,
                    candidate_type: optional_text(
                        "candidateType",
                        fields.candidate_type,
                        MAX_STATS_TEXT_BYTES,
                    )?,
                    ice_state: optional_text("iceState", fields.ice_state, MAX_STATS_TEXT_BYTES)?,
                },
            },
            SUBSCRIBE => Self::Subscribe { users: user_ids(fields.user_ids)? },
            "presence:unsubscribe" => Self::Unsubscribe { users: user_ids(fields.user_ids)? },
            "ice:servers" => Self::IceServers,
            "auth:refresh" => Self::AuthRefresh {
                token: optional_text("token", fields.token, MAX_TOKEN_BYTES)?
                    .ok_or_else(|| Malformed::field("token", "a string"))?,
            },
            unknown => {
                let start: String = unknown.chars().take(MAX_NAME_CHARS).collect();
                return Err(Malformed::invalid(format!("unknown event {start:?}")));
            }
        })
    }

    /// `"userId"` or `{userId}`.
    fn user_connected(payload: Option<&str>) -> Result<Self, Malformed> {
        let is_object = payload.is_some_and(|json| json.starts_with('{'));
        let id =
            if is_object { Fields::read(payload)?.user_id.map(RawValue::get) } else { payload };
        Ok(Self::UserConnected { user: user_of("userId", id)? })
    }
}

impl<'a> Fields<'a> {
    fn read(payload: Option<&'a str>) -> Result<Self, Malformed> {
        let Some(json) = payload else {
            return Ok(Self::default());
        };
        if !json.starts_with('{') {
            return Err(Malformed::invalid("payload: expected an object".to_owned()));
        }
        serde_json::from_str(json).map_err(Malformed::unreadable)
    }

    fn call_ref(&self) -> Result<CallRef, Malformed> {
        let to = Some(user("toUserId", self.to_user_id)?);
        Ok(CallRef { to, call_id: optional_id("callId", self.call_id)? })
    }

    /// The call that an event ends or refuses: `callId` alone names it too.
    fn ended_ref(&self) -> Result<CallRef, Malformed> {
        let named = self.to_user_id.filter(|raw| !is_null(raw));
        let call_id = optional_id("callId", self.call_id)?;
        let to = match named {
            None if call_id.is_some() => None,
            None => {
                let expected = format!("{}, or the call's id in callId", UserId::EXPECTED_JSON);
                return Err(Malformed::field("toUserId", expected));
            }
            Some(_) => Some(user("toUserId", named)?),
        };
        Ok(CallRef { to, call_id })
    }
}

impl Malformed {
    pub fn invalid(message: String) -> Self {
        Self { error_type: ErrorType::InvalidPayload, message, to: None }
    }

    /// For invalid JSON. The parser's error may quote the input at any length, so it is cut.
    pub fn unreadable(error: serde_json::Error) -> Self {
        let start: String = error.to_string().chars().take(MAX_REASON_CHARS).collect();
        Self::invalid(format!("payload: {start}"))
    }

    fn field(name: &str, expected: impl fmt::Display) -> Self {
        Self::invalid(format!("{name}: expected {expected}"))
    }

    fn too_large(name: &str, limit_bytes: usize) -> Self {
        Self {
            error_type: ErrorType::PayloadTooLarge,
            message: format!("{name}: at most {limit_bytes} bytes are allowed"),
            to: None,
        }
    }
}

/// The text of a JSON string; without a copy, if nothing in it is escaped.
fn string_of(json: &str) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str(json).ok().map(|Text(text)| text)
}

fn parse_string(raw: &RawValue) -> Option<Cow<'_, str>> {
    string_of(raw.get())
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

fn id<T>(name: &str, raw: Option<&RawValue>) -> Result<T, Malformed>
where
    T: FromStr<Err: fmt::Display>,
{
    id_of(name, raw.map(RawValue::get))
}

fn id_of<T>(name: &str, json: Option<&str>) -> Result<T, Malformed>
where
    T: FromStr<Err: fmt::Display>,
{
    let Some(text) = json.and_then(string_of) else {
        return Err(Malformed::field(name, "a string"));
    };
    text.parse().map_err(|error| Malformed::invalid(format!("{name}: {error}")))
}

fn user(name: &str, raw: Option<&RawValue>) -> Result<UserId, Malformed> {
    user_of(name, raw.map(RawValue::get))
}

fn user_of(name: &str, json: Option<&str>) -> Result<UserId, Malformed> {
    let Some(json) = json else { return Err(Malformed::field(name, UserId::EXPECTED_JSON)) };
    UserId::from_json(json).map_err(|error| Malformed::invalid(format!("{name}: {error}")))
}

fn optional_id<T>(name: &str, raw: Option<&RawValue>) -> Result<Option<T>, Malformed>
where
    T: FromStr<Err: fmt::Display>,
{
    match raw {
        None => Ok(None),
        Some(raw) if is_null(raw) => Ok(None),
        some => id(name, some).map(Some),
    }
}

/// A short text. Absent and `null` are the same: none was given.
fn optional_text<T>(
    name: &str,
    raw: Option<&RawValue>,
    limit_bytes: usize,
) -> Result<Option<T>, Malformed>
where
    T: From<String>,
{
    let Some(raw) = raw.filter(|raw| !is_null(raw)) else {
        return Ok(None);
    };
    let text = parse_string(raw).ok_or_else(|| Malformed::field(name, "a string"))?;
    if text.len() > limit_bytes {
        return Err(Malformed::too_large(name, limit_bytes));
    }
    Ok(Some(text.into_owned().into()))
}

fn client_call_id(raw: Option<&RawValue>) -> Result<Option<Arc<str>>, Malformed> {
    const NAME: &str = "clientCallId";
    if raw.is_some_and(|raw| raw.get() == "\"\"") {
        return Err(Malformed::field(NAME, "a string that is not empty"));
    }
    optional_text(NAME, raw, MAX_CLIENT_CALL_ID_BYTES)
}

fn optional_number(name: &str, raw: Option<&RawValue>) -> Result<Option<f64>, Malformed> {
    let Some(raw) = raw.filter(|raw| !is_null(raw)) else {
        return Ok(None);
    };
    serde_json::from_str(raw.get())
        .ok()
        .filter(|number: &f64| *number >= 0.0 && number.is_finite())
        .map(Some)
        .ok_or_else(|| Malformed::field(name, "a number that is not negative"))
}

fn call_type(raw: Option<&RawValue>) -> Result<CallType, Malformed> {
    let text = raw.and_then(parse_string);
    CallType::ALL
        .into_iter()
        .find(|call_type| text.as_deref() == Some(call_type.as_str()))
        .ok_or_else(|| Malformed::field("callType", "\"audio\" or \"video\""))
}

fn caller_info(raw: Option<&RawValue>, sizes: &Sizes) -> Result<Option<Payload>, Malformed> {
    let Some(raw) = raw.filter(|raw| !is_null(raw)) else {
        return Ok(None);
    };
    if raw.get().len() > sizes.caller_info_bytes {
        let Malformed { message, .. } = Malformed::too_large("callerInfo", sizes.caller_info_bytes);
        // It may contain a picture.
        let message = format!("{message}; send the URL of a picture, not the picture itself");
        return Err(Malformed { error_type: ErrorType::PayloadTooLarge, message, to: None });
    }
    if !raw.get().starts_with('{') {
        return Err(Malformed::field("callerInfo", "an object"));
    }
    passed_on("callerInfo", raw).map(Some)
}

/// A payload to be relayed, once its size is known to be allowed.
fn passed_on(name: &str, raw: &RawValue) -> Result<Payload, Malformed> {
    Payload::checked(raw).map_err(|expected| Malformed::field(name, expected))
}

/// An offer or an answer: `{type, sdp}`, both strings, and whatever else the client adds.
fn description(name: &str, raw: Option<&RawValue>, sizes: &Sizes) -> Result<Payload, Malformed> {
    #[derive(Deserialize)]
    struct Description<'a> {
        #[serde(rename = "type")]
        _kind: IgnoredString,
        #[serde(borrow)]
        sdp: Cow<'a, str>,
    }
    let raw = raw.ok_or_else(|| Malformed::field(name, "an object {type, sdp}"))?;
    if raw.get().len() > sizes.description_bytes() {
        return Err(Malformed::too_large(name, sizes.sdp_bytes));
    }
    let payload = passed_on(name, raw)?;
    match serde_json::from_str::<Description>(raw.get()) {
        Ok(description) if raw.get().starts_with('{') => {
            if description.sdp.len() > sizes.sdp_bytes {
                return Err(Malformed::too_large(&format!("{name}.sdp"), sizes.sdp_bytes));
            }
            Ok(payload)
        }
        Ok(_) | Err(_) => Err(Malformed::field(name, "an object {type, sdp} of two strings")),
    }
}

/// A candidate: `{candidate, …}`, or `null` or `""` for the end of candidates.
fn candidate(raw: Option<&RawValue>, sizes: &Sizes) -> Result<Payload, Malformed> {
    #[derive(Deserialize)]
    struct Candidate {
        #[serde(rename = "candidate")]
        _text: IgnoredString,
        #[serde(rename = "sdpMLineIndex", default)]
        _line: Option<u16>,
        #[serde(rename = "sdpMid", default)]
        _mid: Option<IgnoredString>,
        #[serde(rename = "usernameFragment", default)]
        _fragment: Option<IgnoredString>,
    }
    #[derive(Deserialize)]
    struct Wrapped {
        #[serde(rename = "candidate")]
        _inner: Candidate,
    }
    const EXPECTED: &str =
        "an object {candidate, sdpMLineIndex, sdpMid, usernameFragment?}, null or \"\"";
    let raw = raw.ok_or_else(|| Malformed::field("candidate", EXPECTED))?;
    if raw.get().len() > sizes.candidate_bytes {
        return Err(Malformed::too_large("candidate", sizes.candidate_bytes));
    }
    let is_candidate =
        || raw.get().starts_with('{') && serde_json::from_str::<Candidate>(raw.get()).is_ok();
    let payload = passed_on("candidate", raw)?;
    if matches!(raw.get(), "null" | "\"\"") || is_candidate() {
        return Ok(payload);
    }
    // The output of wrappers of RTCPeerConnection, one level too deep or too high.
    let cure = if raw.get().starts_with('"') {
        ": this is the text of one alone; send what `event.candidate.toJSON()` gives"
    } else if serde_json::from_str::<Wrapped>(raw.get()).is_ok() {
        ": this one is wrapped in another object; send what is in its `candidate`"
    } else {
        ""
    };
    Err(Malformed::field("candidate", format!("{EXPECTED}{cure}")))
}

fn user_ids(raw: Option<&RawValue>) -> Result<Vec<UserId>, Malformed> {
    const NAME: &str = "userIds";
    let ids: Option<Vec<&RawValue>> = raw.and_then(|raw| serde_json::from_str(raw.get()).ok());
    let ids = ids.ok_or_else(|| Malformed::field(NAME, "an array of user ids"))?;
    if ids.len() > MAX_WATCHED_USERS {
        let message = format!("{NAME}: at most {MAX_WATCHED_USERS} user ids are allowed");
        return Err(Malformed { error_type: ErrorType::PayloadTooLarge, message, to: None });
    }
    ids.into_iter()
        .map(|id| UserId::from_json(id.get()))
        .collect::<Result<_, _>>()
        .map_err(|error| Malformed::invalid(format!("{NAME}: {error} in each place")))
}

/// A JSON string whose text does not matter.
struct IgnoredString;

impl<'de> Deserialize<'de> for IgnoredString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = IgnoredString;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, _: &str) -> Result<IgnoredString, E> {
                Ok(IgnoredString)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}
