//! Keys and their permitted algorithms. A token's header selects among the algorithms of a key; it never
//! selects a key by algorithm.

use std::{fs, io, path::Path};

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, Validation, decode,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};

use super::{Claims, Unauthenticated};
use crate::secret::Secret;

/// Shorter secrets can be brute-forced from one token.
pub const MIN_SECRET_BYTES: usize = 32;
/// Shorter RSA keys can be broken.
const MIN_RSA_BYTES: usize = 2048 / 8;
const P256_POINT_BYTES: usize = 65;
const ED25519_BYTES: usize = 32;
const PEM_START: &str = "-----BEGIN ";

/// Whether this is, or holds, a private key in PEM.
pub fn is_private_key(text: &str) -> bool {
    text.contains("PRIVATE KEY-----")
}

/// The part of a setting for a public key that may be shown: the key, if it is one, or the path of a file that is there.
/// Anything else may be a secret.
pub fn shown_public_key(given: &Secret) -> String {
    let text = given.expose();
    let is_key = text.trim_start().starts_with(PEM_START) && Key::from_pem(text).is_ok();
    if is_key || Path::new(text).is_file() { text.to_owned() } else { given.to_string() }
}

/// A key that checks signatures.
#[derive(Debug)]
pub struct Key {
    key: DecodingKey,
    validation: Validation,
}

/// An unusable key. Displays as one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("jwt_secret: expected {MIN_SECRET_BYTES} bytes or more")]
    ShortSecret,
    // The value is not echoed: it may be a private key.
    #[error("jwt_public_key: this is neither a public key in PEM nor a file that can be read")]
    Unreadable(#[source] io::Error),
    #[error(
        "jwt_public_key: expected a public key in PEM, or the path of a file with one: RSA of 2048 bits or \
         more, P-256 or Ed25519"
    )]
    NotPublicKey,
    #[error("jwt_public_key: this is a private key; the public key that belongs to it is enough")]
    PrivateKey,
    #[error("jwks_url: this machine names no authority whose certificates it trusts")]
    NoTrust(#[source] io::Error),
}

impl Key {
    fn new(key: DecodingKey, algorithms: Vec<Algorithm>) -> Self {
        let mut validation = Validation { algorithms, ..Validation::default() };
        // The library checks the signature only. `Claims` checks the claims, with the time as an argument.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Self { key, validation }
    }

    pub fn from_secret(secret: &Secret) -> Result<Self, KeyError> {
        let secret = secret.expose().as_bytes();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(KeyError::ShortSecret);
        }
        Ok(Self::new(DecodingKey::from_secret(secret), vec![Algorithm::HS256]))
    }

    /// A public key from PEM, or from the PEM file at this path.
    pub fn from_pem_or_path(given: &str) -> Result<Self, KeyError> {
        if given.trim_start().starts_with(PEM_START) {
            return Self::from_pem(given);
        }
        Self::from_pem(&fs::read_to_string(given).map_err(KeyError::Unreadable)?)
    }

    fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if is_private_key(pem) {
            return Err(KeyError::PrivateKey);
        }
        if !pem.contains("PUBLIC KEY-----") {
            return Err(KeyError::NotPublicKey);
        }
        let pem = pem.as_bytes();
        let readers =
            [DecodingKey::from_rsa_pem, DecodingKey::from_ec_pem, DecodingKey::from_ed_pem];
        let key = readers.iter().find_map(|read| read(pem).ok());
        key.and_then(Self::from_public).ok_or(KeyError::NotPublicKey)
    }

    /// A key of a key set; None if its type is not supported.
    pub fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let signs = common.public_key_use.as_ref().is_none_or(|is| *is == PublicKeyUse::Signature)
            && common
                .key_operations
                .as_ref()
                .is_none_or(|all| all.contains(&KeyOperations::Verify));
        let is_known = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => true,
            AlgorithmParameters::EllipticCurve(key) => key.curve == EllipticCurve::P256,
            AlgorithmParameters::OctetKeyPair(key) => key.curve == EllipticCurve::Ed25519,
            // A shared secret in a public key set would let anybody sign tokens.
            _ => false,
        };
        if !signs || !is_known {
            return None;
        }
        let mut key = Self::from_public(DecodingKey::from_jwk(jwk).ok()?)?;
        if let Some(named) = common.key_algorithm {
            let is_named = |known: &Algorithm| KeyAlgorithm::from(*known) == named;
            key.validation.algorithms.retain(is_named);
        }
        (!key.validation.algorithms.is_empty()).then_some(key)
    }

    /// The algorithms of this type of key.
    fn from_public(key: DecodingKey) -> Option<Self> {
        use jsonwebtoken::AlgorithmFamily::{Ec, Ed, Hmac, Rsa};
        let length = match key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
            DecodingKeyKind::RsaModulusExponent { n, .. } => {
                n.iter().skip_while(|b| **b == 0).count()
            }
        };
        let algorithms = match key.family() {
            Rsa if length >= MIN_RSA_BYTES => vec![Algorithm::RS256, Algorithm::PS256],
            Ec if length == P256_POINT_BYTES => vec![Algorithm::ES256],
            Ed if length == ED25519_BYTES => vec![Algorithm::EdDSA],
            Rsa | Ec | Ed | Hmac => return None,
        };
        Some(Self::new(key, algorithms))
    }

    /// The unchecked claims of a token, if this key has signed it.
    pub fn verify(&self, token: &str) -> Result<Claims, Unauthenticated> {
        let decoded = decode::<Claims>(token, &self.key, &self.validation);
        let token = decoded.map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => Unauthenticated::Signature,
            ErrorKind::InvalidAlgorithm | ErrorKind::InvalidKeyFormat => Unauthenticated::Algorithm,
            _ => Unauthenticated::NotToken,
        })?;
        // `crit` (RFC 7515, 4.1.11) names extensions that must be understood; none is.
        if token.header.crit.is_some() {
            return Err(Unauthenticated::NotToken);
        }
        Ok(token.claims)
    }
}
