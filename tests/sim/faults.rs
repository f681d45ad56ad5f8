//! The fault state: the faults that are active now, and until when.

use std::{collections::BTreeMap, time::Duration};

use switchboard::{ids::NodeId, time::Timestamp};

/// The end of each active fault.
#[derive(Debug, Default)]
pub struct FaultState {
    pub frozen: Option<Timestamp>,
    /// The time at which Redis froze.
    pub frozen_since: Option<Timestamp>,
    pub down: Option<Timestamp>,
    pub flaky: Option<Timestamp>,
    pub lossy: Option<Timestamp>,
    /// Messages between nodes are delayed, by a different time for each pair.
    pub slow: Option<Timestamp>,
    pub cut_off: BTreeMap<NodeId, Timestamp>,
    /// Nodes that cannot subscribe while their other connections work.
    pub deaf: BTreeMap<NodeId, Timestamp>,
    /// Nodes whose requests to Redis are delayed.
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
    /// Connections fail.
    Broken,
    /// Nothing is answered until then.
    Frozen(Timestamp),
}

/// A node gives its connection up after this long without a reply.
pub const GIVEN_UP: Duration = Duration::from_millis(1_500);

impl FaultState {
    /// Whether Redis has been frozen until now for so long that nodes have given their connections up.
    pub fn is_given_up(&self, now: Timestamp) -> bool {
        let ended = self.frozen.map_or(now, |until| until.min(now));
        self.frozen_since.is_some_and(|since| ended - since > GIVEN_UP)
    }

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
