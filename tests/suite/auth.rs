//! Tests of token verification: accepted and refused tokens, and the reported reasons.

use std::time::Duration;

use serde_json::{Value, json};
use switchboard::{
    auth::{
        CheckError, Checker, Identity, KeySource, LEEWAY, MAX_TOKEN_BYTES, Mint, MintError, Trust,
        Unauthenticated, mint,
    },
    secret::Secret,
    time::Timestamp,
};

use crate::tokens::{NOW, NOW_S, Pair, SECRET, b64, hs256, mac, token};

fn trust(keys: KeySource) -> Trust {
    Trust { keys, issuer: None, audience: None }
}

fn shared() -> Trust {
    trust(KeySource::Secret(Secret::from(SECRET.to_owned())))
}

fn with_public_key(pem: &str) -> Checker {
    Checker::new(trust(KeySource::PublicKey(pem.to_owned().into()))).unwrap()
}

fn good() -> Value {
    json!({"sub": "anna", "exp": NOW_S + 60})
}

/// The claims of a valid token with these changes; `null` removes a claim.
fn claims(changes: Value) -> Value {
    let mut claims = good();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

async fn check(checker: &Checker, token: &str) -> Result<Identity, Unauthenticated> {
    checker.check(token, NOW).await.map_err(|error| match error {
        CheckError::Unauthenticated(why) => why,
        CheckError::NoKeys => unreachable!("the keys are here"),
    })
}

async fn check_claims(trust: Trust, claims: &Value) -> Result<Identity, Unauthenticated> {
    check(&Checker::new(trust).unwrap(), &hs256(SECRET, claims)).await
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1_000)
}

#[tokio::test]
async fn a_good_token_says_who_and_until_when() {
    let identity = check_claims(shared(), &good()).await.unwrap();
    assert_eq!(identity.user.as_str(), "anna");
    assert_eq!(identity.expires_at, at(NOW_S + 60));
    assert!(!identity.scopes.is_admin() && !identity.scopes.sees_stats());
}

#[tokio::test]
async fn the_key_decides_about_the_algorithm() {
    let (rsa, p256, ed25519) = (Pair::rsa(), Pair::p256(), Pair::ed25519());
    for (pair, algorithms) in
        [(&rsa, &["RS256", "PS256"][..]), (&p256, &["ES256"]), (&ed25519, &["EdDSA"])]
    {
        let checker = with_public_key(&pair.pem);
        for algorithm in algorithms {
            let good = pair.token(algorithm, None, &good());
            assert_eq!(check(&checker, &good).await.unwrap().user.as_str(), "anna", "{algorithm}");
            let (signed, _) = good.rsplit_once('.').unwrap();
            let forged = format!("{signed}.{}", b64(&[7; 64]));
            assert_eq!(check(&checker, &forged).await, Err(Unauthenticated::Signature));
        }
        // The public key is public: it must not work as a shared secret for signing.
        for secret in [pair.pem.as_bytes(), pair.pem.trim().as_bytes()] {
            let header = json!({"alg": "HS256"});
            let forged = token(&header, &good(), |message| mac(secret, message));
            assert_eq!(check(&checker, &forged).await, Err(Unauthenticated::Algorithm));
        }
    }
    let rs512 = rsa.token("RS512", None, &good());
    assert_eq!(check(&with_public_key(&rsa.pem), &rs512).await, Err(Unauthenticated::Algorithm));
    let other = ed25519.token("EdDSA", None, &good());
    assert_eq!(check(&with_public_key(&p256.pem), &other).await, Err(Unauthenticated::Algorithm));
    let other = Pair::p256().token("ES256", None, &good());
    assert_eq!(check(&with_public_key(&p256.pem), &other).await, Err(Unauthenticated::Signature));
    let shared = Checker::new(shared()).unwrap();
    let other = rsa.token("RS256", None, &good());
    assert_eq!(check(&shared, &other).await, Err(Unauthenticated::Algorithm));
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let checker = Checker::new(shared()).unwrap();
    assert_eq!(check(&checker, "").await, Err(Unauthenticated::Missing));
    let sign = |header: Value| token(&header, &good(), |message| mac(SECRET.as_bytes(), message));
    let unsigned = token(&json!({"alg": "none"}), &good(), |_| Vec::new());
    let right = hs256(SECRET, &good());
    let text_claims =
        token(&json!({"alg": "HS256"}), &json!("anna"), |m| mac(SECRET.as_bytes(), m));
    for bad in [
        "nonsense",
        "a.b",
        "a.b.c",
        "..",
        "ünïcödé.€.🦀",
        &unsigned,
        unsigned.trim_end_matches('.'),
        &sign(json!({})),
        &sign(json!({"alg": "none"})),
        &sign(json!({"alg": "hs256"})),
        &sign(json!({"alg": "HS256", "crit": ["exp"]})),
        &text_claims,
        &format!("{right}.{right}"),
        &format!(" {right}"),
    ] {
        assert_eq!(check(&checker, bad).await, Err(Unauthenticated::NotToken), "{bad}");
    }
    assert_eq!(
        check(&checker, &sign(json!({"alg": "HS512"}))).await,
        Err(Unauthenticated::Algorithm)
    );
    let long = claims(json!({"more": "x".repeat(MAX_TOKEN_BYTES)}));
    assert_eq!(check_claims(shared(), &long).await, Err(Unauthenticated::TooLong));
    let other = hs256("another secret of 32 bytes or more", &good());
    assert_eq!(check(&checker, &other).await, Err(Unauthenticated::Signature));
    let (header, rest) = right.split_once('.').unwrap();
    let (_, signature) = rest.split_once('.').unwrap();
    let swapped = b64(claims(json!({"sub": "ben"})).to_string().as_bytes());
    let swapped = format!("{header}.{swapped}.{signature}");
    assert_eq!(check(&checker, &swapped).await, Err(Unauthenticated::Signature));
}

