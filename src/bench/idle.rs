//! Idle connections.

use std::time::{Duration, Instant};

use tokio::{sync::watch, task::JoinSet};

use super::{
    Idle,
    client::Client,
    report::{BenchError, Report},
    sample::Used,
};

/// Connections opened at a time.
const AT_ONCE: usize = 64;
const PROGRESS: usize = 1_000;
/// After this time the cost of connecting is over.
const SETTLE: Duration = Duration::from_secs(2);
/// Pings are answered once all are connected, or after this: servers wait for 20 s or more.
const ANSWER_AFTER: Duration = Duration::from_secs(10);
const STILL_HOLDING: Duration = Duration::from_secs(5);

pub async fn run(options: Idle) -> Result<Report, BenchError> {
    let before = Used::now(&options.common).await?;
    let began = Instant::now();
    let mut holding = JoinSet::new();
    let (all_connected, gate) = watch::channel(false);
    let all: Vec<u32> = (0..options.sockets).collect();
    for batch in all.chunks(AT_ONCE) {
        let mut connecting = JoinSet::new();
        for &number in batch {
            let url = options.common.urls[number as usize % options.common.urls.len()].clone();
            let user = format!("bench-{}-{number}", std::process::id());
            connecting.spawn(async move { Client::connect(&url, &user).await });
        }
        while let Some(connected) = connecting.join_next().await {
            if let Ok(client) = connected {
                holding.spawn(hold(client?, gate.clone()));
            }
        }
        if holding.len() % PROGRESS < AT_ONCE {
            eprintln!("{} connections", holding.len());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let connected = Used::now(&options.common).await?;
    // The receiver is gone if all were closed: the next line reports that.
    let _ = all_connected.send(true);
    stay(&mut holding, SETTLE).await?;
    let settled = Used::now(&options.common).await?;
    stay(&mut holding, options.hold).await?;
    let after = Used::now(&options.common).await?;

    let count = f64::from(options.sockets);
    let mut report = Report::default();
    report.count("sockets", "connections", u64::from(options.sockets));
    report.add("connects_per_second", "connected in a second", count / seconds);
    if !options.common.pids.is_empty() {
        #[expect(clippy::cast_precision_loss, reason = "bytes of one measurement")]
        let grown = after.memory_bytes.saturating_sub(before.memory_bytes) as f64;
        report.add("memory_per_socket_kib", "memory a connection, KiB", grown / count / 1024.0);
    }
    report.cost("connect", count, &before, &connected);
    let held_s = after.at.duration_since(settled.at).as_secs_f64();
    if !options.common.pids.is_empty() {
        let idle_us = (after.cpu_s - settled.cpu_s) * 1e6 / held_s / count;
        report.add("idle_cpu_per_socket_us", "CPU of an idle connection a second, µs", idle_us);
    }
    if let (Some(settled), Some(after)) = (settled.redis, after.redis) {
        let mut a_second = |key: &str, name: &str, after: u64, settled: u64| {
            #[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
            let value = (after - settled) as f64 / held_s;
            report.add(
                &format!("idle_redis_{key}_per_second"),
                &format!("{name} a second, idle"),
                value,
            );
        };
        a_second("commands", "Redis commands", after.commands, settled.commands);
        a_second("publishes", "publishes among them", after.publishes, settled.publishes);
        a_second("scripts", "scripts among them", after.scripts, settled.scripts);
        let cpu_percent = (after.cpu_s - settled.cpu_s) * 100.0 / held_s;
        report.add("idle_redis_cpu_percent", "CPU of Redis, idle, % of a core", cpu_percent);
    }
    Ok(report)
}

/// Answers the pings of a connection until it closes.
async fn hold(mut client: Client, mut all_connected: watch::Receiver<bool>) {
    tokio::select! {
        _ = all_connected.wait_for(|all| *all) => {}
        () = tokio::time::sleep(ANSWER_AFTER) => {}
    }
    while client.packet().await.is_ok() {}
}

/// Waits, printing the elapsed time. Fails if a connection closes.
async fn stay(holding: &mut JoinSet<()>, time: Duration) -> Result<(), BenchError> {
    let (began, count) = (tokio::time::Instant::now(), holding.len());
    let mut ticks = tokio::time::interval_at(began + STILL_HOLDING, STILL_HOLDING);
    loop {
        tokio::select! {
            _ = holding.join_next() => return Err(BenchError::Closed),
            () = tokio::time::sleep_until(began + time) => return Ok(()),
            _ = ticks.tick() => eprintln!("{count} connections held for {} s", began.elapsed().as_secs()),
        }
    }
}
