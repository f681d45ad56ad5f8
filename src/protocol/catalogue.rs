//! The client events as data: each with its fields, for `/asyncapi.json`. `tests/suite/catalogue.rs` compares it with
//! the decoder, field by field.

use utoipa::openapi::{
    ArrayBuilder, ObjectBuilder, RefOr,
    schema::{OneOfBuilder, Schema, SchemaType, Type},
};

use super::{
    MAX_CLIENT_CALL_ID_BYTES, MAX_REASON_BYTES, MAX_STATS_TEXT_BYTES, MAX_WATCHED_USERS, SUBSCRIBE,
    USER_CONNECTED,
    schema::{CallerInfo, IceCandidate, SessionDescription, named, or_null, text},
};
use crate::{
    auth::MAX_TOKEN_BYTES,
    call::CallType,
    ids::{CallId, UserId},
};

/// A client event.
pub struct ClientMessage {
    pub name: &'static str,
    pub summary: &'static str,
    /// Required fields.
    pub needs: &'static [Field],
    /// At least one of these fields is required.
    pub needs_one: &'static [Field],
    /// Optional fields. Null equals absent.
    pub takes: &'static [Field],
    /// The title of the [`super::Answer`] in its ack.
    pub answer: &'static str,
}

/// A field of an event.
pub struct Field {
    pub name: &'static str,
    schema: fn() -> RefOr<Schema>,
}

const TO: Field = Field { name: "toUserId", schema: named::<UserId> };
const USER_ID: Field = Field { name: "userId", schema: named::<UserId> };
const CALL_ID: Field = Field { name: "callId", schema: named::<CallId> };
const CALL_TYPE: Field = Field { name: "callType", schema: named::<CallType> };
const CALLER_INFO: Field = Field { name: "callerInfo", schema: named::<CallerInfo> };
const OFFER: Field = Field { name: "offer", schema: named::<SessionDescription> };
const ANSWER: Field = Field { name: "answer", schema: named::<SessionDescription> };
const CANDIDATE: Field = Field { name: "candidate", schema: named::<IceCandidate> };
const CLIENT_CALL_ID: Field = Field {
    name: "clientCallId",
    schema: || bytes(MAX_CLIENT_CALL_ID_BYTES).min_length(Some(1)).into(),
};
const REASON: Field = Field { name: "reason", schema: || bytes(MAX_REASON_BYTES).into() };
const DURATION: Field = Field { name: "duration", schema: number };
const ROUND_TRIP: Field = Field { name: "roundTripMs", schema: number };
const LOSS: Field = Field { name: "lossPercent", schema: number };
const JITTER: Field = Field { name: "jitterMs", schema: number };
const CANDIDATE_TYPE: Field =
    Field { name: "candidateType", schema: || bytes(MAX_STATS_TEXT_BYTES).into() };
const ICE_STATE: Field = Field { name: "iceState", schema: || bytes(MAX_STATS_TEXT_BYTES).into() };
const USER_IDS: Field = Field { name: "userIds", schema: users };
const TOKEN: Field = Field { name: "token", schema: || bytes(MAX_TOKEN_BYTES).into() };

