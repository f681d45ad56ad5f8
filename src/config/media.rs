//! STUN and TURN.

use std::time::Duration;

use super::ConfigError;
use crate::{
    ice::{self, DEFAULT_TURN_TTL, TURN_TTL, Turn, is_stun_url, is_turn_url},
    secret::Secret,
};

/// The servers and their secrets, if they are consistent.
pub fn ice(
    stun_urls: Option<Vec<String>>,
    turn_urls: Option<Vec<String>>,
    secrets: Option<Vec<Secret>>,
    ttl: Option<Duration>,
) -> Result<ice::Settings, ConfigError> {
    let stun_urls = stun_urls.unwrap_or_default();
    if let Some(url) = stun_urls.iter().find(|url| !is_stun_url(url)) {
        return Err(ConfigError(format!("stun_urls: expected stun:HOST[:PORT], not {url:?}")));
    }
    let urls = turn_urls.unwrap_or_default();
    if let Some(url) = urls.iter().find(|url| !is_turn_url(url)) {
        let expected = "turn:HOST[:PORT] or turns:HOST[:PORT], and after it ?transport=udp or \
                        ?transport=tcp or nothing";
        return Err(ConfigError(format!("turn_urls: expected {expected}, not {url:?}")));
    }
    let ttl = ttl.unwrap_or(DEFAULT_TURN_TTL);
    if !TURN_TTL.contains(&ttl) {
        return Err(ConfigError("turn_ttl: expected 1m to 24h".to_owned()));
    }
    let mut secrets = secrets.unwrap_or_default();
    if secrets.iter().any(|secret| secret.expose().is_empty()) {
        return Err(ConfigError("turn_secret: expected no empty one".to_owned()));
    }
    let turn = match (urls.is_empty(), secrets.is_empty()) {
        (true, true) => None,
        (false, false) => {
            let secret = secrets.remove(0);
            Some(Turn { urls, secret, other_secrets: secrets, ttl })
        }
        (false, true) => {
            let missing = "turn_urls: needs turn_secret beside it, which the TURN servers know too";
            return Err(ConfigError(missing.to_owned()));
        }
        (true, false) => {
            let missing = "turn_secret: needs turn_urls beside it, the servers that know it";
            return Err(ConfigError(missing.to_owned()));
        }
    };
    Ok(ice::Settings { stun_urls, turn })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::resolve;

    #[test]
    fn turn_urls_and_their_secret_go_together() {
        let turn = |settings: &str| resolve(settings).map(|config| config.ice.turn);
        assert!(turn("turn_urls = ['turn:a']").unwrap_err().to_string().contains("turn_secret"));
        assert!(turn("turn_secret = 'b'").unwrap_err().to_string().contains("turn_urls"));
        let both = "turn_urls = ['turn:a']\nturn_secret = ['b', 'c']";
        let turn_of_both = turn(both).unwrap().unwrap();
        assert_eq!(turn_of_both.secret.expose(), "b");
        assert_eq!(turn_of_both.ttl, Duration::from_hours(1));
        for ttl in ["59s", "25h"] {
            assert!(turn(&format!("{both}\nturn_ttl = '{ttl}'")).is_err(), "{ttl}");
        }
        assert!(turn("turn_urls = ['turn:a']\nturn_secret = ''").is_err());
    }
}
