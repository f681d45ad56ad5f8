//! Measures the cost for Redis of many nodes with little load, and of presence writes for a user
//! whom many nodes watch.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};

use crate::{
    processes::{Node, Redis, Settings, parameter},
    socket::{Pair, Socket},
    table::{Results, Row},
};

pub const NODES: &str = "nodes";
pub const MARKS: &str = "marks";
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 99, 0, 1);
const SETTLE: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(20);
const SIZES: [usize; 3] = [2, 8, 32];
/// The number of connections that open and close.
const MARKED: u32 = 300;
/// The largest ratio to the smallest size that still counts as flat; less is noise.
const FLAT: f64 = 1.5;

pub fn names(table: &str) -> Vec<String> {
    if table == MARKS {
        return [
            "no node watches".to_owned(),
            watching(parameter("MARK_NODES", 100).unwrap_or(100)),
        ]
        .into();
    }
    SIZES.into_iter().map(|size| format!("{size} nodes")).collect()
}

fn watching(nodes: u64) -> String {
    format!("{nodes} nodes watch")
}

async fn start(count: usize, redis: &Redis) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        let limits = Some("off".to_owned());
        let settings = Settings { redis: Some(redis.url()), limits, ..Settings::default() };
        nodes.push(Node::start(settings).await?);
    }
    Ok(nodes)
}

/// Every node has an idle call with every other one.
pub async fn idle(results: &mut Results) -> Result<()> {
    let mut least: Option<(f64, f64)> = None;
    for size in SIZES {
        let redis = Redis::start().await?;
        let nodes = start(size, &redis).await?;
        let mut calls = Vec::new();
        for (number, caller) in nodes.iter().enumerate() {
            for (other, callee) in nodes.iter().enumerate().skip(number + 1) {
                let (name, urls) = (format!("idle-{number}-{other}"), [&*caller.url, &*callee.url]);
                let mut pair = Pair::connect(&name, urls, SOURCE).await?;
                pair.establish().await?;
                calls.push(pair);
            }
        }
        tokio::time::sleep(SETTLE).await;
        let (before, cpu_before) =
            (redis.used().await?, nodes.iter().map(Node::cpu_s).sum::<f64>());
        tokio::time::sleep(MEASURED).await;
        let (after, cpu) =
            (redis.used().await?, nodes.iter().map(Node::cpu_s).sum::<f64>() - cpu_before);
        #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
        let each = MEASURED.as_secs_f64() * size as f64;
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let a_second = |after: u64, before: u64| (after - before) as f64 / each;
        let publishes = a_second(after.publishes, before.publishes);
        let percent = (after.cpu_s - before.cpu_s) * 100.0 / each;
        let (least_publishes, least_percent) = *least.get_or_insert((publishes, percent));
        let mut row = Row::default();
        row.add("calls", calls.len().to_string());
        row.ask(
            "publishes a second and node",
            format!("{publishes:.1}"),
            publishes <= (least_publishes * FLAT).max(1.0),
        );
        row.add(
            "scripts a second and node",
            format!("{:.1}", a_second(after.scripts, before.scripts)),
        );
        row.ask(
            "Redis' CPU a node, % of a core",
            format!("{percent:.2}"),
            percent <= least_percent * FLAT,
        );
        row.add("a node's CPU, % of a core", format!("{:.2}", cpu * 100.0 / each));
        results.put(NODES, &format!("{size} nodes"), row)?;
    }
    Ok(())
}

/// A user's second socket connects and disconnects while many nodes watch that user.
pub async fn marks(results: &mut Results) -> Result<()> {
    let count = parameter("MARK_NODES", 100)?;
    let redis = Redis::start().await?;
    let nodes = start(usize::try_from(count)? + 1, &redis).await?;
    let node = nodes.last().context("there is one")?;
    let _stays = Socket::connect(&node.url, "star", SOURCE).await?;
    let alone = mark(&redis, node).await?;
    let mut row = Row::default();
    row.add("scripts of a connection, µs of Redis", format!("{alone:.0}"));
    results.put(MARKS, "no node watches", row)?;
    let mut watchers = Vec::new();
    for (number, node) in nodes.iter().take(nodes.len() - 1).enumerate() {
        let mut socket = Socket::connect(&node.url, &format!("fan-{number}"), SOURCE).await?;
        socket.must("presence:subscribe", r#"{"userIds":["star"]}"#).await?;
        watchers.push(socket);
    }
    let watched = mark(&redis, node).await?;
    let mut row = Row::default();
    row.ask(
        "scripts of a connection, µs of Redis",
        format!("{watched:.0}"),
        watched <= alone * FLAT,
    );
    results.put(MARKS, &watching(count), row)
}

/// Redis' time in scripts per connection that opens and closes, without the periodic work of nodes.
async fn mark(redis: &Redis, node: &Node) -> Result<f64> {
    tokio::time::sleep(SETTLE).await;
    let first = redis.used().await?;
    tokio::time::sleep(SETTLE).await;
    let idle = redis.used().await?;
    let began = std::time::Instant::now();
    for _ in 0..MARKED {
        let socket = Socket::connect(&node.url, "star", SOURCE).await?;
        socket.client.close().await?;
    }
    // Lets the last disconnect be processed.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let seconds = began.elapsed().as_secs_f64();
    let after = redis.used().await?;
    #[expect(clippy::cast_precision_loss, reason = "µs of some seconds")]
    let (by_clock, all) =
        ((idle.script_us - first.script_us) as f64, (after.script_us - idle.script_us) as f64);
    Ok((all - by_clock / SETTLE.as_secs_f64() * seconds) / f64::from(MARKED))
}
