//! The claims of a token, and whether this service accepts them at a given time.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Unauthenticated;
use crate::{ids::UserId, time::Timestamp};

/// Permitted difference between the issuer's clock and this one.
pub const LEEWAY: Duration = Duration::from_secs(10);
/// The end of the year 9999: later times are invalid.
const MAX_SECONDS: f64 = 253_402_300_799.0;

/// The user of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: UserId,
    /// Expiry of the token, leeway included. Always later than the time of the check.
    pub expires_at: Timestamp,
    pub scopes: Scopes,
}

/// Permissions beyond the user's own calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes {
    admin: bool,
    stats: bool,
}

/// Claims as the token has them. Values of a wrong type are kept, so that the error can name the claim.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Claims {
    sub: Value,
    exp: Value,
    #[serde(deserialize_with = "present")]
    nbf: Option<Value>,
    iss: Value,
    #[serde(deserialize_with = "present")]
    aud: Option<Value>,
    scope: Value,
    scopes: Value,
    scp: Value,
}

/// Distinguishes `null` from an absent claim.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

impl Scopes {
    pub const ADMIN: &str = "admin";
    pub const STATS: &str = "stats";

    /// All of `/v1/admin`, statistics, and any user's history.
    pub fn is_admin(self) -> bool {
        self.admin
    }

    /// Statistics over all users.
    pub fn sees_stats(self) -> bool {
        self.stats || self.admin
    }

    fn add(&mut self, name: &str) {
        self.admin |= name == Self::ADMIN;
        self.stats |= name == Self::STATS;
    }
}

impl Claims {
    pub fn check(
        self,
        issuer: Option<&str>,
        audience: Option<&str>,
        now: Timestamp,
    ) -> Result<Identity, Unauthenticated> {
        let expires_at = seconds(&self.exp).ok_or(Unauthenticated::NoTime)?;
        if expires_at + LEEWAY <= now {
            return Err(Unauthenticated::Expired);
        }
        if let Some(nbf) = &self.nbf {
            let not_before = seconds(nbf).ok_or(Unauthenticated::NoTime)?;
            if not_before > now + LEEWAY {
                return Err(Unauthenticated::TooEarly);
            }
        }
        if issuer.is_some_and(|issuer| self.iss != *issuer) {
            return Err(Unauthenticated::Issuer);
        }
        // RFC 7519, 4.1.3: a service that is not named in `aud` must refuse the token.
        match (&self.aud, audience) {
            (None, None) => {}
            (Some(Value::String(named)), Some(own)) if named == own => {}
            (Some(Value::Array(named)), Some(own)) if named.iter().any(|one| *one == *own) => {}
            _ => return Err(Unauthenticated::Audience),
        }
        let user = UserId::from_value(&self.sub).map_err(|_| Unauthenticated::Subject)?;
        // A token accepted because of the leeway expires at its end.
        let expires_at = if expires_at > now { expires_at } else { expires_at + LEEWAY };
        Ok(Identity { user, expires_at, scopes: self.scopes() })
    }

    /// `scope`, `scopes` or `scp`, each as words separated by spaces or as a list.
    fn scopes(&self) -> Scopes {
        let mut scopes = Scopes::default();
        for claim in [&self.scope, &self.scopes, &self.scp] {
            match claim {
                Value::String(names) => names.split(' ').for_each(|name| scopes.add(name)),
                Value::Array(names) => {
                    names.iter().filter_map(Value::as_str).for_each(|name| scopes.add(name));
                }
                _ => {}
            }
        }
        scopes
    }
}

/// A `NumericDate` (RFC 7519, 2): seconds since 1970, perhaps with a fraction.
fn seconds(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64().filter(|seconds| (0.0..=MAX_SECONDS).contains(seconds))?;
    Some(Timestamp::from_millis(0) + Duration::from_secs_f64(seconds))
}
