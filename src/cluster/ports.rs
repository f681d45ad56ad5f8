//! The ports: what a backend provides. `node`, `membership` and `bus` are written once above them.
//!
//! An operation is atomic by itself. One that fails may have been applied, or may be applied later.
//! Times are by the clock that all nodes share, unless they are called the store's.

use std::{fmt::Display, time::Duration};

use super::{Change, Committed, Detached, Edge, Unavailable, Unstored, timekeeper::Offset};
use crate::{
    call::Call,
    ids::{CallId, NodeId, UserId},
    metrics::Connection,
    protocol::Presence,
    time::Timestamp,
};

/// A part of a long list, and the position to continue at; `None` at the end.
pub type Part<T> = (Vec<T>, Option<String>);

/// The records of calls, each with a version, and the queues of calls that need attention.
pub trait Records: Send + Sync + 'static {
    /// The record of a call that is live or ended less than a minute ago.
    fn load(&self, id: CallId) -> impl Future<Output = Result<Option<Call>, Unavailable>> + Send;

    /// Writes a record over the version `over` (0 requires that there is none) if every claim is
    /// unchanged. A claim without a record counts as none. If this very record is there already,
    /// it reports success again. Any node may persist an ended call from `take_over_at` on.
    fn write(
        &self,
        change: Change,
        over: u64,
        take_over_at: Timestamp,
    ) -> impl Future<Output = Result<Committed, Unavailable>> + Send;

    /// See [`super::CallRecords::live`].
    fn live(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<Part<Call>, Unavailable>> + Send;

    /// Up to `limit` live calls whose deadline has passed at `now`. Each is hidden until `lease`.
    fn due(
        &self,
        now: Timestamp,
        lease: Timestamp,
        limit: usize,
    ) -> impl Future<Output = Result<Taken, Unavailable>> + Send;

    /// Up to `limit` ended calls that are not persisted and whose next attempt is due at `now`.
    /// Each is hidden for as long again as it has waited, within bounds. Claims of calls whose
    /// deadline has passed are removed, and up to `forget` persisted calls.
    fn unstored(
        &self,
        now: Timestamp,
        limit: usize,
        forget: usize,
    ) -> impl Future<Output = Result<(Unstored, bool), Unavailable>> + Send;

    /// Marks ended records as persisted in these versions. Later versions stay unpersisted.
    fn mark_persisted(
        &self,
        persisted: &[(CallId, u64)],
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Checks a part of everything from `from` on, and restores what leads from one entry to
    /// another: a deadline, a claim, the list of a node's users.
    fn repair(
        &self,
        from: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<Repaired, Unavailable>> + Send;
}

/// The result of [`Records::due`].
#[derive(Debug, Default)]
pub struct Taken {
    pub calls: Vec<Call>,
    /// More calls may be due now.
    pub has_more: bool,
    /// A record was gone before its time: whatever led to it must be repaired.
    pub is_damaged: bool,
}

/// The result of [`Records::repair`].
#[derive(Debug, Default)]
pub struct Repaired {
    /// The position to continue at; `None` at the end.
    pub next: Option<String>,
    /// Users whose latest call has changed.
    pub users: Vec<UserId>,
    /// Live calls one of whose users is in another live call.
    pub displaced: Vec<Call>,
}

/// What every node needs to know of a user: the nodes with its sockets, the nodes that watch it,
/// and its latest call.
pub trait Users: Send + Sync + 'static {
    /// Reads users, in their order.
    fn read(
        &self,
        lane: Lane,
        users: &[UserId],
        watchers: Watchers,
    ) -> impl Future<Output = Result<Vec<User>, Unavailable>> + Send;

    /// Writes this node's entries of at most [`super::USERS_AT_ONCE`] users, and reads the users, in
    /// their order. The order of each is above `after`. Removes claims without a record.
    fn mark(
        &self,
        lane: Lane,
        entries: &[(UserId, Entry)],
        calls: Calls,
        after: u64,
    ) -> impl Future<Output = Result<Vec<Marked>, Unavailable>> + Send;

    /// A part of the users that have an entry of this node, and the position to continue at.
    fn of_this_node(
        &self,
        from: Option<&str>,
    ) -> impl Future<Output = Result<Part<UserId>, Unavailable>> + Send;
}

/// Requests of one lane may wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Steps of calls wait for these.
    Calls,
    /// Presence, of which clients may request much at a time.
    Presence,
}

/// Whether the records of the users' latest calls are read as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    Wanted,
    Unwanted,
}

/// Whether the nodes that watch the users are read as well: only announcements need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watchers {
    Wanted,
    Unwanted,
}

/// A user.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// The nodes with sockets of the user, and the number of sockets.
    pub nodes: Vec<(NodeId, usize)>,
    /// Empty unless they were requested.
    pub watchers: Vec<NodeId>,
    pub order: u64,
    /// The latest call.
    pub call: Option<Call>,
}

impl User {
    /// The user's presence, as a change.
    pub fn edge(&self, id: &UserId) -> Edge {
        let is_in_live_call = self.call.as_ref().is_some_and(Call::is_live);
        Edge {
            user: id.clone(),
            presence: Presence::of(is_in_live_call, !self.nodes.is_empty()),
            order: self.order,
            watchers: self.watchers.clone(),
        }
    }
}

/// The entry of a node with a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The number of sockets; `None` leaves it as it is.
    pub sockets: Option<usize>,
    /// Always written, because a rollback may have restored an old value.
    pub is_watched: bool,
}

/// A user after the write.
#[derive(Debug, Clone)]
pub struct Marked {
    /// The watchers are known only if the presence has changed.
    pub edge: Edge,
    pub has_changed: bool,
    /// The user's latest call, if it was requested.
    pub call: Option<Call>,
}

