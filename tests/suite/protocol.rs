//! Tests of decoding: valid input gives an event, invalid input an error that names the field.

use serde_json::{Value, json, value::RawValue};
use switchboard::{
    call::{CallType, Signal},
    protocol::{ClientEvent, ErrorType, Sizes},
};

fn decode(name: &str, payload: &Value) -> Result<ClientEvent, (ErrorType, String)> {
    let raw = RawValue::from_string(payload.to_string()).unwrap();
    ClientEvent::decode(name, Some(raw.get()), &Sizes::default())
        .map_err(|bad| (bad.error_type, bad.message))
}

/// A valid payload for each event.
fn good() -> Vec<(&'static str, Value)> {
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    vec![
        ("user-connected", json!("anna")),
        ("user-connected", json!({"userId": "anna"})),
        ("call:initiate", json!({"toUserId": "ben", "callType": "video"})),
        (
            "call:initiate",
            json!({"toUserId": "ben", "callType": "audio",
            "callerInfo": {"name": "Anna", "x": 1}, "clientCallId": "1"}),
        ),
        ("call:offer", json!({"toUserId": "ben", "offer": {"type": "offer", "sdp": "v=0"}})),
        ("call:answer", json!({"toUserId": "ben", "answer": {"type": "answer", "sdp": ""}})),
        (
            "call:ice-candidate",
            json!({"toUserId": "ben", "callId": id,
            "candidate": {"candidate": "c", "sdpMLineIndex": 0, "sdpMid": "0", "x": {}}}),
        ),
        ("call:ice-candidate", json!({"toUserId": "ben", "candidate": null})),
        ("call:ice-candidate", json!({"toUserId": "ben", "candidate": ""})),
        (
            "call:ice-candidate",
            json!({"toUserId": "ben",
            "candidate": {"candidate": "", "sdpMLineIndex": null, "sdpMid": null}}),
        ),
        ("call:reject", json!({"toUserId": "ben", "reason": "not now"})),
        ("call:busy", json!({"toUserId": "ben"})),
        ("call:end", json!({"toUserId": "ben", "duration": 12.5})),
        ("call:sync", json!({})),
        ("call:sync", json!({"callId": id})),
        ("call:stats", json!({"callId": id, "roundTripMs": 20, "iceState": "connected"})),
        ("presence:subscribe", json!({"userIds": ["ben", "carl"]})),
        ("presence:unsubscribe", json!({"userIds": []})),
        ("ice:servers", json!({})),
        ("auth:refresh", json!({"token": "t"})),
    ]
}

#[test]
fn every_event_is_understood() {
    for (name, payload) in good() {
        decode(name, &payload).unwrap_or_else(|error| panic!("{name} {payload}: {error:?}"));
    }
}

#[test]
fn fields_that_no_event_has_are_ignored() {
    for (name, mut payload) in good() {
        if let Some(object) = payload.as_object_mut() {
            object.insert("somethingNew".to_owned(), json!([1, {"a": null}]));
            assert!(decode(name, &payload).is_ok(), "{name} {payload}");
        }
    }
}

#[test]
fn each_field_of_a_wrong_type_is_named() {
    let optional = ["callId", "clientCallId", "callerInfo", "reason", "duration", "token"];
    for (name, payload) in good() {
        let Some(object) = payload.as_object() else { continue };
        for field in object.keys().filter(|field| *field != "token") {
            for wrong in [json!(true), json!([[]]), json!(-1), json!({"a": 1}), json!("\u{7}")] {
                let fits = matches!(
                    (field.as_str(), &wrong),
                    ("callerInfo", Value::Object(_))
                        | ("reason" | "clientCallId" | "iceState", Value::String(_))
                        | ("userId" | "toUserId", Value::Number(_))
                );
                if fits {
                    continue;
                }
                let mut bad = object.clone();
                bad.insert(field.clone(), wrong.clone());
                let (error_type, message) = decode(name, &Value::Object(bad)).unwrap_err();
                assert_eq!(error_type, ErrorType::InvalidPayload);
                assert!(message.starts_with(field.as_str()), "{name} {field}={wrong}: {message}");
            }
            let mut missing = object.clone();
            missing.remove(field);
            let is_optional = optional.contains(&field.as_str()) && name != "call:stats"
                || ["roundTripMs", "iceState"].contains(&field.as_str());
            let result = decode(name, &Value::Object(missing));
            assert_eq!(result.is_ok(), is_optional, "{name} without {field}: {result:?}");
        }
    }
}

#[test]
fn a_payload_that_is_no_object_is_refused() {
    for (name, _) in good() {
        for payload in [json!(null), json!([]), json!(1.5), json!(true)] {
            let (error_type, _) = decode(name, &payload).unwrap_err();
            assert_eq!(error_type, ErrorType::InvalidPayload, "{name} {payload}");
        }
    }
    let missing = ClientEvent::decode("call:end", None, &Sizes::default()).unwrap_err();
    assert!(missing.message.starts_with("toUserId: expected a string"), "{}", missing.message);
    assert!(missing.message.contains("callId"), "{}", missing.message);
}

