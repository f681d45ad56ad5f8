//! What earlier runs found, as the shortest scripts that showed it.

use super::script::{
    Act::{self, Answer, Call, Candidates, End, Reject, Vanish},
    Step,
    What::{self, RedisBehind, RedisEmpty, RedisFrozen},
};

/// A mistake that was made once.
pub struct Found {
    pub what: &'static str,
    pub seed: u64,
    pub script: Vec<Step>,
}

fn at(at_ms: u64, what: What) -> Step {
    Step { at_ms, what }
}

fn device(at_ms: u64, device: usize, act: Act) -> Step {
    at(at_ms, What::Device(device, act))
}

fn call(to: usize) -> Act {
    Call { to, named: true }
}

pub fn all() -> Vec<Found> {
    vec![
        Found {
            what: "a node where a call rang forgot it when its record was gone for a moment",
            seed: 60,
            script: vec![device(46_766, 1, call(2)), at(46_932, RedisBehind { writes: 5 })],
        },
        Found {
            what: "a record that was gone could not be put back over the users' earlier claims",
            seed: 60,
            script: vec![
                device(33_228, 0, call(3)),
                device(46_766, 1, call(2)),
                at(46_932, RedisBehind { writes: 5 }),
            ],
        },
        Found {
            what: "a device whose own reject was carried out, and never answered, rang on",
            seed: 70,
            script: vec![
                device(1_857, 2, call(3)),
                at(13_773, RedisFrozen { for_ms: 5_595 }),
                device(13_959, 3, Candidates(5)),
                device(14_654, 6, Candidates(4)),
                device(15_262, 3, Answer),
                device(15_979, 6, Reject),
            ],
        },
        Found {
            what: "a dead socket took the call back from the device's newer one after a reset",
            seed: 638,
            script: vec![
                device(37_491, 0, call(3)),
                device(37_873, 6, Answer),
                device(59_998, 6, Vanish { noticed_ms: 5_374, back_ms: 4_730 }),
            ],
        },
        Found {
            what: "an end whose writer never heard of it waited a minute for history",
            seed: 1_014,
            script: vec![
                device(10_708, 7, call(0)),
                at(11_175, RedisFrozen { for_ms: 6_612 }),
                device(13_535, 7, End),
                at(53_556, RedisEmpty { for_ms: 782 }),
            ],
        },
    ]
}
