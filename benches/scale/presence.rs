//! Measures the cost of subscribing to contacts and of receiving their updates: the units from
//! which `benches/capacity.mjs` extrapolates.

use std::{fs, net::Ipv4Addr, time::Duration};

use anyhow::Result;
use serde_json::json;

use crate::{
    processes::{Node, Redis, Settings},
    socket::{PATIENCE, Socket},
    table::{Results, Row},
};

pub const TABLE: &str = "presence";
const UNITS: &str = "benches/scale/presence.json";
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 99, 0, 3);
/// The number of watching sockets on each of two nodes.
const WATCHERS: u32 = 50;
const CONTACTS: u32 = 50;
/// The number of users who come online, each watched by all sockets.
const CHANGES: u32 = 200;
const SETTLE: Duration = Duration::from_secs(2);

pub fn names() -> Vec<String> {
    ["a contact that is watched", "a change that one watcher hears"].map(str::to_owned).into()
}

struct Costs {
    node_us: f64,
    redis_us: f64,
    node_bytes: f64,
    redis_bytes: f64,
}

#[expect(clippy::too_many_lines, reason = "one measurement after the other, top to bottom")]
pub async fn run(results: &mut Results) -> Result<()> {
    let redis = Redis::start().await?;
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let limits = Some("off".to_owned());
        let settings = Settings { redis: Some(redis.url()), limits, ..Settings::default() };
        nodes.push(Node::start(settings).await?);
    }
    // At the same time, because a socket that waits for the others answers no pings.
    let connecting = (0..WATCHERS * 2).map(|number| {
        let url = nodes[number as usize % 2].url.clone();
        async move { Socket::connect(&url, &format!("fan-{number}"), SOURCE).await }
    });
    let mut sockets = futures_util::future::try_join_all(connecting).await?;
    tokio::time::sleep(SETTLE).await;
    let idle = used(&redis, &nodes).await?;
    tokio::time::sleep(SETTLE).await;
    let first = used(&redis, &nodes).await?;
    // Subtracts the periodic work of nodes.
    let by_clock = |costs: &Costs, seconds: f64| {
        let each = seconds / SETTLE.as_secs_f64();
        (costs.node_us * each, costs.redis_us * each)
    };
    let clock = difference(&first, &idle);

    let began = std::time::Instant::now();
    for (number, socket) in sockets.iter_mut().enumerate() {
        // No two sockets watch the same users.
        let ids: Vec<_> = (0..CONTACTS).map(|nth| format!(r#""w-{number}-{nth}""#)).collect();
        let payload = format!(r#"{{"userIds":[{}]}}"#, ids.join(","));
        socket.must("presence:subscribe", &payload).await?;
    }
    let elapsed = began.elapsed().as_secs_f64();
    let second = used(&redis, &nodes).await?;
    let watches = f64::from(WATCHERS * 2 * CONTACTS);
    let (node_clock, redis_clock) = by_clock(&clock, elapsed);
    let spent = difference(&second, &first);
    let watched = Costs {
        node_us: (spent.node_us - node_clock).max(0.0) / watches,
        redis_us: (spent.redis_us - redis_clock).max(0.0) / watches,
        node_bytes: spent.node_bytes.max(0.0) / watches,
        redis_bytes: spent.redis_bytes.max(0.0) / watches,
    };

    let stars: Vec<_> = (0..CHANGES).map(|number| format!(r#""star-{number}""#)).collect();
    let payload = format!(r#"{{"userIds":[{}]}}"#, stars.join(","));
    for socket in &mut sockets {
        socket.must("presence:subscribe", &payload).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let hearing: Vec<_> = sockets
        .into_iter()
        .map(|mut socket| {
            tokio::spawn(async move {
                let mut heard = 0;
                while heard < CHANGES {
                    let next = tokio::time::timeout(PATIENCE * 6, socket.client.packet()).await;
                    let Ok(Ok(packet)) = next else { break };
                    heard += u32::from(
                        packet.contains("presence:update") && packet.contains(r#""online""#),
                    );
                }
                heard
            })
        })
        .collect();
    let third = used(&redis, &nodes).await?;
    let began = std::time::Instant::now();
    let mut stay = Vec::new();
    for number in 0..CHANGES {
        let node = &nodes[number as usize % 2];
        stay.push(Socket::connect(&node.url, &format!("star-{number}"), SOURCE).await?);
    }
    let mut heard = 0;
    for task in hearing {
        heard += task.await?;
    }
    let elapsed = began.elapsed().as_secs_f64();
    let fourth = used(&redis, &nodes).await?;
    let (node_clock, redis_clock) = by_clock(&clock, elapsed);
    let spent = difference(&fourth, &third);
    // Contains the cost of the connections themselves, which `make bench` measures separately.
    let told = Costs {
        node_us: (spent.node_us - node_clock).max(0.0) / f64::from(heard.max(1)),
        redis_us: (spent.redis_us - redis_clock).max(0.0) / f64::from(heard.max(1)),
        node_bytes: 0.0,
        redis_bytes: 0.0,
    };

    let mut row = Row::default();
    row.add("node, µs", format!("{:.1}", watched.node_us));
    row.add("Redis, µs", format!("{:.1}", watched.redis_us));
    row.add("node, bytes", format!("{:.0}", watched.node_bytes));
    row.add("Redis, bytes", format!("{:.0}", watched.redis_bytes));
    let [contact, change] = [0, 1].map(|nth| names().swap_remove(nth));
    results.put(TABLE, &contact, row)?;
    let mut row = Row::default();
    row.add("node, µs", format!("{:.1}", told.node_us));
    row.add("Redis, µs", format!("{:.2}", told.redis_us));
    row.ask(
        "heard",
        format!("{heard} of {}", CHANGES * WATCHERS * 2),
        heard == CHANGES * WATCHERS * 2,
    );
    results.put(TABLE, &change, row)?;
    let round = |value: f64| (value * 100.0).round() / 100.0;
    let units = json!({
        "watch_node_us": round(watched.node_us),
        "watch_redis_us": round(watched.redis_us),
        "watch_node_bytes": watched.node_bytes.round(),
        "watch_redis_bytes": watched.redis_bytes.round(),
        "update_node_us": round(told.node_us),
        "update_redis_us": round(told.redis_us),
    });
    Ok(fs::write(UNITS, format!("{units:#}\n"))?)
}

/// The totals so far.
async fn used(redis: &Redis, nodes: &[Node]) -> Result<Costs> {
    #[expect(clippy::cast_precision_loss, reason = "bytes of a few processes")]
    let bytes = |bytes: u64| bytes as f64;
    Ok(Costs {
        node_us: nodes.iter().map(Node::cpu_s).sum::<f64>() * 1e6,
        redis_us: redis.used().await?.cpu_s * 1e6,
        node_bytes: nodes.iter().map(|node| bytes(node.memory_bytes())).sum(),
        redis_bytes: bytes(redis.memory_bytes().await?),
    })
}

fn difference(after: &Costs, before: &Costs) -> Costs {
    Costs {
        node_us: after.node_us - before.node_us,
        redis_us: after.redis_us - before.redis_us,
        node_bytes: after.node_bytes - before.node_bytes,
        redis_bytes: after.redis_bytes - before.redis_bytes,
    }
}
