//! The Redis backend: records, claims, presence and deadlines in keys of one hash tag, messages on
//! one sharded channel per node.

mod asked;
mod channel;
mod connect;
pub(crate) mod facts;
mod life;
mod marked;

pub use connect::ConnectError;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fred::{
    prelude::*,
    types::{ClusterHash, CustomCommand},
};
use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use self::{
    asked::{Named, Scripts, timed},
    channel::RedisChannel,
    facts::{Facts, list, read_record, readable, sockets_field, text, write_record},
    marked::{Aspect, Calls, Marked, Own, Watchers},
};
use super::{
    Change, Cluster, Committed, Detached, Due, Edge, Inbound, LONGEST_UNSTORED_LEASE, MAX_UNSTORED,
    Message, Relay, Stored, TAKE_OVER_AFTER, USERS_AT_ONCE, Unavailable, Unstored, bus::Bus,
    ports::Channel, timekeeper::Timekeeper,
};
use crate::{
    call::{Call, ENDED_RETENTION, Lobby, Role},
    health::Health,
    ids::{CallId, NodeId, SocketId, UserId},
    limits::buffers::Buffers,
    metrics::Command,
    shutdown::{self, Trigger},
    time::{Clock, SharedClock, Timestamp},
};

/// The most scripts of one operation that run at the same time.
const MARKS_AT_ONCE: usize = 4;
/// The most messages in this node's inbox.
const INBOX_MESSAGES: usize = 65_536;
/// The time for which a due call is hidden after a node has taken it.
const LIVE_LEASE: Duration = Duration::from_secs(5);
/// About so many keys are scanned at a time for what has to be repaired.
const MEND_KEYS: usize = 1_000;
/// The most ended calls that one script removes.
const FORGOTTEN_AT_ONCE: usize = 256;
/// The time that a leaving node has to send its queued messages.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LAST_WORDS_POLL: Duration = Duration::from_millis(5);
/// A record that nobody attends to expires this much later than its longest life.
const RECORD_MARGIN: Duration = Duration::from_hours(24);

/// One node of a cluster on Redis.
pub struct Redis {
    node: NodeId,
    keys: Keys,
    client: Client,
    /// The connection of the heartbeat, which waits for no other command.
    lease: Client,
    /// The connection for presence, which no step of a call waits for.
    presence: Client,
    bus: Bus<RedisChannel>,
    scripts: Scripts,
    clock: Arc<SharedClock>,
    timekeeper: Mutex<Timekeeper>,
    local: Mutex<Local>,
    /// Triggered when the node has left: no more heartbeats.
    leaving: Trigger,
    health: Health,
    /// Whether the last script failed.
    is_failing: AtomicBool,
}

/// The relation of this node to each user.
#[derive(Default)]
struct Local {
    sockets: HashMap<UserId, BTreeSet<SocketId>>,
    watched: HashSet<UserId>,
    /// Users whose removal from this node had no reply: it may have been applied.
    untidied: BTreeSet<UserId>,
    /// The position at which the scan that repairs keys continues. `None` if no scan is needed.
    mend_from: Option<String>,
    /// The number of keys that Redis had evicted, as the latest heartbeat read it.
    evicted: u64,
}

impl Local {
    fn own(&self, user: &UserId, aspect: Aspect) -> Own {
        let sockets = || self.sockets.get(user).map_or(0, BTreeSet::len);
        Own {
            sockets: (aspect == Aspect::Both).then(sockets),
            is_watched: self.watched.contains(user),
        }
    }

