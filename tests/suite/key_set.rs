//! Tests of fetched key sets: when and how often they are fetched, and the behaviour while they
//! cannot be.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use switchboard::{
    auth::{CheckError, Checker, KeySource, RETRY_UNKNOWN_KEY, Trust, Unauthenticated},
    fetch::Endpoint,
    time::Timestamp,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use crate::tokens::{NOW, NOW_S, Pair, b64, mac, token};

/// Serves one reply over HTTP, which can be changed, and counts the requests.
struct Issuer {
    url: String,
    answer: Arc<Mutex<(u16, String)>>,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Issuer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys?v=1", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new((200, String::new())));
        let asked = Arc::new(AtomicUsize::new(0));
        let (answers, count) = (answer.clone(), asked.clone());
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                assert!(head.starts_with(b"GET /keys?v=1 HTTP/1.1\r\n"));
                count.fetch_add(1, Ordering::Relaxed);
                let (status, body) = answers.lock().unwrap().clone();
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status} X\r\nlocation: /\r\ncontent-length: {length}");
                let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
            }
        });
        Self { url, answer, asked, serving }
    }

    fn answers(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn has(&self, keys: &[Value]) {
        self.answers(200, &json!({ "keys": keys }).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    async fn checker(&self) -> Checker {
        let checker = unprepared(&self.url);
        checker.prepare(NOW).await;
        checker
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn unprepared(url: &str) -> Checker {
    let keys = KeySource::KeySet(url.parse().unwrap());
    Checker::new(Trust { keys, issuer: None, audience: None }).unwrap()
}

fn claims() -> Value {
    json!({"sub": "anna", "exp": NOW_S + 3_600})
}

async fn check(checker: &Checker, token: &str, now: Timestamp) -> Result<(), CheckError> {
    checker.check(token, now).await.map(|_| ())
}

const UNKNOWN: Result<(), CheckError> =
    Err(CheckError::Unauthenticated(Unauthenticated::UnknownKey));

#[tokio::test]
async fn a_key_set_may_have_keys_of_all_kinds() {
    let pairs = [Pair::rsa(), Pair::p256(), Pair::ed25519()];
    let issuer = Issuer::start().await;
    let of_no_use = [
        json!({"kty": "oct", "k": b64(b"a secret that everybody can read"), "kid": "oct"}),
        json!({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "odd"}),
        json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "short"}),
        json!({"kty": "AKP", "alg": "ML-DSA-65", "pub": "AA", "kid": "later"}),
        json!("nonsense"),
    ];
    let names = ["0", "1", "2"];
    let keys = pairs.iter().zip(names).map(|(pair, name)| pair.jwk(name));
    issuer.has(&of_no_use.into_iter().chain(keys).collect::<Vec<_>>());
    let checker = issuer.checker().await;
    for (pair, name, algorithm) in [
        (&pairs[0], "0", "RS256"),
        (&pairs[0], "0", "PS256"),
        (&pairs[1], "1", "ES256"),
        (&pairs[2], "2", "EdDSA"),
    ] {
        let good = pair.token(algorithm, Some(name), &claims());
        assert_eq!(check(&checker, &good, NOW).await, Ok(()), "{algorithm}");
    }
    let header = json!({"alg": "HS256", "kid": "oct"});
    let forged = token(&header, &claims(), |m| mac(b"a secret that everybody can read", m));
    assert_eq!(check(&checker, &forged, NOW).await, UNKNOWN);
    let crossed = pairs[1].token("ES256", Some("0"), &claims());
    let wrong = Err(Unauthenticated::Algorithm.into());
    assert_eq!(check(&checker, &crossed, NOW).await, wrong);
    let nameless = pairs[1].token("ES256", None, &claims());
    assert_eq!(check(&checker, &nameless, NOW).await, UNKNOWN, "which of the three?");
}

#[tokio::test]
async fn a_key_says_what_it_is_for() {
    let pair = Pair::rsa();
    let with = |name: &str, value: Value| {
        let mut jwk = pair.jwk(name);
        jwk[name] = value;
        jwk
    };
    let issuer = Issuer::start().await;
    issuer.has(&[
        with("alg", json!("PS256")),
        with("use", json!("enc")),
        with("key_ops", json!(["encrypt"])),
    ]);
    let checker = issuer.checker().await;
    let ps256 = pair.token("PS256", Some("alg"), &claims());
    assert_eq!(check(&checker, &ps256, NOW).await, Ok(()));
    let rs256 = pair.token("RS256", Some("alg"), &claims());
    assert_eq!(check(&checker, &rs256, NOW).await, Err(Unauthenticated::Algorithm.into()));
    for name in ["use", "key_ops"] {
        let other = pair.token("RS256", Some(name), &claims());
        assert_eq!(check(&checker, &other, NOW).await, UNKNOWN, "{name}");
    }
}

#[tokio::test]
async fn an_unknown_key_is_asked_for_once_in_a_while() {
    let (old, new) = (Pair::ed25519(), Pair::p256());
    let issuer = Issuer::start().await;
    issuer.has(&[old.jwk("old")]);
    let checker = issuer.checker().await;
    let by_old = old.token("EdDSA", Some("old"), &claims());
    let nameless = old.token("EdDSA", None, &claims());
    let by_new = new.token("ES256", Some("new"), &claims());
    assert_eq!(check(&checker, &by_old, NOW).await, Ok(()));
    assert_eq!(check(&checker, &nameless, NOW).await, Ok(()), "there is one key");

    issuer.has(&[new.jwk("new")]);
    let soon = NOW + RETRY_UNKNOWN_KEY - Duration::from_millis(1);
    assert_eq!(check(&checker, &by_new, soon).await, UNKNOWN);
    assert_eq!(issuer.asked(), 1, "it was asked too recently");

    let later = NOW + RETRY_UNKNOWN_KEY;
    let all = (0..8).map(|_| check(&checker, &by_new, later));
    for found in futures_util::future::join_all(all).await {
        assert_eq!(found, Ok(()));
    }
    assert_eq!(issuer.asked(), 2, "once for all who wait");
    assert_eq!(check(&checker, &by_old, later).await, UNKNOWN, "it was taken out");
}

#[tokio::test]
async fn known_keys_stay_while_the_set_cannot_be_had() {
    let pair = Pair::ed25519();
    let issuer = Issuer::start().await;
    issuer.has(&[pair.jwk("1")]);
    let checker = issuer.checker().await;
    let good = pair.token("EdDSA", Some("1"), &claims());
    let too_many: Vec<_> = (0..65).map(|name| pair.jwk(&name.to_string())).collect();
    for (status, body) in [
        (500, String::new()),
        (302, String::new()),
        (200, "nonsense".to_owned()),
        (200, json!({"keys": []}).to_string()),
        (200, json!({ "keys": too_many }).to_string()),
        (200, json!({"keys": [Pair::p256().jwk("2")], "more": "x".repeat(256 * 1024)}).to_string()),
    ] {
        issuer.answers(status, &body);
        checker.prepare(NOW).await;
        assert_eq!(check(&checker, &good, NOW).await, Ok(()), "after {status}");
    }
    assert_eq!(issuer.asked(), 7);
    issuer.serving.abort();
    checker.prepare(NOW).await;
    assert_eq!(check(&checker, &good, NOW).await, Ok(()), "after nothing at all");
}

#[tokio::test]
async fn without_any_keys_a_token_is_neither_good_nor_bad() {
    let pair = Pair::ed25519();
    let issuer = Issuer::start().await;
    issuer.answers(503, "");
    let checker = issuer.checker().await;
    let good = pair.token("EdDSA", Some("1"), &claims());
    assert_eq!(check(&checker, &good, NOW).await, Err(CheckError::NoKeys));
    issuer.has(&[pair.jwk("1")]);
    checker.prepare(NOW).await;
    assert_eq!(check(&checker, &good, NOW).await, Ok(()));
}

#[tokio::test]
async fn a_set_that_was_away_is_fetched_in_the_background() {
    let pair = Pair::ed25519();
    let issuer = Issuer::start().await;
    issuer.answers(503, "");
    let checker = issuer.checker().await;
    issuer.has(&[pair.jwk("1")]);
    let good = pair.token("EdDSA", Some("1"), &claims());
    let is_known = async {
        while check(&checker, &good, NOW).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = checker.keep_fresh(|| NOW) => {}
        () = is_known => {}
    }
    assert_eq!(issuer.asked(), 2);
}

#[test]
fn keys_come_over_https_or_from_this_machine() {
    for good in [
        "https://id.example.org/.well-known/jwks.json",
        "https://[2001:db8::1]:8443/keys?tenant=1",
        "http://127.0.0.1:8080/keys",
        "http://[::1]/keys",
        "http://localhost/keys",
    ] {
        let url = good.parse::<Endpoint>();
        assert_eq!(url.map(|url| url.uri().to_string()), Ok(good.to_owned()));
    }
    for bad in [
        "",
        "nonsense",
        "/keys",
        "http://id.example.org/keys",
        "http://10.0.0.1/keys",
        "http://localhost.example.org/keys",
        "https://anna:hunter2@id.example.org/keys",
        "ftp://127.0.0.1/keys",
        "file:///etc/keys",
    ] {
        let error = bad.parse::<Endpoint>().unwrap_err();
        assert!(error.contains("https") && !error.contains("hunter2"), "{bad}: {error}");
    }
}
