//! The clients: devices that connect to a node, react to the events that they receive, and
//! reconnect.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::value::RawValue;
use switchboard::{
    call::{Call, CallType, Device, Signal},
    calls::{Failure, Initiate},
    ids::{CallId, SocketId, UserId},
    payload::{Delivered, Payload},
    protocol::{CallRef, ServerEvent},
};
use tokio::sync::{mpsc, oneshot::error::TryRecvError};

use super::{
    checker::{Said, seen, short},
    node::{Hear, Node},
    script::{Act, DEVICES, DEVICES_PER_USER, USERS},
    simulation::{Mistake, Simulation},
};

/// All clients, and the nodes that they can connect to.
pub struct Clients {
    pub sim: Arc<Simulation>,
    nodes: Mutex<Vec<Option<Arc<Node>>>>,
    devices: Mutex<Vec<Client>>,
    sockets: Mutex<BTreeMap<SocketId, usize>>,
}

#[derive(Default)]
struct Client {
    connection: Option<Connection>,
    /// The number of sockets that the device has had.
    sockets: u64,
    /// The number of messages that the device has sent.
    sent: u64,
    ringing: Option<CallRef>,
    call: Option<CallRef>,
    last_attempt: Option<Initiate>,
    watches: bool,
    has_left: bool,
}

struct Connection {
    socket: SocketId,
    node: Arc<Node>,
    inputs: mpsc::UnboundedSender<Input>,
}

/// Input of a node's session with one socket.
enum Input {
    Call(Initiate),
    Signal(CallRef, Signal, Payload),
    Watch,
    Reject(CallRef),
    Busy(CallRef),
    End(CallRef),
    Gone { may_return: bool },
}

pub fn user(device: usize) -> UserId {
    name_of(device / DEVICES_PER_USER)
}

fn name_of(user: usize) -> UserId {
    format!("u{user}").parse().expect("a user id")
}

impl Clients {
    pub fn new(sim: Arc<Simulation>, nodes: usize) -> Arc<Self> {
        let clients = std::iter::repeat_with(Client::default).take(DEVICES).collect();
        let all = Arc::new(Self {
            sim,
            nodes: Mutex::default(),
            devices: Mutex::new(clients),
            sockets: Mutex::default(),
        });
        *all.nodes.lock().unwrap() = (0..nodes).map(|_| Some(all.start_node())).collect();
        all
    }

    fn start_node(self: &Arc<Self>) -> Arc<Node> {
        let own = self.clone();
        let hear: Hear = Arc::new(move |socket, event| own.hear(socket, event));
        Node::start(&self.sim, hear)
    }

    /// Removes a node from its place, so that another can be started there.
    pub fn take_node(&self, place: usize) -> Option<Arc<Node>> {
        self.nodes.lock().unwrap()[place].take()
    }

    pub fn node(&self, place: usize) -> Option<Arc<Node>> {
        self.nodes.lock().unwrap()[place].clone()
    }

    /// Breaks the reference cycle between clients and nodes after a run, so that their memory is
    /// freed.
    pub fn let_go(&self) {
        self.nodes.lock().unwrap().clear();
        self.clients().clear();
    }

    pub fn fill(self: &Arc<Self>, place: usize) {
        if self.node(place).is_none() {
            let node = self.start_node();
            self.nodes.lock().unwrap()[place] = Some(node);
        }
    }

