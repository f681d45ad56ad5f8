//! Measures the effect of each attack on calls of other users.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    attack::ATTACKS,
    innocents::{Established, Innocents, Peak},
    processes::{Core, Node, Process, Redis, Settings, command, mib, parameter, pod_memory_bytes},
    table::{Results, Row},
};

pub const TABLE: &str = "overload";
const QUIET: Duration = Duration::from_secs(8);
/// The time that an attack has to reach its full strength.
const LEAD: Duration = Duration::from_secs(3);
/// The largest factor by which the 99th percentile may grow.
const SLOWER: f64 = 3.0;

pub fn names() -> Vec<String> {
    let name = |nodes: usize| {
        ATTACKS.iter().map(move |(attack, what)| format!("`{attack}`, {nodes}: {what}"))
    };
    [1, 2].into_iter().flat_map(name).collect()
}

pub async fn run(results: &mut Results, only: &str) -> Result<()> {
    let seconds = parameter("SECONDS", 15)?;
    for nodes in [1, 2] {
        for (attack, what) in ATTACKS {
            if !attack.contains(only) {
                continue;
            }
            let name = format!("`{attack}`, {nodes}: {what}");
            match one(attack, nodes, seconds).await {
                Ok(row) => results.put(TABLE, &name, row)?,
                Err(error) => {
                    let mut row = Row::default();
                    row.ask("calls failed", format!("not measured: {error:#}"), false);
                    results.put(TABLE, &name, row)?;
                }
            }
        }
    }
    Ok(())
}

async fn one(attack: &str, count: usize, seconds: u64) -> Result<Row> {
    let redis = Redis::start().await?;
    let mut nodes = Vec::new();
    for _ in 0..count {
        let settings = Settings { redis: Some(redis.url()), ..Settings::default() };
        nodes.push(Node::start(settings).await?);
    }
    let urls = [nodes[0].url.clone(), nodes[count - 1].url.clone()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let mut innocents = Innocents::connect(urls).await?;
    let established = Established::connect(urls).await?;
    let mut quiet = innocents.call(QUIET).await;
    let memory = nodes.iter().map(Node::memory_bytes).max().unwrap_or_default();
    let pids: Vec<_> = nodes.iter().map(|node| node.process.pid()).collect();
    let peak = Peak::of(move || {
        let each =
            pids.iter().filter_map(|pid| switchboard::bench::sample::memory_bytes(*pid).ok());
        each.max().unwrap_or_default()
    });
    let before = redis.used().await?;
    let total = LEAD + Duration::from_secs(seconds);
    let attacker = begin(attack, total, urls)?;
    tokio::time::sleep(LEAD).await;
    let cpu: f64 = nodes.iter().map(Node::cpu_s).sum();
    let began = Instant::now();
    let mut beside = innocents.call(total.saturating_sub(LEAD)).await;
    let busy = (nodes.iter().map(Node::cpu_s).sum::<f64>() - cpu) / began.elapsed().as_secs_f64();
    let after = redis.used().await?;
    let outcome = ended(attacker).await?;
    let peak = peak.take().await;
    let (lost, all, _) = established.finish().await;
    let (limit, ready) = (pod_memory_bytes()?, nodes[0].is_ready().await);

    let p99 = |outcome: &mut crate::innocents::Outcome| {
        outcome.setup.millis_at([990]).map_or(f64::INFINITY, |[p99]| p99)
    };
    let (alone, attacked) = (p99(&mut quiet), p99(&mut beside));
    let scripts = (after.scripts - before.scripts) / total.as_secs().max(1);
    let mut row = Row::default();
    row.ask(
        "call set-up p99, ms: quiet, attacked",
        format!("{alone:.1}, {attacked:.1} (× {:.1})", attacked / alone),
        attacked <= alone * SLOWER,
    );
    let failed = format!("{} of {}", beside.failed, beside.calls);
    row.ask("calls failed", failed, beside.failed == 0);
    row.ask("established calls ended", format!("{lost} of {all}"), lost == 0);
    row.ask(
        "memory of a node, MiB: before, most",
        format!("{:.0}, {:.0}", mib(memory), mib(peak)),
        peak <= limit,
    );
    row.add("scripts a second", scripts.to_string());
    row.add("nodes' CPU, % of a core", format!("{:.0}", busy * 100.0));
    row.add("of the attack", format!("{outcome}{}", if ready { "" } else { "; not ready" }));
    if let Some(why) = beside.failure {
        eprintln!("  the first call that failed: {why}");
    }
    Ok(row)
}

fn begin(attack: &str, time: Duration, urls: [&str; 2]) -> Result<Process> {
    let this = std::env::current_exe()?.display().to_string();
    let child = command(Core::Others, "nice")
        .args(["-n", "19", &this, "attack", attack, &time.as_secs().to_string()])
        .args(urls)
        .stdout(Stdio::piped())
        .spawn()?;
    Ok(Process(child))
}

/// The counts that an attack prints when it ends.
async fn ended(mut attacker: Process) -> Result<String> {
    let ended = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        while !attacker.has_ended() && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut said = String::new();
        if attacker.has_ended()
            && let Some(output) = &mut attacker.0.stdout
        {
            std::io::Read::read_to_string(output, &mut said)?;
        }
        std::io::Result::Ok(said.trim().to_owned())
    });
    Ok(ended.await??)
}
