//! Tests of messages between nodes through Redis: each arrives, or its sender knows that it may not
//! have.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use switchboard::{
    call::{Role, Signal},
    cluster::{Inbound, Message, Peers, Redis, Relay},
    ids::{CallId, NodeId},
    limits::buffers::Buffers,
    payload::Payload,
    time::Clock,
};

use crate::{
    cluster::{START, join, join_within},
    redis_server::RedisServer,
};

#[tokio::test]
async fn messages_reach_the_node_they_are_for_in_order() {
    for server in [RedisServer::standalone(), RedisServer::cluster(), RedisServer::sentinel()] {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let (redis, inbox) = join(&server).await;
            nodes.push((redis.node(), (redis, inbox)));
        }
        let sent: Vec<_> =
            (0..1_000).map(|_| Message::Rings { call: CallId::generate(START), have: 0 }).collect();
        let ((from, (sender, _)), rest) = nodes.split_first_mut().unwrap();
        for message in &sent {
            for (node, _) in &*rest {
                sender.send(*node, message.clone());
            }
        }
        for (_, (_, inbox)) in rest {
            for expected in &sent {
                match inbox.recv().await {
                    Some(Inbound::Message(node, message)) => {
                        assert_eq!((node, &message), (*from, expected));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// A sending node and the inbox of another one.
async fn sender_and_inbox(server: &RedisServer) -> (Arc<Redis>, NodeId, mpsc::Receiver<Inbound>) {
    let (sender, _) = join(server).await;
    let (receiver, inbox) = join(server).await;
    (sender, receiver.node(), inbox)
}

/// Sends a message every 20 ms for this long, and expects all of them once and in order, however
/// late.
async fn all_arrive(
    sender: Arc<Redis>,
    to: NodeId,
    mut inbox: mpsc::Receiver<Inbound>,
    sending: Duration,
) {
    let sent = tokio::spawn(async move {
        let mut sent = Vec::new();
        let until = tokio::time::Instant::now() + sending;
        while tokio::time::Instant::now() < until {
            let message = Message::Rings { call: CallId::generate(Clock::System.now()), have: 0 };
            sender.send(to, message.clone());
            sent.push(message);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (sent, sender)
    });
    let (sent, _sender) = sent.await.unwrap();
    for expected in &sent {
        let inbound = async {
            loop {
                if let Some(Inbound::Message(_, message)) = inbox.recv().await {
                    return message;
                }
            }
        };
        let patience = Duration::from_secs(20);
        let message = tokio::time::timeout(patience, inbound).await.expect("it arrives");
        assert_eq!(message, *expected);
    }
}

#[tokio::test]
async fn what_the_receiver_has_confirmed_is_not_kept() {
    let server = RedisServer::standalone();
    let buffers = Buffers::default();
    let (sender, _inbox) = join_within(&server, &buffers).await;
    let (receiver, mut inbox) = join(&server).await;
    let call = CallId::generate(START);
    for _ in 0..2 {
        for _ in 0..100 {
            sender.send(receiver.node(), relay(call, 10_000));
        }
        let last = rings();
        sender.send(receiver.node(), last.clone());
        arrives(&mut inbox, &last).await;
        assert!(buffers.used_bytes() > 500_000, "it may be asked for again");
        let confirmed = async {
            while buffers.used_bytes() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), confirmed).await.expect("it is confirmed");
    }
}

#[tokio::test]
async fn a_failover_loses_no_message() {
    let mut server = RedisServer::sentinel();
    let (sender, node, inbox) = sender_and_inbox(&server).await;
    let arriving = tokio::spawn(all_arrive(sender, node, inbox, Duration::from_secs(4)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.kill_first();
    arriving.await.unwrap();
}

#[tokio::test]
async fn a_slot_that_moves_loses_no_message() {
    let server = RedisServer::cluster();
    let (sender, node, inbox) = sender_and_inbox(&server).await;
    let arriving = tokio::spawn(all_arrive(sender, node, inbox, Duration::from_secs(3)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.move_slot_of(&format!("sb:n:test:{node}"));
    arriving.await.unwrap();
}

#[tokio::test]
async fn what_a_node_that_stops_has_not_heard_can_be_taken_back() {
    let server = RedisServer::standalone();
    let (sender, _inbox) = join(&server).await;
    let (receiver, mut inbox) = join(&server).await;
    let (call, to) = (CallId::generate(START), receiver.node());
    let numbers = 0..300;
    for number in numbers.clone() {
        let relay = Relay {
            call,
            version: number,
            from: Role::Caller,
            signal: Signal::Candidate,
            payload: serde_json::from_str("1").unwrap(),
            given_back: false,
            to_ringing: false,
            received_us: None,
            traceparent: None,
        };
        sender.send(to, Message::Relay(relay));
        tokio::time::sleep(Duration::from_millis(2)).await;
        if number == 100 {
            receiver.stop_listening();
        }
    }
    let mut told = Vec::new();
    let inbox_ends = async {
        while let Some(inbound) = inbox.recv().await {
            if let Inbound::Message(_, Message::Relay(relay)) = inbound {
                told.push(relay.version);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), inbox_ends).await.expect("its inbox ends");
    assert!(told.len() > 50, "it heard what was sent before: {told:?}");
    let patience = tokio::time::Instant::now() + Duration::from_secs(5);
    while told.len() < 300 && tokio::time::Instant::now() < patience {
        let recalled = sender.recall(to, call, Role::Callee);
        told.extend(recalled.iter().map(|relay| relay.version));
        told.sort_unstable();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(told, numbers.collect::<Vec<_>>());
}

/// A message of this size in a call.
fn relay(call: CallId, bytes: usize) -> Message {
    let payload: Payload = serde_json::from_str(&format!("{:?}", "x".repeat(bytes))).unwrap();
    Message::Relay(Relay {
        call,
        version: 1,
        from: Role::Caller,
        signal: Signal::Candidate,
        payload,
        given_back: false,
        to_ringing: false,
        received_us: None,
        traceparent: None,
    })
}

#[tokio::test]
async fn what_waits_for_a_node_is_bounded_in_bytes_and_a_small_call_has_room_beside_a_large_one() {
    const BUDGET: usize = 64 * 1024 * 1024;
    const LARGE: usize = 60 * 1024;
    let server = RedisServer::standalone();
    let buffers = Buffers::new(BUDGET);
    let (sender, _inbox) = join_within(&server, &buffers).await;
    let (receiver, mut inbox) = join(&server).await;
    let (node, large, small) =
        (receiver.node(), CallId::generate(START), CallId::generate(Clock::System.now()));
    server.freeze();
    let mut sent = 0;
    while sender.has_room(node, large, LARGE) {
        sender.send(node, relay(large, LARGE));
        sent += 1;
        assert!(buffers.used_bytes() <= BUDGET / 8, "{sent} messages, {buffers:?}");
    }
    assert!(sent * LARGE > BUDGET / 32, "{sent} messages had room");
    // The call that has sent most is refused; the others keep their share.
    assert!(sender.has_room(node, small, LARGE));
    let last = relay(small, 100);
    sender.send(node, last.clone());
    // Messages that are sent nevertheless are dropped.
    for _ in 0..1_000 {
        sender.send(node, relay(large, LARGE));
    }
    assert!(buffers.used_bytes() <= BUDGET / 8, "{buffers:?}");
    server.thaw();
    let patience = Duration::from_secs(20);
    let mut got = 0;
    while tokio::time::timeout(patience, inbox.recv()).await.is_ok_and(|inbound| {
        got += 1;
        !matches!(inbound, Some(Inbound::Message(_, message)) if message == last)
    }) {}
    assert!(got > sent, "all that had room arrives, and then the small one: {got} of {sent}");
    // Received messages are kept for repetition, within the same bounds.
    for _ in 0..500 {
        while !sender.has_room(node, large, LARGE) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sender.send(node, relay(large, LARGE));
        assert!(buffers.used_bytes() <= BUDGET / 8, "{buffers:?}");
    }
    drop(sender);
}

fn rings() -> Message {
    Message::Rings { call: CallId::generate(Clock::System.now()), have: 0 }
}

/// All messages until the first inbound item of another kind.
async fn messages_until_reset(inbox: &mut mpsc::Receiver<Inbound>) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        let patience = Duration::from_secs(20);
        match tokio::time::timeout(patience, inbox.recv())
            .await
            .unwrap_or_else(|_| panic!("after {} messages nothing comes", messages.len()))
        {
            Some(Inbound::Message(_, message)) => messages.push(message),
            Some(Inbound::Reset) => return messages,
            other => panic!("{other:?}"),
        }
    }
}

/// Waits for this message and ignores those before it.
async fn arrives(inbox: &mut mpsc::Receiver<Inbound>, expected: &Message) {
    let arrival = async {
        while !matches!(inbox.recv().await, Some(Inbound::Message(_, got)) if got == *expected) {}
    };
    tokio::time::timeout(Duration::from_secs(20), arrival).await.expect("it arrives");
}

#[tokio::test]
async fn more_messages_than_wait_for_a_frozen_redis_are_dropped_loudly_and_the_rest_arrives() {
    const FIT: usize = 10_000;
    let server = RedisServer::standalone();
    let (sender, node, mut inbox) = sender_and_inbox(&server).await;
    let sent: Vec<_> = std::iter::repeat_with(rings).take(FIT + 5_000).collect();
    server.freeze();
    for message in &sent {
        sender.send(node, message.clone());
    }
    // Longer than the command time-out: some publishes are abandoned and repeated.
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.thaw();
    let last = rings();
    sender.send(node, last.clone());

    let mut got = messages_until_reset(&mut inbox).await;
    while got.len() < FIT {
        // The reconnection reports a reset as well.
        got.extend(messages_until_reset(&mut inbox).await);
    }
    assert_eq!(got[..], sent[..got.len()]);
    arrives(&mut inbox, &last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_keep_up_says_that_it_missed_something_and_goes_on() {
    const MORE_THAN_ALL_BUFFERS: usize = 150_000;
    let server = RedisServer::standalone();
    let (sender, node, mut inbox) = sender_and_inbox(&server).await;
    let peer = NodeId::generate(START);
    let call = CallId::generate(START);
    let frame = |number: usize| {
        format!(
            r#"{{"v":1,"from":"{peer}","content":{{"frame":{{"link":1,"first":{number},"oldest":0,"messages":[{{"rings":{{"call":"{call}","have":{number}}}}}]}}}}}}"#
        )
    };
    // The progress that a sender reports twice a second when it no longer keeps any of the
    // messages.
    let progress = format!(
        r#"{{"v":1,"from":"{peer}","content":{{"frame":{{"link":1,"first":{MORE_THAN_ALL_BUFFERS},"oldest":{MORE_THAN_ALL_BUFFERS},"messages":[]}}}}}}"#
    );
    let channel = format!("sb:n:test:{node}");
    server.flood(&channel, (0..MORE_THAN_ALL_BUFFERS).map(frame));

    let say_progress = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            server.flood(&channel, std::iter::once(progress.clone()));
        }
    };
    let got = tokio::select! {
        got = messages_until_reset(&mut inbox) => got,
        () = say_progress => unreachable!("it goes on for ever"),
    };
    let in_order = (0..got.len()).map(|have| Message::Rings { call, have });
    assert!(got.iter().cloned().eq(in_order), "what was kept is in order");
    assert!(got.len() < MORE_THAN_ALL_BUFFERS, "what is kept has a bound");
    let message = rings();
    sender.send(node, message.clone());
    arrives(&mut inbox, &message).await;
}

#[tokio::test]
async fn what_a_later_build_says_is_passed_over_and_what_follows_arrives() {
    let server = RedisServer::standalone();
    let (_sender, node, mut inbox) = sender_and_inbox(&server).await;
    let peer = NodeId::generate(START);
    let call = CallId::generate(START);
    let rings = format!(r#"{{"rings":{{"call":"{call}","have":1}}}}"#);
    let contents = [
        r#"{"picture":{"of":"a cat"}}"#.to_owned(),
        r#"{"frame":{"link":1,"first":0,"oldest":0,"messages":[{"mood":{"good":true}}]}}"#
            .to_owned(),
        format!(r#"{{"frame":{{"link":1,"first":1,"oldest":0,"messages":[{rings}]}}}}"#),
    ];
    let envelopes =
        contents.map(|content| format!(r#"{{"v":1,"from":"{peer}","content":{content}}}"#));
    server.flood(&format!("sb:n:test:{node}"), envelopes.into_iter());
    arrives(&mut inbox, &Message::Rings { call, have: 1 }).await;
}
