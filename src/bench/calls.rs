//! Whole calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Calls,
    client::{Client, event_name, number_after},
    report::{BenchError, Report},
    sample::Used,
    spread::Spread,
};

/// Sizes that browsers send.
const OFFER_BYTES: usize = 2_500;
const ANSWER_BYTES: usize = 2_000;
const CANDIDATE: &str =
    "1 udp 2122260223 192.0.2.17 50000 typ host generation 0 ufrag abcd network-id 1";
/// A call that takes longer means a stuck server.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a server without acks to process `user-connected`.
const SETTLE: Duration = Duration::from_millis(300);
/// The call attempts per user and minute that a server permits by default.
const USUAL_LIMIT: u32 = 30;
/// The time within which the replies to these attempts, and to one more, must arrive.
const LIMIT_TIMEOUT: Duration = Duration::from_secs(1);
/// After this silence, missing candidates count as lost.
const LOSS_TIMEOUT: Duration = Duration::from_secs(5);
const PROGRESS: Duration = Duration::from_secs(1);

/// Shared by all pairs.
#[derive(Default)]
struct Shared {
    is_measuring: AtomicBool,
    is_over: AtomicBool,
    done: AtomicU64,
}

/// The schedule of a pair.
enum Pace {
    /// One call after the other, until the end.
    Closed,
    /// On request, with the scheduled start of the call.
    Open(mpsc::Receiver<Instant>),
}

/// The measurements of a pair.
#[derive(Default)]
struct Measured {
    /// From the attempt, or from its scheduled start, to the answer at the caller.
    setup: Spread,
    /// From one socket to the other: candidates.
    relay: Spread,
    /// Candidates out of order, or duplicated.
    disorder: u64,
    /// Lost candidates.
    lost: u64,
}

struct Pair {
    caller: Client,
    callee: Client,
    initiate: String,
    offer: String,
    answer: String,
    end: String,
    to_callee: String,
    to_caller: String,
    candidates: u32,
}

