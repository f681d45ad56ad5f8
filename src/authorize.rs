//! Authorization of new calls by the platform's backend over HTTP, if the settings name one.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    call::Attempt,
    calls::{Authorizer, Verdict},
    fetch::{Endpoint, FetchError, Fetcher, Limits},
    ids::UserId,
    payload::Payload,
    secret::Secret,
};

/// Bound on concurrent requests. Further ones wait for a slot, within the time-out.
const MAX_CONCURRENT: usize = 64;
/// Bound on a response, in bytes.
const MAX_ANSWER_BYTES: usize = 4 * 1024;
/// Bound on the reason for the caller, in characters.
const MAX_REASON_CHARS: usize = 256;
/// Bound on the cache.
const MAX_KEPT: usize = 10_000;

/// The backend and its time-outs.
#[derive(Debug, Clone)]
pub struct Settings {
    pub url: Endpoint,
    /// Bearer token for the backend.
    pub token: Option<Secret>,
    pub timeout: Duration,
    /// Lifetime of a cached permission. Zero: no cache.
    pub cache: Duration,
    pub fail: Fail,
}

/// The decision while the backend does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Fail {
    /// Calls are allowed
    Open,
    /// Calls are refused until it answers
    Closed,
}

/// The client of the backend.
pub struct BackendAuthorizer {
    settings: Settings,
    authorization: Option<HeaderValue>,
    fetcher: Fetcher,
    allowed: Mutex<Allowed>,
    /// Set while the backend does not answer.
    is_away: AtomicBool,
}

/// The questions that were answered with a yes a short while ago.
#[derive(Default)]
struct Allowed {
    until: HashMap<Key, Instant>,
    /// In order of expiry.
    ends: VecDeque<(Instant, Key)>,
}

/// The SHA-256 of a request as it is sent. It covers everything that the backend decides on,
/// including `callerInfo`, and has a fixed size.
type Key = [u8; 32];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    from: &'a UserId,
    to: &'a UserId,
    call_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_info: &'a Option<Payload>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    allow: bool,
    reason: Option<String>,
}

/// A failed request.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the status {0}")]
    Status(StatusCode),
    #[error("something else than {{\"allow\": true}} or {{\"allow\": false, \"reason\": …}}")]
    Unreadable(#[from] serde_json::Error),
}

impl BackendAuthorizer {
    /// # Errors
    /// The machine names no authority whose certificates it trusts, or the token cannot be sent.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let authorization = settings.token.as_ref().map(bearer).transpose()?;
        let limits = Limits {
            timeout: settings.timeout,
            max_bytes: MAX_ANSWER_BYTES,
            max_concurrent: MAX_CONCURRENT,
        };
        let fetcher = Fetcher::new(settings.url.uri(), limits)?;
        Ok(Self {
            settings,
            authorization,
            fetcher,
            allowed: Mutex::default(),
            is_away: AtomicBool::new(false),
        })
    }

    async fn ask(&self, question: Bytes) -> Result<Answer, NoAnswer> {
        let response = self.fetcher.fetch(self.request(question)).await?;
        if response.status() != StatusCode::OK {
            return Err(NoAnswer::Status(response.status()));
        }
        Ok(serde_json::from_slice(response.body())?)
    }

    fn request(&self, question: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::from(question));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.settings.url.uri().clone();
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        request
    }

    /// Logs an outage of the backend once, and its recovery once.
    fn note(&self, answer: &Result<Answer, NoAnswer>) {
        let was_away = self.is_away.swap(answer.is_err(), Ordering::Relaxed);
        match answer {
            Err(error) if was_away => {
                debug!(%error, "the authorization backend still does not answer");
            }
            Err(error) => {
                let error = &anyhow::Chain::new(error).map(ToString::to_string).collect::<Vec<_>>();
                let (url, fail) = (&self.settings.url, self.settings.fail);
                warn!(%url, error = error.join(": "), ?fail, "the authorization backend does not answer");
            }
            Ok(_) if was_away => info!("the authorization backend answers again"),
            Ok(_) => {}
        }
    }

    fn with_allowed<T>(&self, work: impl FnOnce(&mut Allowed) -> T) -> T {
        work(&mut self.allowed.lock())
    }
}

