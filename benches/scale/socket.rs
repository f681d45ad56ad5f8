//! A client that waits for replies, on top of the load generator's bare socket.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use switchboard::bench::client::{Client, event_name};

/// Longer than the server takes for any reply that is not lost.
pub const PATIENCE: Duration = Duration::from_secs(5);

pub struct Socket {
    pub client: Client,
    next_ack: u32,
}

/// The source address of a socket. `to_an_address` sockets share one, so that no limit of an
/// address is reached.
pub fn source(number: u32, to_an_address: u32) -> Ipv4Addr {
    let [_, _, high, low] = (number / to_an_address + 1).to_be_bytes();
    Ipv4Addr::new(127, 77, high, low)
}

impl Socket {
    pub async fn connect(url: &str, user: &str, source: Ipv4Addr) -> Result<Self> {
        let joining = async {
            let mut client = Client::open(url, Some(source)).await?;
            client.join(url, user).await?;
            let mut socket = Self { client, next_ack: 0 };
            // A reply shows that the server knows the user.
            socket.ask("call:sync", "{}").await?;
            Ok(socket)
        };
        tokio::time::timeout(PATIENCE * 4, joining).await?
    }

    /// Sends an event and waits for its ack. Other packets in between are ignored.
    pub async fn ask(&mut self, event: &str, payload: &str) -> Result<String> {
        self.next_ack += 1;
        let number = self.next_ack;
        self.client.send(format!(r#"42{number}["{event}",{payload}]"#)).await?;
        let head = format!("43{number}[");
        let answered = async {
            loop {
                let packet = self.client.packet().await?;
                if let Some(answer) = packet.strip_prefix(&head) {
                    return Ok(answer.to_owned());
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered).await?
    }

    /// As `ask`, but every reply other than success is an error.
    pub async fn must(&mut self, event: &str, payload: &str) -> Result<String> {
        let answer = self.ask(event, payload).await?;
        if !answer.contains(r#""ok":true"#) {
            bail!("{event}: {answer}");
        }
        Ok(answer)
    }

    /// Waits for an event that contains `part`. Other packets before it are ignored.
    pub async fn event(&mut self, name: &str, part: &str) -> Result<String> {
        let heard = async {
            loop {
                let packet = self.client.packet().await?;
                match event_name(&packet) {
                    Some(found) if found == name && packet.contains(part) => {
                        return Ok(packet.to_string());
                    }
                    Some("call:error") => bail!("{packet}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await?
    }

    /// Sends an event and waits for nothing.
    pub async fn tell(&mut self, event: &str, payload: &str) -> Result<()> {
        Ok(self.client.send(format!(r#"42["{event}",{payload}]"#)).await?)
    }
}

/// Two users who call each other.
pub struct Pair {
    pub caller: Socket,
    pub callee: Socket,
    pub caller_id: String,
    pub callee_id: String,
}

/// The latencies of the steps of a call.
pub struct Times {
    /// From the attempt to the answer at the caller.
    pub setup: Duration,
    /// Of each candidate, from socket to socket.
    pub relays: Vec<Duration>,
}

impl Pair {
    pub async fn connect(name: &str, urls: [&str; 2], source: Ipv4Addr) -> Result<Self> {
        let (caller_id, callee_id) = (format!("{name}-a"), format!("{name}-b"));
        let caller = Socket::connect(urls[0], &caller_id, source).await?;
        let callee = Socket::connect(urls[1], &callee_id, source).await?;
        Ok(Self { caller, callee, caller_id, callee_id })
    }

    /// Places a call and answers it.
    pub async fn establish(&mut self) -> Result<Duration> {
        let (to_callee, to_caller) = (self.to_callee(), self.to_caller());
        let began = Instant::now();
        let initiate = format!(r#"{{{to_callee},"callType":"audio"}}"#);
        self.caller.must("call:initiate", &initiate).await?;
        self.caller
            .tell("call:offer", &format!(r#"{{{to_callee},"offer":{}}}"#, sdp("offer", 2_500)))
            .await?;
        self.callee.event("call:offer", "").await?;
        self.callee
            .tell("call:answer", &format!(r#"{{{to_caller},"answer":{}}}"#, sdp("answer", 2_000)))
            .await?;
        self.caller.event("call:answer", "").await?;
        Ok(began.elapsed())
    }

    /// Sends a candidate in each direction.
    pub async fn relay(&mut self) -> Result<[Duration; 2]> {
        let began = Instant::now();
        self.caller.tell("call:ice-candidate", &candidate(&self.to_callee())).await?;
        self.callee.event("call:ice-candidate", "").await?;
        let there = began.elapsed();
        self.callee.tell("call:ice-candidate", &candidate(&self.to_caller())).await?;
        self.caller.event("call:ice-candidate", "").await?;
        Ok([there, began.elapsed().saturating_sub(there)])
    }

    /// A whole call.
    pub async fn call(&mut self, candidates: u32) -> Result<Times> {
        let setup = self.establish().await?;
        let mut relays = Vec::new();
        for _ in 0..candidates {
            relays.extend(self.relay().await?);
        }
        let to_callee = self.to_callee();
        self.caller.must("call:end", &format!("{{{to_callee}}}")).await?;
        self.callee.event("call:ended", "").await?;
        Ok(Times { setup, relays })
    }

    fn to_callee(&self) -> String {
        format!(r#""toUserId":"{}""#, self.callee_id)
    }

    fn to_caller(&self) -> String {
        format!(r#""toUserId":"{}""#, self.caller_id)
    }
}

/// A session description of about this length.
pub fn sdp(kind: &str, bytes: usize) -> String {
    format!(r#"{{"type":"{kind}","sdp":"v=0{}"}}"#, "a=x".repeat(bytes / 3))
}

fn candidate(to: &str) -> String {
    let text = "candidate:1 1 udp 2122260223 192.0.2.17 50000 typ host generation 0 ufrag abcd";
    format!(r#"{{{to},"candidate":{{"candidate":"{text}","sdpMLineIndex":0,"sdpMid":"0"}}}}"#)
}
