//! A user's entry for a node: the values that `mark.lua` writes, and its reply.

use fred::types::Value;

use super::facts::{list, read_record, text};
use crate::{
    call::Call,
    cluster::{Detached, Edge, Unavailable},
    ids::UserId,
    protocol::Presence,
};

/// Whether the records of the users' latest calls are read as well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    Wanted,
    Unwanted,
}

/// Whether the nodes that watch the users are read as well: only announcements need them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Watchers {
    Wanted,
    Unwanted,
}

/// The relation of a node to a user, as it is written to Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Own {
    pub sockets: Option<usize>,
    pub is_watched: bool,
}

/// The parts to write. Whether the user is watched is always written, because a rollback may have
/// restored an old value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    Watched,
    Both,
}

/// The value of a field that is not changed.
const AS_IT_IS: &str = "=";

impl Own {
    /// The arguments of the script; an empty one removes the entry.
    pub fn values(self) -> [String; 2] {
        let sockets =
            self.sockets.map(|count| if count > 0 { count.to_string() } else { String::new() });
        let watched = "1"[..usize::from(self.is_watched)].to_owned();
        [sockets.unwrap_or_else(|| AS_IT_IS.to_owned()), watched]
    }
}

/// A user after the write.
#[derive(Clone)]
pub struct Marked {
    /// The watchers are known only if the presence has changed.
    pub edge: Edge,
    has_changed: bool,
    /// The user's latest call, if it was requested.
    call: Option<Call>,
}

impl Marked {
    /// Parses one user's part of the script's reply.
    pub fn read(user: &UserId, answer: Vec<Value>) -> Result<Self, Unavailable> {
        let mut answer = answer.into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let [is_live, was_online, is_online] = [(); 3].map(|()| text(next()) == "1");
        let order = text(next()).parse().map_err(|_| Unavailable)?;
        let watchers = list(next()).into_iter().filter_map(|node| text(node).parse().ok());
        let edge = Edge {
            user: user.clone(),
            presence: Presence::of(is_live, is_online),
            order,
            watchers: watchers.collect(),
        };
        let has_changed = Presence::of(is_live, was_online) != edge.presence;
        Ok(Self { edge, has_changed, call: read_record(&text(next()))? })
    }

    /// Merges a later write of the same user: the change of the first write is part of the result.
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
