//! Tokens for development, made with the shared secret.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, errors::Error};
use serde::Serialize;

use super::{KeySource, Trust, crypto};
use crate::{ids::UserId, time::Timestamp};

/// The content of a token to sign.
#[derive(Debug, Clone)]
pub struct Mint {
    pub user: UserId,
    pub ttl: Duration,
    pub scopes: Vec<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    scope: String,
}

/// A token that cannot be signed. Displays as one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    #[error(
        "tokens are made with SWITCHBOARD_JWT_SECRET, which is not set: with a public key or a key set, \
         only the owner of the private key can make them"
    )]
    NoSecret,
    #[error("the token cannot be signed")]
    Unsigned(#[from] Error),
}

/// Signs a token that a service with this `trust` accepts.
pub fn mint(trust: &Trust, mint: &Mint, now: Timestamp) -> Result<String, MintError> {
    let KeySource::Secret(secret) = &trust.keys else { return Err(MintError::NoSecret) };
    crypto::install();
    let issued_at = now.as_millis() / 1_000;
    let lasts = u64::try_from(mint.ttl.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
    let claims = Claims {
        sub: mint.user.as_str(),
        iat: issued_at,
        exp: issued_at.saturating_add(lasts),
        iss: trust.issuer.as_deref(),
        aud: trust.audience.as_deref(),
        scope: mint.scopes.join(" "),
    };
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}
