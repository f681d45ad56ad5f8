//! Properties of external input, parsed by the production code: one function for each kind. `make fuzz` runs them under
//! cargo-fuzz; the tests below run each on its seeds (`fuzz/corpus/`) and some thousand mutations of them.

use std::{collections::HashSet, sync::LazyLock, time::Duration};

use axum::extract::FromRequestParts;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use serde_json::Value as Json;
use sha2::Sha256;
use socketioxide::handler::Value as Packet;

use crate::{
    auth::{Checker, Identity, KeySource, Trust},
    call::{Event, Rules, notifications},
    cluster::{
        envelope::Envelope,
        link::{Content, Receiver},
        redis::facts::{Facts, read_record, write_record},
    },
    gateway::{
        decode::decode,
        reply::{About, Ack},
    },
    history::Row,
    http::{
        access::Asker,
        admin, calls, ice,
        parameters::{Asked, FromQuery},
        presence,
        problem::Problem,
        stats,
    },
    ids::{NodeId, UserId},
    payload::{MAX_DEPTH, Payload},
    protocol::{ClientEvent, ErrorType, MAX_REASON_BYTES, MAX_WATCHED_USERS, Sizes},
    secret::Secret,
    time::Timestamp,
};

const SECRET: &str = "a secret that is 32 bytes or more";
const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
/// Bound on the reply that refuses an input of any length.
const MAX_REFUSAL_BYTES: usize = 2_048;
const RULES: Rules = Rules {
    ring_timeout: Duration::from_secs(30),
    reconnect_grace: Duration::from_secs(10),
    max_call_duration: Duration::from_hours(12),
};

/// A client event in its frame: `["name",payload]`.
pub fn client_event(text: &str) {
    let packet = Packet::Str(text.to_owned().into(), None);
    let (name, event) = decode(&packet, &Sizes::default());
    match event {
        Ok(event) => check_event(text, event),
        Err(rejected) => {
            let body = rejected.into_body(&name, About::default());
            assert!(matches!(
                body.error_type,
                ErrorType::InvalidPayload | ErrorType::PayloadTooLarge
            ));
            assert!(body.message.contains(':') || body.message.starts_with("unknown event"));
            let said = serde_json::to_string(&Ack::from(Err(body))).expect("a body is plain data");
            assert!(said.len() <= MAX_REFUSAL_BYTES, "{} bytes: {said}", said.len());
        }
    }
}

/// Everything is within its bounds, and relayed payloads are verbatim parts of the frame.
fn check_event(text: &str, event: ClientEvent) {
    let sizes = Sizes::default();
    match event {
        ClientEvent::Initiate { to, caller_info, .. } => {
            check_user(&to);
            if let Some(info) = caller_info {
                assert!(
                    info.len_bytes() <= sizes.caller_info_bytes && text.contains(info.as_json())
                );
                assert!(read_strictly(&info).is_object());
            }
        }
        ClientEvent::Signal { call, signal, payload } => {
            call.to.iter().for_each(check_user);
            let bound = match signal {
                crate::call::Signal::Candidate => sizes.candidate_bytes,
                _ => sizes.description_bytes(),
            };
            assert!(payload.len_bytes() <= bound && text.contains(payload.as_json()));
            let json = read_strictly(&payload);
            assert!(json.is_object() || json.is_null() || json == "");
        }
        ClientEvent::Reject { call, reason } => {
            call.to.iter().for_each(check_user);
            assert!(reason.is_none_or(|reason| reason.len() <= MAX_REASON_BYTES));
        }
        ClientEvent::End { call, duration_s } => {
            call.to.iter().for_each(check_user);
            assert!(duration_s.is_none_or(|seconds| seconds.is_finite() && seconds >= 0.0));
        }
        ClientEvent::UserConnected { user } => check_user(&user),
        ClientEvent::Busy { call } => call.to.iter().for_each(check_user),
        ClientEvent::Subscribe { users } | ClientEvent::Unsubscribe { users } => {
            assert!(users.len() <= MAX_WATCHED_USERS);
            users.iter().for_each(check_user);
        }
        ClientEvent::Stats { stats, .. } => {
            let numbers = [stats.round_trip_ms, stats.loss_percent, stats.jitter_ms];
            assert!(numbers.into_iter().flatten().all(|number| number >= 0.0));
        }
        ClientEvent::Sync { .. } | ClientEvent::IceServers | ClientEvent::AuthRefresh { .. } => {}
    }
}

