//! Settings: from flags, the environment, or a TOML file, in that order of precedence.

mod auth;
mod commands;
mod gate;
mod media;
mod reference;
mod traces;

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer};

pub use commands::{Cli, Front, Task};
pub use reference::{Reference, Setting, defaults, reference};

use crate::{
    auth::{KeySource, Trust, shown_public_key},
    authorize::{self, Fail},
    call::Rules,
    http::{Host, Origin},
    ice,
    limits::{
        self,
        address::{ForwardedHeader, Proxies, Trusted},
    },
    logs,
    secret::{self, Secret, ServiceUrl},
    telemetry,
};

// The headings of `--help` and of the reference.
const LISTENERS: &str = "Listeners";
const CLUSTER: &str = "Cluster";
const HISTORY: &str = "Call history";
const TOKENS: &str = "Tokens";
const CALLS: &str = "Calls";
const RELAYS: &str = "STUN and TURN";
const AUTHORIZATION: &str = "Authorization of calls";
const LIMITS: &str = "Limits, origins and proxies";
const LOGS: &str = "Logs";

/// A shorter history is surely a mistake in the unit.
const MIN_RETENTION: Duration = Duration::from_hours(24);

/// Settings as one source gives them: a field that is absent falls through to the next source.
///
/// The comments of the fields are the help texts of the command line and the rows of
/// docs/reference/settings.md: the meaning, then `[default: …]` and `[range: …]`.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Address of Socket.IO, the HTTP API and the web page [default: 127.0.0.1:3000] [range: `IP:PORT`]
    #[arg(long, env = "SWITCHBOARD_LISTEN", value_name = "ADDRESS", help_heading = LISTENERS)]
    #[arg(value_parser = address)]
    #[serde(deserialize_with = "optional_address")]
    listen: Option<SocketAddr>,
    /// Address of the health checks, metrics and log filter, for operators only
    /// [default: 127.0.0.1:9300] [range: `IP:PORT`]
    #[arg(long, env = "SWITCHBOARD_ADMIN_LISTEN", value_name = "ADDRESS", help_heading = LISTENERS)]
    #[arg(value_parser = address)]
    #[serde(deserialize_with = "optional_address")]
    admin_listen: Option<SocketAddr>,
    /// Redis that all nodes of a cluster share [default: none, a single node]
    /// [range: `redis://`, `redis-cluster://` or `redis-sentinel://`; with TLS `rediss…`]
    #[arg(long, env = "SWITCHBOARD_REDIS_URL", value_name = "URL", help_heading = CLUSTER)]
    #[arg(hide_env_values = true)]
    redis_url: Option<ServiceUrl>,
    /// Name of the cluster: clusters with different names share a Redis without meeting
    /// [default: default] [range: letters, digits and hyphens]
    #[arg(long, env = "SWITCHBOARD_NAMESPACE", value_name = "NAME", help_heading = CLUSTER)]
    namespace: Option<String>,
    /// Period over which a stopping node spreads the closing of its connections, if other nodes can
    /// take them [default: 20s] [range: more than 0s]
    #[arg(long, env = "SWITCHBOARD_DRAIN_WINDOW", value_name = "DURATION", help_heading = CLUSTER)]
    #[arg(value_parser = duration)]
    #[serde(deserialize_with = "optional_duration")]
    drain_window: Option<Duration>,
    /// Database of the call history [default: `sqlite://switchboard.db`]
    /// [range: `sqlite://PATH` or `postgres://…`]
    #[arg(long, env = "SWITCHBOARD_DATABASE_URL", value_name = "URL", help_heading = HISTORY)]
    #[arg(hide_env_values = true)]
    database_url: Option<ServiceUrl>,
    /// Age at which calls are deleted from the history; in Postgres whole months are dropped
    /// [default: none, calls are kept forever] [range: 1day or more]
    #[arg(long, env = "SWITCHBOARD_HISTORY_RETENTION", value_name = "DURATION")]
    #[arg(help_heading = HISTORY, value_parser = duration)]
    #[serde(deserialize_with = "optional_duration")]
    history_retention: Option<Duration>,
    /// Authentication of clients; required if `listen` is not a loopback address
    /// [default: open on loopback]
    #[arg(long, env = "SWITCHBOARD_AUTH", value_enum, value_name = "MODE", help_heading = TOKENS)]
    auth: Option<AuthMode>,
    /// With `auth = jwt`, one of three keys: the shared secret that signs tokens (HS256)
    /// [default: none] [range: 32 bytes or more]
    #[arg(long, env = "SWITCHBOARD_JWT_SECRET", value_name = "SECRET", help_heading = TOKENS)]
    #[arg(hide_env_values = true)]
    jwt_secret: Option<Secret>,
    /// Or the public key of the issuer of tokens [default: none] [range: PEM, or the path of a PEM file]
    #[arg(long, env = "SWITCHBOARD_JWT_PUBLIC_KEY", value_name = "PEM", help_heading = TOKENS)]
    #[arg(hide_env_values = true)]
    jwt_public_key: Option<Secret>,
    /// Or the URL of the issuer's key set (JWKS) [default: none]
    /// [range: `https://…`, or `http://…` on this machine]
    #[arg(long, env = "SWITCHBOARD_JWKS_URL", value_name = "URL", help_heading = TOKENS)]
    #[arg(hide_env_values = true)]
    jwks_url: Option<ServiceUrl>,
    /// Required value of `iss` in tokens [default: none, any issuer] [range: any text]
    #[arg(long, env = "SWITCHBOARD_JWT_ISSUER", value_name = "TEXT", help_heading = TOKENS)]
    jwt_issuer: Option<String>,
    /// Required value, or list element, of `aud` in tokens [default: none, tokens must have no `aud`]
    /// [range: any text]
    #[arg(long, env = "SWITCHBOARD_JWT_AUDIENCE", value_name = "TEXT", help_heading = TOKENS)]
    jwt_audience: Option<String>,
    /// Time until an unanswered call ends [default: 30s] [range: more than 0s]
    #[arg(long, env = "SWITCHBOARD_RING_TIMEOUT", value_name = "DURATION", help_heading = CALLS)]
    #[arg(value_parser = duration)]
    #[serde(deserialize_with = "optional_duration")]
    ring_timeout: Option<Duration>,
    /// Time that a device of a call has to reconnect before the call ends [default: 10s]
    /// [range: more than 0s]
    #[arg(long, env = "SWITCHBOARD_RECONNECT_GRACE", value_name = "DURATION", help_heading = CALLS)]
    #[arg(value_parser = duration)]
    #[serde(deserialize_with = "optional_duration")]
    reconnect_grace: Option<Duration>,
    /// Longest duration of a call [default: 12h] [range: more than 0s]
    #[arg(long, env = "SWITCHBOARD_MAX_CALL_DURATION", value_name = "DURATION", help_heading = CALLS)]
    #[arg(value_parser = duration)]
    #[serde(deserialize_with = "optional_duration")]
    max_call_duration: Option<Duration>,
    /// STUN servers for clients, separated by commas [default: none] [range: `stun:HOST[:PORT]`]
    #[arg(long, env = "SWITCHBOARD_STUN_URLS", value_name = "URLS", help_heading = RELAYS)]
    #[arg(value_delimiter = ',')]
    stun_urls: Option<Vec<String>>,
    /// TURN servers for clients, separated by commas [default: none]
    /// [range: `turn:HOST[:PORT][?transport=udp]`, `turns:…`]
    #[arg(long, env = "SWITCHBOARD_TURN_URLS", value_name = "URLS", help_heading = RELAYS)]
    #[arg(value_delimiter = ',')]
    turn_urls: Option<Vec<String>>,
    /// Secret shared with the TURN servers (coturn's `static-auth-secret`); of several, separated by
    /// commas, the first signs [default: none, required with `turn_urls`] [range: not empty]
    #[arg(long, env = "SWITCHBOARD_TURN_SECRET", value_name = "SECRETS", help_heading = RELAYS)]
    #[arg(hide_env_values = true, value_delimiter = ',')]
    #[serde(deserialize_with = "secret::optional_list")]
    turn_secret: Option<Vec<Secret>>,
    /// Lifetime of TURN credentials [default: 1h] [range: 1m to 24h]
    #[arg(long, env = "SWITCHBOARD_TURN_TTL", value_name = "DURATION", help_heading = RELAYS)]
    #[arg(value_parser = duration)]
    #[serde(deserialize_with = "optional_duration")]
    turn_ttl: Option<Duration>,
    /// Backend that authorizes each new call [default: none, every user may call every user]
    /// [range: `https://…`, or `http://…` on this machine]
    #[arg(long, env = "SWITCHBOARD_AUTHORIZE_URL", value_name = "URL", help_heading = AUTHORIZATION)]
    #[arg(hide_env_values = true)]
    authorize_url: Option<ServiceUrl>,
    /// Bearer token sent to that backend [default: none] [range: visible ASCII]
    #[arg(long, env = "SWITCHBOARD_AUTHORIZE_TOKEN", value_name = "TOKEN")]
    #[arg(help_heading = AUTHORIZATION, hide_env_values = true)]
    authorize_token: Option<Secret>,
    /// Time-out of a request to that backend [default: 1s] [range: 50ms to 10s]
    #[arg(long, env = "SWITCHBOARD_AUTHORIZE_TIMEOUT", value_name = "DURATION")]
    #[arg(help_heading = AUTHORIZATION, value_parser = duration)]
    #[serde(deserialize_with = "optional_duration")]
    authorize_timeout: Option<Duration>,
    /// Time for which a permission is cached [default: 10s] [range: 0s to 1h]
    #[arg(long, env = "SWITCHBOARD_AUTHORIZE_CACHE", value_name = "DURATION")]
    #[arg(help_heading = AUTHORIZATION, value_parser = any_duration)]
    #[serde(deserialize_with = "optional_any_duration")]
    authorize_cache: Option<Duration>,
    /// Decision while that backend does not answer [default: closed]
    #[arg(long, env = "SWITCHBOARD_AUTHORIZE_FAIL", value_enum, value_name = "HOW")]
    #[arg(help_heading = AUTHORIZATION)]
    authorize_fail: Option<Fail>,
    /// Other origins whose pages may use this service, separated by commas; `null` and `file://`, which apps send whose
    /// page is a file, let in more than one app (docs/operations/security.md) [default: none]
    /// [range: `https://app.example.org`, `null`, `file://`]
    #[arg(long, env = "SWITCHBOARD_CORS_ORIGINS", value_name = "ORIGINS", help_heading = LIMITS)]
    #[arg(value_delimiter = ',')]
    cors_origins: Option<Vec<String>>,
    /// Host names of this service, separated by commas. In `open` mode, and on the admin listener, requests for other
    /// names are refused [default: none, localhost, addresses and names without a dot]
    /// [range: names such as `calls.example.org` or `*.example.org`]
    #[arg(long, env = "SWITCHBOARD_HOSTS", value_name = "NAMES", help_heading = LIMITS)]
    #[arg(value_delimiter = ',')]
    hosts: Option<Vec<String>>,
    /// Changes to the limits, separated by commas, such as `events=200/4s,sockets=5000`; `off` alone
    /// removes all that can be removed [default: none, all limits are on]
    /// [range: the names in docs/reference/limits.md]
    #[arg(long, env = "SWITCHBOARD_LIMITS", value_name = "LIMITS", help_heading = LIMITS)]
    #[arg(value_delimiter = ',')]
    limits: Option<Vec<String>>,
    /// Proxies whose headers for the client's address and the requested host are trusted, separated by commas; or the
    /// number of proxies in a row, where no client can connect directly [default: none]
    /// [range: addresses and networks such as `10.1.2.3/32`; or `hops:1`]
    #[arg(long, env = "SWITCHBOARD_TRUSTED_PROXIES", value_name = "PROXIES", help_heading = LIMITS)]
    #[arg(value_delimiter = ',')]
    trusted_proxies: Option<Vec<String>>,
    /// Header in which those proxies send the client's address; with the first, `X-Forwarded-Host` has the host
    /// [default: x-forwarded-for]
    #[arg(long, env = "SWITCHBOARD_FORWARDED_HEADER", value_enum, value_name = "HEADER")]
    #[arg(help_heading = LIMITS)]
    forwarded_header: Option<ForwardedHeader>,
    /// Format of the log [default: pretty]
    #[arg(long, env = "SWITCHBOARD_LOG_FORMAT", value_enum, value_name = "FORMAT", help_heading = LOGS)]
    log_format: Option<logs::Format>,
    /// Form of user ids in the log and in traces [default: plain]
    #[arg(long, env = "SWITCHBOARD_LOG_USERS", value_enum, value_name = "HOW", help_heading = LOGS)]
    log_users: Option<logs::Users>,
    /// Key of the hashes of `log_users = hashed`; set the same on all nodes to compare their logs
    /// [default: none, random for each process] [range: any text]
    #[arg(long, env = "SWITCHBOARD_LOG_USERS_KEY", value_name = "KEY", help_heading = LOGS)]
    #[arg(hide_env_values = true)]
    log_users_key: Option<String>,
}

