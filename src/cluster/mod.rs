//! What all nodes share: the records of calls, who is connected, and when a call needs attention.
//!
//! A backend compares, writes and expires whole records. It knows no rule about calls.

pub mod link;
mod memory;
pub mod outgoing;
pub(crate) mod redis;
pub mod timekeeper;

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use memory::{Hub, Memory};
pub use redis::{ConnectError, Redis};

use crate::{
    call::{Call, Lobby, Role, Signal},
    ids::{CallId, NodeId, SocketId, UserId},
    metrics::Said,
    payload::Payload,
    protocol::Presence,
    time::Timestamp,
    trace::{self, TraceContext},
};

/// Whoever has ended a call has so long to store it; then any node does.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(3);
/// The longest time after which somebody tries again to store an ended call.
pub const LONGEST_UNSTORED_LEASE: Duration = Duration::from_mins(5);
/// Most ended calls that wait for history, about 1.5 KB each. What is beyond is lost to history.
pub const MAX_UNSTORED: usize = 4_000_000;
/// Of how many users an operation changes all or nothing. Of more, some may be changed when it fails.
pub const USERS_AT_ONCE: usize = 200;

/// The shared state of all nodes, as one node sees it.
///
/// Every operation is atomic on its own. An operation that fails with [`Unavailable`] may still
/// have been carried out.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// The node that this is.
    fn node(&self) -> NodeId;

    /// Registers a socket of `user` on this node. A call placed after this returned reaches it.
    /// Answers the edge of the user's presence, if there is one.
    async fn attach(&self, user: &UserId, socket: SocketId) -> Result<Option<Edge>, Unavailable>;

    /// Forgets a socket.
    async fn detach(&self, user: &UserId, socket: SocketId) -> Result<Detached, Unavailable>;

    /// Registers sockets again that are on this node already: the shared state may have forgotten them.
    /// Answers the edges that this made.
    async fn attach_again(&self, sockets: &[(UserId, SocketId)]) -> Result<Vec<Edge>, Unavailable>;

    /// [`Cluster::detach`] for several sockets; answers them in their order.
    async fn detach_all(
        &self,
        sockets: &[(UserId, SocketId)],
    ) -> Result<Vec<Detached>, Unavailable>;

    /// Takes a part of the users off this node who have nothing to do with it any more: the shared state
    /// has gone back to when they had. Answers them, and where to go on; None at the end.
    async fn tidy(
        &self,
        from: Option<&str>,
    ) -> Result<(Vec<(UserId, Detached)>, Option<String>), Unavailable>;

    /// Sends this node the presence edges of `users` from now on, and answers their presence, in
    /// their order. Each edge answered has an order above `after`, and so have those that follow.
    async fn watch(&self, users: &[UserId], after: u64) -> Result<Vec<Edge>, Unavailable>;

    /// Ends [`Cluster::watch`] for these users.
    async fn unwatch(&self, users: &[UserId]) -> Result<(), Unavailable>;

    /// The presence of `users` as it is now, in their order, with the nodes that watch them. Watches nobody.
    async fn presence(&self, users: &[UserId]) -> Result<Vec<Edge>, Unavailable>;

    /// All that the decision on a call attempt rests on.
    async fn lobby(&self, caller: &UserId, callee: &UserId) -> Result<Lobby, Unavailable>;

    /// The record of a call that is live or ended less than a minute ago.
    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable>;

    /// A part of the live calls of all nodes, and where to go on; None at the end. A part may hold
    /// somewhat more or fewer calls than `limit`. A call that is live all the while is in some part.
    async fn live(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Call>, Option<String>), Unavailable>;

    /// The nodes that hold sockets of `user`.
    async fn nodes_of(&self, user: &UserId) -> Result<Vec<NodeId>, Unavailable>;

    /// The same, and how many sockets each of them holds.
    async fn sockets_of(&self, user: &UserId) -> Result<Vec<(NodeId, usize)>, Unavailable>;

    /// The latest call of `user`, live or ended less than a minute ago.
    async fn latest(&self, user: &UserId) -> Result<Option<Call>, Unavailable>;

    /// The same for several users, in their order.
    async fn latest_of(&self, users: &[UserId]) -> Result<Vec<Option<Call>>, Unavailable>;

    /// Writes `change.call` if the record's version is one lower (a call of version 1 must not
    /// exist yet) and every claim is what it was.
    async fn commit(&self, change: Change) -> Result<Committed, Unavailable>;

    /// Puts a record back, as it is, after the shared state has gone back: over the earlier version
    /// that is there, or where there is none, if every claim is what it was. None if it did not.
    async fn restore(
        &self,
        change: Change,
        over: Option<u64>,
    ) -> Result<Option<Stored>, Unavailable>;

    /// Up to `limit` live calls whose deadline has passed at `now`. Each is left to whoever asked for some
    /// seconds before it is given out again.
    async fn due(&self, now: Timestamp, limit: usize) -> Result<Due, Unavailable>;

    /// Up to `limit` ended calls that history has not got at `now`, [`TAKE_OVER_AFTER`] after their end. Each is left
    /// to whoever asked, longer each time, before it is given out again. One whose deadline has passed is nobody's latest
    /// from then on. Some of those that are stored, and whose deadline has passed, are removed.
    async fn unstored(&self, now: Timestamp, limit: usize) -> Result<Unstored, Unavailable>;

    /// Says that history holds these ended records, each in this version: they may go when their
    /// deadline passes. One that has a later version by now stays until history has that.
    async fn settle(&self, stored: &[(CallId, u64)]) -> Result<(), Unavailable>;

    /// Says that the calls of these users, who were on a node that is dead, have been seen to. Until
    /// then some node hears of them again and again.
    async fn seen_off(&self, node: NodeId, users: &[UserId]) -> Result<(), Unavailable>;

    /// Takes back what was sent to a node for this party of a call and nobody there has heard, in order:
    /// the device that it was for has moved on, and the node may be dead. What the other party gets by
    /// that node goes on.
    fn recall(&self, from: NodeId, call: CallId, to: Role) -> Vec<Relay>;

    /// From now on other nodes find that nobody hears them here. The inbox ends with what had come.
    fn stop_listening(&self) {}

    /// Takes this node out of the cluster, when it has no sockets any more.
    async fn leave(&self);

    /// Sends a message to another node, after all that was sent to it before. Never waits. A message
    /// to a node that is gone is dropped.
    fn send(&self, to: NodeId, message: Message);

    /// Whether a message of `bytes` that a party of this call sends can be queued for another node. If not,
    /// its sender is to be told: [`Cluster::send`] would drop it.
    fn has_room(&self, _to: NodeId, _call: CallId, _bytes: usize) -> bool {
        true
    }

    /// How many messages wait to be sent to other nodes.
    fn queued(&self) -> usize {
        0
    }
}

