//! What earlier runs found, as the shortest scripts that showed it.

use super::script::{
    Act::{self, Answer, Busy, Call, Candidates, End, Offer, Reject, Vanish},
    Step,
    What::{self, CutOff, Flaky, Kill, Pause, RedisBehind, RedisEmpty, RedisFrozen},
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
    [forgotten(), told(), told_more()].into_iter().flatten().collect()
}

/// What came of a shared state that forgets.
fn forgotten() -> Vec<Found> {
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
            what: "an end whose writer never heard of it waited a minute for history",
            seed: 1_014,
            script: vec![
                device(10_708, 7, call(0)),
                at(11_175, RedisFrozen { for_ms: 6_612 }),
                device(13_535, 7, End),
                at(53_556, RedisEmpty { for_ms: 782 }),
            ],
        },
        Found {
            what: "a node that died before its first heartbeat for an empty Redis was not buried",
            seed: 2,
            script: vec![
                at(10_000, RedisEmpty { for_ms: 326 }),
                at(10_276, Flaky { for_ms: 4_000 }),
                at(11_277, Kill { node: 1, back_ms: 6_000 }),
            ],
        },
        Found {
            what: "a node that was none of a call's put it back, and had missed its end",
            seed: 7_488,
            script: vec![
                device(24_934, 2, call(0)),
                at(27_409, Pause { node: 2, for_ms: 13_182 }),
                device(27_733, 0, Answer),
                device(27_733, 1, Answer),
                device(32_043, 2, End),
                at(38_195, RedisEmpty { for_ms: 101 }),
                device(53_398, 1, Vanish { noticed_ms: 2_698, back_ms: 746 }),
            ],
        },
        Found {
            what: "a record of before Redis was empty was taken for what is there",
            seed: 7_474,
            script: vec![
                device(17_404, 4, call(3)),
                device(19_114, 2, Candidates(5)),
                device(19_121, 3, Candidates(5)),
                device(19_839, 6, Answer),
                device(19_842, 6, Candidates(5)),
                at(27_409, Pause { node: 2, for_ms: 13_182 }),
                device(34_091, 5, Call { to: 1, named: false }),
                at(38_195, RedisEmpty { for_ms: 101 }),
            ],
        },
    ]
}

/// What devices were told, or were not.
fn told() -> Vec<Found> {
    vec![
        Found {
            what: "a device whose end was not answered, and whose next word was refused, was not told",
            seed: 1_571,
            script: vec![
                device(23_189, 5, call(1)),
                device(25_343, 3, Answer),
                at(48_597, RedisFrozen { for_ms: 7_186 }),
                device(50_725, 3, End),
                device(52_265, 3, Busy),
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
            what: "a device that was back was not told that another of its user had begun a call",
            seed: 3_375,
            script: vec![
                device(25_152, 6, call(2)),
                device(35_021, 5, Answer),
                at(51_352, Pause { node: 2, for_ms: 13_750 }),
                device(56_125, 0, call(3)),
                device(59_751, 7, Call { to: 0, named: false }),
            ],
        },
        Found {
            what: "a device that was lost before it knew that its answer had won heard of another's",
            seed: 4_643,
            script: vec![
                device(688, 2, call(3)),
                device(3_461, 6, Answer),
                device(9_260, 5, call(0)),
                device(9_766, 1, Call { to: 2, named: false }),
                device(15_719, 3, Offer),
                at(15_828, Flaky { for_ms: 6_745 }),
                device(15_941, 3, Candidates(5)),
                device(16_481, 0, Answer),
                at(25_550, Pause { node: 0, for_ms: 10_581 }),
            ],
        },
        Found {
            what: "a device that hung up while it was taken for lost heard the end beside its ack",
            seed: 7_495,
            script: vec![
                device(17_404, 4, call(3)),
                device(24_934, 2, call(0)),
                at(27_409, Pause { node: 2, for_ms: 13_182 }),
                device(27_733, 1, Answer),
                device(31_567, 5, Answer),
                device(31_567, 5, Candidates(5)),
                device(31_571, 1, Candidates(5)),
                device(32_043, 2, End),
                device(35_902, 7, Answer),
            ],
        },
        Found {
            what: "a ringing node that had stood still was sent what the caller had said twice",
            seed: 10_521,
            script: vec![
                at(49_932, Pause { node: 2, for_ms: 9_109 }),
                device(52_447, 3, call(2)),
                device(52_469, 3, Offer),
                device(55_617, 3, Vanish { noticed_ms: 3_044, back_ms: 7_112 }),
            ],
        },
    ]
}

/// What devices were told too much, or too often.
fn told_more() -> Vec<Found> {
    vec![
        Found {
            what: "an end that was not answered, and then found done, was told to nobody for a while",
            seed: 29_107,
            script: vec![
                device(37_630, 4, Candidates(8)),
                device(38_528, 4, Busy),
                device(39_424, 0, call(3)),
                device(39_927, 7, Answer),
                device(41_528, 1, Candidates(2)),
                device(41_831, 3, End),
                at(43_632, Flaky { for_ms: 4_543 }),
                device(44_999, 0, End),
                device(44_999, 0, End),
                device(49_275, 7, Candidates(2)),
            ],
        },
        Found {
            what: "a caller who had ended a call heard the answer that came in at that instant",
            seed: 26,
            script: vec![
                device(12_131, 6, call(1)),
                device(16_644, 2, Answer),
                device(43_375, 6, End),
                device(43_378, 2, Answer),
            ],
        },
        Found {
            what: "a device whose joining failed had been rung by a reset, and was rung again when it joined",
            seed: 54_898,
            script: vec![
                device(54_859, 4, Vanish { noticed_ms: 4_793, back_ms: 7_372 }),
                device(57_126, 3, call(2)),
                device(57_788, 3, Offer),
                at(59_904, RedisFrozen { for_ms: 6_949 }),
            ],
        },
        Found {
            what: "old news that came after an end was forgotten brought the call back, and its end was told again",
            seed: 670,
            script: vec![
                device(4_871, 2, End),
                device(10_479, 2, call(2)),
                at(10_785, CutOff { node: 0, for_ms: 13_659 }),
                device(11_964, 5, Vanish { noticed_ms: 3_894, back_ms: 4_549 }),
                at(19_526, CutOff { node: 2, for_ms: 12_566 }),
                at(28_135, RedisFrozen { for_ms: 7_961 }),
                device(34_105, 6, Call { to: 0, named: false }),
            ],
        },
        Found {
            what: "candidates waited for an answer that had won unheard, and later ones went before them",
            seed: 6_751,
            script: vec![
                device(37_131, 4, call(0)),
                at(38_406, RedisFrozen { for_ms: 3_292 }),
                device(39_578, 1, Answer),
                device(39_721, 1, Candidates(5)),
                device(51_603, 1, Candidates(6)),
                device(54_515, 1, Answer),
            ],
        },
    ]
}
