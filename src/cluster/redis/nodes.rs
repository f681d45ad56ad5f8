//! Nodes: their heartbeats by Redis' clock, the offset of the cluster's clock, evictions.

use std::time::Duration;

use fred::prelude::*;
use tracing::warn;

use super::{
    Reconnections, RedisStore,
    facts::{list, sockets_field, text},
    scripts::timed,
};
use crate::{
    cluster::{
        Unavailable,
        ports::{Evicted, Heartbeat, Nodes, Rest},
        timekeeper::Offset,
    },
    ids::{NodeId, UserId},
    metrics::{Command, Connection},
    time::Timestamp,
};

/// The reply of `beat.lua`.
type Reply = (u64, u64, String, String, Vec<String>, String);

impl Nodes for RedisStore {
    type Error = Error;

    async fn beat(
        &self,
        confirmed: Option<(Timestamp, Offset)>,
        dead_after: Duration,
    ) -> Result<Heartbeat, Error> {
        let (confirmed, found) = match confirmed {
            Some((at, offset)) => (at.as_millis().to_string(), offset.to_string()),
            None => (String::new(), String::new()),
        };
        let keys = vec![self.keys.nodes(), self.keys.clock()];
        let silence = dead_after.as_millis().to_string();
        let arguments = vec![self.node.to_string(), confirmed, found, silence];
        let (added, now_ms, offset, confirmed, silent, evicted_keys): Reply =
            self.scripts.beat.run(&self.lease, keys, arguments).await?;
        let offset = offset.parse().unwrap_or_else(|error| {
            warn!(%error, "the offset of the cluster's clock cannot be read: it is left out");
            Offset::default()
        });
        Ok(Heartbeat {
            was_known: added == 0,
            time: Timestamp::from_millis(now_ms),
            offset,
            confirmed: confirmed.parse().ok().map(Timestamp::from_millis),
            silent: silent.iter().filter_map(|node| node.parse().ok()).collect(),
            evicted_keys: evicted_keys.parse().ok(),
        })
    }

    async fn count(&self) -> Result<u64, Error> {
        self.client.zcard(self.keys.nodes()).await
    }

    async fn answers(&self) -> bool {
        timed(Command::Other, self.client.ping::<()>(None)).await.is_ok()
    }

    async fn agree(&self, was: Offset, offset: Offset) -> Result<bool, Unavailable> {
        let arguments = vec![was.to_string(), offset.to_string()];
        let agreed = self.run(&self.scripts.agree, vec![self.keys.clock()], arguments).await?;
        Ok(text(agreed) == "1")
    }

    async fn evict(
        &self,
        node: NodeId,
        (after, before): (Timestamp, Timestamp),
        lease: Timestamp,
        limit: usize,
    ) -> Result<Evicted, Unavailable> {
        let keys = vec![self.keys.node(node), self.keys.nodes(), self.keys.evictions()];
        let arguments = vec![
            self.keys.user_prefix(),
            node.to_string(),
            sockets_field(node),
            self.keys.watchers_prefix(),
            limit.to_string(),
            lease.as_millis().to_string(),
            after.as_millis().to_string(),
            before.as_millis().to_string(),
        ];
        let mut answer = list(self.run(&self.scripts.bury, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let users = list(next()).into_iter().filter_map(|user| text(user).parse().ok()).collect();
        let rest = match text(next()).as_str() {
            "0" => Rest::Users,
            "1" => Rest::Nothing,
            _ => Rest::Untouched,
        };
        Ok(Evicted { users, rest })
    }

    async fn unacknowledged(
        &self,
        now: Timestamp,
        lease: Timestamp,
        limit: usize,
    ) -> Result<Vec<(NodeId, UserId)>, Unavailable> {
        let arguments =
            vec![now.as_millis().to_string(), lease.as_millis().to_string(), limit.to_string()];
        let keys = vec![self.keys.evictions()];
        let members = list(self.run(&self.scripts.unseen, keys, arguments).await?);
        let member = |member: String| {
            let (node, user) = member.split_once(':')?;
            Some((node.parse().ok()?, user.parse().ok()?))
        };
        Ok(members.into_iter().map(text).filter_map(member).collect())
    }

    async fn acknowledge(&self, node: NodeId, users: &[UserId]) -> Result<(), Unavailable> {
        if users.is_empty() {
            return Ok(());
        }
        let members: Vec<String> =
            users.iter().map(|user| format!("{node}:{}", user.as_str())).collect();
        let removed = self.client.zrem(self.keys.evictions(), members);
        timed(Command::Other, removed).await.map_err(|_| Unavailable)
    }

    async fn leave(&self) -> Result<bool, Unavailable> {
        let keys = vec![self.keys.nodes(), self.keys.node(self.node)];
        let arguments = vec![self.node.to_string()];
        Ok(text(self.run(&self.scripts.leave, keys, arguments).await?) == "1")
    }

    async fn reconnected(&self) -> Connection {
        let mut reconnections = self.reconnections.lock().await;
        let Reconnections { commands, lease } = &mut *reconnections;
        tokio::select! {
            _ = commands.recv() => Connection::Commands,
            _ = lease.recv() => Connection::Lease,
        }
    }
}
