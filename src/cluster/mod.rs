//! What all nodes share: the records of calls, who is connected, and when a call needs attention.
//!
//! A backend compares, writes and expires whole records. It knows no rule about calls.

mod memory;

use async_trait::async_trait;

pub use memory::Memory;

use crate::{
    call::{Call, Lobby},
    ids::{CallId, SocketId, UserId},
    protocol::Presence,
    time::Timestamp,
};

/// The shared state of all nodes.
///
/// Every operation is atomic on its own. An operation that fails with [`Unavailable`] may still
/// have been carried out.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// Registers a socket of `user` on this node. A call placed after this returned reaches it;
    /// one placed before is in the answer.
    async fn attach(&self, user: &UserId, socket: SocketId) -> Result<Attached, Unavailable>;

    /// Forgets a socket. Answers the user's latest call as `attach` does.
    async fn detach(&self, user: &UserId, socket: SocketId) -> Result<Attached, Unavailable>;

    /// The presence of each of `users`, in their order.
    async fn presence(&self, users: &[UserId]) -> Result<Vec<Edge>, Unavailable>;

    /// All that the decision on a call attempt rests on.
    async fn lobby(&self, caller: &UserId, callee: &UserId) -> Result<Lobby, Unavailable>;

    /// The record of a call that is live or ended less than a minute ago.
    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable>;

    /// The latest call of `user`, live or ended less than a minute ago.
    async fn latest(&self, user: &UserId) -> Result<Option<Call>, Unavailable>;

    /// Writes `change.call` if the record's version is one lower (a call of version 1 must not
    /// exist yet) and every claim is what it was.
    async fn commit(&self, change: Change) -> Result<Committed, Unavailable>;

    /// Up to `limit` calls whose deadline has passed at `now`. Each is left to whoever asked for a
    /// few seconds before it is given out again. Stored calls whose time is over are removed.
    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Call>, Unavailable>;

    /// Says that history holds these ended records: they may go when their deadline passes.
    async fn settle(&self, calls: &[CallId]) -> Result<(), Unavailable>;
}

/// What `attach` and `detach` answer.
#[derive(Debug, Clone, Default)]
pub struct Attached {
    /// The user's latest call, live or ended less than a minute ago.
    pub call: Option<Call>,
    /// Set when the user's presence changed by this.
    pub edge: Option<Edge>,
}

/// A user's presence at one moment. Of two edges of one user, the higher `order` is the later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    pub user: UserId,
    pub presence: Presence,
    pub order: u64,
}

/// A record to write.
#[derive(Debug, Clone)]
pub struct Change {
    pub call: Call,
    /// The users whose latest call this becomes. Empty but for a new call.
    pub claims: Vec<Claim>,
}

/// A user's latest call, as it was when the change was decided.
#[derive(Debug, Clone)]
pub struct Claim {
    pub user: UserId,
    pub was: Option<CallId>,
}

/// How a commit went.
#[derive(Debug, Clone)]
pub enum Committed {
    /// Written. With the presence edges that came of it.
    Stored(Vec<Edge>),
    /// The record, or a claim, is not what the change was decided on. With the record as it is.
    Conflict(Option<Box<Call>>),
}

/// The shared state cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared state cannot be reached")]
pub struct Unavailable;
