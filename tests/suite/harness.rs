//! The harness of the driver's tests: several nodes on one embedded cluster, with sockets that
//! record their events, on a manual clock. It does not cover Redis (`cluster.rs`) or the gateway.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, value::RawValue};
use switchboard::{
    call::{Call, CallType, Device, Lobby, Refusal, Role, Rules, Signal},
    calls::{Calls, ClientSink, Failure, Initiate},
    cluster::{
        CallRecords, Change, Committed, Detached, Due, Edge, Embedded, Hub, Message, Peers, Relay,
        Stored, Unavailable, Unstored, UserPresence,
    },
    health::Health,
    history::{self, Period, Query, Row, Stats, Store, StoreError},
    ids::{CallId, NodeId, SocketId, UserId},
    payload::Payload,
    protocol::{CallRef, ServerEvent},
    time::{Clock, Timestamp},
};

pub const RULES: Rules = Rules {
    ring_timeout: Duration::from_secs(30),
    reconnect_grace: Duration::from_secs(10),
    max_call_duration: Duration::from_hours(12),
};

/// The events that sockets received, on all nodes, in order.
pub type Heard = Arc<Mutex<Vec<(SocketId, ServerEvent)>>>;

/// A client sink that records all events of one node's sockets.
#[derive(Default)]
pub struct RecordingSink {
    pub sockets: Mutex<HashMap<SocketId, UserId>>,
    pub heard: Heard,
}

impl ClientSink for RecordingSink {
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        let sockets = self.sockets.lock().unwrap();
        sockets.iter().filter(|(_, owner)| *owner == user).map(|(socket, _)| *socket).collect()
    }

    fn emit(&self, socket: SocketId, event: &ServerEvent, for_user: Option<&UserId>) -> bool {
        let owner = self.sockets.lock().unwrap().get(&socket).cloned();
        if let (Some(owner), Some(user)) = (&owner, for_user) {
            assert_eq!(owner, user, "{event:?} is not for {socket}");
        }
        let is_connected = owner.is_some();
        if is_connected {
            self.heard.lock().unwrap().push((socket, event.clone()));
        }
        is_connected
    }

    fn close(&self, socket: SocketId) {
        self.sockets.lock().unwrap().remove(&socket);
    }

    fn disconnect(&self, user: &UserId) {
        self.sockets.lock().unwrap().retain(|_, owner| owner != user);
    }
}

/// A cluster backend that yields a varying number of times around each operation, so that
/// concurrent operations interleave, and that can fail on demand.
pub struct Interleaved {
    cluster: Arc<Embedded>,
    operations: AtomicUsize,
    /// The number of coming operations that fail.
    failing: AtomicUsize,
    /// The next operation of this name is executed, and its reply is lost.
    losing: Mutex<Option<&'static str>>,
    /// Operations of this name fail, after so many that succeed.
    stuck: Mutex<Option<(&'static str, usize)>>,
    /// Operations of this name never return.
    hanging: Mutex<Option<&'static str>>,
    /// The names of all operations, in order.
    asked: Mutex<Vec<&'static str>>,
    /// Messages that have not left this node yet: `recall` returns them.
    unheard: Mutex<Vec<Relay>>,
}

impl Interleaved {
    fn is_stuck(&self, operation: &'static str) -> bool {
        self.asked.lock().unwrap().push(operation);
        match &mut *self.stuck.lock().unwrap() {
            Some((name, left)) if *name == operation => {
                left.checked_sub(1).map(|less| *left = less)
            }
            _ => Some(()),
        }
        .is_none()
    }

