//! The time of day that all nodes of a cluster share: Redis' time of day plus an agreed offset.
//!
//! When Redis' clock jumps, the nodes keep their time: each extrapolates with its monotonic clock,
//! and the first that is certain writes the offset that compensates the jump, by compare-and-set.
//! All nodes read the offset with each heartbeat, a starting node too. The offset decays at the
//! same slow rate on all nodes, because the decay is derived from Redis' time alone. Therefore all
//! nodes have the same time at any moment, and no deadline passes because a clock was set.
//!
//! Pure: no Redis, no I/O. `cluster::redis` passes in the readings, and nothing else sets the
//! clock.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::time::{SharedClock, Timestamp};

/// Times that differ by more than this are not of the same clock.
const JUMP: Duration = Duration::from_secs(1);
/// A reading that took longer than this is too inaccurate to be used.
const MAX_READING_TIME: Duration = Duration::from_millis(500);
/// The decay of an offset per second.
const MELTS_MS_PER_S: u64 = 50;
/// A starting node trusts an offset that was confirmed within this time. Each node confirms with a
/// heartbeat the result of the previous one.
const FRESH: Duration = Duration::from_secs(5);
/// A confirmation that took longer than this to arrive confirms nothing: the store's clock may have
/// been set meanwhile.
pub const MAX_CONFIRMATION_AGE: Duration = Duration::from_secs(5);

/// The agreed difference between the cluster's time and Redis' time. As text: `ms@since`, or
/// nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offset(Option<Agreed>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Agreed {
    ms: i64,
    /// The time of the agreement, by Redis' clock.
    since: Timestamp,
}

/// The result of a heartbeat.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Redis' time of day.
    pub redis: Timestamp,
    pub offset: Offset,
    /// By Redis' clock: the latest reading of any node that matched the offset.
    pub confirmed: Option<Timestamp>,
    /// The round-trip time of the heartbeat.
    pub took: Duration,
}

/// The consequence of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// This clock and the cluster's agree, or the reading allows no conclusion.
    Goes,
    /// Redis' clock has jumped: this offset must be written, provided that the one that was read is
    /// still there.
    Agree(Offset),
    /// The other nodes agree, and this node's clock had stopped: it has adopted their time.
    Followed,
}

/// Sets the clock of one node.
#[derive(Debug)]
pub struct Timekeeper {
    clock: Arc<SharedClock>,
    /// The latest reading, and its time by the monotonic clock.
    last: Option<(Instant, Reading)>,
    /// The latest reading, if it matched the offset.
    confirmed: Option<(Timestamp, Offset)>,
    doubt: Doubt,
}

/// Whether the latest readings agree with this node's clock. If not, either Redis' clock has jumped
/// or this node's has stopped. The confirmations of other nodes decide: one that arrives after the
/// second deviating reading is of a reading after the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    None,
    Once,
    /// Two readings in a row deviated. Contains the latest confirmation at the second.
    Twice(Option<Timestamp>),
}

impl Offset {
    /// The offset that results in `time` while Redis' clock shows `redis`.
    fn between(time: Timestamp, redis: Timestamp) -> Self {
        let ms = signed(time) - signed(redis);
        Self(Some(Agreed { ms, since: redis }))
    }

    /// The remaining offset in ms while Redis' clock shows `redis`.
    pub fn ms_at(self, redis: Timestamp) -> i64 {
        let Some(Agreed { ms, since }) = self.0 else { return 0 };
        let melted = (redis - since).as_secs().saturating_mul(MELTS_MS_PER_S);
        let left = ms.unsigned_abs().saturating_sub(melted);
        i64::try_from(left).unwrap_or(i64::MAX) * ms.signum()
    }

    /// The cluster's time while Redis' clock shows `redis`.
    fn time_at(self, redis: Timestamp) -> Timestamp {
        let ms = signed(redis).saturating_add(self.ms_at(redis));
        Timestamp::from_millis(u64::try_from(ms).unwrap_or(0))
    }
}

fn signed(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn apart(one: Timestamp, other: Timestamp) -> Duration {
    (one - other).max(other - one)
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Agreed { ms, since }) => write!(f, "{ms}@{}", since.as_millis()),
            None => Ok(()),
        }
    }
}

/// The stored text is not an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an offset in ms, an @, and when it was agreed")]
pub struct InvalidOffset;

impl FromStr for Offset {
    type Err = InvalidOffset;

