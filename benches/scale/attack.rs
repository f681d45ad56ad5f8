//! The attackers: clients that try to overload a node with nothing but sockets and requests that
//! the default limits allow. They run in a process of their own with a lower priority than the
//! measured calls.

use std::{
    future::Future,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use switchboard::bench::client::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use crate::socket::{Pair, Socket, sdp};

/// The fastest pace that the limit on a socket's events allows: 200 in 4 s.
const PACE: Duration = Duration::from_millis(20);
/// The number of frames in one write of an attack without a pace.
const BATCH: u64 = 64;
/// The delay before a connection that was refused or closed is opened again.
const AGAIN: Duration = Duration::from_millis(250);
const IDS: usize = 500;
const OFFER_BYTES: usize = 60_000;
const LARGE_BYTES: usize = 255 * 1024;

/// The attacks: name and description.
pub const ATTACKS: [(&str, &str); 13] = [
    (
        "presence-4",
        "4 sockets of one user, each `presence:subscribe` with the same 500 ids, 50 a second",
    ),
    ("presence-50", "50 sockets of one user, the same"),
    ("presence-200", "200 sockets of 4 users, the same"),
    (
        "presence-changing",
        "50 sockets of one user: 500 ids watched and given up in turn, 50 a second",
    ),
    ("call-end", "4 sockets: `call:end` with ids of no call, as fast as they are answered"),
    ("http-presence", "4 connections: `GET /v1/presence` with 100 ids, pipelined"),
    ("http-history", "4 connections: `GET /v1/calls`, pipelined"),
    ("frames", "20 sockets: packets that are no events, as fast as they go"),
    (
        "unjoined",
        "5,000 sockets from 5 addresses, none joined: a message of 255 KiB that does not end",
    ),
    (
        "slow-readers",
        "490 sockets in calls: offers of 60 KB at 50 a second each way, nothing is read",
    ),
    ("ringing", "250 calls that ring, 16 offers of 60 KB in each"),
    ("links", "8 calls: offers of 60 KB at 50 a second each way, across nodes if there are two"),
    ("watchers", "1,900 sockets watch one user, who is called 10 times a second"),
];

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    refused: AtomicU64,
    closed: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// State that all tasks of an attack share.
#[derive(Clone)]
struct Attack {
    urls: Vec<String>,
    counts: Arc<Counts>,
}

/// `attack NAME SECONDS URL…`: runs the attack and prints its counts.
pub async fn run(arguments: &[String]) -> Result<()> {
    let [name, seconds, urls @ ..] = arguments else { bail!("attack: NAME SECONDS URL…") };
    let until = Instant::now() + Duration::from_secs(seconds.parse()?);
    let attack = Attack { urls: urls.to_vec(), counts: Arc::default() };
    let mut tasks = JoinSet::new();
    attack.begin(name, &mut tasks)?;
    tokio::time::sleep_until(until.into()).await;
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    let Counts { sent, refused, closed } = &*attack.counts;
    println!(
        "{} sent, {} refused, {} closed",
        sent.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed),
        closed.load(Ordering::Relaxed)
    );
    Ok(())
}