/// Fails early if the server's limits would refuse calls in the middle of the measurement. A user
/// of its own makes as many attempts to an offline user.
async fn check_limit(options: &Calls) -> Result<(), BenchError> {
    let each_minute = options.rate.map(|rate| rate * 60.0 / f64::from(options.pairs));
    if each_minute.is_some_and(|calls| calls <= f64::from(USUAL_LIMIT)) {
        return Ok(());
    }
    let id = std::process::id();
    let mut client = Client::connect(&options.common.urls[0], &format!("bench-{id}-tries")).await?;
    tokio::time::sleep(SETTLE).await;
    let attempt =
        format!(r#"42["call:initiate",{{"toUserId":"bench-{id}-nobody","callType":"audio"}}]"#);
    client.send_all((0..=USUAL_LIMIT).map(|_| attempt.clone())).await?;
    let answered = async {
        for _ in 0..=USUAL_LIMIT {
            loop {
                let packet = client.packet().await?;
                if packet.contains("RATE_LIMITED") {
                    let planned = each_minute.map_or_else(
                        || "as many as it can".to_owned(),
                        |calls| format!("{calls:.0}"),
                    );
                    return Err(BenchError::Limited(planned, USUAL_LIMIT));
                }
                if event_name(&packet) == Some("call:error") {
                    break;
                }
            }
        }
        Ok(())
    };
    // Not all servers report that a user is offline.
    tokio::time::timeout(LIMIT_TIMEOUT, answered).await.unwrap_or(Ok(()))?;
    client.close().await
}

pub async fn run(options: Calls) -> Result<Report, BenchError> {
    check_limit(&options).await?;
    let shared = Arc::new(Shared::default());
    let (go, gate) = tokio::sync::watch::channel(false);
    let mut starts = Vec::new();
    let mut pairs = JoinSet::new();
    let urls = &options.common.urls;
    let callee_urls = if options.callee_url.is_empty() { urls } else { &options.callee_url };
    for number in 0..options.pairs {
        let at = |urls: &[String]| urls[number as usize % urls.len()].clone();
        let pair = Pair::connect(&at(urls), &at(callee_urls), number, options.candidates).await?;
        let pace = match options.rate {
            None => Pace::Closed,
            Some(_) => {
                // One call is queued while one is running: more would be late anyway.
                let (start, begins) = mpsc::channel(1);
                starts.push(start);
                Pace::Open(begins)
            }
        };
        let (shared, mut gate) = (shared.clone(), gate.clone());
        pairs.spawn(async move {
            // Fails only if the measurement is aborted.
            let _ = gate.wait_for(|open| *open).await;
            pair.make_calls(pace, shared).await
        });
    }
    tokio::time::sleep(SETTLE).await;

    let total = options.warm_up + options.duration;
    // The receiver is gone if all pairs have failed: they report why.
    let _ = go.send(true);
    let pacing = tokio::spawn(pace(starts, options.rate, total));
    let watching = tokio::spawn(watch(shared.clone()));
    tokio::time::sleep(options.warm_up).await;
    let before = Used::now(&options.common).await?;
    let done_before = shared.done.load(Ordering::Relaxed);
    let measured_from = Instant::now();
    shared.is_measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(options.duration).await;
    shared.is_measuring.store(false, Ordering::Relaxed);
    let after = Used::now(&options.common).await?;
    let calls = shared.done.load(Ordering::Relaxed) - done_before;
    let seconds = measured_from.elapsed().as_secs_f64();
    shared.is_over.store(true, Ordering::Relaxed);
    watching.abort();
    let missed = pacing.await.unwrap_or_default();

    let mut all = Measured::default();
    while let Some(measured) = pairs.join_next().await {
        let Ok(measured) = measured else { continue };
        let Measured { setup, relay, disorder, lost } = measured?;
        all.disorder += disorder;
        all.lost += lost;
        all.setup.merge(setup);
        all.relay.merge(relay);
    }
    let mut report = Report::default();
    report.count("calls", "calls", calls);
    #[expect(clippy::cast_precision_loss, reason = "calls of one measurement")]
    let count = calls as f64;
    report.add("calls_per_second", "calls a second", count / seconds);
    report.count("missed_starts", "calls that no pair was free for", missed);
    report.count("lost", "candidates lost", all.lost);
    report.count("disorder", "candidates out of order", all.disorder);
    report.spread("setup", "attempt to answer", &mut all.setup);
    report.spread("relay", "candidate from socket to socket", &mut all.relay);
    report.cost("call", count.max(1.0), &before, &after);
    Ok(report)
}

/// Starts calls at a rate, whether earlier ones have ended or not. Returns how many found no free pair.
async fn pace(starts: Vec<mpsc::Sender<Instant>>, rate: Option<f64>, total: Duration) -> u64 {
    let Some(rate) = rate else { return 0 };
    let (mut missed, began) = (0, Instant::now());
    for number in 0_u32.. {
        let after = Duration::from_secs_f64(f64::from(number) / rate);
        if after > total {
            break;
        }
        let at = began + after;
        tokio::time::sleep_until(at.into()).await;
        let first = number as usize % starts.len();
        let mut in_turn = starts[first..].iter().chain(&starts[..first]);
        if !in_turn.any(|start| start.try_send(at).is_ok()) {
            missed += 1;
        }
    }
    missed
}

/// Prints the progress every second.
async fn watch(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(PROGRESS);
    let mut before = 0;
    loop {
        ticks.tick().await;
        let done = shared.done.load(Ordering::Relaxed);
        let phase = if shared.is_measuring.load(Ordering::Relaxed) { "" } else { " (warming up)" };
        eprintln!("{done} calls, {} in the last second{phase}", done - before);
        before = done;
    }
}

impl Pair {
    async fn connect(
        url: &str,
        callee_url: &str,
        number: u32,
        candidates: u32,
    ) -> Result<Self, BenchError> {
        let run = std::process::id();
        let (from, to) = (format!("bench-{run}-{number}-a"), format!("bench-{run}-{number}-b"));
        let sdp = |bytes: usize| "v=0 ".repeat(bytes / 4);
        let described = |event: &str, kind: &str, to: &str, bytes: usize| {
            let sdp = sdp(bytes);
            format!(
                r#"42["call:{event}",{{"toUserId":"{to}","{event}":{{"type":"{kind}","sdp":"{sdp}"}}}}]"#
            )
        };
        // The number goes between the two halves.
        let candidate = |to: &str| {
            format!(
                r#"42["call:ice-candidate",{{"toUserId":"{to}","candidate":{{"candidate":"candidate:"#
            )
        };
        Ok(Self {
            caller: Client::connect(url, &from).await?,
            callee: Client::connect(callee_url, &to).await?,
            initiate: format!(
                r#"42["call:initiate",{{"toUserId":"{to}","callType":"video","callerInfo":{{"name":"{from}"}}}}]"#
            ),
            offer: described("offer", "offer", &to, OFFER_BYTES),
            answer: described("answer", "answer", &from, ANSWER_BYTES),
            end: format!(r#"42["call:end",{{"toUserId":"{to}"}}]"#),
            to_callee: candidate(&to),
            to_caller: candidate(&from),
            candidates,
        })
    }

    async fn make_calls(
        mut self,
        mut pace: Pace,
        shared: Arc<Shared>,
    ) -> Result<Measured, BenchError> {
        let mut measured = Measured::default();
        while let Some(began) = self.next_call(&mut pace, &shared).await? {
            let is_measured = shared.is_measuring.load(Ordering::Relaxed);
            let call = self.call(began, is_measured.then_some(&mut measured));
            tokio::time::timeout(CALL_TIMEOUT, call)
                .await
                .map_err(|_| BenchError::Late("no end of a call", CALL_TIMEOUT.as_secs()))??;
            shared.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(measured)
    }

    /// The start, or scheduled start, of the next call; None at the end. Answers pings meanwhile.
    async fn next_call(
        &mut self,
        pace: &mut Pace,
        shared: &Shared,
    ) -> Result<Option<Instant>, BenchError> {
        let begins = match pace {
            Pace::Closed => {
                let is_over = shared.is_over.load(Ordering::Relaxed);
                return Ok((!is_over).then(Instant::now));
            }
            Pace::Open(begins) => begins,
        };
        loop {
            tokio::select! {
                began = begins.recv() => return Ok(began),
                packet = self.caller.packet() => drop(packet?),
                packet = self.callee.packet() => drop(packet?),
            }
        }
    }

    async fn call(
        &mut self,
        began: Instant,
        measured: Option<&mut Measured>,
    ) -> Result<(), BenchError> {
        let mut unmeasured = Measured::default();
        let measured = measured.unwrap_or(&mut unmeasured);
        self.caller.send(self.initiate.clone()).await?;
        self.callee.event("call:incoming").await?;
        self.caller.send(self.offer.clone()).await?;
        self.callee.event("call:offer").await?;
        self.callee.send(self.answer.clone()).await?;
        self.caller.event("call:answer").await?;
        measured.setup.add(began.elapsed());
        let clocks = [const { Mutex::new(Vec::new()) }; 2];
        let [caller_sent, callee_sent] = &clocks;
        let count = self.candidates;
        let (at_caller, at_callee) = tokio::join!(
            exchange(&mut self.caller, &self.to_callee, count, caller_sent, callee_sent),
            exchange(&mut self.callee, &self.to_caller, count, callee_sent, caller_sent),
        );
        for exchanged in [at_caller?, at_callee?] {
            measured.relay.merge(exchanged.relay);
            measured.disorder += exchanged.disorder;
            measured.lost += exchanged.lost;
        }
        self.caller.send(self.end.clone()).await?;
        self.callee.event("call:ended").await?;
        Ok(())
    }
}

fn candidate(head: &str, number: u32) -> String {
    format!(r#"{head}{number} {CANDIDATE}","sdpMLineIndex":0,"sdpMid":"0"}}}}]"#)
}

/// Sends candidates, one write each, and receives as many. Returns their latencies, and the ones out of order or lost. Both
/// ends run in one task and share a clock.
async fn exchange(
    client: &mut Client,
    head: &str,
    count: u32,
    sent: &Mutex<Vec<Instant>>,
    sent_by_peer: &Mutex<Vec<Instant>>,
) -> Result<Measured, BenchError> {
    let (mut measured, mut order) = (Measured::default(), Order::default());
    let mut to_send = 0;
    while to_send < count || order.came < count {
        if to_send < count {
            sent.lock().push(Instant::now());
            client.send(candidate(head, to_send)).await?;
            to_send += 1;
            // The other end reads its queue.
            tokio::task::yield_now().await;
        }
        while order.came < count {
            let packet = if to_send < count {
                let Some(packet) = client.packet().now_or_never() else { break };
                packet?
            } else {
                match tokio::time::timeout(LOSS_TIMEOUT, client.packet()).await {
                    Ok(packet) => packet?,
                    Err(_) => {
                        measured.lost = u64::from(count - order.came);
                        measured.disorder = order.late;
                        return Ok(measured);
                    }
                }
            };
            if event_name(&packet) != Some("call:ice-candidate") {
                continue;
            }
            let number = number_after(&packet, "candidate:");
            order.add(number);
            let began = {
                let sent = sent_by_peer.lock();
                number.and_then(|number| sent.get(number as usize).copied())
            };
            measured.relay.add(began.map_or(Duration::ZERO, |began| began.elapsed()));
        }
    }
    measured.disorder = order.late;
    Ok(measured)
}

/// Order of received numbers.
#[derive(Debug, Default)]
struct Order {
    came: u32,
    next: u32,
    /// Out of order, duplicated, or without a number.
    late: u64,
}

impl Order {
    fn add(&mut self, number: Option<u32>) {
        self.came += 1;
        match number {
            Some(number) if number >= self.next => self.next = number + 1,
            _ => self.late += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(numbers: &[u32]) -> u64 {
        let mut order = Order::default();
        for &number in numbers {
            order.add(Some(number));
        }
        order.late
    }

    #[test]
    fn numbers_that_come_after_a_later_one_or_twice_are_late() {
        assert_eq!(late(&[0, 1, 2, 3]), 0);
        assert_eq!(late(&[0, 2, 1, 3]), 1);
        assert_eq!(late(&[3, 0, 1, 2]), 3);
        assert_eq!(late(&[0, 1, 1, 2]), 1);
        assert_eq!(late(&[1, 3]), 0);
    }
}
