//! Times the parts of a call: decode, apply, encode, deliver, from node to node.
//! `cargo bench --bench micro`.

use std::{
    hint::black_box,
    sync::{Arc, Mutex},
    time::Duration,
};

use divan::{Bencher, counter::ItemsCount};
use serde_json::value::RawValue;
use switchboard::{
    call::{
        Attempt, Call, CallType, Device, Event, Lobby, Placement, Role, Rules, Signal,
        notifications,
    },
    calls::{Calls, ClientSink, Initiate},
    cluster::{
        Hub, Message, Relay,
        link::{Content, Frame, Receiver},
    },
    health::Health,
    history,
    ids::{CallId, NodeId, SocketId, UserId},
    payload::Payload,
    protocol::{CallRef, ClientEvent, ServerEvent, Sizes},
    time::{Clock, Timestamp},
};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const RULES: Rules = Rules {
    ring_timeout: Duration::from_secs(30),
    reconnect_grace: Duration::from_secs(10),
    max_call_duration: Duration::from_hours(12),
};
/// Sizes that browsers send.
const OFFER_BYTES: usize = 2_500;
const CANDIDATE_BYTES: usize = 150;
const CANDIDATES: usize = 10;

fn main() {
    divan::main();
}

fn payload(bytes: usize) -> Payload {
    let json = format!(r#"{{"type":"offer","sdp":"{}"}}"#, "v=0 ".repeat(bytes / 4));
    Payload::checked(&RawValue::from_string(json).expect("it is JSON")).expect("it is plain")
}

fn device(user: &str, socket: usize, node: NodeId) -> Device {
    let name = format!("{user}{socket}");
    Device {
        user: user.parse().expect("a user id"),
        node,
        socket: format!("{name:_<16}").parse().expect("16 bytes"),
        id: Some(name.parse().expect("a device id")),
        connected_at: NOW,
    }
}

fn ringing(node: NodeId) -> Call {
    let attempt = Attempt {
        id: CallId::generate(NOW),
        from: device("anna", 0, node),
        to: "ben".parse().expect("a user id"),
        call_type: CallType::Video,
        caller_info: None,
        client_call_id: None,
    };
    let lobby = Lobby { callee_sockets: 1, ..Lobby::default() };
    match RULES.place(&attempt, &lobby, NOW) {
        Ok(Placement::New(call)) => call,
        other => panic!("{other:?}"),
    }
}

#[divan::bench(args = [("call:ice-candidate", "candidate", CANDIDATE_BYTES), ("call:offer", "offer", OFFER_BYTES)])]
fn decode(bencher: Bencher<'_, '_>, (name, field, bytes): (&str, &str, usize)) {
    let json = format!(r#"{{"toUserId":"ben","{field}":{}}}"#, payload(bytes).as_json());
    let raw = RawValue::from_string(json).expect("it is JSON");
    let sizes = Sizes::default();
    bencher.bench(|| ClientEvent::decode(name, Some(black_box(raw.get())), &sizes).is_ok());
}

#[divan::bench]
fn apply_answer(bencher: Bencher<'_, '_>) {
    let node = NodeId::generate(NOW);
    let (call, answer) = (ringing(node), Event::Answer(device("ben", 0, node)));
    bencher.bench(|| RULES.apply(black_box(&call), &answer, node, NOW));
}

#[divan::bench]
fn news_of_an_answer(bencher: Bencher<'_, '_>) {
    let node = NodeId::generate(NOW);
    let call = ringing(node);
    let answered = RULES.apply(&call, &Event::Answer(device("ben", 0, node)), node, NOW);
    let answered = answered.expect("it may be answered");
    let socket = device("ben", 1, node).socket;
    bencher.bench(|| notifications(black_box(&call), &answered, &[socket], &[]));
}

#[divan::bench(args = [CANDIDATE_BYTES, OFFER_BYTES])]
fn encode(bencher: Bencher<'_, '_>, bytes: usize) {
    let event = ServerEvent::Offer {
        call_id: CallId::generate(NOW),
        from_user_id: "anna".parse().expect("a user id"),
        offer: payload(bytes),
        timestamp: NOW,
    };
    bencher.bench(|| serde_json::to_string(black_box(&event)));
}

fn content(messages: usize) -> Content {
    let relay = || {
        Message::Relay(Relay {
            call: CallId::generate(NOW),
            version: 2,
            from: Role::Caller,
            signal: Signal::Candidate,
            payload: payload(CANDIDATE_BYTES),
            given_back: false,
            to_ringing: false,
            received_us: Some(1_800_000_000_000_000),
            traceparent: None,
        })
    };
    let messages = (0..messages).map(|_| relay()).collect();
    Content::Frame(Frame { link: 1, first: 0, oldest: 0, messages, wants_receipt: false })
}

/// Messages for the same node are batched.
#[divan::bench(args = [1, CANDIDATES])]
fn write_for_a_node(bencher: Bencher<'_, '_>, messages: usize) {
    let content = content(messages);
    bencher.counter(ItemsCount::new(messages)).bench(|| serde_json::to_string(black_box(&content)));
}

#[divan::bench(args = [1, CANDIDATES])]
fn read_from_a_node(bencher: Bencher<'_, '_>, messages: usize) {
    let text = serde_json::to_string(&content(messages)).expect("plain data");
    bencher.counter(ItemsCount::new(messages)).with_inputs(Receiver::default).bench_values(
        |mut receiver| match serde_json::from_str(black_box(&text)).expect("it was written") {
            Content::Frame(frame) => receiver.receive(frame),
            other => panic!("{other:?}"),
        },
    );
}

/// Sockets that serialise their events.
struct Sockets {
    of_callee: Vec<SocketId>,
    caller: SocketId,
    sent: Mutex<usize>,
}

impl ClientSink for Sockets {
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        if user.as_str() == "ben" { self.of_callee.clone() } else { vec![self.caller] }
    }

    fn emit(&self, _: SocketId, event: &ServerEvent, _: Option<&UserId>) -> bool {
        let text = serde_json::to_string(event).expect("an event is plain data");
        *self.sent.lock().expect("nobody panics with it") += text.len();
        true
    }

    fn close(&self, _: SocketId) {}

    fn disconnect(&self, _: &UserId) {}
}

/// A whole call through the driver on one node, without transport and database; the callee has this
/// many devices.
#[divan::bench(args = [1, 10, 100])]
fn whole_call(bencher: Bencher<'_, '_>, devices: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (hub, clock) = (Hub::default(), Clock::tokio());
    let node = NodeId::generate(clock.now());
    let _entered = runtime.enter();
    let (cluster, _inbox) = hub.node(node);
    let anna = device("anna", 0, node);
    let ben: Vec<Device> = (0..devices).map(|number| device("ben", number, node)).collect();
    let outlet = Sockets {
        of_callee: ben.iter().map(|device| device.socket).collect(),
        caller: anna.socket,
        sent: Mutex::default(),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("calls.db").display());
    let store = history::Sqlite::open(&url);
    let store = Arc::new(runtime.block_on(store).expect("a database"));
    // The writer does not run: rows fill the backlog, and later ones are refused.
    let (recorder, _writer) = history::recorder(store, cluster.clone(), Health::default());
    let calls = Calls::new(cluster, Arc::new(outlet), recorder, RULES, clock);
    runtime.block_on(async {
        for device in ben.iter().chain([&anna]) {
            calls.join(device).await.expect("the cluster is here");
        }
    });
    let to = |user: &str| CallRef { to: Some(user.parse().expect("a user id")), call_id: None };
    let (to_ben, to_anna) = (to("ben"), to("anna"));
    let (description, candidate) = (payload(OFFER_BYTES), payload(CANDIDATE_BYTES));
    bencher.bench_local(|| {
        runtime.block_on(async {
            let signal = async |from, to, signal, payload: &Payload| {
                calls.signal(from, to, signal, payload.clone(), 0).await.expect("it is passed on")
            };
            let initiate = Initiate {
                to: to_ben.to.clone().expect("it is named"),
                call_type: CallType::Video,
                caller_info: None,
                client_call_id: None,
            };
            calls.initiate(&anna, initiate).await.expect("it rings");
            signal(&anna, &to_ben, Signal::Offer, &description).await;
            signal(&ben[0], &to_anna, Signal::Answer, &description).await;
            for _ in 0..CANDIDATES {
                signal(&anna, &to_ben, Signal::Candidate, &candidate).await;
                signal(&ben[0], &to_anna, Signal::Candidate, &candidate).await;
            }
            calls.end(&anna, &to_ben, None).await.expect("it ends")
        })
    });
}
