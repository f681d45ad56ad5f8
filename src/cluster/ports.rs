//! The ports: what a backend provides. `bus` and `membership` are written once above them.

use crate::{cluster::Unavailable, ids::NodeId, time::Timestamp};

/// Text messages between nodes. Each node has one channel, and receives what is published there
/// while it is subscribed.
///
/// Delivery is at most once: a publish may be lost, also if it had a receiver, and one that failed
/// may have been delivered. A publish that begins after another one has returned is delivered after
/// it. `link` repeats what was lost and drops duplicates.
pub trait Channel: Send + Sync + 'static {
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

    /// The time of the server's last reply to this node, to any request.
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
