//! A set of keys at an address, whose owner puts new ones in and takes old ones out.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use jsonwebtoken::jwk::Jwk;
use serde::Deserialize;
use serde_json::Value;
use tracing::{info, warn};

use super::{
    CheckError, Unauthenticated,
    keys::{Key, KeyError},
};
use crate::{
    fetch::{Endpoint, FetchError, Fetcher, Limits},
    time::Timestamp,
};

/// How soon the set is fetched again because a token names a key that is not in it. Anybody can make
/// such tokens.
pub const RETRY_UNKNOWN_KEY: Duration = Duration::from_secs(30);
/// How often the set is fetched in any case: so keys that were taken out are forgotten.
const REFRESH_INTERVAL: Duration = Duration::from_mins(5);
/// The same while there is no set yet.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// What fetching it may take.
const LIMITS: Limits =
    Limits { timeout: Duration::from_secs(5), max_bytes: 256 * 1024, max_concurrent: 1 };
/// Most keys of one set.
const MAX_KEYS: usize = 64;

/// The keys by their names. A set with a single key may leave its name out.
type KeysByName = HashMap<Option<String>, Arc<Key>>;

#[derive(Debug)]
pub struct KeySet {
    url: Endpoint,
    fetcher: Fetcher,
    /// None until they were fetched for the first time.
    keys: RwLock<Option<KeysByName>>,
    /// When the set was last asked for. Held while it is fetched.
    asked_at: tokio::sync::Mutex<Option<Timestamp>>,
}

#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer is not a key set")]
    NotKeySet,
    #[error("it has no key of use: RSA of 2048 bits or more, P-256 or Ed25519")]
    NoKeys,
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
}

impl KeySet {
    pub fn new(url: Endpoint) -> Result<Self, KeyError> {
        let fetcher = Fetcher::new(url.uri(), LIMITS).map_err(KeyError::NoTrust)?;
        let (keys, asked_at) = (RwLock::default(), tokio::sync::Mutex::default());
        Ok(Self { url, fetcher, keys, asked_at })
    }

    /// The key of this name. If it is not known, the set may have changed: it is fetched again, but
    /// not more often than every [`RETRY_UNKNOWN_KEY`].
    pub async fn find(&self, name: Option<&str>, now: Timestamp) -> Result<Arc<Key>, CheckError> {
        if let Some(key) = self.known(name) {
            return Ok(key);
        }
        let mut asked_at = self.asked_at.lock().await;
        // Somebody else may have waited for the same key.
        if let Some(key) = self.known(name) {
            return Ok(key);
        }
        if asked_at.is_none_or(|at| now - at >= RETRY_UNKNOWN_KEY) {
            *asked_at = Some(now);
            self.fetch().await;
        }
        drop(asked_at);
        let key = self.known(name);
        key.ok_or(if self.is_known() {
            Unauthenticated::UnknownKey.into()
        } else {
            CheckError::NoKeys
        })
    }

    /// Fetches the set. When that fails, the keys that are known stay.
    pub async fn refresh(&self, now: Timestamp) {
        let mut asked_at = self.asked_at.lock().await;
        *asked_at = Some(now);
        self.fetch().await;
    }

    pub fn refresh_interval(&self) -> Duration {
        if self.is_known() { REFRESH_INTERVAL } else { FIRST_RETRY }
    }

    fn is_known(&self) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn known(&self, name: Option<&str>) -> Option<Arc<Key>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let keys = keys.as_ref()?;
        match name {
            Some(_) => keys.get(&name.map(str::to_owned)).cloned(),
            None => keys.values().next().filter(|_| keys.len() == 1).cloned(),
        }
    }

    async fn get(&self) -> Result<Bytes, RefreshError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = self.url.uri().clone();
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        // The next time is minutes away.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let response = self.fetcher.fetch(request).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(RefreshError::Status(status)),
        }
    }

    async fn fetch(&self) {
        // Boxed: every task that checks a token would have to have the room for it.
        let fetched = Box::pin(self.get()).await;
        match fetched.and_then(|json| read(&json)) {
            Ok(keys) => {
                let count = keys.len();
                let before =
                    self.keys.write().unwrap_or_else(PoisonError::into_inner).replace(keys);
                if before.is_none() {
                    info!(url = %self.url, keys = count, "tokens can be checked: their keys are here");
                }
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                let known = self.is_known();
                warn!(url = %self.url, error = format!("{error:#}"), "the keys of tokens cannot be fetched: {}",
                    if known { "those known before stay" } else { "nobody can be let in until they are" });
            }
        }
    }
}

fn read(json: &[u8]) -> Result<KeysByName, RefreshError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(json).map_err(|_| RefreshError::NotKeySet)?;
    if set.keys.len() > MAX_KEYS {
        return Err(RefreshError::TooMany);
    }
    let mut keys = KeysByName::new();
    // A key of a kind that is not known here must not spoil the others.
    for jwk in set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok()) {
        if let Some(key) = Key::from_jwk(&jwk) {
            keys.entry(jwk.common.key_id).or_insert_with(|| Arc::new(key));
        }
    }
    if keys.is_empty() { Err(RefreshError::NoKeys) } else { Ok(keys) }
}
