//! One simulated node: the production driver, sweeper and history writer on the faulty backend.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use switchboard::{
    call::Rules,
    calls::{Calls, ClientSink},
    cluster::{Peers, membership::Membership, memory::StateStore, node::Node as ClusterNode},
    health::Health,
    history,
    ids::{NodeId, SocketId, UserId},
    limits::buffers::Buffers,
    protocol::ServerEvent,
    time::{Clock, SharedClock},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    channel::SimulatedChannel, history::Database, simulation::Simulation, store::SimulatedAccess,
};

pub const RULES: Rules = Rules {
    ring_timeout: Duration::from_secs(12),
    reconnect_grace: Duration::from_secs(10),
    max_call_duration: Duration::from_mins(1),
};

/// A stopping node relays the messages of other nodes for this long.
const LAST_NEWS: Duration = Duration::from_secs(2);

/// A process that has failed is started again after this time.
const RESTART: Duration = Duration::from_millis(500);

/// Receives each event that is sent to a socket.
pub type Hear = Arc<dyn Fn(SocketId, &ServerEvent) + Send + Sync>;

pub struct Node {
    pub id: NodeId,
    pub calls: Arc<Calls>,
    pub sink: Arc<SimulatedSink>,
    cluster: Arc<ClusterNode<StateStore<SimulatedAccess>, SimulatedChannel>>,
    sim: Arc<Simulation>,
    tasks: Mutex<JoinSet<()>>,
    inbox_ended: CancellationToken,
    stop_calls: CancellationToken,
    stop_writer: CancellationToken,
    /// Whether it has taken the cluster's time: it takes no clients before.
    has_time: Arc<AtomicBool>,
    is_leaving: AtomicBool,
}

/// The sockets of a node, as its client sink.
pub struct SimulatedSink {
    sockets: Mutex<BTreeMap<SocketId, UserId>>,
    is_relay_paused: AtomicBool,
    hear: Hear,
}

impl SimulatedSink {
    pub fn open(&self, socket: SocketId, user: &UserId) {
        self.sockets.lock().unwrap().insert(socket, user.clone());
    }

    pub fn close(&self, socket: SocketId) {
        self.sockets.lock().unwrap().remove(&socket);
    }
}

impl ClientSink for SimulatedSink {
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        let sockets = self.sockets.lock().unwrap();
        sockets.iter().filter(|(_, owner)| *owner == user).map(|(socket, _)| *socket).collect()
    }

    fn emit(&self, socket: SocketId, event: &ServerEvent, for_user: Option<&UserId>) -> bool {
        let owner = self.sockets.lock().unwrap().get(&socket).cloned();
        let Some(owner) = owner else { return false };
        if event.is_relayed() && self.is_relay_paused.load(Ordering::Relaxed) {
            return false;
        }
        assert!(for_user.is_none_or(|user| *user == owner), "{event:?} is not for {socket}");
        (self.hear)(socket, event);
        true
    }

    fn close(&self, socket: SocketId) {
        SimulatedSink::close(self, socket);
    }

    fn disconnect(&self, _: &UserId) {
        unreachable!("no operator looks on")
    }
}

impl Node {
    pub fn start(sim: &Arc<Simulation>, hear: Hear) -> Arc<Self> {
        let id: NodeId = sim.name_call(sim.now()).to_string().parse().expect("an id");
        let clock = SharedClock::starting_at(sim.now());
        sim.start(id);
        let (channel, subscription, reconnected) = SimulatedChannel::open(id, sim);
        let access = SimulatedAccess { node: id, sim: sim.clone(), reconnected };
        let store = StateStore { node: id, access };
        let shared_clock = Clock::Shared(clock.clone());
        let (cluster, inbox, sender) = ClusterNode::open(
            id,
            store,
            channel,
            subscription,
            shared_clock.clone(),
            Health::default(),
            Buffers::default(),
        );
        let mut membership = Membership::new(cluster.clone(), clock, Health::default(), sender);
        let store = Arc::new(Database { sim: sim.clone() });
        let (recorder, writer) = history::recorder(store, cluster.clone(), Health::default());
        let sink = Arc::new(SimulatedSink {
            sockets: Mutex::default(),
            is_relay_paused: AtomicBool::new(false),
            hear,
        });
        let names = sim.clone();
        let calls = Calls::new(cluster.clone(), sink.clone(), recorder, RULES, shared_clock)
            .named_by(move |now| names.name_call(now));
        let calls = Arc::new(calls);
        let [stop_calls, stop_writer, inbox_ended] = [(); 3].map(|()| CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run(stop_writer.clone().cancelled_owned()));
        let (inbox_ends, calls_stop) = (inbox_ended.clone().drop_guard(), stop_calls.clone());
        let (has_time, own) = (Arc::new(AtomicBool::new(false)), calls.clone());
        let begins = has_time.clone();
        tasks.spawn(async move {
            // A process that cannot take the time ends, and is started again.
            while membership.take_time().await.is_err() {
                tokio::time::sleep(RESTART).await;
            }
            begins.store(true, Ordering::Relaxed);
            let inbox = async {
                own.run_inbox(inbox).await;
                drop(inbox_ends);
            };
            tokio::join!(membership.run(), inbox, own.run_sweeper(calls_stop.cancelled_owned()));
        });
        Arc::new(Self {
            id,
            calls,
            sink,
            cluster,
            sim: sim.clone(),
            tasks: Mutex::new(tasks),
            inbox_ended,
            stop_calls,
            stop_writer,
            has_time,
            is_leaving: AtomicBool::new(false),
        })
    }

    /// Spawns a task that ends with the process.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap().spawn(task);
    }

    pub fn takes_clients(&self) -> bool {
        self.has_time.load(Ordering::Relaxed) && !self.is_leaving()
    }

    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// The process ends at once, as after `kill -9`.
    pub fn kill(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.sim.kill(self.id);
        self.tasks.lock().unwrap().abort_all();
    }

    /// The node accepts no new clients. Relayed messages for leaving devices are buffered by their
    /// senders.
    pub fn begin_to_leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.sink.is_relay_paused.store(true, Ordering::Relaxed);
    }

    /// The rest of an orderly stop, after the sockets are closed.
    pub async fn leave(&self, window: Duration) {
        self.calls.hand_over(window).await;
        self.cluster.stop_listening();
        let _ = tokio::time::timeout(LAST_NEWS, self.inbox_ended.cancelled()).await;
        self.stop_calls.cancel();
        self.cluster.leave().await;
        self.stop_writer.cancel();
        // The time that the history writer has for its last rows.
        tokio::time::sleep(Duration::from_secs(11)).await;
        self.kill();
    }
}