/// The mode of authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// No authentication: any client may act as any user; for development only
    Open,
    /// Each client presents a signed token (JWT)
    Jwt,
}

/// Authentication, with its keys.
#[derive(Debug, Clone)]
pub enum Auth {
    Open,
    Jwt(Trust),
}

impl Auth {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Jwt(_) => "jwt",
        }
    }
}

/// The effective settings.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    pub logs: logs::Settings,
    /// None: a cluster of one node, inside this process.
    pub redis_url: Option<ServiceUrl>,
    pub namespace: String,
    pub database_url: ServiceUrl,
    /// Whether to bring the database's schema up to date before serving.
    pub migrate: bool,
    /// None: for ever.
    pub history_retention: Option<Duration>,
    pub auth: Auth,
    pub rules: Rules,
    pub drain_window: Duration,
    pub ice: ice::Settings,
    /// None: everybody may call everybody.
    pub authorize: Option<authorize::Settings>,
    pub cors_origins: Vec<Origin>,
    /// The names that may be asked for, beside those that cannot be a stranger's.
    pub hosts: Vec<Host>,
    pub limits: limits::Settings,
    pub proxies: Proxies,
    /// None: no traces.
    pub traces: Option<telemetry::Settings>,
}

/// A setting with an invalid value. Displays the setting and the permitted values.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Settings {
    fn or(self, next: Self) -> Self {
        Self {
            listen: self.listen.or(next.listen),
            admin_listen: self.admin_listen.or(next.admin_listen),
            log_format: self.log_format.or(next.log_format),
            log_users: self.log_users.or(next.log_users),
            log_users_key: self.log_users_key.or(next.log_users_key),
            redis_url: self.redis_url.or(next.redis_url),
            namespace: self.namespace.or(next.namespace),
            database_url: self.database_url.or(next.database_url),
            history_retention: self.history_retention.or(next.history_retention),
            auth: self.auth.or(next.auth),
            jwt_secret: self.jwt_secret.or(next.jwt_secret),
            jwt_public_key: self.jwt_public_key.or(next.jwt_public_key),
            jwks_url: self.jwks_url.or(next.jwks_url),
            jwt_issuer: self.jwt_issuer.or(next.jwt_issuer),
            jwt_audience: self.jwt_audience.or(next.jwt_audience),
            ring_timeout: self.ring_timeout.or(next.ring_timeout),
            reconnect_grace: self.reconnect_grace.or(next.reconnect_grace),
            max_call_duration: self.max_call_duration.or(next.max_call_duration),
            drain_window: self.drain_window.or(next.drain_window),
            stun_urls: self.stun_urls.or(next.stun_urls),
            turn_urls: self.turn_urls.or(next.turn_urls),
            turn_secret: self.turn_secret.or(next.turn_secret),
            turn_ttl: self.turn_ttl.or(next.turn_ttl),
            authorize_url: self.authorize_url.or(next.authorize_url),
            authorize_token: self.authorize_token.or(next.authorize_token),
            authorize_timeout: self.authorize_timeout.or(next.authorize_timeout),
            authorize_cache: self.authorize_cache.or(next.authorize_cache),
            authorize_fail: self.authorize_fail.or(next.authorize_fail),
            cors_origins: self.cors_origins.or(next.cors_origins),
            hosts: self.hosts.or(next.hosts),
            limits: self.limits.or(next.limits),
            trusted_proxies: self.trusted_proxies.or(next.trusted_proxies),
            forwarded_header: self.forwarded_header.or(next.forwarded_header),
        }
    }

    /// Refuses secrets that everybody can read in an example.
    fn refuse_examples(&self) -> Result<(), ConfigError> {
        let is_known = |secret: &Option<Secret>| secret.as_ref().is_some_and(Secret::is_of_example);
        let is_in = |url: &Option<ServiceUrl>| url.as_ref().is_some_and(ServiceUrl::is_of_example);
        let turn = self.turn_secret.as_deref().unwrap_or_default();
        let known = [
            ("jwt_secret", is_known(&self.jwt_secret)),
            ("turn_secret", turn.iter().any(Secret::is_of_example)),
            ("authorize_token", is_known(&self.authorize_token)),
            ("log_users_key", is_known(&self.log_users_key.clone().map(Secret::from))),
            ("redis_url", is_in(&self.redis_url)),
            ("database_url", is_in(&self.database_url)),
        ];
        match known.into_iter().find(|(_, is_known)| *is_known) {
            Some((name, _)) => Err(ConfigError(format!(
                "{name}: this secret stands in an example, so everybody knows it: make one with deploy/secrets.sh or \
                 `openssl rand -hex 32`"
            ))),
            None => Ok(()),
        }
    }

    fn resolve(mut self) -> Result<Config, ConfigError> {
        self.refuse_examples()?;
        let listen = self.listen.unwrap_or((Ipv4Addr::LOCALHOST, 3000).into());
        let auth = self.take_auth(listen)?;
        let Ok(default_database) = "sqlite://switchboard.db".parse();
        let database_url = self.database_url.unwrap_or(default_database);
        let url = database_url.expose();
        let is_file = url.starts_with("sqlite://") && !url.contains(":memory:");
        if !is_file && !is_postgres(&database_url) {
            let expected = "database_url: expected sqlite://PATH of a file, or postgres://…";
            return Err(ConfigError(expected.to_owned()));
        }
        if self.history_retention.is_some_and(|retention| retention < MIN_RETENTION) {
            let expected = "history_retention: expected a day or more";
            return Err(ConfigError(expected.to_owned()));
        }
        let namespace = self.namespace.unwrap_or("default".to_owned());
        if namespace.is_empty()
            || !namespace.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            let expected = "namespace: expected letters, digits and hyphens";
            return Err(ConfigError(expected.to_owned()));
        }
        let ice = media::ice(self.stun_urls, self.turn_urls, self.turn_secret, self.turn_ttl)?;
        let authorize = gate::authorize(
            self.authorize_url,
            self.authorize_token,
            self.authorize_timeout,
            self.authorize_cache,
            self.authorize_fail,
        )?;
        let origin = |text: &String| {
            let refuse = |what| ConfigError(format!("cors_origins: expected {what}, not {text:?}"));
            text.parse().map_err(refuse)
        };
        let cors_origins = self.cors_origins.unwrap_or_default();
        let cors_origins = cors_origins.iter().map(origin).collect::<Result<_, _>>()?;
        let host = |text: &String| {
            let refuse = |what| ConfigError(format!("hosts: expected {what}, not {text:?}"));
            text.trim().parse().map_err(refuse)
        };
        let hosts = self.hosts.unwrap_or_default().iter().map(host).collect::<Result<_, _>>()?;
        let limits = limits::Settings::with(&self.limits.unwrap_or_default());
        let limits = limits.map_err(|error| ConfigError(format!("limits: {error}")))?;
        let trusted = Trusted::read(&self.trusted_proxies.unwrap_or_default());
        let proxies = Proxies {
            trusted: trusted.map_err(|error| ConfigError(format!("trusted_proxies: {error}")))?,
            header: self.forwarded_header.unwrap_or_default(),
        };
        Ok(Config {
            listen,
            admin_listen: self.admin_listen.unwrap_or((Ipv4Addr::LOCALHOST, 9300).into()),
            logs: logs::Settings {
                format: self.log_format.unwrap_or_default(),
                users: self.log_users.unwrap_or_default(),
                users_key: self.log_users_key,
            },
            redis_url: self.redis_url,
            namespace,
            database_url,
            migrate: false,
            history_retention: self.history_retention,
            auth,
            rules: Rules {
                ring_timeout: self.ring_timeout.unwrap_or(Duration::from_secs(30)),
                reconnect_grace: self.reconnect_grace.unwrap_or(Duration::from_secs(10)),
                max_call_duration: self.max_call_duration.unwrap_or(Duration::from_hours(12)),
            },
            drain_window: self.drain_window.unwrap_or(Duration::from_secs(20)),
            ice,
            authorize,
            cors_origins,
            hosts,
            limits,
            proxies,
            traces: None,
        })
    }
}