impl Attack {
    fn begin(&self, name: &str, tasks: &mut JoinSet<()>) -> Result<()> {
        match name {
            "presence-4" => self.presence(tasks, 4, 1, false),
            "presence-50" => self.presence(tasks, 50, 1, false),
            "presence-200" => self.presence(tasks, 200, 4, false),
            "presence-changing" => self.presence(tasks, 50, 1, true),
            "call-end" => self.each(tasks, 4, |attack, number| async move {
                let mut socket = attack.connect(number, &format!("mallory-{number}")).await?;
                attack
                    .asking(&mut socket.client, |n| {
                        let id = uuid::Uuid::now_v7();
                        format!(r#"42{n}["call:end",{{"toUserId":"nobody","callId":"{id}"}}]"#)
                    })
                    .await
            }),
            "http-presence" => {
                let ids: Vec<_> = (0..100).map(|n| format!("p-{n}")).collect();
                self.requests(tasks, format!("/v1/presence?userIds={}", ids.join(",")));
            }
            "http-history" => {
                self.requests(tasks, "/v1/calls?userId=innocent-0-a&limit=100".to_owned());
            }
            "frames" => self.each(tasks, 20, |attack, number| async move {
                let mut socket = attack.connect(number, &format!("mallory-{number}")).await?;
                attack.frames(&mut socket.client).await
            }),
            "unjoined" => self
                .each(tasks, 5_000, |attack, number| async move { attack.unjoined(number).await }),
            "slow-readers" => self.each(tasks, 245, |attack, number| async move {
                let mut pair = attack.pair(number).await?;
                pair.establish().await?;
                attack.offers(&mut pair, false).await
            }),
            "ringing" => self.each(tasks, 250, |attack, number| async move {
                let mut pair = attack.pair(number).await?;
                attack.ring(&mut pair).await
            }),
            "links" => self.each(tasks, 8, |attack, number| async move {
                let mut pair = attack.pair(number).await?;
                pair.establish().await?;
                attack.offers(&mut pair, true).await
            }),
            "watchers" => {
                self.each(tasks, 1_900, |attack, number| async move {
                    let mut socket = attack.connect(number, &format!("fan-{number}")).await?;
                    let payload = r#"{"userIds":["star"]}"#;
                    socket.must("presence:subscribe", payload).await?;
                    loop {
                        socket.client.packet().await?;
                    }
                });
                self.each(tasks, 1, |attack, _| async move { attack.star().await });
            }
            _ => bail!("there is no attack {name}"),
        }
        Ok(())
    }

    /// Keeps this many connections running, and replaces each one that ends.
    fn each<F>(
        &self,
        tasks: &mut JoinSet<()>,
        number: u32,
        with: impl Fn(Self, u32) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = Result<()>> + Send,
    {
        for number in 0..number {
            let (attack, with) = (self.clone(), with.clone());
            tasks.spawn(async move {
                // Spreads the connections over time.
                tokio::time::sleep(Duration::from_micros(u64::from(number) * 500)).await;
                loop {
                    if with(attack.clone(), number).await.is_err() {
                        Counts::add(&attack.counts.closed, 1);
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
        }
    }

    fn url(&self, number: u32) -> &str {
        &self.urls[number as usize % self.urls.len()]
    }

    async fn connect(&self, number: u32, user: &str) -> Result<Socket> {
        Socket::connect(self.url(number), user, address(number)).await
    }

    async fn pair(&self, number: u32) -> Result<Pair> {
        let urls = [self.url(0), self.url(1)];
        Pair::connect(&format!("mallory-{number}"), urls, address(number)).await
    }

    fn presence(&self, tasks: &mut JoinSet<()>, sockets: u32, users: u32, is_changing: bool) {
        self.each(tasks, sockets, move |attack, number| async move {
            let user = number % users;
            // All on one node; the other node has the callees of the measured calls.
            let url = attack.url(0).to_owned();
            let name = format!("mallory-{user}");
            let mut socket = Socket::connect(&url, &name, address(number)).await?;
            let ids = |set: u64| {
                let id = |n| format!(r#""p-{number}-{set}-{n}""#);
                (0..IDS).map(id).collect::<Vec<_>>().join(",")
            };
            let sets = [ids(0), ids(1)];
            let frame = |n: u64| {
                let (event, set) = match (is_changing, n % 4) {
                    (false, _) | (true, 0) => ("presence:subscribe", 0),
                    (true, 1) => ("presence:unsubscribe", 0),
                    (true, 2) => ("presence:subscribe", 1),
                    (true, _) => ("presence:unsubscribe", 1),
                };
                format!(r#"42{n}["{event}",{{"userIds":[{}]}}]"#, sets[set])
            };
            attack.paced(&mut socket.client, frame).await
        });
    }

    /// An event each 20 ms, without waiting for replies.
    async fn paced(&self, client: &mut Client, frame: impl Fn(u64) -> String) -> Result<()> {
        let mut ticks = tokio::time::interval(PACE);
        let mut number = 0;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    client.send(frame(number)).await?;
                    number += 1;
                    Counts::add(&self.counts.sent, 1);
                }
                packet = client.packet() => self.heard(&packet?),
            }
        }
    }

    fn heard(&self, packet: &str) {
        if packet.contains(r#""ok":false"#) {
            Counts::add(&self.counts.refused, 1);
        }
    }

    /// Many events with an ack each; the next batch when all of them have been acknowledged.
    async fn asking(&self, client: &mut Client, frame: impl Fn(u64) -> String) -> Result<()> {
        loop {
            client.send_all((0..BATCH).map(&frame)).await?;
            Counts::add(&self.counts.sent, BATCH);
            let mut open = BATCH;
            while open > 0 {
                let packet = client.packet().await?;
                self.heard(&packet);
                open -= u64::from(packet.starts_with("43"));
            }
        }
    }

    /// HTTP requests without a pause, many at a time, on each of 4 connections.
    fn requests(&self, tasks: &mut JoinSet<()>, path: String) {
        self.each(tasks, 4, move |attack, number| {
            let path = path.clone();
            async move { attack.pipeline(number, &path).await }
        });
    }

    async fn pipeline(&self, number: u32, path: &str) -> Result<()> {
        let host = self.url(0).trim_start_matches("ws://");
        let socket = TcpSocket::new_v4()?;
        socket.bind((address(number), 0).into())?;
        let mut stream = socket.connect(host.parse()?).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let (batch, mut buffer) = (request.repeat(16), vec![0; 64 * 1024]);
        loop {
            stream.write_all(batch.as_bytes()).await?;
            Counts::add(&self.counts.sent, 16);
            let mut answered = 0;
            while answered < 16 {
                let length = stream.read(&mut buffer).await?;
                if length == 0 {
                    bail!("it is closed");
                }
                let text = String::from_utf8_lossy(&buffer[..length]);
                answered += text.matches("HTTP/1.1 ").count();
                let refused =
                    text.matches("HTTP/1.1 4").count() + text.matches("HTTP/1.1 5").count();
                Counts::add(&self.counts.refused, refused as u64);
            }
        }
    }

    async fn frames(&self, client: &mut Client) -> Result<()> {
        let packets = ["3", "40/x,", r#"42/zz,["x",{}]"#, "431[]"].map(str::to_owned);
        loop {
            client.send_all(packets.iter().cycle().take(64).cloned()).await?;
            client.send_frame(Message::Ping("x".into())).await?;
            Counts::add(&self.counts.sent, 65);
            while let Ok(packet) = timeout(Duration::from_millis(1), client.packet()).await {
                self.heard(&packet?);
            }
        }
    }

    /// Raw frames, because the library sends whole messages only.
    async fn unjoined(&self, number: u32) -> Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 66, 0, u8::try_from(number % 5)? + 1), 0).into())?;
        let host = self.url(0).trim_start_matches("ws://");
        let mut stream = socket.connect(host.parse()?).await?;
        let head = format!(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = [0; 512];
        let length = stream.read(&mut answer).await?;
        if !answer[..length].starts_with(b"HTTP/1.1 101") {
            Counts::add(&self.counts.refused, 1);
            bail!("it is refused");
        }
        // A masked text message whose header announces one KiB more than is sent.
        let mut frame = vec![0x81, 0x80 | 127];
        frame.extend_from_slice(&(LARGE_BYTES as u64 + 1_024).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.resize(frame.len() + LARGE_BYTES, b'4');
        stream.write_all(&frame).await?;
        Counts::add(&self.counts.sent, 1);
        while stream.read(&mut answer).await? > 0 {}
        bail!("it is closed")
    }

    /// Renegotiates without end.
    async fn offers(&self, pair: &mut Pair, reads: bool) -> Result<()> {
        let offer = sdp("offer", OFFER_BYTES);
        let (to_callee, to_caller) = (
            format!(r#"42["call:offer",{{"toUserId":"{}","offer":{offer}}}]"#, pair.callee_id),
            format!(r#"42["call:offer",{{"toUserId":"{}","offer":{offer}}}]"#, pair.caller_id),
        );
        let one = self.stream(&mut pair.caller.client, &to_callee, reads);
        let other = self.stream(&mut pair.callee.client, &to_caller, reads);
        tokio::try_join!(one, other).map(|_| ())
    }

    async fn stream(&self, client: &mut Client, packet: &str, reads: bool) -> Result<()> {
        let mut ticks = tokio::time::interval(PACE);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    client.send(packet.to_owned()).await?;
                    Counts::add(&self.counts.sent, 1);
                }
                packet = client.packet(), if reads => {
                    if packet?.starts_with(r#"42["call:error""#) {
                        Counts::add(&self.counts.refused, 1);
                    }
                }
            }
        }
    }

    async fn ring(&self, pair: &mut Pair) -> Result<()> {
        let (to, offer) = (pair.callee_id.clone(), sdp("offer", OFFER_BYTES));
        let initiate = format!(r#"{{"toUserId":"{to}","callType":"audio"}}"#);
        pair.caller.must("call:initiate", &initiate).await?;
        for _ in 0..16 {
            let payload = format!(r#"{{"toUserId":"{to}","offer":{offer}}}"#);
            pair.caller.tell("call:offer", &payload).await?;
            Counts::add(&self.counts.sent, 1);
            tokio::time::sleep(PACE).await;
        }
        // Waits until the ringing time has ended, then places the next call.
        let (caller, callee) = (&mut pair.caller.client, &mut pair.callee.client);
        loop {
            tokio::select! {
                packet = caller.packet() => {
                    let packet = packet?;
                    if packet.starts_with(r#"42["call:ended""#) {
                        return Ok(());
                    }
                    if packet.starts_with(r#"42["call:error""#) {
                        Counts::add(&self.counts.refused, 1);
                    }
                }
                packet = callee.packet() => { packet?; }
            }
        }
    }

    /// The user whom all watch, and its callers: each stays within the limit on calls of one user.
    async fn star(&self) -> Result<()> {
        let mut star = self.connect(0, "star").await?;
        let mut callers = Vec::new();
        for number in 0..25 {
            callers.push(self.connect(number + 1, &format!("caller-{number}")).await?);
        }
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        for number in (0..callers.len()).cycle() {
            ticks.tick().await;
            let caller = &mut callers[number];
            let call = r#"{"toUserId":"star","callType":"audio"}"#;
            let answer = caller.ask("call:initiate", call).await?;
            self.heard(&answer);
            caller.ask("call:end", r#"{"toUserId":"star"}"#).await?;
            Counts::add(&self.counts.sent, 1);
            while let Ok(packet) = timeout(Duration::from_micros(100), star.client.packet()).await {
                packet.context("the star is gone")?;
            }
        }
        Ok(())
    }
}

/// All but a few attacks come from one address.
fn address(_number: u32) -> Ipv4Addr {
    Ipv4Addr::new(127, 66, 0, 1)
}
