//! The steps of a run and their times, as data that can be printed and shortened.

use std::fmt;

use super::random::Random;

pub const USERS: usize = 4;
pub const DEVICES_PER_USER: usize = 2;
pub const DEVICES: usize = USERS * DEVICES_PER_USER;
pub const NODES: usize = 3;

/// Steps are generated for the first minute of a run.
const LENGTH_MS: u64 = 60_000;

/// One step: a device's action or a fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub at_ms: u64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A device acts.
    Device(usize, Act),
    /// The process of this node is killed, and another one takes its place.
    Kill {
        node: usize,
        back_ms: u64,
    },
    /// The process freezes.
    Pause {
        node: usize,
        for_ms: u64,
    },
    /// The node is stopped in an orderly way and replaced.
    Drain {
        node: usize,
        back_ms: u64,
    },
    /// Redis does not reply, and executes the commands that it has received when it continues.
    RedisFrozen {
        for_ms: u64,
    },
    /// Redis is down and keeps its data.
    RedisDown {
        for_ms: u64,
    },
    /// Redis is down and comes back empty.
    RedisEmpty {
        for_ms: u64,
    },
    /// Redis fails over to a replica that lacks the last writes.
    RedisBehind {
        writes: usize,
    },
    /// Some operations fail, others only lose their reply.
    Flaky {
        for_ms: u64,
    },
    /// This node alone cannot reach Redis.
    CutOff {
        node: usize,
        for_ms: u64,
    },
    /// This node loses its subscription to other nodes' messages, and nothing else.
    Deaf {
        node: usize,
        for_ms: u64,
    },
    /// Requests of this node take 600 ms to reach Redis.
    Far {
        node: usize,
        for_ms: u64,
    },
    /// The record of some call expires or is evicted.
    RecordGone {
        which: usize,
    },
    /// Some keys are evicted, whatever they are.
    Evicted {
        which: Vec<usize>,
    },
    /// Redis' time of day is set by this much.
    ClockJump {
        by_ms: i64,
    },
    /// Messages between nodes are lost, duplicated and delayed.
    Lossy {
        for_ms: u64,
    },
    /// Messages between nodes are delayed.
    Slow {
        for_ms: u64,
    },
    HistoryDown {
        for_ms: u64,
    },
    /// The database stores a part of each batch and reports a failure.
    HistoryHalf {
        for_ms: u64,
    },
    HistorySlow {
        for_ms: u64,
    },
}

/// An action of a device, as far as its state permits it.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    Call {
        to: usize,
        named: bool,
    },
    /// Repeats the last attempt.
    CallAgain,
    Offer,
    Answer,
    Reject,
    Busy,
    End,
    Candidates(usize),
    /// Sends an event that its state does not permit.
    Nonsense,
    /// Its connection dies. The server notices later; the client may return sooner.
    Vanish {
        noticed_ms: u64,
        back_ms: u64,
    },
    /// Subscribes to the presence of all users, on this and each later socket.
    Watch,
    /// Disconnects on purpose.
    Leave {
        back_ms: u64,
    },
}

impl Act {
    fn any(random: &mut Random) -> Self {
        match random.below(100) {
            0..22 => Self::Call { to: random.index(USERS), named: random.percent(50) },
            22..24 => Self::CallAgain,
            24..30 => Self::Offer,
            30..52 => Self::Answer,
            52..55 => Self::Reject,
            55..58 => Self::Busy,
            58..66 => Self::End,
            66..82 => Self::Candidates(random.index(12) + 1),
            82..85 => Self::Nonsense,
            85..96 => {
                Self::Vanish { noticed_ms: random.below(6_000), back_ms: random.below(12_000) }
            }
            _ => Self::Leave { back_ms: random.below(8_000) },
        }
    }
}

impl What {
    fn fault(random: &mut Random) -> Self {
        let node = random.index(NODES);
        let for_ms = random.between(100, 8_000);
        let back_ms = random.between(200, 6_000);
        match random.below(19) {
            0..3 => Self::Kill { node, back_ms },
            3 => Self::Pause { node, for_ms: random.between(500, 20_000) },
            4..6 => Self::Drain { node, back_ms },
            6 => Self::RedisFrozen { for_ms },
            7 => Self::RedisDown { for_ms },
            8 => Self::RedisEmpty { for_ms: random.between(100, 3_000) },
            9 => Self::RedisBehind { writes: random.index(6) + 1 },
            10 | 11 => Self::Flaky { for_ms },
            12 => Self::CutOff { node, for_ms: random.between(500, 15_000) },
            13 => Self::Lossy { for_ms },
            14 => Self::HistoryDown { for_ms: 3 * for_ms },
            15 => Self::HistoryHalf { for_ms },
            16 | 17 => Self::Slow { for_ms: 2 * for_ms },
            _ => Self::HistorySlow { for_ms },
        }
    }