/// All client events.
pub const CLIENT_MESSAGES: [ClientMessage; 14] = [
    ClientMessage {
        name: USER_CONNECTED,
        summary: "Says who this socket speaks for, if the handshake did not.",
        needs: &[USER_ID],
        needs_one: &[],
        takes: &[],
        answer: "Joined",
    },
    ClientMessage {
        name: "call:initiate",
        summary: "Calls a user: all their devices ring.",
        needs: &[TO, CALL_TYPE],
        needs_one: &[],
        takes: &[CALLER_INFO, CLIENT_CALL_ID],
        answer: "Call",
    },
    ClientMessage {
        name: "call:offer",
        summary: "Passes an offer on.",
        needs: &[TO, OFFER],
        needs_one: &[],
        takes: &[CALL_ID],
        answer: "Relayed",
    },
    ClientMessage {
        name: "call:answer",
        summary: "Takes the call, and passes an answer on. The first device wins.",
        needs: &[TO, ANSWER],
        needs_one: &[],
        takes: &[CALL_ID],
        answer: "Relayed",
    },
    ClientMessage {
        name: "call:ice-candidate",
        summary: "Passes a candidate on.",
        needs: &[TO, CANDIDATE],
        needs_one: &[],
        takes: &[CALL_ID],
        answer: "Relayed",
    },
    ClientMessage {
        name: "call:reject",
        summary: "Declines the call for all devices. `toUserId` or `callId` names it.",
        needs: &[],
        needs_one: &[TO, CALL_ID],
        takes: &[REASON],
        answer: "Call",
    },
    ClientMessage {
        name: "call:busy",
        summary: "Says that this device is in another call. `toUserId` or `callId` names this one.",
        needs: &[],
        needs_one: &[TO, CALL_ID],
        takes: &[],
        answer: "Call",
    },
    ClientMessage {
        name: "call:end",
        summary: "Hangs up, gives up or declines. `toUserId` or `callId` names the call.",
        needs: &[],
        needs_one: &[TO, CALL_ID],
        takes: &[DURATION],
        answer: "Call",
    },
    ClientMessage {
        name: "call:sync",
        summary: "Asks for the live call, or for this one up to a minute after its end.",
        needs: &[],
        needs_one: &[],
        takes: &[CALL_ID],
        answer: "Sync",
    },
    ClientMessage {
        name: "call:stats",
        summary: "Reports how good the media connection is.",
        needs: &[CALL_ID],
        needs_one: &[],
        takes: &[ROUND_TRIP, LOSS, JITTER, CANDIDATE_TYPE, ICE_STATE],
        answer: "Relayed",
    },
    ClientMessage {
        name: SUBSCRIBE,
        summary: "Asks who can be called, and to be told of changes.",
        needs: &[USER_IDS],
        needs_one: &[],
        takes: &[],
        answer: "Presence",
    },
    ClientMessage {
        name: "presence:unsubscribe",
        summary: "Asks not to be told of changes any more.",
        needs: &[USER_IDS],
        needs_one: &[],
        takes: &[],
        answer: "Done",
    },
    ClientMessage {
        name: "ice:servers",
        summary: "Asks for the servers that `RTCPeerConnection` needs.",
        needs: &[],
        needs_one: &[],
        takes: &[],
        answer: "IceServers",
    },
    ClientMessage {
        name: "auth:refresh",
        summary: "Gives a new token of the same user. Refused in open mode, which has none.",
        needs: &[TOKEN],
        needs_one: &[],
        takes: &[],
        answer: "Refreshed",
    },
];

impl ClientMessage {
    /// The schema of the payload.
    pub fn payload(&self) -> RefOr<Schema> {
        let object = ObjectBuilder::new().schema_type(Type::Object);
        let object = self.needs.iter().fold(object, |object, field| {
            object.property(field.name, (field.schema)()).required(field.name)
        });
        let object =
            self.needs_one.iter().chain(self.takes).fold(object, |object, field| {
                object.property(field.name, nullable((field.schema)()))
            });
        if self.name == USER_CONNECTED {
            return OneOfBuilder::new().item((USER_ID.schema)()).item(object).into();
        }
        object.into()
    }
}

/// A text with a bound in bytes.
fn bytes(limit: usize) -> ObjectBuilder {
    text().description(Some("Counted in bytes of UTF-8.")).max_length(Some(limit))
}

fn number() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).into()
}

fn users() -> RefOr<Schema> {
    ArrayBuilder::new().items(named::<UserId>()).max_items(Some(MAX_WATCHED_USERS)).into()
}

fn nullable(schema: RefOr<Schema>) -> RefOr<Schema> {
    match schema {
        RefOr::T(Schema::Object(mut object)) => {
            if let SchemaType::Type(of) = object.schema_type {
                object.schema_type = or_null(of);
            }
            object.into()
        }
        other => {
            let null = ObjectBuilder::new().schema_type(Type::Null);
            OneOfBuilder::new().item(other).item(null).into()
        }
    }
}
