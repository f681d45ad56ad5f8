//! Whose presence the sockets of this node want to know.

use tracing::warn;

use super::{Calls, Failure};
use crate::{
    ids::{SocketId, UserId},
    protocol::Presence,
};

impl Calls {
    /// Watches `users` for this socket and answers their presence now.
    pub async fn subscribe(
        &self,
        socket: SocketId,
        users: &[UserId],
    ) -> Result<Vec<(UserId, Presence)>, Failure> {
        self.watchers.add(socket, users).map_err(|_| Failure::TooManyWatched)?;
        let edges = self.cluster.watch(users).await?;
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
    async fn unwatch(&self, users: Vec<UserId>) {
        if users.is_empty() {
            return;
        }
        let mut result = self.cluster.unwatch(&users).await;
        let again = self.watchers.watched(users);
        if !again.is_empty() {
            result = self.cluster.watch(&again).await.map(|_| ());
        }
        if let Err(error) = result {
            warn!(%error, "presence of users is still sent here for nobody");
        }
    }
}
