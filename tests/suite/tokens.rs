//! Keys and tokens for tests, valid and invalid. They are made here, not by the code under test.

use std::{path::Path, process::Command};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{hmac, rand::SystemRandom, signature as signs};
use serde_json::{Value, json};
use switchboard::time::Timestamp;

pub const SECRET: &str = "a secret that is 32 bytes or more";
pub const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
pub const NOW_S: u64 = 1_800_000_000;

/// A private key made by openssl, and its public half.
pub struct Pair {
    kind: &'static str,
    private: Vec<u8>,
    pub pem: String,
}

impl Pair {
    pub fn rsa() -> Self {
        Self::new("RSA", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
    }

    pub fn short_rsa() -> Self {
        Self::new("RSA", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"])
    }

    pub fn p256() -> Self {
        Self::new("EC", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    pub fn p384() -> Self {
        Self::new("EC", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"])
    }

    pub fn ed25519() -> Self {
        Self::new("OKP", &["-algorithm", "ED25519"])
    }

    fn new(kind: &'static str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("private.pem");
        let path = private.to_str().unwrap();
        openssl(&[&["genpkey", "-out", path][..], options].concat());
        let der = ["pkcs8", "-topk8", "-nocrypt", "-in", path, "-outform", "DER"];
        let pem = openssl(&["pkey", "-in", path, "-pubout"]);
        Self { kind, private: openssl(&der), pem: String::from_utf8(pem).unwrap() }
    }

    pub fn private_pem(&self) -> String {
        let lines = base64::engine::general_purpose::STANDARD.encode(&self.private);
        format!("-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----\n")
    }

    /// The public key as a JWK.
    pub fn jwk(&self, kid: &str) -> Value {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("public.pem");
        std::fs::write(&path, &self.pem).unwrap();
        let der = openssl(&["pkey", "-pubin", "-in", text(&path), "-pubout", "-outform", "DER"]);
        match self.kind {
            "EC" => {
                let (x, y) = der[der.len() - 64..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y), "kid": kid})
            }
            "OKP" => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": b64(&der[der.len() - 32..]), "kid": kid})
            }
            _ => {
                let said = openssl(&["rsa", "-pubin", "-in", text(&path), "-noout", "-modulus"]);
                let hex = String::from_utf8(said).unwrap();
                let hex = hex.trim().strip_prefix("Modulus=").unwrap();
                let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
                let n: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
                json!({"kty": "RSA", "n": b64(&n), "e": "AQAB", "kid": kid})
            }
        }
    }

    pub fn token(&self, alg: &str, kid: Option<&str>, claims: &Value) -> String {
        token(&json!({"alg": alg, "typ": "JWT", "kid": kid}), claims, |m| self.sign(alg, m))
    }

    fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        let rng = SystemRandom::new();
        let rsa = |padding: &'static dyn signs::RsaEncoding| {
            let key = signs::RsaKeyPair::from_pkcs8(&self.private).unwrap();
            let mut signature = vec![0; key.public().modulus_len()];
            key.sign(padding, &rng, message, &mut signature).unwrap();
            signature
        };
        match alg {
            "RS256" => rsa(&signs::RSA_PKCS1_SHA256),
            "RS512" => rsa(&signs::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signs::RSA_PSS_SHA256),
            "ES256" => {
                let kind = &signs::ECDSA_P256_SHA256_FIXED_SIGNING;
                let key = signs::EcdsaKeyPair::from_pkcs8(kind, &self.private, &rng).unwrap();
                key.sign(&rng, message).unwrap().as_ref().to_vec()
            }
            "EdDSA" => {
                let key = signs::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&self.private).unwrap();
                key.sign(message).as_ref().to_vec()
            }
            other => unreachable!("{other}"),
        }
    }
}

/// A token signed with a shared secret.
pub fn hs256(secret: &str, claims: &Value) -> String {
    token(&json!({"alg": "HS256"}), claims, |message| mac(secret.as_bytes(), message))
}

pub fn mac(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

pub fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| b64(value.to_string().as_bytes());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = b64(&sign(message.as_bytes()));
    format!("{message}.{signature}")
}

pub fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn openssl(args: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(args).output().expect("openssl is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
