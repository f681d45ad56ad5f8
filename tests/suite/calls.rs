//! The driver on the embedded cluster, with sockets that write down what they hear and a clock that
//! moves when a test says so.

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
    call::{Call, CallType, Device, Lobby, Refusal, Rules, Signal},
    calls::{
        Calls, Failure, Initiate, MAX_REPLAY_MESSAGES, MAX_WAITING_MESSAGES, Outlet, SWEEP_INTERVAL,
    },
    cluster::{
        Change, Cluster, Committed, Detached, Edge, Hub, Memory, Message, Relay, Unavailable,
    },
    history::{self, Query, Row, Store, StoreError},
    ids::{CallId, NodeId, SocketId, UserId},
    payload::Payload,
    protocol::{CallRef, Presence, ServerEvent},
    time::{Clock, Timestamp},
};

const RULES: Rules = Rules {
    ring_timeout: Duration::from_secs(30),
    reconnect_grace: Duration::from_secs(10),
    max_call_duration: Duration::from_hours(12),
};

/// What sockets heard, on all nodes.
type Heard = Arc<Mutex<Vec<(SocketId, ServerEvent)>>>;

/// The sockets of one node, which write down what they hear.
#[derive(Default)]
struct Ears {
    sockets: Mutex<HashMap<SocketId, UserId>>,
    heard: Heard,
}

impl Outlet for Ears {
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        let sockets = self.sockets.lock().unwrap();
        sockets.iter().filter(|(_, owner)| *owner == user).map(|(socket, _)| *socket).collect()
    }

    fn emit(&self, socket: SocketId, event: &ServerEvent) -> bool {
        let is_connected = self.sockets.lock().unwrap().contains_key(&socket);
        if is_connected {
            self.heard.lock().unwrap().push((socket, event.clone()));
        }
        is_connected
    }
}

/// A cluster in whose every operation somebody else may get ahead, now more, now less.
struct Interleaved {
    cluster: Memory,
    operations: AtomicUsize,
}

impl Interleaved {
    async fn step_back(&self) {
        let turns = self.operations.fetch_add(1, Ordering::Relaxed) * 7 % 11;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }
}

macro_rules! interleaved {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Cluster for Interleaved {
            fn node(&self) -> NodeId {
                self.cluster.node()
            }

            fn send(&self, to: NodeId, message: Message) {
                self.cluster.send(to, message);
            }

            fn recall(&self, from: NodeId, call: CallId) -> Vec<Relay> {
                self.cluster.recall(from, call)
            }

            async fn leave(&self) {
                self.cluster.leave().await;
            }

            $(async fn $name(&self, $($argument: $kind),*) -> Result<$answer, Unavailable> {
                self.step_back().await;
                let answer = self.cluster.$name($($argument),*).await;
                self.step_back().await;
                answer
            })*
        }
    };
}

interleaved! {
    attach(user: &UserId, socket: SocketId) -> Option<Edge>;
    detach(user: &UserId, socket: SocketId) -> Detached;
    watch(users: &[UserId]) -> Vec<Edge>;
    unwatch(users: &[UserId]) -> ();
    lobby(caller: &UserId, callee: &UserId) -> Lobby;
    load(id: CallId) -> Option<Call>;
    latest(user: &UserId) -> Option<Call>;
    commit(change: Change) -> Committed;
    restore(call: &Call) -> ();
    due(now: Timestamp, limit: usize) -> Vec<Call>;
    settle(calls: &[CallId]) -> ();
}

/// A history that only remembers. The real one works on threads of its own, and a paused clock runs
/// ahead of those; it is tested by itself.
#[derive(Default)]
struct Ledger(Mutex<HashMap<CallId, Row>>);

impl Ledger {
    fn get(&self, id: CallId) -> Option<Row> {
        self.0.lock().unwrap().get(&id).cloned()
    }

