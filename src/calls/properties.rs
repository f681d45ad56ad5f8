//! Order across moves, replay to late devices, and buffering, over random interleavings: the states
//! of one call on several nodes, with queues between them, without a runtime.

use std::collections::{BTreeMap, HashMap, VecDeque};

use proptest::prelude::*;

use super::state::{Arrival, CallState, Context, Effect};
use crate::{
    call::{
        Call, Device, Event, Role, Signal,
        fixtures::{RULES, at, device, ringing},
    },
    cluster::Message,
    ids::{NodeId, SocketId},
    limits::buffers::Buffers,
    metrics::Path,
    payload::Payload,
    time::Timestamp,
};

const NODES: usize = 3;

/// One step. Roles are `true` for the caller; nodes are numbers.
#[derive(Debug, Clone)]
enum Step {
    /// The device of a party sends a message.
    Say(bool),
    /// The device of a party moves to a new socket on this node.
    Move(bool, usize),
    /// The device of a party loses its socket, and may return.
    Lose(bool),
    /// A message between these nodes arrives.
    Arrive(usize, usize),
    /// A device of the callee joins on this node while the call rings.
    Join(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        6 => any::<bool>().prop_map(Step::Say),
        2 => (any::<bool>(), node()).prop_map(|(role, node)| Step::Move(role, node)),
        1 => any::<bool>().prop_map(Step::Lose),
        8 => (node(), node()).prop_map(|(from, to)| Step::Arrive(from, to)),
        1 => node().prop_map(Step::Join),
    ]
}

fn role_of(is_caller: bool) -> Role {
    if is_caller { Role::Caller } else { Role::Callee }
}

fn number(payload: &Payload) -> u64 {
    payload.as_json().parse().expect("a number")
}

struct Model {
    ids: Vec<NodeId>,
    /// The shared record.
    record: Call,
    states: Vec<CallState>,
    wires: BTreeMap<(usize, usize), VecDeque<Message>>,
    /// The present sockets, with their device.
    open: HashMap<SocketId, Device>,
    sockets: u64,
    sent: u64,
    /// The numbers that each role has sent, and received, in order.
    said: HashMap<Role, Vec<u64>>,
    got: HashMap<Role, Vec<u64>>,
    /// The numbers that each ringing socket has received.
    rung: HashMap<SocketId, Vec<u64>>,
}

impl Model {
    /// A call that rings from `a` on the first node.
    fn ringing() -> Self {
        let id = |n: u64| format!("01a3185c50007fefa936ca0fe4c1d{n:03}").parse().expect("an id");
        let ids: Vec<NodeId> = (0..NODES as u64).map(id).collect();
        let mut record = ringing();
        let caller = Device { node: ids[0], ..device("a1") };
        record.caller.link = crate::call::Link::Bound(crate::call::Binding {
            node: ids[0],
            socket: caller.socket,
            device: caller.id.clone(),
            confirmed: true,
            since: Some(caller.connected_at),
        });
        let state = |_: &NodeId| CallState::new(record.clone(), &Buffers::default());
        let mut model = Self {
            states: ids.iter().map(state).collect(),
            ids,
            record,
            wires: BTreeMap::new(),
            open: HashMap::from([(caller.socket, caller)]),
            sockets: 0,
            sent: 0,
            said: HashMap::new(),
            got: HashMap::new(),
            rung: HashMap::new(),
        };
        let nodes = model.ids.clone();
        model.decide(0, |state, context| state.rings_on(&nodes, context));
        model
    }

    /// The same, answered by a device on the second node.
    fn active() -> Self {
        let mut model = Self::ringing();
        let callee = model.device(false, 1);
        model.apply(1, &Event::Answer(callee));
        model
    }

    fn now(&self) -> Timestamp {
        at(1) + std::time::Duration::from_millis(self.sockets)
    }

    /// The device of a party on a new socket of this node.
    fn device(&mut self, is_caller: bool, node: usize) -> Device {
        self.sockets += 1;
        let name = if is_caller { "a1" } else { "b1" };
        let socket = format!("{name}{:_>14}", self.sockets).parse().expect("16 bytes");
        let connected_at = self.now();
        let device = Device { node: self.ids[node], socket, connected_at, ..device(name) };
        self.open.insert(socket, device.clone());
        device
    }

    fn index(&self, node: NodeId) -> usize {
        self.ids.iter().position(|id| *id == node).expect("it is one of them")
    }

    fn decide<T>(&mut self, node: usize, decide: impl FnOnce(&mut CallState, &Context) -> T) -> T {
        let context = Context { node: self.ids[node], now: self.now(), may_be_here: [false; 2] };
        let result = decide(&mut self.states[node], &context);
        loop {
            let effects = self.states[node].take_effects();
            if effects.is_empty() {
                return result;
            }
            for effect in effects {
                self.perform(node, effect);
            }
        }
    }