    fn from_str(text: &str) -> Result<Self, InvalidOffset> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let (ms, since) = text.split_once('@').ok_or(InvalidOffset)?;
        let ms = ms.parse().map_err(|_| InvalidOffset)?;
        let since = since.parse().map(Timestamp::from_millis).map_err(|_| InvalidOffset)?;
        Ok(Self(Some(Agreed { ms, since })))
    }
}

impl Reading {
    /// Redis' time now, after the reply has arrived.
    fn now(&self) -> Timestamp {
        self.redis + self.took / 2
    }
}

impl Timekeeper {
    pub fn new(clock: Arc<SharedClock>) -> Self {
        Self { clock, last: None, confirmed: None, doubt: Doubt::None }
    }

    /// The content of the next heartbeat: the previous reading and the offset that it matched.
    pub fn confirms(&self) -> Option<(Timestamp, Offset)> {
        self.confirmed
    }

    /// Lets a starting node adopt the cluster's time as soon as it is certain, and returns whether
    /// it has: Redis' clock may have jumped just before, and the others may not have agreed on an
    /// offset yet. If nobody else has confirmed anything, or `is_alone`, or the node has waited
    /// long enough, it adopts the time at once.
    pub fn begin(&mut self, reading: &Reading, is_alone: bool) -> bool {
        let is_fresh = |at: Timestamp| at <= reading.now() && reading.now() - at <= FRESH;
        let is_certain = is_alone || reading.confirmed.is_none_or(is_fresh);
        if is_certain {
            self.clock.set(reading.offset.time_at(reading.now()));
            self.last = Some((Instant::now(), *reading));
            self.confirmed = Some((reading.redis, reading.offset));
        }
        is_certain
    }

    /// The jump of Redis' clock since the previous reading, in ms; `None` if there was none. Must
    /// be called before [`Self::heard`].
    pub fn jump(&self, reading: &Reading) -> Option<i64> {
        let (at, before) = &self.last?;
        let expected = before.now() + at.elapsed();
        let error = before.took / 2 + reading.took / 2;
        let has_jumped = apart(reading.now(), expected) > JUMP + error;
        has_jumped.then(|| signed(reading.now()) - signed(expected))
    }

