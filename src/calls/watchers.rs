//! Which sockets of this node want to know about whose presence.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::warn;

use super::{Calls, Failure, Outlet};
use crate::{
    cluster::Edge,
    ids::{SocketId, UserId},
    metrics::{self, Limit},
    protocol::{MAX_WATCHED_USERS, Presence, ServerEvent},
    time::Timestamp,
};

#[derive(Default)]
pub struct Watchers {
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    users: BTreeMap<UserId, Watched>,
    sockets: HashMap<SocketId, BTreeSet<UserId>>,
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
        let added: BTreeSet<&UserId> = users.iter().filter(|user| !own.contains(*user)).collect();
        if own.len() + added.len() > MAX_WATCHED_USERS {
            return Err(TooMany);
        }
        for user in added {
            own.insert(user.clone());
            watched.entry(user.clone()).or_default().sockets.push(socket);
        }
        Ok(())
    }

    /// Answers those of `users` that nobody here watches any more.
    pub fn remove(&self, socket: SocketId, users: &[UserId]) -> Vec<UserId> {
        let mut index = self.index();
        let mut unwatched = Vec::new();
        for user in users {
            if index.sockets.get_mut(&socket).is_some_and(|own| own.remove(user))
                && index.unwatch(socket, user)
            {
                unwatched.push(user.clone());
            }
        }
        unwatched
    }

    /// The socket is gone. Answers the users that nobody here watches any more.
    pub fn forget(&self, socket: SocketId) -> Vec<UserId> {
        let mut index = self.index();
        let own = index.sockets.remove(&socket).unwrap_or_default();
        own.into_iter().filter(|user| index.unwatch(socket, user)).collect()
    }

    /// The watched users that come after this one, in order, at most so many; and the highest order of an edge that is
    /// known of any of them.
    pub fn after(&self, user: Option<&UserId>, limit: usize) -> (Vec<UserId>, u64) {
        let from = user.map_or(Bound::Unbounded, Bound::Excluded);
        let index = self.index();
        let (mut users, mut newest) = (Vec::new(), 0);
        for (user, watched) in index.users.range::<UserId, _>((from, Bound::Unbounded)).take(limit)
        {
            users.push(user.clone());
            newest = watched.newest.map_or(newest, |(order, _)| newest.max(order));
        }
        (users, newest)
    }

    /// Those of `users` that somebody here watches.
    pub fn watched(&self, users: Vec<UserId>) -> Vec<UserId> {
        let index = self.index();
        users.into_iter().filter(|user| index.users.contains_key(user)).collect()
    }

    /// Those of `users` whom nobody here watches.
    pub fn unwatched(&self, users: &[UserId]) -> Vec<UserId> {
        let index = self.index();
        users.iter().filter(|user| !index.users.contains_key(*user)).cloned().collect()
    }

    /// Takes presences in that were read after `socket` began to watch the users, and answers the
    /// newest known: an edge may have overtaken the reading. Where the reading is ahead of the edges,
    /// the other sockets are told now.
    pub fn settle(
        &self,
        socket: SocketId,
        read: Vec<Edge>,
        outlet: &dyn Outlet,
        now: Timestamp,
    ) -> Vec<(UserId, Presence)> {
        let mut index = self.index();
        let newest = |edge: Edge| {
            let Some(watched) = index.users.get_mut(&edge.user) else {
                return (edge.user, edge.presence);
            };
            if watched.advance(&edge) {
                watched.tell(&edge, Some(socket), outlet, now);
            }
            let presence = watched.newest.map_or(edge.presence, |(_, presence)| presence);
            (edge.user, presence)
        };
        read.into_iter().map(newest).collect()
    }

    /// Tells those who watch the user, unless they know something newer.
    pub fn announce(&self, edge: &Edge, outlet: &dyn Outlet, now: Timestamp) {
        let mut index = self.index();
        if let Some(watched) = index.users.get_mut(&edge.user)
            && watched.advance(edge)
        {
            watched.tell(edge, None, outlet, now);
        }
    }
}

impl Index {
    /// Whether nobody watches the user any more.
    fn unwatch(&mut self, socket: SocketId, user: &UserId) -> bool {
        let Some(watched) = self.users.get_mut(user) else { return true };
        watched.sockets.retain(|other| *other != socket);
        let is_last = watched.sockets.is_empty();
        if is_last {
            self.users.remove(user);
        }
        is_last
    }
}

impl Watched {
    fn tell(&self, edge: &Edge, but: Option<SocketId>, outlet: &dyn Outlet, now: Timestamp) {
        let user_id = edge.user.clone();
        let event = ServerEvent::Presence { user_id, status: edge.presence, timestamp: now };
        for socket in self.sockets.iter().filter(|socket| Some(**socket) != but) {
            outlet.emit(*socket, &event, None);
        }
    }

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

impl Calls {
    /// Watches `users` for this socket and answers their presence now.
    pub async fn subscribe(
        &self,
        socket: SocketId,
        users: &[UserId],
    ) -> Result<Vec<(UserId, Presence)>, Failure> {
        self.watchers.add(socket, users).map_err(|_| {
            metrics::LIMITS.of(Limit::Watched).increment(1);
            Failure::TooManyWatched
        })?;
        let edges = self.cluster.watch(users, 0).await?;
        Ok(self.watchers.settle(socket, edges, &*self.outlet, self.clock.now()))
    }

    pub async fn unsubscribe(&self, socket: SocketId, users: &[UserId]) {
        self.unwatch(self.watchers.remove(socket, users)).await;
    }

    /// The same for all users that this socket watches.
    pub async fn unsubscribe_all(&self, socket: SocketId) {
        self.unwatch(self.watchers.forget(socket)).await;
    }

    /// Tells the cluster that nobody here watches `users`, unless somebody does again.
    pub(super) async fn unwatch(&self, users: Vec<UserId>) {
        if users.is_empty() {
            return;
        }
        let mut result = self.cluster.unwatch(&users).await;
        let again = self.watchers.watched(users);
        if !again.is_empty() {
            result = self.cluster.watch(&again, 0).await.map(|_| ());
        }
        if let Err(error) = result {
            warn!(%error, "presence of users is still sent here for nobody");
        }
    }
}
