//! The faults found by earlier runs, each as the shortest script that showed it.

use super::script::{
    Act::{
        self, Answer, Busy, Call, CallAgain, Candidates, End, Leave, Offer, Reject, Vanish, Watch,
    },
    Step,
    What::{
        self, ClockJump, CutOff, Drain, Far, Flaky, Kill, Pause, RecordGone, RedisBehind,
        RedisDown, RedisEmpty, RedisFrozen,
    },
};

/// A fault that was found and fixed.
pub struct Regression {
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

pub fn all() -> Vec<Regression> {
    [
        forgotten(),
        told(),
        told_more(),
        put_back(),
        after_the_end(),
        forgotten_too_soon(),
        gone(),
        unclaimed(),
        moved(),
        acked(),
        clocks(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Faults after the shared state lost writes.
fn forgotten() -> Vec<Regression> {
    vec![
        Regression {
            what: "a ringing node discarded its call when the record was missing for a moment",
            seed: 60,
            script: vec![device(46_766, 1, call(2)), at(46_932, RedisBehind { writes: 5 })],
        },
        Regression {
            what: "a lost record could not be restored over the users' earlier claims",
            seed: 60,
            script: vec![
                device(33_228, 0, call(3)),
                device(46_766, 1, call(2)),
                at(46_932, RedisBehind { writes: 5 }),
            ],
        },
        Regression {
            what: "an end whose commit had no reply waited a minute for the history",
            seed: 1_014,
            script: vec![
                device(10_708, 7, call(0)),
                at(11_175, RedisFrozen { for_ms: 6_612 }),
                device(13_535, 7, End),
                at(53_556, RedisEmpty { for_ms: 782 }),
            ],
        },
        Regression {
            what: "a node that died before its first heartbeat to an empty Redis was not evicted",
            seed: 11,
            script: vec![
                at(10_000, RedisEmpty { for_ms: 326 }),
                at(10_276, Flaky { for_ms: 4_000 }),
                at(11_277, Kill { node: 1, back_ms: 6_000 }),
            ],
        },
        Regression {
            what: "a node of neither party restored a call whose end it had missed",
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
        Regression {
            what: "a record from before a Redis reset was taken for the present one",
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

/// Faults after records expired or were evicted.
fn gone() -> Vec<Regression> {
    vec![
        Regression {
            what: "a claim without a record kept its users from calling forever",
            seed: 31,
            script: vec![device(347, 3, call(2)), at(15_019, RecordGone { which: 0 })],
        },
        Regression {
            what: "an end that was restored over no record caused no presence change",
            seed: 333,
            script: vec![
                device(6_935, 3, Watch),
                device(42_426, 7, Call { to: 1, named: false }),
                at(50_916, RecordGone { which: 7 }),
            ],
        },
    ]
}

/// Events that devices did not receive.
fn told() -> Vec<Regression> {
    vec![
        Regression {
            what: "a device whose end had no reply, and whose next event was refused, missed the end",
            seed: 1_571,
            script: vec![
                device(23_189, 5, call(1)),
                device(25_343, 3, Answer),
                at(48_597, RedisFrozen { for_ms: 7_186 }),
                device(50_725, 3, End),
                device(52_265, 3, Busy),
            ],
        },
        Regression {
            what: "a device whose reject was applied without a reply kept ringing",
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
        Regression {
            what: "after a reset, a dead socket took the call back from the device's newer one",
            seed: 638,
            script: vec![
                device(37_491, 0, call(3)),
                device(37_873, 6, Answer),
                device(59_998, 6, Vanish { noticed_ms: 5_374, back_ms: 4_730 }),
            ],
        },
        Regression {
            what: "a returned device missed the end caused by another device of its user",
            seed: 3_375,
            script: vec![
                device(25_152, 6, call(2)),
                device(35_021, 5, Answer),
                at(51_352, Pause { node: 2, for_ms: 13_750 }),
                device(56_125, 0, call(3)),
                device(59_751, 7, Call { to: 0, named: false }),
            ],
        },
        Regression {
            what: "a device that was lost before the reply to its winning answer got another one's",
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
        Regression {
            what: "a device that hung up while marked lost got the end beside its ack",
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
        Regression {
            what: "a ringing node that had been frozen got the caller's messages twice",
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

/// Events that devices should not have received, or received twice.
fn told_more() -> Vec<Regression> {
    vec![
        Regression {
            what: "an end without a reply, then found applied, was announced late",
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
        Regression {
            what: "a caller who had ended a call got an answer of the same instant",
            seed: 26,
            script: vec![
                device(12_131, 6, call(1)),
                device(16_644, 2, Answer),
                device(43_375, 6, End),
                device(43_378, 2, Answer),
            ],
        },
        Regression {
            what: "a device was rung by a recovery while its join failed, and again when it joined",
            seed: 54_898,
            script: vec![
                device(54_859, 4, Vanish { noticed_ms: 4_793, back_ms: 7_372 }),
                device(57_126, 3, call(2)),
                device(57_788, 3, Offer),
                at(59_904, RedisFrozen { for_ms: 6_949 }),
            ],
        },
        Regression {
            what: "an old record after the end was discarded revived the call, whose end was repeated",
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
        Regression {
            what: "candidates waited for an answer that had won without a reply, and were overtaken",
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
        Regression {
            what: "the message in publication to a dying node was recalled last, after later ones",
            seed: 17_766,
            script: vec![
                device(18, 5, Busy),
                device(3_188, 0, Call { to: 1, named: false }),
                device(3_453, 1, Reject),
                device(4_174, 2, call(1)),
                at(4_280, Kill { node: 0, back_ms: 3_997 }),
                device(4_985, 2, Offer),
                device(5_084, 2, Answer),
                device(5_953, 2, Candidates(5)),
                device(6_979, 2, Answer),
                device(7_109, 0, call(3)),
                device(7_366, 0, Offer),
                device(7_366, 6, Reject),
                device(7_367, 0, Candidates(5)),
            ],
        },
    ]
}

/// Ends that were lost or repeated when a record was restored.
fn put_back() -> Vec<Regression> {
    vec![
        Regression {
            what: "a device marked lost could not confirm its connection and missed an end without a record",
            seed: 52_276,
            script: vec![
                device(30_273, 6, call(1)),
                at(33_510, Pause { node: 1, for_ms: 17_339 }),
                at(50_621, RedisEmpty { for_ms: 2_258 }),
            ],
        },
        Regression {
            what: "a call was restored as missed, and the device whose answer was lost got no end",
            seed: 52_713,
            script: vec![
                device(78, 7, Candidates(9)),
                device(1_838, 3, Answer),
                device(4_846, 5, call(1)),
                at(9_000, Kill { node: 2, back_ms: 1_916 }),
                device(10_348, 6, Answer),
                device(12_247, 2, Vanish { noticed_ms: 5_139, back_ms: 9_337 }),
                device(13_449, 5, Answer),
                device(18_106, 5, Vanish { noticed_ms: 4_382, back_ms: 5_869 }),
                device(18_639, 5, Leave { back_ms: 6_883 }),
                at(20_522, Kill { node: 1, back_ms: 509 }),
                device(21_083, 3, Call { to: 1, named: false }),
                device(21_569, 1, call(2)),
                at(25_634, Pause { node: 0, for_ms: 10_199 }),
                device(27_056, 2, call(2)),
                device(28_506, 4, Answer),
                device(28_506, 5, Answer),
                at(32_779, RedisEmpty { for_ms: 2_808 }),
                device(33_120, 3, Offer),
                device(33_996, 3, Answer),
                device(34_469, 3, Candidates(5)),
                device(35_356, 3, Candidates(5)),
                device(35_358, 3, End),
                device(35_358, 3, End),
            ],
        },
        Regression {
            what: "an end restored over a version of the same number was overwritten by its reader",
            seed: 67_533,
            script: vec![
                device(13_473, 0, Call { to: 2, named: false }),
                device(13_683, 5, Answer),
                device(32_997, 5, Vanish { noticed_ms: 1_772, back_ms: 1_675 }),
                device(34_270, 5, Leave { back_ms: 3_134 }),
                device(36_844, 5, Leave { back_ms: 1_897 }),
                at(37_099, RedisBehind { writes: 6 }),
                device(43_869, 5, Answer),
            ],
        },
        Regression {
            what: "an end that both parties had missed was not restored",
            seed: 88_185,
            script: vec![
                device(7_490, 5, Answer),
                device(22_173, 1, Answer),
                device(22_750, 5, call(0)),
                device(22_858, 1, Answer),
                device(23_939, 2, Answer),
                device(25_339, 4, Answer),
                device(25_577, 5, Candidates(5)),
                device(33_494, 1, Vanish { noticed_ms: 2_607, back_ms: 6_865 }),
                device(37_365, 5, Offer),
                device(37_365, 5, Reject),
                device(37_665, 5, Candidates(5)),
                device(37_667, 5, Answer),
                device(37_924, 4, Answer),
                device(39_449, 5, Candidates(5)),
                at(39_459, Drain { node: 1, back_ms: 5_397 }),
                at(39_470, CutOff { node: 0, for_ms: 10_249 }),
                at(48_876, RedisEmpty { for_ms: 2_921 }),
            ],
        },
        Regression {
            what: "a device got an end twice when another node had restored an earlier version",
            seed: 84_655,
            script: vec![
                device(26_351, 3, call(3)),
                at(29_194, CutOff { node: 0, for_ms: 13_089 }),
                at(44_840, RedisEmpty { for_ms: 2_719 }),
                at(47_255, CutOff { node: 0, for_ms: 10_024 }),
            ],
        },
        Regression {
            what: "a device that returned before its call was restored, and dialled, missed the end",
            seed: 95_437,
            script: vec![
                device(141, 0, Answer),
                device(14_960, 2, call(3)),
                at(15_143, RedisEmpty { for_ms: 2_160 }),
                at(15_391, Drain { node: 1, back_ms: 4_789 }),
                device(24_326, 2, CallAgain),
            ],
        },
    ]
}

/// Events that a device received after it had hung up.
fn after_the_end() -> Vec<Regression> {
    vec![Regression {
        what: "a cut-off node restored a call, and a device that had hung up got a message of it",
        seed: 36_536,
        script: vec![
            device(14_167, 5, Candidates(5)),
            device(14_733, 6, Offer),
            device(14_802, 5, Answer),
            device(15_776, 5, Candidates(5)),
            device(15_891, 5, Candidates(5)),
            device(15_891, 5, Candidates(5)),
            device(15_893, 5, End),
            device(17_641, 1, call(3)),
            device(17_643, 1, Offer),
            device(18_944, 1, Candidates(5)),
            device(20_083, 7, Answer),
            device(20_085, 7, Candidates(5)),
            device(21_138, 1, Candidates(5)),
            device(22_316, 7, Answer),
            device(23_255, 7, call(2)),
            device(23_358, 3, call(1)),
            device(23_359, 3, Offer),
            device(23_538, 3, Candidates(5)),
            at(23_965, CutOff { node: 2, for_ms: 14_323 }),
            device(24_539, 3, Answer),
            device(24_541, 3, Candidates(5)),
            device(24_679, 7, Offer),
            device(24_683, 7, Candidates(5)),
            device(24_683, 7, End),
            device(27_027, 7, End),
            device(28_086, 6, Candidates(5)),
            device(28_090, 4, Candidates(5)),
            device(28_747, 1, Answer),
            device(29_014, 2, Answer),
            at(32_263, RedisEmpty { for_ms: 2_141 }),
            at(33_352, Kill { node: 1, back_ms: 1_832 }),
        ],
    }]
}

/// Faults of a node that discarded its view of a call too early.
fn forgotten_too_soon() -> Vec<Regression> {
    vec![Regression {
        what: "a call that returned to its node was discarded too early, and its end was repeated",
        seed: 40_667,
        script: vec![
            device(19_645, 2, Offer),
            device(19_661, 4, End),
            at(19_755, Drain { node: 0, back_ms: 4_353 }),
            device(21_088, 7, Candidates(5)),
            device(21_089, 2, Candidates(5)),
            device(24_997, 7, Answer),
            device(25_548, 0, Candidates(5)),
            device(26_044, 6, Offer),
            device(26_044, 6, Candidates(5)),
            device(26_048, 4, Answer),
            device(26_048, 5, Answer),
            device(26_049, 4, Candidates(5)),
            device(26_049, 6, Candidates(5)),
            device(27_008, 6, Answer),
            device(33_858, 6, Candidates(5)),
            device(33_905, 5, Reject),
            at(34_162, Drain { node: 2, back_ms: 4_708 }),
            device(35_583, 6, End),
            device(35_690, 5, call(3)),
            device(35_692, 5, Candidates(5)),
            device(37_149, 6, Answer),
            at(38_930, Pause { node: 1, for_ms: 12_917 }),
            device(43_439, 7, Offer),
            device(45_433, 5, Busy),
            device(45_547, 4, Answer),
            device(47_566, 5, Vanish { noticed_ms: 5_964, back_ms: 9_866 }),
            device(51_004, 3, End),
            device(53_811, 7, call(2)),
            device(55_144, 2, call(1)),
            device(55_147, 2, Candidates(5)),
            device(55_768, 3, Answer),
            device(55_770, 3, Candidates(5)),
            device(55_770, 2, Candidates(5)),
            device(55_774, 2, Candidates(5)),
            device(55_774, 3, Candidates(5)),
            device(57_256, 1, Answer),
            at(59_839, Pause { node: 0, for_ms: 19_875 }),
        ],
    }]
}

/// Faults of calls that no user has a claim on.
fn unclaimed() -> Vec<Regression> {
    vec![Regression {
        what: "a call was restored over an end without claims, and one of its users was rung",
        seed: 88_167,
        script: vec![
            device(216, 3, call(1)),
            device(522, 3, call(0)),
            device(1_745, 3, Offer),
            device(2_782, 7, Offer),
            device(2_820, 3, Candidates(5)),
            device(3_782, 1, Answer),
            device(4_434, 1, Candidates(5)),
            device(4_434, 3, Candidates(5)),
            device(4_438, 3, Candidates(5)),
            device(4_438, 1, Candidates(5)),
            device(4_850, 2, CallAgain),
            device(6_573, 1, call(3)),
            device(19_987, 5, call(1)),
            device(19_987, 5, CallAgain),
            device(21_323, 5, Offer),
            device(21_640, 0, End),
            device(21_949, 5, Candidates(5)),
            device(22_173, 1, Answer),
            device(22_750, 5, call(0)),
            device(22_858, 1, Answer),
            device(23_111, 2, Answer),
            device(23_939, 2, Answer),
            device(24_329, 2, Candidates(5)),
            device(24_329, 5, Candidates(5)),
            device(24_852, 5, Candidates(5)),
            device(24_964, 5, End),
            device(25_339, 4, Answer),
            device(25_577, 5, Candidates(5)),
            device(25_698, 1, Answer),
            device(26_171, 1, Candidates(5)),
            device(26_900, 5, Candidates(5)),
            device(26_900, 1, Candidates(5)),
            device(27_503, 5, End),
            device(29_971, 4, Leave { back_ms: 6_531 }),
            device(31_310, 4, call(2)),
            device(32_117, 4, Offer),
            device(32_158, 7, CallAgain),
            device(34_580, 4, Answer),
            device(35_616, 6, Call { to: 0, named: false }),
            device(36_618, 5, Vanish { noticed_ms: 547, back_ms: 7_062 }),
            device(36_905, 5, call(2)),
            device(37_365, 5, Offer),
            at(39_459, Drain { node: 1, back_ms: 5_397 }),
            at(39_470, CutOff { node: 0, for_ms: 10_249 }),
            device(39_557, 6, Answer),
            device(43_625, 4, Candidates(4)),
            device(43_742, 5, Answer),
            device(44_759, 0, End),
            device(48_051, 1, Busy),
            device(48_294, 6, Act::Nonsense),
            at(48_876, RedisEmpty { for_ms: 2_921 }),
            device(50_964, 2, Answer),
            device(50_964, 3, Answer),
            device(50_966, 2, Candidates(5)),
            device(54_725, 7, call(1)),
        ],
    }]
}

/// Faults of callers who move while their calls ring.
fn moved() -> Vec<Regression> {
    vec![Regression {
        what: "a node did not know that a ringing call had moved to it, and sent what it rang with again",
        seed: 449,
        script: vec![
            device(1_092, 5, Vanish { noticed_ms: 1_854, back_ms: 9_117 }),
            device(1_351, 4, Watch),
            device(1_985, 5, call(3)),
            device(1_985, 5, CallAgain),
            device(2_203, 2, call(2)),
            device(3_142, 2, Candidates(5)),
            device(3_196, 5, Offer),
            device(3_406, 1, Candidates(10)),
            device(3_716, 3, Leave { back_ms: 1_557 }),
            device(3_921, 6, call(0)),
            device(4_283, 5, Candidates(5)),
            device(4_286, 6, Answer),
            device(4_286, 7, Answer),
            device(4_377, 5, Answer),
            device(4_378, 5, Candidates(5)),
            device(4_378, 2, Candidates(5)),
            device(4_815, 6, Candidates(5)),
            device(5_818, 6, Reject),
            device(5_822, 2, Candidates(5)),
            device(5_926, 6, Vanish { noticed_ms: 5_409, back_ms: 4_127 }),
            device(6_967, 5, End),
            at(8_121, Far { node: 1, for_ms: 5_849 }),
            device(9_782, 0, Watch),
            at(10_721, Flaky { for_ms: 5_113 }),
        ],
    }]
}

/// Acknowledgements that said too much.
fn acked() -> Vec<Regression> {
    vec![Regression {
        what: "a message was acknowledged for a device that was gone and not signed off yet",
        seed: 4_759,
        script: vec![
            device(30_920, 0, Call { to: 1, named: false }),
            device(34_638, 2, Vanish { noticed_ms: 5_727, back_ms: 6_972 }),
            at(39_324, RedisFrozen { for_ms: 5_946 }),
            at(42_095, RedisDown { for_ms: 5_458 }),
            device(44_321, 0, Candidates(1)),
        ],
    }]
}

/// Faults of nodes whose Redis has another time of day.
fn clocks() -> Vec<Regression> {
    vec![Regression {
        what: "a heartbeat that was held up confirmed the time of before Redis' clock was set",
        seed: 7_137,
        script: vec![
            at(5_862, Pause { node: 2, for_ms: 15_838 }),
            device(6_200, 3, Answer),
            device(9_800, 4, Call { to: 1, named: false }),
            at(17_143, ClockJump { by_ms: 232_431 }),
            device(19_407, 7, Busy),
            at(20_459, ClockJump { by_ms: 242_054 }),
        ],
    }]
}