impl Config {
    /// The settings as a TOML file that gives the same, but for passwords.
    pub fn to_toml(&self) -> String {
        let Self {
            listen,
            admin_listen,
            logs,
            redis_url,
            namespace,
            database_url,
            migrate: _,
            history_retention,
            auth,
            rules,
            drain_window,
            ice,
            authorize,
            cors_origins,
            hosts,
            limits,
            proxies: Proxies { trusted, header },
            traces,
        } = self;
        let mut toml = String::new();
        let mut line = |name: &str, value: toml::Value| {
            writeln!(toml, "{name} = {value}").expect("a string takes all");
        };
        line("listen", listen.to_string().into());
        line("admin_listen", admin_listen.to_string().into());
        line("log_format", logs.format.as_str().into());
        line("log_users", logs.users.as_str().into());
        if logs.users_key.is_some() {
            line("log_users_key", "***".into());
        }
        if let Some(url) = redis_url {
            line("redis_url", url.to_string().into());
        }
        line("namespace", namespace.as_str().into());
        line("database_url", database_url.to_string().into());
        if let Some(retention) = history_retention {
            line("history_retention", humantime::format_duration(*retention).to_string().into());
        }
        match auth {
            Auth::Open => line("auth", "open".into()),
            Auth::Jwt(Trust { keys, issuer, audience }) => {
                line("auth", "jwt".into());
                match keys {
                    KeySource::Secret(secret) => line("jwt_secret", secret.to_string().into()),
                    KeySource::PublicKey(key) => {
                        line("jwt_public_key", shown_public_key(key).into());
                    }
                    KeySource::KeySet(url) => line("jwks_url", url.to_string().into()),
                }
                for (name, value) in [("jwt_issuer", issuer), ("jwt_audience", audience)] {
                    if let Some(value) = value {
                        line(name, value.as_str().into());
                    }
                }
            }
        }
        for (name, period) in [
            ("ring_timeout", rules.ring_timeout),
            ("reconnect_grace", rules.reconnect_grace),
            ("max_call_duration", rules.max_call_duration),
            ("drain_window", *drain_window),
        ] {
            line(name, humantime::format_duration(period).to_string().into());
        }
        line("stun_urls", ice.stun_urls.clone().into());
        if let Some(turn) = &ice.turn {
            line("turn_urls", turn.urls.clone().into());
            let secrets = std::iter::once(&turn.secret).chain(&turn.other_secrets);
            line("turn_secret", secrets.map(Secret::to_string).collect::<Vec<_>>().into());
            line("turn_ttl", humantime::format_duration(turn.ttl).to_string().into());
        }
        if let Some(authorize) = authorize {
            line("authorize_url", authorize.url.to_string().into());
            if let Some(token) = &authorize.token {
                line("authorize_token", token.to_string().into());
            }
            for (name, period) in
                [("authorize_timeout", authorize.timeout), ("authorize_cache", authorize.cache)]
            {
                line(name, humantime::format_duration(period).to_string().into());
            }
            let fail = match authorize.fail {
                Fail::Open => "open",
                Fail::Closed => "closed",
            };
            line("authorize_fail", fail.into());
        }
        let origins: Vec<_> = cors_origins.iter().map(Origin::to_string).collect();
        line("cors_origins", origins.into());
        line("hosts", hosts.iter().map(Host::to_string).collect::<Vec<_>>().into());
        line("limits", limits.list().into());
        line("trusted_proxies", trusted.list().into());
        line("forwarded_header", header.as_str().into());
        if let Some(traces) = traces {
            toml += &traces::comments(traces);
        }
        toml
    }
}

