//! The driver: reads a call, lets the rules decide, commits the decision by compare-and-set, and
//! notifies sockets and nodes. Called by the gateway and the HTTP API. Contains no rule about
//! calls.
//!
//! ```text
//!  clients ──► driver, placement, sessions ──┐                ┌──► call: the rules
//!  nodes ────► remote ───────────────────────┼──► transition ─┴──► cluster: compare, write
//!  time ─────► sweeper, pending, recovery ───┘        │
//!                                                     ▼
//!                       live: one state per call, under its mutex; pure: state, path, buffer
//!                                                     │ effects
//!                                                     ▼
//!                                       sockets, other nodes, pending work
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `driver.rs` | events of clients, transitions, commits; performs the effects of decisions |
//! | `placement.rs` | new calls and repeated attempts; authorization |
//! | `sessions.rs` | the devices on this node: joining, the welcome, leaving |
//! | `remote.rs` | messages of other nodes, and what they are sent |
//! | `live.rs` | the calls that this node knows, and its memory of ended ones |
//! | `state.rs`, `path.rs`, `buffer.rs` | pure: one call as this node knows it, the order of messages across moves, buffered messages |
//! | `pending.rs` | the queue of steps whose first attempt failed or whose outcome is unknown |
//! | `restore.rs` | records that the shared state has lost |
//! | `recovery.rs` | the pass over everything after a reset |
//! | `sweeper.rs` | periodic work |
//! | `watchers.rs` | presence: subscriptions and updates |
//! | `admin.rs` | operators, restarts of the only node, gauges |
//! | `call_metrics.rs`, `spans.rs` | metrics and spans |

mod admin;
mod buffer;
mod call_metrics;
mod driver;
mod live;
mod path;
mod pending;
mod placement;
#[cfg(test)]
mod properties;
mod recovery;
mod remote;
mod restore;
mod sessions;
mod spans;
mod state;
mod sweeper;
mod watchers;

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use buffer::Full;
pub use buffer::{MAX_REPLAY_BYTES, MAX_REPLAY_MESSAGES, MAX_WAITING_BYTES, MAX_WAITING_MESSAGES};
pub use call_metrics::{as_gauge, reported};
use driver::MAX_DECISIONS;
use live::LiveCalls;
use pending::Pending;
pub use placement::{Authorizer, Initiate, Verdict};
use recovery::Recovery;
use sessions::Sessions;
pub use sweeper::SWEEP_INTERVAL;
use watchers::{PRESENCE_AT_ONCE, Watchers};
pub use watchers::{PRESENCE_INTERVAL, Subscribed};

use crate::{
    call::{Refusal, Rules},
    cluster::{Cluster, Unavailable},
    history::Recorder,
    ids::{CallId, NodeId, SocketId, UserId},
    limits::buffers::Buffers,
    protocol::ServerEvent,
    telemetry::Traces,
    time::{Clock, Timestamp},
};

/// `retryAfterMs` if the node's byte budget has no room.
const RETRY_BUDGET: Duration = Duration::from_secs(1);

/// The client sink: the sockets of this node.
pub trait ClientSink: Send + Sync + 'static {
    /// The sockets of `user` on this node.
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId>;

    /// Sends `event` to a socket, after all events before it, and returns whether the socket
    /// accepts it. Never blocks. A socket that is gone accepts nothing, and one that does not keep
    /// up is closed. An event `for_user` is sent only if the socket is that user's.
    fn emit(&self, socket: SocketId, event: &ServerEvent, for_user: Option<&UserId>) -> bool;

    /// Closes a socket for good: its client does not reconnect by itself.
    fn close(&self, socket: SocketId);

    /// Closes all sockets of `user` for good: their clients do not reconnect by themselves.
    fn disconnect(&self, user: &UserId);
}

/// The calls, as seen from this node.
pub struct Calls {
    cluster: Arc<dyn Cluster>,
    sink: Arc<dyn ClientSink>,
    recorder: Recorder,
    rules: Rules,
    clock: Clock,
    authorizer: Option<Arc<dyn Authorizer>>,
    traces: Traces,
    /// Generates the id of a new call.
    name: Box<dyn Fn(Timestamp) -> CallId + Send + Sync>,
    live: LiveCalls,
    sessions: Sessions,
    pending: Pending,
    recovery: Recovery,
    watchers: Watchers,
    presence_turns: Semaphore,
}

/// The reason why a request of a client failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The rules refuse it.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// This user may not call that one, for this reason.
    #[error("not allowed: {0}")]
    Forbidden(Arc<str>),
    /// The callee of this new call has no socket.
    #[error("the callee is offline")]
    Offline(CallId),
    /// The buffer for a disconnected device is full.
    #[error("too much is waiting")]
    Full { retry_after: Duration },
    /// The socket watches as many users as it may.
    #[error("too many users are watched")]
    TooManyWatched,
    /// Too many presence requests are in progress.
    #[error("too many ask for presence")]
    PresenceBusy,
    /// The shared state is unavailable, or changes faster than a decision can be made.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Calls {
    pub fn new(
        cluster: Arc<dyn Cluster>,
        sink: Arc<dyn ClientSink>,
        recorder: Recorder,
        rules: Rules,
        clock: Clock,
    ) -> Self {
        Self {
            cluster,
            sink,
            recorder,
            rules,
            clock,
            authorizer: None,
            traces: Traces::default(),
            name: Box::new(CallId::generate),
            live: LiveCalls::default(),
            watchers: Watchers::default(),
            presence_turns: Semaphore::new(PRESENCE_AT_ONCE),
            sessions: Sessions::default(),
            pending: Pending::default(),
            recovery: Recovery::default(),
        }
    }

    /// Counts buffered messages in `buffers`.
    #[must_use]
    pub fn buffered_in(mut self, buffers: Buffers) -> Self {
        self.live = LiveCalls::new(buffers);
        self
    }

    /// Generates call ids by `name`, so that a simulation is repeatable.
    #[must_use]
    pub fn named_by(mut self, name: impl Fn(Timestamp) -> CallId + Send + Sync + 'static) -> Self {
        self.name = Box::new(name);
        self
    }

    /// The present time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The present time in microseconds.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// The id of this node.
    pub fn node(&self) -> NodeId {
        self.cluster.node()
    }
}

impl Failure {
    /// The time at which a full buffer has room again: when the device returns or its grace ends.
    fn full(full: Full, now: Timestamp) -> Self {
        let retry_after = match full {
            Full::Until(until) => until - now,
            Full::Budget => RETRY_BUDGET,
        };
        Self::Full { retry_after }
    }
}
