//! The health of this node: its phase, and the parts that do not work.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use crate::time::{Clock, Timestamp};

/// The health of the node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    troubles: BTreeMap<Part, (Timestamp, String)>,
}

/// The phase of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Starting,
    Serving,
    Draining,
}

/// A dependency of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The shared state.
    Redis,
    /// This node's place among the nodes: its heartbeat is not renewed, though Redis answers its other commands.
    Lease,
    /// Messages of other nodes.
    Channel,
    /// Writing the call history.
    History,
    /// Maintenance of the call history.
    Upkeep,
    /// Room in the byte budget for messages of clients, calls and other nodes.
    Buffers,
}

impl Part {
    pub const ALL: [Self; 6] =
        [Self::Redis, Self::Lease, Self::Channel, Self::History, Self::Upkeep, Self::Buffers];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Lease => "lease",
            Self::Channel => "channel",
            Self::History => "history",
            Self::Upkeep => "upkeep",
            Self::Buffers => "buffers",
        }
    }

    /// Whether a node without this part must not be sent new clients. True only for parts that a
    /// single node can lose: if all nodes lost one together, the load balancer would have no node
    /// left.
    fn is_needed_for_new_clients(self) -> bool {
        match self {
            Self::Lease | Self::Buffers => true,
            Self::Redis | Self::Channel | Self::History | Self::Upkeep => false,
        }
    }
}

/// The body of `/readyz`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `starting`, `ok`, `degraded`, `unready` or `draining`.
    pub status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Trouble>,
}

/// A part that does not work, and since when.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    pub part: Part,
    pub since: Timestamp,
    pub what: String,
}

impl State {
    fn is_ready(&self) -> bool {
        let mut troubled = self.troubles.keys();
        self.phase == Phase::Serving && !troubled.any(|part| part.is_needed_for_new_clients())
    }
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    pub fn enter(&self, phase: Phase) {
        self.state().phase = phase;
    }

    /// `part` failed. Keeps the time of the first failure and the latest message.
    pub fn trouble(&self, part: Part, what: impl Display) {
        let mut state = self.state();
        let trouble = state.troubles.entry(part);
        trouble.or_insert_with(|| (Clock::System.now(), String::new())).1 = what.to_string();
    }

    /// `part` works.
    pub fn well(&self, part: Part) {
        self.state().troubles.remove(&part);
    }

    pub fn is_troubled(&self, part: Part) -> bool {
        self.state().troubles.contains_key(&part)
    }

    /// Whether load balancers should send new clients. A node without Redis or its database stays ready: otherwise
    /// all nodes would leave the load balancer together.
    pub fn is_ready(&self) -> bool {
        self.state().is_ready()
    }

    pub fn report(&self) -> Report {
        let state = self.state();
        let status = match state.phase {
            Phase::Starting => "starting",
            Phase::Serving if state.troubles.is_empty() => "ok",
            Phase::Serving if state.is_ready() => "degraded",
            Phase::Serving => "unready",
            Phase::Draining => "draining",
        };
        let trouble = |(part, (since, what)): (&Part, &(Timestamp, String))| Trouble {
            part: *part,
            since: *since,
            what: what.clone(),
        };
        Report { status, troubles: state.troubles.iter().map(trouble).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_lost_something_stays_ready_and_says_since_when() {
        let health = Health::default();
        health.trouble(Part::Redis, "it is not there yet");
        assert!(!health.is_ready());
        assert_eq!(health.report().status, "starting");

        health.enter(Phase::Serving);
        let first = health.report();
        assert_eq!(first.status, "degraded");
        health.trouble(Part::Redis, "it is still away");
        let later = health.report();
        assert_eq!(later.troubles[0].since, first.troubles[0].since);
        assert_eq!(later.troubles[0].what, "it is still away");
        assert!(health.is_ready());

        health.well(Part::Redis);
        assert_eq!(health.report(), Report { status: "ok", troubles: Vec::new() });
        health.trouble(Part::Buffers, "the byte budget is used up");
        assert!(!health.is_ready());
        assert_eq!(health.report().status, "unready");
        health.well(Part::Buffers);
        health.trouble(Part::Lease, "others take this node for dead");
        assert!(!health.is_ready());
        assert_eq!(health.report().status, "unready");
        health.well(Part::Lease);
        assert!(health.is_ready());
        health.enter(Phase::Draining);
        assert!(!health.is_ready());
        assert_eq!(health.report().status, "draining");
    }
}