    fn perform(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Deliver { socket, from, signal, payload } => {
                if self.open.contains_key(&socket) {
                    self.got.entry(from.other()).or_default().push(number(&payload));
                } else {
                    self.states[node].buffer_for_lost(from.other(), signal, &payload);
                }
            }
            Effect::Ring { sockets, payload, .. } => {
                for socket in sockets {
                    self.rung.entry(socket).or_default().push(number(&payload));
                }
            }
            Effect::Send(to, message) => {
                let to = self.index(to);
                self.wires.entry((node, to)).or_default().push_back(message);
            }
            Effect::Notify { .. } | Effect::AwaitFlush { .. } => {}
            Effect::Overflow(what) => panic!("there is room: {what}"),
        }
    }

    fn observe(&mut self, node: usize, call: &Call) {
        self.decide(node, |state, context| state.observe(call, None, Vec::new(), context));
    }

    /// Commits a change that a node decides, and spreads it.
    fn apply(&mut self, node: usize, event: &Event) -> bool {
        let before = self.record.clone();
        let Ok(after) = RULES.apply(&before, event, self.ids[node], self.now()) else {
            return false;
        };
        self.record = after.clone();
        self.observe(node, &after);
        if after.is_ringing() && after.caller.link.node() == Some(self.ids[node]) {
            let nodes = self.ids.clone();
            self.decide(node, |state, context| state.rings_on(&nodes, context));
        }
        let links = [&before.caller, &before.callee, &after.caller, &after.callee];
        let mut nodes: Vec<NodeId> = links.iter().filter_map(|party| party.link.node()).collect();
        if before.is_ringing() {
            nodes.extend(&self.ids);
        }
        nodes.sort();
        nodes.dedup();
        let others: Vec<usize> = nodes.into_iter().map(|id| self.index(id)).collect();
        for to in others.into_iter().filter(|to| *to != node) {
            let message = Message::Call(Box::new(after.clone()));
            self.wires.entry((node, to)).or_default().push_back(message);
        }
        true
    }

    fn bound(&self, role: Role) -> Option<Device> {
        self.open.get(&self.record.party(role).link.socket()?).cloned()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Say(is_caller) => {
                let role = role_of(*is_caller);
                let Some(device) = self.bound(role) else { return };
                let node = self.index(device.node);
                let payload: Payload = serde_json::from_str(&self.sent.to_string()).expect("JSON");
                let signal = Signal::Candidate;
                let relayed = self.decide(node, |state, context| {
                    let route = state.call().route(&device, signal).ok()?;
                    let arrival = Arrival { received_us: 0, path: Path::Local, trace: None };
                    state.relay(&device, &route, signal, &payload, arrival, context).ok()
                });
                if relayed.is_some() {
                    self.said.entry(role).or_default().push(self.sent);
                    self.sent += 1;
                }
            }
            Step::Move(is_caller, node) => {
                let role = role_of(*is_caller);
                if role == Role::Callee && self.record.is_ringing() {
                    return;
                }
                if let Some(before) = self.record.party(role).link.socket() {
                    self.open.remove(&before);
                }
                let device = self.device(*is_caller, *node);
                self.apply(*node, &Event::Joined(device));
            }
            Step::Lose(is_caller) => {
                let Some(device) = self.bound(role_of(*is_caller)) else { return };
                self.open.remove(&device.socket);
                let node = self.index(device.node);
                self.apply(node, &Event::Gone { device, may_return: true });
            }
            Step::Join(node) => {
                if self.states[*node].call().is_ringing() {
                    let socket = self.device(false, *node).socket;
                    self.decide(*node, |state, context| state.ring(&[socket], None, context));
                }
            }
            Step::Arrive(from, to) => {
                let wire = self.wires.entry((*from, *to)).or_default();
                if let Some(message) = wire.pop_front() {
                    self.arrive(*from, *to, message);
                }
            }
        }
    }

    fn arrive(&mut self, from: usize, to: usize, message: Message) {
        let by = self.ids[from];
        match message {
            Message::Call(call) => self.observe(to, &call),
            Message::Rings { have, .. } => {
                self.decide(to, |state, _| state.rings_also_on(by, have));
            }
            Message::Kept { messages, .. } => {
                self.decide(to, |state, _| state.take_over(messages));
            }
            Message::Relay(relay) => {
                let received = self.decide(to, |state, context| state.receive(relay, context));
                if let Err(relay) = received {
                    let record = self.record.clone();
                    self.observe(to, &record);
                    let again = self.decide(to, |state, context| state.receive(relay, context));
                    assert!(again.is_ok(), "the record is the newest version");
                }
            }
            Message::Flush { version, to: role, .. } => {
                if self.states[to].call().version < version {
                    let record = self.record.clone();
                    self.observe(to, &record);
                }
                self.decide(to, |state, context| {
                    state.flush_for(role, by, version, Vec::new(), context.now);
                });
            }
            Message::Flushing { to: role, .. } => {
                self.decide(to, |state, context| state.flushing(role, by, context.now));
            }
            Message::Flushed { to: role, .. } => {
                self.decide(to, |state, context| state.flushed(role, by, context));
            }
            other => panic!("{other:?}"),
        }
    }

    /// Both devices are connected, and all messages between nodes arrive.
    fn settle(&mut self) {
        self.settle_wires();
        for is_caller in [true, false] {
            if self.bound(role_of(is_caller)).is_none() {
                self.take(&Step::Move(is_caller, 0));
                self.settle_wires();
            }
        }
    }

    /// All messages between nodes arrive.
    fn settle_wires(&mut self) {
        while let Some((from, to)) =
            self.wires.iter().find(|(_, wire)| !wire.is_empty()).map(|(wire, _)| *wire)
        {
            self.take(&Step::Arrive(from, to));
        }
    }
}