    fn remove(&mut self, user: &UserId, socket: SocketId) {
        if let Some(sockets) = self.sockets.get_mut(user) {
            sockets.remove(&socket);
            if sockets.is_empty() {
                self.sockets.remove(user);
            }
        }
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

    fn departed(&self) -> String {
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
        let channel = RedisChannel::new(
            node,
            namespace,
            client.clone(),
            subscriber.clone(),
            shared_clock.clone(),
        );
        if let Err(error) = channel.try_subscribe().await
            && error.details().starts_with("NOPERM")
        {
            return Err(ConnectError::Refused(error));
        }
        let (sender, inbox) = mpsc::channel(INBOX_MESSAGES);
        let (leaving, leaves) = shutdown::shutdown();
        let subscription = channel.subscription();
        let bus = Bus::new(node, channel, shared_clock, buffers.clone());
        let listening =
            bus.clone().listen(subscription, sender.clone(), health.clone(), leaves.clone());
        tokio::spawn(listening);
        tokio::spawn(async move {
            // Detects a frozen connection: command time-outs do not cover this one.
            let _ = subscriber.enable_heartbeat(Duration::from_millis(500), false).await;
        });
        let redis = Arc::new(Self {
            node,
            keys: Keys { prefix: format!("sb:{{{namespace}}}:") },
            client,
            lease,
            presence,
            bus,
            scripts: Scripts::default(),
            timekeeper: Mutex::new(Timekeeper::new(clock.clone())),
            clock,
            local: Mutex::default(),
            leaving,
            health,
            is_failing: AtomicBool::default(),
        });
        redis.take_time().await.map_err(ConnectError::Refused)?;
        tokio::spawn(redis.clone().live(sender, leaves));
        Ok((redis, inbox))
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        self.bus.channel().note_reply();
        Ok(answer)
    }

    /// Reads users and the records of their latest calls.
    async fn look(&self, users: &[UserId]) -> Result<Vec<(Facts, Option<Call>)>, Unavailable> {
        self.look_on(&self.client, users, Watchers::Unwanted).await
    }

    async fn look_on(
        &self,
        client: &Client,
        users: &[UserId],
        watchers: Watchers,
    ) -> Result<Vec<(Facts, Option<Call>)>, Unavailable> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let mut keys: Vec<String> = users.iter().map(|user| self.keys.user(user)).collect();
        if watchers == Watchers::Wanted {
            keys.extend(users.iter().map(|user| self.keys.watchers(user)));
        }
        let arguments = vec![self.keys.call_prefix(), users.len().to_string()];
        let answer = self.run_on(client, &self.scripts.look, keys, arguments).await?;
        let mut answer = list(answer).into_iter();
        let mut all: Vec<(Facts, Option<Call>)> = Vec::with_capacity(users.len());
        while let (Some(facts), Some(record)) = (answer.next(), answer.next()) {
            let call = match text(record).as_str() {
                "=" => all.last().and_then(|(_, call)| call.clone()),
                record => read_record(record)?,
            };
            all.push((Facts::read(&text(facts)), call));
        }
        Ok(all)
    }

    /// Writes this node's present relation to these users. Returns them in their order, each
    /// presence change with an order above `after`, with the records of their latest calls if
    /// `records` asks for them.
    async fn mark(
        &self,
        users: &[UserId],
        aspect: Aspect,
        calls: Calls,
        after: u64,
    ) -> Result<Vec<Marked>, Unavailable> {
        let mut marked = Vec::with_capacity(users.len());
        for part in users.chunks(USERS_AT_ONCE * MARKS_AT_ONCE) {
            let some =
                part.chunks(USERS_AT_ONCE).map(|some| self.mark_some(some, aspect, calls, after));
            marked.extend(try_join_all(some).await?.into_iter().flatten());
        }
        Ok(marked)
    }

    /// [`Self::mark`] for as many users as one script accepts. Two writes for one user can overtake
    /// each other: then the one that finds the other's state writes again.
    async fn mark_some(
        &self,
        users: &[UserId],
        aspect: Aspect,
        calls: Calls,
        after: u64,
    ) -> Result<Vec<Marked>, Unavailable> {
        let mut marked: Vec<Option<Marked>> = vec![None; users.len()];
        let mut turn: Vec<usize> = (0..users.len()).collect();
        while !turn.is_empty() {
            let own: Vec<Own> = {
                let local = self.local();
                turn.iter().map(|at| local.own(&users[*at], aspect)).collect()
            };
            let mut keys = vec![self.keys.node(self.node), self.keys.nodes()];
            let mut arguments = vec![
                self.keys.call_prefix(),
                self.node.to_string(),
                sockets_field(self.node),
                u8::from(calls == Calls::Wanted).to_string(),
                after.to_string(),
            ];
            for (at, own) in std::iter::zip(&turn, &own) {
                keys.extend([self.keys.user(&users[*at]), self.keys.watchers(&users[*at])]);
                arguments.push(users[*at].as_str().to_owned());
                arguments.extend(own.values());
            }
            let client = if aspect == Aspect::Watched { &self.presence } else { &self.client };
            let answer = self.run_on(client, &self.scripts.mark, keys, arguments).await?;
            let answer = list(answer);
            if answer.len() != turn.len() {
                return Err(Unavailable);
            }
            for (at, answer) in std::iter::zip(&turn, answer) {
                let now = Marked::read(&users[*at], list(answer))?;
                marked[*at] = Some(match marked[*at].take() {
                    Some(before) => before.then(now),
                    None => now,
                });
            }
            let local = self.local();
            turn = std::iter::zip(turn, own)
                .filter(|(at, own)| local.own(&users[*at], aspect) != *own)
                .map(|(at, _)| at)
                .collect();
        }
        Ok(marked.into_iter().flatten().collect())
    }

