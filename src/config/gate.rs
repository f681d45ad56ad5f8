//! Authorization of calls.

use std::{ops::RangeInclusive, time::Duration};

use super::ConfigError;
use crate::{
    authorize::{Fail, Settings},
    secret::{Secret, ServiceUrl},
};

const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(10);
const MAX_CACHE: Duration = Duration::from_hours(1);

/// The backend to ask, if there is one.
pub fn authorize(
    url: Option<ServiceUrl>,
    token: Option<Secret>,
    timeout: Option<Duration>,
    cache: Option<Duration>,
    fail: Option<Fail>,
) -> Result<Option<Settings>, ConfigError> {
    let Some(url) = url else {
        // Setting these implies that a backend is expected.
        if token.is_some() || timeout.is_some() || cache.is_some() || fail.is_some() {
            let missing = "authorize_url: expected, because another authorize_ setting is there";
            return Err(ConfigError(missing.to_owned()));
        }
        return Ok(None);
    };
    let url =
        url.expose().parse().map_err(|error| ConfigError(format!("authorize_url: {error}")))?;
    let is_visible = |secret: &Secret| secret.expose().bytes().all(|byte| byte.is_ascii_graphic());
    if token.as_ref().is_some_and(|token| token.expose().is_empty() || !is_visible(token)) {
        let expected = "authorize_token: expected letters, digits and other visible ASCII signs";
        return Err(ConfigError(expected.to_owned()));
    }
    let timeout = timeout.unwrap_or(Duration::from_secs(1));
    if !TIMEOUT.contains(&timeout) {
        return Err(ConfigError("authorize_timeout: expected 50ms to 10s".to_owned()));
    }
    let cache = cache.unwrap_or(Duration::from_secs(10));
    if cache > MAX_CACHE {
        return Err(ConfigError("authorize_cache: expected 0s to 1h".to_owned()));
    }
    Ok(Some(Settings { url, token, timeout, cache, fail: fail.unwrap_or(Fail::Closed) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::resolve;

    #[test]
    fn nobody_is_asked_unless_told_whom() {
        assert!(resolve("").unwrap().authorize.is_none());
        for alone in ["token = 'a'", "timeout = '1s'", "cache = '1s'", "fail = 'open'"] {
            let error = resolve(&format!("authorize_{alone}")).unwrap_err();
            assert!(error.to_string().contains("authorize_url"), "{error}");
        }
        let settings = resolve("authorize_url = 'https://a/b'").unwrap().authorize.unwrap();
        assert_eq!((settings.timeout.as_secs(), settings.cache.as_secs()), (1, 10));
        assert_eq!(settings.fail, Fail::Closed);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for wrong in ["timeout = '49ms'", "timeout = '11s'", "cache = '2h'", "token = 'a b'"] {
            let settings = format!("authorize_url = 'https://a/b'\nauthorize_{wrong}");
            let error = resolve(&settings).unwrap_err().to_string();
            assert!(error.contains(wrong.split(' ').next().unwrap()), "{error}");
        }
        assert!(resolve("authorize_url = 'http://a/b'").is_err());
    }
}
