//! The faults that are at work now.

use std::collections::BTreeMap;

use switchboard::{ids::NodeId, time::Timestamp};

/// Each fault until when it lasts.
#[derive(Debug, Default)]
pub struct FaultState {
    pub frozen: Option<Timestamp>,
    /// Since when.
    pub frozen_since: Option<Timestamp>,
    pub down: Option<Timestamp>,
    pub flaky: Option<Timestamp>,
    pub lossy: Option<Timestamp>,
    /// Messages between nodes take long, each pair's as long as it happens to.
    pub slow: Option<Timestamp>,
    pub cut_off: BTreeMap<NodeId, Timestamp>,
    /// The connection on which a node hears the others is gone, since when and until when.
    pub deaf: BTreeMap<NodeId, (Timestamp, Timestamp)>,
    /// What a node asks of Redis takes long to get there.
    pub far: BTreeMap<NodeId, Timestamp>,
    pub paused: BTreeMap<NodeId, Timestamp>,
    pub history_down: Option<Timestamp>,
    pub history_half: Option<Timestamp>,
    pub history_slow: Option<Timestamp>,
}

/// How a node reaches Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisAccess {
    Open,
    /// There is no connection.
    Broken,
    /// Nothing is answered until then.
    Frozen(Timestamp),
}

impl FaultState {
    pub fn redis_access(&self, node: NodeId, now: Timestamp) -> RedisAccess {
        let lasts = |until: Option<&Timestamp>| until.is_some_and(|until| *until > now);
        if lasts(self.down.as_ref()) || lasts(self.cut_off.get(&node)) {
            return RedisAccess::Broken;
        }
        match self.frozen {
            Some(until) if until > now => RedisAccess::Frozen(until),
            _ => RedisAccess::Open,
        }
    }
}