/// What `due` answers.
#[derive(Debug, Clone, Default)]
pub struct Due {
    pub calls: Vec<Call>,
    /// There may be more that are due now.
    pub has_more: bool,
}

/// What `unstored` answers.
#[derive(Debug, Clone, Default)]
pub struct Unstored {
    pub calls: Vec<Call>,
    /// There may be more to take, or to remove, now.
    pub has_more: bool,
    /// How many wait for history in all.
    pub waiting: usize,
    /// How many were dropped, because there were too many or because they had waited for too long.
    pub lost: usize,
}

/// What `detach` answers.
#[derive(Debug, Clone, Default)]
pub struct Detached {
    /// The user's latest call, live or ended less than a minute ago.
    pub call: Option<Call>,
    /// Set when the user's presence changed by this.
    pub edge: Option<Edge>,
}

/// A user's presence at one moment. Of two edges of one user, the higher `order` is the later, also if the
/// shared state has lost its data in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    pub user: UserId,
    pub presence: Presence,
    pub order: u64,
    /// The nodes that watch this user; may be left out where they have nothing to hear of.
    #[serde(skip)]
    pub watchers: Vec<NodeId>,
}

/// What one node says to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// A record has changed. Ring, or tell, whoever is concerned.
    Call(Box<Call>),
    /// A device of the callee rings on the sending node, which has the first `have` messages of what
    /// the caller sent. Not said to a node that has just placed the call: it knows whom it told.
    Rings {
        call: CallId,
        #[serde(default)]
        have: usize,
    },
    /// The caller has moved to the receiving node while it rings: what it sent so far.
    Kept { call: CallId, messages: Vec<(Signal, Payload)> },
    /// Something to pass on.
    Relay(Relay),
    /// Messages for this party do not come from the sending node, or to the receiving one, any more: those
    /// that did are to be given back or to arrive, then to be answered with `Flushed`.
    Flush { call: CallId, version: u64, to: Role },
    /// The answer to `Flush` takes longer: another node has to be asked.
    Flushing { call: CallId, to: Role },
    /// What was sent before `Flush` has arrived, or has been given back.
    Flushed { call: CallId, to: Role },
    /// A user's presence has changed.
    Presence(Edge),
    /// An operator wants this user's sockets closed.
    Disconnect(UserId),
    /// Something stood here that was taken back before anybody heard it, or that the receiving
    /// node's build does not know.
    Void,
    /// So many messages would have stood here, and had no room.
    Dropped { count: u64 },
}