    async fn mark_sockets(&self, user: &UserId, calls: Calls) -> Result<Marked, Unavailable> {
        let user = std::slice::from_ref(user);
        let marked = self.mark_some(user, Aspect::Both, calls, 0).await?;
        marked.into_iter().next().ok_or(Unavailable)
    }

    /// Processes the script's reply that tells whether it found calls whose records are gone.
    fn note_gone(&self, answer: &str) {
        if answer == "1" {
            warn!("records of calls are gone before their time: all keys are checked");
            self.local().mend_from = Some("0".to_owned());
        }
    }

    /// Takes the number of keys that Redis has evicted since it started. Returns whether there are more than before.
    fn note_evicted(&self, evicted: u64) -> bool {
        let mut local = self.local();
        let before = std::mem::replace(&mut local.evicted, evicted);
        // Its first heartbeat finds all that is there, and a Redis that has restarted counts anew.
        if evicted <= before {
            return false;
        }
        local.mend_from = Some("0".to_owned());
        true
    }

    /// Scans a part of all keys and repairs what leads from one to another, if a key is known to be gone. Returns the
    /// users whose latest call has changed, and the live calls one of whose users is in another live call.
    async fn mend(&self) -> (Vec<UserId>, Vec<Call>) {
        let Some(from) = self.local().mend_from.take() else { return Default::default() };
        let keys = vec![
            self.keys.deadlines(),
            self.keys.unstored(),
            self.keys.stored(),
            self.keys.nodes(),
        ];
        let arguments = vec![
            self.keys.call_prefix(),
            self.keys.user_prefix(),
            self.keys.node_prefix(),
            self.keys.prefix.clone(),
            from,
            MEND_KEYS.to_string(),
            Clock::Shared(self.clock.clone()).now().as_millis().to_string(),
            self.keys.watchers_prefix(),
        ];
        // If this fails, the scan restarts.
        let Ok(answer) = self.run(&self.scripts.mend, keys, arguments).await else {
            self.local().mend_from = Some("0".to_owned());
            return Default::default();
        };
        let mut answer = list(answer).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let (from, users, displaced) = (text(next()), list(next()), readable(next()));
        let mut local = self.local();
        if local.mend_from.is_none() {
            local.mend_from = Some(from).filter(|from| from != "0");
        }
        let users = users.into_iter().filter_map(|user| text(user).parse().ok());
        (users.collect(), displaced)
    }

