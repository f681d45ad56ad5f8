//! Measures how long one node full of watching sockets takes to recover from faults. It has
//! recovered when calls from another node ring at its sockets, and its sockets receive presence
//! updates from there.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    crowd::{Crowd, Heard, watched},
    innocents::{Established, Innocents, Peak},
    postgres_server::Database,
    processes::{Node, OTHER_FILES, Redis, Settings, mib, open_files, parameter},
    proxy::Proxy,
    socket::Socket,
    table::{Results, Row},
};

pub const TABLE: &str = "recovery";
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 99, 0, 2);
/// The number of users who come online, and of calls, in one round of probes. All of them must
/// arrive.
const PROBES: u32 = 20;
const REACHED_WITHIN: Duration = Duration::from_secs(2);
const WELL_WITHIN: Duration = Duration::from_secs(10);
const GIVEN_UP: Duration = Duration::from_mins(2);
const MEMORY_FACTOR: f64 = 1.2;
const STANDSTILL: Duration = Duration::from_secs(3);
const RING: Duration = Duration::from_secs(5);
const DRAIN_WINDOW: Duration = Duration::from_secs(20);
/// Two sweeps and the transport.
const LATE: Duration = Duration::from_millis(1_500);
const ROWS_WITHIN: Duration = Duration::from_secs(30);

pub fn names() -> Vec<String> {
    FAULTS.map(Fault::name).into()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    Far,
    Frozen,
    CommandsCut { ms: u64 },
    RedisEmpty { ms: u64 },
    PostgresAway,
    Drain,
}

const FAULTS: [Fault; 9] = [
    Fault::Nothing,
    Fault::Frozen,
    Fault::CommandsCut { ms: 0 },
    Fault::Far,
    Fault::CommandsCut { ms: 5 },
    Fault::RedisEmpty { ms: 0 },
    Fault::RedisEmpty { ms: 5 },
    Fault::PostgresAway,
    Fault::Drain,
];

impl Fault {
    fn name(self) -> String {
        let far =
            |ms| if ms == 0 { String::new() } else { format!(", Redis {ms} ms away each way") };
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Frozen => format!("Redis stands still for {} s", STANDSTILL.as_secs()),
            Self::Far => "Redis 5 ms away each way from now on".to_owned(),
            Self::CommandsCut { ms } => format!("connections for commands cut{}", far(ms)),
            Self::RedisEmpty { ms } => format!("Redis restarted empty{}", far(ms)),
            Self::PostgresAway => "Postgres away".to_owned(),
            Self::Drain => "drain".to_owned(),
        }
    }

    fn delay(self) -> Duration {
        match self {
            Self::CommandsCut { ms } | Self::RedisEmpty { ms } => Duration::from_millis(ms),
            Self::Nothing | Self::Far | Self::Frozen | Self::PostgresAway | Self::Drain => {
                Duration::ZERO
            }
        }
    }
}

/// The full node, a small node that probes it, and their dependencies.
struct Stage {
    redis: Redis,
    to_redis: Proxy,
    database: Database,
    to_postgres: Proxy,
    full: Node,
    light: Node,
    crowd: Crowd,
    sockets: u32,
    watches: u32,
    /// The number of probe rounds. No user comes online twice, because a grace period would hide
    /// it.
    round: u32,
}

pub async fn run(results: &mut Results) -> Result<()> {
    let sockets = u32::try_from(parameter("SOCKETS", 20_000)?)?;
    let room = u32::try_from(open_files().saturating_sub(OTHER_FILES))?;
    if sockets > room {
        eprintln!(
            "A node with {sockets} sockets needs `ulimit -n {}`, it is {}: {room} sockets instead",
            sockets as usize + OTHER_FILES,
            open_files()
        );
    }
    let sockets = sockets.min(room);
    let watches = u32::try_from(parameter("WATCHES", 12)?)?;
    let only = std::env::var("FAULT").unwrap_or_default();
    let mut stage = None;
    for fault in FAULTS.into_iter().filter(|fault| fault.name().contains(&only)) {
        let mut own = match stage.take() {
            Some(stage) => stage,
            None => Stage::set(sockets, watches).await?,
        };
        let row = match fault {
            Fault::Drain => own.drain().await,
            Fault::PostgresAway => own.without_postgres().await,
            _ => own.strike(fault).await,
        };
        let (mut row, is_well) = match row {
            Ok((row, is_well)) => (row, is_well),
            Err(error) => {
                let mut row = Row::default();
                row.ask("well again after, s", format!("not measured: {error:#}"), false);
                (row, false)
            }
        };
        row.add("sockets", format!("{sockets} × {watches}"));
        results.put(TABLE, &fault.name(), row)?;
        // After a recovery the next fault uses the same processes.
        if is_well {
            stage = Some(own);
        }
    }
    Ok(())
}