/// About how long a message between nodes is without what it carries.
pub(crate) const AROUND_BYTES: usize = 256;
/// About how long a record is.
const RECORD_BYTES: usize = 1024;

impl Message {
    /// About how many bytes it takes, here and on its way.
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

/// What comes to a node from the cluster.
#[derive(Debug, Clone)]
pub enum Inbound {
    /// From another node, after all that it sent before.
    Message(NodeId, Message),
    /// A node is dead, and these users are no longer on it. To be answered with
    /// [`Cluster::seen_off`].
    Departed(NodeId, Vec<Departed>),
    /// The shared state has forgotten this node, or messages were lost: attach all again, and look
    /// every live call up.
    Reset,
}

/// A user who was on a node that is dead.
#[derive(Debug, Clone)]
pub struct Departed {
    pub edge: Edge,
    /// The user's latest call.
    pub call: Option<Call>,
}

/// A message from one party to the other, on its way between nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    pub call: CallId,
    /// The record's version when it was sent. A node that knows an older one looks it up.
    pub version: u64,
    pub from: Role,
    pub signal: Signal,
    pub payload: Payload,
    /// Whether it comes back from the node that had it for a device which is lost.
    #[serde(default)]
    pub given_back: bool,
    /// Whether it was sent to every node where the call rings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_ringing: bool,
    /// When it came in on its sender's socket, on the clock that nodes share; none if it has waited since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_us: Option<u64>,
    /// The step that sent it, if it is part of a trace.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "trace::lenient")]
    pub traceparent: Option<TraceContext>,
}

/// A record to write.
#[derive(Debug, Clone)]
pub struct Change {
    pub call: Call,
    /// The users whose latest call this becomes. Empty but for a new call.
    pub claims: Vec<Claim>,
}

/// A user's latest call, as it was when the change was decided. One whose record does not exist is none.
#[derive(Debug, Clone)]
pub struct Claim {
    pub user: UserId,
    pub was: Option<CallId>,
}

/// How a commit went.
#[derive(Debug, Clone)]
pub enum Committed {
    Stored(Stored),
    /// The record, or a claim, is not what the change was decided on. With the record as it is.
    Conflict(Option<Box<Call>>),
}

impl Committed {
    /// None for a conflict.
    pub fn stored(self) -> Option<Stored> {
        match self {
            Self::Stored(stored) => Some(stored),
            Self::Conflict(_) => None,
        }
    }
}

/// What came of a written change.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The changes of presence.
    pub edges: Vec<Edge>,
    /// The nodes that hold a socket of the callee.
    pub callee_nodes: Vec<NodeId>,
}

/// The shared state cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared state cannot be reached")]
pub struct Unavailable;