    async fn step_back(&self) {
        let turns = self.operations.fetch_add(1, Ordering::Relaxed) * 7 % 11;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }
}

macro_rules! interleaved {
    ($port:ident $($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl $port for Interleaved {
            $(async fn $name(&self, $($argument: $kind),*) -> Result<$answer, Unavailable> {
                self.step_back().await;
                if *self.hanging.lock().unwrap() == Some(stringify!($name)) {
                    std::future::pending::<()>().await;
                }
                if self.is_stuck(stringify!($name)) {
                    return Err(Unavailable);
                }
                let fail = |left: usize| left.checked_sub(1);
                if self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fail).is_ok() {
                    return Err(Unavailable);
                }
                let answer = self.cluster.$name($($argument),*).await;
                self.step_back().await;
                if self.losing.lock().unwrap().take_if(|name| *name == stringify!($name)).is_some() {
                    return Err(Unavailable);
                }
                answer
            })*
        }
    };
}

interleaved! {
    UserPresence
    attach(user: &UserId, socket: SocketId) -> Option<Edge>;
    detach(user: &UserId, socket: SocketId) -> Detached;
    attach_again(sockets: &[(UserId, SocketId)]) -> Vec<Edge>;
    detach_all(sockets: &[(UserId, SocketId)]) -> Vec<Detached>;
    tidy(from: Option<&str>) -> (Vec<(UserId, Detached)>, Option<String>);
    watch(users: &[UserId], after: u64) -> Vec<Edge>;
    unwatch(users: &[UserId]) -> ();
    presence(users: &[UserId]) -> Vec<Edge>;
    lobby(caller: &UserId, callee: &UserId) -> Lobby;
    nodes_of(user: &UserId) -> Vec<NodeId>;
    sockets_of(user: &UserId) -> Vec<(NodeId, usize)>;
    acknowledge_eviction(node: NodeId, users: &[UserId]) -> ();
}

interleaved! {
    CallRecords
    load(id: CallId) -> Option<Call>;
    live(from: Option<&str>, limit: usize) -> (Vec<Call>, Option<String>);
    latest(user: &UserId) -> Option<Call>;
    latest_of(users: &[UserId]) -> Vec<Option<Call>>;
    commit(change: Change) -> Committed;
    restore(change: Change, over: Option<u64>) -> Option<Stored>;
    due(now: Timestamp, limit: usize) -> Due;
    unstored(now: Timestamp, limit: usize) -> Unstored;
    mark_persisted(stored: &[(CallId, u64)]) -> ();
}

#[async_trait]
impl Peers for Interleaved {
    fn node(&self) -> NodeId {
        self.cluster.node()
    }

    fn send(&self, to: NodeId, message: Message) {
        self.cluster.send(to, message);
    }

    fn recall(&self, from: NodeId, call: CallId, to: Role) -> Vec<Relay> {
        let mut unheard = self.unheard.lock().unwrap();
        assert!(unheard.iter().all(|relay| relay.call == call && relay.from.other() == to));
        let recalled = std::mem::take(&mut *unheard);
        [recalled, self.cluster.recall(from, call, to)].concat()
    }

    async fn leave(&self) {
        self.cluster.leave().await;
    }
}

/// A history that keeps rows in memory. The real store works in threads of its own, and a paused
/// clock would run ahead of them; it has its own tests.
#[derive(Default)]
pub struct Ledger(Mutex<HashMap<CallId, Row>>);

impl Ledger {
    pub fn get(&self, id: CallId) -> Option<Row> {
        self.0.lock().unwrap().get(&id).cloned()
    }

    pub fn all(&self) -> Vec<Row> {
        let mut rows: Vec<_> = self.0.lock().unwrap().values().cloned().collect();
        rows.sort_by_key(|row| row.created_at);
        rows
    }
}

#[async_trait]
impl Store for Ledger {
    async fn save(&self, rows: &[Row]) -> Result<(), StoreError> {
        let mut ledger = self.0.lock().unwrap();
        for row in rows {
            let newest = ledger.entry(row.id).or_insert_with(|| row.clone());
            if row.version > newest.version {
                *newest = row.clone();
            }
        }
        Ok(())
    }

    async fn list(&self, _: &Query) -> Result<Vec<Row>, StoreError> {
        unreachable!("calls write history and do not read it")
    }

    async fn get(&self, _: CallId, _: &UserId) -> Result<Option<Row>, StoreError> {
        unreachable!("calls write history and do not read it")
    }

    async fn open(&self, _: Timestamp, _: u32) -> Result<Vec<Row>, StoreError> {
        unreachable!("calls write history and do not read it")
    }

    async fn stats(&self, _: &Period) -> Result<Stats, StoreError> {
        unreachable!("calls write history and do not read it")
    }

    async fn beat(&self, _: NodeId, _: Timestamp) -> Result<(), StoreError> {
        unreachable!("no node says here that it lives")
    }

    async fn beats(&self) -> Result<HashMap<NodeId, Timestamp>, StoreError> {
        unreachable!("no node says here that it lives")
    }

    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        unreachable!("nobody keeps this history in order")
    }