    /// Processes a reading.
    pub fn heard(&mut self, reading: &Reading) -> Verdict {
        self.last = Some((Instant::now(), *reading));
        self.confirmed = None;
        if reading.took >= MAX_READING_TIME {
            return Verdict::Goes;
        }
        let (own, time) = (self.clock.read(), reading.offset.time_at(reading.now()));
        if apart(own, time) <= JUMP {
            self.doubt = Doubt::None;
            self.clock.follow(time);
            self.confirmed = Some((reading.redis, reading.offset));
            return Verdict::Goes;
        }
        match self.doubt {
            Doubt::None => self.doubt = Doubt::Once,
            Doubt::Once => self.doubt = Doubt::Twice(reading.confirmed),
            Doubt::Twice(before) if reading.confirmed.is_some_and(|at| before != Some(at)) => {
                self.doubt = Doubt::None;
                self.clock.set(time);
                return Verdict::Followed;
            }
            Doubt::Twice(_) => return Verdict::Agree(Offset::between(own, reading.now())),
        }
        Verdict::Goes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(2);

    /// The simulated Redis: its data, its clock, and nodes that send heartbeats in turn.
    struct Cluster {
        started: Instant,
        ahead_ms: i64,
        offset: Offset,
        confirmed: Option<Timestamp>,
        nodes: Vec<Timekeeper>,
    }

    impl Cluster {
        fn new(nodes: usize) -> Self {
            let mut cluster = Self {
                started: Instant::now(),
                ahead_ms: 0,
                offset: Offset::default(),
                confirmed: None,
                nodes: Vec::new(),
            };
            for _ in 0..nodes {
                assert!(cluster.join(), "nobody has to wait");
            }
            cluster
        }

        fn true_time(&self) -> Timestamp {
            Timestamp::from_millis(1_800_000_000_000) + self.started.elapsed()
        }

        fn reading(&self) -> Reading {
            let redis = signed(self.true_time()) + self.ahead_ms;
            Reading {
                redis: Timestamp::from_millis(redis.try_into().unwrap()),
                offset: self.offset,
                confirmed: self.confirmed,
                took: Duration::from_millis(2),
            }
        }

        /// Starts a node. Returns whether it has adopted the time.
        fn join(&mut self) -> bool {
            let clock = SharedClock::starting_at(Timestamp::from_millis(5));
            let mut node = Timekeeper::new(clock);
            let begun = node.begin(&self.reading(), false);
            if begun {
                self.nodes.push(node);
            }
            begun
        }

        /// One node's heartbeat, as the script executes it.
        fn beat(&mut self, node: usize) -> Verdict {
            if let Some((at, offset)) = self.nodes[node].confirms()
                && offset == self.offset
            {
                self.confirmed = Some(at);
            }
            let reading = self.reading();
            let verdict = self.nodes[node].heard(&reading);
            if let Verdict::Agree(offset) = verdict
                && self.offset == reading.offset
            {
                self.offset = offset;
                self.confirmed = None;
            }
            verdict
        }

        /// Lets all nodes send heartbeats for this long.
        async fn go_on(&mut self, time: Duration) {
            let until = Instant::now() + time;
            while Instant::now() < until {
                for node in 0..self.nodes.len() {
                    self.beat(node);
                    tokio::time::sleep(BEAT / u32::try_from(self.nodes.len()).unwrap()).await;
                }
            }
        }

        /// The difference between each node's clock and the true time, in ms.
        fn errors(&self) -> Vec<i64> {
            let of = |node: &Timekeeper| signed(node.clock.read()) - signed(self.true_time());
            self.nodes.iter().map(of).collect()
        }

        fn assert_within(&self, ms: i64, what: &str) {
            let errors = self.errors();
            assert!(errors.iter().all(|error| error.abs() <= ms), "{what}: {errors:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_clock_jumps_with_redis_and_who_starts_agrees_with_the_others() {
        for jump_s in [60, -120, 3, -3, 400 * 24 * 3_600] {
            for nodes in [1, 2, 8] {
                let mut cluster = Cluster::new(nodes);
                cluster.go_on(BEAT * 3).await;
                cluster.ahead_ms = jump_s * 1_000;
                if i64::abs(jump_s) > 5 {
                    assert!(!cluster.join(), "the others have not agreed yet");
                }
                cluster.go_on(BEAT * 5).await;
                assert!(cluster.join());
                cluster.assert_within(500, &format!("after {jump_s} s, {nodes} nodes"));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_offset_melts_away_everywhere_at_once() {
        let mut cluster = Cluster::new(3);
        cluster.go_on(BEAT * 3).await;
        cluster.ahead_ms = 60_000;
        cluster.go_on(Duration::from_mins(10)).await;
        let errors = cluster.errors();
        assert!(errors.iter().all(|error| (28_000..32_000).contains(error)), "{errors:?}");
        assert!(errors.iter().all(|error| (error - errors[0]).abs() <= 200), "{errors:?}");
        cluster.go_on(Duration::from_mins(12)).await;
        let errors = cluster.errors();
        assert!(errors.iter().all(|error| (error - 60_000).abs() <= 200), "{errors:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_own_clock_stood_still_takes_the_time_of_the_others() {
        let mut cluster = Cluster::new(3);
        cluster.go_on(BEAT * 3).await;
        let late = cluster.nodes[1].clock.read() - Duration::from_mins(10);
        cluster.nodes[1].clock.set(late);
        cluster.go_on(BEAT * 5).await;
        cluster.assert_within(300, "all agree");
        assert_eq!(cluster.offset, Offset::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_redis_that_forgets_the_offset_is_told_again() {
        let mut cluster = Cluster::new(2);
        cluster.go_on(BEAT * 3).await;
        cluster.ahead_ms = -120_000;
        cluster.go_on(BEAT * 5).await;
        (cluster.offset, cluster.confirmed) = (Offset::default(), None);
        cluster.go_on(BEAT * 5).await;
        cluster.assert_within(1_500, "nobody follows");
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_is_found_once() {
        let mut cluster = Cluster::new(1);
        cluster.go_on(BEAT * 3).await;
        cluster.ahead_ms = -120_000;
        let found = |cluster: &Cluster| cluster.nodes[0].jump(&cluster.reading());
        assert!(found(&cluster).is_some_and(|ms| (ms + 120_000).abs() < 10));
        cluster.beat(0);
        tokio::time::sleep(BEAT).await;
        assert_eq!(found(&cluster), None);
    }

    #[test]
    fn an_offset_is_read_as_it_was_written() {
        for offset in [
            Offset::default(),
            Offset::between(Timestamp::from_millis(5), Timestamp::from_millis(700)),
        ] {
            assert_eq!(offset.to_string().parse(), Ok(offset));
        }
        assert_eq!("12".parse::<Offset>(), Err(InvalidOffset));
    }
}
