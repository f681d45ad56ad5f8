//! Authentication, shared by the socket handshake and the HTTP API.

use http::{HeaderMap, header};

use super::{CheckError, Checker, Identity};
use crate::time::{Clock, Timestamp};

/// Authenticates clients.
#[derive(Debug)]
pub struct Access {
    /// None in `open` mode: any client acts as any user.
    checker: Option<Checker>,
    clock: Clock,
}

impl Access {
    pub fn new(checker: Option<Checker>, clock: Clock) -> Self {
        Self { checker, clock }
    }

    pub fn is_open(&self) -> bool {
        self.checker.is_none()
    }

    /// The identity of the token's user; None in `open` mode.
    pub async fn admit(&self, token: Option<&str>) -> Result<Option<Identity>, CheckError> {
        let Some(checker) = &self.checker else { return Ok(None) };
        checker.check(token.unwrap_or_default(), self.clock.now()).await.map(Some)
    }

    /// Fetches the key set, if there is one.
    pub async fn prepare(&self) {
        if let Some(checker) = &self.checker {
            checker.prepare(self.clock.now()).await;
        }
    }

    /// Refreshes the key set periodically.
    pub async fn keep_fresh(&self) {
        if let Some(checker) = &self.checker {
            checker.keep_fresh(|| self.clock.now()).await;
        }
    }

    /// The clock by which tokens expire.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// A token without the scheme that many clients copy with it: `Bearer …`.
pub fn bare_token(token: &str) -> &str {
    match token.split_once(' ') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim(),
        _ => token,
    }
}

/// The token of the header `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
