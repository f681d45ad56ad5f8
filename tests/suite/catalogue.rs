//! Compares the `AsyncAPI` document with the event types of the code.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Map, Value, json, value::RawValue};
use switchboard::{
    call::{EndReason, NotifiedReason},
    ids::{CallId, UserId},
    payload::Payload,
    protocol::{
        CallView, ClientEvent, ErrorBody, ErrorType, Malformed, Presence, SUBSCRIBE, ServerEvent,
        Sizes, USER_CONNECTED,
        catalogue::{CLIENT_MESSAGES, ClientMessage},
    },
    time::Timestamp,
};
use utoipa::PartialSchema;

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// A valid value for every field of any event.
fn good() -> Map<String, Value> {
    let description = json!({"type": "offer", "sdp": "v=0"});
    let fields = json!({
        "userId": "anna", "userIds": ["ben"], "toUserId": "ben", "callId": ID, "callType": "audio",
        "callerInfo": {}, "clientCallId": "1", "offer": description, "answer": description,
        "candidate": null, "reason": "", "duration": 0, "roundTripMs": 1.5, "lossPercent": 0,
        "jitterMs": 0, "candidateType": "host", "iceState": "new", "token": "a.b.c",
    });
    match fields {
        Value::Object(fields) => fields,
        other => unreachable!("{other}"),
    }
}

fn decode(name: &str, payload: &Map<String, Value>) -> Result<ClientEvent, Malformed> {
    let raw = RawValue::from_string(json!(payload).to_string()).unwrap();
    ClientEvent::decode(name, Some(raw.get()), &Sizes::default())
}

fn only(names: &[&str]) -> Map<String, Value> {
    good().into_iter().filter(|(name, _)| names.contains(&name.as_str())).collect()
}

fn with(mut payload: Map<String, Value>, name: &str, value: Value) -> Map<String, Value> {
    payload.insert(name.to_owned(), value);
    payload
}

fn needs(message: &ClientMessage) -> Vec<&'static str> {
    // Where one of several fields is required, the first one.
    message.needs.iter().chain(message.needs_one.first()).map(|field| field.name).collect()
}

fn takes(message: &ClientMessage) -> Vec<&'static str> {
    message.takes.iter().chain(message.needs_one.iter().skip(1)).map(|field| field.name).collect()
}

#[test]
fn each_of_the_fields_of_which_one_is_needed_is_enough() {
    for message in &CLIENT_MESSAGES {
        for field in message.needs_one {
            let event = decode(message.name, &only(&[field.name]));
            assert!(event.is_ok(), "{} with {}: {event:?}", message.name, field.name);
        }
    }
}

#[test]
fn each_event_needs_takes_and_ignores_what_the_catalogue_says() {
    for message in &CLIENT_MESSAGES {
        let (name, needs, takes) = (message.name, needs(message), takes(message));
        let least = only(&needs);
        decode(name, &least).unwrap_or_else(|error| panic!("{name} with {needs:?}: {error}"));
        for field in &needs {
            let mut missing = least.clone();
            missing.remove(*field);
            let error = decode(name, &missing).expect_err(&format!("{name} without {field}"));
            assert!(error.message.starts_with(field), "{name} without {field}: {error}");
        }
        for field in good().keys().map(String::as_str) {
            let wrong = decode(name, &with(least.clone(), field, json!([[true]])));
            if needs.contains(&field) || takes.contains(&field) {
                let error = wrong.expect_err(&format!("{name} reads {field}"));
                assert!(error.message.starts_with(field), "{name} with a wrong {field}: {error}");
            } else {
                assert!(wrong.is_ok(), "{name} does not read {field}: {wrong:?}");
            }
        }
        for field in takes {
            for value in [good()[field].clone(), Value::Null] {
                let given = decode(name, &with(least.clone(), field, value));
                assert!(given.is_ok(), "{name} takes {field}: {given:?}");
            }
        }
    }
}

/// The index of each kind of client event. A new variant does not compile until it is listed here;
/// then the document must contain it.
fn place_of(event: &ClientEvent) -> usize {
    match event {
        ClientEvent::UserConnected { .. } => 0,
        ClientEvent::Initiate { .. } => 1,
        ClientEvent::Signal { .. } => 2,
        ClientEvent::Reject { .. } => 3,
        ClientEvent::Busy { .. } => 4,
        ClientEvent::End { .. } => 5,
        ClientEvent::Sync { .. } => 6,
        ClientEvent::Stats { .. } => 7,
        ClientEvent::Subscribe { .. } => 8,
        ClientEvent::Unsubscribe { .. } => 9,
        ClientEvent::IceServers => 10,
        ClientEvent::AuthRefresh { .. } => 11,
    }
}

#[test]
fn the_catalogue_has_every_event_of_the_decoder() {
    let reached: BTreeSet<_> = CLIENT_MESSAGES
        .iter()
        .map(|message| place_of(&decode(message.name, &only(&needs(message))).unwrap()))
        .collect();
    assert_eq!(reached, (0..12).collect());

    let decoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/protocol/client.rs");
    let source = fs::read_to_string(decoder).unwrap();
    let arm = |line: &str| Some(line.trim().strip_prefix('"')?.split_once("\" =>")?.0.to_owned());
    let mut decoded: BTreeSet<String> = source.lines().filter_map(arm).collect();
    decoded.extend([SUBSCRIBE, USER_CONNECTED].map(str::to_owned));
    let listed = CLIENT_MESSAGES.iter().map(|message| message.name.to_owned()).collect();
    assert_eq!(decoded, listed);
}

