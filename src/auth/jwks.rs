//! A remote key set (JWKS) that its owner rotates.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use jsonwebtoken::jwk::Jwk;
use parking_lot::RwLock;
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

/// Shortest pause between fetches for unknown keys. Anybody can send tokens that name unknown keys.
pub const RETRY_UNKNOWN_KEY: Duration = Duration::from_secs(30);
/// Refresh period, after which removed keys are no longer accepted.
const REFRESH_INTERVAL: Duration = Duration::from_mins(5);
/// Refresh period until the first fetch has succeeded.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Bounds of a fetch.
const LIMITS: Limits =
    Limits { timeout: Duration::from_secs(5), max_bytes: 256 * 1024, max_concurrent: 1 };
/// Bound on the keys of a set.
const MAX_KEYS: usize = 64;

/// The keys by `kid`. The only key of a set may have none.
type KeysByName = HashMap<Option<String>, Arc<Key>>;

#[derive(Debug)]
pub struct KeySet {
    url: Endpoint,
    fetcher: Fetcher,
    /// None until the first fetch has succeeded.
    keys: RwLock<Option<KeysByName>>,
    /// Time of the last fetch. Locked during a fetch.
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

    /// The key with this `kid`. An unknown one causes a fetch, at most once per [`RETRY_UNKNOWN_KEY`], because
    /// the set may have been rotated.
    pub async fn find(&self, name: Option<&str>, now: Timestamp) -> Result<Arc<Key>, CheckError> {
        if let Some(key) = self.known(name) {
            return Ok(key);
        }
        let mut asked_at = self.asked_at.lock().await;
        // Another task may have fetched the key meanwhile.
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

    /// Fetches the set. If that fails, the known keys stay in use.
    pub async fn refresh(&self, now: Timestamp) {
        let mut asked_at = self.asked_at.lock().await;
        *asked_at = Some(now);
        self.fetch().await;
    }

    pub fn refresh_interval(&self) -> Duration {
        if self.is_known() { REFRESH_INTERVAL } else { FIRST_RETRY }
    }

    fn is_known(&self) -> bool {
        self.keys.read().is_some()
    }

    fn known(&self, name: Option<&str>) -> Option<Arc<Key>> {
        let keys = self.keys.read();
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
        // The next refresh is minutes away.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let response = self.fetcher.fetch(request).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(RefreshError::Status(status)),
        }
    }

    /// Fetches the set, and counts its usable keys. Changes nothing.
    pub async fn count(&self) -> anyhow::Result<usize> {
        Ok(read(&self.get().await?)?.len())
    }

    async fn fetch(&self) {
        // Boxed: inline, every task that may check a token would reserve its size.
        let fetched = Box::pin(self.get()).await;
        match fetched.and_then(|json| read(&json)) {
            Ok(keys) => {
                let count = keys.len();
                let before = self.keys.write().replace(keys);
                if before.is_none() {
                    info!(url = %self.url, keys = count, "the keys of tokens are fetched: tokens can be checked");
                }
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                let known = self.is_known();
                warn!(url = %self.url, error = format!("{error:#}"), "the keys of tokens cannot be fetched: {}",
                    if known { "the known keys stay in use" } else { "no client is admitted until they are" });
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
    // A key of an unknown type must not invalidate the others.
    for jwk in set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok()) {
        if let Some(key) = Key::from_jwk(&jwk) {
            keys.entry(jwk.common.key_id).or_insert_with(|| Arc::new(key));
        }
    }
    if keys.is_empty() { Err(RefreshError::NoKeys) } else { Ok(keys) }
}