    fn clients(&self) -> MutexGuard<'_, Vec<Client>> {
        self.devices.lock().unwrap()
    }

    pub fn open_sockets(&self) -> Vec<SocketId> {
        let clients = self.clients();
        clients.iter().filter_map(|client| Some(client.connection.as_ref()?.socket)).collect()
    }

    /// Connects, and repeats that until it succeeds.
    pub fn connect(self: &Arc<Self>, device: usize, after_ms: u64) {
        let own = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            while !own.try_to_connect(device) {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }

    fn try_to_connect(self: &Arc<Self>, device: usize) -> bool {
        let nodes: Vec<_> = self.nodes.lock().unwrap().iter().flatten().cloned().collect();
        // A frozen process completes no handshake: its clients connect to other nodes.
        let takes = |node: &Arc<Node>| node.takes_clients() && !self.sim.is_paused(node.id);
        let nodes: Vec<_> = nodes.into_iter().filter(takes).collect();
        if nodes.is_empty() {
            return false;
        }
        let node = nodes[self.sim.dice.roll(|dice| dice.index(nodes.len()))].clone();
        let mut clients = self.clients();
        let client = &mut clients[device];
        if client.has_left || client.connection.is_some() {
            return true;
        }
        client.sockets += 1;
        let socket: SocketId = format!("{:_<16}", format!("d{device}s{}", client.sockets))
            .parse()
            .expect("a socket id");
        let (inputs, received) = mpsc::unbounded_channel();
        if client.watches {
            let _ = inputs.send(Input::Watch);
        }
        client.connection = Some(Connection { socket, node: node.clone(), inputs });
        drop(clients);
        let user = user(device);
        self.sockets.lock().unwrap().insert(socket, device);
        self.sim.checker().opened(socket, &user);
        self.sim.note(|| format!("d{device} connects as {socket} to {}", node.id));
        let id = Some(format!("d{device}").parse().expect("a device id"));
        let connected_at = node.calls.now();
        let device = Device { user, node: node.id, socket, id, connected_at };
        let session = session(self.clone(), node.clone(), device, received);
        node.spawn(session);
        true
    }

    /// The client closes its socket. The node notices after a while, unless it is gone.
    pub fn disconnect(&self, device: usize, noticed_ms: u64, may_return: bool) {
        let Some(connection) = self.clients()[device].connection.take() else { return };
        let Connection { socket, node, inputs } = connection;
        let now = self.sim.now();
        self.sim.checker().closed(socket, now);
        self.sim.note(|| format!("d{device} loses {socket}"));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(noticed_ms)).await;
            node.sink.close(socket);
            let _ = inputs.send(Input::Gone { may_return });
        });
    }

    /// The devices that are connected to this node.
    pub fn on(&self, node: &Arc<Node>) -> Vec<usize> {
        let clients = self.clients();
        let is_on = |client: &Client| {
            client.connection.as_ref().is_some_and(|connection| Arc::ptr_eq(&connection.node, node))
        };
        (0..DEVICES).filter(|device| is_on(&clients[*device])).collect()
    }

    /// All devices disconnect on purpose, for good.
    pub fn leave_all(&self) {
        for device in 0..DEVICES {
            self.clients()[device].has_left = true;
            self.disconnect(device, 0, false);
        }
    }

    pub fn act(self: &Arc<Self>, device: usize, act: &Act) {
        match act {
            Act::Vanish { noticed_ms, back_ms } => {
                self.disconnect(device, *noticed_ms, true);
                return self.connect(device, *back_ms);
            }
            Act::Leave { back_ms } => {
                self.disconnect(device, 0, false);
                return self.connect(device, *back_ms);
            }
            _ => {}
        }
        let mut clients = self.clients();
        let client = &mut clients[device];
        let by_id = self.sim.dice.roll(|dice| dice.percent(70));
        let target = |call: &Option<CallRef>| {
            let call = call.clone()?;
            Some(CallRef { call_id: call.call_id.filter(|_| by_id), ..call })
        };
        let current = target(&client.call).or_else(|| target(&client.ringing));
        let somebody = CallRef { to: Some(name_of(device % USERS)), call_id: None };
        let inputs: Vec<Input> = match act {
            Act::Call { to, named } => {
                let client_call_id = named.then(|| format!("d{device}c{}", client.sent).into());
                let to = name_of(*to);
                let initiate =
                    Initiate { to, call_type: CallType::Audio, caller_info: None, client_call_id };
                client.last_attempt = Some(initiate.clone());
                vec![Input::Call(initiate)]
            }
            Act::CallAgain => client.last_attempt.clone().map(Input::Call).into_iter().collect(),
            Act::Offer => current.map(|to| client.say(to, Signal::Offer)).into_iter().collect(),
            Act::Answer => {
                let ringing = target(&client.ringing).or(current);
                ringing.map(|to| client.say(to, Signal::Answer)).into_iter().collect()
            }
            Act::Reject => target(&client.ringing).map(Input::Reject).into_iter().collect(),
            Act::Busy => target(&client.ringing).map(Input::Busy).into_iter().collect(),
            Act::End => current.map(Input::End).into_iter().collect(),
            Act::Candidates(count) => current.map_or_else(Vec::new, |to| {
                (0..*count).map(|_| client.say(to.clone(), Signal::Candidate)).collect()
            }),
            Act::Nonsense => vec![
                client.say(somebody.clone(), Signal::Answer),
                Input::Reject(somebody.clone()),
                Input::End(somebody),
            ],
            Act::Watch => {
                client.watches = true;
                vec![Input::Watch]
            }
            Act::Vanish { .. } | Act::Leave { .. } => Vec::new(),
        };
        if let Some(connection) = &client.connection {
            for input in inputs {
                let _ = connection.inputs.send(input);
            }
        }
    }

    /// Subscribes again for the client of `socket`, unless the socket is closed.
    fn watch_again(self: &Arc<Self>, socket: SocketId) {
        let own = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let device = own.sockets.lock().unwrap()[&socket];
            let clients = own.clients();
            if let Some(connection) =
                clients[device].connection.as_ref().filter(|connection| connection.socket == socket)
            {
                let _ = connection.inputs.send(Input::Watch);
            }
        });
    }

    /// After all faults have ended, each user calls another one or is called.
    pub async fn call_each_other(&self) {
        self.sim.checker().all_is_well = true;
        for user in (0..USERS).step_by(2) {
            let to = name_of(user + 1);
            let initiate = Initiate {
                to,
                call_type: CallType::Audio,
                caller_info: None,
                client_call_id: None,
            };
            if let Some(connection) = &self.clients()[user * DEVICES_PER_USER].connection {
                let _ = connection.inputs.send(Input::Call(initiate));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn hear(&self, socket: SocketId, event: &ServerEvent) {
        let device = self.sockets.lock().unwrap()[&socket];
        self.sim.checker().heard(self.sim.now(), socket, event);
        let mut clients = self.clients();
        let client = &mut clients[device];
        if client.connection.as_ref().is_none_or(|connection| connection.socket != socket) {
            return;
        }
        match event {
            ServerEvent::Incoming { call_id, from_user_id, .. } => {
                client.ringing =
                    Some(CallRef { to: Some(from_user_id.clone()), call_id: Some(*call_id) });
            }
            ServerEvent::Ended { call_id, .. }
            | ServerEvent::Rejected { call_id, .. }
            | ServerEvent::Busy { call_id, .. } => client.forget(*call_id),
            ServerEvent::Resumed(view) => {
                let [id, caller, receiver] = seen(view);
                let own = user(device);
                let to = if caller == own.as_str() { receiver } else { caller };
                let (to, id) = (to.parse().expect("a user id"), id.parse().expect("a call id"));
                client.call = Some(CallRef { to: Some(to), call_id: Some(id) });
            }
            _ => {}
        }
    }

    /// Records that `socket` is in a call because it placed or answered it.
    fn is_in(&self, socket: SocketId, call: CallRef) {
        let id = call.call_id.expect("it is named");
        let device = self.sockets.lock().unwrap()[&socket];
        self.sim.checker().is_in(socket, id);
        let mut clients = self.clients();
        clients[device].call = Some(call);
    }

    fn forget(&self, socket: SocketId, id: CallId) {
        let device = self.sockets.lock().unwrap()[&socket];
        self.clients()[device].forget(id);
    }
}

impl Client {
    fn forget(&mut self, id: CallId) {
        for call in [&mut self.ringing, &mut self.call] {
            if call.as_ref().is_some_and(|call| call.call_id == Some(id)) {
                *call = None;
            }
        }
    }

    fn say(&mut self, to: CallRef, signal: Signal) -> Input {
        self.sent += 1;
        let socket = self.connection.as_ref().map(|connection| connection.socket.to_string());
        let text = format!("\"{}/{}\"", socket.unwrap_or_default(), self.sent);
        let raw = RawValue::from_string(text).expect("it is JSON");
        Input::Signal(to, signal, Payload::checked(&raw).expect("it is plain"))
    }
}

const ACK_TIME: Duration = Duration::from_secs(5);

/// One socket on its node: joins, then handles its input in order, as the gateway does.
async fn session(
    clients: Arc<Clients>,
    node: Arc<Node>,
    device: Device,
    mut inputs: mpsc::UnboundedReceiver<Input>,
) {
    let (sim, calls, socket) = (clients.sim.clone(), node.calls.clone(), device.socket);
    let mut is_joined = false;
    node.sink.open(socket, &device.user);
    while !is_joined {
        sim.stand_still(node.id).await;
        is_joined = calls.join(&device).await.is_ok();
        if !is_joined {
            // A socket is not in its user's room before it has joined.
            node.sink.close(socket);
            tokio::time::sleep(Duration::from_millis(300)).await;
            while let Ok(input) = inputs.try_recv() {
                if let Input::Gone { .. } = input {
                    return;
                }
            }
            node.sink.open(socket, &device.user);
        }
    }
    let mut queued: VecDeque<Input> = std::iter::from_fn(|| inputs.try_recv().ok()).collect();
    // A socket whose disconnect is queued is not told about its user's call.
    if !queued.iter().any(|input| matches!(input, Input::Gone { .. })) {
        let _ = calls.welcome(&device).await;
    }
    loop {
        let input = match queued.pop_front() {
            Some(input) => input,
            None => match inputs.recv().await {
                Some(input) => input,
                None => return,
            },
        };
        sim.stand_still(node.id).await;
        match input {
            Input::Call(initiate) => {
                let to = initiate.to.clone();
                let placed = calls.initiate(&device, initiate).await;
                sim.note(|| {
                    format!(
                        "{socket} called {}: {:?}",
                        to.as_str(),
                        placed.as_ref().map(|call| short(call.id))
                    )
                });
                sim.checker().moved_on(&device);
                if let Err(Failure::Unavailable(_)) = &placed {
                    sim.checker().turned_away(socket);
                }
                if let Ok(call) = placed
                    && call.is_live()
                {
                    clients.is_in(socket, CallRef { to: Some(to), call_id: Some(call.id) });
                }
            }
            Input::Signal(to, signal, payload) => {
                let said = Said::new(&sim, socket, &to, &payload);
                let (payload, delivered) = payload.tracked();
                let sent = calls.signal(&device, &to, signal, payload, calls.now_us()).await;
                if let Ok(id) = &sent {
                    node.spawn(acked(sim.clone(), delivered, said.about(*id)));
                }
                sim.note(|| {
                    format!("{socket} sent {signal:?}: {:?}", sent.as_ref().map(|id| short(*id)))
                });
                if let (Ok(id), Signal::Answer) = (sent, signal) {
                    clients.is_in(socket, CallRef { call_id: Some(id), ..to });
                }
            }
            Input::Watch => {
                let users: Vec<UserId> = (0..USERS).map(name_of).collect();
                match calls.subscribe(socket, &users).await {
                    Ok(now) => sim.checker().watches(socket, now.presence),
                    Err(_) => clients.watch_again(socket),
                }
            }
            Input::Reject(to) => ended(&clients, socket, calls.reject(&device, &to, None).await),
            Input::Busy(to) => ended(&clients, socket, calls.busy(&device, &to).await),
            Input::End(to) => ended(&clients, socket, calls.end(&device, &to, None).await),
            Input::Gone { may_return } => {
                calls.leave(&device, may_return).await;
                return;
            }
        }
    }
}

/// Waits until a message is delivered, buffered or received by its node, as the gateway does.
async fn acked(sim: Arc<Simulation>, mut delivered: Delivered, said: Said) {
    let is_settled = match delivered.try_recv() {
        Ok(()) => true,
        Err(TryRecvError::Closed) => false,
        Err(TryRecvError::Empty) if sim.mistake == Some(Mistake::AckedAtOnce) => true,
        Err(TryRecvError::Empty) => {
            matches!(tokio::time::timeout(ACK_TIME, delivered).await, Ok(Ok(())))
        }
    };
    if is_settled {
        let now = sim.now();
        sim.checker().acked(now, said);
    }
}

fn ended(clients: &Clients, socket: SocketId, result: Result<Call, Failure>) {
    clients
        .sim
        .note(|| format!("{socket} ended: {:?}", result.as_ref().map(|call| short(call.id))));
    match result {
        Ok(call) => {
            clients.sim.checker().ended(socket, &call);
            clients.forget(socket, call.id);
        }
        Err(Failure::Unavailable(_)) => clients.sim.checker().unanswered(socket),
        Err(_) => {}
    }
}