#[tokio::test]
async fn claims_must_be_there_and_right() {
    use Unauthenticated::{Audience, Expired, NoTime, Subject, TooEarly};
    let leeway = LEEWAY.as_secs();
    for (changes, why) in [
        (json!({"exp": null}), NoTime),
        (json!({"exp": 0}), Expired),
        (json!({"exp": NOW_S - leeway}), Expired),
        (json!({"nbf": NOW_S + leeway + 1}), TooEarly),
        (json!({"sub": null}), Subject),
        (json!({"sub": ""}), Subject),
        (json!({"sub": 7.5}), Subject),
        (json!({"sub": "an\nna"}), Subject),
        (json!({"sub": "x".repeat(129)}), Subject),
        (json!({"aud": "elsewhere"}), Audience),
        (json!({"aud": []}), Audience),
        (json!({"aud": 7}), Audience),
    ] {
        let found = check_claims(shared(), &claims(changes.clone())).await;
        assert_eq!(found, Err(why), "{changes}");
    }
    // The library refuses some of these as unreadable before the claims are checked.
    let found = check_claims(shared(), &claims(json!({"sub": ["anna"]}))).await;
    assert!(matches!(found, Err(Subject | Unauthenticated::NotToken)), "{found:?}");
    for time in [json!("tomorrow"), json!(-1), json!(1e300), json!([NOW_S]), json!(true)] {
        for name in ["exp", "nbf"] {
            let found = check_claims(shared(), &claims(json!({ name: time }))).await;
            let is_refused = matches!(found, Err(NoTime | Unauthenticated::NotToken));
            assert!(is_refused, "{name}: {time}: {found:?}");
        }
    }
    for changes in [
        json!({"nbf": NOW_S + leeway}),
        json!({"nbf": 1.5}),
        json!({"iss": "anybody", "iat": "nonsense", "jti": 7}),
        json!({"sub": "x".repeat(128)}),
    ] {
        let found = check_claims(shared(), &claims(changes.clone())).await;
        assert!(found.is_ok(), "{changes}: {found:?}");
    }
}

#[tokio::test]
async fn a_clock_that_is_a_little_off_does_no_harm() {
    let just_over = claims(json!({"exp": NOW_S - 4}));
    let identity = check_claims(shared(), &just_over).await.unwrap();
    assert_eq!(identity.expires_at, at(NOW_S - 4) + LEEWAY, "as long as the leeway lasts");
    let fraction = claims(json!({"exp": 1_800_000_000.5}));
    let identity = check_claims(shared(), &fraction).await.unwrap();
    assert_eq!(identity.expires_at, NOW + Duration::from_millis(500));
}