    /// Whether messages between nodes may be delayed for longer than nodes wait for them.
    pub fn stalls(&self) -> bool {
        use What::{
            ClockJump, Device, Drain, Evicted, HistoryDown, HistoryHalf, HistorySlow, Kill,
            RecordGone, Slow,
        };
        let quick = matches!(
            self,
            Device(..)
                | Kill { .. }
                | Drain { .. }
                | Slow { .. }
                | RecordGone { .. }
                | Evicted { .. }
                | ClockJump { .. }
        );
        !quick && !matches!(self, HistoryDown { .. } | HistoryHalf { .. } | HistorySlow { .. })
    }

    /// Whether the shared state may lose confirmed writes.
    pub fn forgets(&self) -> bool {
        matches!(
            self,
            Self::RedisEmpty { .. }
                | Self::RedisBehind { .. }
                | Self::RecordGone { .. }
                | Self::Evicted { .. }
        )
    }
}

/// The other device of the same user.
fn twin(device: usize) -> usize {
    device / DEVICES_PER_USER * DEVICES_PER_USER + (device + 1) % DEVICES_PER_USER
}

/// The script of a seed. Steps that belong together come in bursts, so that most calls get
/// somewhere; sometimes two steps happen at the same instant. A third of the runs has no fault.
pub fn script(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let mut steps = Vec::new();
    for _ in 0..random.between(2, 9) {
        let at_ms = random.below(LENGTH_MS);
        let (caller, callee) = (random.index(DEVICES), random.index(DEVICES));
        let mut at_ms = at_ms;
        let mut then = |random: &mut Random, acts: [(usize, Act); 2]| {
            let at_once = if random.percent(20) { 2 } else { 1 };
            for (device, act) in acts.into_iter().take(at_once) {
                steps.push(Step { at_ms, what: What::Device(device, act) });
            }
            at_ms += if random.percent(30) { random.below(5) } else { random.below(1_500) };
        };
        let call = |device: usize| Act::Call { to: device / DEVICES_PER_USER, named: true };
        let glare = (callee, call(caller));
        let again = (caller, Act::CallAgain);
        let meanwhile = if random.percent(50) { glare } else { again };
        then(&mut random, [(caller, call(callee)), meanwhile]);
        then(&mut random, [(caller, Act::Offer), (callee, Act::Reject)]);
        then(&mut random, [(caller, Act::Candidates(5)), (caller, Act::End)]);
        then(&mut random, [(callee, Act::Answer), (twin(callee), Act::Answer)]);
        then(&mut random, [(callee, Act::Candidates(5)), (caller, Act::Candidates(5))]);
        then(&mut random, [(caller, Act::Candidates(5)), (callee, Act::Candidates(5))]);
        if random.percent(40) {
            then(&mut random, [(caller, Act::End), (callee, Act::End)]);
        }
    }
    for _ in 0..random.between(5, 60) {
        let what = What::Device(random.index(DEVICES), Act::any(&mut random));
        steps.push(Step { at_ms: random.below(LENGTH_MS), what });
    }
    let faults = if random.percent(33) { 0 } else { random.between(1, 7) };
    for _ in 0..faults {
        let what = What::fault(&mut random);
        steps.push(Step { at_ms: random.below(LENGTH_MS), what });
    }
    // A generator of its own, so that the choices above stay the same when this part changes.
    let mut random = Random::new(!seed);
    if random.percent(60) {
        for _ in 0..random.between(1, 4) {
            let watches = What::Device(random.index(DEVICES), Act::Watch);
            steps.push(Step { at_ms: random.below(LENGTH_MS / 3), what: watches });
        }
    }
    let more_faults = if faults == 0 { 0 } else { random.below(3) };
    for _ in 0..more_faults {
        let node = random.index(NODES);
        let what = match random.below(4) {
            0 => What::RecordGone { which: random.index(8) },
            1 => What::Deaf { node, for_ms: random.between(500, 40_000) },
            _ => What::Far { node, for_ms: random.between(2_000, 15_000) },
        };
        steps.push(Step { at_ms: random.below(LENGTH_MS), what });
    }
    // And these by a chance of their own, again.
    let mut random = Random::new(seed.rotate_left(32) ^ 0x00c1_0cc5);
    if random.percent(25) {
        for _ in 0..random.between(1, 3) {
            let longest_ms = if random.percent(50) { 5_000 } else { 300_000 };
            let by_ms = i64::try_from(random.below(longest_ms)).expect("it is minutes");
            let by_ms = if random.percent(50) { by_ms } else { -by_ms };
            steps.push(Step { at_ms: random.below(LENGTH_MS), what: What::ClockJump { by_ms } });
        }
    }
    if random.percent(15) {
        for _ in 0..random.between(1, 3) {
            let count = random.index(4) + 1;
            let which = (0..count).map(|_| random.index(1_000)).collect();
            steps.push(Step { at_ms: random.below(LENGTH_MS), what: What::Evicted { which } });
        }
    }
    steps.sort_by_key(|step| step.at_ms);
    steps
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:>6} ms  {:?}", self.at_ms, self.what)
    }
}
