//! Which sockets of this node want to know about whose presence.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Outlet;
use crate::{
    cluster::Edge,
    ids::{SocketId, UserId},
    protocol::{MAX_WATCHED_USERS, Presence, ServerEvent},
    time::Timestamp,
};

#[derive(Default)]
pub struct Watchers {
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    users: HashMap<UserId, Watched>,
    sockets: HashMap<SocketId, HashSet<UserId>>,
}

#[derive(Default)]
struct Watched {
    sockets: Vec<SocketId>,
    /// The newest presence seen, and its order among all edges of the user.
    newest: Option<(u64, Presence)>,
}

/// The socket would watch more users than it may.
pub struct TooMany;

impl Watchers {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, socket: SocketId, users: &[UserId]) -> Result<(), TooMany> {
        let mut index = self.index();
        let Index { users: watched, sockets } = &mut *index;
        let own = sockets.entry(socket).or_default();
        let added: HashSet<&UserId> = users.iter().filter(|user| !own.contains(*user)).collect();
        if own.len() + added.len() > MAX_WATCHED_USERS {
            return Err(TooMany);
        }
        for user in added {
            own.insert(user.clone());
            watched.entry(user.clone()).or_default().sockets.push(socket);
        }
        Ok(())
    }

    pub fn remove(&self, socket: SocketId, users: &[UserId]) {
        let mut index = self.index();
        for user in users {
            if index.sockets.get_mut(&socket).is_some_and(|own| own.remove(user)) {
                index.unwatch(socket, user);
            }
        }
    }

    /// The socket is gone.
    pub fn forget(&self, socket: SocketId) {
        let mut index = self.index();
        for user in index.sockets.remove(&socket).unwrap_or_default() {
            index.unwatch(socket, &user);
        }
    }

    /// Takes presences in that were read after the users were added, and answers the newest known:
    /// an edge may have overtaken the reading.
    pub fn settle(&self, read: Vec<Edge>) -> Vec<(UserId, Presence)> {
        let mut index = self.index();
        let newest = |edge: Edge| match index.users.get_mut(&edge.user) {
            Some(watched) => {
                watched.advance(&edge);
                let presence = watched.newest.map_or(edge.presence, |(_, presence)| presence);
                (edge.user, presence)
            }
            None => (edge.user, edge.presence),
        };
        read.into_iter().map(newest).collect()
    }

    /// Tells those who watch the user, unless they know something newer.
    pub fn announce(&self, edge: Edge, outlet: &dyn Outlet, now: Timestamp) {
        let mut index = self.index();
        let Some(watched) = index.users.get_mut(&edge.user) else { return };
        if !watched.advance(&edge) {
            return;
        }
        let event =
            ServerEvent::Presence { user_id: edge.user, status: edge.presence, timestamp: now };
        for socket in &watched.sockets {
            outlet.emit(*socket, &event);
        }
    }
}

impl Index {
    fn unwatch(&mut self, socket: SocketId, user: &UserId) {
        if let Some(watched) = self.users.get_mut(user) {
            watched.sockets.retain(|other| *other != socket);
            if watched.sockets.is_empty() {
                self.users.remove(user);
            }
        }
    }
}

impl Watched {
    /// Whether `edge` is newer than what was known and says something else.
    fn advance(&mut self, edge: &Edge) -> bool {
        let (order, presence) = match self.newest {
            Some((order, presence)) => (order, Some(presence)),
            None => (0, None),
        };
        if self.newest.is_some() && edge.order <= order {
            return false;
        }
        self.newest = Some((edge.order, edge.presence));
        presence != Some(edge.presence)
    }
}
