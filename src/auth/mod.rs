//! Authentication: tokens (JWT), their keys, and the permissions that they grant.
//!
//! The service that signs users in also signs their tokens, with the user id in `sub`. A token is checked once,
//! when it arrives; afterwards only an [`Identity`] is kept. Tokens are never logged or echoed.

mod access;
mod claims;
mod crypto;
mod jwks;
mod keys;
mod mint;

use jsonwebtoken::decode_header;

pub use access::{Access, bare_token, bearer};
use claims::Claims;
pub use claims::{Identity, LEEWAY, Scopes};
use jwks::KeySet;
pub use jwks::RETRY_UNKNOWN_KEY;
use keys::Key;
pub use keys::{KeyError, MIN_SECRET_BYTES, is_private_key, shown_public_key};
pub use mint::{Mint, MintError, mint};

use crate::{fetch::Endpoint, secret::Secret, time::Timestamp};

/// Bound on a token, in bytes. It must fit into the head of a request.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The source of the keys that verify tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A secret shared with the issuer: HS256.
    Secret(Secret),
    /// A public key in PEM, or the path of a file with one. It may be a secret given by mistake, so it is shown
    /// only by [`shown_public_key`].
    PublicKey(Secret),
    /// A remote set of public keys.
    KeySet(Endpoint),
}

/// The conditions for accepting a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    pub keys: KeySource,
    /// If set, the required `iss`.
    pub issuer: Option<String>,
    /// If set, the required `aud`; if not, the token must have none.
    pub audience: Option<String>,
}

/// Checks tokens.
#[derive(Debug)]
pub struct Checker {
    keys: Keys,
    issuer: Option<String>,
    audience: Option<String>,
}

#[derive(Debug)]
enum Keys {
    One(Box<Key>),
    Set(Box<KeySet>),
}

/// A refused token, in words for its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    #[error("a token is needed")]
    Missing,
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("the token is not a JWT that can be read")]
    NotToken,
    #[error("the token is signed with an algorithm that its key is not for")]
    Algorithm,
    #[error("the token names no key, or one that is not known")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    TooEarly,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token's sub is not a user id: {}", crate::ids::UserId::EXPECTED)]
    Subject,
    #[error("the token has no exp, or its exp or nbf is not a time in seconds")]
    NoTime,
}

impl Unauthenticated {
    /// Whether this counts as a failed attempt. A missing token does not, nor does a token with a valid
    /// signature that has expired or is not valid yet: the issuer handed it out.
    pub fn is_guess(self) -> bool {
        !matches!(self, Self::Missing | Self::Expired | Self::TooEarly)
    }
}

/// The result of checking a token that was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// The key set has not been fetched yet.
    #[error("tokens cannot be checked right now")]
    NoKeys,
}

impl Checker {
    /// # Errors
    /// One sentence for a key that cannot be used.
    pub fn new(trust: Trust) -> Result<Self, KeyError> {
        crypto::install();
        let keys = match trust.keys {
            KeySource::Secret(secret) => Keys::One(Box::new(Key::from_secret(&secret)?)),
            KeySource::PublicKey(given) => {
                Keys::One(Box::new(Key::from_pem_or_path(given.expose())?))
            }
            KeySource::KeySet(url) => Keys::Set(Box::new(KeySet::new(url)?)),
        };
        Ok(Self { keys, issuer: trust.issuer, audience: trust.audience })
    }

    /// The identity of the token's user. Waits only for a fetch of the key set, if the token names an unknown
    /// key.
    pub async fn check(&self, token: &str, now: Timestamp) -> Result<Identity, CheckError> {
        if token.is_empty() {
            return Err(Unauthenticated::Missing.into());
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Unauthenticated::TooLong.into());
        }
        let claims = match &self.keys {
            Keys::One(key) => key.verify(token)?,
            Keys::Set(set) => {
                let header = decode_header(token).map_err(|_| Unauthenticated::NotToken)?;
                let key = set.find(header.kid.as_deref(), now).await?;
                key.verify(token)?
            }
        };
        Ok(claims.check(self.issuer.as_deref(), self.audience.as_deref(), now)?)
    }

    /// The number of keys that tokens can be checked with. Fetches the key set, if there is one.
    pub async fn usable_keys(&self) -> anyhow::Result<usize> {
        match &self.keys {
            Keys::One(_) => Ok(1),
            Keys::Set(set) => set.count().await,
        }
    }

    /// Fetches the key set, if there is one. The node starts even if that fails.
    pub async fn prepare(&self, now: Timestamp) {
        if let Keys::Set(set) = &self.keys {
            set.refresh(now).await;
        }
    }

    /// Refreshes the key set periodically.
    pub async fn keep_fresh(&self, now: impl Fn() -> Timestamp) {
        let Keys::Set(set) = &self.keys else { return };
        loop {
            tokio::time::sleep(set.refresh_interval()).await;
            set.refresh(now()).await;
        }
    }
}
