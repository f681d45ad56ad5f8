//! The state that all nodes share: the records of calls, the sockets of users, and the times at
//! which calls are due.
//!
//! A backend compares, writes and expires whole records. It contains no rule about calls.
//!
//! ```text
//! driver ─► Cluster: CallRecords, UserPresence, Peers
//!              │  node, membership, bus ── link, outgoing, timekeeper (pure)
//!              ▼
//!           ports: Records, Users, Nodes                Channel
//!              │                                           │
//!           memory, redis                            memory, redis
//! ```
//!
//! | file | content |
//! |---|---|
//! | `ports.rs` | what a backend provides |
//! | `node.rs` | one node above the ports: its sockets and watched users, records, messages |
//! | `membership.rs`, `timekeeper.rs` | heartbeats, the shared time, the eviction of dead nodes |
//! | `bus.rs`, `outgoing.rs`, `link.rs`, `envelope.rs` | messages between nodes: tasks, queues, numbering, text |
//! | `memory.rs`, `redis/` | the backends |
//! | `mistakes.rs` | deliberate mistakes, for the simulation |

mod bus;
pub(crate) mod envelope;
pub mod link;
pub mod membership;
pub mod memory;
pub mod mistakes;
pub mod node;
mod outgoing;
pub mod ports;
pub(crate) mod redis;
pub mod timekeeper;

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use memory::{Embedded, Hub};
pub use redis::{ConnectError, MIN_MAJOR as MIN_REDIS_VERSION, Redis, has_known_scheme};

use crate::{
    call::{Call, Lobby, Role, Signal},
    ids::{CallId, NodeId, SocketId, UserId},
    metrics::Said,
    payload::Payload,
    protocol::Presence,
    time::Timestamp,
    trace::{self, TraceContext},
};

/// After this time any node may store an ended call that the ending node has not stored.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(3);
/// The longest interval between two attempts to store an ended call.
pub const LONGEST_UNSTORED_LEASE: Duration = Duration::from_mins(5);
/// The most ended calls that wait for the history, about 1.5 KB each. Calls beyond it are missing
/// from the history.
pub const MAX_UNSTORED: usize = 4_000_000;
/// Operations on up to this many users are atomic. With more users, some may be changed when the
/// operation fails.
pub const USERS_AT_ONCE: usize = 200;

/// The cluster, as the driver of one node uses it.
///
/// Every operation is atomic by itself. An operation that fails with [`Unavailable`] may have been
/// applied.
pub trait Cluster: CallRecords + UserPresence + Peers {}

impl<C: CallRecords + UserPresence + Peers> Cluster for C {}

/// The records of calls. They are authoritative: whatever else is lost can be derived from them.
#[async_trait]
pub trait CallRecords: Send + Sync + 'static {
    /// The record of a call that is live or ended less than a minute ago.
    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable>;

    /// A part of the live calls of all nodes, and the position to continue at; `None` at the end. A
    /// part may have somewhat more or fewer calls than `limit`. A call that is live during the
    /// whole iteration is in some part.
    async fn live(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Call>, Option<String>), Unavailable>;

    /// The latest call of `user`, live or ended less than a minute ago.
    async fn latest(&self, user: &UserId) -> Result<Option<Call>, Unavailable>;

    /// [`CallRecords::latest`] for several users, in their order.
    async fn latest_of(&self, users: &[UserId]) -> Result<Vec<Option<Call>>, Unavailable>;

    /// Writes `change.call` if the record's version is one lower (a call of version 1 must not
    /// exist yet) and every claim is unchanged.
    async fn commit(&self, change: Change) -> Result<Committed, Unavailable>;

    /// Restores a record as it is, after the shared state was lost or rolled back: over the earlier
    /// version `over`, or where there is none, if every claim is unchanged. `None` if it was not
    /// written.
    async fn restore(
        &self,
        change: Change,
        over: Option<u64>,
    ) -> Result<Option<Stored>, Unavailable>;

    /// Up to `limit` live calls whose deadline has passed at `now`. Each is hidden for some
    /// seconds, so that the caller can process it, before another node may take it.
    async fn due(&self, now: Timestamp, limit: usize) -> Result<Due, Unavailable>;

    /// Up to `limit` ended calls whose rows are not stored at `now`, [`TAKE_OVER_AFTER`] after
    /// their end. Each is hidden after it was taken, longer each time. A call whose deadline has
    /// passed is removed from its users' claims. Some of the stored calls whose deadline has passed
    /// are removed.
    async fn unstored(&self, now: Timestamp, limit: usize) -> Result<Unstored, Unavailable>;

    /// Marks ended records as stored in these versions: they may be removed when their deadline
    /// passes. A record with a later version stays until the history has that.
    async fn mark_persisted(&self, stored: &[(CallId, u64)]) -> Result<(), Unavailable>;
}