    async fn tidy(&self, _: Timestamp, _: Option<Timestamp>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {}
}

/// Several nodes of one cluster, their history and their connected devices. `a1` is user `a` on
/// device `a1`; `a1+` is the next socket of that device. Devices are spread over the nodes.
pub struct TestCluster {
    pub hub: Hub,
    pub nodes: Vec<Node>,
    pub heard: Heard,
    pub ledger: Arc<Ledger>,
}

pub struct Node {
    pub id: NodeId,
    pub calls: Arc<Calls>,
    pub sink: Arc<RecordingSink>,
    cluster: Arc<Interleaved>,
}

impl Node {
    /// Makes the next `operations` on the shared state fail.
    pub fn fail_next(&self, operations: usize) {
        self.cluster.failing.store(operations, Ordering::Relaxed);
    }

    /// Makes operations of this name fail after so many more, until called with `None`.
    pub fn fail_after(&self, failing: Option<(&'static str, usize)>) {
        *self.cluster.stuck.lock().unwrap() = failing;
    }

    /// Makes operations of this name never return.
    pub fn never_answer(&self, operation: &'static str) {
        *self.cluster.hanging.lock().unwrap() = Some(operation);
    }

    /// The names of the operations on the shared state since the last call of this method.
    pub fn operations(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.cluster.asked.lock().unwrap())
    }

    /// Marks a message to another node as not yet sent, so that it can be recalled.
    pub fn has_not_sent(&self, relay: Relay) {
        self.cluster.unheard.lock().unwrap().push(relay);
    }

    /// Executes the next operation of this name and loses its reply.
    pub fn lose_answer_of(&self, operation: &'static str) {
        *self.cluster.losing.lock().unwrap() = Some(operation);
    }
}

/// The numbers of nodes with which each test is repeated.
pub const NODE_COUNTS: [usize; 4] = [1, 2, 3, 8];

pub fn to(user: &str) -> CallRef {
    CallRef { to: Some(user.parse().unwrap()), call_id: None }
}

pub fn payload(text: &str) -> Payload {
    Payload::checked(&RawValue::from_string(format!("{text:?}")).unwrap()).unwrap()
}

pub fn socket(name: &str) -> SocketId {
    format!("{name:_<16}").parse().unwrap()
}

impl TestCluster {
    /// Starts `count` nodes and connects these devices.
    pub async fn with(count: usize, names: &[&str]) -> Self {
        let clock = Clock::tokio();
        let hub = Hub::new(clock.clone());
        let (heard, ledger) = (Heard::default(), Arc::new(Ledger::default()));
        let nodes = (0..count).map(|_| {
            let id = NodeId::generate(clock.now());
            let (cluster, inbox) = hub.node(id);
            let (operations, failing) = (AtomicUsize::default(), AtomicUsize::default());
            let cluster = Arc::new(Interleaved {
                cluster,
                operations,
                failing,
                losing: Mutex::default(),
                stuck: Mutex::default(),
                hanging: Mutex::default(),
                asked: Mutex::default(),
                unheard: Mutex::default(),
            });
            let (recorder, writer) =
                history::recorder(ledger.clone(), cluster.clone(), Health::default());
            tokio::spawn(writer.run(std::future::pending()));
            let sink = Arc::new(RecordingSink { heard: heard.clone(), ..RecordingSink::default() });
            let calls = Calls::new(cluster.clone(), sink.clone(), recorder, RULES, clock.clone());
            let calls = Arc::new(calls);
            let receiving = calls.clone();
            tokio::spawn(async move { receiving.run_inbox(inbox).await });
            Node { id, calls, sink, cluster }
        });
        let nodes = nodes.collect();
        let cluster = Self { hub, nodes, heard, ledger };
        for name in names {
            cluster.join(name).await;
        }
        cluster
    }

    /// The node of a socket: each further socket of a device is on the next node.
    pub fn node_of(&self, name: &str) -> &Node {
        let number: usize = name.bytes().map(usize::from).sum();
        &self.nodes[number % self.nodes.len()]
    }

    pub fn calls(&self, name: &str) -> &Calls {
        &self.node_of(name).calls
    }

    pub fn device(&self, name: &str) -> Device {
        Device {
            user: name[..1].parse().unwrap(),
            node: self.node_of(name).id,
            socket: socket(name),
            id: Some(name.trim_end_matches('+').parse().unwrap()),
            connected_at: Timestamp::from_millis(
                1_800_000_000_000 + name.matches('+').count() as u64,
            ),
        }
    }

