//! Tests of the driver with devices that move between nodes.

use std::{iter, str::FromStr, time::Duration};

use switchboard::{
    call::{Attempt, Call, CallType, Device, Event, Lobby, Placement, Refusal, Role, Signal},
    calls::Initiate,
    cluster::{CallRecords, Change, Claim, Embedded, Inbound, Message, Peers, Relay, UserPresence},
    ids::{CallId, NodeId, UserId},
    payload::Payload,
    time::Timestamp,
};

use tokio::sync::mpsc;

use crate::harness::{NODE_COUNTS, RULES, TestCluster, payload};

#[tokio::test(start_paused = true)]
async fn what_a_caller_sent_follows_it_to_another_node_while_it_rings() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        cluster.signal("a1", "b", Signal::Offer, "o").await.unwrap();
        cluster.leave("a1", true).await;
        cluster.join("a1+").await;
        cluster.signal("a1+", "b", Signal::Candidate, "c").await.unwrap();
        for late in ["b2", "b3", "b4"] {
            cluster.join(late).await;
            assert_eq!(cluster.heard(late), ["incoming", "offer o", "ice-candidate c"]);
        }
        cluster.answer("b4", "a").await.unwrap();
        assert_eq!(cluster.heard("a1+"), ["resumed", "answer answer"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_may_go_from_node_to_node_and_back() {
    for count in NODE_COUNTS {
        let (cluster, _) = TestCluster::in_call(count, &["a1", "b1"]).await;
        let mut name = "a1".to_owned();
        for round in 0..6 {
            cluster.leave(&name, true).await;
            cluster.signal("b1", "a", Signal::Candidate, "meanwhile").await.unwrap();
            name.push('+');
            cluster.join(&name).await;
            assert_eq!(cluster.heard(&name), ["resumed", "ice-candidate meanwhile"], "{round}");
            cluster.pass(Duration::from_secs(8)).await;
            cluster.signal(&name, "b", Signal::Candidate, "back").await.unwrap();
            assert_eq!(cluster.heard("b1").last().unwrap(), "ice-candidate back");
            cluster.signal("b1", "a", Signal::Candidate, "too").await.unwrap();
            assert_eq!(cluster.heard(&name), ["ice-candidate too"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_socket_that_is_just_being_lost_waits_too() {
    for count in NODE_COUNTS {
        let (cluster, _) = TestCluster::in_call(count, &["a1", "b1"]).await;
        // The socket is closed, and the driver has not been notified yet.
        cluster.node_of("a1").sink.sockets.lock().unwrap().clear();
        cluster.signal("b1", "a", Signal::Candidate, "between").await.unwrap();
        cluster.leave("a1", true).await;
        cluster.join("a1+").await;
        assert_eq!(cluster.heard("a1+"), ["resumed", "ice-candidate between"]);
    }
}

/// A candidate in flight between nodes.
fn candidate(call: CallId, version: u64, from: Role, text: &str) -> Relay {
    Relay {
        call,
        version,
        from,
        signal: Signal::Candidate,
        payload: payload(text),
        given_back: false,
        to_ringing: false,
        received_us: None,
        traceparent: None,
    }
}

/// The messages that a node received whose part the test plays.
fn come(inbox: &mut mpsc::Receiver<Inbound>) -> Vec<Message> {
    let next = || match inbox.try_recv().ok()? {
        Inbound::Message(_, message) => Some(message),
        other => panic!("{other:?}"),
    };
    iter::from_fn(next).collect()
}

/// The candidates among these messages.
fn candidates(messages: &[Message]) -> Vec<String> {
    let text = |message: &Message| match message {
        Message::Relay(relay) => Some(relay.payload.as_json().trim_matches('"').to_owned()),
        _ => None,
    };
    messages.iter().filter_map(text).collect()
}

/// Places a call from `a1`, on a node whose part the test plays, to `b`.
async fn placed_elsewhere(cluster: &TestCluster, elsewhere: &Embedded) -> CallId {
    let now = Timestamp::from_millis(1_800_000_000_000);
    let caller = UserId::from_str("a").unwrap();
    let callee = UserId::from_str("b").unwrap();
    let attempt = Attempt {
        id: CallId::generate(now),
        from: Device { node: elsewhere.node(), ..cluster.device("a1") },
        to: callee.clone(),
        call_type: CallType::Audio,
        caller_info: None,
        client_call_id: None,
    };
    let lobby = Lobby { callee_sockets: 1, ..Lobby::default() };
    let Ok(Placement::New(call)) = RULES.place(&attempt, &lobby, now) else { unreachable!() };
    let claims = [caller, callee].map(|user| Claim { user, was: None }).into();
    elsewhere.commit(Change { call: call.clone(), claims }).await.unwrap();
    call.id
}

/// A call of a caller on the node `elsewhere`, answered by `b1` on the cluster's only node.
async fn answered_from_elsewhere(cluster: &TestCluster, elsewhere: &Embedded) -> CallId {
    let id = placed_elsewhere(cluster, elsewhere).await;
    let ringing = elsewhere.load(id).await.unwrap().unwrap();
    elsewhere.send(cluster.nodes[0].id, Message::Call(Box::new(ringing)));
    cluster.settle().await;
    cluster.answer("b1", "a").await.unwrap();
    id
}

#[tokio::test(start_paused = true)]
async fn a_callers_node_gives_what_it_sent_to_whoever_it_tells_of_its_call() {
    let cluster = TestCluster::with(1, &["a1", "b1"]).await;
    let (elsewhere, mut inbox) = cluster.hub.node(NodeId::generate(Timestamp::from_millis(0)));
    let id = cluster.initiate_named("a1", "b", Some("try 1")).await.unwrap();
    cluster.signal("a1", "b", Signal::Candidate, "one").await.unwrap();
    let late = cluster.device("b2");
    elsewhere.attach(&late.user, late.socket).await.unwrap();
    for _ in 0..2 {
        assert_eq!(cluster.initiate_named("a1", "b", Some("try 1")).await, Ok(id));
    }
    cluster.signal("a1", "b", Signal::Candidate, "two").await.unwrap();
    let messages = come(&mut inbox);
    let is_call = |message: &Message| matches!(message, Message::Call(call) if call.id == id);
    assert!(is_call(&messages[0]), "{messages:?}");
    assert_eq!(candidates(&messages), ["one", "two"], "without being asked, and once");
}

#[tokio::test(start_paused = true)]
async fn a_callers_node_is_not_told_what_it_knows() {
    let cluster = TestCluster::with(1, &["b1"]).await;
    let (here, (elsewhere, mut inbox)) =
        (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
    let id = placed_elsewhere(&cluster, &elsewhere).await;
    let ringing = elsewhere.load(id).await.unwrap().unwrap();
    elsewhere.send(here, Message::Call(Box::new(ringing)));
    cluster.settle().await;
    assert_eq!(cluster.heard("b1"), ["incoming"]);
    assert_eq!(come(&mut inbox), [], "it rings where it was placed to");
}

#[tokio::test(start_paused = true)]
async fn what_a_callers_former_node_still_sends_is_heard_once() {
    for [heard_before, on_its_way] in [[0, 0], [1, 0], [1, 1], [2, 1], [3, 0]] {
        let cluster = TestCluster::with(1, &[]).await;
        let (here, (elsewhere, _inbox)) =
            (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
        let call = placed_elsewhere(&cluster, &elsewhere).await;
        let sent = ["one", "two", "three"].map(|text| (Signal::Candidate, payload(text)));
        let relay = |(signal, payload): &(Signal, _)| {
            let (signal, payload) = (*signal, Payload::clone(payload));
            let relay =
                Relay { signal, payload, to_ringing: true, ..candidate(call, 1, Role::Caller, "") };
            elsewhere.send(here, Message::Relay(relay));
        };
        if heard_before > 0 {
            cluster.join("b1").await;
        }
        sent[..heard_before].iter().for_each(relay);
        cluster.settle().await;
        cluster.join("a1+").await;
        if heard_before == 0 {
            cluster.join("b1").await;
        }
        cluster.signal("a1+", "b", Signal::Candidate, "from here").await.unwrap();
        sent[heard_before..][..on_its_way].iter().for_each(relay);
        elsewhere.send(here, Message::Kept { call, messages: sent.to_vec() });
        cluster.settle().await;

        let mut early = cluster.heard("b1");
        early.sort();
        let all = ["from here", "one", "three", "two"].map(|text| format!("ice-candidate {text}"));
        assert_eq!(early, [&all[..], &["incoming".to_owned()]].concat());
        cluster.join("b2").await;
        let mut in_order = vec!["incoming".to_owned()];
        in_order.extend(
            ["one", "two", "three", "from here"].map(|text| format!("ice-candidate {text}")),
        );
        assert_eq!(cluster.heard("b2"), in_order, "{heard_before} {on_its_way}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_to_every_ringing_node_reaches_who_answered_once() {
    let cluster = TestCluster::with(2, &["b1", "b2"]).await;
    assert_ne!(cluster.node_of("b1").id, cluster.node_of("b2").id);
    let (elsewhere, _inbox) = cluster.hub.node(NodeId::generate(Timestamp::from_millis(0)));
    let call = placed_elsewhere(&cluster, &elsewhere).await;
    let ringing = elsewhere.load(call).await.unwrap().unwrap();
    for node in &cluster.nodes {
        elsewhere.send(node.id, Message::Call(Box::new(ringing.clone())));
    }
    cluster.settle().await;
    cluster.answer("b1", "a").await.unwrap();
    for name in ["b1", "b2"] {
        assert_eq!(cluster.heard(name)[0], "incoming");
    }
    // Sent before the caller's node knew of the answer.
    for node in &cluster.nodes {
        let relay = Relay { to_ringing: true, ..candidate(call, 1, Role::Caller, "late") };
        elsewhere.send(node.id, Message::Relay(relay));
    }
    cluster.settle().await;
    assert_eq!(cluster.heard("b1"), ["ice-candidate late"]);
    assert_eq!(cluster.heard("b2"), [""; 0]);
}

/// A call from `a1`, on the cluster's only node, answered on a node whose part the test plays.
async fn answered_elsewhere(cluster: &TestCluster, elsewhere: &Embedded) -> Call {
    let id = cluster.initiate("a1", "b").await.unwrap();
    let ringing = elsewhere.load(id).await.unwrap().unwrap();
    let callee = Device { node: elsewhere.node(), ..cluster.device("b1") };
    let call = changed(elsewhere, &ringing, &Event::Answer(callee)).await;
    elsewhere.send(cluster.nodes[0].id, Message::Call(Box::new(call.clone())));
    cluster.settle().await;
    call
}

/// Commits the result of `event` on a node whose part the test plays. No other node is notified.
async fn changed(elsewhere: &Embedded, call: &Call, event: &Event) -> Call {
    let next = RULES.apply(call, event, elsewhere.node(), call.updated_at).unwrap();
    elsewhere.commit(Change { call: next.clone(), claims: Vec::new() }).await.unwrap();
    next
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_from_a_lost_devices_node_comes_before_what_was_sent_later() {
    let cluster = TestCluster::with(1, &["a1", "b2"]).await;
    let (here, (elsewhere, mut inbox)) =
        (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
    let call = answered_elsewhere(&cluster, &elsewhere).await;
    for text in ["one", "two"] {
        cluster.signal("a1", "b", Signal::Candidate, text).await.unwrap();
    }
    // The link to that node is slow: the node loses the device before it has received these, and
    // returns them.
    let device = Device { node: elsewhere.node(), ..cluster.device("b1") };
    let lost = changed(&elsewhere, &call, &Event::Gone { device, may_return: true }).await;
    elsewhere.send(here, Message::Call(Box::new(lost.clone())));
    cluster.settle().await;
    cluster.signal("a1", "b", Signal::Candidate, "later").await.unwrap();
    for text in ["one", "two"] {
        let relay = candidate(call.id, lost.version, Role::Caller, text);
        elsewhere.send(here, Message::Relay(Relay { given_back: true, ..relay }));
    }
    cluster.settle().await;
    cluster.join("b1").await;
    cluster.signal("a1", "b", Signal::Candidate, "last").await.unwrap();
    assert_eq!(cluster.heard("b1"), ["resumed"], "more may come from there");
    let (id, to) = (call.id, Role::Callee);
    let is_asked = |inbound| matches!(inbound, Inbound::Message(_, Message::Flush { call, to: Role::Callee, .. }) if call == id);
    assert!(iter::from_fn(|| inbox.try_recv().ok()).any(is_asked));
    elsewhere.send(here, Message::Flushed { call: id, to });
    cluster.settle().await;
    let all = ["one", "two", "later", "last"].map(|text| format!("ice-candidate {text}"));
    assert_eq!(cluster.heard("b1"), all);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_say_what_became_of_messages_is_not_waited_for_long() {
    let cluster = TestCluster::with(1, &["a1", "b2"]).await;
    let (here, (elsewhere, _inbox)) =
        (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
    let call = answered_elsewhere(&cluster, &elsewhere).await;
    cluster.signal("a1", "b", Signal::Candidate, "lost").await.unwrap();
    let device = Device { node: elsewhere.node(), ..cluster.device("b1") };
    let lost = changed(&elsewhere, &call, &Event::Gone { device, may_return: true }).await;
    elsewhere.send(here, Message::Call(Box::new(lost)));
    cluster.settle().await;
    cluster.join("b1").await;
    cluster.signal("a1", "b", Signal::Candidate, "held").await.unwrap();
    assert_eq!(cluster.heard("b1"), ["resumed"]);
    cluster.pass(Duration::from_secs(1)).await;
    assert_eq!(cluster.heard("b1"), ["ice-candidate held"]);
    cluster.signal("a1", "b", Signal::Candidate, "next").await.unwrap();
    assert_eq!(cluster.heard("b1"), ["ice-candidate next"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_node_that_stood_still_gives_back_comes_before_what_was_sent_meanwhile() {
    let cluster = TestCluster::with(1, &["a1", "b2"]).await;
    let (here, (elsewhere, mut inbox)) =
        (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
    let call = answered_elsewhere(&cluster, &elsewhere).await;
    cluster.signal("a1", "b", Signal::Candidate, "early").await.unwrap();
    let device = Device { node: elsewhere.node(), ..cluster.device("b1") };
    let gone = Event::Gone { device: device.clone(), may_return: true };
    let lost = changed(&elsewhere, &call, &gone).await;
    elsewhere.send(here, Message::Call(Box::new(lost.clone())));
    cluster.settle().await;
    cluster.signal("a1", "b", Signal::Candidate, "later").await.unwrap();
    cluster.pass(Duration::from_secs(3)).await;
    // The node continues, and finds that its device was marked lost before it could relay the first
    // message.
    let back = changed(&elsewhere, &lost, &Event::StillConnected(device)).await;
    elsewhere.send(here, Message::Call(Box::new(back.clone())));
    cluster.settle().await;
    let messages = come(&mut inbox);
    assert_eq!(candidates(&messages), ["early"]);
    let (id, to) = (call.id, Role::Callee);
    let asks = |message: &Message| matches!(message, Message::Flush { call, .. } if *call == id);
    assert!(messages.iter().any(asks));
    let early = candidate(id, back.version, Role::Caller, "early");
    elsewhere.send(here, Message::Relay(Relay { given_back: true, ..early }));
    elsewhere.send(here, Message::Flushed { call: id, to });
    cluster.settle().await;
    assert_eq!(candidates(&come(&mut inbox)), ["early", "later"]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_for_a_device_that_was_only_taken_for_lost_waits_where_it_is() {
    let cluster = TestCluster::with(1, &["b1"]).await;
    let (here, (elsewhere, mut inbox)) =
        (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
    let id = answered_from_elsewhere(&cluster, &elsewhere).await;
    let active = elsewhere.load(id).await.unwrap().unwrap();
    let gone = Event::Gone { device: cluster.device("b1"), may_return: true };
    let lost = changed(&elsewhere, &active, &gone).await;
    // It cannot restore the device at once.
    cluster.nodes[0].fail_next(1);
    come(&mut inbox);
    let hears_of_it = || elsewhere.send(here, Message::Call(Box::new(lost.clone())));
    hears_of_it();
    elsewhere.send(here, Message::Relay(candidate(id, lost.version, Role::Caller, "one")));
    cluster.settle().await;
    assert_eq!(candidates(&come(&mut inbox)), [""; 0], "what comes next would overtake it");
    cluster.heard("b1");
    hears_of_it();
    elsewhere.send(here, Message::Relay(candidate(id, lost.version, Role::Caller, "two")));
    cluster.settle().await;
    assert_eq!(cluster.heard("b1"), ["resumed", "ice-candidate one", "ice-candidate two"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_waits_for_another_itself_is_waited_for_longer() {
    let cluster = TestCluster::with(1, &["b1"]).await;
    let (here, (elsewhere, mut inbox)) =
        (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
    let id = answered_from_elsewhere(&cluster, &elsewhere).await;
    cluster.join("a1+").await;
    cluster.signal("a1+", "b", Signal::Candidate, "held").await.unwrap();
    cluster.heard("b1");
    let asks = |message: &Message| matches!(message, Message::Flush { call, .. } if *call == id);
    assert!(come(&mut inbox).iter().any(asks));
    let to = Role::Callee;
    elsewhere.send(here, Message::Flushing { call: id, to });
    cluster.pass(Duration::from_secs(4)).await;
    assert_eq!(cluster.heard("b1"), [""; 0], "the way beyond may be long");
    elsewhere.send(here, Message::Relay(candidate(id, 2, Role::Caller, "on its way")));
    elsewhere.send(here, Message::Flushed { call: id, to });
    cluster.settle().await;
    assert_eq!(
        cluster.heard("b1"),
        ["on its way", "held"].map(|text| format!("ice-candidate {text}"))
    );
}

#[tokio::test(start_paused = true)]
async fn what_has_not_left_a_node_goes_to_where_its_sender_is_now() {
    let cluster = TestCluster::with(1, &["a1", "b2"]).await;
    let here = cluster.nodes[0].id;
    let by_hand = |born| cluster.hub.node(NodeId::generate(Timestamp::from_millis(born)));
    let ((callees, mut at_callees), (next, mut at_next)) = (by_hand(0), by_hand(1));
    let call = answered_elsewhere(&cluster, &callees).await;
    cluster.signal("a1", "b", Signal::Candidate, "stuck").await.unwrap();
    assert_eq!(candidates(&come(&mut at_callees)), ["stuck"]);
    cluster.nodes[0].has_not_sent(candidate(call.id, call.version, Role::Caller, "stuck"));
    let device = Device { node: next.node(), ..cluster.device("a1+") };
    let moved = changed(&next, &call, &Event::Joined(device)).await;
    next.send(here, Message::Call(Box::new(moved.clone())));
    let flush = Message::Flush { call: call.id, version: moved.version, to: Role::Callee };
    next.send(here, flush);
    cluster.settle().await;
    let messages = come(&mut at_next);
    assert_eq!(candidates(&messages), ["stuck"]);
    let is_flushing = |message: &Message| matches!(message, Message::Flushing { .. });
    assert!(
        messages.iter().any(is_flushing),
        "what was sent earlier may still be on its way: {messages:?}"
    );
    callees.send(here, Message::Flushed { call: call.id, to: Role::Callee });
    cluster.settle().await;
    assert!(matches!(come(&mut at_next)[..], [Message::Flushed { .. }]));
}

#[tokio::test(start_paused = true)]
async fn a_connected_device_that_was_taken_for_lost_hears_the_end_from_the_last_version_alone() {
    let (cluster, id) = TestCluster::in_call(1, &["a1", "a2", "b1", "c1"]).await;
    let (here, (elsewhere, _inbox)) =
        (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
    let active = elsewhere.load(id).await.unwrap().unwrap();
    let gone = Event::Gone { device: cluster.device("a1"), may_return: true };
    let lost = changed(&elsewhere, &active, &gone).await;
    let by = Device { node: elsewhere.node(), ..cluster.device("a2") };
    let superseded = changed(&elsewhere, &lost, &Event::Superseded(by)).await;
    elsewhere.send(here, Message::Call(Box::new(superseded)));
    cluster.settle().await;
    assert_eq!(cluster.heard("a1"), ["ended superseded"]);
    assert_eq!(cluster.heard("b1"), ["ended superseded"]);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_back_first_keeps_its_call_from_another_of_its_user() {
    let (cluster, id) = TestCluster::in_call(1, &["a1", "b1", "c1"]).await;
    cluster.leave("a1", true).await;
    cluster.join("a2").await;
    let (calls, device) = (cluster.nodes[0].calls.clone(), cluster.device("a2"));
    let to = "c".parse().unwrap();
    let initiate =
        Initiate { to, call_type: CallType::Audio, caller_info: None, client_call_id: None };
    // The device begins another call, while another device of its user returns.
    let (placed, ()) = tokio::join!(calls.initiate(&device, initiate), cluster.join("a1+"));
    assert_eq!(placed.map(|call| call.id), Err(Refusal::CallInProgress(id).into()));
    assert_eq!(cluster.heard("a1+"), ["resumed"]);
    assert_eq!(cluster.heard("b1").last().unwrap(), "peer-reconnected");
}

#[tokio::test(start_paused = true)]
async fn a_device_taken_for_lost_before_it_knows_that_its_answer_won_hears_one_thing() {
    for is_over in [false, true] {
        let cluster = TestCluster::with(1, &["a1", "b1", "b2"]).await;
        let (here, (elsewhere, _inbox)) =
            (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
        let id = cluster.initiate("a1", "b").await.unwrap();
        let ringing = elsewhere.load(id).await.unwrap().unwrap();
        let active = changed(&elsewhere, &ringing, &Event::Answer(cluster.device("b1"))).await;
        let gone = Event::Gone { device: cluster.device("b1"), may_return: true };
        let mut last = changed(&elsewhere, &active, &gone).await;
        if is_over {
            last = changed(&elsewhere, &last, &Event::Terminated).await;
        }
        elsewhere.send(here, Message::Call(Box::new(last)));
        cluster.settle().await;
        let hears = if is_over { "ended terminated" } else { "resumed" };
        assert_eq!(cluster.heard("b1"), ["incoming", hears]);
        assert_eq!(cluster.heard("b2"), ["incoming", "ended answered_elsewhere"]);
    }
}

#[tokio::test(start_paused = true)]
async fn late_news_of_an_earlier_version_do_not_make_a_node_forget_its_device() {
    let cluster = TestCluster::with(1, &["a1", "b2"]).await;
    let (here, (elsewhere, _inbox)) =
        (cluster.nodes[0].id, cluster.hub.node(NodeId::generate(Timestamp::from_millis(0))));
    let call = answered_elsewhere(&cluster, &elsewhere).await;
    // The caller's device moves to the other node, is lost there, and returns.
    cluster.leave("a1", true).await;
    let there = Device { node: elsewhere.node(), ..cluster.device("a1") };
    let lost = elsewhere.load(call.id).await.unwrap().unwrap();
    let moved = changed(&elsewhere, &lost, &Event::Joined(there.clone())).await;
    let gone = Event::Gone { device: there, may_return: true };
    let lost = changed(&elsewhere, &moved, &gone).await;
    elsewhere.send(here, Message::Call(Box::new(moved)));
    cluster.settle().await;
    cluster.join("a1+").await;
    assert_eq!(cluster.heard("a1+"), ["resumed"]);
    elsewhere.send(here, Message::Call(Box::new(lost)));
    cluster.settle().await;
    cluster.pass(Duration::from_secs(11)).await;
    let active = elsewhere.load(call.id).await.unwrap().unwrap();
    let by = Device { node: elsewhere.node(), ..cluster.device("b1") };
    let ended = changed(&elsewhere, &active, &Event::End { by, reported_duration_s: None }).await;
    elsewhere.send(here, Message::Call(Box::new(ended)));
    cluster.settle().await;
    assert_eq!(cluster.heard("a1+"), ["ended completed"]);
}