/// The sockets of users on all nodes, and who watches them.
#[async_trait]
pub trait UserPresence: Send + Sync + 'static {
    /// Registers a socket of `user` on this node. A call placed after this returned reaches the
    /// socket. Returns the presence change, if there is one.
    async fn attach(&self, user: &UserId, socket: SocketId) -> Result<Option<Edge>, Unavailable>;

    /// Removes a socket.
    async fn detach(&self, user: &UserId, socket: SocketId) -> Result<Detached, Unavailable>;

    /// Registers sockets of this node again, because the shared state may have forgotten them.
    /// Returns the resulting presence changes.
    async fn attach_again(&self, sockets: &[(UserId, SocketId)]) -> Result<Vec<Edge>, Unavailable>;

    /// [`UserPresence::detach`] for several sockets; the results are in their order.
    async fn detach_all(
        &self,
        sockets: &[(UserId, SocketId)],
    ) -> Result<Vec<Detached>, Unavailable>;

    /// Removes stale entries of this node, which a rolled back state may have, from a part of the
    /// users. Returns these users and the position to continue at; `None` at the end.
    async fn tidy(
        &self,
        from: Option<&str>,
    ) -> Result<(Vec<(UserId, Detached)>, Option<String>), Unavailable>;

    /// Sends this node the presence changes of `users` from now on, and returns their presence, in
    /// their order. The order of each result, and of each later change, is above `after`.
    async fn watch(&self, users: &[UserId], after: u64) -> Result<Vec<Edge>, Unavailable>;

    /// Ends [`UserPresence::watch`] for these users.
    async fn unwatch(&self, users: &[UserId]) -> Result<(), Unavailable>;

    /// The present presence of `users`, in their order, with the nodes that watch them. Does not
    /// subscribe.
    async fn presence(&self, users: &[UserId]) -> Result<Vec<Edge>, Unavailable>;

    /// Everything that the decision on a call attempt depends on.
    async fn lobby(&self, caller: &UserId, callee: &UserId) -> Result<Lobby, Unavailable>;

    /// The nodes that hold sockets of `user`.
    async fn nodes_of(&self, user: &UserId) -> Result<Vec<NodeId>, Unavailable>;

    /// The nodes that hold sockets of `user`, with the number of sockets.
    async fn sockets_of(&self, user: &UserId) -> Result<Vec<(NodeId, usize)>, Unavailable>;

    /// Acknowledges an eviction: the calls of these users, who were on a dead node, have been
    /// handled. Until then the eviction is reported again and again.
    async fn acknowledge_eviction(&self, node: NodeId, users: &[UserId])
    -> Result<(), Unavailable>;
}

/// This node and the other ones. Messages to a node arrive in order, each at most once.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// The id of this node.
    fn node(&self) -> NodeId;

    /// Sends a message to another node, after all messages sent to it before. Never blocks. A
    /// message to a node that is gone is dropped.
    fn send(&self, to: NodeId, message: Message);

    /// Whether a message of `bytes` from a party of this call can be queued for another node. If
    /// not, its sender must be told, because [`Peers::send`] would drop it.
    fn has_room(&self, _to: NodeId, _call: CallId, _bytes: usize) -> bool {
        true
    }

    /// The number of messages that are queued for other nodes.
    fn queued(&self) -> usize {
        0
    }

    /// Takes back the messages that were sent to a node for this party of a call and that are known
    /// to be unreceived, in order. The device has moved on, and the node may be dead. Messages for
    /// the other party are not affected.
    fn recall(&self, from: NodeId, call: CallId, to: Role) -> Vec<Relay>;

    /// Unsubscribes from this node's messages, so that other nodes see that their publishes have no
    /// receiver. The inbox ends after the messages received so far.
    fn stop_listening(&self) {}

    /// Removes this node from the cluster, once it has no sockets.
    async fn leave(&self);
}

/// The result of [`CallRecords::due`].
#[derive(Debug, Clone, Default)]
pub struct Due {
    pub calls: Vec<Call>,
    /// More calls may be due now.
    pub has_more: bool,
    /// Users whose presence has changed because the shared state lost a claim and found it again.
    pub mended: Vec<UserId>,
    /// Live calls one of whose users is in another live call, because the shared state had lost a claim.
    pub displaced: Vec<Call>,
}

/// The result of [`CallRecords::unstored`].
#[derive(Debug, Clone, Default)]
pub struct Unstored {
    pub calls: Vec<Call>,
    /// More calls may be due or removable now.
    pub has_more: bool,
    /// The number of all calls that wait for the history.
    pub waiting: usize,
    /// The number of calls that were dropped because there were too many or they had waited for too
    /// long.
    pub lost: usize,
}

/// The result of [`UserPresence::detach`].
#[derive(Debug, Clone, Default)]
pub struct Detached {
    /// The user's latest call, live or ended less than a minute ago.
    pub call: Option<Call>,
    /// The change of the user's presence, if there is one.
    pub edge: Option<Edge>,
}

/// A user's presence at one moment. Of two changes of one user, the one with the higher `order` is
/// later, also if the shared state has lost its data in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    pub user: UserId,
    pub presence: Presence,
    pub order: u64,
    /// The nodes that watch this user; may be empty where nobody needs to be notified.
    #[serde(skip)]
    pub watchers: Vec<NodeId>,
}

