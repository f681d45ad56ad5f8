//! `/asyncapi.json`: the description of the socket, made from the types of `crate::protocol` once,
//! when the service starts.

use serde_json::{Map, Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, schema::Schema},
};

use crate::{
    ids::{DeviceId, UserId},
    protocol::{
        Answer, ErrorBody, ServerEvent, Sizes,
        catalogue::{CLIENT_MESSAGES, ClientMessage},
        schema::{CallerInfo, IceCandidate, SessionDescription},
    },
};

const DESCRIPTION: &str = "Signaling for calls between two users, over Socket.IO 4. Every event of a client is \
    answered in its ack; without an ack, an error comes as `call:error`. Fields that are not known are ignored, \
    on both sides. History and presence are asked for over HTTP: see `/openapi.json`.";

const SOCKET: &str = "Namespace `/`. Who connects gives `auth: {token, userId, deviceId}`: see `Auth`. The token may also come as \
    `Authorization: Bearer` of the handshake.";

/// The whole document; relayed payloads may be as long as `sizes` permits.
pub fn asyncapi(sizes: &Sizes) -> Value {
    let mut messages = Map::new();
    let mut operations = Map::new();
    for message in &CLIENT_MESSAGES {
        let key = key_of("client", message.name);
        let mut operation = operation("receive", &key, message.summary);
        operation["reply"] = json!({
            "channel": {"$ref": "#/channels/acks"},
            "messages": [{"$ref": format!("#/channels/acks/messages/ack.{}", message.answer)}],
        });
        messages.insert(key.clone(), client_message(message));
        operations.insert(key, operation);
    }
    for event in variants::<ServerEvent>() {
        let name = title_of(&event);
        let key = key_of("server", &name);
        let summary = event["description"].as_str().unwrap_or_default().to_owned();
        operations.insert(key.clone(), operation("send", &key, &summary));
        messages.insert(key, json!({"name": name, "summary": summary, "payload": event}));
    }
    let acks: Map<_, _> = variants::<Answer>().into_iter().map(ack).collect();
    let channel = |messages: &Map<String, Value>| -> Value {
        let reference = |key: &String| json!({"$ref": format!("#/components/messages/{key}")});
        messages.keys().map(|key| (key.clone(), reference(key))).collect::<Map<_, _>>().into()
    };
    let channels = json!({
        "socket": {"address": "/", "description": SOCKET, "messages": channel(&messages)},
        "acks": {"address": null, "description": "The acks of the client's events.", "messages": channel(&acks)},
    });
    messages.extend(acks);
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "switchboard",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas(sizes)},
    })
}

/// Names of messages have colons, which keys must not have.
fn key_of(side: &str, name: &str) -> String {
    format!("{side}.{}", name.replace(':', "."))
}

fn operation(action: &str, message: &str, summary: &str) -> Value {
    json!({
        "action": action,
        "summary": summary,
        "channel": {"$ref": "#/channels/socket"},
        "messages": [{"$ref": format!("#/channels/socket/messages/{message}")}],
    })
}

fn client_message(message: &ClientMessage) -> Value {
    json!({"name": message.name, "summary": message.summary, "payload": message.payload()})
}

/// The schema of an ack: this answer, or an error.
fn ack(mut answer: Value) -> (String, Value) {
    let title = title_of(&answer);
    let required = answer["required"].as_array().cloned().unwrap_or_default();
    answer["required"] = [json!("ok")].into_iter().chain(required).collect();
    answer["properties"]["ok"] = json!({"const": true});
    let payload = json!({"oneOf": [answer, {"$ref": "#/components/schemas/Refusal"}]});
    (format!("ack.{title}"), json!({"name": title, "payload": payload}))
}

/// The schemas of the variants of an untagged enum, each with its title.
fn variants<T: PartialSchema>() -> Vec<Value> {
    match json!(T::schema())["oneOf"].take() {
        Value::Array(variants) => variants,
        other => unreachable!("an enum has variants, not {other}"),
    }
}

fn title_of(variant: &Value) -> String {
    variant["title"].as_str().expect("each variant has a title").to_owned()
}

/// All schemas that others refer to.
fn schemas(sizes: &Sizes) -> Map<String, Value> {
    fn with<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
        all.push((T::name().into_owned(), T::schema()));
        T::schemas(all);
    }
    let mut all = Vec::new();
    ServerEvent::schemas(&mut all);
    Answer::schemas(&mut all);
    with::<ErrorBody>(&mut all);
    with::<UserId>(&mut all);
    with::<DeviceId>(&mut all);
    all.push((CallerInfo::name().into_owned(), CallerInfo::sized(sizes)));
    all.push((SessionDescription::name().into_owned(), SessionDescription::sized(sizes)));
    all.push((IceCandidate::name().into_owned(), IceCandidate::sized(sizes)));
    let mut schemas: Map<_, _> =
        all.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    schemas.insert("Refusal".to_owned(), refusal());
    schemas.insert("Auth".to_owned(), auth());
    schemas
}

fn refusal() -> Value {
    json!({
        "type": "object",
        "description": "The ack of an event that was not carried out.",
        "required": ["ok", "error"],
        "properties": {"ok": {"const": false}, "error": {"$ref": "#/components/schemas/ErrorBody"}},
    })
}

fn auth() -> Value {
    json!({
        "type": "object",
        "description": "What a client says when it connects.",
        "properties": {
            "token": {
                "type": "string",
                "description": "Who you are, where tokens are checked (`jwt` mode): a JWT whose `sub` is the user's \
                    id. `userId` is not needed then.",
            },
            "userId": {"$ref": "#/components/schemas/UserId"},
            "deviceId": {"$ref": "#/components/schemas/DeviceId"},
        },
    })
}
