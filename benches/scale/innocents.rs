//! The measured calls: a steady rate of new calls and a few long ones, which an attack or a fault
//! must not disturb.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use switchboard::bench::spread::Spread;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
};

use crate::socket::{Pair, Times};

/// Enough pairs that each user stays below 30 calls a minute.
const PAIRS: u32 = 60;
const CALLS_PER_S: u32 = 20;
const CANDIDATES: u32 = 2;
/// The number of calls that last for the whole measurement.
const ESTABLISHED: u32 = 5;
const RELAY_EVERY: Duration = Duration::from_millis(50);
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 88, 0, 1);

/// Pairs that are free for the next call.
pub struct Innocents {
    urls: [String; 2],
    free: Vec<Pair>,
    next: u32,
}

/// The results of the calls of one measurement.
#[derive(Default)]
pub struct Outcome {
    pub setup: Spread,
    pub relay: Spread,
    pub calls: u32,
    pub failed: u32,
    /// The error of the first call that failed.
    pub failure: Option<String>,
}

impl Innocents {
    /// Connects the callers to the first of `urls`, the callees to the second.
    pub async fn connect(urls: [&str; 2]) -> Result<Self> {
        let mut free = Vec::new();
        for number in 0..PAIRS {
            free.push(Pair::connect(&format!("innocent-{number}"), urls, SOURCE).await?);
        }
        Ok(Self { urls: urls.map(str::to_owned), free, next: PAIRS })
    }

    /// Places calls at a steady rate, without waiting for earlier ones.
    pub async fn call(&mut self, time: Duration) -> Outcome {
        let (began, mut outcome) = (Instant::now(), Outcome::default());
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / CALLS_PER_S);
        let mut calls = JoinSet::new();
        self.free.reverse();
        let mut waiting = std::mem::take(&mut self.free);
        let (given_back, mut back) = mpsc::channel(PAIRS as usize);
        while began.elapsed() < time {
            ticks.tick().await;
            while let Ok(pair) = back.try_recv() {
                waiting.insert(0, pair);
            }
            outcome.calls += 1;
            // All pairs are in calls that take too long.
            let Some(pair) = waiting.pop() else {
                outcome.failed += 1;
                continue;
            };
            let urls = self.urls.clone();
            let (number, given_back) = (self.next, given_back.clone());
            self.next += 1;
            calls.spawn(async move { one(pair, number, urls, given_back).await });
        }
        drop(given_back);
        while let Some(call) = calls.join_next().await {
            match call.map_err(anyhow::Error::from).and_then(|times| times) {
                Ok(Times { setup, relays }) => {
                    outcome.setup.add(setup);
                    for time in relays {
                        outcome.relay.add(time);
                    }
                }
                Err(error) => {
                    outcome.failed += 1;
                    outcome.failure.get_or_insert(error.to_string());
                }
            }
        }
        while let Some(pair) = back.recv().await {
            waiting.push(pair);
        }
        self.free = waiting;
        outcome
    }
}

/// One call. A pair whose call has failed is replaced by a new one.
async fn one(
    mut pair: Pair,
    number: u32,
    urls: [String; 2],
    given_back: mpsc::Sender<Pair>,
) -> Result<Times> {
    let result = pair.call(CANDIDATES).await;
    if result.is_err() {
        let name = format!("innocent-{number}");
        drop(pair);
        pair = Pair::connect(&name, [&urls[0], &urls[1]], SOURCE).await?;
    }
    // The receiver is gone if the measurement was abandoned.
    let _ = given_back.send(pair).await;
    result
}

/// Established calls in which candidates are sent one after the other.
pub struct Established {
    calls: Vec<JoinHandle<(Pair, Spread)>>,
    is_over: Arc<AtomicBool>,
}

impl Established {
    pub async fn connect(urls: [&str; 2]) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut calls = Vec::new();
        for number in 0..ESTABLISHED {
            let mut pair = Pair::connect(&format!("established-{number}"), urls, SOURCE).await?;
            pair.establish().await?;
            let is_over = is_over.clone();
            calls.push(tokio::spawn(async move {
                let mut relays = Spread::default();
                while !is_over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match pair.relay().await {
                        Ok([there, back]) => {
                            relays.add(there);
                            relays.add(back);
                        }
                        // A candidate that has not arrived counts with the time so far.
                        Err(_) => relays.add(began.elapsed()),
                    }
                    tokio::time::sleep(RELAY_EVERY).await;
                }
                (pair, relays)
            }));
        }
        Ok(Self { calls, is_over })
    }

    /// The number of calls that ended, the number of all, and the latency of candidates.
    pub async fn finish(self) -> (usize, usize, Spread) {
        self.is_over.store(true, Ordering::Relaxed);
        let (mut ended, count, mut relays) = (0, self.calls.len(), Spread::default());
        for call in self.calls {
            let Ok((mut pair, times)) = call.await else {
                ended += 1;
                continue;
            };
            relays.merge(times);
            let synced = pair.caller.ask("call:sync", "{}").await;
            let is_live = synced.is_ok_and(|answer| answer.contains(r#""callId""#));
            ended += usize::from(!is_live);
        }
        (ended, count, relays)
    }
}

/// The maximum of a value that is sampled until `stop`.
pub struct Peak {
    stop: oneshot::Sender<()>,
    sampling: JoinHandle<u64>,
}

impl Peak {
    pub fn of(sample: impl Fn() -> u64 + Send + 'static) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let sampling = tokio::spawn(async move {
            let mut peak = 0;
            while stopped.try_recv().is_err() {
                peak = peak.max(sample());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            peak
        });
        Self { stop, sampling }
    }

    pub async fn take(self) -> u64 {
        // The task ends by this message only.
        let _ = self.stop.send(());
        self.sampling.await.unwrap_or_default()
    }
}