/// A relayed payload, parsed by a reader that refuses half surrogate pairs, numbers beyond a float,
/// and deep nesting.
fn read_strictly(payload: &Payload) -> Json {
    fn depth(json: &Json) -> usize {
        let most = match json {
            Json::Array(all) => all.iter().map(depth).max(),
            Json::Object(all) => all.values().map(depth).max(),
            _ => return 0,
        };
        1 + most.unwrap_or(0)
    }
    let json = serde_json::from_str(payload.as_json()).expect("every reader can read it");
    assert!(depth(&json) <= MAX_DEPTH);
    json
}

fn check_user(user: &UserId) {
    let text = user.as_str();
    assert!((1..=128).contains(&text.len()) && !text.chars().any(char::is_control));
}

/// Messages of other nodes, or of anybody with write access to Redis: one per line.
pub fn bus_message(text: &str) {
    let mut receiver = Receiver::default();
    for line in text.lines() {
        let Ok(envelope) = Envelope::read(line) else { continue };
        let written = envelope.write();
        let again = Envelope::read(&written).expect("what was written can be read");
        assert_eq!(again, envelope);
        assert_eq!(again.write(), written);
        if let Content::Frame(frame) = envelope.content {
            let count = frame.messages.len();
            let delivery = receiver.receive(frame);
            assert!(delivery.ask_from.is_none() || count <= written.len());
        }
    }
}

/// A record of a call, and a user's hash: fields and values, one per line.
pub fn redis_record(text: &str) {
    let facts = Facts::read(text);
    assert!(facts.nodes.len() + facts.watchers.len() <= text.split('\n').count() / 2);

    let Ok(Some(call)) = read_record(text.trim_end()) else { return };
    let written = write_record(&call);
    assert_eq!(read_record(&written), Ok(Some(call.clone())));
    let row = Row::from(&call);
    assert_eq!((row.id, row.version), (call.id, call.version));
    assert_eq!(row.end_reason.is_none(), call.is_live());
    let node = NodeId::generate(NOW);
    for event in [Event::Due, Event::Terminated] {
        for now in [Timestamp::from_millis(0), NOW, call.deadline()] {
            if let Ok(next) = RULES.apply(&call, &event, node, now) {
                assert!(next.version > call.version);
                assert!(!next.is_live() || call.is_live(), "an ended call began again");
                notifications(&call, &next, &[], &[]);
                assert!(read_record(&write_record(&next)).is_ok());
            }
        }
    }
}

static CHECKER: LazyLock<Checker> = LazyLock::new(|| {
    let keys = KeySource::Secret(Secret::from(SECRET.to_owned()));
    let (issuer, audience) = (Some("issuer".to_owned()), Some("switchboard".to_owned()));
    Checker::new(Trust { keys, issuer, audience }).expect("the secret is long enough")
});

/// A raw token; or, with two lines, a header and claims signed with the right key.
pub fn token(text: &str) {
    if let Ok(identity) = check(text) {
        let (message, signature) = text.rsplit_once('.').expect("a token has three parts");
        let given = URL_SAFE_NO_PAD.decode(signature).expect("a signature is base64");
        assert_eq!(given, sign(message), "let in without a signature");
        check_identity(&identity);
    }
    if let Some((header, claims)) = text.split_once('\n') {
        let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let message = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(sign(&message));
        if let Ok(identity) = check(&format!("{message}.{signature}")) {
            check_identity(&identity);
            let header: Json = serde_json::from_str(header).expect("a header is JSON");
            assert_eq!(header["alg"], "HS256");
            let claims: Json = serde_json::from_str(claims).expect("claims are JSON");
            assert_eq!(claims["sub"], identity.user.as_str());
            assert_eq!(claims["iss"], "issuer");
            let audience = &claims["aud"];
            let is_named =
                audience.as_array().is_some_and(|all| all.iter().any(|one| one == "switchboard"));
            assert!(audience == "switchboard" || is_named);
        }
    }
}

fn check(token: &str) -> Result<Identity, crate::auth::CheckError> {
    CHECKER.check(token, NOW).now_or_never().expect("a secret is not fetched")
}

fn check_identity(identity: &Identity) {
    check_user(&identity.user);
    assert!(identity.expires_at > NOW, "let in with a token that has expired");
}

