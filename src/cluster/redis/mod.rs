//! The Redis backend: records, claims, presence and deadlines in keys of one hash tag, messages on
//! one sharded channel per node. It translates the ports to scripts and decides nothing.
//!
//! | file | content |
//! |---|---|
//! | `connect.rs` | connections: URL, TLS, requirements on the server |
//! | `records.rs`, `users.rs`, `nodes.rs` | the ports of the store |
//! | `channel.rs` | the port of the channels |
//! | `scripts.rs`, `*.lua` | the scripts |
//! | `facts.rs` | the formats of the data |

mod channel;
mod connect;
pub(crate) mod facts;
mod nodes;
mod records;
mod scripts;
mod users;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fred::{prelude::*, types::config::Server};
use tokio::sync::{Mutex, broadcast, mpsc};
use tracing::{debug, warn};

use self::scripts::{Named, Scripts};
use super::{Inbound, Unavailable, membership::Membership, node::Node};
use crate::{
    health::Health,
    ids::{CallId, NodeId, UserId},
    limits::buffers::Buffers,
    time::{Clock, SharedClock, Timestamp},
};

pub use self::{
    channel::RedisChannel,
    connect::{ConnectError, MIN_MAJOR, has_known_scheme},
};

/// A node of a cluster on Redis.
pub type Redis = Node<RedisStore, RedisChannel>;

/// The keys of one cluster, as one node reads and writes them.
pub struct RedisStore {
    node: NodeId,
    keys: Keys,
    client: Client,
    /// The connection of the heartbeat, which waits for no other command.
    lease: Client,
    /// The connection for presence, which no step of a call waits for.
    presence: Client,
    scripts: Scripts,
    replies: LastReply,
    reconnections: Mutex<Reconnections>,
    /// Whether the last script failed.
    is_failing: AtomicBool,
}

struct Reconnections {
    commands: broadcast::Receiver<Server>,
    lease: broadcast::Receiver<Server>,
}

/// The time of Redis' last reply to this node. Cheap to clone.
#[derive(Clone)]
struct LastReply {
    clock: Clock,
    replied_ms: Arc<AtomicU64>,
}

impl LastReply {
    fn note(&self) {
        self.replied_ms.fetch_max(self.clock.now().as_millis(), Ordering::Relaxed);
    }

    fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.replied_ms.load(Ordering::Relaxed))
    }
}

/// Key names. All state has one hash tag, so that one script can access it in a Redis Cluster, too.
struct Keys {
    prefix: String,
}

impl Keys {
    fn call_prefix(&self) -> String {
        format!("{}call:", self.prefix)
    }

    fn call(&self, id: CallId) -> String {
        format!("{}call:{id}", self.prefix)
    }

    fn user_prefix(&self) -> String {
        format!("{}user:", self.prefix)
    }

    fn user(&self, user: &UserId) -> String {
        format!("{}user:{}", self.prefix, user.as_str())
    }

    fn watchers_prefix(&self) -> String {
        format!("{}watchers:", self.prefix)
    }

    fn watchers(&self, user: &UserId) -> String {
        format!("{}watchers:{}", self.prefix, user.as_str())
    }

    fn node_prefix(&self) -> String {
        format!("{}node:", self.prefix)
    }

    fn node(&self, node: NodeId) -> String {
        format!("{}node:{node}", self.prefix)
    }

    fn deadlines(&self) -> String {
        format!("{}deadlines", self.prefix)
    }

    fn unstored(&self) -> String {
        format!("{}unstored", self.prefix)
    }

    fn stored(&self) -> String {
        format!("{}stored", self.prefix)
    }

    /// Evicted users whose calls nobody has handled.
    fn evictions(&self) -> String {
        format!("{}departed", self.prefix)
    }

    fn clock(&self) -> String {
        format!("{}clock", self.prefix)
    }

    fn nodes(&self) -> String {
        format!("{}nodes", self.prefix)
    }
}

impl Redis {
    /// Joins the cluster `namespace` on the Redis at `url`. Waits for Redis if it is down. `clock`
    /// is set to the cluster's time now and with each heartbeat. Messages to and from other nodes
    /// are counted in `buffers`.
    pub async fn join(
        url: &str,
        namespace: &str,
        node: NodeId,
        clock: Arc<SharedClock>,
        health: Health,
        buffers: &Buffers,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Inbound>), ConnectError> {
        let connect::Connections { commands: client, lease, presence, messages: subscriber } =
            connect::connect(url, &health).await?;
        let shared_clock = Clock::Shared(clock.clone());
        let replies = LastReply { clock: shared_clock.clone(), replied_ms: Arc::default() };
        let channel =
            RedisChannel::new(node, namespace, client.clone(), subscriber.clone(), replies.clone());
        if let Err(error) = channel.try_subscribe().await
            && error.details().starts_with("NOPERM")
        {
            return Err(ConnectError::Refused(error));
        }
        let subscription = channel.subscription();
        tokio::spawn(async move {
            // Detects a frozen connection: command time-outs do not cover this one.
            let _ = subscriber.enable_heartbeat(Duration::from_millis(500), false).await;
        });
        let reconnections =
            Reconnections { commands: client.reconnect_rx(), lease: lease.reconnect_rx() };
        let store = RedisStore {
            node,
            keys: Keys { prefix: format!("sb:{{{namespace}}}:") },
            client,
            lease,
            presence,
            scripts: Scripts::default(),
            replies,
            reconnections: Mutex::new(reconnections),
            is_failing: AtomicBool::default(),
        };
        let (node, inbox, sender) = Node::open(
            node,
            store,
            channel,
            subscription,
            shared_clock,
            health.clone(),
            buffers.clone(),
        );
        let mut membership = Membership::new(node.clone(), clock, health, sender);
        membership.take_time().await.map_err(ConnectError::Refused)?;
        tokio::spawn(membership.run());
        Ok((node, inbox))
    }
}

impl RedisStore {
    async fn run(
        &self,
        script: &Named,
        keys: Vec<String>,
        arguments: Vec<String>,
    ) -> Result<Value, Unavailable> {
        self.run_on(&self.client, script, keys, arguments).await
    }

    async fn run_on(
        &self,
        client: &Client,
        script: &Named,
        keys: Vec<String>,
        arguments: Vec<String>,
    ) -> Result<Value, Unavailable> {
        let ran = script.run(client, keys, arguments).await;
        let failed_before = self.is_failing.swap(ran.is_err(), Ordering::Relaxed);
        let answer = ran.map_err(|error| {
            // One line is enough for thousands of failures in a row.
            if failed_before {
                debug!(%error, "Redis did not carry another script out");
            } else {
                warn!(%error, "Redis did not carry a script out");
            }
            Unavailable
        })?;
        self.replies.note();
        Ok(answer)
    }
}