#[test]
fn a_whole_number_is_the_user_of_its_decimal_text() {
    let named = |id: &str| {
        let text = format!(r#"{{"toUserId":{id},"callType":"audio"}}"#);
        match ClientEvent::decode("call:initiate", Some(&text), &Sizes::default()) {
            Ok(ClientEvent::Initiate { to, .. }) => Ok(to.as_str().to_owned()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.message),
        }
    };
    for (id, text) in
        [("42", "42"), ("-7", "-7"), ("0", "0"), ("9007199254740991", "9007199254740991")]
    {
        assert_eq!(named(id), Ok(text.to_owned()));
        let connected = ClientEvent::decode("user-connected", Some(id), &Sizes::default()).unwrap();
        assert_eq!(connected, ClientEvent::UserConnected { user: text.parse().unwrap() });
    }
    // Some clients cannot distinguish these numbers from their neighbours.
    for id in ["9007199254740992", "-9007199254740992", "18446744073709551616", "1.5", "1e400"] {
        let error = named(id).unwrap_err();
        assert!(error.starts_with("toUserId: expected"), "{id}: {error}");
    }
    assert!(named("9007199254740993").unwrap_err().contains("string"));
    let watched = json!({"userIds": [1, "ben"]});
    let ClientEvent::Subscribe { users } = decode("presence:subscribe", &watched).unwrap() else {
        panic!("it is a subscription");
    };
    assert_eq!(users, ["1".parse().unwrap(), "ben".parse().unwrap()]);
}

#[test]
fn what_ends_or_refuses_a_call_may_name_it_by_its_id_alone() {
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    for name in ["call:end", "call:reject", "call:busy"] {
        for payload in [json!({"callId": id}), json!({"callId": id, "toUserId": null})] {
            decode(name, &payload).unwrap_or_else(|error| panic!("{name} {payload}: {error:?}"));
        }
        assert!(decode(name, &json!({"callId": null})).is_err());
    }
}

#[test]
fn a_candidate_in_the_shape_of_a_wrapper_is_refused_with_the_right_one() {
    let refused = |candidate: Value| {
        let payload = json!({"toUserId": "ben", "candidate": candidate});
        decode("call:ice-candidate", &payload).unwrap_err().1
    };
    let inner = json!({"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host", "sdpMid": "0"});
    let bare = refused(inner["candidate"].clone());
    assert!(bare.contains("sdpMLineIndex") && bare.contains("toJSON"), "{bare}");
    let wrapped = refused(json!({"candidate": inner}));
    assert!(wrapped.contains("sdpMLineIndex") && wrapped.contains("wrapped"), "{wrapped}");
}

#[test]
fn a_long_caller_info_is_told_what_to_send_instead() {
    let picture = "x".repeat(Sizes::default().caller_info_bytes);
    let payload = json!({"toUserId": "ben", "callType": "audio", "callerInfo": {"pic": picture}});
    let (error_type, message) = decode("call:initiate", &payload).unwrap_err();
    assert_eq!(error_type, ErrorType::PayloadTooLarge);
    assert!(message.contains("16384") && message.contains("URL"), "{message}");
}

#[test]
fn unknown_events_are_named() {
    let (error_type, message) = decode("call:dance", &json!({})).unwrap_err();
    assert_eq!(error_type, ErrorType::InvalidPayload);
    assert!(message.contains("call:dance"));
}

#[test]
fn limits_are_named_and_reached_exactly() {
    let sdp = |length: usize| json!({"toUserId": "ben", "offer": {"type": "offer", "sdp": "\n".repeat(length)}});
    let candidate = |length: usize| {
        let padding = "x".repeat(length - r#"{"candidate":""}"#.len());
        json!({"toUserId": "ben", "candidate": {"candidate": padding}})
    };
    let info = |length: usize| {
        let padding = "x".repeat(length - r#"{"name":""}"#.len());
        json!({"toUserId": "ben", "callType": "audio", "callerInfo": {"name": padding}})
    };
    let Sizes { sdp_bytes, candidate_bytes, caller_info_bytes } = Sizes::default();
    let cases = [
        ("call:offer", sdp_bytes, sdp(sdp_bytes), sdp(sdp_bytes + 1)),
        (
            "call:ice-candidate",
            candidate_bytes,
            candidate(candidate_bytes),
            candidate(candidate_bytes + 1),
        ),
        ("call:initiate", caller_info_bytes, info(caller_info_bytes), info(caller_info_bytes + 1)),
    ];
    for (name, limit, longest, too_long) in cases {
        decode(name, &longest).unwrap();
        let (error_type, message) = decode(name, &too_long).unwrap_err();
        assert_eq!(error_type, ErrorType::PayloadTooLarge);
        assert!(message.contains(&limit.to_string()), "{message}");
    }
}

#[test]
fn what_is_relayed_stays_as_it_was_written() {
    let text = r#"{"toUserId":"ben","offer":{"sdp":"v=0\r\n","type":"offer" , "x":1e2,"y":1.0}}"#;
    let raw = RawValue::from_string(text.to_owned()).unwrap();
    match ClientEvent::decode("call:offer", Some(raw.get()), &Sizes::default()).unwrap() {
        ClientEvent::Signal { signal: Signal::Offer, payload, .. } => {
            assert_eq!(payload.as_json(), r#"{"sdp":"v=0\r\n","type":"offer" , "x":1e2,"y":1.0}"#);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_error_says_to_whom_the_event_was_if_it_can() {
    let raw = RawValue::from_string(r#"{"toUserId":"ben","callType":"fax"}"#.to_owned()).unwrap();
    let bad = ClientEvent::decode("call:initiate", Some(raw.get()), &Sizes::default()).unwrap_err();
    assert_eq!(bad.to, Some("ben".parse().unwrap()));
    assert_eq!(CallType::ALL.map(CallType::as_str), ["audio", "video"]);
}