fn sign(message: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length will do");
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The query of a request, sent to every endpoint that takes one.
pub fn query(text: &str) {
    let is_query = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let uri = format!("/v1/calls?{text}");
    if !is_query || uri.parse::<http::Uri>().is_err() {
        return;
    }
    ask::<calls::Wanted>(
        &uri,
        &["userId", "limit", "cursor", "status", "type", "with", "since", "until"],
    );
    ask::<calls::Asker>(&uri, &["userId"]);
    ask::<stats::Wanted>(&uri, &["since", "until", "bucket"]);
    ask::<presence::Whose>(&uri, &["userIds"]);
    ask::<ice::Who>(&uri, &["userId"]);
    ask::<admin::Wanted>(&uri, &["userId", "limit", "cursor"]);
}

/// A query is accepted, or the response names the offending parameter.
fn ask<T: FromQuery>(uri: &str, known: &[&str]) {
    let request = Request::get(uri).extension(Asker::Anybody).body(()).expect("it is a URI");
    let mut parts = request.into_parts().0;
    let asked = Asked::<T>::from_request_parts(&mut parts, &());
    let Err(problem) = asked.now_or_never().expect("nothing is waited for") else { return };
    check_problem(uri, &problem, known);
}

fn check_problem(uri: &str, problem: &Problem, known: &[&str]) {
    let problem = serde_json::to_value(problem).expect("a problem is plain data");
    assert_eq!(problem["status"], 400, "{problem}");
    let query = uri.split_once('?').map_or("", |(_, query)| query);
    let pairs: Result<Vec<(String, String)>, _> = serde_urlencoded::from_str(query);
    let Ok(pairs) = pairs else { return };
    let field = problem["field"].as_str().expect("the field is named");
    let given: HashSet<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
    assert!(known.contains(&field) || given.contains(field), "{problem}");
    assert!(
        problem["detail"].as_str().is_some_and(|detail| detail.starts_with(field)),
        "{problem}"
    );
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use super::*;

    /// Mutations per target, and the bound on their time.
    const ROUNDS: usize = 20_000;
    const AT_MOST: Duration = Duration::from_secs(5);
    /// Fragments that tend to break parsers.
    const PIECES: [&str; 27] = [
        "null",
        "true",
        "-1",
        "0",
        "1e999",
        "18446744073709551615",
        "1.5",
        "\"",
        "\\u0000",
        "\\ud800",
        "\\ud83d\\ude00",
        "[[[[[[[[[[[[[[[[",
        "]]]]]]]]]]]]]]]]",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "&",
        "=",
        "%00",
        "%ff",
        "+",
        ".",
        "\n",
        "💥",
    ];

    /// Small, good enough, and the same on every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).expect("31 bits") % bound.max(1)
        }

        fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
            let mut bytes = seeds[self.below(seeds.len())].clone();
            for _ in 0..=self.below(4) {
                let (from, to) = (self.below(bytes.len() + 1), self.below(bytes.len() + 1));
                let (from, to) = (from.min(to), from.max(to));
                match self.below(6) {
                    0 if !bytes.is_empty() => {
                        let at = from.min(bytes.len() - 1);
                        bytes[at] ^= 1 << self.below(8);
                    }
                    1 => drop(bytes.drain(from..to.min(from + 8))),
                    2 => {
                        let piece = bytes[from..to].to_vec();
                        bytes.splice(from..from, piece);
                    }
                    3 => {
                        let piece = PIECES[self.below(PIECES.len())];
                        bytes.splice(from..to.min(from + 8), piece.bytes());
                    }
                    4 => bytes.truncate(to),
                    _ => {
                        let other = &seeds[self.below(seeds.len())];
                        let (a, b) = (self.below(other.len() + 1), self.below(other.len() + 1));
                        bytes.splice(from..to, other[a.min(b)..a.max(b)].iter().copied());
                    }
                }
                bytes.truncate(4_096);
            }
            bytes
        }
    }

    fn run(name: &str, target: fn(&str)) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut paths: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(!seeds.is_empty());
        let (mut random, began) = (Random(0x5eed), Instant::now());
        let changed = (0..ROUNDS).map(|_| random.change(&seeds));
        for bytes in seeds.iter().cloned().chain(changed) {
            if began.elapsed() > AT_MOST {
                break;
            }
            let Ok(text) = String::from_utf8(bytes) else { continue };
            let holds = std::panic::catch_unwind(|| target(&text)).is_ok();
            assert!(holds, "{name} fails on {text:?}");
        }
    }

    #[test]
    fn client_events() {
        run("client_event", client_event);
    }

    #[test]
    fn bus_messages() {
        run("bus_message", bus_message);
    }

    #[test]
    fn redis_records() {
        run("redis_record", redis_record);
    }

    #[test]
    fn tokens() {
        run("token", token);
    }

    #[test]
    fn queries() {
        run("query", query);
    }
}