#[async_trait]
impl Authorizer for BackendAuthorizer {
    async fn may_call(&self, attempt: &Attempt) -> Verdict {
        let question = question(attempt);
        let key: Key = Sha256::digest(&question).into();
        if self.with_allowed(|allowed| allowed.has(&key, Instant::now())) {
            return Verdict::Allowed;
        }
        let answer = self.ask(question).await;
        self.note(&answer);
        match (answer, self.settings.fail) {
            (Ok(Answer { allow: true, .. }), _) => {
                let now = Instant::now();
                self.with_allowed(|allowed| allowed.keep(key, now, now + self.settings.cache));
                Verdict::Allowed
            }
            (Ok(Answer { allow: false, reason }), _) => Verdict::Refused(in_words(reason).into()),
            (Err(_), Fail::Open) => Verdict::Allowed,
            (Err(_), Fail::Closed) => Verdict::Unknown,
        }
    }
}

impl Allowed {
    fn has(&self, key: &Key, now: Instant) -> bool {
        self.until.get(key).is_some_and(|until| *until > now)
    }

    /// All entries have the same lifetime, so the earliest to expire is first.
    fn keep(&mut self, key: Key, now: Instant, until: Instant) {
        while let Some((end, earliest)) = self.ends.front()
            && (*end <= now || self.ends.len() >= MAX_KEPT)
        {
            // The permission may have been renewed since.
            if self.until.get(earliest) == Some(end) {
                self.until.remove(earliest);
            }
            self.ends.pop_front();
        }
        if until > now {
            self.until.insert(key, until);
            self.ends.push_back((until, key));
        }
    }
}

/// The question about `attempt`, as it is sent.
fn question(attempt: &Attempt) -> Bytes {
    let question = Question {
        from: &attempt.from.user,
        to: &attempt.to,
        call_type: attempt.call_type.as_str(),
        caller_info: &attempt.caller_info,
    };
    serde_json::to_vec(&question).expect("texts and JSON").into()
}

fn bearer(token: &Secret) -> io::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
        .map_err(|_| io::Error::other("its token has signs that cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The backend's reason, as plain text within its bound.
fn in_words(reason: Option<String>) -> String {
    let reason = reason.unwrap_or_default();
    let plain: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match plain.trim() {
        "" => "You may not call this user".to_owned(),
        plain => plain.chars().take(MAX_REASON_CHARS).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        Sha256::digest(number.to_le_bytes()).into()
    }

    #[test]
    fn a_yes_is_good_for_a_while() {
        let (start, ttl) = (Instant::now(), Duration::from_secs(10));
        let mut allowed = Allowed::default();
        allowed.keep(key(1), start, start + ttl);
        assert!(allowed.has(&key(1), start + ttl / 2));
        assert!(!allowed.has(&key(1), start + ttl));
        assert!(!allowed.has(&key(2), start));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let (start, ttl) = (Instant::now(), Duration::from_secs(10));
        let mut allowed = Allowed::default();
        for number in 0..=MAX_KEPT {
            allowed.keep(key(number), start, start + ttl);
        }
        assert_eq!((allowed.until.len(), allowed.ends.len()), (MAX_KEPT, MAX_KEPT));
        assert!(!allowed.has(&key(0), start) && allowed.has(&key(MAX_KEPT), start));
        // Renewed, it expires at the later time.
        allowed.keep(key(5), start, start + 2 * ttl);
        let later = start + ttl;
        allowed.keep(key(2), later, later + ttl);
        assert!(allowed.has(&key(5), later) && !allowed.has(&key(6), later));
        assert_eq!(allowed.until.len(), 2);
        // A lifetime of zero disables the cache.
        allowed.keep(key(9), later, later);
        assert_eq!(allowed.until.len(), 2);
    }

    #[test]
    fn a_reason_is_short_plain_text() {
        assert_eq!(in_words(Some(" Blocked\nby \u{1b}[31mben ".to_owned())), "Blocked by  [31mben");
        assert_eq!(in_words(Some("ö".repeat(1_000))), "ö".repeat(256));
        for none in [None, Some(" \n".to_owned())] {
            assert_eq!(in_words(none), "You may not call this user");
        }
    }
}