    /// Writes a record over the version `over` (0 requires that there is none) and the users'
    /// claims.
    async fn write(&self, change: Change, over: u64) -> Result<Committed, Unavailable> {
        let Change { call, claims } = &change;
        let claim_of = |user: &UserId| match claims.iter().find(|claim| claim.user == *user) {
            Some(claim) => claim.was.map_or(String::new(), |id| id.to_string()),
            None => "-".to_owned(),
        };
        let (caller, callee) = (&call.caller.user, &call.callee.user);
        let keys = vec![
            self.keys.call(call.id),
            self.keys.deadlines(),
            self.keys.user(caller),
            self.keys.user(callee),
            self.keys.unstored(),
            self.keys.stored(),
            self.keys.watchers(caller),
            self.keys.watchers(callee),
        ];
        let life = call.expires_at - call.created_at + RECORD_MARGIN;
        let arguments = vec![
            call.id.to_string(),
            over.to_string(),
            call.version.to_string(),
            write_record(call),
            u8::from(call.is_live()).to_string(),
            call.deadline().as_millis().to_string(),
            life.as_millis().to_string(),
            caller.as_str().to_owned(),
            callee.as_str().to_owned(),
            claim_of(caller),
            claim_of(callee),
            (Clock::Shared(self.clock.clone()).now() + TAKE_OVER_AFTER).as_millis().to_string(),
        ];
        let mut answer = list(self.run(&self.scripts.commit, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        if text(next()) != "ok" {
            let current = read_record(&text(next()))?;
            return Ok(Committed::Conflict(current.map(Box::new)));
        }
        let was_live = text(next());
        let (caller_facts, callee_facts) = (Facts::read(&text(next())), Facts::read(&text(next())));
        let edges = [(caller, &caller_facts), (callee, &callee_facts)].map(|(user, facts)| {
            let is_its = facts.claim == Some(call.id);
            let edge = facts.edge(user, is_its && call.is_live());
            let before = facts.presence(was_live == "1");
            let changed = is_its && (was_live == "?" || before != edge.presence);
            Some(edge).filter(|_| changed)
        });
        Ok(Committed::Stored(Stored {
            edges: edges.into_iter().flatten().collect(),
            callee_nodes: callee_facts.nodes.iter().map(|(node, _)| *node).collect(),
        }))
    }
}

#[async_trait]
impl Cluster for Redis {
    fn node(&self) -> NodeId {
        self.node
    }

    async fn attach(&self, user: &UserId, socket: SocketId) -> Result<Option<Edge>, Unavailable> {
        let is_new = self.local().sockets.entry(user.clone()).or_default().insert(socket);
        match self.mark_sockets(user, Calls::Unwanted).await {
            Ok(marked) => Ok(marked.changed()),
            Err(error) => {
                if is_new {
                    self.local().remove(user, socket);
                }
                Err(error)
            }
        }
    }

    async fn detach(&self, user: &UserId, socket: SocketId) -> Result<Detached, Unavailable> {
        self.local().remove(user, socket);
        self.mark_sockets(user, Calls::Wanted).await.map(Detached::from)
    }

    async fn attach_again(&self, sockets: &[(UserId, SocketId)]) -> Result<Vec<Edge>, Unavailable> {
        let (mut users, mut new) = (Vec::with_capacity(sockets.len()), Vec::new());
        {
            let mut local = self.local();
            for (user, socket) in sockets {
                if local.sockets.entry(user.clone()).or_default().insert(*socket) {
                    new.push((user, *socket));
                }
                users.push(user.clone());
            }
        }
        let marked =
            self.mark(&users, Aspect::Both, Calls::Unwanted, 0).await.inspect_err(|_| {
                let mut local = self.local();
                for (user, socket) in new {
                    local.remove(user, socket);
                }
            })?;
        Ok(marked.into_iter().filter_map(Marked::changed).collect())
    }

    async fn detach_all(
        &self,
        sockets: &[(UserId, SocketId)],
    ) -> Result<Vec<Detached>, Unavailable> {
        let mut users = Vec::with_capacity(sockets.len());
        {
            let mut local = self.local();
            for (user, socket) in sockets {
                local.remove(user, *socket);
                users.push(user.clone());
            }
        }
        let marked = self.mark(&users, Aspect::Both, Calls::Wanted, 0).await?;
        Ok(marked.into_iter().map(Detached::from).collect())
    }

    async fn tidy(
        &self,
        from: Option<&str>,
    ) -> Result<(Vec<(UserId, Detached)>, Option<String>), Unavailable> {
        let from = from.unwrap_or("0");
        let key = self.keys.node(self.node);
        let arguments = [&key, from, "COUNT", &USERS_AT_ONCE.to_string()].map(str::to_owned);
        let scan = CustomCommand::new_static("SSCAN", ClusterHash::FirstKey, false);
        let scanned = self.client.custom(scan, arguments.to_vec());
        let (next, members): (String, Vec<String>) =
            timed(Command::Other, scanned).await.map_err(|_| Unavailable)?;
        let mut absent: Vec<UserId> = {
            let local = self.local();
            let is_here =
                |user: &UserId| local.sockets.contains_key(user) || local.watched.contains(user);
            let users = members.into_iter().filter_map(|user| user.parse::<UserId>().ok());
            users.filter(|user| !is_here(user)).collect()
        };
        // Users whose removal had no reply come first. A repeated scan finds the rest.
        let (taken, next) = {
            let mut local = self.local();
            let mut taken: Vec<UserId> = local.untidied.iter().cloned().collect();
            taken.retain(|user| !local.sockets.contains_key(user) && !local.watched.contains(user));
            absent.retain(|user| !taken.contains(user));
            taken.extend(absent);
            let has_more = taken.len() > USERS_AT_ONCE;
            taken.truncate(USERS_AT_ONCE);
            local.untidied = taken.iter().cloned().collect();
            (taken, if has_more { from.to_owned() } else { next })
        };
        let marked = self.mark(&taken, Aspect::Both, Calls::Wanted, 0).await?;
        self.local().untidied.clear();
        let taken = std::iter::zip(taken, marked.into_iter().map(Detached::from)).collect();
        Ok((taken, Some(next).filter(|next| next != "0")))
    }

    async fn watch(&self, users: &[UserId], after: u64) -> Result<Vec<Edge>, Unavailable> {
        self.local().watched.extend(users.iter().cloned());
        let marked = self.mark(users, Aspect::Watched, Calls::Unwanted, after).await?;
        Ok(marked.into_iter().map(|marked| marked.edge).collect())
    }

    async fn unwatch(&self, users: &[UserId]) -> Result<(), Unavailable> {
        {
            let mut local = self.local();
            for user in users {
                local.watched.remove(user);
            }
        }
        self.mark(users, Aspect::Watched, Calls::Unwanted, 0).await.map(drop)
    }

    async fn presence(&self, users: &[UserId]) -> Result<Vec<Edge>, Unavailable> {
        let edge = |(user, (facts, call)): (&UserId, (Facts, Option<Call>))| {
            facts.edge(user, call.as_ref().is_some_and(Call::is_live))
        };
        let mut all = Vec::with_capacity(users.len());
        // Redis does nothing else while it runs a script, so a script must be short.
        for some in users.chunks(USERS_AT_ONCE) {
            let looked = self.look_on(&self.presence, some, Watchers::Wanted).await?;
            all.extend(std::iter::zip(some, looked).map(edge));
        }
        Ok(all)
    }

    async fn lobby(&self, caller: &UserId, callee: &UserId) -> Result<Lobby, Unavailable> {
        let mut looked = self.look(&[caller.clone(), callee.clone()]).await?.into_iter();
        let (_, caller_call) = looked.next().ok_or(Unavailable)?;
        let (callee, callee_call) = looked.next().ok_or(Unavailable)?;
        let others: Vec<_> = callee.nodes.iter().filter(|(node, _)| *node != self.node).collect();
        let nodes: Vec<NodeId> = others.iter().map(|(node, _)| *node).collect();
        let reachable = self.bus.channel().reachable(&nodes).await?;
        let gone: usize = std::iter::zip(others, reachable)
            .filter(|(_, reachable)| !reachable)
            .map(|((_, count), _)| count)
            .sum();
        let all: usize = callee.nodes.iter().map(|(_, count)| count).sum();
        Ok(Lobby { caller_call, callee_call, callee_sockets: all - gone })
    }

    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable> {
        let record: Option<String> =
            timed(Command::Load, self.client.hget(self.keys.call(id), "r"))
                .await
                .map_err(|_| Unavailable)?;
        read_record(&record.unwrap_or_default())
    }

    async fn live(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Call>, Option<String>), Unavailable> {
        // An invalid cursor restarts the iteration.
        let from = from.filter(|from| from.parse::<u64>().is_ok()).unwrap_or("0");
        let keys = vec![self.keys.deadlines()];
        let arguments = vec![self.keys.call_prefix(), from.to_owned(), limit.to_string()];
        let mut answer = list(self.run(&self.scripts.live, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let from = text(next());
        let calls = readable(next());
        Ok((calls, Some(from).filter(|from| from != "0")))
    }

    async fn nodes_of(&self, user: &UserId) -> Result<Vec<NodeId>, Unavailable> {
        let looked = self.look(std::slice::from_ref(user)).await?;
        let nodes = looked.into_iter().flat_map(|(facts, _)| facts.nodes);
        Ok(nodes.map(|(node, _)| node).collect())
    }

    async fn sockets_of(&self, user: &UserId) -> Result<Vec<(NodeId, usize)>, Unavailable> {
        let looked = self.look(std::slice::from_ref(user)).await?;
        Ok(looked.into_iter().flat_map(|(facts, _)| facts.nodes).collect())
    }

    async fn latest(&self, user: &UserId) -> Result<Option<Call>, Unavailable> {
        let looked = self.look(std::slice::from_ref(user)).await?;
        Ok(looked.into_iter().next().and_then(|(_, call)| call))
    }

    async fn latest_of(&self, users: &[UserId]) -> Result<Vec<Option<Call>>, Unavailable> {
        Ok(self.look(users).await?.into_iter().map(|(_, call)| call).collect())
    }

    async fn commit(&self, change: Change) -> Result<Committed, Unavailable> {
        let over = change.call.version - 1;
        self.write(change, over).await
    }

    async fn restore(
        &self,
        change: Change,
        over: Option<u64>,
    ) -> Result<Option<Stored>, Unavailable> {
        Ok(self.write(change, over.unwrap_or(0)).await?.stored())
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Due, Unavailable> {
        let keys = vec![self.keys.deadlines(), self.keys.unstored(), self.keys.stored()];
        let arguments = vec![
            self.keys.call_prefix(),
            now.as_millis().to_string(),
            (now + LIVE_LEASE).as_millis().to_string(),
            limit.to_string(),
        ];
        let mut answer = list(self.run(&self.scripts.due, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let has_more = text(next()) == "1";
        let calls = readable(next());
        self.note_gone(&text(next()));
        let (mended, displaced) = self.mend().await;
        Ok(Due { calls, has_more, mended, displaced })
    }

    async fn unstored(&self, now: Timestamp, limit: usize) -> Result<Unstored, Unavailable> {
        let keys = vec![self.keys.unstored(), self.keys.stored()];
        let arguments = vec![
            self.keys.call_prefix(),
            self.keys.user_prefix(),
            now.as_millis().to_string(),
            TAKE_OVER_AFTER.as_millis().to_string(),
            LONGEST_UNSTORED_LEASE.as_millis().to_string(),
            ENDED_RETENTION.as_millis().to_string(),
            limit.to_string(),
            FORGOTTEN_AT_ONCE.to_string(),
            MAX_UNSTORED.to_string(),
        ];
        let mut answer = list(self.run(&self.scripts.unstored, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let has_more = text(next()) == "1";
        let [waiting, lost] = [(); 2].map(|()| text(next()).parse().unwrap_or_default());
        let calls = readable(next());
        self.note_gone(&text(next()));
        Ok(Unstored { calls, has_more, waiting, lost })
    }

    async fn settle(&self, stored: &[(CallId, u64)]) -> Result<(), Unavailable> {
        let mut keys = vec![self.keys.unstored(), self.keys.stored()];
        keys.extend(stored.iter().map(|(id, _)| self.keys.call(*id)));
        let versions =
            stored.iter().flat_map(|(id, version)| [id.to_string(), version.to_string()]);
        self.run(&self.scripts.settle, keys, versions.collect()).await.map(drop)
    }

    async fn seen_off(&self, node: NodeId, users: &[UserId]) -> Result<(), Unavailable> {
        if users.is_empty() {
            return Ok(());
        }
        let members: Vec<String> =
            users.iter().map(|user| format!("{node}:{}", user.as_str())).collect();
        let removed = self.client.zrem(self.keys.departed(), members);
        timed(Command::Other, removed).await.map_err(|_| Unavailable)
    }

    fn recall(&self, from: NodeId, call: CallId, to: Role) -> Vec<Relay> {
        self.bus.recall(from, call, to)
    }

    fn stop_listening(&self) {
        self.leaving.fire();
    }

    async fn leave(&self) {
        self.stop_listening();
        let published = async {
            while !self.bus.is_idle() {
                tokio::time::sleep(LAST_WORDS_POLL).await;
            }
        };
        if tokio::time::timeout(LAST_WORDS, published).await.is_err() {
            warn!("not all that was meant for other nodes could be sent");
        }
        let keys = vec![self.keys.nodes(), self.keys.node(self.node)];
        let arguments = vec![self.node.to_string()];
        match self.run(&self.scripts.leave, keys, arguments).await.map(text) {
            Ok(left) if left == "1" => {}
            Ok(_) | Err(Unavailable) => {
                warn!("this node could not sign all its users off: the others will bury it");
            }
        }
    }

    fn send(&self, to: NodeId, message: Message) {
        self.bus.send(to, message);
    }

    fn has_room(&self, to: NodeId, call: CallId, bytes: usize) -> bool {
        self.bus.has_room(to, call, bytes)
    }

    fn queued(&self) -> usize {
        self.bus.queued()
    }
}
