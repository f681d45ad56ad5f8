//! Redis: connection, version, policy, latency, a script, a channel, the clock.

use std::time::Duration;

use fred::{
    clients::SubscriberClient,
    prelude::*,
    types::{InfoKind, RespVersion},
};
use tokio::time::{Instant, timeout};

use super::{Finding, STEP_TIMEOUT, compare_clock};
use crate::{
    cluster::{MIN_REDIS_VERSION, has_known_scheme},
    config::Config,
    time::{Clock, Timestamp},
};

const PART: &str = "redis";
/// Measurements of the latency. The median counts.
const PINGS: usize = 9;
/// Latency beyond which calls are noticeably slow: an answer takes about ten round trips.
const MAX_LATENCY: Duration = Duration::from_millis(10);

pub async fn check(config: &Config) -> Vec<Finding> {
    let Some(url) = &config.redis_url else {
        return vec![Finding::fine(PART, "none: a single node")];
    };
    if !has_known_scheme(url.expose()) {
        let fix = "begin SWITCHBOARD_REDIS_URL with redis:// or rediss://";
        return vec![Finding::wrong(PART, format!("{url} is not the URL of a Redis"), fix)];
    }
    let builder = match fred::types::config::Config::from_url(url.expose()) {
        Ok(mut settings) => {
            settings.version = RespVersion::RESP3;
            let mut builder = Builder::from_config(settings);
            builder.with_connection_config(|connection| {
                connection.connection_timeout = STEP_TIMEOUT;
                connection.internal_command_timeout = STEP_TIMEOUT;
            });
            builder.with_performance_config(|performance| {
                performance.default_command_timeout = STEP_TIMEOUT;
            });
            builder
        }
        Err(error) => {
            let fix = "write SWITCHBOARD_REDIS_URL as in docs/guides/redis.md";
            return vec![Finding::wrong(PART, format!("{url}: {error}"), fix)];
        }
    };
    let connected = async {
        let client = builder.build()?;
        client.init().await?;
        Ok::<_, Error>(client)
    };
    let client = match connected.await {
        Ok(client) => client,
        Err(error) => return vec![Finding::wrong(PART, format!("{url}: {error}"), remedy(&error))],
    };
    let mut findings = Vec::new();
    let mut add = |found: Result<Vec<Finding>, Error>| match found {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::wrong(PART, error.to_string(), remedy(&error))),
    };
    add(server(&client).await);
    add(latency(&client).await);
    add(script(&client, &config.namespace).await);
    add(channel(&builder, &client, &config.namespace).await);
    let _ = client.quit().await;
    findings
}

/// What to do about an error.
fn remedy(error: &Error) -> &'static str {
    let details = error.details();
    if details.contains("InvalidCertificate(") {
        return "SSL_CERT_FILE can name a file with the authority that signed its certificate";
    }
    if details.starts_with("NOPERM") {
        return "grant the user the rights in docs/guides/redis.md";
    }
    match error.kind() {
        ErrorKind::Auth => "compare user and password in SWITCHBOARD_REDIS_URL with Redis' own",
        ErrorKind::Tls => {
            "see that Redis expects TLS, and that this machine has authorities to trust"
        }
        _ => {
            "see that it runs, and that this machine may reach the address in SWITCHBOARD_REDIS_URL"
        }
    }
}

/// Version, role and policy.
async fn server(client: &Client) -> Result<Vec<Finding>, Error> {
    let server: String = client.info(Some(InfoKind::Server)).await?;
    let version = field(&server, "redis_version").unwrap_or("of an unknown version");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let version = if major.is_some_and(|major| major < MIN_REDIS_VERSION) {
        let fix =
            format!("upgrade to {MIN_REDIS_VERSION} or later: older ones have no sharded channels");
        Finding::wrong(PART, format!("version {version}"), fix)
    } else {
        Finding::fine(PART, format!("version {version}"))
    };
    let role: String = client.info(Some(InfoKind::Replication)).await?;
    let role = (field(&role, "role") == Some("slave")).then(|| {
        let fix = "let SWITCHBOARD_REDIS_URL name the primary, or redis-sentinel:// the Sentinels";
        Finding::wrong(PART, "it is a replica, which takes no writes", fix)
    });
    let memory: String = client.info(Some(InfoKind::Memory)).await?;
    let policy = match field(&memory, "maxmemory_policy").unwrap_or_default() {
        "" | "noeviction" => Finding::fine(PART, "evicts no keys"),
        policy => Finding::wrong(
            PART,
            format!("maxmemory-policy is {policy}: live calls may be evicted"),
            "set maxmemory-policy to noeviction",
        ),
    };
    Ok([version, policy].into_iter().chain(role).collect())
}

async fn latency(client: &Client) -> Result<Vec<Finding>, Error> {
    let mut took = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let asked = Instant::now();
        client.ping::<()>(None).await?;
        took.push(asked.elapsed());
    }
    took.sort();
    let median = took[PINGS / 2];
    let what = format!("a round trip takes {median:.1?}");
    Ok(vec![if median <= MAX_LATENCY {
        Finding::fine(PART, what)
    } else {
        Finding::doubtful(
            PART,
            what,
            "place the nodes near Redis: a call waits for several of them",
        )
    }])
}

/// Whether scripts may run on the cluster's keys, and the time that they read.
async fn script(client: &Client, namespace: &str) -> Result<Vec<Finding>, Error> {
    let before = Clock::System.now();
    let key = format!("sb:{{{namespace}}}:doctor");
    let none: Vec<String> = Vec::new();
    let time: Vec<u64> = client.eval("return redis.call('TIME')", vec![key], none).await?;
    let ms = time.first().map_or(0, |s| s * 1_000) + time.get(1).map_or(0, |us| us / 1_000);
    Ok(vec![compare_clock(PART, Timestamp::from_millis(ms), before)])
}

/// Whether a message arrives, on a channel as nodes have them.
async fn channel(
    builder: &Builder,
    client: &Client,
    namespace: &str,
) -> Result<Vec<Finding>, Error> {
    let subscriber: SubscriberClient = builder.build_subscriber_client()?;
    subscriber.init().await?;
    let channel = format!("sb:n:{namespace}:doctor-{}", uuid::Uuid::new_v4());
    let mut messages = subscriber.message_rx();
    subscriber.ssubscribe(&channel).await?;
    let sent = Instant::now();
    client.spublish::<(), _, _>(&channel, "are you there?").await?;
    let arrived = timeout(STEP_TIMEOUT, messages.recv()).await;
    let took = sent.elapsed();
    let _ = subscriber.quit().await;
    Ok(vec![match arrived {
        Ok(Ok(_)) => {
            Finding::fine(PART, format!("a message to a channel arrives after {took:.1?}"))
        }
        _ => Finding::wrong(
            PART,
            format!("a message to a channel does not arrive within {STEP_TIMEOUT:?}"),
            "see that no proxy in front of Redis drops SSUBSCRIBE and SPUBLISH",
        ),
    }])
}

/// A field of the reply to INFO.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
}
