//! "May A call B?", asked of the platform's backend over HTTP, when the settings name it.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    call::Attempt,
    calls::{Gate, Verdict},
    fetch::{Endpoint, FetchError, Fetcher, Limits},
    ids::UserId,
    payload::Payload,
    secret::Secret,
};

/// Most questions that are asked at a time. The others wait, and their waiting counts.
const MAX_CONCURRENT: usize = 64;
/// Longest answer.
const MAX_ANSWER_BYTES: usize = 4 * 1024;
/// Longest reason that a caller is told.
const MAX_REASON_CHARS: usize = 256;
/// Most answers that are kept.
const MAX_KEPT: usize = 10_000;

/// Whom to ask, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    pub url: Endpoint,
    /// Shows the backend who asks.
    pub token: Option<Secret>,
    pub timeout: Duration,
    /// For how long a yes is good for the same call again. Zero: not at all.
    pub cache: Duration,
    pub fail: Fail,
}

/// What happens to calls while the backend does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Fail {
    /// They are placed.
    Open,
    /// They are not, and their callers are told to try again.
    Closed,
}

/// Asks the backend.
pub struct Authorizer {
    settings: Settings,
    authorization: Option<HeaderValue>,
    fetcher: Fetcher,
    allowed: Mutex<Allowed>,
    /// Set while it does not answer.
    is_away: AtomicBool,
}

/// The questions that were answered with a yes a short while ago.
#[derive(Default)]
struct Allowed {
    until: HashMap<Key, Instant>,
    /// In the order of their ends.
    ends: VecDeque<(Instant, Key)>,
}

/// The SHA-256 of a question as it is sent. All that the backend decides on is in it, `callerInfo` too,
/// and its size does not depend on what clients send.
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

/// Why there is neither a yes nor a no.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the status {0}")]
    Status(StatusCode),
    #[error("something else than {{\"allow\": true}} or {{\"allow\": false, \"reason\": …}}")]
    Unreadable(#[from] serde_json::Error),
}

impl Authorizer {
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

    /// Says once that the backend is away, and once that it is back.
    fn note(&self, answer: &Result<Answer, NoAnswer>) {
        let was_away = self.is_away.swap(answer.is_err(), Ordering::Relaxed);
        match answer {
            Err(error) if was_away => debug!(%error, "still nobody says who may call"),
            Err(error) => {
                let error = &anyhow::Chain::new(error).map(ToString::to_string).collect::<Vec<_>>();
                let (url, fail) = (&self.settings.url, self.settings.fail);
                warn!(%url, error = error.join(": "), ?fail, "nobody says who may call");
            }
            Ok(_) if was_away => info!("it can be asked again who may call"),
            Ok(_) => {}
        }
    }

    fn with_allowed<T>(&self, work: impl FnOnce(&mut Allowed) -> T) -> T {
        work(&mut self.allowed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Gate for Authorizer {
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

    /// Each is kept for the same time, so those that end first stand first.
    fn keep(&mut self, key: Key, now: Instant, until: Instant) {
        while let Some((end, earliest)) = self.ends.front()
            && (*end <= now || self.ends.len() >= MAX_KEPT)
        {
            // It may have been allowed again since.
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

/// The backend's reason as plain text of a length that fits on a screen.
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
        // Allowed twice, it is kept until its later end.
        allowed.keep(key(5), start, start + 2 * ttl);
        let later = start + ttl;
        allowed.keep(key(2), later, later + ttl);
        assert!(allowed.has(&key(5), later) && !allowed.has(&key(6), later));
        assert_eq!(allowed.until.len(), 2);
        // None is kept for no time.
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