impl Marked {
    /// Merges a later write of the same user: the change of the first write is part of the result.
    #[must_use]
    pub fn then(self, mut later: Self) -> Self {
        if self.has_changed && !later.has_changed {
            later.edge.watchers = self.edge.watchers;
        }
        later.has_changed |= self.has_changed;
        later
    }

    /// The presence change, if there is one.
    pub fn changed(self) -> Option<Edge> {
        Some(self.edge).filter(|_| self.has_changed)
    }
}

impl From<Marked> for Detached {
    fn from(mut marked: Marked) -> Self {
        Self { call: marked.call.take(), edge: marked.changed() }
    }
}

/// The nodes, their heartbeats and the evictions of dead ones.
pub trait Nodes: Send + Sync + 'static {
    /// The reason for which a heartbeat failed.
    type Error: Display + Send;

    /// Records a heartbeat of this node at the store's time, and that the offset of the clock was
    /// right lately. Waits for no other request.
    fn beat(
        &self,
        confirmed: Option<(Timestamp, Offset)>,
        dead_after: Duration,
    ) -> impl Future<Output = Result<Heartbeat, Self::Error>> + Send;

    /// The number of nodes.
    fn count(&self) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// Whether the store answers requests other than heartbeats.
    fn answers(&self) -> impl Future<Output = bool> + Send;

    /// Writes the offset of the clock if it is what it was. Returns whether it was written.
    fn agree(
        &self,
        was: Offset,
        offset: Offset,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Removes up to `limit` users from a node, unless its latest heartbeat is between the two times
    /// `alive`, by the store's clock. An earlier heartbeat is overdue; a later one was written before
    /// the store's clock was set back. Those with sockets there are remembered until they are
    /// acknowledged, and reported again from `lease` on.
    fn evict(
        &self,
        node: NodeId,
        alive: (Timestamp, Timestamp),
        lease: Timestamp,
        limit: usize,
    ) -> impl Future<Output = Result<Evicted, Unavailable>> + Send;

    /// Up to `limit` evicted users whose lease has ended at `now`. They get another `lease`.
    fn unacknowledged(
        &self,
        now: Timestamp,
        lease: Timestamp,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(NodeId, UserId)>, Unavailable>> + Send;

    /// The calls of these users, who were on a dead node, have been handled.
    fn acknowledge(
        &self,
        node: NodeId,
        users: &[UserId],
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Removes this node, unless users are registered on it. Returns whether it was removed.
    fn leave(&self) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Waits until a connection to the store was replaced: the store may have lost its data.
    /// Cancel safe.
    fn reconnected(&self) -> impl Future<Output = Connection> + Send;
}

/// The result of a heartbeat.
#[derive(Debug)]
pub struct Heartbeat {
    /// Whether the node had sent one before.
    pub was_known: bool,
    /// The store's time.
    pub time: Timestamp,
    pub offset: Offset,
    /// By the store's clock: when a node last found the offset right.
    pub confirmed: Option<Timestamp>,
    /// The other nodes whose heartbeats are overdue.
    pub silent: Vec<NodeId>,
    /// The number of keys that the store has evicted since it started, if it tells.
    pub evicted_keys: Option<u64>,
}

/// The result of [`Nodes::evict`].
#[derive(Debug)]
pub struct Evicted {
    /// The users who had sockets there.
    pub users: Vec<UserId>,
    pub rest: Rest,
}

/// What is left of a dead node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// There may be more users.
    Users,
    /// Nothing: the node was removed.
    Nothing,
    /// It is not dead, or another node has removed it.
    Untouched,
}

/// A heartbeat is not later than the store's time by this much, unless the store's clock was set
/// back since.
pub const MAX_AHEAD: Duration = Duration::from_secs(1);

/// All that a backend stores.
pub trait Store: Records + Users + Nodes {}

impl<S: Records + Users + Nodes> Store for S {}

/// Text messages between nodes. Each node has one channel, and receives what is published there
/// while it is subscribed.
///
/// Delivery is at most once: a publish may be lost, also if it had a receiver, and one that failed
/// may have been delivered. A publish that begins after another one has returned is delivered after
/// it. `link` repeats what was lost and drops duplicates.
pub trait Channel: Send + Sync + 'static {
    /// Whether a subscription can end unnoticed: then the node checks that it receives its channel.
    const CAN_FALL_SILENT: bool = true;

    /// Publishes on the channel of `to`. Returns the number of its subscriptions, as the server
    /// counts them: 0 proves that nobody has received the text, and more proves nothing.
    fn publish(
        &self,
        to: NodeId,
        text: String,
    ) -> impl Future<Output = Result<usize, Unavailable>> + Send;

    /// Subscribes to this node's channel, or renews the subscription.
    fn subscribe(&self) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Ends the subscription: later publishes have no receiver.
    fn unsubscribe(&self) -> impl Future<Output = ()> + Send;

    /// Whether each of `nodes` is subscribed to its channel.
    fn reachable(
        &self,
        nodes: &[NodeId],
    ) -> impl Future<Output = Result<Vec<bool>, Unavailable>> + Send;

    /// The time of the server's last reply to this node. Some replies may not count, such as those to
    /// heartbeats.
    fn last_reply(&self) -> Timestamp;
}

/// The receiving end of this node's channel.
pub trait Subscription: Send {
    /// Waits for the next input. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Received> + Send;

    /// The next text that has arrived already. Does not wait.
    fn take(&mut self) -> Option<String>;
}

/// Input from a node's channel.
#[derive(Debug)]
pub enum Received {
    Text(String),
    /// So many texts were dropped because the node did not keep up.
    Lagged(u64),
    /// The connection was replaced. The subscription may be gone and must be renewed.
    Reconnected,
    /// Nothing more will arrive.
    Closed,
}