impl Stage {
    async fn set(sockets: u32, watches: u32) -> Result<Self> {
        let redis = Redis::start().await?;
        let to_redis = Proxy::start(&redis.address()).await?;
        let database = tokio::task::spawn_blocking(Database::new).await?;
        let (head, name) = database.url.rsplit_once('/').context("a URL has a path")?;
        let to_postgres = Proxy::start(head.rsplit('@').next().context("it has a host")?).await?;
        let history = format!("postgres://postgres@{}/{name}", to_postgres.address);
        let settings = |redis: String| Settings {
            redis: Some(redis),
            database: Some(history.clone()),
            limits: Some("off".to_owned()),
            others: [
                "--ring-timeout".to_owned(),
                format!("{}s", RING.as_secs()),
                "--drain-window".to_owned(),
                format!("{}s", DRAIN_WINDOW.as_secs()),
            ]
            .into(),
        };
        let full = Node::start(settings(format!("redis://{}", to_redis.address))).await?;
        let light = Node::start(settings(redis.url())).await?;
        let crowd = Crowd::gather(&full.url, sockets, watches).await?;
        let mut stage = Self {
            redis,
            to_redis,
            database,
            to_postgres,
            full,
            light,
            crowd,
            sockets,
            watches,
            round: 0,
        };
        ensure!(stage.well_after().await?.is_some(), "the crowd is never well");
        Ok(stage)
    }

    /// The time until all probes of two consecutive rounds arrive.
    async fn well_after(&mut self) -> Result<Option<Duration>> {
        let began = Instant::now();
        let mut first = None;
        while began.elapsed() < GIVEN_UP {
            let at = began.elapsed();
            if self.probe().await? {
                if let Some(first) = first {
                    return Ok(Some(first));
                }
                first = Some(at);
            } else {
                first = None;
            }
        }
        Ok(None)
    }

