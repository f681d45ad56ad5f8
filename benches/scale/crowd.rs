//! The crowd: tens of thousands of idle sockets that watch their contacts. It runs in several
//! processes, because the number of open files of a process is limited; each prints the events that
//! its sockets receive.

use std::{
    io::{BufRead, BufReader, Write as _},
    process::{ChildStdin, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use switchboard::bench::client::event_name;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    processes::{Core, OTHER_FILES, Process, command, open_files},
    socket::{Socket, source},
};

/// The most sockets of one process.
const IN_A_PROCESS: usize = 8_000;
const AT_ONCE: usize = 64;
/// The number of sockets per address, which stays below the limit on handshakes in 10 s.
const TO_AN_ADDRESS: u32 = 400;
const HEARD: usize = 100_000;
/// The longest time that connecting a crowd may take on a loaded machine.
const GATHER: Duration = Duration::from_mins(5);

/// Users `c0` to `c<sockets - 1>`. Each watches one of the others, and some users `w<number>` on
/// another node, whom no other member watches.
pub struct Crowd {
    _processes: Vec<(Process, ChildStdin)>,
    heard: mpsc::Receiver<Heard>,
}

/// An event that a socket of the crowd received.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Heard {
    Ready,
    /// One of the `w…` users came online.
    Online(String),
    /// A call rings at this member.
    Incoming(u32),
    /// This many sockets of a process were closed since the last report.
    Closed(usize),
}

/// The name of the `nth` watched user of a member.
pub fn watched(member: u32, nth: u32, watches: u32) -> String {
    format!("w{}", member * watches + nth)
}

impl Crowd {
    pub async fn gather(url: &str, sockets: u32, watches: u32) -> Result<Self> {
        let mut processes = Vec::new();
        let (sender, mut heard) = mpsc::channel(HEARD);
        let most = IN_A_PROCESS.min(open_files().saturating_sub(OTHER_FILES));
        ensure!(most > 0, "a process may open too few files: raise `ulimit -n`");
        let most = u32::try_from(most)?;
        let this = std::env::current_exe()?.display().to_string();
        for first in (0..sockets).step_by(most as usize) {
            let count = most.min(sockets - first);
            let mut child = command(Core::Others, &this)
                .args(["crowd", url, &first.to_string(), &count.to_string()])
                .args([&watches.to_string(), &sockets.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let output = BufReader::new(child.stdout.take().context("it is piped")?);
            let stdin = child.stdin.take().context("it is piped")?;
            processes.push((Process(child), stdin));
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in output.lines().map_while(Result::ok) {
                    if let Some(heard) = Heard::read(&line)
                        && sender.blocking_send(heard).is_err()
                    {
                        return;
                    }
                }
            });
            // One after the other, so that the server's own bounds on handshakes are not measured.
            let ready = async {
                loop {
                    match heard.recv().await {
                        Some(Heard::Ready) => return Ok(()),
                        Some(Heard::Closed(count)) => bail!("{count} of the crowd were closed"),
                        Some(_) => {}
                        None => bail!("the crowd has ended"),
                    }
                }
            };
            tokio::time::timeout(GATHER, ready).await.context("the crowd does not gather")??;
            eprintln!("  {} of {sockets} sockets", first + count);
        }
        Ok(Self { _processes: processes, heard })
    }

    pub async fn heard(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }

    /// Discards all events so far, and returns the number of sockets that were closed.
    pub fn catch_up(&mut self) -> usize {
        let mut closed = 0;
        while let Ok(heard) = self.heard.try_recv() {
            if let Heard::Closed(count) = heard {
                closed += count;
            }
        }
        closed
    }
}

impl Heard {
    fn read(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None => (line == "ready").then_some(Self::Ready),
            Some(("online", user)) => Some(Self::Online(user.to_owned())),
            Some(("incoming", member)) => Some(Self::Incoming(member.parse().ok()?)),
            Some(("closed", count)) => Some(Self::Closed(count.parse().ok()?)),
            Some(_) => None,
        }
    }
}

/// One process of a crowd. It ends when its standard input ends.
pub async fn run(arguments: &[String]) -> Result<()> {
    let [url, numbers @ ..] = arguments else { bail!("crowd: URL FIRST COUNT WATCHES SOCKETS") };
    let numbers: Vec<u32> =
        numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let [first, count, watches, sockets] = numbers[..] else { bail!("crowd: four numbers") };
    let (say, mut said) = mpsc::channel::<String>(HEARD);
    let writing = tokio::task::spawn_blocking(move || {
        let mut closed = 0;
        while let Some(line) = said.blocking_recv() {
            let mut output = std::io::stdout().lock();
            if line == "closed" {
                closed += 1;
                if !said.is_empty() && closed < 100 {
                    continue;
                }
                writeln!(output, "closed {closed}")?;
                closed = 0;
            } else {
                writeln!(output, "{line}")?;
            }
        }
        std::io::Result::Ok(())
    });
    let (over, is_over) = watch::channel(false);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        over.send_replace(true);
    });
    let mut members = JoinSet::new();
    let mut connecting = JoinSet::new();
    for member in first..first + count {
        if connecting.len() >= AT_ONCE
            && let Some(connected) = connecting.join_next().await
        {
            members.spawn(stay(connected??, say.clone()));
        }
        let url = url.clone();
        connecting.spawn(async move { join(&url, member, watches, sockets).await });
    }
    while let Some(connected) = connecting.join_next().await {
        members.spawn(stay(connected??, say.clone()));
    }
    say.send("ready".to_owned()).await?;
    drop(say);
    let mut is_over = is_over;
    is_over.wait_for(|over| *over).await?;
    members.abort_all();
    writing.await??;
    Ok(())
}

async fn join(url: &str, member: u32, watches: u32, sockets: u32) -> Result<(u32, Socket)> {
    let name = format!("c{member}");
    let mut socket = Socket::connect(url, &name, source(member, TO_AN_ADDRESS)).await?;
    if watches > 0 {
        let other = format!("c{}", (member + sockets / 2) % sockets);
        let elsewhere = (1..watches).map(|nth| watched(member, nth, watches));
        let ids: Vec<String> =
            std::iter::once(other).chain(elsewhere).map(|id| format!("\"{id}\"")).collect();
        let payload = format!(r#"{{"userIds":[{}]}}"#, ids.join(","));
        socket.must("presence:subscribe", &payload).await?;
    }
    Ok((member, socket))
}

/// Prints the events that a measurement waits for.
async fn stay((member, mut socket): (u32, Socket), say: mpsc::Sender<String>) {
    while let Ok(packet) = socket.client.packet().await {
        let line = match event_name(&packet) {
            Some("call:incoming") => format!("incoming {member}"),
            Some("presence:update") if packet.contains(r#""online""#) => {
                let user = packet.split_once(r#""userId":"w"#);
                match user.and_then(|(_, rest)| rest.split('"').next()) {
                    Some(user) => format!("online w{user}"),
                    None => continue,
                }
            }
            _ => continue,
        };
        if say.send(line).await.is_err() {
            return;
        }
    }
    let _ = say.send("closed".to_owned()).await;
}
