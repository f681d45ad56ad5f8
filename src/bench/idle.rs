//! Connections that do nothing.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{
    Idle,
    client::Client,
    report::{BenchError, Report},
    sample::Used,
};

/// How many connections are made at a time.
const AT_ONCE: usize = 64;
const PROGRESS: usize = 1_000;

pub async fn run(options: Idle) -> Result<Report, BenchError> {
    let before = Used::now(&options.common).await?;
    let began = Instant::now();
    let mut clients = Vec::with_capacity(options.sockets as usize);
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
                clients.push(client?);
            }
        }
        if clients.len() % PROGRESS < AT_ONCE {
            eprintln!("{} connections", clients.len());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let connected = Used::now(&options.common).await?;
    let held = hold(clients, options.hold).await?;
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
    drop(held);
    Ok(report)
}

/// Keeps connections alive for a while: answers their pings.
async fn hold(clients: Vec<Client>, time: Duration) -> Result<Vec<Client>, BenchError> {
    let mut holding = JoinSet::new();
    let until = tokio::time::Instant::now() + time;
    for mut client in clients {
        holding.spawn(async move {
            // It ends by the time, or with the connection.
            match tokio::time::timeout_at(until, async { while client.packet().await.is_ok() {} })
                .await
            {
                Ok(()) => Err(BenchError::Closed),
                Err(_) => Ok(client),
            }
        });
    }
    let mut held = Vec::with_capacity(holding.len());
    while let Some(client) = holding.join_next().await {
        if let Ok(client) = client {
            held.push(client?);
        }
    }
    Ok(held)
}