    fn all(&self) -> Vec<Row> {
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

    async fn open(&self, _: u32) -> Result<Vec<Row>, StoreError> {
        unreachable!("calls write history and do not read it")
    }
}

/// Some nodes of one cluster, their history, and who is connected. `a1` is user `a` on device `a1`;
/// `a1+` is that device on its next socket. Devices are spread over the nodes.
struct World {
    hub: Hub,
    nodes: Vec<Node>,
    heard: Heard,
    ledger: Arc<Ledger>,
}

struct Node {
    id: NodeId,
    calls: Arc<Calls>,
    ears: Arc<Ears>,
}

/// With how many nodes each story is told.
const NODE_COUNTS: [usize; 4] = [1, 2, 3, 8];

fn to(user: &str) -> CallRef {
    CallRef { to: user.parse().unwrap(), call_id: None }
}

fn payload(text: &str) -> Payload {
    Payload::from(&*RawValue::from_string(format!("{text:?}")).unwrap())
}

fn socket(name: &str) -> SocketId {
    format!("{name:_<16}").parse().unwrap()
}

impl World {
    /// `count` nodes, on which these devices are connected.
    async fn with(count: usize, names: &[&str]) -> Self {
        let (hub, clock) = (Hub::default(), Clock::tokio());
        let (heard, ledger) = (Heard::default(), Arc::new(Ledger::default()));
        let nodes = (0..count).map(|_| {
            let id = NodeId::generate(clock.now());
            let (cluster, inbox) = hub.node(id);
            let cluster = Arc::new(Interleaved { cluster, operations: AtomicUsize::default() });
            let (recorder, writer) = history::recorder(ledger.clone(), cluster.clone());
            tokio::spawn(writer.run(std::future::pending()));
            let ears = Arc::new(Ears { heard: heard.clone(), ..Ears::default() });
            let calls = Calls::new(cluster, ears.clone(), recorder, RULES, clock.clone());
            let calls = Arc::new(calls);
            let receiving = calls.clone();
            tokio::spawn(async move { receiving.run_inbox(inbox).await });
            Node { id, calls, ears }
        });
        let nodes = nodes.collect();
        let world = Self { hub, nodes, heard, ledger };
        for name in names {
            world.join(name).await;
        }
        world
    }

    /// The node that a socket is on: each next socket of a device is on the next node.
    fn node_of(&self, name: &str) -> &Node {
        let number: usize = name.bytes().map(usize::from).sum();
        &self.nodes[number % self.nodes.len()]
    }

    fn calls(&self, name: &str) -> &Calls {
        &self.node_of(name).calls
    }

    fn device(&self, name: &str) -> Device {
        Device {
            user: name[..1].parse().unwrap(),
            node: self.node_of(name).id,
            socket: socket(name),
            id: Some(name.trim_end_matches('+').parse().unwrap()),
        }
    }

    /// Lets everything happen that is under way.
    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    async fn join(&self, name: &str) {
        let (node, device) = (self.node_of(name), self.device(name));
        node.ears.sockets.lock().unwrap().insert(device.socket, device.user.clone());
        node.calls.join(&device).await.unwrap();
        node.calls.welcome(&device).await.unwrap();
        self.settle().await;
    }

    async fn leave(&self, name: &str, may_return: bool) {
        let (node, device) = (self.node_of(name), self.device(name));
        node.ears.sockets.lock().unwrap().remove(&device.socket);
        node.calls.leave(&device, may_return).await;
        self.settle().await;
    }

    async fn initiate(&self, from: &str, to: &str) -> Result<CallId, Failure> {
        self.initiate_named(from, to, None).await
    }