/// Whether this is the address of a Postgres.
pub fn is_postgres(url: &ServiceUrl) -> bool {
    let url = url.expose();
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// An address to listen on. Names are not looked up: they may mean several addresses, or others tomorrow.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an IP address and a port, such as 127.0.0.1:3000 or [::1]:3000, and no host name"
            .to_owned()
    })
}

fn optional_address<'de, D: Deserializer<'de>>(value: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(value)?;
    address(&text).map(Some).map_err(serde::de::Error::custom)
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = any_duration(text)?;
    if duration.is_zero() { Err("expected more than 0s".to_owned()) } else { Ok(duration) }
}

fn any_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a duration such as 500ms, 30s, 10m or 12h".to_owned())
}

fn optional_duration<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(value)?;
    duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn optional_any_duration<'de, D: Deserializer<'de>>(
    value: D,
) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(value)?;
    any_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn resolve(toml: &str) -> Result<Config, ConfigError> {
        toml::from_str::<Settings>(toml).unwrap().resolve()
    }

    #[test]
    fn the_default_serves_this_machine_alone() {
        let config = Settings::default().resolve().unwrap();
        assert!(config.listen.ip().is_loopback());
        assert_eq!(config.database_url.expose(), "sqlite://switchboard.db");
        assert_eq!(config.rules.ring_timeout, Duration::from_secs(30));
    }

    #[test]
    fn listening_beyond_loopback_needs_the_auth_mode_said() {
        let error = resolve("listen = '0.0.0.0:3000'").unwrap_err();
        assert!(error.to_string().contains("SWITCHBOARD_AUTH"), "{error}");
        assert!(resolve("listen = '0.0.0.0:3000'\nauth = 'open'").is_ok());
    }

    #[test]
    fn secrets_of_examples_are_refused() {
        let long = "change-me-jwt-32-bytes-or-more-please";
        for (settings, name) in [
            (format!("auth = 'jwt'\njwt_secret = '{long}'"), "jwt_secret"),
            (
                "turn_urls = ['turn:a']\nturn_secret = 'good,change-me-turn'".to_owned(),
                "turn_secret",
            ),
            ("redis_url = 'redis://:change-me-redis@redis:6379'".to_owned(), "redis_url"),
            ("database_url = 'postgres://s:change-me-postgres@db/s'".to_owned(), "database_url"),
            ("database_url = 'postgres://db/s?password=change-me-now'".to_owned(), "database_url"),
            (
                "authorize_url = 'https://a'\nauthorize_token = 'change-me'".to_owned(),
                "authorize_token",
            ),
            ("log_users_key = 'change-me-key'".to_owned(), "log_users_key"),
        ] {
            let error = resolve(&settings).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains("secrets.sh"), "{error}");
            assert!(!error.contains("change-me"), "{error}");
        }
        assert!(resolve("redis_url = 'redis://:exchange-men@redis:6379'").is_ok());
    }

    #[test]
    fn a_host_name_is_no_address_to_listen_on() {
        for name in ["listen", "admin_listen"] {
            let error =
                toml::from_str::<Settings>(&format!("{name} = 'localhost:3005'")).unwrap_err();
            assert!(error.message().contains("expected an IP address and a port"), "{error}");
        }
        assert_eq!(address("[::1]:3005").unwrap().port(), 3005);
    }

    #[test]
    fn an_earlier_source_wins() {
        let flags: Settings = toml::from_str("ring_timeout = '5s'").unwrap();
        let file: Settings = toml::from_str("ring_timeout = '7s'\nreconnect_grace = '2s'").unwrap();
        let rules = flags.or(file).resolve().unwrap().rules;
        assert_eq!(rules.ring_timeout, Duration::from_secs(5));
        assert_eq!(rules.reconnect_grace, Duration::from_secs(2));
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let settings = "stun_urls = ['stun:a', 'stun:b']\nring_timeout = '1m 30s'\n\
                        database_url = 'postgres://db/calls'\nhistory_retention = '90days'\n\
                        turn_urls = ['turn:a']\nturn_secret = 'b,c'\nturn_ttl = '2h'\n\
                        authorize_url = 'https://a/b'\nauthorize_token = 'c'\nauthorize_cache = '0s'\n\
                        cors_origins = ['https://a', 'http://b:1']\n\
                        hosts = ['calls.example.org', '*.svc']\n\
                        limits = ['off', 'sockets=7']\nforwarded_header = 'forwarded'\n\
                        trusted_proxies = ['10.0.0.0/8', '::1']";
        let config = resolve(settings).unwrap();
        let printed = config.to_toml();
        assert_eq!(resolve(&printed).unwrap().to_toml(), printed);
        assert!(printed.contains("turn_secret = [\"***\", \"***\"]"), "{printed}");
    }
}
