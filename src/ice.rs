//! STUN servers, and TURN servers with credentials that expire.
//!
//! The TURN servers and this service share a secret and nothing else: the user name contains its expiry, and its
//! signature is the password (draft-uberti-behave-turn-rest-00).

use std::{net::Ipv6Addr, ops::RangeInclusive, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::hmac;

use crate::{
    ids::UserId,
    protocol::IceServer,
    secret::Secret,
    time::{Clock, Timestamp},
};

/// Permitted lifetimes of credentials.
pub const TURN_TTL: RangeInclusive<Duration> = Duration::from_mins(1)..=Duration::from_hours(24);
pub const DEFAULT_TURN_TTL: Duration = Duration::from_hours(1);
/// `ttl` for clients where nothing expires.
const STUN_TTL: Duration = Duration::from_hours(1);

/// The configured servers.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub stun_urls: Vec<String>,
    pub turn: Option<Turn>,
}

/// TURN servers, all with the same secrets.
#[derive(Debug, Clone)]
pub struct Turn {
    pub urls: Vec<String>,
    /// Signs the credentials.
    pub secret: Secret,
    /// Further secrets of the TURN servers during a rotation. They sign nothing.
    pub other_secrets: Vec<Secret>,
    pub ttl: Duration,
}

/// The reply to a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Servers {
    pub ice_servers: Vec<IceServer>,
    /// Lifetime in seconds.
    pub ttl_s: u64,
}

/// Issues server lists with credentials.
pub struct Ice {
    settings: Settings,
    clock: Clock,
}

impl Ice {
    pub fn new(settings: Settings, clock: Clock) -> Self {
        Self { settings, clock }
    }

    pub fn servers_for(&self, user: &UserId) -> Servers {
        self.settings.servers_for(user, self.clock.now())
    }
}

impl Settings {
    fn servers_for(&self, user: &UserId, now: Timestamp) -> Servers {
        let stun = (!self.stun_urls.is_empty()).then(|| IceServer::stun(self.stun_urls.clone()));
        let turn = self.turn.as_ref().map(|turn| turn.server_for(user, now));
        let ttl = self.turn.as_ref().map_or(STUN_TTL, |turn| turn.ttl);
        Servers { ice_servers: stun.into_iter().chain(turn).collect(), ttl_s: ttl.as_secs() }
    }
}

impl Turn {
    fn server_for(&self, user: &UserId, now: Timestamp) -> IceServer {
        let expires_at_s = (now + self.ttl).as_millis() / 1_000;
        let username = format!("{expires_at_s}:{}", plain(user));
        let key = self.secret.expose().as_bytes();
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
        let signature = hmac::sign(&key, username.as_bytes());
        IceServer {
            urls: self.urls.clone(),
            username: Some(username),
            credential: Some(BASE64_STANDARD.encode(signature).into()),
        }
    }
}

/// The user id, percent-encoded for TURN user names: coturn refuses blanks and quotes, and clients normalise characters
/// outside ASCII differently.
fn plain(user: &UserId) -> String {
    let plain = |byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        b'-' | b'.' | b'_' | b'~' | b'@' | b'+' | b':' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    user.as_str().bytes().map(plain).collect()
}

/// Whether this is the URL of a STUN server (RFC 7064).
pub fn is_stun_url(url: &str) -> bool {
    matches!(url.split_once(':'), Some(("stun" | "stuns", place)) if is_place(place))
}

/// Whether this is the URL of a TURN server (RFC 7065).
pub fn is_turn_url(url: &str) -> bool {
    let Some(("turn" | "turns", rest)) = url.split_once(':') else { return false };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    is_place(place) && matches!(query, None | Some("transport=udp" | "transport=tcp"))
}

/// Whether this is `HOST` or `HOST:PORT`. Browsers refuse the whole connection for a URL that they cannot parse.
fn is_place(text: &str) -> bool {
    let (is_host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((host, rest)) => (host.parse::<Ipv6Addr>().is_ok(), rest),
        None => {
            let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            let of_host =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            (!host.is_empty() && host.bytes().all(of_host), rest)
        }
    };
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse().is_ok_and(|port: u16| port > 0)
    };
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_999);

    fn settings() -> Settings {
        Settings {
            stun_urls: vec!["stun:stun.example.org".to_owned()],
            turn: Some(Turn {
                urls: vec!["turn:turn.example.org:3478?transport=udp".to_owned()],
                secret: "north".to_owned().into(),
                other_secrets: vec!["south".to_owned().into()],
                ttl: Duration::from_hours(1),
            }),
        }
    }

    /// The vectors are OpenSSL's: `printf %s USERNAME | openssl dgst -sha1 -hmac north -binary | base64`.
    #[test]
    fn credentials_are_those_that_turn_servers_expect() {
        for (user, username, credential) in [
            ("anna", "1800003600:anna", "lPkPO7EcJRyVewSIt5p/9E6QEZQ="),
            ("O'Brien jö", "1800003600:O%27Brien%20j%C3%B6", "CctALuFq9TBx2PvltPYop5+nlcA="),
        ] {
            let Servers { ice_servers, ttl_s } =
                settings().servers_for(&user.parse().unwrap(), NOW);
            assert_eq!(ttl_s, 3_600);
            let [stun, turn] = &ice_servers[..] else { panic!("{ice_servers:?}") };
            assert_eq!(stun, &IceServer::stun(vec!["stun:stun.example.org".to_owned()]));
            assert_eq!(turn.urls, ["turn:turn.example.org:3478?transport=udp"]);
            assert_eq!(turn.username.as_deref(), Some(username));
            assert_eq!(turn.credential.as_ref().map(Secret::expose), Some(credential));
        }
    }

    #[test]
    fn two_users_have_two_names_of_signs_that_coturn_takes() {
        let name = |user: &str| plain(&user.parse().unwrap());
        assert_eq!(name("a:b@c.d"), "a:b@c.d");
        assert_ne!(name("a b"), name("a%20b"));
        let longest = name(&"\u{fe}".repeat(64));
        assert!(longest.len() + "18000000000:".len() < 509, "more than RFC 8489 allows");
    }

    #[test]
    fn nothing_shows_a_secret() {
        let settings = settings();
        let servers = settings.servers_for(&"anna".parse().unwrap(), NOW);
        let shown = format!("{settings:?} {servers:?}");
        for secret in ["north", "south", "lPkPO7EcJRyVewSIt5p/9E6QEZQ="] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn urls_are_those_that_browsers_take() {
        for good in [
            "turn:turn.example.org",
            "turn:10.0.0.1:3478",
            "turn:turn.example.org:3478?transport=tcp",
            "turns:turn.example.org:5349",
            "turn:[2001:db8::1]:3478?transport=udp",
        ] {
            assert!(is_turn_url(good), "{good}");
        }
        for bad in [
            "",
            "turn:",
            "turn:?transport=udp",
            "turn://turn.example.org",
            "turn:turn.example.org:",
            "turn:turn.example.org:0",
            "turn:turn.example.org:+1",
            "turn:turn.example.org:65536",
            "turn:turn.example.org?transport=sctp",
            "turn:turn.example.org?udp",
            "turn:me@turn.example.org",
            "turn:turn example org",
            "turn:[2001:db8::1",
            "turn:2001:db8::1",
            "stun:turn.example.org",
        ] {
            assert!(!is_turn_url(bad), "{bad}");
        }
        assert!(is_stun_url("stun:a") && is_stun_url("stuns:a:1") && is_stun_url("stun:[::1]:1"));
        assert!(!is_stun_url("stun:a?transport=udp") && !is_stun_url("turn:a"));
    }
}