    async fn initiate_named(
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

    async fn signal(
        &self,
        from: &str,
        user: &str,
        signal: Signal,
        text: &str,
    ) -> Result<(), Failure> {
        let device = self.device(from);
        let sent = self.calls(from).signal(&device, &to(user), signal, payload(text)).await;
        self.settle().await;
        sent.map(|_| ())
    }

    async fn end(&self, from: &str, user: &str) -> Result<Call, Failure> {
        let ended = self.calls(from).end(&self.device(from), &to(user), None).await;
        self.settle().await;
        ended
    }

    async fn reject(&self, from: &str, user: &str) -> Result<Call, Failure> {
        let ended = self.calls(from).reject(&self.device(from), &to(user), None).await;
        self.settle().await;
        ended
    }

    async fn busy(&self, from: &str, target: &CallRef) -> Result<Call, Failure> {
        let ended = self.calls(from).busy(&self.device(from), target).await;
        self.settle().await;
        ended
    }

    async fn answer(&self, from: &str, user: &str) -> Result<(), Failure> {
        self.signal(from, user, Signal::Answer, "answer").await
    }

    /// A call from `a1` that `b1` answered, of which nobody has anything more to hear.
    async fn in_call(count: usize, names: &[&str]) -> (Self, CallId) {
        let world = Self::with(count, names).await;
        let id = world.initiate("a1", "b").await.unwrap();
        world.answer("b1", "a").await.unwrap();
        for name in names {
            world.heard(name);
        }
        (world, id)
    }

    /// Lets the time pass and the deadlines be looked through.
    async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
        for node in &self.nodes {
            node.calls.sweep().await.unwrap();
        }
        self.settle().await;
    }

    /// What this socket heard since it was last asked: the event's name, and what matters of it.
    fn heard(&self, name: &str) -> Vec<String> {
        let socket = socket(name);
        let mut heard = self.heard.lock().unwrap();
        let (own, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *heard).into_iter().partition(|(to, _)| *to == socket);
        *heard = others;
        own.into_iter().map(|(_, event)| show(&event)).collect()
    }

    /// The history row of a call, when it is written in the state that the test waits for.
    async fn row(&self, id: CallId, is_it: impl Fn(&Row) -> bool) -> Row {
        loop {
            match self.ledger.get(id) {
                Some(row) if is_it(&row) => return row,
                _ => tokio::task::yield_now().await,
            }
        }
    }
}

fn show(event: &ServerEvent) -> String {
    let name = event.name().trim_start_matches("call:");
    let json: Value = serde_json::to_value(event).unwrap();
    let field = ["reason", "offer", "answer", "candidate"];
    let presence = json["status"].as_str().filter(|_| name == "presence:update");
    match field.iter().find_map(|field| json[*field].as_str()).or(presence) {
        Some(text) => format!("{name} {text}"),
        None => name.to_owned(),
    }
}

fn refused(refusal: Refusal) -> Result<(), Failure> {
    Err(Failure::Refused(refusal))
}

#[tokio::test(start_paused = true)]
async fn a_call_from_ring_to_end() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1", "b2"]).await;
        let id = world.initiate("a1", "b").await.unwrap();
        assert_eq!(world.heard("a1"), ["ringing"]);
        world.signal("a1", "b", Signal::Offer, "o").await.unwrap();
        world.signal("a1", "b", Signal::Candidate, "c").await.unwrap();
        for name in ["b1", "b2"] {
            assert_eq!(world.heard(name), ["incoming", "offer o", "ice-candidate c"]);
        }
        world.answer("b1", "a").await.unwrap();
        assert_eq!(world.heard("a1"), ["answer answer"]);
        assert_eq!(world.heard("b2"), ["ended answered_elsewhere"]);
        assert_eq!(world.answer("b2", "a").await, refused(Refusal::AlreadyAnswered(id)));

        world.signal("a1", "b", Signal::Candidate, "only b1").await.unwrap();
        assert_eq!(world.heard("b1"), ["ice-candidate only b1"]);
        assert_eq!(world.heard("b2"), [""; 0]);

