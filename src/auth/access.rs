//! Who may come in: what the socket's door and the HTTP API's ask alike.

use std::future::Future;

use http::{HeaderMap, header};

use super::{CheckError, Checker, Identity};
use crate::time::{Clock, Timestamp};

/// Who may come in.
#[derive(Debug)]
pub struct Access {
    /// None: everybody is who they say they are.
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

    /// Whose token this is; None where nobody needs one.
    pub async fn admit(&self, token: Option<&str>) -> Result<Option<Identity>, CheckError> {
        let Some(checker) = &self.checker else { return Ok(None) };
        checker.check(token.unwrap_or_default(), self.clock.now()).await.map(Some)
    }

    /// Fetches the keys, if they are somewhere else.
    pub async fn prepare(&self) {
        if let Some(checker) = &self.checker {
            checker.prepare(self.clock.now()).await;
        }
    }

    /// Fetches the keys again now and then, until `shutdown` completes.
    pub async fn keep_fresh(&self, shutdown: impl Future<Output = ()>) {
        if let Some(checker) = &self.checker {
            checker.keep_fresh(|| self.clock.now(), shutdown).await;
        }
    }

    /// The time by which tokens expire.
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

/// The token in a request's head: `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
