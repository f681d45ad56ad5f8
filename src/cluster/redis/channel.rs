//! The nodes' channels: a sharded one for each, so that a Redis Cluster spreads the traffic.

use std::collections::HashMap;

use fred::{
    clients::SubscriberClient,
    prelude::*,
    types::{Message, config::Server},
};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tracing::debug;

use super::{LastReply, scripts::timed};
use crate::{
    cluster::{
        Unavailable,
        ports::{Channel, Received, Subscription},
    },
    ids::NodeId,
    metrics::{self, Command, Connection},
    time::Timestamp,
};

/// The channels, as one node uses them.
pub struct RedisChannel {
    node: NodeId,
    namespace: String,
    client: Client,
    subscriber: SubscriberClient,
    replies: LastReply,
}

impl RedisChannel {
    pub(super) fn new(
        node: NodeId,
        namespace: &str,
        client: Client,
        subscriber: SubscriberClient,
        replies: LastReply,
    ) -> Self {
        Self { node, namespace: namespace.to_owned(), client, subscriber, replies }
    }

    fn name(&self, node: NodeId) -> String {
        format!("sb:n:{}:{node}", self.namespace)
    }

    pub(super) async fn try_subscribe(&self) -> Result<(), Error> {
        self.subscriber.ssubscribe(self.name(self.node)).await
    }

    pub(super) fn subscription(&self) -> RedisSubscription {
        RedisSubscription {
            messages: self.subscriber.message_rx(),
            reconnections: self.subscriber.reconnect_rx(),
        }
    }
}

impl Channel for RedisChannel {
    async fn publish(&self, to: NodeId, text: String) -> Result<usize, Unavailable> {
        let published = self.client.spublish(self.name(to), text);
        let receivers = timed(Command::Publish, published).await.map_err(|error: Error| {
            debug!(%error, peer = %to, "a publish failed; the link will notice");
            Unavailable
        })?;
        self.replies.note();
        Ok(receivers)
    }

    async fn subscribe(&self) -> Result<(), Unavailable> {
        self.try_subscribe().await.map_err(|error| {
            debug!(%error, "the node's channel cannot be subscribed, trying again");
            Unavailable
        })
    }

    async fn unsubscribe(&self) {
        let _ = self.subscriber.sunsubscribe(self.name(self.node)).await;
    }

    async fn reachable(&self, nodes: &[NodeId]) -> Result<Vec<bool>, Unavailable> {
        let mut reachable = Vec::with_capacity(nodes.len());
        for node in nodes {
            let asked = Box::pin(self.client.pubsub_shardnumsub(self.name(*node)));
            let counts: HashMap<String, i64> =
                timed(Command::Other, asked).await.map_err(|_| Unavailable)?;
            reachable.push(counts.values().any(|count| *count > 0));
        }
        Ok(reachable)
    }

    fn last_reply(&self) -> Timestamp {
        self.replies.at()
    }
}

/// The subscription of one node. The library does not restore it after a reconnection, and it can
/// end silently when a slot moves.
pub struct RedisSubscription {
    messages: Receiver<Message>,
    reconnections: Receiver<Server>,
}

impl Subscription for RedisSubscription {
    async fn next(&mut self) -> Received {
        loop {
            let received = tokio::select! {
                biased;
                reconnected = self.reconnections.recv() => {
                    if let Err(RecvError::Closed) = reconnected {
                        return Received::Closed;
                    }
                    metrics::REDIS_RECONNECTS.of(Connection::Messages).increment(1);
                    return Received::Reconnected;
                }
                received = self.messages.recv() => received,
            };
            match received.map(|message| message.value.into_string()) {
                Ok(Some(text)) => return Received::Text(text),
                Ok(None) => {}
                Err(RecvError::Lagged(count)) => return Received::Lagged(count),
                Err(RecvError::Closed) => return Received::Closed,
            }
        }
    }

    fn take(&mut self) -> Option<String> {
        std::iter::from_fn(|| self.messages.try_recv().ok())
            .find_map(|message| message.value.into_string())
    }
}