/// The index of each event to clients, in the order of the enum.
fn place_to_client(event: &ServerEvent) -> usize {
    match event {
        ServerEvent::Incoming { .. } => 0,
        ServerEvent::Ringing { .. } => 1,
        ServerEvent::Offer { .. } => 2,
        ServerEvent::Answer { .. } => 3,
        ServerEvent::IceCandidate { .. } => 4,
        ServerEvent::Rejected { .. } => 5,
        ServerEvent::Busy { .. } => 6,
        ServerEvent::Ended { .. } => 7,
        ServerEvent::Resumed(_) => 8,
        ServerEvent::PeerReconnecting { .. } => 9,
        ServerEvent::PeerReconnected { .. } => 10,
        ServerEvent::Presence { .. } => 11,
        ServerEvent::Error(_) => 12,
        ServerEvent::Expiring { .. } => 13,
        ServerEvent::Draining { .. } => 14,
    }
}

/// One event of each kind, with all optional fields.
fn to_client() -> Vec<ServerEvent> {
    let call_id: CallId = ID.parse().unwrap();
    let from_user_id: UserId = "anna".parse().unwrap();
    let timestamp = Timestamp::from_millis(1);
    let json =
        |text: &str| Payload::checked(&RawValue::from_string(text.to_owned()).unwrap()).unwrap();
    let user = || from_user_id.clone();
    vec![
        ServerEvent::Incoming {
            call_id,
            from_user_id: user(),
            call_type: "audio",
            caller_info: Some(json("{}")),
            timestamp,
            expires_at: Some(timestamp),
        },
        ServerEvent::Ringing {
            call_id,
            to_user_id: user(),
            devices: 1,
            expires_at: Some(timestamp),
        },
        ServerEvent::Offer { call_id, from_user_id: user(), offer: json("{}"), timestamp },
        ServerEvent::Answer { call_id, from_user_id: user(), answer: json("{}"), timestamp },
        ServerEvent::IceCandidate { call_id, from_user_id: user(), candidate: json("null") },
        ServerEvent::Rejected {
            call_id,
            from_user_id: user(),
            reason: Some("no".into()),
            timestamp,
        },
        ServerEvent::Busy { call_id, from_user_id: user(), message: "", timestamp },
        ServerEvent::Ended {
            call_id,
            from_user_id: user(),
            duration: 1.0,
            timestamp,
            reason: "completed",
        },
        ServerEvent::Resumed(view()),
        ServerEvent::PeerReconnecting { call_id, from_user_id: user(), grace_ends_at: timestamp },
        ServerEvent::PeerReconnected { call_id, from_user_id: user() },
        ServerEvent::Presence { user_id: user(), status: Presence::Busy, timestamp },
        ServerEvent::Error(ErrorBody {
            error_type: ErrorType::Glare,
            message: String::new(),
            to_user_id: Some(user()),
            call_id: Some(call_id),
            event: String::new(),
            retry_after_ms: Some(1),
        }),
        ServerEvent::Expiring { expires_at: timestamp },
        ServerEvent::Draining { reconnect_within_ms: 1 },
    ]
}

/// A call that a different build wrote, as its callee sees it.
fn view() -> CallView {
    let record = include_str!("../golden/record_1.txt").trim_end().strip_prefix('1').unwrap();
    CallView::new(&serde_json::from_str(record).unwrap(), switchboard::call::Role::Callee)
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().into_iter().flat_map(Map::keys).cloned().collect()
}

#[test]
fn each_event_to_clients_is_described_by_its_name_and_with_all_its_fields() {
    let described = json!(ServerEvent::schema());
    let described = described["oneOf"].as_array().unwrap();
    let events = to_client();
    let places: Vec<_> = events.iter().map(place_to_client).collect();
    assert_eq!(places, (0..described.len()).collect::<Vec<_>>(), "one of each, in order");
    for (event, schema) in std::iter::zip(events, described) {
        assert_eq!(schema["title"], event.name());
        let written = keys(&json!(event));
        let schema = match &event {
            ServerEvent::Resumed(_) => json!(CallView::schema()),
            ServerEvent::Error(_) => json!(ErrorBody::schema()),
            _ => schema.clone(),
        };
        let known = keys(&schema["properties"]);
        let unknown: Vec<_> = written.difference(&known).collect();
        assert!(unknown.is_empty(), "{} says {unknown:?} too", event.name());
        for field in schema["required"].as_array().into_iter().flatten() {
            let has = written.contains(field.as_str().unwrap());
            assert!(has, "{} always has {field}", event.name());
        }
    }
}

#[test]
fn every_reason_that_clients_are_told_is_described() {
    let word = |told: NotifiedReason| match told {
        NotifiedReason::End(reason) => reason.as_str(),
        NotifiedReason::AnsweredElsewhere => "answered_elsewhere",
        NotifiedReason::DeclinedElsewhere => "declined_elsewhere",
        NotifiedReason::ResumedElsewhere => "resumed_elsewhere",
    };
    let elsewhere = [
        NotifiedReason::AnsweredElsewhere,
        NotifiedReason::DeclinedElsewhere,
        NotifiedReason::ResumedElsewhere,
    ];
    let all = EndReason::ALL.map(NotifiedReason::End).into_iter().chain(elsewhere);
    assert_eq!(json!(NotifiedReason::schema())["enum"], json!(all.map(word).collect::<Vec<_>>()));
}