    /// Lets all tasks run until they wait.
    pub async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    pub async fn join(&self, name: &str) {
        let (node, device) = (self.node_of(name), self.device(name));
        node.sink.sockets.lock().unwrap().insert(device.socket, device.user.clone());
        node.calls.join(&device).await.unwrap();
        node.calls.welcome(&device).await.unwrap();
        self.settle().await;
    }

    pub async fn leave(&self, name: &str, may_return: bool) {
        let (node, device) = (self.node_of(name), self.device(name));
        node.sink.sockets.lock().unwrap().remove(&device.socket);
        node.calls.leave(&device, may_return).await;
        self.settle().await;
    }

    pub async fn initiate(&self, from: &str, to: &str) -> Result<CallId, Failure> {
        self.initiate_named(from, to, None).await
    }

    pub async fn initiate_named(
        &self,
        from: &str,
        to: &str,
        name: Option<&str>,
    ) -> Result<CallId, Failure> {
        let initiate = Initiate {
            to: to.parse().unwrap(),
            call_type: CallType::Audio,
            caller_info: None,
            client_call_id: name.map(Into::into),
        };
        let placed = self.calls(from).initiate(&self.device(from), initiate).await;
        self.settle().await;
        placed.map(|call| call.id)
    }

    pub async fn signal(
        &self,
        from: &str,
        user: &str,
        signal: Signal,
        text: &str,
    ) -> Result<(), Failure> {
        let device = self.device(from);
        let calls = self.calls(from);
        let sent = calls.signal(&device, &to(user), signal, payload(text), calls.now_us()).await;
        self.settle().await;
        sent.map(|_| ())
    }

    pub async fn end(&self, from: &str, user: &str) -> Result<Call, Failure> {
        let ended = self.calls(from).end(&self.device(from), &to(user), None).await;
        self.settle().await;
        ended
    }

    pub async fn reject(&self, from: &str, user: &str) -> Result<Call, Failure> {
        let ended = self.calls(from).reject(&self.device(from), &to(user), None).await;
        self.settle().await;
        ended
    }

    pub async fn busy(&self, from: &str, target: &CallRef) -> Result<Call, Failure> {
        let ended = self.calls(from).busy(&self.device(from), target).await;
        self.settle().await;
        ended
    }

    pub async fn answer(&self, from: &str, user: &str) -> Result<(), Failure> {
        self.signal(from, user, Signal::Answer, "answer").await
    }

    /// A call from `a1` that `b1` has answered. All events so far are discarded.
    pub async fn in_call(count: usize, names: &[&str]) -> (Self, CallId) {
        let cluster = Self::with(count, names).await;
        let id = cluster.initiate("a1", "b").await.unwrap();
        cluster.answer("b1", "a").await.unwrap();
        for name in names {
            cluster.heard(name);
        }
        (cluster, id)
    }

    /// Advances the clock and runs a sweep on each node.
    pub async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
        for node in &self.nodes {
            node.calls.sweep().await.unwrap();
            node.calls.tell_presence().await;
        }
        self.settle().await;
    }

    /// The events that this socket received since the last call of this method, each as its name
    /// and its decisive field.
    pub fn heard(&self, name: &str) -> Vec<String> {
        let socket = socket(name);
        let mut heard = self.heard.lock().unwrap();
        let (own, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *heard).into_iter().partition(|(to, _)| *to == socket);
        *heard = others;
        own.into_iter().map(|(_, event)| show(&event)).collect()
    }

    /// Waits for the history row of a call in the expected state.
    pub async fn row(&self, id: CallId, is_it: impl Fn(&Row) -> bool) -> Row {
        loop {
            match self.ledger.get(id) {
                Some(row) if is_it(&row) => return row,
                // The writer gathers rows for a while before it stores them.
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

pub fn show(event: &ServerEvent) -> String {
    let name = event.name().trim_start_matches("call:");
    let json: Value = serde_json::to_value(event).unwrap();
    let field = ["reason", "offer", "answer", "candidate"];
    let presence = json["status"].as_str().filter(|_| name == "presence:update");
    match field.iter().find_map(|field| json[*field].as_str()).or(presence) {
        Some(text) => format!("{name} {text}"),
        None => name.to_owned(),
    }
}

pub fn refused(refusal: Refusal) -> Result<(), Failure> {
    Err(Failure::Refused(refusal))
}
