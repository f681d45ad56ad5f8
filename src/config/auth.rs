//! Authentication of clients.

use std::net::SocketAddr;

use super::{Auth, AuthMode, ConfigError, Settings};
use crate::auth::{KeyError, KeySource, MIN_SECRET_BYTES, Trust, is_private_key};

impl Settings {
    /// Takes the settings of authentication.
    pub(super) fn take_auth(&mut self, listen: SocketAddr) -> Result<Auth, ConfigError> {
        const KEYS: &str =
            "SWITCHBOARD_JWT_SECRET, SWITCHBOARD_JWT_PUBLIC_KEY and SWITCHBOARD_JWKS_URL";
        let mut keys = Vec::new();
        keys.extend(self.jwt_secret.take().map(KeySource::Secret));
        if self.jwt_public_key.as_ref().is_some_and(|key| is_private_key(key.expose())) {
            return Err(ConfigError(KeyError::PrivateKey.to_string()));
        }
        keys.extend(self.jwt_public_key.take().map(KeySource::PublicKey));
        if let Some(url) = self.jwks_url.take() {
            let refuse = |expected| ConfigError(format!("jwks_url: {expected}"));
            keys.push(KeySource::KeySet(url.expose().parse().map_err(refuse)?));
        }
        let (issuer, audience) = (self.jwt_issuer.take(), self.jwt_audience.take());
        let is_about_tokens = !keys.is_empty() || issuer.is_some() || audience.is_some();
        match self.auth {
            Some(AuthMode::Jwt) => {}
            // Setting a key implies that it is expected to be used.
            Some(AuthMode::Open) | None if is_about_tokens => {
                let message = "settings for tokens are given, but SWITCHBOARD_AUTH is not `jwt`";
                return Err(ConfigError(message.to_owned()));
            }
            Some(AuthMode::Open) => return Ok(Auth::Open),
            None if listen.ip().is_loopback() => return Ok(Auth::Open),
            None => {
                return Err(ConfigError(format!(
                    "listening on {listen}, beyond this machine, needs SWITCHBOARD_AUTH to be set: \
                     `jwt` checks tokens, `open` lets everybody connect as anybody"
                )));
            }
        }
        if keys.len() > 1 {
            return Err(ConfigError(format!("of {KEYS} only one may be set")));
        }
        let Some(keys) = keys.pop() else {
            return Err(ConfigError(format!(
                "with SWITCHBOARD_AUTH=jwt one of {KEYS} must be set"
            )));
        };
        if let KeySource::Secret(secret) = &keys
            && secret.expose().len() < MIN_SECRET_BYTES
        {
            let message = format!("jwt_secret: expected {MIN_SECRET_BYTES} bytes or more");
            return Err(ConfigError(message));
        }
        Ok(Auth::Jwt(Trust { keys, issuer, audience }))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::resolve;

    #[test]
    fn what_is_given_as_a_public_key_and_is_none_is_not_shown() {
        const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\\nhunter2\\n-----END PRIVATE KEY-----";
        let with = |key: &str| resolve(&format!("auth = 'jwt'\njwt_public_key = \"{key}\""));
        let error = with(PRIVATE).unwrap_err().to_string();
        assert!(error.contains("private key") && !error.contains("hunter2"), "{error}");
        for mistaken in ["hunter2hunter2", "-----BEGIN PUBLIC KEY-----\\nhunter2"] {
            let config = with(mistaken).unwrap();
            for shown in [config.to_toml(), format!("{config:?}")] {
                assert!(!shown.contains("hunter2"), "{shown}");
            }
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert!(with(file).unwrap().to_toml().contains(file));
    }

    #[test]
    fn tokens_need_one_key_and_the_mode_said() {
        let secret = "x".repeat(32);
        for (settings, mentions) in [
            ("auth = 'jwt'".to_owned(), "must be set"),
            (format!("jwt_secret = '{secret}'"), "SWITCHBOARD_AUTH"),
            (format!("auth = 'open'\njwt_secret = '{secret}'"), "SWITCHBOARD_AUTH"),
            ("jwt_audience = 'calls'".to_owned(), "SWITCHBOARD_AUTH"),
            (format!("auth = 'jwt'\njwt_secret = '{}'", &secret[1..]), "32 bytes"),
            (format!("auth = 'jwt'\njwt_secret = '{secret}'\njwt_public_key = 'a'"), "only one"),
            (
                "auth = 'jwt'\njwt_public_key = 'a'\njwks_url = 'https://a.example.org'".to_owned(),
                "only one",
            ),
        ] {
            let error = resolve(&settings).unwrap_err().to_string();
            assert!(error.contains(mentions) && !error.contains("xxx"), "{settings}: {error}");
        }
        let config = resolve(&format!("auth = 'jwt'\njwt_secret = '{secret}'")).unwrap();
        for shown in [config.to_toml(), format!("{config:?}")] {
            assert!(shown.contains("***") && !shown.contains("xxx"), "{shown}");
        }
    }
}