/// A message from one node to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// A record has changed. The receiver derives the events for its own sockets.
    Call(Box<Call>),
    /// A device of the callee rings on the sending node, which has the first `have` messages of the
    /// caller. Not sent to a node that has just placed the call, because that node knows where it
    /// rings.
    Rings {
        call: CallId,
        #[serde(default)]
        have: usize,
    },
    /// The caller has moved to the receiving node while the call rings: the caller's messages so
    /// far.
    Kept { call: CallId, messages: Vec<(Signal, Payload)> },
    /// A message to relay.
    Relay(Relay),
    /// Messages for this party will no longer come from the sending node, or go to the receiving
    /// one. The receiver delivers or returns those in flight, then replies with `Flushed`.
    Flush { call: CallId, version: u64, to: Role },
    /// The reply to `Flush` takes longer, because the receiver waits for another node itself.
    Flushing { call: CallId, to: Role },
    /// All messages sent before `Flush` were delivered or returned.
    Flushed { call: CallId, to: Role },
    /// A user's presence has changed.
    Presence(Edge),
    /// An operator disconnects this user's sockets.
    Disconnect(UserId),
    /// A placeholder for a message that was recalled before it was received, or whose kind the
    /// receiving build does not know.
    Void,
    /// A placeholder for `count` messages that were dropped because the queue was full.
    Dropped { count: u64 },
}

/// The approximate size of a message between nodes without its content.
pub(crate) const AROUND_BYTES: usize = 256;
/// The approximate size of a record.
const RECORD_BYTES: usize = 1024;

impl Message {
    /// The approximate size of the message, in memory and on the wire.
    pub fn about_bytes(&self) -> usize {
        match self {
            Self::Relay(relay) => AROUND_BYTES + relay.payload.len_bytes(),
            Self::Kept { messages, .. } => {
                let payloads =
                    messages.iter().map(|(_, payload)| AROUND_BYTES + payload.len_bytes());
                AROUND_BYTES + payloads.sum::<usize>()
            }
            Self::Call(_) => RECORD_BYTES,
            _ => AROUND_BYTES,
        }
    }

    fn said(&self) -> Said {
        match self {
            Self::Call(_) => Said::Call,
            Self::Rings { .. } => Said::Rings,
            Self::Kept { .. } => Said::Kept,
            Self::Relay(_) => Said::Relay,
            Self::Flush { .. } => Said::Flush,
            Self::Flushing { .. } => Said::Flushing,
            Self::Flushed { .. } => Said::Flushed,
            Self::Presence(_) => Said::Presence,
            Self::Disconnect(_) => Said::Disconnect,
            Self::Void => Said::Void,
            Self::Dropped { .. } => Said::Dropped,
        }
    }
}

/// Input of a node from the cluster.
#[derive(Debug, Clone)]
pub enum Inbound {
    /// A message of another node, after all that it sent before.
    Message(NodeId, Message),
    /// A node is dead, and these users were removed from it. Must be acknowledged with
    /// [`UserPresence::acknowledge_eviction`].
    Departed(NodeId, Vec<Departed>),
    /// The shared state has forgotten this node, or messages were lost: attach all sockets again
    /// and look up every live call.
    Reset,
}

/// A user who was on a dead node.
#[derive(Debug, Clone)]
pub struct Departed {
    pub edge: Edge,
    /// The user's latest call.
    pub call: Option<Call>,
}

/// A message from one party to the other, in flight between nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    pub call: CallId,
    /// The version of the record when it was sent. A node that knows an older version looks up the
    /// record.
    pub version: u64,
    pub from: Role,
    pub signal: Signal,
    pub payload: Payload,
    /// Whether the message was returned by a node whose device is lost.
    #[serde(default)]
    pub given_back: bool,
    /// Whether it was sent to every node where the call rings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_ringing: bool,
    /// The time of its arrival on the sender's socket, by the clock that nodes share; `None` if it
    /// was buffered since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_us: Option<u64>,
    /// The span that sent it, if the call is traced.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "trace::lenient")]
    pub traceparent: Option<TraceContext>,
}

/// A record to write.
#[derive(Debug, Clone)]
pub struct Change {
    pub call: Call,
    /// The users whose latest call this becomes. Empty unless the call is new.
    pub claims: Vec<Claim>,
}

/// A user's latest call when the change was decided. A claim without a record counts as none.
#[derive(Debug, Clone)]
pub struct Claim {
    pub user: UserId,
    pub was: Option<CallId>,
}

/// The result of a commit.
#[derive(Debug, Clone)]
pub enum Committed {
    Stored(Stored),
    /// The record or a claim has changed since the decision. Contains the present record.
    Conflict(Option<Box<Call>>),
}

impl Committed {
    /// `None` for a conflict.
    pub fn stored(self) -> Option<Stored> {
        match self {
            Self::Stored(stored) => Some(stored),
            Self::Conflict(_) => None,
        }
    }
}

/// The effects of a written change.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The presence changes.
    pub edges: Vec<Edge>,
    /// The nodes that hold a socket of the callee.
    pub callee_nodes: Vec<NodeId>,
}

/// The shared state cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared state cannot be reached")]
pub struct Unavailable;