    /// One round of probes. Returns whether all arrived.
    async fn probe(&mut self) -> Result<bool> {
        let closed = self.crowd.catch_up();
        ensure!(closed == 0, "{closed} sockets of the crowd were closed");
        self.round += 1;
        let mut probing = JoinSet::new();
        let (mut expected, apart) = (HashSet::new(), self.sockets / PROBES);
        for number in 0..PROBES {
            // Spread over the whole crowd, with other members in each round.
            let member = (number * apart + self.round) % self.sockets;
            let nth = 1 + (self.round / apart.max(1)) % (self.watches - 1).max(1);
            let user = watched(member, nth, self.watches);
            let (url, caller) = (self.light.url.clone(), format!("probe-{}-{number}", self.round));
            if self.watches > 1 {
                expected.insert(Heard::Online(user.clone()));
            }
            expected.insert(Heard::Incoming(member));
            probing.spawn(async move {
                let comes = Socket::connect(&url, &user, SOURCE);
                let calls = async {
                    let mut caller = Socket::connect(&url, &caller, SOURCE).await?;
                    let call = format!(r#"{{"toUserId":"c{member}","callType":"audio"}}"#);
                    let answer = caller.ask("call:initiate", &call).await;
                    anyhow::Ok((caller, answer, member))
                };
                tokio::join!(comes, calls)
            });
        }
        let hearing = async {
            while !expected.is_empty() {
                match self.crowd.heard().await {
                    Some(heard) => expected.remove(&heard),
                    None => return,
                };
            }
        };
        let mut is_well = timeout(REACHED_WITHIN, hearing).await.is_ok();
        while let Some(probed) = probing.join_next().await {
            let (comes, calls) = probed?;
            is_well &= comes.is_ok();
            let Ok((mut caller, answer, member)) = calls else {
                is_well = false;
                continue;
            };
            is_well &= answer.is_ok_and(|answer| answer.contains(r#""ok":true"#));
            // Without an end the call would ring until its time-out.
            let _ = caller.ask("call:end", &format!(r#"{{"toUserId":"c{member}"}}"#)).await;
        }
        if !is_well {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(is_well)
    }

    /// Places calls that nobody answers; returns by how much they end after their time-out.
    async fn ringing(&self) -> Result<JoinSet<Result<Duration>>> {
        let mut calls = JoinSet::new();
        for number in 0..10 {
            let user = format!("ringing-{}-{number}", self.round);
            let mut caller = Socket::connect(&self.light.url, &user, SOURCE).await?;
            let member = (self.round + number * 7) % self.sockets;
            let call = format!(r#"{{"toUserId":"c{member}","callType":"audio"}}"#);
            caller.must("call:initiate", &call).await?;
            let began = Instant::now();
            calls.spawn(async move {
                let ended = async {
                    while !caller.client.packet().await?.contains("call:ended") {}
                    anyhow::Ok(())
                };
                timeout(GIVEN_UP, ended).await.context("it rings for ever")??;
                Ok(began.elapsed().saturating_sub(RING))
            });
        }
        Ok(calls)
    }

    async fn strike(&mut self, fault: Fault) -> Result<(Row, bool)> {
        self.to_redis.delay(fault.delay());
        if fault.delay() > Duration::ZERO {
            ensure!(self.well_after().await?.is_some(), "it is not well so far from Redis");
        }
        let urls = [&*self.light.url, &*self.full.url];
        let established =
            Established::connect(urls).await.context("no call can be made before the fault")?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (memory, lines) = (self.full.memory_bytes(), self.full.log_lines());
        let peak = self.peak();
        let ringing = self.ringing().await.context("nothing rings before the fault")?;
        let began = Instant::now();
        match fault {
            Fault::Far => self.to_redis.delay(Duration::from_millis(5)),
            Fault::Frozen => {
                self.to_redis.freeze(true);
                tokio::time::sleep(STANDSTILL).await;
                self.to_redis.freeze(false);
            }
            Fault::CommandsCut { .. } => {
                ensure!(self.to_redis.cut_commands() > 0, "there is no connection to cut");
            }
            Fault::RedisEmpty { .. } => self.redis.restart().await?,
            Fault::Nothing | Fault::PostgresAway | Fault::Drain => {}
        }
        let away = began.elapsed();
        let before = self.redis.used().await?;
        let well = self.well_after().await?;
        let after = self.redis.used().await?;
        // Load that follows the fault counts as well.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let factor = mib(peak.take().await) / mib(memory);
        let (ended, all, mut relays) = established.finish().await;
        let late = latest(ringing).await;
        let longest = relays.millis_at([1_000]).map_or(f64::INFINITY, |[longest]| longest);
        self.to_redis.delay(Duration::ZERO);

        let mut row = Row::default();
        row.ask(
            "well again after, s",
            seconds(well, GIVEN_UP),
            well.is_some_and(|well| well <= WELL_WITHIN),
        );
        row.ask("memory, ×", format!("{factor:.2}"), factor <= MEMORY_FACTOR);
        row.ask(
            "ring time-outs late by, s",
            seconds(late, GIVEN_UP),
            late.is_some_and(|late| late <= LATE + away),
        );
        row.add("slowest relay of other calls, s", format!("{:.1}", longest / 1_000.0));
        row.ask("established calls ended", format!("{ended} of {all}"), ended == 0);
        row.add("scripts meanwhile", after.scripts.saturating_sub(before.scripts).to_string());
        row.add("log lines", (self.full.log_lines() - lines).to_string());
        Ok((row, well.is_some()))
    }

    /// Rows accumulate meanwhile; live calls must not wait behind them.
    async fn without_postgres(&mut self) -> Result<(Row, bool)> {
        let away = Duration::from_secs(parameter("POSTGRES_SECONDS", 60)?);
        let mut innocents = Innocents::connect([&self.light.url, &self.full.url]).await?;
        let established = Established::connect([&self.light.url, &self.full.url]).await?;
        let (memory, lines) = (self.full.memory_bytes(), self.full.log_lines());
        let peak = self.peak();
        let rows_before = self.rows()?;
        self.to_postgres.refuse(true);
        let outcome = innocents.call(away.saturating_sub(RING * 2)).await;
        let late = latest(self.ringing().await?).await;
        let before = self.redis.used().await?;
        self.to_postgres.refuse(false);
        let back = Instant::now();
        let wanted = rows_before + u64::from(outcome.calls - outcome.failed) + 10;
        let mut stored = None;
        while stored.is_none() && back.elapsed() < GIVEN_UP {
            tokio::time::sleep(Duration::from_millis(250)).await;
            stored = (self.rows()? >= wanted).then(|| back.elapsed());
        }
        let after = self.redis.used().await?;
        let well = self.well_after().await?;
        let factor = mib(peak.take().await) / mib(memory);
        let (ended, all, mut relays) = established.finish().await;
        let longest = relays.millis_at([1_000]).map_or(f64::INFINITY, |[longest]| longest);
        let mut row = Row::default();
        let rows = format!(
            "{} for {} calls of {} s",
            seconds(stored, GIVEN_UP),
            outcome.calls,
            away.as_secs()
        );
        row.ask("well again after, s", rows, stored.is_some_and(|stored| stored <= ROWS_WITHIN));
        row.ask("memory, ×", format!("{factor:.2}"), factor <= MEMORY_FACTOR);
        row.ask(
            "ring time-outs late by, s",
            seconds(late, GIVEN_UP),
            late.is_some_and(|late| late <= LATE),
        );
        row.add("slowest relay of other calls, s", format!("{:.1}", longest / 1_000.0));
        row.ask("established calls ended", format!("{ended} of {all}"), ended == 0);
        row.add("scripts meanwhile", (after.scripts - before.scripts).to_string());
        row.add("log lines", (self.full.log_lines() - lines).to_string());
        row.ask(
            "calls failed",
            format!("{} of {}", outcome.failed, outcome.calls),
            outcome.failed == 0,
        );
        Ok((row, well.is_some()))
    }

    async fn drain(&mut self) -> Result<(Row, bool)> {
        let peak = self.peak();
        let memory = self.full.memory_bytes();
        self.crowd.catch_up();
        self.full.process.signal("-TERM")?;
        let began = Instant::now();
        let mut closed = 0;
        let mut last = None;
        while closed < self.sockets as usize && began.elapsed() < GIVEN_UP {
            match timeout(GIVEN_UP, self.crowd.heard()).await {
                Ok(Some(Heard::Closed(count))) => closed += count,
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => break,
            }
            last = Some(began.elapsed());
        }
        while !self.full.process.has_ended() && began.elapsed() < GIVEN_UP {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let exit = self.full.process.has_ended().then(|| began.elapsed());
        let factor = mib(peak.take().await) / mib(memory);
        let mut row = Row::default();
        let text = format!(
            "{}, last of {closed} closed after {}",
            seconds(exit, GIVEN_UP),
            seconds(last, GIVEN_UP)
        );
        // Within the drain window and the node's own shutdown after it.
        let most = DRAIN_WINDOW + Duration::from_secs(5);
        row.ask("well again after, s", text, last.is_some_and(|last| last <= most));
        row.ask("memory, ×", format!("{factor:.2}"), factor <= MEMORY_FACTOR);
        Ok((row, false))
    }

    fn peak(&self) -> Peak {
        let pid = self.full.process.pid();
        Peak::of(move || switchboard::bench::sample::memory_bytes(pid).unwrap_or_default())
    }

    fn rows(&self) -> Result<u64> {
        let asked = tokio::task::block_in_place(|| self.database.ask("SELECT count(*) FROM calls"));
        Ok(asked.parse()?)
    }
}

/// The latest of some times; `None` if one of them is unknown.
async fn latest(mut times: JoinSet<Result<Duration>>) -> Option<Duration> {
    let mut latest = Duration::ZERO;
    while let Some(time) = times.join_next().await {
        latest = latest.max(time.ok()?.ok()?);
    }
    Some(latest)
}

fn seconds(time: Option<Duration>, most: Duration) -> String {
    time.map_or_else(
        || format!("not within {}", most.as_secs()),
        |time| format!("{:.1}", time.as_secs_f64()),
    )
}
