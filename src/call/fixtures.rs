//! Names for tests: users `a` and `b` are in a call, `x` is not; `a1` is a socket of `a`.

use std::time::Duration;

use super::{Attempt, Call, CallType, Device, Lobby, Placement, Rules};
use crate::{
    ids::{CallId, NodeId},
    time::Timestamp,
};

pub const RULES: Rules = Rules {
    ring_timeout: Duration::from_secs(30),
    reconnect_grace: Duration::from_secs(10),
    max_call_duration: Duration::from_hours(12),
};

pub fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000) + Duration::from_secs(seconds)
}

/// The device behind a name: `a1` is user `a` on the device and the socket called `a1`; `a1+` is
/// the same device on its next socket; `a1-` gave no device id.
pub fn device(name: &str) -> Device {
    let id = name.trim_end_matches(['+', '-']);
    Device {
        user: name[..1].parse().expect("a user id"),
        node: node(),
        socket: format!("{name:_<16}").parse().expect("16 bytes"),
        id: (!name.ends_with('-')).then(|| id.parse().expect("a device id")),
        connected_at: at(name.matches('+').count() as u64),
    }
}

/// The node that decides, and that holds all sockets.
pub fn node() -> NodeId {
    "01a3185c50007fefa936ca0fe4c1d02e".parse().expect("32 hexadecimal digits")
}

pub fn attempt(from: &str, to: &str) -> Attempt {
    Attempt {
        id: CallId::generate(at(0)),
        from: device(from),
        to: to.parse().expect("a user id"),
        call_type: CallType::Audio,
        caller_info: None,
        client_call_id: None,
    }
}

/// Places an attempt.
pub fn place(attempt: &Attempt, lobby: &Lobby) -> Placement {
    RULES.place(attempt, lobby, at(0)).expect("allowed")
}

/// A call that rings from `a1` to `b`.
pub fn ringing() -> Call {
    let lobby = Lobby { callee_sockets: 2, ..Lobby::default() };
    match place(&attempt("a1", "b"), &lobby) {
        Placement::New(call) => call,
        other => panic!("{other:?}"),
    }
}