        tokio::time::advance(Duration::from_secs(7)).await;
        world.end("a1", "b").await.unwrap();
        assert_eq!(world.heard("b1"), ["ended completed"]);
        let row = world.row(id, |row| row.ended_at.is_some()).await;
        assert_eq!((row.status.as_str(), row.duration_s), ("ended", Some(7)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_of_a_ringing_device_waits_for_its_answer() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1", "b2"]).await;
        world.initiate("a1", "b").await.unwrap();
        world.heard("a1");
        world.signal("b1", "a", Signal::Candidate, "b1 early").await.unwrap();
        world.signal("b2", "a", Signal::Candidate, "b2 early").await.unwrap();
        assert_eq!(world.heard("a1"), [""; 0]);
        world.answer("b2", "a").await.unwrap();
        world.signal("b2", "a", Signal::Candidate, "b2 late").await.unwrap();
        assert_eq!(
            world.heard("a1"),
            ["answer answer", "ice-candidate b2 early", "ice-candidate b2 late"]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_answers_at_once_one_wins() {
    for count in NODE_COUNTS {
        for _ in 0..20 {
            let names = ["b1", "b2", "b3", "b4"];
            let world = World::with(count, &["a1", "b1", "b2", "b3", "b4"]).await;
            world.initiate("a1", "b").await.unwrap();
            world.heard("a1");
            let results =
                futures_util::future::join_all(names.map(|name| world.answer(name, "a"))).await;
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
            assert_eq!(world.heard("a1"), ["answer answer"]);
            let told = names.map(|name| world.heard(name).last().cloned().unwrap());
            assert_eq!(told.iter().filter(|last| *last == "incoming").count(), 1, "{told:?}");
            assert_eq!(told.iter().filter(|last| *last == "ended answered_elsewhere").count(), 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_and_a_cancel_at_the_same_instant_end_once_for_everybody() {
    for count in NODE_COUNTS {
        for head_start in 0..40 {
            let world = World::with(count, &["a1", "b1", "b2"]).await;
            world.initiate("a1", "b").await.unwrap();
            let cancelling = async {
                for _ in 0..head_start {
                    tokio::task::yield_now().await;
                }
                world.end("a1", "b").await
            };
            let (answered, ended) = tokio::join!(world.answer("b1", "a"), cancelling);
            let reason = ended.unwrap().end_reason().unwrap().as_str();
            let (winner, other) = match answered {
                Ok(()) => (format!("ended {reason}"), "ended answered_elsewhere".to_owned()),
                Err(_) => ("ended cancelled".to_owned(), "ended cancelled".to_owned()),
            };
            assert_eq!(world.heard("b1"), ["incoming".to_owned(), winner]);
            assert_eq!(world.heard("b2"), ["incoming".to_owned(), other]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn news_that_come_late_change_nothing() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1", "b2"]).await;
        world.initiate("a1", "b").await.unwrap();
        let (elsewhere, _inbox) = world.hub.node(NodeId::generate(Clock::System.now()));
        let ringing = elsewhere.latest(&"a".parse().unwrap()).await.unwrap().unwrap();
        world.answer("b1", "a").await.unwrap();
        for name in ["a1", "b1", "b2"] {
            world.heard(name);
        }
        for node in &world.nodes {
            elsewhere.send(node.id, Message::Call(Box::new(ringing.clone())));
        }
        world.settle().await;
        world.signal("a1", "b", Signal::Candidate, "for b1").await.unwrap();
        assert_eq!(world.heard("b1"), ["ice-candidate for b1"]);
        assert_eq!(world.heard("b2"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_joins_while_it_rings_gets_the_call_so_far() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1"]).await;
        world.initiate("a1", "b").await.unwrap();
        world.signal("a1", "b", Signal::Offer, "o").await.unwrap();
        world.signal("a1", "b", Signal::Candidate, "1").await.unwrap();
        world.join("b2").await;
        world.signal("a1", "b", Signal::Candidate, "2").await.unwrap();
        let expected = ["incoming", "offer o", "ice-candidate 1", "ice-candidate 2"];
        assert_eq!(world.heard("b2"), expected);
        world.answer("b2", "a").await.unwrap();
        assert_eq!(world.heard("b1").last().unwrap(), "ended answered_elsewhere");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_device_of_the_callee_may_go_and_come_back_while_it_rings() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1"]).await;
        world.initiate("a1", "b").await.unwrap();
        world.leave("b1", true).await;
        world.pass(Duration::from_secs(20)).await;
        world.join("b1+").await;
        assert_eq!(world.heard("b1+"), ["incoming"]);
        world.answer("b1+", "a").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_answers() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1"]).await;
        let id = world.initiate("a1", "b").await.unwrap();
        world.pass(Duration::from_millis(29_999)).await;
        assert_eq!(world.heard("b1"), ["incoming"]);
        world.pass(Duration::from_millis(1)).await;
        assert_eq!(world.heard("a1"), ["ringing", "ended no_answer"]);
        assert_eq!(world.heard("b1"), ["ended no_answer"]);
        let row = world.row(id, |row| row.ended_at.is_some()).await;
        assert_eq!((row.status.as_str(), row.duration_s), ("missed", None));
    }
}

#[tokio::test(start_paused = true)]
async fn the_sweeper_attends_by_itself() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1"]).await;
        world.initiate("a1", "b").await.unwrap();
        let two_sweeps = RULES.ring_timeout + 2 * SWEEP_INTERVAL;
        world.calls("b1").run_sweeper(tokio::time::sleep(two_sweeps)).await;
        assert_eq!(world.heard("a1"), ["ringing", "ended no_answer"]);
    }
}

#[tokio::test(start_paused = true)]
async fn busy_offline_and_glare() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1", "c1"]).await;
        let first = world.initiate("a1", "b").await.unwrap();
        let busy = world.initiate("c1", "b").await.unwrap();
        assert_eq!(world.heard("c1"), ["busy"]);
        let row = world.row(busy, |_| true).await;
        assert_eq!((row.status.as_str(), row.end_reason.unwrap().as_str()), ("missed", "busy"));

        let glare = world.initiate("b1", "a").await;
        assert_eq!(glare, Err(Failure::Refused(Refusal::Glare(first))));
        let second = world.initiate("b1", "c").await;
        assert_eq!(second, Err(Failure::Refused(Refusal::CallInProgress(first))));

        let Err(Failure::Offline(offline)) = world.initiate("c1", "d").await else { panic!() };
        let row = world.row(offline, |_| true).await;
        assert_eq!((row.status.as_str(), row.end_reason.unwrap().as_str()), ("missed", "offline"));
    }
}

#[tokio::test(start_paused = true)]
async fn both_dial_each_other_at_the_same_instant() {
    for count in NODE_COUNTS {
        for _ in 0..20 {
            let world = World::with(count, &["a1", "b1"]).await;
            let (one, other) = tokio::join!(world.initiate("a1", "b"), world.initiate("b1", "a"));
            let (survivor, glare) = match (one, other) {
                (Ok(id), Err(error)) | (Err(error), Ok(id)) => (id, error),
                both => panic!("{both:?}"),
            };
            assert_eq!(glare, Failure::Refused(Refusal::Glare(survivor)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_attempt_is_the_same_call() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1"]).await;
        let first = world.initiate_named("a1", "b", Some("try 1")).await.unwrap();
        assert_eq!(world.initiate_named("a1", "b", Some("try 1")).await, Ok(first));
        assert_eq!(world.heard("b1"), ["incoming"]);
        world.reject("b1", "a").await.unwrap();
        assert_eq!(
            world.initiate_named("a1", "b", Some("try 1")).await,
            Ok(first),
            "also once it ended"
        );
        assert_ne!(world.initiate_named("a1", "b", Some("try 2")).await, Ok(first));
    }
}

#[tokio::test(start_paused = true)]
async fn ending_twice_changes_nothing() {
    for count in NODE_COUNTS {
        let (world, id) = World::in_call(count, &["a1", "b1"]).await;
        let first = world.end("a1", "b").await.unwrap();
        let again = world.calls("a1").end(&world.device("a1"), &to("b"), Some(99.0)).await.unwrap();
        assert_eq!(first, again);
        let by_peer = CallRef { call_id: Some(id), ..to("a") };
        assert_eq!(world.busy("b1", &by_peer).await.unwrap(), first);
        assert_eq!(world.heard("b1"), ["ended completed"]);
        assert_eq!(world.heard("a1"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_device_comes_back_and_gets_what_it_missed_in_order() {
    for count in NODE_COUNTS {
        let (world, _) = World::in_call(count, &["a1", "b1"]).await;
        world.leave("a1", true).await;
        assert_eq!(world.heard("b1"), ["peer-reconnecting"]);
        for text in ["1", "2", "3"] {
            world.signal("b1", "a", Signal::Candidate, text).await.unwrap();
        }
        world.pass(Duration::from_millis(9_999)).await;
        world.join("a1+").await;
        let missed = ["ice-candidate 1", "ice-candidate 2", "ice-candidate 3"];
        let heard = world.heard("a1+");
        assert_eq!((&*heard[0], &heard[1..]), ("resumed", &missed.map(str::to_owned)[..]));
        assert_eq!(world.heard("b1"), ["peer-reconnected"]);
        world.signal("a1+", "b", Signal::Offer, "restart").await.unwrap();
        assert_eq!(world.heard("b1"), ["offer restart"]);
        world.pass(Duration::from_mins(1)).await;
        assert_eq!(world.heard("b1"), [""; 0], "the grace is over and the call is not");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_socket_of_a_device_takes_over_from_one_that_is_not_known_to_be_dead() {
    for count in NODE_COUNTS {
        let (world, _) = World::in_call(count, &["a1", "b1"]).await;
        world.join("a1+").await;
        assert_eq!(world.heard("a1+"), ["resumed"]);
        assert_eq!(world.heard("a1"), ["ended resumed_elsewhere"]);
        world.leave("a1", true).await;
        assert_eq!(world.heard("b1"), [""; 0], "the peer notices nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_lost_device_is_bounded_and_says_so() {
    for count in NODE_COUNTS {
        let (world, _) = World::in_call(count, &["a1", "b1"]).await;
        world.leave("a1", true).await;
        for _ in 0..MAX_WAITING_MESSAGES {
            world.signal("b1", "a", Signal::Candidate, "x").await.unwrap();
        }
        let full = world.signal("b1", "a", Signal::Candidate, "x").await;
        assert_eq!(full, Err(Failure::Full { retry_after: RULES.reconnect_grace }));
        world.join("a1+").await;
        assert_eq!(world.heard("a1+").len(), 1 + MAX_WAITING_MESSAGES);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_socket_that_is_just_being_lost_waits_too() {
    for count in NODE_COUNTS {
        let (world, _) = World::in_call(count, &["a1", "b1"]).await;
        // The socket is closed, and the driver has not been told yet.
        world.node_of("a1").ears.sockets.lock().unwrap().clear();
        world.signal("b1", "a", Signal::Candidate, "between").await.unwrap();
        world.leave("a1", true).await;
        world.join("a1+").await;
        assert_eq!(world.heard("a1+"), ["resumed", "ice-candidate between"]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_candidates_of_all_ringing_devices_share_their_room() {
    for count in NODE_COUNTS {
        let names: Vec<_> = (1..=count + 1).map(|number| format!("b{number}")).collect();
        let mut all = vec!["a1"];
        all.extend(names.iter().map(String::as_str));
        let world = World::with(count, &all).await;
        world.initiate("a1", "b").await.unwrap();
        let sent = MAX_REPLAY_MESSAGES / 2;
        for _ in 0..sent {
            world.signal("b1", "a", Signal::Candidate, "x").await.unwrap();
        }
        // The device whose number is one more than that of the nodes is on the same node.
        let other = format!("b{}", count + 1);
        for _ in sent..MAX_REPLAY_MESSAGES {
            world.signal(&other, "a", Signal::Candidate, "x").await.unwrap();
        }
        let full = world.signal(&other, "a", Signal::Candidate, "x").await;
        assert_eq!(full, Err(Failure::Full { retry_after: RULES.ring_timeout }));
        world.leave(&other, true).await;
        world.signal("b1", "a", Signal::Candidate, "x").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_ringing_call_is_bounded_and_says_so() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1"]).await;
        world.initiate("a1", "b").await.unwrap();
        for _ in 0..MAX_REPLAY_MESSAGES {
            world.signal("a1", "b", Signal::Candidate, "x").await.unwrap();
        }
        let full = world.signal("a1", "b", Signal::Candidate, "x").await;
        assert_eq!(full, Err(Failure::Full { retry_after: RULES.ring_timeout }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_stays_away_loses_its_call() {
    for count in NODE_COUNTS {
        let (world, id) = World::in_call(count, &["a1", "b1"]).await;
        world.leave("a1", true).await;
        world.pass(RULES.reconnect_grace).await;
        assert_eq!(world.heard("b1"), ["peer-reconnecting", "ended connection_lost"]);
        world.row(id, |row| row.ended_at.is_some()).await;
        world.join("a1+").await;
        assert_eq!(world.heard("a1+"), ["ended connection_lost"], "it hears of it when it is back");
        world.leave("a1+", true).await;
        world.join("a1++").await;
        assert_eq!(world.heard("a1++"), [""; 0], "once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_on_purpose_ends_its_call_at_once() {
    for count in NODE_COUNTS {
        let (world, _) = World::in_call(count, &["a1", "b1"]).await;
        world.leave("a1", false).await;
        assert_eq!(world.heard("b1"), ["ended connection_lost"]);
        world.join("a1+").await;
        assert_eq!(world.heard("a1+"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_reaches_a_caller_who_was_away_when_it_came() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1"]).await;
        world.initiate("a1", "b").await.unwrap();
        world.leave("a1", true).await;
        world.signal("b1", "a", Signal::Candidate, "early").await.unwrap();
        world.answer("b1", "a").await.unwrap();
        world.join("a1+").await;
        assert_eq!(world.heard("a1+"), ["resumed", "answer answer", "ice-candidate early"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_came_back_and_does_not_know_its_call_may_begin_another() {
    for count in NODE_COUNTS {
        let (world, first) = World::in_call(count, &["a1", "b1", "c1"]).await;
        world.leave("a1", true).await;
        world.join("a1+").await;
        let second = world.initiate("a1+", "c").await.unwrap();
        assert_ne!(first, second);
        assert_eq!(world.heard("b1").last().unwrap(), "ended superseded");
        assert_eq!(world.heard("a1+"), ["resumed", "ringing"]);

        let (world, first) = World::in_call(count, &["a1", "b1", "c1"]).await;
        world.leave("a1", true).await;
        world.join("a1+").await;
        world.signal("a1+", "b", Signal::Candidate, "it knows").await.unwrap();
        let refused = world.initiate("a1+", "c").await;
        assert_eq!(refused, Err(Failure::Refused(Refusal::CallInProgress(first))));
    }
}

#[tokio::test(start_paused = true)]
async fn redialling_the_same_peer_after_a_reload_rings_them_again() {
    for count in NODE_COUNTS {
        let (world, _) = World::in_call(count, &["a1", "b1"]).await;
        world.leave("a1", true).await;
        world.join("a2").await;
        world.initiate("a2", "b").await.unwrap();
        assert_eq!(world.heard("b1"), ["peer-reconnecting", "ended superseded", "incoming"]);
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_cannot_reach_a_call() {
    for count in NODE_COUNTS {
        let (world, id) = World::in_call(count, &["a1", "b1", "c1"]).await;
        let aimed = CallRef { to: "b".parse().unwrap(), call_id: Some(id) };
        let stranger = world.device("c1");
        let ended = world.calls("c1").end(&stranger, &aimed, None).await;
        assert_eq!(ended, Err(Failure::Refused(Refusal::NotInCall)));
        let offered =
            world.calls("c1").signal(&stranger, &aimed, Signal::Offer, payload("x")).await;
        assert_eq!(offered, Err(Failure::Refused(Refusal::NotInCall)));
        assert_eq!(world.calls("c1").sync(&stranger, Some(id)).await, Ok(None));
        assert_eq!(world.calls("c1").report(&stranger, id).await, refused(Refusal::NotInCall));
        assert_eq!(world.heard("b1"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn sync_shows_the_live_call_and_an_ended_one_for_a_minute() {
    for count in NODE_COUNTS {
        let (world, id) = World::in_call(count, &["a1", "b1"]).await;
        let device = world.device("a1");
        let view = async |id| {
            let view = world.calls("a1").sync(&device, id).await.unwrap();
            serde_json::to_value(view).unwrap()["status"].clone()
        };
        assert_eq!(view(None).await, "answered");
        world.calls("a1").end(&device, &to("b"), None).await.unwrap();
        world.row(id, |row| row.ended_at.is_some()).await;
        assert_eq!(view(None).await, Value::Null);
        assert_eq!(view(Some(id)).await, "ended");
        world.pass(Duration::from_secs(59)).await;
        assert_eq!(view(Some(id)).await, "ended");
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(view(Some(id)).await, Value::Null);
    }
}

#[tokio::test(start_paused = true)]
async fn presence_is_told_on_every_edge_to_those_who_watch() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "c1"]).await;
        let watched = ["a".parse().unwrap(), "b".parse().unwrap()];
        let watcher = socket("c1");
        let now = world.calls("c1").subscribe(watcher, &watched).await.unwrap();
        assert_eq!(
            now.into_iter().map(|(_, presence)| presence).collect::<Vec<_>>(),
            [Presence::Online, Presence::Offline]
        );
        world.join("b1").await;
        world.join("b2").await;
        world.leave("b2", true).await;
        assert_eq!(world.heard("c1"), ["presence:update online"]);
        world.initiate("a1", "b").await.unwrap();
        assert_eq!(world.heard("c1"), ["presence:update busy", "presence:update busy"]);
        world.end("a1", "b").await.unwrap();
        assert_eq!(world.heard("c1"), ["presence:update online", "presence:update online"]);
        world.calls("c1").unsubscribe(watcher, &watched[..1]).await;
        world.leave("a1", true).await;
        world.leave("b1", true).await;
        assert_eq!(world.heard("c1"), ["presence:update offline"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_watcher_does_not_take_the_news_from_the_first() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "c1", "c2"]).await;
        let watched = ["a".parse().unwrap()];
        for watcher in ["c1", "c2"] {
            let leaving = async {
                if watcher == "c2" {
                    world.leave("a1", true).await;
                }
            };
            let subscribing = world.calls(watcher).subscribe(socket(watcher), &watched);
            let (answer, ()) = tokio::join!(subscribing, leaving);
            answer.unwrap();
        }
        world.settle().await;
        assert_eq!(world.heard("c1"), ["presence:update offline"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_watches_no_more_users_than_it_may() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["c1"]).await;
        let watcher = socket("c1");
        let users = |from: u32, to: u32| {
            (from..to).map(|n| format!("u{n}").parse().unwrap()).collect::<Vec<UserId>>()
        };
        world.calls("c1").subscribe(watcher, &users(0, 500)).await.unwrap();
        world.calls("c1").subscribe(watcher, &users(0, 500)).await.unwrap();
        let more = world.calls("c1").subscribe(watcher, &users(500, 501)).await;
        assert_eq!(more, Err(Failure::TooManyWatched));
        world.calls("c1").unsubscribe(watcher, &users(0, 1)).await;
        world.calls("c1").subscribe(watcher, &users(500, 501)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_has_one_row_with_its_end() {
    for count in NODE_COUNTS {
        let world = World::with(count, &["a1", "b1"]).await;
        let mut expected = Vec::new();
        for round in 0..30 {
            let id = world.initiate("a1", "b").await.unwrap();
            match round % 3 {
                0 => drop(world.reject("b1", "a").await.unwrap()),
                1 => drop(world.busy("b1", &to("a")).await.unwrap()),
                _ => {
                    world.answer("b1", "a").await.unwrap();
                    drop(world.end("b1", "a").await.unwrap());
                }
            }
            expected.push((id, ["declined", "busy", "completed"][round % 3]));
            world.pass(Duration::from_millis(5)).await;
        }
        let (last, _) = expected[29];
        world.row(last, |row| row.ended_at.is_some()).await;
        let rows = world.ledger.all();
        let found: Vec<_> =
            rows.iter().map(|row| (row.id, row.end_reason.unwrap().as_str())).collect();
        assert_eq!(found, expected);
    }
}
