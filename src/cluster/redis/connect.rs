//! The connections to Redis: URL, TLS, requirements on the server, reconnection.

use std::time::Duration;

use fred::{
    clients::SubscriberClient,
    prelude::*,
    rustls_native_certs::load_native_certs,
    types::{ConnectHandle, InfoKind, RespVersion},
};
use tracing::{debug, warn};

use crate::health::{Health, Part};

/// The most attempts of a command whose connection breaks.
const COMMAND_ATTEMPTS: u32 = 2;
/// The time-out of a command.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(1_500);
/// The oldest major version that has sharded channels.
pub const MIN_MAJOR: u32 = 7;
const RETRY_CONNECT: Duration = Duration::from_millis(500);

/// The connections of one node. Redis answers a connection's commands in order, so commands that
/// must not wait for others have a connection of their own.
pub struct Connections {
    /// For records, claims, sockets, deadlines and messages to other nodes.
    pub commands: Client,
    /// For the heartbeat only.
    pub lease: Client,
    /// For presence: subscriptions and queries, of which clients may send many at a time.
    pub presence: Client,
    /// For messages of other nodes.
    pub messages: SubscriberClient,
}

pub async fn connect(url: &str, health: &Health) -> Result<Connections, ConnectError> {
    if !has_known_scheme(url) {
        return Err(ConnectError::Scheme);
    }
    let mut config = Config::from_url(url).map_err(unusable)?;
    config.version = RespVersion::RESP3;
    let mut builder = Builder::from_config(config);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = COMMAND_TIMEOUT;
            connection.internal_command_timeout = COMMAND_TIMEOUT;
            connection.max_command_attempts = COMMAND_ATTEMPTS;
            connection.tcp.nodelay = Some(true);
            connection.unresponsive.max_timeout = Some(COMMAND_TIMEOUT);
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = COMMAND_TIMEOUT;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 500, 2));
    let commands = connected(|| builder.build(), health).await?;
    let lease = connected(|| builder.build(), health).await?;
    let presence = connected(|| builder.build(), health).await?;
    // The library allocates this room for each kind of event in advance: 45 MiB. Only messages come
    // in such numbers.
    builder.with_performance_config(|performance| {
        performance.broadcast_channel_capacity = 65_536;
    });
    let messages = connected(|| builder.build_subscriber_client(), health).await?;
    check(&commands).await?;
    loaded(&commands, health).await?;
    health.well(Part::Redis);
    Ok(Connections { commands, lease, presence, messages })
}

/// The library takes any other scheme for `redis`, without TLS.
pub fn has_known_scheme(url: &str) -> bool {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    let (server, kind) = scheme.split_once('-').unwrap_or((scheme, "cluster"));
    matches!(server, "redis" | "rediss" | "valkey" | "valkeys")
        && matches!(kind, "cluster" | "sentinel")
}

/// The URL or the certificate authorities are unusable.
fn unusable(error: Error) -> ConnectError {
    let unread = || load_native_certs().errors.first().map(ToString::to_string);
    match error.kind() {
        ErrorKind::Tls => unread().map_or(ConnectError::Url(error), ConnectError::Authorities),
        _ => ConnectError::Url(error),
    }
}

/// Connects, and retries for as long as Redis is down. Returns only errors that waiting cannot fix.
async fn connected<C: ClientLike + 'static>(
    build: impl Fn() -> Result<C, Error>,
    health: &Health,
) -> Result<C, ConnectError> {
    let mut is_told = false;
    loop {
        let client = build().map_err(ConnectError::Url)?;
        let error = match client.init().await {
            Ok(task) => {
                tokio::spawn(keep_connected(client.clone(), task));
                return Ok(client);
            }
            Err(error) => error,
        };
        if let Some(why) = distrust(&error) {
            return Err(ConnectError::Untrusted(why.to_owned()));
        }
        match error.kind() {
            ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Canceled => {}
            ErrorKind::Sentinel | ErrorKind::Cluster => {}
            _ => return Err(ConnectError::Refused(error)),
        }
        health.trouble(Part::Redis, &error);
        if !std::mem::replace(&mut is_told, true) {
            warn!(%error, "Redis is not reachable: this node waits for it and serves nobody yet");
        }
        tokio::time::sleep(RETRY_CONNECT).await;
    }
}

/// Restarts the library's task whenever it ends. The library reconnects by itself, but some errors
/// end its task, for one a command that is redirected twice while a slot moves: then none of this
/// client's commands would ever get a reply.
async fn keep_connected<C: ClientLike>(client: C, mut task: ConnectHandle) {
    loop {
        match task.await {
            Ok(Err(error)) => {
                warn!(%error, "the connection to Redis has failed: it is opened again");
            }
            Ok(Ok(())) | Err(_) => warn!("the connection to Redis has ended: it is opened again"),
        }
        task = loop {
            match client.init().await {
                Ok(task) => break task,
                Err(error) => debug!(%error, "Redis is not reachable yet"),
            }
            tokio::time::sleep(RETRY_CONNECT).await;
        };
    }
}

/// The reason why the server's certificate is not trusted, if that is the error. The library
/// reports it as text only.
fn distrust(error: &Error) -> Option<&str> {
    let (_, why) = error.details().split_once("InvalidCertificate(")?;
    why.split(|c: char| !c.is_ascii_alphanumeric()).next()
}

/// Refuses a Redis that is too old, and warns of an eviction policy that may lose state.
async fn check(client: &Client) -> Result<(), ConnectError> {
    let server: String =
        client.info(Some(InfoKind::Server)).await.map_err(ConnectError::Refused)?;
    let version = field(&server, "redis_version").unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < MIN_MAJOR) {
        return Err(ConnectError::TooOld(version.to_owned()));
    }
    let memory: String =
        client.info(Some(InfoKind::Memory)).await.map_err(ConnectError::Refused)?;
    let policy = field(&memory, "maxmemory_policy").unwrap_or_default();
    if !matches!(policy, "" | "noeviction") {
        warn!(%policy, "Redis may evict keys: set maxmemory-policy to noeviction");
    }
    Ok(())
}

/// Waits until Redis has loaded its data: until then it refuses commands.
async fn loaded(client: &Client, health: &Health) -> Result<(), ConnectError> {
    let mut is_told = false;
    loop {
        let state: String =
            client.info(Some(InfoKind::Persistence)).await.map_err(ConnectError::Refused)?;
        if field(&state, "loading") != Some("1") {
            return Ok(());
        }
        health.trouble(Part::Redis, "it is still loading");
        if !std::mem::replace(&mut is_told, true) {
            warn!("Redis is still loading: this node waits for it and serves nobody yet");
        }
        tokio::time::sleep(RETRY_CONNECT).await;
    }
}

/// A field of the reply to INFO.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
}

/// The reason why a node cannot join, in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("its URL must begin with redis:// or rediss://, or these with -cluster or -sentinel")]
    Scheme,
    #[error("{0}")]
    Url(Error),
    #[error("{0}")]
    Refused(Error),
    #[error("the authorities that TLS is to trust cannot be read: {0}")]
    Authorities(String),
    #[error(
        "its certificate is not trusted ({0}); SSL_CERT_FILE can name a file with the authority \
         that signed it"
    )]
    Untrusted(String),
    #[error("it is version {0}, and 7 or later is needed")]
    TooOld(String),
}
