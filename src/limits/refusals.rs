//! Clients that are turned away at the door: for their token, their page's origin, the host that they ask for, or a
//! broken handshake. Each refusal is counted by its reason. For each reason, one line at info in 10 s tells the
//! address, how many were not logged, and the change that would let such a client in.

use std::fmt;

use tracing::info;

use super::notice::Notice;
use crate::{
    auth::{CheckError, Unauthenticated},
    metrics::{self, Label, Refused},
    time::Clock,
};

/// The refused text is cut to this length in the log.
const MAX_SAID_CHARS: usize = 128;

/// The text for which a request is refused, if it may be logged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said<'a> {
    pub text: Option<&'a str>,
    /// The host that a page of a refused origin has asked for.
    pub host: Option<&'a str>,
}

/// When each reason was last in the log, and how often there was cause since.
#[derive(Debug)]
pub struct Refusals {
    each: Vec<Notice>,
    clock: Clock,
}

impl Refusals {
    pub fn new(clock: Clock) -> Self {
        Self { each: Refused::ALL.iter().map(|_| Notice::default()).collect(), clock }
    }

    /// Records that `from` was refused.
    pub fn note(&self, reason: Refused, from: impl fmt::Display, said: Said<'_>) {
        metrics::REFUSED.of(reason).increment(1);
        if let Some(unsaid) = self.each[reason.index()].says(self.clock.now_us()) {
            let cut =
                |text: Option<&str>| text.map(|text| text.chars().take(MAX_SAID_CHARS).collect());
            let (text, host): (Option<String>, Option<String>) = (cut(said.text), cut(said.host));
            let (said, host, fix) = (text.as_deref(), host.as_deref(), fix(reason));
            info!(reason = reason.as_str(), %from, said, host, unsaid, fix, "turned away");
        }
    }
}

impl From<CheckError> for Refused {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::NoKeys => Self::TokenKeys,
            CheckError::Unauthenticated(why) => match why {
                Unauthenticated::Missing => Self::TokenMissing,
                Unauthenticated::TooLong => Self::TokenTooLong,
                Unauthenticated::NotToken => Self::TokenUnreadable,
                Unauthenticated::Algorithm => Self::TokenAlgorithm,
                Unauthenticated::UnknownKey => Self::TokenUnknownKey,
                Unauthenticated::Signature => Self::TokenSignature,
                Unauthenticated::Expired => Self::TokenExpired,
                Unauthenticated::TooEarly => Self::TokenTooEarly,
                Unauthenticated::Issuer => Self::TokenIssuer,
                Unauthenticated::Audience => Self::TokenAudience,
                Unauthenticated::Subject => Self::TokenSubject,
                Unauthenticated::NoTime => Self::TokenNoTime,
            },
        }
    }
}

/// The change that lets a client in that was refused by mistake.
fn fix(reason: Refused) -> &'static str {
    match reason {
        Refused::TokenMissing => {
            "have the client send its token: auth: {token} of the socket, or Authorization: Bearer"
        }
        Refused::TokenTooLong => "have the issuer leave claims out: 8 KiB are taken",
        Refused::TokenUnreadable => {
            "have the client send the JWT itself, in three parts, as it was issued"
        }
        Refused::TokenAlgorithm => {
            "have the issuer sign with an algorithm of the key: HS256 for SWITCHBOARD_JWT_SECRET; RS256, PS256, ES256 \
             or EdDSA for a public key of that type"
        }
        Refused::TokenUnknownKey => {
            "compare the token's kid with the key set at SWITCHBOARD_JWKS_URL"
        }
        Refused::TokenSignature => {
            "compare the issuer's key with SWITCHBOARD_JWT_SECRET, SWITCHBOARD_JWT_PUBLIC_KEY or \
             SWITCHBOARD_JWKS_URL"
        }
        Refused::TokenExpired => {
            "have the client renew its token before the end, with auth:refresh; compare the clocks"
        }
        Refused::TokenTooEarly => "compare the issuer's clock with this node's",
        Refused::TokenIssuer => "compare the token's iss with SWITCHBOARD_JWT_ISSUER",
        Refused::TokenAudience => {
            "compare the token's aud with SWITCHBOARD_JWT_AUDIENCE; without that setting there must be none"
        }
        Refused::TokenSubject => "have the issuer put the user's id into sub",
        Refused::TokenNoTime => "have the issuer put exp into the token, in seconds of Unix time",
        Refused::TokenKeys => "see to it that this node reaches SWITCHBOARD_JWKS_URL",
        Refused::Origin => {
            "if the page is the service's own, have the proxy in front send Host as it was asked for (nginx: \
             proxy_set_header Host $http_host), or send X-Forwarded-Host and be one of SWITCHBOARD_TRUSTED_PROXIES \
             (without tokens, SWITCHBOARD_HOSTS lists the host, too); if it is another page of yours, name its origin \
             in SWITCHBOARD_CORS_ORIGINS"
        }
        Refused::Host => "if the service goes by this name, list it in SWITCHBOARD_HOSTS",
        Refused::HostHeader => "have the client or the proxy send one Host header",
        Refused::Protocol => {
            "use a client of Socket.IO 3 or later: Engine.IO 4 (EIO=4) is spoken here"
        }
        Refused::Transport => "use the transport polling or websocket",
        Refused::Websocket => {
            "have the proxies on the way pass on Upgrade, Connection and Sec-WebSocket-*"
        }
        Refused::Session => {
            "have the load balancer send all requests of a session to one node, by a cookie; a session that is \
             over ends so too"
        }
    }
}