#[tokio::test]
async fn issuer_and_audience_are_as_configured() {
    use Unauthenticated::{Audience, Issuer};
    let trust = || Trust {
        issuer: Some("https://id.example.org".to_owned()),
        audience: Some("calls".to_owned()),
        ..shared()
    };
    let right = json!({"iss": "https://id.example.org", "aud": "calls"});
    assert!(check_claims(trust(), &claims(right.clone())).await.is_ok());
    for (name, value, expected) in [
        ("aud", json!(["mail", "calls"]), Ok(())),
        ("aud", json!(["mail"]), Err(Audience)),
        ("aud", json!("mail"), Err(Audience)),
        ("aud", json!({"calls": true}), Err(Audience)),
        ("aud", Value::Null, Err(Audience)),
        ("iss", json!("https://id.example.org/"), Err(Issuer)),
        ("iss", json!(["https://id.example.org"]), Err(Issuer)),
        ("iss", Value::Null, Err(Issuer)),
    ] {
        let mut changes = right.clone();
        changes[name] = value.clone();
        let found = check_claims(trust(), &claims(changes)).await.map(|_| ());
        assert_eq!(found, expected, "{name}: {value}");
    }
}

#[tokio::test]
async fn scopes_come_in_three_spellings() {
    for (changes, admin, stats) in [
        (json!({"scope": "openid stats"}), false, true),
        (json!({"scope": "admin"}), true, true),
        (json!({"scopes": ["stats"]}), false, true),
        (json!({"scp": ["calls", "admin"]}), true, true),
        (json!({"scp": "admin stats"}), true, true),
        (json!({"scope": "administrator statistics"}), false, false),
        (json!({"scope": "ADMIN"}), false, false),
        (json!({"scopes": "admin,stats"}), false, false),
        (json!({"scope": 7, "scopes": {"admin": true}, "scp": [["admin"]]}), false, false),
    ] {
        let scopes = check_claims(shared(), &claims(changes.clone())).await.unwrap().scopes;
        assert_eq!((scopes.is_admin(), scopes.sees_stats()), (admin, stats), "{changes}");
    }
}

#[test]
fn a_key_that_is_none_is_refused_at_start_and_not_said_back() {
    let refusal = |keys: KeySource| {
        let error = Checker::new(trust(keys)).unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(error.to_string().starts_with("jwt_"), "it names the setting: {said}");
        said
    };
    let short = refusal(KeySource::Secret(Secret::from("x".repeat(31))));
    assert!(short.contains("32 bytes") && !short.contains("xxx"), "{short}");
    let rsa = Pair::rsa();
    let private = refusal(KeySource::PublicKey(rsa.private_pem().into()));
    assert!(private.contains("private") && !private.contains("BEGIN"), "{private}");
    for pem in [Pair::short_rsa().pem, Pair::p384().pem, "-----BEGIN PUBLIC KEY-----\n".to_owned()]
    {
        let said = refusal(KeySource::PublicKey(pem.into()));
        assert!(said.contains("P-256"), "{said}");
    }
    let mistaken = refusal(KeySource::PublicKey("hunter2hunter2hunter2".to_owned().into()));
    assert!(!mistaken.contains("hunter2"), "{mistaken}");
}

#[tokio::test]
async fn a_public_key_may_be_in_a_file() {
    let pair = Pair::ed25519();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    std::fs::write(&path, &pair.pem).unwrap();
    let checker = with_public_key(path.to_str().unwrap());
    assert!(check(&checker, &pair.token("EdDSA", None, &good())).await.is_ok());
}

#[tokio::test]
async fn a_minted_token_is_accepted_where_it_was_minted_for() {
    let trust = Trust {
        issuer: Some("https://id.example.org".to_owned()),
        audience: Some("calls".to_owned()),
        ..shared()
    };
    let wish = Mint {
        user: "anna".parse().unwrap(),
        ttl: Duration::from_mins(1),
        scopes: vec!["stats".to_owned(), "admin".to_owned()],
    };
    let minted = mint(&trust, &wish, NOW).unwrap();
    let identity = check(&Checker::new(trust).unwrap(), &minted).await.unwrap();
    assert_eq!((identity.user.as_str(), identity.expires_at), ("anna", at(NOW_S + 60)));
    assert!(identity.scopes.is_admin());

    let public = self::trust(KeySource::PublicKey(String::new().into()));
    assert!(matches!(mint(&public, &wish, NOW), Err(MintError::NoSecret)));
}

#[test]
fn what_is_secret_hides_itself() {
    let said = format!("{:?} {:?}", shared(), Checker::new(shared()).unwrap());
    assert!(!said.contains(SECRET), "{said}");
}