proptest! {
    #[test]
    fn messages_arrive_once_and_in_order_across_moves(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut model = Model::active();
        model.settle_wires();
        let mut is_moving = false;
        for step in &steps {
            // Moves follow each other after the messages of the earlier one have arrived.
            if matches!(step, Step::Move(..) | Step::Lose(_)) && std::mem::replace(&mut is_moving, true) {
                model.settle_wires();
            }
            model.take(step);
        }
        model.settle();
        for role in [Role::Caller, Role::Callee] {
            let said = model.said.remove(&role).unwrap_or_default();
            prop_assert_eq!(model.got.remove(&role.other()).unwrap_or_default(), said);
        }
    }

    #[test]
    fn each_ringing_device_gets_all_messages_of_the_caller_in_order(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut model = Model::ringing();
        for step in &steps {
            if matches!(step, Step::Say(true) | Step::Join(_) | Step::Arrive(..)) {
                model.take(step);
            }
        }
        model.settle_wires();
        let said = model.said.remove(&Role::Caller).unwrap_or_default();
        for got in model.rung.values() {
            prop_assert_eq!(got, &said);
        }
    }
}

#[test]
fn a_caller_that_returns_before_its_node_knew_that_it_left_is_heard_once() {
    let mut model = Model::ringing();
    let steps = [
        Step::Say(true),
        Step::Join(0),
        Step::Move(true, 1),
        Step::Lose(true),
        Step::Move(true, 0),
        Step::Say(true),
    ];
    for step in &steps {
        model.take(step);
    }
    model.settle_wires();
    assert_eq!(model.rung.values().collect::<Vec<_>>(), [&[0, 1]]);
}

#[test]
fn devices_that_exchange_nodes_do_not_wait_for_each_other() {
    let mut model = Model::active();
    for step in [Step::Move(false, 0), Step::Move(true, 1), Step::Say(true), Step::Say(false)] {
        model.take(&step);
    }
    model.settle();
    assert_eq!(
        (&model.got[&Role::Callee][..], &model.got[&Role::Caller][..]),
        (&[0][..], &[1][..])
    );
}

#[test]
fn a_device_that_moves_to_a_node_that_missed_its_answer_is_heard_in_order() {
    let mut model = Model::active();
    for step in [Step::Say(false), Step::Move(false, 0), Step::Say(false)] {
        model.take(&step);
    }
    model.settle();
    assert_eq!(model.got[&Role::Caller], [0, 1]);
}

/// The byte budget has room for one of the two messages that came along with the caller.
#[test]
fn a_message_after_an_incomplete_takeover_is_kept() {
    let payload = |len: usize| -> Payload {
        serde_json::from_str(&format!("{:?}", "x".repeat(len))).expect("a text")
    };
    let buffers = Buffers::new(64 * 1024);
    let model = Model::ringing();
    let mut state = CallState::new(model.record.clone(), &buffers);
    let context = Context { node: model.ids[0], now: model.now(), may_be_here: [false; 2] };
    state.rings_on(&model.ids, &context);
    let messages = [10, 100 * 1024].map(|len| (Signal::Candidate, payload(len)));
    state.take_over(messages.to_vec());
    let overflowed = |effect: &Effect| matches!(effect, Effect::Overflow(_));
    assert!(state.take_effects().iter().any(overflowed), "the second one has no room");
    let relay = state.relay_of(Signal::Candidate, payload(20), Role::Caller);
    assert!(state.receive(relay, &context).is_ok());
    assert!(!state.take_effects().iter().any(overflowed), "it has room");
}
